"""What a sweep of learning rates says: where the loss is lowest, how wide that is, and where training breaks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PLATEAU = 0.02  # bits above the best that still count as it
CLIFF = 0.3  # bits above the best from which on a rate counts as broken, and tells nothing of where the best is


@dataclass(frozen=True)
class Optimum:
    """Of a sweep: the best rate, the ends of the plateau around it, and the largest stable rate."""

    best: float
    low: float
    high: float
    stable: float
    at_end: bool  # the best cell is an end of the grid, so that a better rate may lie beyond it


def optimum(rates: Sequence[float], losses: Sequence[float]) -> Optimum:
    """Of losses (bits) at rising rates.

    The best rate is the bottom of a parabola through the best cell and its two neighbours, over log₂ of the rate; the
    cell itself where a neighbour is missing or beyond the cliff: a loss that blew up is not part of a parabola. The
    plateau is every cell next to the best, and next to those, whose loss is at most 0.02 bits above it; the largest
    stable rate is the last one before the loss is 0.3 bits above the best. Raises `ValueError` for rates that do not
    rise, or fewer losses than rates.
    """
    if len(rates) != len(losses) or list(rates) != sorted(set(rates)):
        raise ValueError(f"A sweep has a loss for each of its rising rates, not {len(losses)} for {list(rates)}.")
    i = int(np.argmin(losses))
    least = losses[i]

    def reach(limit: float, step: int) -> int:
        """The last cell from the best one on, in that direction, of those within the limit."""
        place = i
        while 0 <= place + step < len(rates) and losses[place + step] <= least + limit:
            place += step
        return place

    at_end = i in (0, len(rates) - 1)
    return Optimum(
        best=rates[i] if at_end else _bottom(rates[i - 1 : i + 2], losses[i - 1 : i + 2]),
        low=rates[reach(PLATEAU, -1)],
        high=rates[reach(PLATEAU, 1)],
        stable=rates[reach(CLIFF, 1)],
        at_end=at_end,
    )


def _bottom(rates: Sequence[float], losses: Sequence[float]) -> float:
    """Of the parabola through three points, the middle one the lowest."""
    left, middle, right = losses
    bend = left - 2 * middle + right
    if max(left, right) > middle + CLIFF or bend <= 0:
        return rates[1]
    a, b, c = (math.log2(rate) for rate in rates)
    return 2 ** (b + 0.5 * (left - right) / bend * (c - a) / 2)
