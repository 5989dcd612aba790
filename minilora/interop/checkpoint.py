"""Checkpoints: everything that training needs to go on bit for bit, in one `.npz`, without pickle."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ..gpt import GPT, GPTConfig
from ..lora import LoRAConfig, add_lora, lora_layers, shared_adapter
from ..nn import Module
from ..optim import Optimizer
from .files import write_atomically

FORMAT = "minilora checkpoint 1"


class CheckpointError(ValueError):
    """A file that is no whole checkpoint of minilora's, or not one of this model."""


def save_checkpoint(
    path: str | Path,
    model: Module,
    optimizer: Optimizer | None = None,
    step: int = 0,
    rng: np.random.Generator | None = None,
    *,
    notes: dict[str, Any] | None = None,
) -> None:
    """Write weights, optimizer state, step, and the states of `rng` and of LoRA's dropout, atomically.

    `notes` is anything JSON can hold; `read_notes` gives it back. The model's own sizes and LoRA settings
    are kept, so that `load_model` can rebuild it. Raises `ValueError` where the file cannot be written.
    """
    arrays = {f"model/{name}": array for name, array in model.state_dict().items()}
    header: dict[str, Any] = {"format": FORMAT, "step": int(step), "notes": notes or {}}
    if isinstance(model, GPT):
        header["gpt"] = dataclasses.asdict(model.config)
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
    before, states = model.state_dict(), [generator.bit_generator.state for generator, _ in generators]
    try:
        step = int(header["step"])
        model.load_state_dict(weights)
        _check_settings(header, model)
        for generator, key in generators:
            generator.bit_generator.state = header[key]
        if optimizer is not None:  # last, since it changes all or nothing
            optimizer.load_state_dict({**header["optimizer"], "arrays": slots})
    except (ValueError, TypeError, KeyError) as error:
        if not (layers and shared_adapter(layers).merged):
            model.load_state_dict(before)
        for (generator, _), state in zip(generators, states, strict=True):
            generator.bit_generator.state = state
        raise CheckpointError(f"The checkpoint {path} does not fit: {error}") from error
    return step


def _check_settings(header: dict[str, Any], model: Module) -> None:
    """Raise `ValueError` where the weights have the right shapes and yet made another function."""
    if isinstance(model, GPT) and GPTConfig(**header["gpt"]) != model.config:
        raise ValueError(f"it was saved from {GPTConfig(**header['gpt'])}; the model has {model.config}.")
    layers = lora_layers(model)
    if layers:
        saved, own = LoRAConfig(**header["lora"]).scale, shared_adapter(layers).config.scale
        if saved != own:
            raise ValueError(f"its LoRA was scaled by {saved:g}; the model's is by {own:g}.")


def load_model(path: str | Path) -> GPT:
    """The GPT that a checkpoint holds, with its LoRA if it had one. Raises `CheckpointError` as above."""
    header, weights, _ = _read(path)
    try:
        model = GPT(GPTConfig(**header["gpt"]), seed=None, dtype=header["dtype"])
        if "lora" in header:
            add_lora(model, LoRAConfig(**header["lora"]), seed=None)
        model.load_state_dict(weights)
        if "lora" in header:
            shared_adapter(lora_layers(model)).rng.bit_generator.state = header["dropout_rng"]
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"The checkpoint {path} holds no GPT that minilora can rebuild: {error}") from error
    return model


def read_notes(path: str | Path) -> dict[str, Any]:
    """The notes a checkpoint was saved with, and its step under "step"."""
    header, _, _ = _read(path)
    return {**header["notes"], "step": header["step"]}


def _read(path: str | Path) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, list[np.ndarray]]]:
    """Header, weights by name, optimizer arrays by slot, each checked to be finite floats."""
    try:
        # opened here, since np.load leaves a damaged file open
        with open(path, "rb") as handle:
            if not zipfile.is_zipfile(handle):
                raise CheckpointError(f"{path} is damaged, or no checkpoint at all: it is not a whole .npz file.")
            handle.seek(0)
            with np.load(handle, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"The checkpoint {path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged, or no checkpoint at all: {error}") from error
    except Exception as error:  # zlib.error, struct.error and others that a damaged archive can raise
        raise CheckpointError(f"{path} is damaged: {error}") from error
    try:
        header = json.loads(bytes(arrays.pop("header")))
        if header["format"] != FORMAT:
            raise ValueError(header["format"])
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is not a checkpoint of minilora's ({FORMAT!r} is missing).") from error
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
