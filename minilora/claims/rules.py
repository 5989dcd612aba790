"""The rules of verdicts: of what scatters by its mean over bases, of what is exact by every value alone."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence

from .claim import FAILS, HOLDS, NOISE, Rule
from .measures import mean, standard_error

_SURELY = "by two standard errors over bases"


def at_least(limit: float) -> Rule:
    """The mean over bases reaches the limit: by more than two standard errors, by less, or not."""
    return Rule("is at least {}", limit, _at_least, _SURELY)


def at_most(limit: float) -> Rule:
    """The mean over bases stays below the limit, in the same way."""
    return Rule("is at most {}", limit, lambda values, most: _at_least([most - v for v in values], 0), _SURELY)


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


def _at_least(values: Sequence[float], limit: float) -> str:
    margin = 2 * standard_error(values)
    center = mean(values)
    if not all(math.isfinite(v) for v in values):
        return FAILS
    if center - margin >= limit:
        return HOLDS
    return FAILS if center + margin < limit else NOISE
