"""What LoRA is compared with (§5.1): other ways to adapt a trained GPT with few parameters.

Two train a part of the model: the last block alone (FT-Top), the biases alone (BitFit). Three add something: vectors
before the text (prompt tuning, the paper's PreEmbed), keys and values before every attention's own (prefix tuning,
in place of the paper's PreLayer), small networks after attention and MLP (bottleneck adapters). Each freezes the
base and returns the parameters that train, as `add_lora` does. Last, two that train the whole model, but only within a
random subspace of its weights, or only a random subset of them.

Letters: B batch · T time · P prefix · D `d_model` · H heads · V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import functional as F
from .autograd import Tensor, no_grad
from .backend import asarray, xp
from .fast.scatter import Scatter
from .gpt import GPT, Attention, Block, Past
from .nn import LayerNorm, Linear, Module, Parameter
from .optim import Adam


def last_block(model: GPT) -> list[Parameter]:
    """Train the last block and nothing else: few layers, but of full rank."""
    _freeze(model)
    return _thaw(model.blocks[-1].parameters())


def bitfit(model: Module) -> list[Parameter]:
    """Train every bias, LayerNorm's too, and nothing else (Ben Zaken et al. 2021). Raises `ValueError` where there is
    none, as in a Llama."""
    biases = [parameter for name, parameter in model.named_parameters() if name.endswith("bias")]
    if not biases:
        raise ValueError("This model has no bias to train.")
    _freeze(model)
    return _thaw(biases)


# ---- before the text ---------------------------------------------------------------------------------


class PromptTuned(Module):
    """A model that reads P trained vectors before its text (Lester et al. 2021; §5.1, PreEmbed: P·D parameters).

    The vectors start as embeddings of random tokens. The text keeps its positions, but attention now spans P + T,
    so a text may be at most `context_length` - P long. Raises `ValueError` for a longer one, or a P that leaves none.
    """

    def __init__(self, model: GPT, length: int, seed: int = 0) -> None:
        _check_length(model, length)
        _freeze(model)
        self.model, self.config, self.reads = model, model.config, model.reads - length
        ids = np.random.default_rng(seed).integers(0, model.config.vocab_size, length)
        self.prompt = Parameter(model.token_embedding.weight.data[asarray(ids)])  # (P, D)

    def forward(self, ids: Any) -> Tensor:
        x = self.model.embed(ids)  # (B, T, D)
        P, T = len(self.prompt), x.shape[1]
        _check_fits(P, T, self.config.context_length)
        x = F.concatenate([_repeat(self.prompt, x.shape[0]), x], axis=1)  # (B, P + T, D)
        return self.model.read(x)[:, P:]  # (B, T, V)


class PrefixAttention(Module):
    """Attention whose queries also see P trained keys and values, (P, D) each."""

    def __init__(self, inner: Attention, keys: Any, values: Any, context_length: int) -> None:
        self.inner = inner
        self.prefix_k, self.prefix_v = Parameter(keys), Parameter(values)
        self.context_length = context_length

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        inner, (B, T, D) = self.inner, x.shape
        q, k, v = (inner.split(project(x)) for project in (inner.q_proj, inner.k_proj, inner.v_proj))
        if past is not None:
            k, v = past.extend(k, v)
        _check_fits(len(self.prefix_k), k.shape[2], self.context_length)
        k = F.concatenate([inner.split(_repeat(self.prefix_k, B)), k], axis=2)  # (B, H, P + S, D/H)
        v = F.concatenate([inner.split(_repeat(self.prefix_v, B)), v], axis=2)
        y = F.causal_attention(q, k, v)  # (B, H, T, D/H)
        return inner.o_proj(y.transpose(0, 2, 1, 3).reshape(B, T, D))


def add_prefix(model: GPT, length: int, seed: int = 0) -> list[Parameter]:
    """Give every block P = `length` trained keys and values (Li & Liang 2021): 2·L·P·D parameters.

    They start as those of random tokens, which the authors found far better than random numbers. A text may then be
    at most `context_length` - P long. Raises `ValueError` for a longer one, a P that leaves none, or a Llama.
    """
    if not isinstance(model.blocks[0], Block):
        raise ValueError(f"A prefix needs a GPT's blocks; a {type(model).__name__} has others: use LoRA or a prompt.")
    _check_length(model, length)
    _freeze(model)
    model.reads -= length
    ids = np.random.default_rng(seed).integers(0, model.config.vocab_size, (1, length))
    added: list[Parameter] = []
    with no_grad():
        x = model.embed(ids)
        for block in model.blocks:
            normed, attention = block.ln_1(x), block.attn
            keys, values = attention.k_proj(normed).data[0], attention.v_proj(normed).data[0]  # (P, D)
            x = block(x)
            prefixed = PrefixAttention(attention, keys, values, model.config.context_length)
            setattr(block, "attn", prefixed)  # noqa: B010 - a module in place of another kind
            added += [prefixed.prefix_k, prefixed.prefix_v]
    return added


def _check_length(model: GPT, length: int) -> None:
    limit = model.config.context_length
    if not 1 <= length < limit:
        raise ValueError(f"A prefix for a context of {limit} has 1 to {limit - 1} vectors, not {length}.")


def _check_fits(P: int, T: int, limit: int) -> None:
    if P + T > limit:
        raise ValueError(
            f"The text has {T} positions; the prefix takes {P} of the context's {limit}, so at most {limit - P} fit."
        )


def _repeat(x: Tensor, B: int) -> Tensor:
    """(P, D) -> (B, P, D)."""
    return x + Tensor(xp.zeros((B, *x.shape), dtype=x.dtype))


# ---- between the layers ------------------------------------------------------------------------------


class Bottleneck(Module):
    """h + up(gelu(down(h))) for h = inner(x): D -> m -> D, of no effect at first, since `up` starts as zero.

    With `norm`, down reads LayerNorm(h).
    """

    def __init__(self, inner: Module, d: int, m: int, norm: bool, rng: np.random.Generator, dtype: Any) -> None:
        self.inner = inner
        self.norm = LayerNorm(d, dtype=dtype) if norm else None
        self.down = Linear(d, m, rng=rng, std=d**-0.5, dtype=dtype)
        self.up = Linear(m, d, dtype=dtype)

    def forward(self, x: Tensor, *past: Past) -> Tensor:
        h = self.inner(x, *past)
        return h + self.up(F.gelu(self.down(h if self.norm is None else self.norm(h))))


def add_adapters(model: GPT, m: int, style: str = "houlsby", seed: int = 0) -> list[Parameter]:
    """Bottleneck adapters of width m, each 2·D·m + m + D parameters.

    style: "houlsby", after attention and after the MLP, before the residual is added (Houlsby et al. 2019, the
    paper's AdapterH); "lin", after the MLP alone, with a LayerNorm of 2·D more (Lin et al. 2020, AdapterL).
    Raises `ValueError` for another style or a width below 1.
    """
    if style not in ("houlsby", "lin"):
        raise ValueError(f'The style of adapters is "houlsby" or "lin", not {style!r}.')
    if m < 1:
        raise ValueError(f"An adapter's width must be at least 1, not {m}.")
    _freeze(model)
    rng, D, dtype = np.random.default_rng(seed), model.config.d_model, model.lm_head.weight.dtype
    added: list[Parameter] = []
    for block in model.blocks:
        attention = "attn" if hasattr(block, "attn") else "self_attn"  # of a Llama
        for name in (attention, "mlp") if style == "houlsby" else ("mlp",):
            adapter = Bottleneck(getattr(block, name), D, m, style == "lin", rng, dtype)
            setattr(block, name, adapter)
            parts = (adapter.norm, adapter.down, adapter.up)
            added += [p for part in parts if part is not None for p in part.parameters()]
    return added


# ---- a random subspace of all parameters -------------------------------------------------------------


class RandomSubspace(Adam):
    """Adam on z alone, where θ = θ₀ + P z for a random P of n columns (Li et al. 2018): how many does a task need?

    Each row of P has one ±1, in a random column: the columns are orthogonal, and P is never stored as a matrix.
    `collect_gradients` makes z's gradient from the model's, for clipping to bound; `step` does it otherwise.
    """

    def __init__(self, params: list[Parameter], n: int, lr: float, seed: int = 0) -> None:
        self.targets = list(params)
        self.starts = [p.data.copy() for p in params]
        rng = np.random.default_rng(seed)
        columns = [rng.integers(0, n, p.size) for p in params]
        self.columns, self.sums = [asarray(c) for c in columns], [Scatter(c, n) for c in columns]
        self.signs = [asarray(rng.choice([-1.0, 1.0], p.size), dtype=p.dtype) for p in params]
        self.z = Parameter(xp.zeros(n, dtype=params[0].dtype))
        super().__init__([self.z], lr)

    def zero_grad(self) -> None:
        for p in [*self.targets, self.z]:
            p.grad = None

    def collect_gradients(self) -> None:
        """∂L/∂z = Pᵀ ∂L/∂θ. If the model has no gradient, neither has z."""
        for p, add_up, sign in zip(self.targets, self.sums, self.signs, strict=True):
            if p.grad is not None:
                gradient = add_up(p.grad.reshape(-1) * sign)
                self.z.grad = gradient if self.z.grad is None else self.z.grad + gradient
                p.grad = None  # it went into z's

    def step(self) -> None:
        self.collect_gradients()
        super().step()
        for p, start, column, sign in zip(self.targets, self.starts, self.columns, self.signs, strict=True):
            p.data = start + (self.z.array[column] * sign).reshape(start.shape)


class RandomSubset(Adam):
    """Adam on n weights drawn from all, where the others stay as they are: "only some of the parameters are used".

    Beside `RandomSubspace` and LoRA it tells a few weights from a few directions. `collect_gradients` takes theirs from
    the model's, for clipping to bound; `step` does it otherwise. Raises `ValueError` for more than there are.
    """

    def __init__(self, params: list[Parameter], n: int, lr: float, seed: int = 0) -> None:
        self.targets = list(params)
        ends = np.cumsum([0, *(p.size for p in params)])
        if not 1 <= n <= ends[-1]:
            raise ValueError(f"A subset has 1 to {ends[-1]:,} weights of this model, not {n:,}.")
        drawn = np.sort(np.random.default_rng(seed).choice(int(ends[-1]), n, replace=False))
        self.cuts = np.searchsorted(drawn, ends[1:-1]).tolist()  # between the chosen of one parameter and of the next
        inside = zip(np.split(drawn, self.cuts), ends[:-1], strict=True)
        self.places = [asarray(places - start) for places, start in inside]
        start = xp.concatenate([p.array.reshape(-1)[at] for p, at in zip(params, self.places, strict=True)])
        self.chosen = Parameter(start)
        super().__init__([self.chosen], lr)

    def zero_grad(self) -> None:
        for p in [*self.targets, self.chosen]:
            p.grad = None

    def collect_gradients(self) -> None:
        """The chosen weights' entries of ∂L/∂θ. If the model has no gradient, neither have they."""
        if any(p.grad is not None for p in self.targets):
            entries = [
                xp.zeros(len(at), dtype=p.dtype) if p.grad is None else p.grad.reshape(-1)[at]
                for p, at in zip(self.targets, self.places, strict=True)
            ]
            self.chosen.grad = xp.concatenate(entries)
            for p in self.targets:
                p.grad = None  # it went into theirs

    def step(self) -> None:
        self.collect_gradients()
        super().step()
        for p, at, chosen in zip(self.targets, self.places, xp.split(self.chosen.array, self.cuts), strict=True):
            weights = p.array.copy()
            weights.reshape(-1)[at] = chosen
            p.data = weights


# ---- helpers -----------------------------------------------------------------------------------------


def _freeze(model: Module) -> None:
    for parameter in model.parameters():
        parameter.requires_grad = False


def _thaw(parameters: list[Parameter]) -> list[Parameter]:
    for parameter in parameters:
        parameter.requires_grad = True
    return parameters
