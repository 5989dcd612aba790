"""The rules of verdicts: of what scatters by its mean over bases, of what is exact by every value alone."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence

from .claim import FAILS, HOLDS, NOISE, UNDECIDED, Rule
from .measures import T95, T995, margin, mean, median_interval

NEAR = 0.02  # bits on strings
NEAR_IN_WORDS = f"({NEAR} bits: two or three wrong answers in a hundred)"
_SURELY = "by the 90 % interval of the mean over bases"


def at_least(limit: float) -> Rule:
    """The mean over bases reaches the limit.

    It holds where the whole 90 % interval does, and so errs once in twenty. It does not hold where the 99 % interval
    misses it: one part is enough for a claim not to hold, so that each of its ten or so may err in one of two hundred.
    Between the two it is within noise; one base decides nothing.
    """
    return Rule("is at least {}", limit, _at_least, _SURELY)


def at_most(limit: float) -> Rule:
    """The mean over bases stays below the limit, in the same way."""
    return Rule("is at most {}", limit, lambda values, most: _at_least([most - v for v in values], 0), _SURELY)


def median_at_most(limit: float) -> Rule:
    """Of a clock's ratios, round by round: the interval of the median stays at or below the limit, lies above it, or
    has it inside, which is noise. To say that it does not hold takes the wider interval, as over bases."""
    return Rule("is at most {} in the median", limit, _median_at_most)


def median_at_least(limit: float) -> Rule:
    """The other way round."""
    return Rule("is at least {} in the median", limit, lambda v, least: _median_at_most([-x for x in v], -least))


def always(words: str, limit: float, fulfilled: Callable[[float, float], bool]) -> Rule:
    """Every value alone fulfils it, as equalities do."""
    return Rule(words, limit, lambda values, x: HOLDS if all(fulfilled(v, x) for v in values) else FAILS)


def always_true() -> Rule:
    """Of what is 1 where it is so."""
    return always("on every base", 1, operator.eq)


def always_equal(limit: float) -> Rule:
    return always("is {}", limit, operator.eq)


def always_above(limit: float) -> Rule:
    return always("is above {}", limit, operator.gt)


def always_within(limit: float) -> Rule:
    """For errors, which are no less than 0."""
    return always("is at most {}", limit, operator.le)


def _median_at_most(values: Sequence[float], limit: float) -> str:
    if median_interval(values)[1] <= limit:
        return HOLDS
    return FAILS if median_interval(values, 0.005)[0] > limit else NOISE


def _at_least(values: Sequence[float], limit: float) -> str:
    if not all(math.isfinite(v) for v in values):
        return FAILS
    if len(values) < 2:
        return UNDECIDED
    center = mean(values)
    if center - margin(values, T95) >= limit:
        return HOLDS
    return FAILS if center + margin(values, T995) < limit else NOISE
