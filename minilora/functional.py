"""The operations of a transformer, as the formulas say: each with the rule of every input beside it, or composed of
operations that have theirs. In every rule, g is the gradient of the loss with respect to the result; the walk sums it
over the axes along which an input was repeated. Where `@operation` stands, a kernel with the same numbers may run.
Letters: B batch · T time (query positions) · S keys · D `d_model` · H heads · V vocabulary.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import checks
from .autograd import Array, Tensor, as_tensor, operation, record
from .backend import asarray, xp

# ---- elementwise -------------------------------------------------------------------------------------


def relu(x: Tensor) -> Tensor:
    """max(x, 0); the derivative at 0 is taken as 0."""
    x = as_tensor(x)
    positive = x.array > 0
    return record(xp.maximum(x.array, 0), (x, lambda g: xp.where(positive, g, 0)))  # not g · 0: ∞ · 0 would be NaN


def tanh(x: Tensor) -> Tensor:
    """d tanh(x)/dx = 1 - tanh²(x)."""
    x = as_tensor(x)
    y = xp.tanh(x.array)
    return record(y, (x, lambda g: g * (1 - y * y)))


def exp(x: Tensor) -> Tensor:
    """d exp(x)/dx = exp(x)."""
    x = as_tensor(x)
    y = xp.exp(x.array)
    return record(y, (x, lambda g: g * y))


def log(x: Tensor) -> Tensor:
    """The natural logarithm; d log(x)/dx = 1/x."""
    x = as_tensor(x)
    a = x.array
    return record(xp.log(a), (x, lambda g: g / a))


def sqrt(x: Tensor) -> Tensor:
    """d √x/dx = 1/(2√x)."""
    x = as_tensor(x)
    y = xp.sqrt(x.array)
    return record(y, (x, lambda g: g / (2 * y)))


@operation
def gelu(x: Tensor) -> Tensor:
    """x · h with h = ½(1 + tanh u) and u = c(x + k x³), GPT-2's form of GELU; h + 2x h(1 - h)u′ is its derivative."""
    x = as_tensor(x)
    a, c, k = x.array, math.sqrt(2 / math.pi), 0.044715
    h = 0.5 * (1 + xp.tanh(c * (a + k * a * a**2)))  # a**3 would call pow, which is slow
    return record(a * h, (x, lambda g: g * (h + 2 * a * h * (1 - h) * c * (1 + 3 * k * a**2))))


def dropout(x: Tensor, p: float, rng: np.random.Generator) -> Tensor:
    """Zero each entry with probability p, 0 <= p < 1, and scale the others by 1/(1 - p); drawn on the CPU."""
    x = as_tensor(x)
    checks.check_probability(p)
    if p == 0:
        return x
    keep = asarray((rng.random(x.shape, dtype=np.float32) >= p) / (1 - p), dtype=x.dtype)
    return record(x.array * keep, (x, lambda g: g * keep))


# ---- softmax and cross-entropy, over the last axis ---------------------------------------------------


def softmax(x: Tensor) -> Tensor:
    """y = exp(x)/Σ exp(x); dx = y(g - Σ g y). With the largest x subtracted first, exp cannot overflow."""
    x = as_tensor(x)
    e = xp.exp(x.array - x.array.max(axis=-1, keepdims=True))
    y = e / e.sum(axis=-1, keepdims=True)
    return record(y, (x, lambda g: y * (g - (g * y).sum(axis=-1, keepdims=True))))


def log_softmax(x: Tensor) -> Tensor:
    """y = x - log Σ exp(x); dx = g - exp(y) Σ g."""
    x = as_tensor(x)
    shifted = x.array - x.array.max(axis=-1, keepdims=True)
    y = shifted - xp.log(xp.exp(shifted).sum(axis=-1, keepdims=True))
    return record(y, (x, lambda g: g - xp.exp(y) * g.sum(axis=-1, keepdims=True)))


