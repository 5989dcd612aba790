"""Adapter folders in PEFT's layout: `adapter_config.json` and `adapter_model.safetensors`.

PEFT names each tensor `base_model.model.<module path>.lora_A.weight`, stored as minilora stores it: A (r, in),
B (out, r). So nothing is transposed on the way. On a model of `load_gpt2` the modules are GPT-2's (`fused.py`).

Neither file has a checksum of its own. So the weights carry, in their metadata, a digest of tensors and settings
together, what the settings were before GPT-2's form, and a digest of the base; PEFT reads past all of them.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from ..backend import asarray, to_numpy
from ..checks import match_targets, target_matches
from ..lora import (
    LoRAConfig,
    LoRALinear,
    adapted,
    linear_sizes,
    lora_layers,
    lora_state_dict,
    shared_adapter,
    wrap,
)
from ..nn import Module, Parameter
from .files import (
    SafetensorsFile,
    all_transposed,
    cast,
    check_names,
    check_output,
    check_prefix,
    digest,
    parse_json,
    read_bytes,
    write_atomically,
    write_text,
)
from .fused import State, fuse, fused_sizes, shortest_targets, unfuse, ungroup
from .gpt2 import GPT2

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."

# What PEFT's LoRA has and minilora does not have: the value that means "not used".
_UNSUPPORTED: dict[str, Any] = {
    "use_dora": False,
    "use_qalora": False,
    "use_bdlora": None,
    "lora_bias": False,
    "bias": "none",
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "layer_replication": None,
    "target_parameters": None,
    "trainable_token_indices": None,
    "alora_invocation_tokens": None,
    "megatron_config": None,
    "arrow_config": None,
    "kasa_config": None,
    "velora_config": None,
    "monteclora_config": None,
}
_FUSED_ONLY: dict[str, Any] = {"fan_in_fan_out": False, "enable_lora": None}  # what minilora has on GPT-2's modules
# Fields that do not change what a saved adapter computes.
_HARMLESS = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying",
    "eva_config", "inference_mode", "loftq_config", "lora_ga_config", "megatron_core", "merge_weights",
    "peft_type", "peft_version", "qalora_group_size", "revision", "runtime_config", "task_type",
}  # fmt: skip
_READ = {
    "enable_lora", "exclude_modules", "fan_in_fan_out", "init_lora_weights", "layers_pattern", "layers_to_transform",
    "lora_alpha", "lora_dropout", "r", "target_modules", "use_rslora",
}  # fmt: skip
# Ways to start that leave the base alone; PiSSA, OLoRA and others change it, so that their adapter needs that base.
_INITS = (True, False, None, "gaussian", "eva", "orthogonal")


class AdapterError(ValueError):
    """A folder that does not hold a whole adapter, or holds one that this model or minilora cannot take."""


def save_adapter(model: Module, folder: str | Path) -> None:
    """Write the adapter of a model with LoRA. Raises `ValueError` where there is none or it cannot be written.

    On a model of `load_gpt2`, q, k and v become one block adapter on `c_attn`: equal for inference in PEFT, not for
    training it further there (see `fused.py`). A crash at any moment leaves the old adapter or the new one.
    """
    state = lora_state_dict(model)
    own = adapted(model)[1].config
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
    for output in (path, folder / WEIGHTS):  # both, before either is written
        check_output(output)
    metadata = {"format": "pt", "minilora": json.dumps(asdict(own)), "base": _base_digest(model)}
    in_file = _lora_config(fields, tuple(sorted(config.target_modules)), path)
    metadata["digest"] = _digest(in_file, metadata["minilora"], metadata["base"], state)
    old = read_bytes(path, ValueError) if path.is_file() else text.encode()
    if old != text.encode():
        # The weights go first. Should the settings not follow, then the weights say which ones they find instead.
        metadata.update(replaces=hashlib.sha256(old).hexdigest(), settings=text)
    write_atomically(folder / WEIGHTS, lambda temporary: temporary.write_bytes(_safetensors(state, metadata)))
    write_text(path, text)


def load_adapter(model: Module, folder: str | Path) -> list[Parameter]:
    """Wrap a plain model with the adapter of a folder, or replace the adapter of one with the same targets and r.

    Returns the trainable parameters as `add_lora` does, so that training can continue. A model of `load_gpt2` takes
    PEFT's adapters on `c_attn`: ordinary ones, those in block form, and those of PEFT 0.2 and loralib with
    `enable_lora`. Where the folder holds no adapter and one of its sub-folders does, that one is read.

    Warns about fields of the configuration that it does not know, and about an adapter known to be made for another
    base. Raises `AdapterError` where the folder is missing, damaged, uses what minilora lacks (DoRA, ...), or does not
    fit the model; then nothing has changed.
    """
    folder = _with_adapter(Path(folder))
    layers = lora_layers(model)
    for layer in layers.values():
        layer.check_loadable()
    try:
        config, state, base = _read(folder, model)
        if layers:
            _check_replaces(layers, config, state)
        dtype = next(p.dtype for _, p in model.named_parameters())
        arrays = {name: np.ascontiguousarray(cast(name, array, dtype)) for name, array in state.items()}
        if base is not None and base != _known_base_digest(model):
            warnings.warn(
                f"The adapter in {folder} was made for another base: the model's frozen weights are not those that it "
                "was saved beside, so that it may answer worse than it did there.",
                stacklevel=2,
            )
        if not layers:
            wrap(model, config, seed=0)
            layers = lora_layers(model)
    except AdapterError:
        raise
    except ValueError as error:
        raise AdapterError(f"The adapter in {folder} does not fit this model: {error}") from error
    for name, layer in layers.items():
        layer.adapter.config, layer.scaling, layer.dropout.p = config, config.scale, config.dropout
        layer.lora_A.data, layer.lora_B.data = (asarray(arrays[f"{name}.{part}"]) for part in ("lora_A", "lora_B"))
    return [parameter for layer in layers.values() for parameter in (layer.lora_A, layer.lora_B)]


def _check_shapes(sizes: Mapping[str, tuple[int, int]], config: LoRAConfig, state: State) -> None:
    """Raise `ValueError`, by name, where targets, names or shapes are not those that the model needs."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name in match_targets(list(sizes), config.target_modules):
        out_features, in_features = sizes[name]
        shapes[f"{name}.lora_A"], shapes[f"{name}.lora_B"] = (config.r, in_features), (out_features, config.r)
    layers, own_layers = _layers(state), _layers(sizes)
    if layers != own_layers == _layers(shapes) and layers == {str(number) for number in range(len(layers))}:
        raise ValueError(f"its tensors are of {len(layers)} layers; this model has {len(own_layers)}.")
    check_names(shapes, state, "it lacks", "it also has")
    found = {name: state[name].shape for name in shapes}
    if all_transposed(shapes, found):
        raise ValueError("every matrix is transposed; an adapter's A is (r, in) and its B (out, r).")
    wrong = [name for name, shape in shapes.items() if found[name] != shape]
    if wrong:
        readers = [(found[name], shape) for name, shape in shapes.items() if name.endswith("lora_A")]
        wide = all(len(one) == 2 and one[0] == other[0] and one[1] != other[1] for one, other in readers)
        raise ValueError(
            ("it is for a base of another width: " if wide else "")
            + f"{wrong[0]} has shape {found[wrong[0]]}; this model needs {shapes[wrong[0]]}."
        )


