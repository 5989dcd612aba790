"""What a claim is: one statement of the paper, runs that test it, a rule, and a drawing.

A claim is a module with `CLAIM = Claim(...)`. Its runs are independent: each is a dictionary (the
configuration) given to an experiment, which returns a dictionary of numbers; so they can go to any process or
machine, and each is kept under its configuration once it has finished. Both dictionaries hold what JSON holds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend import synchronize
from .bases import SHIPPED

HOLDS = "holds"
FAILS = "does not hold at this scale"
NOISE = "within noise"
ILLUSTRATION = "illustration, no verdict"

BITS = 1 / math.log(2)  # of one nat

Configuration = dict[str, Any]
Result = dict[str, Any]
Runs = Sequence[tuple[Configuration, Result]]


@dataclass(frozen=True)
class Settings:
    """How much to run: `seeds` bases behind every stochastic number; `quick` for a first look at one."""

    seeds: int = 3
    quick: bool = False

    @property
    def bases(self) -> list[int]:
        """Their numbers; a quick run starts with the one that comes with the package."""
        return [SHIPPED, *range(1, self.seeds)] if self.quick else list(range(self.seeds))


WORLDS = ("strings", "text", "exact")  # "exact": equalities, and planted problems whose answer is known


@dataclass(frozen=True)
class Measurement:
    """One quantity that a claim measured: a value of each base, or of each round of a clock."""

    name: str  # in words: "share of full fine-tuning at r = 8"
    world: str  # one of WORLDS, or "time"
    values: Sequence[float]
    unit: str = ""  # "%", "bits", "ms", "bytes", or nothing for a plain number

    def as_json(self) -> dict[str, Any]:
        """Name, world, unit, mean, sample standard deviation (None for a single value), n, every value; and of a clock
        the quartiles, the median among them.

        None is what is no finite number: a share of full fine-tuning where that answered nothing.
        """
        values = [float(v) for v in self.values]
        quartiles = np.quantile(values, (0.25, 0.5, 0.75)).tolist() if self.world == "time" else None
        return {
            "name": self.name,
            "world": self.world,
            "unit": self.unit,
            "value": _finite(mean(values)),
            "deviation": _finite(deviation(values)) if len(values) > 1 else None,
            "quartiles": quartiles,
            "n": len(values),
            "values": [_finite(v) for v in values],
        }


def percent(name: str, world: str, shares: Sequence[float]) -> Measurement:
    """A measurement in percent, of shares of 1."""
    return Measurement(name, world, [100 * v for v in shares], "%")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class Outcome:
    """What a claim came to: its numbers, a line of them and their spread in words, and the verdict of its rule."""

    measured: str
    spread: str
    verdict: str
    key: str  # its key number, in at most twelve words: "r = 8 answers 99 % of full's"
    verdicts: dict[str, str]  # world -> verdict there; a world that is missing was not judged
    measurements: Sequence[Measurement]


@dataclass(frozen=True)
class Experiment:
    """What makes a run of a configuration. Raise `version` whenever the same configuration would give other numbers."""

    run: Callable[[Configuration], Result]
    version: int = 1
    alone: bool = False  # it measures time: no other run may share the machine


@dataclass(frozen=True)
class Claim:
    """One claim of the paper. `exact` claims are equalities: one base decides them, and `--quick` may too.

    A configuration with a key "experiment" goes to the shared experiment of that name, and claims that ask for the
    same run share it; any other goes to the claim's own.
    """

    id: str
    short: str  # the statement in at most eight words
    statement: str
    where: str  # in the paper
    paper: str  # what the paper reports
    rule: str  # of the verdict, decided before any run
    exact: bool
    configurations: Callable[[Settings], list[Configuration]]
    experiment: Experiment
    conclude: Callable[[Runs], Outcome]
    draw: Callable[[Runs, Any], None]  # onto a matplotlib Figure


def seconds_of(call: Callable[[], Any], repeats: int = 1) -> float:
    """How long a call takes; a GPU has finished it then, and not merely been told."""
    synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronize()
    return (time.perf_counter() - start) / repeats


def repeats_for(call: Callable[[], Any], seconds: float) -> int:
    """How often a call fits into that time, once it is warm; at least once."""
    call()
    return max(1, round(seconds / seconds_of(call)))


# ---- rules -------------------------------------------------------------------------------------------


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def deviation(values: Sequence[float]) -> float:
    """The sample standard deviation; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    center = mean(values)
    return math.sqrt(sum((v - center) ** 2 for v in values) / (len(values) - 1))


def at_least(values: Sequence[float], threshold: float) -> str:
    """Whether the mean reaches a threshold: by more than two standard errors, by less, or neither."""
    margin = 2 * deviation(values) / math.sqrt(len(values))
    center = mean(values)
    if not all(math.isfinite(v) for v in values):
        return FAILS
    if center - margin >= threshold:
        return HOLDS
    return FAILS if center + margin < threshold else NOISE


def worst(verdicts: Sequence[str]) -> str:
    """The verdict of several parts that must all hold."""
    return next((v for v in (FAILS, NOISE) if v in verdicts), HOLDS)


def select(runs: Runs, **wanted: Any) -> list[tuple[Configuration, Result]]:
    """The runs whose configuration has these values."""
    return [(c, r) for c, r in runs if all(c.get(k) == v for k, v in wanted.items())]