@operation
def cross_entropy(logits: Tensor, targets: Any, ignore_index: int = -100, reduction: str = "mean") -> Tensor:
    """Mean of -log softmax(logits)[target] over the targets that are not `ignore_index`, in nats; or their "sum".

    logits (..., V), targets (...) integers, 0 to V-1. Means of parts with different counts do not average to the mean
    of the whole; sums add up to it. Raises `ValueError` where no target is left to average over.
    """
    logits = as_tensor(logits)
    targets, counted = checks.check_targets(targets, logits.shape, ignore_index, reduction)
    places = np.flatnonzero(counted)
    log_p = log_softmax(logits).reshape(-1, logits.shape[-1])  # (..., V) -> (N, V)
    total = -log_p[places, targets[places]].sum()
    return total * (1 / len(places)) if reduction == "mean" else total


# ---- layers ------------------------------------------------------------------------------------------


@operation
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x Wᵀ + b: x (..., in), weight (out, in), bias (out,) -> (..., out).

    dx = g W, dW = gᵀ x, db = Σ g.
    """
    x = as_tensor(x)
    checks.check_linear(x, weight)
    y = x @ weight.transpose()  # (..., in) @ (in, out) -> (..., out)
    return y if bias is None else y + bias


@operation
def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """y = x̂ w + b with x̂ = (x - mean)/√(var + ε), over the last axis; weight and bias (D,).

    dx = (h - mean(h) - x̂ mean(h x̂))/√(var + ε) with h = g w: a shift or a stretch of x changes no x̂. dw = Σ g x̂ and
    db = Σ g, over all rows. Raises `ValueError` where the shapes do not fit.
    """
    x = as_tensor(x)
    checks.check_layer_norm(x, weight, bias)
    a, w = x.array, weight.array
    centred = a - a.mean(axis=-1, keepdims=True)
    r_std = 1 / xp.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps)
    x_hat = centred * r_std

    def dx(g: Array) -> Array:
        h = g * w
        return (h - h.mean(axis=-1, keepdims=True) - x_hat * (h * x_hat).mean(axis=-1, keepdims=True)) * r_std

    return record(x_hat * w + bias.array, (x, dx), (weight, lambda g: g * x_hat), (bias, lambda g: g))


@operation
def embedding(weight: Tensor, ids: Any) -> Tensor:
    """Rows of weight (V, D) at integer ids (...), 0 to V-1 -> (..., D); a row named twice gets both gradients."""
    return weight[checks.check_ids(ids, len(weight))]


def concatenate(tensors: Sequence[Tensor], axis: int) -> Tensor:
    """One after the other along `axis`; every part gets its own stretch of the gradient."""
    parts = [as_tensor(x) for x in tensors]
    ends = np.cumsum([x.shape[axis] for x in parts])[:-1].tolist()
    rules = [lambda g, i=i: xp.split(g, ends, axis=axis)[i] for i in range(len(parts))]  # i=i: the i of now
    return record(xp.concatenate([x.array for x in parts], axis=axis), *zip(parts, rules, strict=True))


@operation
def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """P v with P = softmax(Z), Z = q kᵀ/√(D/H), where query t sees keys 0 ... t + S - T (S - T come from a cache).

    dv = Pᵀg, dP = g vᵀ, dZ = P(dP - Σ P dP), dq = dZ k/√(D/H), dk = dZᵀq/√(D/H): what the operations below come to.
    q (B, H, T, D/H), k and v (B, H, S, D/H), S >= T -> (B, H, T, D/H). Raises `ValueError` where the shapes do not fit.
    """
    q, k, v = as_tensor(q), as_tensor(k), as_tensor(v)
    checks.check_attention(q, k, v)
    (T, d), S = q.shape[2:], k.shape[2]
    future = asarray(np.triu(np.full((T, S), -np.inf), 1 + S - T), dtype=q.dtype)  # exp(-inf) = 0: it is not seen
    scores = q @ k.transpose(0, 1, 3, 2) * (1 / math.sqrt(d))  # (B, H, T, D/H) @ (B, H, D/H, S) -> (B, H, T, S)
    return softmax(scores + future) @ v  # (B, H, T, S) @ (B, H, S, D/H) -> (B, H, T, D/H)