def _check_replaces(layers: dict[str, LoRALinear], config: LoRAConfig, state: State) -> None:
    """Raise `ValueError` where an adapter is on other modules than the model's own, or of another rank."""
    old = shared_adapter(layers).config
    if {name.rsplit(".", 1)[0] for name in state} != layers.keys() or old.r != config.r:
        raise ValueError(
            f"it has r {config.r} on {', '.join(config.target_modules)}, the model's own r {old.r} on "
            f"{', '.join(old.target_modules)}: call remove_lora(model) first."
        )


# ---- reading -----------------------------------------------------------------------------------------


def _with_adapter(folder: Path) -> Path:
    """The folder itself, or the one sub-folder that holds an adapter where it holds none: PEFT's way to name one."""
    try:
        if (folder / CONFIG).exists() or (folder / WEIGHTS).exists():
            return folder
        inner = sorted(path.name for path in folder.iterdir() if (path / CONFIG).exists())
    except OSError:
        return folder  # reading its files will say why it cannot be read
    if len(inner) > 1:
        raise AdapterError(f"{folder} holds several adapters: name one of its folders {', '.join(inner)}.")
    return folder / inner[0] if inner else folder


def _read(folder: Path, model: Module) -> tuple[LoRAConfig, State, str | None]:
    """What a folder holds, as this model needs it: settings, arrays by name, and the digest of its base if known.

    Raises `AdapterError` for files that are not sound, `ValueError` for an adapter that does not fit.
    """
    sizes = fused_sizes(model) if isinstance(model, GPT2) else linear_sizes(model)
    path = folder / CONFIG
    settings = read_bytes(path, AdapterError)
    if not (folder / WEIGHTS).exists() and (folder / "adapter_model.bin").exists():
        raise AdapterError(
            f"{folder}'s adapter_model.bin is a pickle, which minilora never opens: save it from PEFT with "
            f"save_pretrained, or its tensors with safetensors.torch.save_file(tensors, {WEIGHTS!r})."
        )
    file = SafetensorsFile(folder / WEIGHTS, AdapterError)
    if file.metadata.get("replaces") == hashlib.sha256(settings).hexdigest():  # a crash came between the two files
        settings = file.metadata.get("settings", "").encode()
    fields = parse_json(settings, path, AdapterError)
    _check_fields(fields, path, isinstance(model, GPT2))
    keys, others = _tensor_names(file, isinstance(model, GPT2))
    modules = list(dict.fromkeys(name.rsplit(".", 1)[0] for name in keys))
    check_prefix(sizes, modules)
    config = _lora_config(fields, _targets(fields, modules, list(sizes)), path)
    state = dict(zip(keys, file.read(*keys.values()), strict=True))
    _check_base_tensors(model, file, others)
    own, base = _notes(file, config, state)
    if isinstance(model, GPT2) and fields.get("enable_lora"):
        config, own, state = ungroup(model, config, state, fields["enable_lora"])
    _check_shapes(sizes, config, state)
    if isinstance(model, GPT2):
        config, state = unfuse(model, config, state, own)
    elif own is not None:
        config = own
    _check_shapes(linear_sizes(model), config, state)
    return config, state, base


