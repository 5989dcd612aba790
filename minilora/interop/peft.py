"""Adapter folders in PEFT's layout: `adapter_config.json` and `adapter_model.safetensors`.

PEFT names each tensor `base_model.model.<module path>.lora_A.weight`, stored as minilora stores it: A (r, in),
B (out, r). So nothing is transposed on the way. On a model of `load_gpt2` the modules are GPT-2's (`fused.py`).

Neither file has a checksum of its own. So the weights carry, in their metadata, a digest of tensors and settings
together, and what the settings were before GPT-2's form; PEFT reads past both.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from ..backend import asarray
from ..lora import (
    LoRAConfig,
    LoRALinear,
    add_lora,
    linear_sizes,
    lora_layers,
    lora_state_dict,
    match_targets,
    shared_adapter,
)
from ..nn import Module
from .files import SafetensorsFile, cast, check_names, digest, parse_json, read_bytes, write_atomically, write_text
from .fused import State, fuse, fused_sizes, unfuse
from .gpt2 import GPT2

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."

# What PEFT's LoRA has and minilora has not: the value that means "not used".
_UNSUPPORTED: dict[str, Any] = {
    "use_dora": False,
    "use_qalora": False,
    "use_bdlora": None,
    "lora_bias": False,
    "bias": "none",
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
    "eva_config", "inference_mode", "loftq_config", "lora_ga_config", "megatron_core",
    "peft_type", "peft_version", "qalora_group_size", "revision", "runtime_config", "task_type",
}  # fmt: skip
_READ = {"r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "init_lora_weights", "fan_in_fan_out"}
# Ways to start that leave the base alone; PiSSA, OLoRA and others change it, so that their adapter needs that base.
_INITS = (True, False, None, "gaussian", "eva", "orthogonal")


class AdapterError(ValueError):
    """A folder that is no whole adapter, or one that this model or minilora cannot take."""


def save_adapter(model: Module, folder: str | Path) -> None:
    """Write the adapter of a model with LoRA. Raises `ValueError` where there is none or it cannot be written.

    On a model of `load_gpt2`, q, k and v become one block adapter on `c_attn`: equal for inference in PEFT, not for
    training it on there (see `fused.py`). A crash at any moment leaves the old adapter or the new one.
    """
    state = lora_state_dict(model)
    own = shared_adapter(lora_layers(model)).config
    gpt2 = isinstance(model, GPT2)
    config, state = fuse(model, own, state) if isinstance(model, GPT2) else (own, state)
    fields = {
        "peft_type": "LORA",
        "r": config.r,
        "lora_alpha": config.r if config.alpha is None else config.alpha,
        "lora_dropout": float(config.dropout),
        "target_modules": sorted(config.target_modules),
        "use_rslora": config.scaling == "alpha/sqrt(r)",
        "init_lora_weights": "gaussian" if config.init == "gaussian" else True,
        "bias": "none",
        "fan_in_fan_out": gpt2,
        "inference_mode": True,
        "base_model_name_or_path": None,
        "modules_to_save": None,
        "task_type": "CAUSAL_LM" if gpt2 else None,
    }
    folder = Path(folder)
    path, text = folder / CONFIG, json.dumps(fields, indent=2, sort_keys=True) + "\n"
    metadata = {"format": "pt", "minilora": json.dumps(asdict(own))}
    metadata["digest"] = _digest(_lora_config(fields, path, gpt2), metadata["minilora"], state)
    old = read_bytes(path, ValueError) if path.is_file() else text.encode()
    if old != text.encode():
        # The weights go first. Should the settings not follow, then the weights say which ones they find instead.
        metadata.update(replaces=hashlib.sha256(old).hexdigest(), settings=text)
    write_atomically(folder / WEIGHTS, lambda temporary: temporary.write_bytes(_safetensors(state, metadata)))
    write_text(path, text)


def load_adapter(model: Module, folder: str | Path) -> None:
    """Wrap a plain model with the adapter of a folder, or replace the adapter of one with the same targets and r.

    A model of `load_gpt2` takes PEFT's adapters on `c_attn`, ordinary ones and those in block form. Warns about
    fields of the configuration that it does not know. Raises `AdapterError` where the folder is missing, damaged, uses
    what minilora has not (DoRA, ...), or does not fit the model; then nothing has changed.
    """
    folder = Path(folder)
    layers = lora_layers(model)
    for layer in layers.values():
        layer.check_loadable()
    config, own, state = _read(folder, isinstance(model, GPT2))
    if isinstance(model, GPT2):  # PEFT's wrapped a bare GPT2Model, if there is no "transformer."
        state = {re.sub(r"^(?=h\.\d)", "transformer.", name): array for name, array in state.items()}
    try:
        _check_shapes(model, config, state)
        if isinstance(model, GPT2):
            config, state = unfuse(model, config, state, own)
        elif own is not None:
            config = own
        if layers:
            _check_replaces(layers, config, state)
        dtype = next(p.dtype for _, p in model.named_parameters())
        arrays = {name: np.ascontiguousarray(cast(name, array, dtype)) for name, array in state.items()}
        if not layers:
            add_lora(model, config)
            layers = lora_layers(model)
    except ValueError as error:
        raise AdapterError(f"The adapter in {folder} does not fit this model: {error}") from error
    for name, layer in layers.items():
        layer.adapter.config, layer.scaling, layer.dropout.p = config, config.scale, config.dropout
        layer.lora_A.data, layer.lora_B.data = (asarray(arrays[f"{name}.{part}"]) for part in ("lora_A", "lora_B"))


def _check_shapes(model: Module, config: LoRAConfig, state: State) -> None:
    """Raise `ValueError`, by name, where targets, names or shapes are not those that the model needs."""
    sizes = fused_sizes(model) if isinstance(model, GPT2) else linear_sizes(model)
    shapes: dict[str, tuple[int, ...]] = {}
    for name in match_targets(list(sizes), config.target_modules):
        out_features, in_features = sizes[name]
        shapes[f"{name}.lora_A"], shapes[f"{name}.lora_B"] = (config.r, in_features), (out_features, config.r)
    check_names(shapes, state, "it lacks", "it also has")
    for name, shape in shapes.items():
        if state[name].shape != shape:
            raise ValueError(f"{name} has shape {state[name].shape}; this model needs {shape}.")


def _check_replaces(layers: dict[str, LoRALinear], config: LoRAConfig, state: State) -> None:
    """Raise `ValueError` where an adapter is on other modules than the model's own, or of another rank."""
    old = shared_adapter(layers).config
    if {name.rsplit(".", 1)[0] for name in state} != layers.keys() or old.r != config.r:
        raise ValueError(
            f"it has r {config.r} on {', '.join(config.target_modules)}, the model's own r {old.r} on "
            f"{', '.join(old.target_modules)}: call remove_lora(model) first."
        )


