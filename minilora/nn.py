"""Parameters, and the modules that hold them: Linear, LayerNorm, Embedding, Dropout.

Weights are stored (out, in) and drawn from an explicit generator; without one they are zero, to be loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from . import checks
from . import functional as F
from .autograd import Tensor, thread
from .backend import asarray, xp
from .tree import leaves, modules

Rng = np.random.Generator | None  # what draws the weights; None makes zeros


class Parameter(Tensor):
    """A Tensor that a module owns and an optimizer may change. It keeps the very array, not a copy."""

    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = True) -> None:
        self._take(checks.check_numbers(data), requires_grad)


@contextmanager
def evaluating() -> Iterator[None]:
    """Within this context every module computes as in evaluation mode, in this thread; no module's own mode changes."""
    before, thread.evaluating = thread.evaluating, True
    try:
        yield
    finally:
        thread.evaluating = before


class Module:
    """Something with parameters and a `forward`. Attributes that are parameters or modules are found by name, also in
    lists, tuples and dictionaries, however deep: "blocks.0.attn". Raises `TypeError` where they are kept in
    anything else, such as a set."""

    _training = True

    @property
    def training(self) -> bool:
        """Whether dropout is active: after `train()`, not after `eval()`, and never within `evaluating()`."""
        return self._training and not thread.evaluating

    @training.setter
    def training(self, mode: bool) -> None:
        self._training = mode

    def __call__(self, *inputs: Any) -> Tensor:
        return self.forward(*inputs)

    def forward(self, *inputs: Any) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no forward().")

    def named_modules(self) -> Iterator[tuple[str, Module]]:
        """(dotted name, module) for this module, whose name is "", and all below it; one that is shared comes once."""
        return modules(self, (Parameter, Module))

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """(dotted name, parameter), in a fixed order; one that is shared comes once, by its first name."""
        return leaves(self, (Parameter, Module))

    def parameters(self) -> list[Parameter]:
        return [parameter for _, parameter in self.named_parameters()]

    def num_parameters(self, trainable_only: bool = False) -> int:
        """How many numbers the parameters hold."""
        return sum(p.size for p in self.parameters() if p.requires_grad or not trainable_only)

    def zero_grad(self) -> None:
        for parameter in self.parameters():
            parameter.grad = None

    def train(self, mode: bool = True) -> Module:
        """Training mode, in which dropout is active; returns the module."""
        for _, module in self.named_modules():
            module.training = mode
        return self

    def eval(self) -> Module:
        """Evaluation mode; returns the module."""
        return self.train(False)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Name -> NumPy copy of each parameter."""
        return {name: parameter.numpy() for name, parameter in self.named_parameters()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take every parameter from `state`, whose names and shapes must be exactly this module's, or else raise
        `ValueError`, having changed nothing."""
        own = dict(self.named_parameters())
        checks.check_weights(state, own)
        for _, module in self.named_modules():
            module.check_loadable()
        arrays = {name: xp.array(asarray(state[name]), dtype=parameter.dtype) for name, parameter in own.items()}
        for name, parameter in own.items():  # only now, when nothing can fail any more
            parameter.data = arrays[name]

    def check_loadable(self) -> None:
        """Raise `ValueError` if weights must not be loaded now, as into a merged LoRA layer; others always may."""


class Linear(Module):
    """y = x Wᵀ + b, weight (out, in), bias (out,) or None."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        rng: Rng = None,
        std: float = 0.02,
        dtype: Any = "float32",
    ) -> None:
        self.weight = Parameter(gaussian((out_features, in_features), std, rng, dtype))
        self.bias = Parameter(xp.zeros(out_features, dtype=dtype)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class LayerNorm(Module):
    """Normalize the last axis, then scale by weight and shift by bias, both (D,)."""

    def __init__(self, d: int, *, eps: float = 1e-5, dtype: Any = "float32") -> None:
        self.weight = Parameter(xp.ones(d, dtype=dtype))
        self.bias = Parameter(xp.zeros(d, dtype=dtype))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight, self.bias, self.eps)


class Embedding(Module):
    """A row of weight (count, D) for each id."""

    def __init__(self, count: int, d: int, *, rng: Rng = None, std: float = 0.02, dtype: Any = "float32") -> None:
        self.weight = Parameter(gaussian((count, d), std, rng, dtype))

    def forward(self, ids: Any) -> Tensor:
        return F.embedding(self.weight, ids)


class Dropout(Module):
    """`functional.dropout` in training mode, nothing in evaluation mode."""

    def __init__(self, p: float, rng: np.random.Generator) -> None:
        checks.check_probability(p)
        self.p, self.rng = p, rng

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.rng) if self.training else x


def gaussian(shape: tuple[int, ...], std: float, rng: Rng, dtype: Any) -> Any:
    """N(0, std²) drawn on the CPU in float64, so that every dtype and backend starts alike; zeros without rng."""
    return xp.zeros(shape, dtype=dtype) if rng is None else asarray(rng.normal(0.0, std, shape), dtype=dtype)
