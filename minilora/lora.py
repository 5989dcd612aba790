"""LoRA (Hu et al. 2021): a frozen W₀ beside a trainable product of two thin matrices.

    h = W₀ x + s · B A x        (§4.1, eq. 3)        s = α/r

A (r, in) starts Gaussian and B (out, r) zero, so the adapted model starts as the base exactly. LoRA wraps
a `Linear` from outside; the model knows nothing of it. Merging keeps a separate merged weight beside W₀, so
that unmerging is exact.

Letters: M all leading axes of x together · r rank.
"""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import functional as F
from .autograd import Array, Tensor, needs_grad, operation, record
from .backend import asarray, multiplies, xp
from .nn import Dropout, Linear, Module, Parameter, gaussian, held

INITS = ("gaussian", "kaiming")
SCALINGS = ("alpha/r", "alpha/sqrt(r)")


@dataclass(frozen=True)
class LoRAConfig:
    """What to adapt, and how. Raises `TypeError` or `ValueError` for settings that cannot be.

    r: the rank. alpha: α; None means r, so that s = 1. target_modules: each a whole dotted name, or the end
    of one from a dot on. dropout: on x before A, in training only. init: of A, "gaussian" (§4.1) with
    standard deviation `init_std` (None: 1/√in; the paper gives none), or "kaiming", uniform in ±1/√in as in
    loralib. scaling: s is α/r, or α/√r (rsLoRA, Kalajdzievski 2023).
    """

    r: int
    alpha: float | None = None
    target_modules: tuple[str, ...] = ("q_proj", "v_proj")
    dropout: float = 0.0
    init: str = "gaussian"
    init_std: float | None = None
    scaling: str = "alpha/r"

    def __post_init__(self) -> None:
        for name in ("r", "alpha", "dropout", "init_std"):
            value = getattr(self, name)
            if isinstance(value, np.number):  # which could not be saved
                object.__setattr__(self, name, value.item())
        if isinstance(self.r, bool) or not isinstance(self.r, int):
            raise TypeError(f"The rank r must be a whole number, not {self.r!r}.")
        if self.r < 1:
            raise ValueError(f"The rank r must be at least 1, not {self.r}.")
        for name in ("alpha", "init_std"):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} must be a number, not {value!r}.")
            if not 0 < value <= sys.float_info.max:  # an int may be larger than any float
                raise ValueError(f"{name} must be finite and above 0, not {value}.")
        if isinstance(self.dropout, bool) or not isinstance(self.dropout, (int, float)):
            raise TypeError(f"dropout must be a number, not {self.dropout!r}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and less than 1, not {self.dropout}.")
        if self.init not in INITS:
            raise ValueError(f"init must be one of {', '.join(INITS)}, not {self.init!r}.")
        if self.init != "gaussian" and self.init_std is not None:
            raise ValueError(f"init_std belongs to init='gaussian'; {self.init!r} has a spread of its own.")
        if self.scaling not in SCALINGS:
            raise ValueError(f"scaling must be one of {', '.join(SCALINGS)}, not {self.scaling!r}.")
        if isinstance(self.target_modules, str):
            raise TypeError(f"target_modules is a tuple of names; write ({self.target_modules!r},).")
        targets = tuple(self.target_modules)
        if not targets or not all(isinstance(t, str) and t for t in targets):
            raise ValueError(f"target_modules must name at least one module, each by a string, not {targets!r}.")
        object.__setattr__(self, "target_modules", targets)

    @property
    def scale(self) -> float:
        """s, the factor of B A x."""
        alpha = self.r if self.alpha is None else self.alpha
        return float(alpha / (self.r if self.scaling == "alpha/r" else math.sqrt(self.r)))


@dataclass
class Adapter:
    """What the wrapped layers of one model share."""

    config: LoRAConfig
    rng: np.random.Generator  # of the dropout; checkpoints keep its state
    thawed: list[Parameter] = field(default_factory=list)  # the base's parameters that add_lora froze
    merged: bool = False
    disabled: bool = False
    base: tuple[list[Array], str] | None = None  # the arrays that the base is made of, and their digest


