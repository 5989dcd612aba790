"""Checkpoints: everything that training needs to continue bit for bit, in one `.npz`, without pickle."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ..backend import to_numpy
from ..gpt import GPT, GPTConfig
from ..llama import Llama, LlamaConfig
from ..lora import LoRAConfig, adapted, lora_layers, shared_adapter, wrap
from ..nn import Module
from ..optim import Optimizer
from .files import digest, parse_json, write_atomically

FORMAT = "minilora checkpoint 1"
# The name under which a file keeps a model's sizes.
MODELS: dict[str, tuple[Any, Any]] = {"llama": (Llama, LlamaConfig), "gpt": (GPT, GPTConfig)}


class CheckpointError(ValueError):
    """A file that is not a whole checkpoint of minilora's, or not one of this model."""


def save_checkpoint(
    path: str | Path,
    model: Module,
    optimizer: Optimizer | None = None,
    step: int = 0,
    rng: np.random.Generator | None = None,
    *,
    frozen: bool = True,
    notes: dict[str, Any] | None = None,
) -> None:
    """Write weights, optimizer state, step, and the states of `rng` and of LoRA's dropout, atomically.

    The model's own sizes and LoRA settings are kept, so that `load_model` can rebuild it. With `frozen=False` weights
    that do not train are left out and only their digest is kept: a file as small as the adapter, which loads into a
    model with the same base. `notes` is anything JSON can hold; `read_notes` gives it back. Raises `ValueError` where
    the file cannot be written.
    """
    base = {} if frozen else _frozen(model)
    header: dict[str, Any] = {"format": FORMAT, "step": int(step), "notes": notes or {}}
    if base:
        header["base"] = digest({}, base)
    arrays = {f"model/{name}": to_numpy(p.data) for name, p in model.named_parameters() if name not in base}
    if isinstance(model, GPT):
        header[_kind(model)] = dataclasses.asdict(model.config)
        header["dtype"] = str(model.token_embedding.weight.dtype)
    layers = lora_layers(model)
    if layers:
        adapter = shared_adapter(layers)
        header["lora"] = dataclasses.asdict(adapter.config)
        header["dropout_rng"] = adapter.rng.bit_generator.state
    if rng is not None:
        header["rng"] = rng.bit_generator.state
    if optimizer is not None:
        state = optimizer.state_dict()
        for slot, values in state.pop("arrays").items():
            arrays.update({f"optimizer/{slot}/{i}": array for i, array in enumerate(values)})
        header["optimizer"] = state
    header["digest"] = digest(header, arrays)
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    write_atomically(path, write)


def load_checkpoint(
    path: str | Path, model: Module, optimizer: Optimizer | None = None, rng: np.random.Generator | None = None
) -> int:
    """Bring model, optimizer and `rng` to the state saved, and return the step.

    Raises `CheckpointError` where the file is missing, damaged, foreign, lacks what is asked for, or
    belongs to another model; then nothing has changed.
    """
    header, weights, slots = _read(path)
    layers = lora_layers(model)
    for wanted, key, what in ((optimizer, "optimizer", "optimizer state"), (rng, "rng", "generator state")):
        if wanted is not None and key not in header:
            raise CheckpointError(f"The checkpoint {path} holds no {what}.")
    generators = [] if rng is None else [(rng, "rng")]
    if layers:
        generators.append((shared_adapter(layers).rng, "dropout_rng"))
    parameters = dict(model.named_parameters())
    before = {name: p.data for name, p in parameters.items()}  # loading puts other arrays in their place
    states = [generator.bit_generator.state for generator, _ in generators]
    try:
        step = int(header["step"])
        _check_settings(header, model)
        model.load_state_dict(_with_base(header, weights, model))
        for generator, key in generators:
            generator.bit_generator.state = header[key]
        if optimizer is not None:  # last, since it changes all or nothing
            optimizer.load_state_dict({**header["optimizer"], "arrays": slots})
    except (ValueError, TypeError, KeyError) as error:
        for name, p in parameters.items():
            p.data = before[name]
        for (generator, _), state in zip(generators, states, strict=True):
            generator.bit_generator.state = state
        raise CheckpointError(f"The checkpoint {path} does not fit: {error}") from error
    return step


def _frozen(model: Module) -> dict[str, np.ndarray]:
    """Name -> array of each parameter that does not train."""
    return {name: to_numpy(p.data) for name, p in model.named_parameters() if not p.requires_grad}


def _with_base(header: dict[str, Any], weights: dict[str, np.ndarray], model: Module) -> dict[str, np.ndarray]:
    """The weights of the file, and the model's own where the file left out a base that is the same."""
    if "base" not in header:
        return weights
    base = _frozen(model)
    if header["base"] != digest({}, base):
        raise ValueError("it was saved beside another base, and does not hold that base itself.")
    return {**base, **weights}


