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
from typing import Any

import numpy as np

from ..backend import asarray, to_numpy
from ..gpt import GPT, GPTConfig
from .checkpoint import CheckpointError
from .files import SafetensorsFile, all_transposed, cast, check_names, check_prefix, read_bytes, read_json

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

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
    files = _files(folder)
    _check_fit(config, files, folder)  # before the model is made: sizes that lie would ask for any amount of memory
    model = GPT2(config, seed=None, dtype=dtype)
    parameters = dict(model.named_parameters())
    for name, _, own in stored_tensors(config):
        file, stored = files[name]
        (array,) = file.read(stored)
        try:
            array = cast(stored, array, dtype)
        except ValueError as error:
            raise CheckpointError(f"{file.path} cannot be read: {error}") from error
        if _is_matrix(name):
            array = array.T  # (in, out) -> (out, in)
        for parameter_name, rows in zip(own, np.split(array, len(own)), strict=True):
            parameters[parameter_name].data = asarray(np.ascontiguousarray(rows))
    if config.tied_head and "lm_head.weight" in files:  # some save it a second time
        file, stored = files["lm_head.weight"]
        (head,) = file.read(stored)
        if not np.array_equal(head.astype(dtype), to_numpy(model.token_embedding.weight.data)):
            raise CheckpointError(f"{stored} in {file.path} is not the embedding, though config.json ties the two.")
    return model


def _check_fit(config: GPTConfig, files: dict[str, tuple[SafetensorsFile, str]], folder: Path) -> None:
    """Raise `CheckpointError` where names or shapes of the tensors are not those that `config.json` asks for."""
    few = {name for name, *_ in stored_tensors(replace(config, n_layers=1))}  # config.json may claim any number
    try:
        check_prefix(few | {f"transformer.{name}" for name in few}, files)
    except ValueError as error:
        raise CheckpointError(f"The weights in {folder} are not named as GPT-2's: {error}") from error
    layers = len({match.group() for name in files if (match := re.match(r"h\.\d+\.", name))})
    if layers != config.n_layers:
        raise CheckpointError(f"The weights in {folder} have {layers} layers; its config.json says {config.n_layers}.")
    wanted = {name: shape for name, shape, _ in stored_tensors(config)}
    if "lm_head.weight" in files:
        wanted["lm_head.weight"] = (config.vocab_size, config.d_model)
    try:
        check_names(wanted, files, "they lack", "they also hold")
    except ValueError as error:
        raise CheckpointError(f"The weights in {folder} do not fit its config.json: {error}") from error
    found = {name: file.shapes[stored] for name, (file, stored) in files.items()}
    if all_transposed({name: shape for name, shape in wanted.items() if _is_matrix(name)}, found):
        raise CheckpointError(
            f"The weights in {folder} have every matrix transposed: GPT-2 stores the matrices of its blocks (in, out), "
            "these are (out, in)."
        )
    for name, shape in wanted.items():
        file, stored = files[name]
        if file.shapes[stored] != shape:
            raise CheckpointError(
                f"{stored} in {file.path} has shape {file.shapes[stored]}; config.json asks for {shape}."
            )


def _config(folder: Path) -> GPTConfig:
    path = folder / "config.json"
    fields = read_json(path, CheckpointError)
    if fields.get("model_type", "gpt2") != "gpt2":
        raise CheckpointError(f"{path} is of a {fields['model_type']!r} model; minilora reads GPT-2's.")
    for name, computed in _COMPUTED.items():
        if fields.get(name, computed[0]) not in computed:
            raise CheckpointError(f"{path} has {name} = {fields[name]!r}; minilora computes {computed[0]!r}.")
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


def _files(folder: Path) -> dict[str, tuple[SafetensorsFile, str]]:
    """Tensor name without "transformer." -> the file that holds it, and its name there."""
    if (folder / WEIGHTS).exists():
        paths = [folder / WEIGHTS]
    elif (folder / INDEX).exists():
        paths = _shards(folder)
    else:
        pickled = (folder / "pytorch_model.bin").exists()
        raise CheckpointError(
            f"{folder} has neither {WEIGHTS} nor {INDEX}"
            + (
                "; its pytorch_model.bin is a pickle, which minilora never opens: save it from transformers with "
                "save_pretrained, which writes safetensors."
                if pickled
                else ": name the folder that transformers' save_pretrained wrote."
            )
        )
    found: dict[str, tuple[SafetensorsFile, str]] = {}
    for path in paths:
        file = SafetensorsFile(path, CheckpointError)
        for stored in file.shapes:
            name = stored.removeprefix("transformer.")
            if _BUFFER.fullmatch(name):
                continue
            if name in found:
                raise CheckpointError(f"{path} holds {stored}, which {found[name][0].path} holds too.")
            found[name] = (file, stored)
    return found


def _shards(folder: Path) -> list[Path]:
    weight_map = read_json(folder / INDEX, CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{folder / INDEX} does not say which file holds which tensor (weight_map).")
    for name in weight_map.values():
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise CheckpointError(f"{folder / INDEX} names {name!r}, which is no .safetensors file of its own folder.")
    return [folder / name for name in sorted(set(weight_map.values()))]


# ---- text --------------------------------------------------------------------------------------------


class Tokenizer:
    """Byte-pair encoding as the folder's `tokenizer.json` says, through the `tokenizers` library (extra `gpt2`).

    Raises `ValueError` where the library or the file is missing, or the file is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from tokenizers import Tokenizer as Library
        except ImportError as error:
            raise ValueError(
                'GPT-2\'s tokenizer needs an extra: pip install -e ".[gpt2]" in the clone of minilora.'
            ) from error
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise ValueError(
                f"{path} is missing: save it from transformers with AutoTokenizer.from_pretrained(...)"
                ".save_pretrained(folder), or copy it from where the model is published."
            )
        text = read_bytes(path, ValueError)
        try:
            self._library: Any = Library.from_str(text.decode("utf-8-sig"))  # as parse_json reads every other JSON
        except Exception as error:  # the library raises Exception itself
            raise ValueError(f"{path} is not a tokenizer that can be read: {error}.") from error

    def __len__(self) -> int:
        return int(self._library.get_vocab_size())

    @property
    def end(self) -> int | None:
        """The id of the token that ends a text; None where the tokenizer has none."""
        return self._library.token_to_id("<|endoftext|>")

    def encode(self, text: str) -> np.ndarray:
        """(n,) ids, without special tokens."""
        return np.array(self._library.encode(text, add_special_tokens=False).ids, dtype=np.int64)

    def decode(self, ids: np.ndarray) -> str:
        """The text of a row of ids."""
        return str(self._library.decode(np.asarray(ids).ravel().tolist(), skip_special_tokens=False))