# ---- reading -----------------------------------------------------------------------------------------


def _read(folder: Path, fused: bool) -> tuple[LoRAConfig, LoRAConfig | None, State]:
    """What a folder holds: the settings in its file, minilora's own before any fusing, and the arrays by name."""
    path = folder / CONFIG
    settings = read_bytes(path, AdapterError)
    if not (folder / WEIGHTS).exists() and (folder / "adapter_model.bin").exists():
        raise AdapterError(
            f"{folder}'s adapter_model.bin is a pickle, which minilora never opens: save it from PEFT with "
            "save_pretrained, which writes safetensors."
        )
    file = SafetensorsFile(folder / WEIGHTS, AdapterError)
    if file.metadata.get("replaces") == hashlib.sha256(settings).hexdigest():  # a crash came between the two files
        settings = file.metadata.get("settings", "").encode()
    config = _lora_config(parse_json(settings, path, AdapterError), path, fused)
    names = []
    for key in file.shapes:
        name = key.removeprefix(_PREFIX).removesuffix(".weight")
        if key != f"{_PREFIX}{name}.weight":
            raise AdapterError(
                f"{file.path} holds {key!r}; an adapter's tensors are named {_PREFIX}<module>.lora_A.weight."
            )
        names.append(name)
    state = dict(zip(names, file.read(*file.shapes), strict=True))
    made_of, saved = file.metadata.get("minilora"), file.metadata.get("digest")
    if made_of is None or saved is None:  # PEFT writes neither
        return config, None, state
    if saved != _digest(config, made_of, state):
        raise AdapterError(
            f"{folder} is damaged, or was edited: its two files do not give the digest they were saved with."
        )
    own = parse_json(made_of.encode(), file.path, AdapterError)
    try:
        return config, LoRAConfig(**own), state
    except (ValueError, TypeError) as error:
        raise AdapterError(f"{folder} is of a later minilora: {error}") from error


def _lora_config(fields: dict[str, Any], path: Path, fused: bool) -> LoRAConfig:
    """The settings that PEFT's fields mean, for a model with GPT-2's fused modules or without."""
    if fields.get("peft_type") != "LORA":
        raise AdapterError(f"{path} is not the configuration of a LoRA adapter (peft_type is not LORA).")
    for name, unused in (_UNSUPPORTED if fused else {**_UNSUPPORTED, "fan_in_fan_out": False}).items():
        if fields.get(name) not in (unused, None, False, [], {}):
            raise AdapterError(f"{path} uses {name} = {fields[name]!r}, which minilora does not have.")
    init = fields.get("init_lora_weights", True)
    if init not in _INITS:
        raise AdapterError(
            f"{path} has init_lora_weights = {init!r}, which changes the base: convert the adapter in PEFT "
            "(save_pretrained with path_initial_model_for_weight_conversion) and load that."
        )
    unknown = sorted(fields.keys() - _UNSUPPORTED.keys() - _HARMLESS - _READ)
    if unknown:
        warnings.warn(f"{path} has fields that minilora does not know: {', '.join(unknown)}.", stacklevel=4)
    targets = fields.get("target_modules")
    if not isinstance(targets, list):
        raise AdapterError(f"{path} must list target_modules by name, not {targets!r}.")
    try:
        return LoRAConfig(
            r=fields.get("r", 8),
            alpha=fields.get("lora_alpha", 8),
            target_modules=tuple(targets),
            dropout=fields.get("lora_dropout", 0.0),
            init="gaussian" if init == "gaussian" else "kaiming",
            scaling="alpha/sqrt(r)" if fields.get("use_rslora") else "alpha/r",
        )
    except (ValueError, TypeError) as error:
        raise AdapterError(f"{path} holds settings that cannot be: {error}") from error


def _digest(config: LoRAConfig, made_of: str, state: State) -> str:
    """Of the settings as the file has them and as minilora had them, and of every array."""
    return digest({"file": asdict(config), "minilora": made_of}, state)


def _safetensors(state: State, metadata: dict[str, str]) -> bytes:
    """The file's bytes, the same every time: safetensors itself writes its metadata in a random order."""
    # safetensors writes wrong values for arrays that are not contiguous
    tensors = {f"{_PREFIX}{name}.weight": np.ascontiguousarray(array) for name, array in state.items()}
    data = save(tensors, metadata=metadata)
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + size]), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return data[:8] + header.encode().ljust(size) + data[8 + size :]
