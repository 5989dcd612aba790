"""What adapting a model costs: trainable parameters, and the bytes of everything that training keeps.

For any GPT of minilora, and for the models of the paper, by formula alone: no one needs 350 GB to follow.

Letters: B batch · T time · D `d_model` · F `d_ff` · H heads · L layers · V vocabulary · P prefix · m adapter width ·
r rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .fast.attention import QUERIES
from .gpt import GPT, GPTConfig

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
TARGETS = (*ATTENTION, "fc_in", "fc_out")


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a transformer that decide its budget."""

    name: str
    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int  # between the MLP's two layers
    vocab: int
    context: int  # rows of the position embedding
    bytes_per_number: int = 4  # of weights, gradients, Adam's states and activations alike
    tied_head: bool = True  # the head's weight is the token embedding's
    biases: bool = True  # the six projections of a block have them
    causal: bool = True  # no query meets a later key
    extra: int = 0  # parameters beyond embeddings, blocks, one LayerNorm and the head

    def sides(self, target: str) -> tuple[int, int]:
        """(out, in) of one of a block's six projections. Raises `ValueError` for another name."""
        if target not in TARGETS:
            raise ValueError(f"There is no target {target!r}; there are: {', '.join(TARGETS)}.")
        D, F = self.d_model, self.d_ff
        return (F, D) if target == "fc_in" else (D, F) if target == "fc_out" else (D, D)


# The paper names these models; the sizes are those of their published configurations, and 2 bytes a number for GPT-3
# is the paper's "350 GB". Both RoBERTas have one more token type; DeBERTa has positions relative to each other, a
# LayerNorm for them, and a convolution of width 3 with a LayerNorm.
PRESETS: dict[str, ModelShape] = {
    shape.name: shape
    for shape in (
        ModelShape("tiny", 64, 2, 4, 256, 96, 40, tied_head=False),  # minilora's base of the string tasks
        ModelShape("gpt2", 768, 12, 12, 3072, 50257, 1024),
        ModelShape("gpt2-medium", 1024, 24, 16, 4096, 50257, 1024),
        ModelShape("gpt2-large", 1280, 36, 20, 5120, 50257, 1024),
        ModelShape("roberta-base", 768, 12, 12, 3072, 50265, 514, causal=False, extra=768),
        ModelShape("roberta-large", 1024, 24, 16, 4096, 50265, 514, causal=False, extra=1024),
        ModelShape("deberta-xxl", 1536, 48, 24, 6144, 128100, 512, causal=False, extra=3 * 1536**2 + 5 * 1536),
        ModelShape("gpt3-175b", 12288, 96, 96, 49152, 50257, 2048, bytes_per_number=2),
    )
}


def preset(name: str) -> ModelShape:
    """One of `PRESETS`. Raises `ValueError` for an unknown name."""
    if name not in PRESETS:
        raise ValueError(f"There is no preset {name!r}; there are: {', '.join(PRESETS)}.")
    return PRESETS[name]


def shape_of(model: GPT) -> ModelShape:
    """The shape of a GPT of minilora, adapted or not. Raises `ValueError` for a Llama."""
    config = model.config
    if not isinstance(config, GPTConfig):
        raise ValueError(f"The budget counts a GPT's blocks; this is a {type(model).__name__}.")
    return ModelShape(
        name="model",
        d_model=config.d_model,
        n_layers=config.n_layers,
        n_heads=config.n_heads,
        d_ff=4 * config.d_model,
        vocab=config.vocab_size,
        context=config.context_length,
        bytes_per_number=model.token_embedding.weight.dtype.itemsize,
        tied_head=config.tied_head,
    )


# ---- how many parameters train -----------------------------------------------------------------------


def full_count(shape: ModelShape) -> int:
    """Every parameter: embeddings, blocks, the last LayerNorm, a head that is not tied, and what is extra."""
    D, V = shape.d_model, shape.vocab
    head = 0 if shape.tied_head else V * D
    return (V + shape.context) * D + shape.n_layers * block_count(shape) + 2 * D + head + shape.extra


def block_count(shape: ModelShape) -> int:
    """Six projections and two LayerNorms: 12 D² + 13 D with biases and F = 4 D."""
    sides = [shape.sides(target) for target in TARGETS]
    return sum(out * (inner + shape.biases) for out, inner in sides) + 4 * shape.d_model


def lora_count(shape: ModelShape, r: int, targets: Sequence[str]) -> int:
    """r (out + in) for each target in each block; for square ones the paper's 2·L_LoRA·D·r (§5.1).

    Raises `ValueError` for an unknown or repeated target, none, or a rank outside 1 ... min(out, in).
    """
    if not targets or len(set(targets)) != len(targets):
        raise ValueError(f"The targets must be one or more names, each once, not {', '.join(targets) or 'none'}.")
    for target in targets:
        side = min(shape.sides(target))
        if not 1 <= r <= side:
            raise ValueError(f"The rank r must be 1 to min(out, in) = {side} for {target} of {shape.name}, not {r}.")
    return shape.n_layers * sum(r * sum(shape.sides(target)) for target in targets)


def bitfit_count(shape: ModelShape) -> int:
    """Every bias, LayerNorm's too: eleven vectors of width D in a block of GPT-2's kind, and the last LayerNorm's."""
    projections = sum(shape.sides(target)[0] for target in TARGETS) if shape.biases else 0
    return shape.n_layers * (projections + 2 * shape.d_model) + shape.d_model


