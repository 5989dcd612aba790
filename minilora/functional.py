"""The non-linear and the fused operations, each with its hand-derived backward right beside it.

Letters: B batch · T time (query positions) · S keys · D `d_model` · H heads · V vocabulary · M all leading
axes together. In every `backward`, `g` is the gradient of the loss with respect to the result.

Large results go into `empty(...)`, a block used before where one is free; `out=` and the in-place
operators keep the number of passes over memory small. What is saved for the backward depends on who
needs a gradient: with a frozen weight nothing is kept, or computed, for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .autograd import Array, Scatter, Tensor, as_tensor, needs_grad, record
from .backend import asarray, backend_name, empty, matmul, matmul_over_rows, multiplies, to_numpy, xp

# ---- elementwise -------------------------------------------------------------------------------------


def relu(x: Tensor) -> Tensor:
    """max(x, 0); the derivative at 0 is taken as 0."""
    x = as_tensor(x)
    positive = x.array > 0

    def backward(g: Array) -> tuple[Array]:
        return (xp.where(positive, g, 0),)  # not g * positive, which is NaN where g is infinite

    return record(xp.maximum(x.array, 0), (x,), backward)


def tanh(x: Tensor) -> Tensor:
    """d tanh(x)/dx = 1 - tanh²(x)."""
    x = as_tensor(x)
    y = xp.tanh(x.array)

    def backward(g: Array) -> tuple[Array]:
        return (g * (1 - y * y),)

    return record(y, (x,), backward)


def exp(x: Tensor) -> Tensor:
    """d exp(x)/dx = exp(x)."""
    x = as_tensor(x)
    y = xp.exp(x.array)

    def backward(g: Array) -> tuple[Array]:
        return (g * y,)

    return record(y, (x,), backward)


def log(x: Tensor) -> Tensor:
    """The natural logarithm; d log(x)/dx = 1/x."""
    x = as_tensor(x)
    saved = x.array

    def backward(g: Array) -> tuple[Array]:
        return (g / saved,)

    return record(xp.log(saved), (x,), backward)


def sqrt(x: Tensor) -> Tensor:
    """d √x/dx = 1/(2√x)."""
    x = as_tensor(x)
    y = xp.sqrt(x.array)

    def backward(g: Array) -> tuple[Array]:
        return (g / (2 * y),)

    return record(y, (x,), backward)


def gelu(x: Tensor) -> Tensor:
    """x · h with h = ½(1 + tanh u) and u = √(2/π)(x + 0.044715 x³), GPT-2's form of GELU.

    The derivative is h + 2x h(1 - h)u′ with u′ = √(2/π)(1 + 3 · 0.044715 x²). It is computed in the forward,
    while everything it needs is at hand: one array is kept instead of two.
    """
    x = as_tensor(x)
    y = empty(x.shape, x.dtype)
    derivative = empty(x.shape, x.dtype) if needs_grad(x) else None
    flat_x, flat_y = x.array.reshape(-1), y.reshape(-1)
    flat_derivative = None if derivative is None else derivative.reshape(-1)
    # Block by block, so that the fifteen passes stay in the cache: 1.3 to 1.5 times as fast. A GPU takes all at once.
    step = _BLOCK if backend_name() == "numpy" else max(1, x.size)
    for start in range(0, x.size, step):
        block = slice(start, start + step)
        _gelu_block(flat_x[block], flat_y[block], None if flat_derivative is None else flat_derivative[block])

    def backward(g: Array) -> tuple[Array]:
        return (xp.multiply(g, derivative, out=empty(g.shape, g.dtype)),)

    return record(y, (x,), backward)


_BLOCK = 64 * 1024  # numbers; a few arrays of them fit into the second-level cache of a core


def _gelu_block(x: Array, h: Array, derivative: Array | None) -> None:
    """Write x · h over h, and the derivative, for one block."""
    c, k = math.sqrt(2 / math.pi), 0.044715 * math.sqrt(2 / math.pi)
    square = xp.multiply(x, x, out=empty(x.shape, x.dtype))
    xp.multiply(square, k, out=h)
    h += c
    h *= x  # u = cx + kx³
    xp.tanh(h, out=h)
    h *= 0.5
    h += 0.5
    if derivative is not None:
        square *= 6 * k
        square += 2 * c
        square *= x  # 2x u′
        xp.subtract(1, h, out=derivative)
        derivative *= square
        derivative += 1
        derivative *= h  # h(1 + 2x(1 - h)u′)
    h *= x


def dropout(x: Tensor, p: float, rng: np.random.Generator) -> Tensor:
    """Zero each entry with probability p and scale the others by 1/(1 - p); p = 0 changes nothing.

    Raises `ValueError` unless 0 <= p < 1.
    """
    x = as_tensor(x)
    if not 0 <= p < 1:
        raise ValueError(f"The dropout probability must be at least 0 and less than 1, not {p}.")
    if p == 0:
        return x
    keep = dropout_mask(x.shape, p, rng, x.dtype)

    def backward(g: Array) -> tuple[Array]:
        return (g * keep,)

    return record(x.array * keep, (x,), backward)


def dropout_mask(shape: tuple[int, ...], p: float, rng: np.random.Generator, dtype: Any) -> Array:
    """0 with probability p, else 1/(1 - p); drawn on the CPU."""
    return asarray((rng.random(shape, dtype=np.float32) >= p) / (1 - p), dtype=dtype)


# ---- softmax and cross-entropy, over the last axis ---------------------------------------------------


def softmax(x: Tensor) -> Tensor:
    """y = exp(x)/Σ exp(x); dx = y(g - Σ g y)."""
    x = as_tensor(x)
    y = _softmax(x.array)

    def backward(g: Array) -> tuple[Array]:
        return (y * (g - (g * y).sum(axis=-1, keepdims=True)),)

    return record(y, (x,), backward)


def log_softmax(x: Tensor) -> Tensor:
    """y = x - log Σ exp(x); dx = g - exp(y) Σ g."""
    x = as_tensor(x)
    shifted = x.array - x.array.max(axis=-1, keepdims=True)
    y = shifted - xp.log(xp.exp(shifted).sum(axis=-1, keepdims=True))

    def backward(g: Array) -> tuple[Array]:
        return (g - xp.exp(y) * g.sum(axis=-1, keepdims=True),)

    return record(y, (x,), backward)


def _softmax(x: Array) -> Array:
    y = xp.subtract(x, x.max(axis=-1, keepdims=True), out=empty(x.shape, x.dtype))
    xp.exp(y, out=y)
    y /= y.sum(axis=-1, keepdims=True)
    return y


@multiplies
def cross_entropy(logits: Tensor, targets: Any, ignore_index: int = -100, reduction: str = "mean") -> Tensor:
    """Mean of -log softmax(logits)[target] over the targets that are not `ignore_index`, in nats; or their "sum".

    logits (..., V), targets (...) integers. dlogits = (softmax - one-hot)/count, zero where ignored; for the sum it is
    not divided. Means of parts with different counts do not average to the mean of the whole; sums add up to it.
    Raises `TypeError` for targets that are not integers, `ValueError` where the shapes differ, a target
    is outside 0 ... V-1, none is left to average over, or for another reduction.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f'reduction must be "mean" or "sum", not {reduction!r}.')
    logits = as_tensor(logits)
    V = logits.shape[-1]
    host = _integers(targets, "targets")
    if host.shape != logits.shape[:-1]:
        raise ValueError(f"Targets of shape {host.shape} do not fit logits of shape {logits.shape}.")
    host = host.reshape(-1)
    counted = host != ignore_index
    count = int(counted.sum())
    if count == 0 and reduction == "mean":
        raise ValueError(f"The loss has no target to average over: all {host.size} are ignored ({ignore_index}).")
    _check_range(host[counted], V, "target")

    # Only the rows that count are looked at: for LoRA on answers that is half of them.
    rows = None if count == host.size else asarray(np.flatnonzero(counted))
    target = asarray(host[counted])
    flat = logits.array.reshape(-1, V)
    picked = flat if rows is None else flat[rows]  # (M, V) -> (count, V)
    probability = xp.subtract(picked, picked.max(axis=-1, keepdims=True), out=empty(picked.shape, flat.dtype))
    at_target = probability[xp.arange(count), target]
    xp.exp(probability, out=probability)
    total = (probability @ _column(1.0, V, flat.dtype))[:, 0]  # a sum over V, five times as fast as sum(axis=-1)
    divisor = count if reduction == "mean" else 1
    loss = (xp.log(total) - at_target).sum() / divisor
    shape, flat_shape, dtype = logits.shape, flat.shape, flat.dtype

    def backward(g: Array) -> tuple[Array]:
        scale = g / divisor
        d = xp.multiply(probability, (scale / total)[:, None], out=empty(probability.shape, dtype))
        d[xp.arange(count), target] -= scale
        if rows is not None:
            picked, d = d, xp.zeros(flat_shape, dtype=d.dtype)
            d[rows] = picked
        return (d.reshape(shape),)

    return record(xp.asarray(loss, dtype=flat.dtype), (logits,), backward)