def _check_settings(header: dict[str, Any], model: Module) -> None:
    """Raise `ValueError` where the sizes differ, or the shapes would fit and yet make another function."""
    if isinstance(model, GPT):
        kind = _kind(model)
        if kind not in header:
            raise ValueError(f"it holds no {kind}; the model is one.")
        saved_sizes, sizes = dataclasses.asdict(MODELS[kind][1](**header[kind])), dataclasses.asdict(model.config)
        others = [name for name in sizes if saved_sizes[name] != sizes[name]]
        if others:
            theirs, own = (", ".join(f"{name}={of[name]}" for name in others) for of in (saved_sizes, sizes))
            raise ValueError(f"it was saved from a model with {theirs}; this one has {own}.")
    layers = lora_layers(model)
    if layers and "lora" in header:
        saved, scale = LoRAConfig(**header["lora"]).scale, shared_adapter(layers).config.scale
        if saved != scale:
            raise ValueError(f"its LoRA was scaled by {saved:g}; the model's is by {scale:g}.")


def _kind(model: GPT) -> str:
    """The model's name in `MODELS`."""
    return next(kind for kind, (made, _) in MODELS.items() if isinstance(model, made))  # a Llama is a GPT too


def load_model(path: str | Path) -> GPT:
    """The GPT or Llama that a checkpoint holds, with its LoRA if it had one. Raises `CheckpointError` as above."""
    header, weights, _ = _read(path)
    if "base" in header:
        raise CheckpointError(f"The checkpoint {path} holds only what trained: load_checkpoint reads it into a model.")
    try:
        kind = next((kind for kind in MODELS if kind in header), "gpt")
        made, sizes = MODELS[kind]
        model = made(sizes(**header[kind]), seed=None, dtype=header["dtype"])
        if "lora" in header:
            config = LoRAConfig(**header["lora"])
            ranks = {array.shape[:1] for name, array in weights.items() if name.endswith(".lora_A")}
            if ranks != {(config.r,)}:  # before r asks for any amount of memory
                raise ValueError(f"its settings say r = {config.r}, which its lora_A do not have.")
            wrap(model, config, seed=None)
        model.load_state_dict(weights)
        if "lora" in header:
            adapted(model)[1].rng.bit_generator.state = header["dropout_rng"]
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"The checkpoint {path} holds no model that minilora can rebuild: {error}") from error
    return model


def read_notes(path: str | Path) -> dict[str, Any]:
    """The notes a checkpoint was saved with, and its step under "step"."""
    header, _, _ = _read(path)
    return {**header.get("notes", {}), "step": header.get("step", 0)}


def _read(path: str | Path) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, list[np.ndarray]]]:
    """Header, weights by name, optimizer arrays by slot, each checked to be finite floats."""
    try:
        arrays = _arrays(Path(path))
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"The checkpoint {path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # of many kinds: a damaged archive can fail anywhere in zipfile
        raise CheckpointError(f"{path} is damaged, or no checkpoint at all: {error}") from error
    try:
        header = parse_json(bytes(arrays.pop("header")), Path(path), ValueError)
        if header["format"] != FORMAT:
            raise ValueError(header["format"])
        saved = header.pop("digest", None)  # the earliest files have none
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is not a checkpoint of minilora's ({FORMAT!r} is missing).") from error
    if saved not in (None, digest(header, arrays)):
        raise CheckpointError(f"{path} is damaged: what it holds does not give the digest it was saved with.")
    weights: dict[str, np.ndarray] = {}
    slots: dict[str, dict[int, np.ndarray]] = {}
    for name, array in arrays.items():
        if array.dtype.kind != "f" or not np.all(np.isfinite(array)):
            raise CheckpointError(f"{path} is damaged: {name} does not hold finite floats.")
        kind, _, rest = name.partition("/")
        if kind == "model":
            weights[rest] = array
        else:
            slot, _, number = rest.partition("/")
            if kind != "optimizer" or not number.isdecimal():
                raise CheckpointError(f"{path} is damaged, or of a later minilora: it holds {name!r}.")
            slots.setdefault(slot, {})[int(number)] = array
    ordered = {slot: [by_number[i] for i in sorted(by_number)] for slot, by_number in slots.items()}
    return header, weights, ordered


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz, read-only, in no more memory than the file takes.

    `np.load` would first allocate whatever a header declares, unpack whatever is compressed, and not refuse a name
    that comes twice.
    """
    arrays: dict[str, np.ndarray] = {}
    with open(path, "rb") as handle:  # opened here, since ZipFile would leave a damaged file open
        size = path.stat().st_size
        with zipfile.ZipFile(handle) as archive:
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                if (
                    member.compress_type != zipfile.ZIP_STORED
                    or not member.compress_size == member.file_size <= size
                    or name in arrays
                ):
                    raise CheckpointError(f"{path} is damaged, or no checkpoint at all: {name!r} is not as saved.")
                data = archive.read(member)  # checks its CRC-32
                stream = io.BytesIO(data)
                if np.lib.format.read_magic(stream) != (1, 0):
                    raise CheckpointError(f"{path} is damaged, or no checkpoint at all: {name!r} is no array.")
                shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
                start = stream.tell()
                if dtype.hasobject or len(data) - start != math.prod(shape) * dtype.itemsize:
                    raise CheckpointError(f"{path} is damaged, or no checkpoint at all: {name!r} is not its size.")
                flat = np.frombuffer(data, dtype, offset=start)
                arrays[name] = flat.reshape(shape, order="F" if fortran_order else "C")
    return arrays