@operation
def lora_linear(
    x: Tensor, dropped: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scaling: float
) -> Tensor:
    """h = W₀x + b + s·B A x̃, where x̃ is x after dropout (or x itself): x (..., in) -> (..., out).

    With g = ∂L/∂h:  ∂L/∂B = s gᵀ(A x̃),  ∂L/∂A = s Bᵀgᵀx̃,  ∂L/∂x = g W₀ and ∂L/∂x̃ = s g B A. With W₀ frozen, gᵀx is
    never computed: the tape keeps no rule for it. That is LoRA's saving.
    """
    return F.linear(x, weight, bias) + scaling * F.linear(F.linear(dropped, A), B)


class LoRALinear(Module):
    """A `Linear` with LoRA: its own `weight` (W₀, never written) and `bias`, and `lora_A` (r, in), `lora_B` (out, r).

    B is zero and A is not. So ∂L/∂A = s·Bᵀgᵀx is zero at first while ∂L/∂B is not: B moves first, then A.
    Were both zero, neither would ever move.
    """

    def __init__(self, base: Linear, adapter: Adapter, rng: np.random.Generator | None) -> None:
        out_features, in_features = base.weight.shape
        config = adapter.config
        self.weight, self.bias = base.weight, base.bias
        self.lora_A = Parameter(_initial_A(config, in_features, rng, base.weight.dtype))
        self.lora_B = Parameter(xp.zeros((out_features, config.r), dtype=base.weight.dtype))
        self.scaling = config.scale
        self.dropout = Dropout(config.dropout, adapter.rng)
        self.adapter = adapter
        self.merged_weight: Tensor | None = None  # W₀ + ΔW, needing no gradient

    def forward(self, x: Tensor) -> Tensor:
        if self.adapter.disabled:
            return F.linear(x, self.weight, self.bias)
        if self.merged_weight is not None:
            y = F.linear(x, self.merged_weight, self.bias)  # one product, as the base
            refused = (self.lora_A, _refuse_backward), (self.lora_B, _refuse_backward)
            return record(y.array, *refused) if needs_grad(self.lora_A) else y
        return lora_linear(x, self.dropout(x), self.weight, self.bias, self.lora_A, self.lora_B, self.scaling)

    @multiplies
    def delta_weight(self) -> Array:
        """ΔW = s·B A, (out, in)."""
        return self.scaling * (self.lora_B.array @ self.lora_A.array)  # (out, r) @ (r, in) -> (out, in)

    def check_loadable(self) -> None:
        if self.adapter.merged:
            raise ValueError("Weights cannot be loaded while LoRA is merged: call unmerge_lora(model) first.")


def _refuse_backward(g: Array) -> Array:
    raise ValueError("A merged model cannot be trained: call unmerge_lora(model) first.")


def _initial_A(config: LoRAConfig, in_features: int, rng: np.random.Generator | None, dtype: Any) -> Array:
    default = 1 / math.sqrt(in_features)
    if config.init == "gaussian" or rng is None:
        std = default if config.init_std is None else config.init_std
        return gaussian((config.r, in_features), std, rng, dtype)
    return asarray(rng.uniform(-default, default, (config.r, in_features)), dtype=dtype)


# ---- a model with LoRA -------------------------------------------------------------------------------


def add_lora(model: Module, config: LoRAConfig, seed: int | None = 0) -> list[Parameter]:
    """Freeze the base, wrap the targets in place, and return the trainable parameters: A and B of each.

    `seed` starts the generators of A and of the dropout; None leaves A zero, for an adapter about to be
    loaded. Raises `ValueError`, and changes nothing, where the model has LoRA already, a target matches no
    `Linear`, or r is larger than a target's smaller side.
    """
    if lora_layers(model):
        raise ValueError("This model has LoRA already: call remove_lora(model) or merge_and_unload(model) first.")
    names = matching_linears(model, config.target_modules)
    modules = dict(model.named_modules())
    for name in names:
        side = min(modules[name].weight.shape)  # type: ignore[attr-defined]
        if config.r > side:
            raise ValueError(f"The rank r must be at most min(out, in) = {side} for {name}, not {config.r}.")
    return wrap(model, config, seed)


