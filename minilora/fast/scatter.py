"""Taking entries and rows, and adding their gradients to where they came from."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..autograd import Array, Tensor, record
from ..backend import asarray, xp
from ..checks import check_ids, host_index


class Scatter:
    """Adds each of N rows to the place that its id names: rows (N, ...), ids (N,) -> (count, ...).

    The ids are sorted once, on the CPU, where they come from; then each run of equal ones is summed. That is four times
    as fast as `add.at`, always in the same order, and on a GPU nothing waits.
    """

    def __init__(self, ids: np.ndarray, count: int) -> None:
        order = np.argsort(ids, kind="stable")
        ids = ids[order]
        starts = np.flatnonzero(np.concatenate((np.ones(min(1, ids.size), dtype=bool), ids[1:] != ids[:-1])))
        self.order, self.starts, self.places = asarray(order), asarray(starts), asarray(ids[starts])
        self.count = count

    def __call__(self, rows: Array) -> Array:
        out = xp.zeros((self.count, *rows.shape[1:]), dtype=rows.dtype)
        if self.order.size:
            out[self.places] = xp.add.reduceat(rows[self.order], self.starts, axis=0)
        return out


def getitem(self: Tensor, index: Any) -> Tensor:
    """Slices as views, since they name no entry twice."""
    shape, dtype, index = self.shape, self.dtype, host_index(index)
    if not _is_basic(index):
        entries = np.arange(self.size).reshape(shape)[index]  # refuses what is outside
        size = int(np.prod(shape))
        return record(
            self.array.reshape(-1)[asarray(entries)],
            (self, lambda g: Scatter(entries.reshape(-1), size)(g.reshape(-1)).reshape(shape)),
        )

    def rule(g: Array) -> Array:
        dx = xp.zeros(shape, dtype=dtype)
        dx[index] = g
        return dx

    return record(self.array[index], (self, rule), view=True)


def _is_basic(index: Any) -> bool:
    """Whether an index can name no entry twice: integers, slices, None and ... only."""
    parts = index if isinstance(index, tuple) else (index,)
    return all(p is None or p is Ellipsis or isinstance(p, (int, np.integer, slice)) for p in parts)


def embedding(weight: Tensor, ids: Any) -> Tensor:
    V, D = weight.shape
    host = check_ids(ids, V)
    flat = host.reshape(-1)
    return record(
        weight.array[asarray(flat)].reshape(*host.shape, D),
        (weight, lambda g: Scatter(flat, V)(g.reshape(-1, D))),
    )
