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


# Student's t, the one-sided quantiles of 1 to 10 degrees of freedom; more bases are judged by the last, which is a
# little too strict for them.
T95 = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812)
T995 = (63.66, 9.925, 5.841, 4.604, 4.032, 3.707, 3.499, 3.355, 3.250, 3.169)


def margin(values: Sequence[float], quantiles: Sequence[float] = T95) -> float:
    """How far a mean may be off at that quantile of Student's t; infinitely for a single value, which tells nothing."""
    freedom = len(values) - 1
    if freedom < 1:
        return math.inf
    return quantiles[min(freedom, len(quantiles)) - 1] * deviation(values) / math.sqrt(len(values))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 90 % interval of the mean: on either side of it lies 5 %."""
    return mean(values) - margin(values), mean(values) + margin(values)


def quartiles_of(rounds: Sequence[float]) -> tuple[float, float, float]:
    """The lower quartile, the median and the upper quartile."""
    low, middle, high = np.quantile(rounds, (0.25, 0.5, 0.75)).tolist()
    return low, middle, high


def median_interval(values: Sequence[float], level: float = 0.05) -> tuple[float, float]:
    """Between two of the values in order, so that the median lies on either side of it with `level` at most.

    Whatever their distribution: of n independent values fewer than k are below the median with the probability that n
    coins show fewer than k heads. Too few values say nothing.
    """
    n, k, below = len(values), 0, 0
    while below + math.comb(n, k) <= level * 2**n:
        below, k = below + math.comb(n, k), k + 1
    ordered = sorted(values)
    return (ordered[k - 1], ordered[n - k]) if k else (-math.inf, math.inf)


def log_odds(share: float, count: int = 512) -> float:
    """log₂ of right over wrong among so many held-out examples, half of one added to either."""
    right = share * count
    return math.log2((right + 0.5) / (count - right + 0.5))


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