def wrap(model: Module, config: LoRAConfig, seed: int | None) -> list[Parameter]:
    """`add_lora` on a plain model for an r of any size, as adapters of other programs have it.

    More than a matrix's smaller side only spends memory, so that `add_lora` takes it for a mistake.
    """
    names = matching_linears(model, config.target_modules)
    modules = dict(model.named_modules())
    init_rng, dropout_rng = np.random.default_rng(seed).spawn(2)
    adapter = Adapter(config, dropout_rng, thawed=[p for p in model.parameters() if p.requires_grad])
    for parameter in adapter.thawed:
        parameter.requires_grad = False
        parameter.grad = None
    trainable = []
    for name in names:
        base = modules[name]
        assert isinstance(base, Linear)
        layer = LoRALinear(base, adapter, None if seed is None else init_rng)
        layer.train(base._training)
        _replace(model, base, layer)
        trainable += [layer.lora_A, layer.lora_B]
    return trainable


def lora_layers(model: Module) -> dict[str, LoRALinear]:
    """Dotted name -> wrapped layer; empty for a plain model."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def shared_adapter(layers: dict[str, LoRALinear]) -> Adapter:
    """What the wrapped layers of one model share: settings, generator, whether merged or disabled.

    Raises `ValueError` for layers of several models, each adapted by itself.
    """
    adapters = {id(layer.adapter): layer.adapter for layer in layers.values()}
    if len(adapters) > 1:
        raise ValueError(
            f"This holds {len(adapters)} models that were adapted one by one: call the function with each of them."
        )
    return next(iter(adapters.values()))


def merge_lora(model: Module) -> None:
    """Compute W₀ + ΔW beside every W₀ and answer with it: one product a layer, as quick as the base (§4.1).

    All layers or none. Raises `ValueError` where the model has no LoRA, is merged already, or a ΔW is not
    finite; then nothing has changed.
    """
    layers = _require_lora(model)
    if shared_adapter(layers).merged:
        raise ValueError("This model is merged already.")
    merged = {name: layer.weight.array + layer.delta_weight() for name, layer in layers.items()}
    for name, weight in merged.items():
        if not xp.isfinite(weight).all().item():
            raise ValueError(f"Nothing was merged: ΔW of {name} is not finite, so its training diverged.")
    for name, layer in layers.items():
        layer.merged_weight = Tensor(merged[name])
    shared_adapter(layers).merged = True


def unmerge_lora(model: Module) -> None:
    """As before `merge_lora`, bit for bit: W₀ was never touched. Raises `ValueError` if it is not merged."""
    layers = _require_lora(model)
    if not shared_adapter(layers).merged:
        raise ValueError("This model is not merged.")
    for layer in layers.values():
        layer.merged_weight = None
    shared_adapter(layers).merged = False


def remove_lora(model: Module) -> None:
    """A plain model again, the base as it was, merged or not. Raises `ValueError` where there is no LoRA."""
    layers = _require_lora(model)
    for layer in layers.values():
        _replace(model, layer, _plain(layer))
    for parameter in shared_adapter(layers).thawed:
        parameter.requires_grad = True


def merge_and_unload(model: Module) -> None:
    """A plain model again, with ΔW in its weights.

    Raises `ValueError` where there is no LoRA, a ΔW is not finite, or an adapted weight is shared with
    another module, such as a tied head with the embedding; then nothing has changed.
    """
    layers = _require_lora(model)
    for name, layer in layers.items():
        owners = [n for n, m in model.named_modules() if getattr(m, "weight", None) is layer.weight]
        if len(owners) > 1:
            raise ValueError(f"ΔW of {name} cannot go into its weight, which {' and '.join(owners)} share.")
    if not shared_adapter(layers).merged:
        merge_lora(model)
    thawed = {id(p) for p in shared_adapter(layers).thawed}
    remove_lora(model)
    modules = dict(model.named_modules())
    for name, layer in layers.items():
        assert layer.merged_weight is not None
        modules[name].weight = Parameter(layer.merged_weight.array, id(layer.weight) in thawed)  # type: ignore[attr-defined]


@contextmanager
def lora_disabled(model: Module) -> Iterator[None]:
    """Within this context the base answers, merged or not."""
    adapter = shared_adapter(_require_lora(model))
    before, adapter.disabled = adapter.disabled, True
    try:
        yield
    finally:
        adapter.disabled = before


def lora_state_dict(model: Module) -> dict[str, np.ndarray]:
    """Name -> copy of every lora_A and lora_B: the adapter alone. Raises `ValueError` where there is none."""
    return {
        f"{name}.{part}": getattr(layer, part).numpy()
        for name, layer in _require_lora(model).items()
        for part in ("lora_A", "lora_B")
    }


def matching_linears(model: Module, targets: tuple[str, ...]) -> list[str]:
    """The names of the `Linear` modules that the targets mean, in the model's order.

    A target is a whole dotted name or the end of one from a dot on; "proj" does not match "q_proj".
    Raises `ValueError` for a target that matches none, listing what there is and the nearest name.
    """
    return match_targets(list(linear_sizes(model)), targets)


def linear_sizes(model: Module) -> dict[str, tuple[int, int]]:
    """Name -> (out, in) of every `Linear`, wrapped or not; not of a subclass, whose `forward` LoRA would replace."""
    return {
        name: module.weight.shape  # type: ignore[attr-defined]
        for name, module in model.named_modules()
        if type(module) in (Linear, LoRALinear) and name
    }


def match_targets(linears: list[str], targets: tuple[str, ...]) -> list[str]:
    """Those of the names that the targets mean; refuses as `matching_linears` does."""
    for target in targets:
        if not any(target_matches(name, target) for name in linears):
            ends = sorted({name.rsplit(".", 1)[-1] for name in linears})
            near = difflib.get_close_matches(target, ends + linears, n=1, cutoff=0.5)
            raise ValueError(
                f"The target {target!r} matches no Linear of this model"
                + (f"; did you mean {near[0]!r}?" if near else ".")
                + f" There are: {', '.join(ends) or 'none'} (whole names such as {linears[0]!r} work too)."
                if linears
                else f"The target {target!r} matches nothing: this model holds no Linear."
            )
    return [name for name in linears if any(target_matches(name, target) for target in targets)]


def target_matches(name: str, target: str) -> bool:
    """Whether a target means the module of that dotted name."""
    return name == target or name.endswith("." + target)


# ---- helpers -----------------------------------------------------------------------------------------


def _require_lora(model: Module) -> dict[str, LoRALinear]:
    layers = lora_layers(model)
    if not layers:
        raise ValueError("This model has no LoRA: call add_lora(model, config) or load_adapter(model, folder) first.")
    shared_adapter(layers)  # refuses several models
    return layers


def _plain(layer: LoRALinear) -> Linear:
    linear = Linear.__new__(Linear)
    linear.weight, linear.bias, linear._training = layer.weight, layer.bias, layer._training
    return linear


def _replace(model: Module, old: Module, new: Module) -> None:
    """Put `new` wherever the model holds `old`, which may be in several places."""
    for _, module in list(model.named_modules()):
        for name, value in vars(module).items():
            vars(module)[name] = _with(value, old, new)


def _with(value: Any, old: Module, new: Module) -> Any:
    """`value` with `new` in the place of `old`; lists and dictionaries stay the same objects, tuples are made anew."""
    if value is old:
        return new
    if isinstance(value, (list, dict)):
        for key, part in list(enumerate(value) if isinstance(value, list) else value.items()):
            value[key] = _with(part, old, new)
    elif isinstance(value, tuple) and any(found is old for _, found in held(value)):
        return tuple.__new__(type(value), [_with(part, old, new) for part in value])  # of the same kind, named or not
    return value
