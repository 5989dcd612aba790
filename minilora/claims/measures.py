"""What claims compute from runs: which of them, what of each base, mean and scatter."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .claim import Configuration, Result, Runs


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def deviation(values: Sequence[float]) -> float:
    """The sample standard deviation; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    center = mean(values)
    return math.sqrt(sum((v - center) ** 2 for v in values) / (len(values) - 1))


def percent(shares: Sequence[float]) -> str:
    """The mean of shares of 1, as a whole number of per cent."""
    return f"{100 * mean(shares):.0f}"


def standard_error(values: Sequence[float]) -> float:
    return deviation(values) / math.sqrt(len(values))


def quartiles_of(rounds: Sequence[float]) -> tuple[float, float, float]:
    """The lower quartile, the median and the upper quartile."""
    low, middle, high = np.quantile(rounds, (0.25, 0.5, 0.75)).tolist()
    return low, middle, high


def share(part: float, whole: float) -> float:
    """Of a whole that may be 0, of which no share is a number."""
    return part / whole if whole else math.nan


def relative(found: Any, wanted: Any) -> float:
    """The largest difference of two arrays, as a share of the largest entry wanted."""
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def each(fn: Callable[..., float], *values: Sequence[float]) -> list[float]:
    """fn of the values of every base; none where one of them was not run."""
    return [fn(*of_base) for of_base in zip(*values, strict=True)] if all(values) else []


def of(measure: Callable[..., Sequence[float]], *settings: Any) -> Callable[[Runs], Sequence[float]]:
    """The measure of a part, with its settings."""
    return lambda runs: measure(runs, *settings)


def select(runs: Runs, **wanted: Any) -> list[tuple[Configuration, Result]]:
    """The runs whose configuration has these values."""
    return [(c, r) for c, r in runs if all(c.get(k) == v for k, v in wanted.items())]