def prompt_count(shape: ModelShape, length: int) -> int:
    """P·D, the paper's PreEmbed with P = l_p + l_i (§5.1)."""
    return length * shape.d_model


def prefix_layer_count(shape: ModelShape, length: int) -> int:
    """L·P·D, as the paper counts its PreLayer with P = l_p + l_i (§5.1): one vector for each position and layer."""
    return shape.n_layers * length * shape.d_model


def prefix_count(shape: ModelShape, length: int) -> int:
    """2·L·P·D, as `baselines.add_prefix` trains it: a key and a value for each position and layer."""
    return 2 * prefix_layer_count(shape, length)


def adapter_count(shape: ModelShape, m: int, adapters: int = 2, norms: int = 0) -> int:
    """L_adapters·(2·D·m + m + D) + 2·L_norms·D (§5.1), given how many of each a block has.

    (2, 0) is AdapterH, and (1, 1) AdapterL, as in `baselines.add_adapters`.
    """
    D = shape.d_model
    return shape.n_layers * (adapters * (2 * D * m + m + D) + norms * 2 * D)


# ---- how many bytes that takes -----------------------------------------------------------------------


@dataclass(frozen=True)
class Budget:
    """What one way to train keeps: `trainable` is a count, everything else is bytes."""

    trainable: int
    weights: int
    gradients: int
    adam: int  # m and v
    activations: int  # what the tape keeps from the forward for the backward
    checkpoint: int  # the numbers of the file that a task needs, without the file's own headers

    @property
    def memory(self) -> int:
        """The bytes of all four together. Scratch space comes on top, and not all are there at one moment."""
        return self.weights + self.gradients + self.adam + self.activations


def full_budget(shape: ModelShape, batch: int, time: int) -> Budget:
    """Full fine-tuning's budget with Adam on B by T tokens, each a target. Raises `ValueError` for impossible sizes."""
    return _budget(shape, full_count(shape), 0, activation_count(shape, batch, time))


def lora_budget(shape: ModelShape, r: int, targets: Sequence[str], batch: int, time: int) -> Budget:
    """LoRA's budget with Adam (§4.2). Raises `ValueError` for what `lora_count` refuses, and for impossible sizes."""
    added = lora_count(shape, r, targets)
    return _budget(shape, added, added, activation_count(shape, batch, time, r, targets))


def _budget(shape: ModelShape, trainable: int, added: int, activations: int) -> Budget:
    size = shape.bytes_per_number
    return Budget(
        trainable=trainable,
        weights=size * (full_count(shape) + added),
        gradients=size * trainable,
        adam=2 * size * trainable,
        activations=size * activations,
        checkpoint=size * trainable,
    )


def activation_count(shape: ModelShape, batch: int, time: int, r: int = 0, targets: Sequence[str] | None = None) -> int:
    """How many numbers minilora's tape keeps from a forward, with M = B·T rows; without `targets` everything trains.

    A block keeps, each (M, D) unless said: x̂ of both LayerNorms; the input of q, k, v; q, k and v; attention's
    result, which is the input of o; its probabilities, one per head and pair of positions; the input of fc_in; GELU's
    derivative (M, F); the input of fc_out (M, F). The end keeps x̂, the head's input, and the probabilities (M, V).

    LoRA keeps no input of a frozen projection, (M, r) more for each target, and in the first block nothing that comes
    before the first target: no gradient goes there. Left out: the indices, and what is one number a row.
    Raises `ValueError` unless B >= 1 and 1 <= T <= context.
    """
    if batch < 1:
        raise ValueError(f"The batch must be at least 1, not {batch}.")
    if not 1 <= time <= shape.context:
        raise ValueError(f"The time must be 1 to {shape.context}, the context of {shape.name}, not {time}.")
    M, D, F = batch * time, shape.d_model, shape.d_ff
    full = targets is None
    read = set(TARGETS if targets is None else targets)  # the projections whose input is kept
    total = M * (D + shape.vocab) + (M * D if full else 0)  # the end: x̂, the probabilities, the head's input
    for layer in range(shape.n_layers):
        flows = full or layer > 0  # whether anything so far wants a gradient
        if flows:
            total += M * D  # x̂
        if read & {"q_proj", "k_proj", "v_proj"}:
            total += M * D  # their input
            flows = True
        if flows:
            total += 3 * M * D + batch * shape.n_heads * _pairs(shape, time)  # q, k, v and the probabilities
        if flows or "o_proj" in read:
            total += 2 * M * D  # attention's result, and x̂
            flows = True
        if "fc_in" in read:
            total += M * D  # its input
            flows = True
        if flows:
            total += M * F  # GELU's derivative
        if "fc_out" in read:
            total += M * F  # its input
        if not full:
            total += len(read) * M * r  # A x
    return total


def _pairs(shape: ModelShape, time: int) -> int:
    """Pairs of query and key whose probability is kept: a block of queries keeps every key that its last one sees."""
    if not shape.causal:
        return time * time
    ends = [min(start + QUERIES, time) for start in range(0, time, QUERIES)]
    return sum((end - start) * end for start, end in zip([0, *ends], ends, strict=False))


def readable(size: float) -> str:
    """Bytes in the unit that suits them, a thousand to the next: 37,748,736 is "37.7 MB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB" if size < 999.5 else f"{size:,.0f} TB"
