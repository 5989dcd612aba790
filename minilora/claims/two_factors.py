"""One training, told in other numbers: how two runs of LoRA with different settings are one and the same in ΔW.

With A′ = p·A and B′ = q·B, (α/pq)·B′A′ = α·BA. Adam's step has the size of its rate, whatever the gradient's; so a run
with α/(pq) whose A₀, rate of A and 1/ε of A are p times, and rate of B and 1/ε of B q times the first run's, keeps
A′ = p·A and B′ = q·B at every step. SGD's step has the gradient's size, which is 1/p and 1/q of the first run's: there
the rates are p² and q² times as high.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import functional as F
from ..backend import to_numpy
from ..bases import string_sampler
from ..data import seeded
from ..gpt import GPT, GPTConfig
from ..lora import LoRAConfig, add_lora, lora_layers
from ..optim import SGD, Adam, Optimizer


def multiples(kind: str, p: float, q: float) -> dict[str, float]:
    """What a run whose A is p times and whose B is q times the first one's has as multiples of that one's settings."""
    if kind == "adam":
        return {"alpha": 1 / (p * q), "A0": p, "lr_A": p, "lr_B": q, "eps_A": 1 / p, "eps_B": 1 / q}
    return {"alpha": 1 / (p * q), "A0": p, "lr_A": p**2, "lr_B": q**2}


def trained_delta(
    kind: str,
    alpha: float = 1,
    A0: float = 1,
    lr_A: float = 1,
    lr_B: float = 1,
    eps_A: float = 1,
    eps_B: float = 1,
) -> np.ndarray:
    """ΔW of every layer after 60 steps of "adam" or "sgd", its settings multiplied by these.

    float64; a GPT of d 32, 2 layers, weights N(0, 0.02²), so that attention stays near linear and rounding
    is not amplified; q and v at r = 4 and α = 4; Adam at lr 1e-3 with ε = 1e-6, SGD at 0.1.
    """
    model = GPT(GPTConfig(vocab_size=96, context_length=20, d_model=32, n_layers=2, n_heads=4), seed=0, dtype="float64")
    add_lora(model, LoRAConfig(4, alpha=4 * alpha), seed=0)
    layers = list(lora_layers(model).values())
    for layer in layers:
        layer.lora_A.data *= A0
    lr = 1e-3 if kind == "adam" else 0.1
    groups: list[dict[str, Any]] = [
        {"params": [layer.lora_A for layer in layers], "lr": lr * lr_A},
        {"params": [layer.lora_B for layer in layers], "lr": lr * lr_B},
    ]
    optimizer: Optimizer
    if kind == "adam":
        groups[0]["eps"], groups[1]["eps"] = 1e-6 * eps_A, 1e-6 * eps_B
        optimizer = Adam(groups, lr)
    else:
        optimizer = SGD(groups, lr)
    batches = seeded(string_sampler(("revupper",), 8), 0)
    for step in range(60):
        ids, targets = batches(step)
        optimizer.zero_grad()
        F.cross_entropy(model(ids), targets).backward()
        optimizer.step()
    return np.concatenate([to_numpy(layer.delta_weight()).ravel() for layer in layers])
