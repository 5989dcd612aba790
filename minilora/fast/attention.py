"""Causal attention, a few queries at a time."""

from __future__ import annotations

import math
from typing import Any

from ..autograd import Array, Tensor, as_tensor, record
from ..backend import xp
from ..checks import check_attention
from .memory import empty
from .walk import together


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """With P the probabilities: dv = Pᵀ g, dP = g vᵀ, dScores = P(dP - Σ g·y), dq = dScores k/√(D/H),
    dk = dScoresᵀ q/√(D/H).

    Queries go in chunks, and each chunk meets only the keys that its last query sees: half of all pairs are
    never computed in a long sequence. 1/√(D/H) goes into the small factor of a product. The scores are stored keys x
    queries, with the heads next to the queries in memory, so that the sums of the softmax run along long contiguous
    rows: three times as fast. Results are laid out (B, T, H, D/H), so that merging heads is free.
    """
    q, k, v = as_tensor(q), as_tensor(k), as_tensor(v)
    check_attention(q, k, v)
    B, H, T, d = q.shape
    S = k.shape[2]
    scale, dtype = 1 / math.sqrt(d), q.dtype
    queries, keys, values, y = q.array, k.array, v.array, _heads(B, H, T, d, dtype)
    chunks = []  # (queries, keys they see, P) of each
    for start in range(0, T, QUERIES):
        chunk = slice(start, min(start + QUERIES, T))
        seen = slice(chunk.stop + S - T)
        n = chunk.stop - start
        # (B, H, S, D/H) @ (B, H, D/H, T) -> (B, H, S, T)
        p = _heads(B, H, seen.stop, n, dtype)
        xp.matmul(keys[:, :, seen], _scaled_columns(queries[:, :, chunk], scale), out=p)
        p[:, :, seen.stop - n :] += _causal_mask(n, H, dtype)
        p -= p.max(axis=-2, keepdims=True)
        xp.exp(p, out=p)
        p *= 1 / xp.matmul(xp.ones((1, seen.stop), dtype), p)  # a sum over keys, three times as fast as sum(axis=-2)
        # (B, H, T, S) @ (B, H, S, D/H) -> (B, H, T, D/H)
        xp.matmul(p.swapaxes(-1, -2), values[:, :, seen], out=y[:, :, chunk])
        chunks.append((chunk, seen, p))
    q_needs, k_needs, v_needs = q.requires_grad, k.requires_grad, v.requires_grad

    def backward(g: Array) -> tuple[Array | None, ...]:
        dq = _heads(B, H, T, d, dtype) if q_needs else None
        dk = _heads(B, H, S, d, dtype) if k_needs else None
        dv = _heads(B, H, S, d, dtype) if v_needs else None
        correlation = xp.einsum("bhtd,bhtd->bht", g, y)[:, :, None, :] * scale  # Σ over keys of P dP, from its result
        # From the last chunk, which sees every key and so starts the sums over queries.
        for chunk, seen, p in reversed(chunks):
            g_chunk = g[:, :, chunk]
            if dv is not None:
                _add_product(dv, seen, p, g_chunk)  # (B, H, S, T) @ (B, H, T, D/H) -> (B, H, S, D/H)
            if dq is None and dk is None:
                continue
            ds = _heads(B, H, p.shape[2], p.shape[3], dtype)
            xp.matmul(values[:, :, seen], _scaled_columns(g_chunk, scale), out=ds)  # dP/√(D/H)
            ds -= correlation[..., chunk]
            ds *= p
            if dq is not None:
                xp.matmul(ds.swapaxes(-1, -2), keys[:, :, seen], out=dq[:, :, chunk])
            if dk is not None:
                _add_product(dk, seen, ds, queries[:, :, chunk])
        return dq, dk, dv

    return record(y, *together((q, k, v), backward))


QUERIES = 32  # in a chunk


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