# ---- layers ------------------------------------------------------------------------------------------


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x Wᵀ + b: x (..., in), weight (out, in), bias (out,) -> (..., out).

    dx = g W, dW = gᵀ x, db = Σ g. Raises `ValueError` where the shapes do not fit.
    """
    x = as_tensor(x)
    if weight.ndim != 2 or x.ndim == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"linear() needs x (..., in) and weight (out, in); these are {x.shape} and {weight.shape}.")
    parents = (x, weight) if bias is None else (x, weight, bias)
    rows = x.array.reshape(-1, x.shape[-1])  # (..., in) -> (M, in)
    y = matmul(rows, weight.array.T)  # (M, in) @ (in, out) -> (M, out)
    if bias is not None:
        y += bias.array
    shape = x.shape
    saved_rows = rows if weight.requires_grad else None
    saved_weight = weight.array if x.requires_grad else None
    bias_needs_grad, count = bias is not None and bias.requires_grad, len(parents)

    def backward(g: Array) -> tuple[Array | None, ...]:
        g = g.reshape(-1, g.shape[-1])  # (..., out) -> (M, out)
        dx = None if saved_weight is None else matmul(g, saved_weight).reshape(shape)
        dw = None if saved_rows is None else matmul_over_rows(g, saved_rows)  # (out, M) @ (M, in) -> (out, in)
        db = sum_rows(g) if bias_needs_grad else None
        return (dx, dw, db)[:count]

    return record(y.reshape(*shape[:-1], y.shape[-1]), parents, backward)


@multiplies
def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """y = x̂ w + b with x̂ = (x - mean)/√(var + ε), over the last axis; weight and bias (D,).

    dx = (h - mean(h) - x̂ mean(h x̂))/√(var + ε) with h = g w; dw = Σ g x̂; db = Σ g.
    Raises `ValueError` where the shapes do not fit.
    """
    x = as_tensor(x)
    D = x.shape[-1] if x.ndim else 0
    if weight.shape != (D,) or bias.shape != (D,):
        raise ValueError(
            f"layer_norm() needs x (..., D), weight (D,) and bias (D,); "
            f"these are {x.shape}, {weight.shape} and {bias.shape}."
        )
    rows = x.array.reshape(-1, D)
    # A product with a column of 1/D is the mean, five times as fast as mean(axis=-1).
    x_hat = xp.subtract(rows, rows @ _column(1 / D, D, rows.dtype), out=empty(rows.shape, rows.dtype))
    r_std = 1 / xp.sqrt(xp.einsum("md,md->m", x_hat, x_hat) / D + float(eps))[:, None]  # (M, 1)
    x_hat *= r_std
    y = xp.multiply(x_hat, weight.array, out=empty(rows.shape, rows.dtype))
    y += bias.array
    shape, w = x.shape, weight.array
    x_needs, w_needs, b_needs = x.requires_grad, weight.requires_grad, bias.requires_grad

    def backward(g: Array) -> tuple[Array | None, ...]:
        g = g.reshape(-1, D)
        dx = dw = None
        if w_needs:
            dw = xp.einsum("md,md->d", g, x_hat)  # without the array of products: twice as fast
        if x_needs:
            dx = xp.multiply(g, w, out=empty(g.shape, g.dtype))  # h
            correlation = xp.einsum("md,md->m", dx, x_hat)[:, None] / D  # mean(h x̂), (M, 1)
            dx -= dx @ _column(1 / D, D, dx.dtype)
            dx -= xp.multiply(x_hat, correlation, out=empty(g.shape, g.dtype))
            dx *= r_std
            dx = dx.reshape(shape)
        return dx, dw, sum_rows(g) if b_needs else None

    return record(y.reshape(shape), (x, weight, bias), backward)


def embedding(weight: Tensor, ids: Any) -> Tensor:
    """Rows of weight (V, D) at integer ids (...) -> (..., D); dW adds each row's gradient to its id.

    Raises `TypeError` for ids that are not integers, `ValueError` for one outside 0 ... V-1.
    """
    V, D = weight.shape
    host = _integers(ids, "ids")
    _check_range(host, V, "id")
    flat = host.flatten()  # a copy: the caller may write into ids before the backward

    def backward(g: Array) -> tuple[Array]:
        return (Scatter(flat, V)(g.reshape(-1, D)),)

    return record(weight.array[asarray(flat)].reshape(*host.shape, D), (weight,), backward)


def concatenate(tensors: Sequence[Tensor], axis: int) -> Tensor:
    """One after the other along `axis`; every part gets its own stretch of the gradient."""
    parts = [as_tensor(x) for x in tensors]
    ends = np.cumsum([x.shape[axis] for x in parts])[:-1].tolist()

    def backward(g: Array) -> tuple[Array, ...]:
        return tuple(xp.split(g, ends, axis=axis))

    return record(xp.concatenate([x.array for x in parts], axis=axis), parts, backward)


@multiplies
def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ/√(D/H)) v, where query t sees keys 0 ... t + S - T.

    q (B, H, T, D/H), k and v (B, H, S, D/H), S >= T -> (B, H, T, D/H). With P the probabilities:
    dv = Pᵀ g, dP = g vᵀ, dScores = P(dP - Σ g·y), dq = dScores k/√(D/H), dk = dScoresᵀ q/√(D/H).

    Queries go in blocks, and each block meets only the keys that its last query sees: half of all pairs are
    never computed in a long sequence. 1/√(D/H) goes into the small factor of a product. The scores are stored keys x
    queries, with the heads next to the queries in memory, so that the sums of the softmax run along long contiguous
    rows: three times as fast. Results are laid out (B, T, H, D/H), so that merging heads is free. Raises `ValueError`
    where the shapes do not fit.
    """
    q, k, v = as_tensor(q), as_tensor(k), as_tensor(v)
    if q.ndim != 4 or k.shape != v.shape or k.shape[:2] + k.shape[3:] != q.shape[:2] + q.shape[3:]:
        raise ValueError(
            f"causal_attention() needs q (B, H, T, D/H) and k, v (B, H, S, D/H); "
            f"these are {q.shape}, {k.shape} and {v.shape}."
        )
    B, H, T, d = q.shape
    S = k.shape[2]
    if S < T:
        raise ValueError(f"Each of the {T} queries needs a key at its own position; there are only {S} keys.")
    scale, dtype = 1 / math.sqrt(d), q.dtype
    queries, keys, values, y = q.array, k.array, v.array, _heads(B, H, T, d, dtype)
    blocks = []  # (queries, keys they see, P) of each block
    for start in range(0, T, _QUERIES):
        block = slice(start, min(start + _QUERIES, T))
        seen = slice(block.stop + S - T)
        n = block.stop - start
        # (B, H, S, D/H) @ (B, H, D/H, T) -> (B, H, S, T)
        p = _heads(B, H, seen.stop, n, dtype)
        xp.matmul(keys[:, :, seen], _scaled_columns(queries[:, :, block], scale), out=p)
        p[:, :, seen.stop - n :] += _causal_mask(n, H, dtype)
        p -= p.max(axis=-2, keepdims=True)
        xp.exp(p, out=p)
        p *= 1 / xp.matmul(xp.ones((1, seen.stop), dtype), p)  # a sum over keys, three times as fast as sum(axis=-2)
        # (B, H, T, S) @ (B, H, S, D/H) -> (B, H, T, D/H)
        xp.matmul(p.swapaxes(-1, -2), values[:, :, seen], out=y[:, :, block])
        blocks.append((block, seen, p))
    q_needs, k_needs, v_needs = q.requires_grad, k.requires_grad, v.requires_grad

    def backward(g: Array) -> tuple[Array | None, ...]:
        dq = _heads(B, H, T, d, dtype) if q_needs else None
        dk = _heads(B, H, S, d, dtype) if k_needs else None
        dv = _heads(B, H, S, d, dtype) if v_needs else None
        correlation = xp.einsum("bhtd,bhtd->bht", g, y)[:, :, None, :] * scale  # Σ over keys of P dP, from its result
        # From the last block, which sees every key and so starts the sums over queries.
        for block, seen, p in reversed(blocks):
            g_block = g[:, :, block]
            if dv is not None:
                _add_product(dv, seen, p, g_block)  # (B, H, S, T) @ (B, H, T, D/H) -> (B, H, S, D/H)
            if dq is None and dk is None:
                continue
            ds = _heads(B, H, p.shape[2], p.shape[3], dtype)
            xp.matmul(values[:, :, seen], _scaled_columns(g_block, scale), out=ds)  # dP/√(D/H)
            ds -= correlation[..., block]
            ds *= p
            if dq is not None:
                xp.matmul(ds.swapaxes(-1, -2), keys[:, :, seen], out=dq[:, :, block])
            if dk is not None:
                _add_product(dk, seen, ds, queries[:, :, block])
        return dq, dk, dv

    return record(y, (q, k, v), backward)


