"""LoRA (Hu et al. 2021): a frozen W₀ beside a trainable product of two thin matrices.

    h = W₀ x + s · B A x        (§4.1, eq. 3)        s = α/r

A (r, in) starts Gaussian and B (out, r) zero, so the adapted model starts exactly as the base. LoRA wraps a `Linear`
from outside; the model knows nothing of it. The merged weight stands beside W₀, so that unmerging is exact.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import checks
from . import functional as F
from .autograd import Array, Tensor, operation, record
from .backend import asarray, multiplies, xp
from .nn import Dropout, Linear, Module, Parameter, Rng, gaussian
from .tree import replace

INITS = ("gaussian", "kaiming")
SCALINGS = ("alpha/r", "alpha/sqrt(r)")


@dataclass(frozen=True)
class LoRAConfig:
    """What to adapt, and how. Raises `TypeError` or `ValueError` for impossible settings.

    r: the rank. alpha: α; None means r, so that s = 1. target_modules: each a whole dotted name, or the end
    of one after a dot. dropout: on x before A, in training only. init: of A, "gaussian" (§4.1) with
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
        for name, value in checks.check_lora(vars(self), INITS, SCALINGS).items():
            object.__setattr__(self, name, value)

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
    base: tuple[list[Array], str] | None = None  # the base's arrays and their digest, for interop/peft.py


@operation
def lora_linear(x: Tensor, dropped: Tensor, W0: Tensor, b: Tensor | None, A: Tensor, B: Tensor, s: float) -> Tensor:
    """h = W₀x + b + s·B A x̃, where x̃ is x after dropout (or x itself): x (..., in) -> (..., out).

    With examples as rows, x (N, in) and g = ∂L/∂h (N, out): ∂L/∂B = s gᵀ(x̃Aᵀ), ∂L/∂A = s (gB)ᵀx̃, ∂L/∂x = g W₀ and
    ∂L/∂x̃ = s g B A. With W₀ frozen, gᵀx is never computed: the tape keeps no rule for it. Nor has W₀ Adam's m and v.
    """
    return F.linear(x, W0, b) + s * F.linear(F.linear(dropped, A), B)


class LoRALinear(Module):
    """A `Linear` with LoRA: its own `weight` (W₀, never written) and `bias`, and `lora_A` (r, in), `lora_B` (out, r).

    B is zero and A is not. So ∂L/∂A = s·Bᵀgᵀx is zero at first while ∂L/∂B is not: B moves first, then A.
    Were both zero, neither would ever move.
    """

    def __init__(self, base: Linear, adapter: Adapter, rng: Rng) -> None:
        out_features, in_features = base.weight.shape
        config = adapter.config
        self.weight, self.bias = base.weight, base.bias
        self.lora_A = Parameter(_initial_A(config, in_features, rng, base.weight.dtype))
        self.lora_B = Parameter(xp.zeros((out_features, config.r), dtype=base.weight.dtype))
        self.scaling = config.scale
        self.dropout = Dropout(config.dropout, adapter.rng)
        self.adapter = adapter
        self.merged_weight: Tensor | None = None  # W₀ + ΔW, needing no gradient
        self.train(base._training)

    def forward(self, x: Tensor) -> Tensor:
        if self.adapter.disabled:
            return F.linear(x, self.weight, self.bias)
        if self.merged_weight is not None:
            y = F.linear(x, self.merged_weight, self.bias)  # one product, as the base
            refuse = checks.refuse_backward  # or a merged model would train nothing, silently
            return record(y.array, (self.lora_A, refuse), (self.lora_B, refuse))
        return lora_linear(x, self.dropout(x), self.weight, self.bias, self.lora_A, self.lora_B, self.scaling)

    @multiplies
    def delta_weight(self) -> Array:
        """ΔW = s·B A, (out, in)."""
        return self.scaling * (self.lora_B.array @ self.lora_A.array)  # (out, r) @ (r, in) -> (out, in)

    def check_loadable(self) -> None:
        checks.check_unmerged(self.adapter.merged)


def _initial_A(config: LoRAConfig, in_features: int, rng: Rng, dtype: Any) -> Array:
    default = 1 / math.sqrt(in_features)
    if config.init == "gaussian" or rng is None:
        std = default if config.init_std is None else config.init_std
        return gaussian((config.r, in_features), std, rng, dtype)
    return asarray(rng.uniform(-default, default, (config.r, in_features)), dtype=dtype)


# ---- a model with LoRA -------------------------------------------------------------------------------


def add_lora(model: Module, config: LoRAConfig, seed: int | None = 0) -> list[Parameter]:
    """Freeze the base, wrap the targets in place, and return the trainable parameters: A and B of each.

    `seed` starts the generators of A and of the dropout; None leaves A zero, to be loaded. Raises `ValueError`, and
    changes nothing, where the model has LoRA already, a target matches no `Linear`, or r exceeds one's smaller side.
    """
    checks.check_plain(lora_layers(model))
    sizes = linear_sizes(model)
    checks.check_rank(config.r, sizes, checks.match_targets(list(sizes), config.target_modules))
    return wrap(model, config, seed)


