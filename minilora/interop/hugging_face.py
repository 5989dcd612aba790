"""A folder as Hugging Face's transformers saves a model: `config.json`, `model.safetensors` (one file, or shards with
an index) and `tokenizer.json`. What all models have alike; `gpt2.py` and `llama.py` know the rest."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .checkpoint import CheckpointError
from .files import SafetensorsFile, cast, check_names, check_prefix, read_bytes, read_json

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

Stored = tuple[SafetensorsFile, str]  # the file that holds a tensor, and the tensor's name there


def find_tensors(folder: Path, buffers: re.Pattern[str], prefix: str = "") -> dict[str, Stored]:
    """Tensor name without `prefix` -> where it is. Names that match `buffers` are left out: they are no weights."""
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
    found: dict[str, Stored] = {}
    for path in paths:
        file = SafetensorsFile(path, CheckpointError)
        for stored in file.shapes:
            name = stored.removeprefix(prefix)
            if buffers.fullmatch(name):
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


def read_tensor(place: Stored, dtype: str) -> np.ndarray:
    """A tensor as finite floats of that dtype. Raises `CheckpointError` where it holds anything else."""
    file, stored = place
    (array,) = file.read(stored)
    try:
        return cast(stored, array, dtype)
    except ValueError as error:
        raise CheckpointError(f"{file.path} cannot be read: {error}") from error


def check_settings(path: Path, fields: Mapping[str, Any], computed: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise `CheckpointError` where a setting is none of the values that minilora computes; where absent, the first."""
    for name, values in computed.items():
        if fields.get(name, values[0]) not in values:
            raise CheckpointError(f"{path} has {name} = {fields[name]!r}; minilora computes {values[0]!r}.")


# These come before a model is made, whose sizes the settings say: sizes that lie would ask for any amount of memory.


def check_named(found: Collection[str], known: Collection[str], folder: Path, whose: str) -> None:
    """Raise `CheckpointError` where every name is one of the `known` behind a prefix that is not theirs."""
    try:
        check_prefix(known, found)
    except ValueError as error:
        raise CheckpointError(f"The weights in {folder} are not named as {whose}: {error}") from error


def check_layers(found: Iterable[str], layer: str, n_layers: int, place: Path, says: str) -> None:
    """Raise `CheckpointError` where the layers, whose tensors' names begin with the expression `layer`, are not as many
    as the settings say."""
    layers = len({match.group() for name in found if (match := re.match(layer, name))})
    if layers != n_layers:
        raise CheckpointError(f"The weights in {place} have {layers} layers; {says} says {n_layers}.")


def check_names_fit(found: Iterable[str], wanted: Iterable[str], place: Path, says: str) -> None:
    """Raise `CheckpointError` where a tensor is missing, or there is one too many."""
    try:
        check_names(wanted, found, "they lack", "they also hold")
    except ValueError as error:
        raise CheckpointError(f"The weights in {place} do not fit {says}: {error}") from error


def check_shapes(
    found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], places: Mapping[str, str], says: str
) -> None:
    """Raise `CheckpointError` where a tensor has another shape. `places`: its name and file, for the sentence."""
    for name, shape in wanted.items():
        if found[name] != shape:
            raise CheckpointError(f"{places[name]} has shape {found[name]}; {says} asks for {shape}.")


def check_same_head(files: Mapping[str, Stored], embedding: np.ndarray) -> None:
    """Raise `CheckpointError` where a head that is saved though it is tied is another matrix than the embedding."""
    if "lm_head.weight" in files:
        file, stored = files["lm_head.weight"]
        (head,) = file.read(stored)
        if not np.array_equal(head.astype(embedding.dtype), embedding):
            raise CheckpointError(f"{stored} in {file.path} is not the embedding, though config.json ties the two.")


# ---- text --------------------------------------------------------------------------------------------


class Tokenizer:
    """Byte-pair encoding as the folder's `tokenizer.json` says, through the `tokenizers` library (extra `gpt2`).

    `end` is the id of the token that ends a text, None where there is none. Raises `ValueError` where the library is
    missing, and `CheckpointError`, which is one, where the file is missing or damaged.
    """

    end: int | None

    def __init__(self, folder: str | Path) -> None:
        self._library = read_tokenizer(Path(folder))
        self.end = self._library.token_to_id("<|endoftext|>")

    def __len__(self) -> int:
        return int(self._library.get_vocab_size())

    def encode(self, text: str) -> np.ndarray:
        """(n,) ids. Nothing is put before or behind; a special token's own text becomes that token."""
        return np.array(self._library.encode(text, add_special_tokens=False).ids, dtype=np.int64)

    def decode(self, ids: np.ndarray) -> str:
        """The text of a row of ids."""
        return str(self._library.decode(np.asarray(ids).ravel().tolist(), skip_special_tokens=False))


def tokenizers_library() -> Any:
    """The module `tokenizers`. Raises `ValueError` where it is not installed."""
    try:
        import tokenizers
    except ImportError as error:
        raise ValueError(
            'A tokenizer needs the library tokenizers: pip install -e ".[gpt2]" in the clone of minilora.'
        ) from error
    return tokenizers


def read_tokenizer(folder: Path) -> Any:
    """The library's tokenizer of a folder's `tokenizer.json`, which shortens and fills up no text."""
    library = tokenizers_library()
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing: save it from transformers with AutoTokenizer.from_pretrained(...)"
            ".save_pretrained(folder), or copy it from where the model is published."
        )
    text = read_bytes(path, CheckpointError)
    try:
        tokenizer = library.Tokenizer.from_str(text.decode("utf-8-sig"))  # as parse_json reads every other JSON
    except Exception as error:  # the library raises Exception itself
        raise CheckpointError(f"{path} is not a tokenizer that can be read: {error}.") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
