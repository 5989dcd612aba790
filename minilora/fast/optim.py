"""Adam in the order of the paper's §2, in place."""

from __future__ import annotations

import math

from ..autograd import Array
from ..backend import xp
from .memory import empty


def adam(p: Array, g: Array, m: Array, v: Array, t: int, lr: float, betas: tuple[float, float], eps: float) -> None:
    """θ ← θ - ηₜ m/(√v + εₜ) with ηₜ = η c/(1 - β₁ᵗ), εₜ = ε c and c = √(1 - β₂ᵗ), which is one pass fewer."""
    beta1, beta2 = betas
    correction = math.sqrt(1 - beta2**t)  # c
    scratch = xp.multiply(g, 1 - beta1, out=empty(g.shape, m.dtype))
    m *= beta1
    m += scratch
    xp.multiply(g, g, out=scratch)
    scratch *= 1 - beta2
    v *= beta2
    v += scratch
    xp.sqrt(v, out=scratch)
    scratch += eps * correction
    xp.divide(m, scratch, out=scratch)
    scratch *= lr * correction / (1 - beta1**t)
    p -= scratch