_QUERIES = 32  # in a block


# ---- helpers -----------------------------------------------------------------------------------------


def sum_rows(x: Array) -> Array:
    """(M, D) -> (D,), as a product with ones, three times as fast as sum(axis=0)."""
    return (_column(1.0, x.shape[0], x.dtype).T @ x)[0]


def _column(value: float, count: int, dtype: Any) -> Array:
    """(count, 1), each entry `value`."""
    return xp.full((count, 1), value, dtype=dtype)


def _heads(B: int, H: int, T: int, d: int, dtype: Any) -> Array:
    """An empty (B, H, T, d) whose memory is ordered (B, T, H, d)."""
    return empty((B, T, H, d), dtype).transpose(0, 2, 1, 3)


def _scaled_columns(x: Array, scale: float) -> Array:
    """(B, H, T, D/H) -> scale times it as (B, H, D/H, T): a product with rows on its right is twice as fast."""
    B, H, T, d = x.shape
    return xp.multiply(x.swapaxes(-1, -2), scale, out=empty((B, H, d, T), x.dtype))


def _causal_mask(n: int, H: int, dtype: Any) -> Array:
    """(H, n, n): 0 where query t, a column, sees key s <= t, else -inf. Laid out like the scores, to be added fast."""
    positions = xp.arange(n)
    mask = _heads(1, H, n, n, dtype)[0]
    mask[...] = xp.where(positions[:, None] <= positions, 0.0, -xp.inf)
    return mask


def _add_product(total: Array, seen: slice, a: Array, b: Array) -> None:
    """Add a @ b to total (B, H, S, D/H) over the keys seen; the first product sees all of them, and sets it."""
    if seen.stop == total.shape[2]:
        xp.matmul(a, b, out=total)
    else:
        total[:, :, seen] += xp.matmul(a, b)


def _integers(values: Any, name: str) -> np.ndarray:
    """Ids or targets as a NumPy array: they are checked on the CPU, since a GPU would wrap them silently."""
    host = to_numpy(values.array if isinstance(values, Tensor) else values)
    if host.dtype.kind not in "iu":
        raise TypeError(f"The {name} must be integers, not {host.dtype}.")
    return host


def _check_range(ids: np.ndarray, count: int, name: str) -> None:
    if ids.size and (ids.min() < 0 or ids.max() >= count):
        wrong = ids[(ids < 0) | (ids >= count)][0]
        raise ValueError(f"The {name} {wrong} is outside the vocabulary of {count}: use 0 to {count - 1}.")