def _notes(file: SafetensorsFile, config: LoRAConfig, state: State) -> tuple[LoRAConfig | None, str | None]:
    """What minilora's own files say beside what PEFT reads: the settings before any fusing, and the base's digest."""
    made_of, base, saved = (file.metadata.get(name) for name in ("minilora", "base", "digest"))
    if made_of is None or saved is None:  # PEFT writes neither
        return None, None
    if saved != _digest(config, made_of, base, state):
        raise AdapterError(
            f"{file.path.parent} is damaged, or was edited: its two files do not give the digest they were saved with."
        )
    own = parse_json(made_of.encode(), file.path, AdapterError)
    try:
        return LoRAConfig(**own), base
    except (ValueError, TypeError) as error:
        raise AdapterError(f"{file.path.parent} is of a later minilora: {error}") from error


# ---- the tensors' names ------------------------------------------------------------------------------

# PEFT's name, in the file of save_pretrained or with an adapter's name in it, or loralib's.
_TENSOR = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:(?:\.([^.]+))?\.weight)?")


def _tensor_names(file: SafetensorsFile, fused: bool) -> tuple[dict[str, str], list[str]]:
    """minilora's name of each tensor, "<module>.lora_A" -> its name in the file; and the names of all others."""
    keys: dict[str, str] = {}
    others: list[str] = []
    adapters = set()
    for key in file.shapes:
        match = _TENSOR.fullmatch(key)
        if match is None:
            others.append(key)
            continue
        module, part, adapter = match.groups()
        if fused:  # PEFT wrapped a bare GPT2Model if there is no "transformer."
            module = re.sub(r"^(?=h\.\d)", "transformer.", module)
        adapters.add(adapter or "one without a name")
        name = f"{module}.lora_{part}"
        if name in keys and len(adapters) == 1:
            raise AdapterError(f"{file.path} holds {name} twice, as {keys[name]!r} and as {key!r}.")
        keys[name] = key
    if len(adapters) > 1:
        raise AdapterError(
            f"{file.path} holds tensors of several adapters ({', '.join(sorted(adapters))}): save one of them alone, "
            "as PEFT does with save_pretrained(folder, selected_adapters=[...])."
        )
    return keys, others