def wrap(model: Module, config: LoRAConfig, seed: int | None) -> list[Parameter]:
    """`add_lora` without its checks: in files of other programs r may be above a matrix's smaller side."""
    modules: dict[str, Any] = dict(model.named_modules())
    init_rng, dropout_rng = np.random.default_rng(seed).spawn(2)
    adapter = Adapter(config, dropout_rng, thawed=[p for p in model.parameters() if p.requires_grad])
    for parameter in adapter.thawed:
        parameter.requires_grad = False
        parameter.grad = None
    trainable = []
    for name in matching_linears(model, config.target_modules):
        layer = LoRALinear(modules[name], adapter, None if seed is None else init_rng)
        replace(model.named_modules(), modules[name], layer)
        trainable += [layer.lora_A, layer.lora_B]
    return trainable


def lora_layers(model: Module) -> dict[str, LoRALinear]:
    """Dotted name -> wrapped layer; empty for a plain model."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def shared_adapter(layers: dict[str, LoRALinear]) -> Adapter:
    """What the wrapped layers of one model share. Raises `ValueError` for none, or layers of several models."""
    checks.check_adapted(len({id(layer.adapter) for layer in layers.values()}))
    return next(iter(layers.values())).adapter


def adapted(model: Module) -> tuple[dict[str, LoRALinear], Adapter]:
    """Both of a model. Raises as `shared_adapter` does."""
    layers = lora_layers(model)
    return layers, shared_adapter(layers)


def merge_lora(model: Module) -> None:
    """Compute W₀ + ΔW beside every W₀ and answer with it: one product a layer, as quick as the base (§4.1).

    All layers or none. Raises `ValueError` where there is no LoRA, it is merged already, or a ΔW is not finite.
    """
    layers, adapter = adapted(model)
    checks.check_merged(adapter.merged, False)
    merged = {name: layer.weight.array + layer.delta_weight() for name, layer in layers.items()}
    checks.check_finite(merged)
    for name, layer in layers.items():
        layer.merged_weight = Tensor(merged[name])
    adapter.merged = True


def unmerge_lora(model: Module) -> None:
    """Undo `merge_lora`, bit for bit: W₀ was never touched. Raises `ValueError` if it is not merged."""
    layers, adapter = adapted(model)
    checks.check_merged(adapter.merged, True)
    for layer in layers.values():
        layer.merged_weight = None
    adapter.merged = False


def remove_lora(model: Module) -> None:
    """A plain model again, the base as it was, merged or not. Raises `ValueError` where there is no LoRA."""
    layers, adapter = adapted(model)
    for layer in layers.values():
        plain = Linear.__new__(Linear)
        plain.weight, plain.bias, plain._training = layer.weight, layer.bias, layer._training
        replace(model.named_modules(), layer, plain)
    for parameter in adapter.thawed:
        parameter.requires_grad = True


def merge_and_unload(model: Module) -> None:
    """A plain model again, with ΔW in its weights.

    Raises `ValueError`, and changes nothing, where there is no LoRA, a ΔW is not finite, or an adapted weight is shared
    with another module, such as a tied head with the embedding.
    """
    layers, adapter = adapted(model)
    for name, layer in layers.items():
        checks.check_own(name, [n for n, m in model.named_modules() if getattr(m, "weight", None) is layer.weight])
    if not adapter.merged:
        merge_lora(model)
    remove_lora(model)
    modules: dict[str, Any] = dict(model.named_modules())
    for name, layer in layers.items():
        assert layer.merged_weight is not None
        modules[name].weight = Parameter(layer.merged_weight.array, any(p is layer.weight for p in adapter.thawed))


@contextmanager
def lora_disabled(model: Module) -> Iterator[None]:
    """Within this context the base answers, merged or not."""
    _, adapter = adapted(model)
    before, adapter.disabled = adapter.disabled, True
    try:
        yield
    finally:
        adapter.disabled = before


def lora_state_dict(model: Module) -> dict[str, np.ndarray]:
    """Name -> copy of every lora_A and lora_B: the adapter alone. Raises `ValueError` where there is none."""
    state: dict[str, np.ndarray] = {}
    for name, layer in adapted(model)[0].items():
        state |= {f"{name}.lora_A": layer.lora_A.numpy(), f"{name}.lora_B": layer.lora_B.numpy()}
    return state


def matching_linears(model: Module, targets: tuple[str, ...]) -> list[str]:
    """The names of the `Linear` modules that the targets mean. Raises `ValueError` for a target that means none."""
    return checks.match_targets(list(linear_sizes(model)), targets)


def linear_sizes(model: Module) -> dict[str, tuple[int, int]]:
    """Name -> (out, in) of every `Linear`, wrapped or not; not of a subclass, whose `forward` LoRA would replace."""
    modules: Iterator[tuple[str, Any]] = model.named_modules()
    return {name: module.weight.shape for name, module in modules if type(module) in (Linear, LoRALinear) and name}
