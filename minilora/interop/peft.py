"""Adapter folders in PEFT's layout: `adapter_config.json` and `adapter_model.safetensors`.

PEFT names each tensor `base_model.model.<module path>.lora_A.weight`, stored as minilora stores it: A (r, in),
B (out, r). So nothing is transposed on the way.
"""

from __future__ import annotations

import json
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save

from ..backend import asarray, xp
from ..lora import LoRAConfig, add_lora, lora_layers, lora_state_dict, matching_linears, shared_adapter
from ..nn import Module
from .files import write_atomically, write_text

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."

# What PEFT's LoRA has and minilora has not: the value that means "not used".
_UNSUPPORTED: dict[str, Any] = {
    "use_dora": False,
    "use_qalora": False,
    "use_bdlora": None,
    "lora_bias": False,
    "bias": "none",
    "fan_in_fan_out": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "layers_to_transform": None,
    "layers_pattern": None,
    "layer_replication": None,
    "exclude_modules": None,
    "target_parameters": None,
    "trainable_token_indices": None,
    "alora_invocation_tokens": None,
    "megatron_config": None,
    "arrow_config": None,
    "kasa_config": None,
    "velora_config": None,
    "monteclora_config": None,
}
# Fields that do not change what a saved adapter computes.
_HARMLESS = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying",
    "eva_config", "inference_mode", "init_lora_weights", "loftq_config", "lora_ga_config", "megatron_core",
    "peft_type", "peft_version", "qalora_group_size", "revision", "runtime_config", "task_type",
}  # fmt: skip
_READ = {"r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora"}


class AdapterError(ValueError):
    """A folder that is no whole adapter, or one that this model or minilora cannot take."""


def save_adapter(model: Module, folder: str | Path) -> None:
    """Write the adapter of a model with LoRA. Raises `ValueError` where there is none or it cannot be written."""
    state = lora_state_dict(model)
    config = shared_adapter(lora_layers(model)).config
    fields = {
        "peft_type": "LORA",
        "r": int(config.r),
        "lora_alpha": config.r if config.alpha is None else config.alpha,
        "lora_dropout": float(config.dropout),
        "target_modules": sorted(config.target_modules),
        "use_rslora": config.scaling == "alpha/sqrt(r)",
        "init_lora_weights": "gaussian" if config.init == "gaussian" else True,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "base_model_name_or_path": None,
        "modules_to_save": None,
        "task_type": None,
    }
    # safetensors writes wrong values for arrays that are not contiguous
    tensors = {_PREFIX + name + ".weight": np.ascontiguousarray(array) for name, array in state.items()}
    folder = Path(folder)
    write_atomically(folder / WEIGHTS, lambda path: path.write_bytes(_safetensors(tensors)))
    write_text(folder / CONFIG, json.dumps(fields, indent=2, sort_keys=True) + "\n")


def load_adapter(model: Module, folder: str | Path) -> None:
    """Wrap a plain model with the adapter of a folder, or replace the adapter of one with the same targets and r.

    Warns about fields of the configuration that it does not know. Raises `AdapterError` where the folder is
    missing, damaged, uses what minilora has not (DoRA, ...), or does not fit the model; then nothing has
    changed.
    """
    folder = Path(folder)
    config = _read_config(folder / CONFIG)
    state = _read_weights(folder / WEIGHTS)
    layers = lora_layers(model)
    for layer in layers.values():
        layer.check_loadable()
    try:
        names = matching_linears(model, config.target_modules)
    except ValueError as error:
        raise AdapterError(f"The adapter in {folder} does not fit this model: {error}") from error
    if layers:
        own = shared_adapter(layers).config
        if names != list(layers) or own.r != config.r:
            raise AdapterError(
                f"The adapter in {folder} (r {config.r}, {', '.join(config.target_modules)}) is not of the shape of "
                f"the model's own (r {own.r}, {', '.join(own.target_modules)}): call remove_lora(model) first."
            )
    _check_shapes(model, names, config.r, state, folder)
    if not layers:
        try:
            add_lora(model, config)
        except ValueError as error:  # r larger than a layer
            raise AdapterError(f"The adapter in {folder} does not fit this model: {error}") from error
        layers = lora_layers(model)
    for name, layer in layers.items():
        layer.adapter.config, layer.scaling, layer.dropout.p = config, config.scale, config.dropout
        for part in (layer.lora_A, layer.lora_B):
            array = state[f"{name}.lora_A" if part is layer.lora_A else f"{name}.lora_B"]
            part.data = xp.array(asarray(array), dtype=part.dtype)


