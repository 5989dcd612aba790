"""The planted world: a change D of a matrix that is known, and the student that starts at W₀ and is to find it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..autograd import Tensor
from ..backend import asarray
from ..lora import LoRAConfig, LoRALinear, add_lora, lora_layers
from ..nn import Linear, Module, Parameter
from ..optim import Optimizer, Schedule
from ..training import train


def planted(d: int, spectrum: Sequence[float] | np.ndarray, rng: np.random.Generator) -> tuple[Any, np.ndarray]:
    """W₀ (d, d) and the planted change D (d, d), whose singular values are `spectrum`.

    A student that starts at W₀ and is trained towards W₀ + D on white inputs has the loss ‖ΔW - D‖²; by
    Eckart and Young the best ΔW of rank r leaves Σ of the squares of the singular values after the r-th.
    Raises `ValueError` for more singular values than dimensions.
    """
    values = np.asarray(spectrum, dtype=np.float64)
    if values.ndim != 1 or len(values) > d:
        raise ValueError(f"A {d} by {d} matrix has at most {d} singular values; the spectrum has {values.shape}.")
    left, _ = np.linalg.qr(rng.normal(size=(d, d)))
    right, _ = np.linalg.qr(rng.normal(size=(d, d)))
    k = len(values)
    return rng.normal(0, 1 / np.sqrt(d), size=(d, d)), (left[:, :k] * values) @ right[:, :k].T


class Student(Module):
    """A float64 model of one `layer` without bias, weight (out, in)."""

    def __init__(self, weight: np.ndarray) -> None:
        out_features, in_features = weight.shape
        self.layer = Linear(in_features, out_features, bias=False, dtype="float64")
        self.layer.weight.data[...] = asarray(weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def fit(
    W0: np.ndarray,
    inputs: np.ndarray,
    answers: np.ndarray,
    r: int,
    optimizer: Any,
    steps: int,
    seed: int,
    schedule: Schedule | None = None,
    init_std: float | None = None,
) -> LoRALinear:
    """The layer that LoRA of rank r learns from inputs (n, in) and answers (n, out), by the sum of squared errors.

    `optimizer(parameters)` makes the optimizer.
    """
    model = Student(W0)
    parameters: list[Parameter] = add_lora(
        model, LoRAConfig(r, target_modules=("layer",), init_std=init_std), seed=seed
    )
    x, y = Tensor(inputs), Tensor(answers)
    made: Optimizer = optimizer(parameters)
    train(model, made, lambda step: ((model(x) - y) ** 2).sum(), steps, schedule=schedule)
    return lora_layers(model)["layer"]
