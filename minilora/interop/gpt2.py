"""GPT-2 from a Hugging Face folder: `config.json`, `model.safetensors` (one file, or shards with an index) and
`tokenizer.json`.

GPT-2 stores its matrices (in, out), and query, key and value side by side as one `c_attn`. Both end here: what is
read is transposed to minilora's (out, in) and cut into `q_proj`, `k_proj`, `v_proj`, and nothing else knows of it.

Letters: D `d_model` · V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..backend import asarray, to_numpy
from ..gpt import GPT, GPTConfig
from .checkpoint import CheckpointError
from .files import all_transposed, read_json
from .hugging_face import (
    Stored,
    check_layers,
    check_named,
    check_names_fit,
    check_same_head,
    check_settings,
    check_shapes,
    find_tensors,
    read_tensor,
)

# GPT-2's modules within a block, and minilora's that they hold, one below the other.
FUSED = {
    "attn.c_attn": ("attn.q_proj", "attn.k_proj", "attn.v_proj"),
    "attn.c_proj": ("attn.o_proj",),
    "mlp.c_fc": ("mlp.fc_in",),
    "mlp.c_proj": ("mlp.fc_out",),
}
# Settings that change what GPT-2 computes, and the values that minilora's GPT has; where absent, the first.
_COMPUTED = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}
_BUFFER = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # causal masks, which old files carry along


class GPT2(GPT):
    """A GPT whose weights came from a GPT-2 folder. Its adapters are files for that folder's model, under its
    modules' names."""


def load_gpt2(folder: str | Path, dtype: str = "float32") -> GPT2:
    """The GPT-2 of a Hugging Face folder, with separate q, k, v and o projections, and dropout nowhere.

    Reads tensor by tensor: the peak is the model and its largest tensor. Raises `CheckpointError` where a file is
    missing or damaged, a shape or a name does not fit `config.json`, a weight is not finite, or the settings are of a
    model that minilora does not have.
    """
    folder = Path(folder)
    config = _config(folder)
    files = find_tensors(folder, _BUFFER, prefix="transformer.")
    _check_fit(config, files, folder)  # before the model is made: sizes that lie would ask for any amount of memory
    model = GPT2(config, seed=None, dtype=dtype)
    parameters = dict(model.named_parameters())
    for name, _, own in stored_tensors(config):
        array = read_tensor(files[name], dtype)
        if _is_matrix(name):
            array = array.T  # (in, out) -> (out, in)
        for parameter_name, rows in zip(own, np.split(array, len(own)), strict=True):
            parameters[parameter_name].data = asarray(np.ascontiguousarray(rows))
    if config.tied_head:  # some save it a second time
        check_same_head(files, to_numpy(model.token_embedding.weight.data))
    return model


def _check_fit(config: GPTConfig, files: dict[str, Stored], folder: Path) -> None:
    """Raise `CheckpointError` where names or shapes of the tensors are not those that `config.json` asks for."""
    few = {name for name, *_ in stored_tensors(replace(config, n_layers=1))}  # config.json may claim any number
    check_named(files, few | {f"transformer.{name}" for name in few}, folder, "GPT-2's")
    check_layers(files, r"h\.\d+\.", config.n_layers, folder, "its config.json")
    wanted = {name: shape for name, shape, _ in stored_tensors(config)}
    if "lm_head.weight" in files:
        wanted["lm_head.weight"] = (config.vocab_size, config.d_model)
    check_names_fit(files, wanted, folder, "its config.json")
    found = {name: file.shapes[stored] for name, (file, stored) in files.items()}
    if all_transposed({name: shape for name, shape in wanted.items() if _is_matrix(name)}, found):
        raise CheckpointError(
            f"The weights in {folder} have every matrix transposed: GPT-2 stores the matrices of its blocks (in, out), "
            "these are (out, in)."
        )
    places = {name: f"{stored} in {file.path}" for name, (file, stored) in files.items()}
    check_shapes(found, wanted, places, "config.json")


def _config(folder: Path) -> GPTConfig:
    path = folder / "config.json"
    fields = read_json(path, CheckpointError)
    if fields.get("model_type", "gpt2") != "gpt2":
        raise CheckpointError(f"{path} is of a {fields['model_type']!r} model; minilora reads GPT-2's.")
    check_settings(path, fields, _COMPUTED)
    try:
        config = GPTConfig(
            vocab_size=fields["vocab_size"],
            context_length=fields["n_positions"],
            d_model=fields["n_embd"],
            n_layers=fields["n_layer"],
            n_heads=fields["n_head"],
            tied_head=fields.get("tie_word_embeddings", True),
        )
    except KeyError as error:
        raise CheckpointError(f"{path} does not say {error.args[0]}.") from error
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} holds impossible sizes: {error}") from error
    if fields.get("n_inner") not in (None, 4 * config.d_model):
        raise CheckpointError(f"{path} has n_inner = {fields['n_inner']!r}; minilora's MLP is 4 × n_embd wide.")
    return config


def stored_tensors(config: GPTConfig) -> Iterator[tuple[str, tuple[int, ...], tuple[str, ...]]]:
    """Each tensor's name and shape in the file, and the parameters that it holds, one below the other."""
    V, D = config.vocab_size, config.d_model
    sizes = {"attn.c_attn": (D, 3 * D), "attn.c_proj": (D, D), "mlp.c_fc": (D, 4 * D), "mlp.c_proj": (4 * D, D)}
    yield "wte.weight", (V, D), ("token_embedding.weight",)
    yield "wpe.weight", (config.context_length, D), ("position_embedding.weight",)
    for i in range(config.n_layers):
        for norm in ("ln_1", "ln_2"):
            for kind in ("weight", "bias"):
                yield f"h.{i}.{norm}.{kind}", (D,), (f"blocks.{i}.{norm}.{kind}",)
        for theirs, own in FUSED.items():
            yield f"h.{i}.{theirs}.weight", sizes[theirs], tuple(f"blocks.{i}.{name}.weight" for name in own)
            yield f"h.{i}.{theirs}.bias", sizes[theirs][1:], tuple(f"blocks.{i}.{name}.bias" for name in own)
    yield "ln_f.weight", (D,), ("ln_f.weight",)
    yield "ln_f.bias", (D,), ("ln_f.bias",)
    if not config.tied_head:
        yield "lm_head.weight", (V, D), ("lm_head.weight",)


def _is_matrix(name: str) -> bool:
    """Whether it belongs to a block, and so is stored (in, out); embeddings and the head are not."""
    return any(name.endswith(f".{module}.weight") for module in FUSED)