def _check_base_tensors(model: Module, file: SafetensorsFile, names: list[str]) -> None:
    """Raise `AdapterError` for a tensor that neither is the adapter's nor repeats the base.

    PEFT saves the head and the embedding too, with an adapter on the head (save_embedding_layers).
    """
    modules = dict(model.named_modules())
    for key in names:
        module, _, kind = key.removeprefix(_PREFIX).replace(".base_layer.", ".").rpartition(".")
        if isinstance(model, GPT2):
            module = re.sub(r"^(transformer\.)?wte$", "token_embedding", module)
        own = getattr(modules.get(module), kind, None) if kind in ("weight", "bias") else None
        if not isinstance(own, Parameter):
            raise AdapterError(
                f"{file.path} holds {key!r}; an adapter's tensors are named {_PREFIX}<module>.lora_A.weight."
            )
        if not np.array_equal(_float32(file.read(key)[0]), _float32(own)):
            raise AdapterError(
                f"{file.path} holds {key!r}, and not as this model has it: the adapter was made for another base, or "
                "changed that weight too, which minilora's adapters do not."
            )


# ---- the configuration -------------------------------------------------------------------------------


def _check_fields(fields: dict[str, Any], path: Path, fused: bool) -> None:
    """Refuse what minilora lacks, for a model with GPT-2's fused modules or without; warn of what it does not know.

    A field that is null, False, 0 or empty asks for nothing.
    """
    if fields.get("peft_type") != "LORA":
        raise AdapterError(f"{path} is not the configuration of a LoRA adapter (peft_type is not LORA).")
    for name, unused in (_UNSUPPORTED if fused else {**_UNSUPPORTED, **_FUSED_ONLY}).items():
        if fields.get(name) and fields[name] != unused:
            raise AdapterError(f"{path} uses {name} = {fields[name]!r}, which minilora does not have.")
    init = fields.get("init_lora_weights")
    if init and init not in _INITS:
        raise AdapterError(
            f"{path} has init_lora_weights = {init!r}, which changes the base: convert the adapter in PEFT "
            "(save_pretrained with path_initial_model_for_weight_conversion) and load that."
        )
    known = _UNSUPPORTED.keys() | _HARMLESS | _READ
    unknown = sorted(name for name, value in fields.items() if value and name not in known)
    if unknown:
        warnings.warn(f"{path} has fields that minilora does not know: {', '.join(unknown)}.", stacklevel=4)


def _targets(fields: dict[str, Any], modules: list[str], linears: list[str]) -> tuple[str, ...]:
    """The targets: those of a list as they stand, or the shortest names for the modules that another choice means.

    `modules` are those that have tensors in the file; where a choice is unclear otherwise, they are what is meant.
    """
    targets, excluded, layers = (fields.get(n) for n in ("target_modules", "exclude_modules", "layers_to_transform"))
    layers = layers if isinstance(layers, list) else [layers] if type(layers) is int else []
    if not isinstance(targets, (list, str, type(None))):
        raise ValueError(f"its target_modules must be names, a regular expression or null, not {targets!r}.")
    if isinstance(targets, str) and re.fullmatch(r"[\w.]+", targets):
        targets = [targets]
    if isinstance(targets, list) and not excluded and not layers:
        return tuple(targets)
    meant = [
        name
        for name in linears
        if _means(targets, name, name in modules)
        and not (excluded and _means(excluded, name, name not in modules))
        and (not layers or _layers([name]) & set(map(str, layers)) or (isinstance(targets, list) and name in targets))
    ]
    if not meant:
        raise ValueError(f"it is on {', '.join(modules[:3]) or 'nothing'}, and this model has no such module.")
    return shortest_targets(meant, linears)


