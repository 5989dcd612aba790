"""Llama's operations in few passes over memory."""

from __future__ import annotations

from ..autograd import Array, Tensor, as_tensor, record
from ..backend import xp
from ..checks import check_rms_norm, check_same_shape
from .memory import empty


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    x = as_tensor(x)
    check_rms_norm(x, weight)
    D, shape, w = x.shape[-1], x.shape, weight.array
    rows = x.array.reshape(-1, D)
    r_rms = 1 / xp.sqrt(xp.einsum("md,md->m", rows, rows) / D + float(eps))[:, None]  # (M, 1)
    x_hat = xp.multiply(rows, r_rms, out=empty(rows.shape, rows.dtype))

    def dx(g: Array) -> Array:
        g = g.reshape(-1, D)
        h = xp.multiply(g, w, out=empty(g.shape, g.dtype))
        correlation = xp.einsum("md,md->m", h, x_hat)[:, None] / D  # mean(h x̂), (M, 1)
        h -= xp.multiply(x_hat, correlation, out=empty(g.shape, g.dtype))
        h *= r_rms
        return h.reshape(shape)

    y = xp.multiply(x_hat, w, out=empty(rows.shape, rows.dtype))
    return record(y.reshape(shape), (x, dx), (weight, lambda g: xp.einsum("md,md->d", g.reshape(-1, D), x_hat)))


def swiglu(a: Tensor, b: Tensor) -> Tensor:
    a, b = as_tensor(a), as_tensor(b)
    check_same_shape("swiglu", a, b)
    x, y = a.array, b.array
    s = xp.multiply(x, 0.5, out=empty(x.shape, x.dtype))
    xp.tanh(s, out=s)
    s += 1
    s *= 0.5  # σ(a)
    silu = xp.multiply(x, s, out=empty(x.shape, x.dtype))

    def da(g: Array) -> Array:
        d = xp.subtract(1, s, out=empty(x.shape, x.dtype))
        d *= silu
        d += s  # σ(1 + a(1 - σ))
        d *= y
        d *= g
        return d

    y_out = xp.multiply(silu, y, out=empty(x.shape, x.dtype))
    return record(y_out, (a, da), (b, lambda g: xp.multiply(g, silu, out=empty(x.shape, x.dtype))))
