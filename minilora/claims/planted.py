"""The student of the planted world: one matrix that starts as W₀ and is trained towards W₀ + D."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..autograd import Tensor
from ..backend import asarray
from ..lora import LoRAConfig, LoRALinear, add_lora, lora_layers
from ..nn import Linear, Module, Parameter
from ..optim import Optimizer, Schedule
from ..training import train


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