def _means(choice: Any, name: str, otherwise: bool) -> bool:
    """Whether PEFT's choice of modules takes in the one of this name, or `otherwise` where that cannot be told."""
    if isinstance(choice, list):
        return any(target_matches(name, str(target)) for target in choice)
    if choice == "all-linear" and name != "lm_head":  # PEFT leaves out the head where it knows it
        return True
    return otherwise  # a regular expression is never run: one can be made that takes for ever


def _layers(names: Iterable[str]) -> set[str]:
    """The numbers of the layers that the modules of these names are in."""
    return {match.group() for name in names if (match := re.search(r"(?<=\.)\d+(?=\.)", name))}


def _lora_config(fields: dict[str, Any], targets: tuple[str, ...], path: Path) -> LoRAConfig:
    """The settings that PEFT's fields mean."""
    try:
        return LoRAConfig(
            r=fields.get("r", 8),
            alpha=fields.get("lora_alpha", 8),
            target_modules=targets,
            dropout=fields.get("lora_dropout", 0.0),
            init="gaussian" if fields.get("init_lora_weights") == "gaussian" else "kaiming",
            scaling="alpha/sqrt(r)" if fields.get("use_rslora") else "alpha/r",
        )
    except (ValueError, TypeError) as error:
        raise AdapterError(f"{path} holds impossible settings: {error}") from error


# ---- digests and bytes -------------------------------------------------------------------------------


def _digest(config: LoRAConfig, made_of: str, base: str | None, state: State) -> str:
    """A digest of the settings as in the file and as in minilora, of the base's digest, and of every array."""
    settings = {"file": asdict(config), "minilora": made_of}
    return digest(settings if base is None else {**settings, "base": base}, state)  # the earliest files have none


def _base_parameters(model: Module) -> dict[str, Parameter]:
    """Name -> parameter of the model without its adapter: the same whether adapted, merged or plain."""
    adapters = {id(p) for layer in lora_layers(model).values() for p in (layer.lora_A, layer.lora_B)}
    return {name: p for name, p in model.named_parameters() if id(p) not in adapters}


def _base_digest(model: Module) -> str:
    """Which base this is: its weights as float32, so that a base read in float64 is still that base."""
    base = _base_parameters(model)
    return digest({name: digest({}, {"": _float32(p)}) for name, p in base.items()}, {})  # one array at a time


def _known_base_digest(model: Module) -> str:
    """The same, remembered with the adapter while the base is frozen and of the same arrays: changing tasks is fast.

    The arrays themselves are kept, since an id may be another array's once its own is gone. One that is written into
    in place is the same array: that goes unnoticed.
    """
    layers, base = lora_layers(model), _base_parameters(model).values()
    if not layers or any(p.requires_grad for p in base):
        return _base_digest(model)
    adapter, arrays = shared_adapter(layers), [p.array for p in base]
    if adapter.base is None or list(map(id, adapter.base[0])) != list(map(id, arrays)):
        adapter.base = arrays, _base_digest(model)
    return adapter.base[1]


def _float32(values: Parameter | np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return to_numpy(values.array if isinstance(values, Parameter) else values).astype(np.float32, copy=False)


def _safetensors(state: State, metadata: dict[str, str]) -> bytes:
    """The file's bytes, the same every time: safetensors itself writes its metadata in a random order."""
    # safetensors writes wrong values for arrays that are not contiguous
    tensors = {f"{_PREFIX}{name}.weight": np.ascontiguousarray(array) for name, array in state.items()}
    data = save(tensors, metadata=metadata)
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + size]), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return data[:8] + header.encode().ljust(size) + data[8 + size :]