def _check_shapes(model: Module, names: list[str], r: int, state: dict[str, np.ndarray], folder: Path) -> None:
    shapes: dict[str, tuple[int, ...]] = {}
    modules = dict(model.named_modules())
    for name in names:
        out_features, in_features = modules[name].weight.shape  # type: ignore[attr-defined]
        shapes[f"{name}.lora_A"] = (r, in_features)
        shapes[f"{name}.lora_B"] = (out_features, r)
    for what, wrong in (("it lacks", shapes.keys() - state.keys()), ("it also has", state.keys() - shapes.keys())):
        if wrong:
            some = ", ".join(sorted(wrong)[:3]) + (" ..." if len(wrong) > 3 else "")
            raise AdapterError(f"The adapter in {folder} does not fit this model: {what} {some}.")
    for name, shape in shapes.items():
        if state[name].shape != shape:
            raise AdapterError(f"{name} in {folder} has shape {state[name].shape}; this model needs {shape}.")


def _read_config(path: Path) -> LoRAConfig:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AdapterError(f"{path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise AdapterError(f"{path} is not JSON: {error}.") from error
    if not isinstance(fields, dict) or fields.get("peft_type") != "LORA":
        raise AdapterError(f"{path} is not the configuration of a LoRA adapter (peft_type is not LORA).")
    for name, unused in _UNSUPPORTED.items():
        if fields.get(name) not in (unused, None, False, [], {}):
            raise AdapterError(f"{path} uses {name} = {fields[name]!r}, which minilora does not have.")
    unknown = sorted(fields.keys() - _UNSUPPORTED.keys() - _HARMLESS - _READ)
    if unknown:
        warnings.warn(f"{path} has fields that minilora does not know: {', '.join(unknown)}.", stacklevel=3)
    targets = fields.get("target_modules")
    if not isinstance(targets, list):
        raise AdapterError(f"{path} must list target_modules by name, not {targets!r}.")
    try:
        return LoRAConfig(
            r=fields.get("r", 8),
            alpha=fields.get("lora_alpha", 8),
            target_modules=tuple(targets),
            dropout=fields.get("lora_dropout", 0.0),
            init="gaussian" if fields.get("init_lora_weights") == "gaussian" else "kaiming",
            scaling="alpha/sqrt(r)" if fields.get("use_rslora") else "alpha/r",
        )
    except (ValueError, TypeError) as error:
        raise AdapterError(f"{path} holds settings that cannot be: {error}") from error


def _safetensors(tensors: dict[str, np.ndarray]) -> bytes:
    """The file's bytes, the same every time: safetensors itself writes its metadata in a random order."""
    data = save(tensors, metadata={"format": "pt", "crc32": _checksum(tensors)})
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + size]), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return data[:8] + header.encode().ljust(size) + data[8 + size :]


def _checksum(tensors: dict[str, np.ndarray]) -> str:
    """Of all values, in the order of their names: safetensors has none, and would load a flipped bit."""
    value = 0
    for _, array in sorted(tensors.items()):
        value = zlib.crc32(array.tobytes(), value)
    return f"{value:08x}"


def _read_weights(path: Path) -> dict[str, np.ndarray]:
    """Tensors by minilora's names, each checked to be finite floats."""
    try:
        tensors = load_file(path)
        with safe_open(path, framework="np") as file:
            checksum = (file.metadata() or {}).get("crc32")
    except OSError as error:
        raise AdapterError(f"{path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # SafetensorError, and what an unknown dtype or a lying header raises
        raise AdapterError(f"{path} is damaged, or no safetensors file: {error}.") from error
    if checksum not in (None, _checksum(tensors)):  # PEFT writes none
        raise AdapterError(f"{path} is damaged: its values do not give its own checksum.")
    state = {}
    for key, array in tensors.items():
        name = key.removeprefix(_PREFIX).removesuffix(".weight")
        if key != f"{_PREFIX}{name}.weight":
            raise AdapterError(f"{path} holds {key!r}; an adapter's tensors are named {_PREFIX}<module>.lora_A.weight.")
        if array.dtype.kind != "f" or not np.all(np.isfinite(array)):
            raise AdapterError(f"{path} is damaged: {key} does not hold finite floats.")
        state[name] = array
    return state
