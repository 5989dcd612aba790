"""Products: large ones cut into small ones, and sums over many rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..backend import BLAS, CONFIGURATION, library, xp
from .memory import empty

# With AVX-512, OpenBLAS has a kernel for products of at most a million multiplications that reads both matrices
# where they lie; for a larger one it first copies them, strip by strip, into an order of its own. At the sizes of a
# tiny model the copying costs more than it saves, so a large product is cut into a stack of small ones: a product
# takes 0.75 to 0.95 of the time, and a training step 0.9. That kernel wants the second matrix by rows, beginning at a
# cache line.


def _small_product() -> int:
    """How many multiplications that kernel takes at most; 0 where this NumPy or processor has none."""
    wide = {"AVX512_SKX", "X86_V4"} & set(CONFIGURATION.get("SIMD Extensions", {}).get("found", []))
    return 10**6 if wide and "openblas" in BLAS else 0


_SMALL_PRODUCT = _small_product()
_FEW_ROWS = 64  # fewer do not pay for putting the second matrix in order
_LARGE = 2**16  # entries of a gradient of weights beyond which its parts cost more to write than they save
_HEIGHT, _WIDTH, _DEPTH = 32, 64, 256  # of a tile of a gradient of weights, and the rows it sums over


def matmul(a: Any, b: Any) -> Any:
    """(M, k) @ (k, n) -> (M, n), into a buffer used before where one is free."""
    (M, k), n = a.shape, b.shape[1]
    out = empty((M, n), a.dtype if a.dtype == b.dtype else xp.result_type(a, b))
    rows = _power_of_two(_SMALL_PRODUCT // max(1, k * n))  # of one small product
    if rows < 8 or M < _FEW_ROWS or library() is not np or not a.flags.c_contiguous:
        return xp.matmul(a, b, out=out)
    right = empty(b.shape, b.dtype)
    right[...] = b
    if rows >= M:
        return np.matmul(a, right, out=out)
    whole = M - M % rows
    np.matmul(a[:whole].reshape(-1, rows, k), right, out=out[:whole].reshape(-1, rows, n))
    if whole < M:
        np.matmul(a[whole:], right, out=out[whole:])
    return out


def _power_of_two(limit: int) -> int:
    """The largest one up to a limit: it divides most batches. 0 for 0."""
    return 1 << limit.bit_length() >> 1


def matmul_over_rows(a: Any, b: Any) -> Any:
    """aᵀ b, (M, n)ᵀ @ (M, k) -> (n, k): a sum over all rows of a batch, as in a gradient of weights."""
    (M, n), k = a.shape, b.shape[1]
    out = empty((n, k), xp.result_type(a, b))
    height, width = math.gcd(n, _HEIGHT), math.gcd(k, _WIDTH)
    if M < 2 * _DEPTH or n * k > _LARGE or min(height, width) < 32 or not _SMALL_PRODUCT or library() is not np:
        return xp.matmul(a.T, b, out=out)
    whole = M - M % _DEPTH
    left = a[:whole].reshape(-1, _DEPTH, n // height, 1, height).transpose(0, 2, 3, 4, 1)
    right = b[:whole].reshape(-1, _DEPTH, 1, k // width, width).transpose(0, 2, 3, 1, 4)
    parts = empty((whole // _DEPTH, n, k), out.dtype)
    tiles = parts.reshape(-1, n // height, height, k // width, width).transpose(0, 1, 3, 2, 4)
    np.matmul(left, right, out=tiles)  # (…, height, _DEPTH) @ (…, _DEPTH, width) -> (…, height, width)
    np.matmul(np.ones(len(parts), out.dtype), parts.reshape(len(parts), -1), out=out.reshape(-1))
    if whole < M:
        out += a[whole:].T @ b[whole:]
    return out
