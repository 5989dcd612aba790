"""What a claim is: one statement of the paper, runs that test it, the parts that are measured and judged, a drawing.

A claim is a module with `CLAIM = Claim(...)`. Its runs are independent: each is a dictionary (the
configuration) given to an experiment, which returns a dictionary of numbers; so they can go to any process or
machine, and each is kept under its configuration once it has finished. Both dictionaries hold what JSON holds.

A part is one number of the claim: its name, its measure, and where it decides, its rule. The rule in words, the verdict
of each world, the rows of the report and the tests of the rules all come from the parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .bases import SHIPPED
from .measures import deviation, interval, mean, quartiles_of

HOLDS = "holds"
FAILS = "does not hold at this scale"
NOISE = "within noise"
UNDECIDED = "not decided"  # by a quick run, or by one base
MIXED = "differs by world"  # of a whole claim: it holds in one world and does not in another

Configuration = dict[str, Any]
Result = dict[str, Any]
Runs = Sequence[tuple[Configuration, Result]]


@dataclass(frozen=True)
class Settings:
    """How much to run: `seeds` bases behind every stochastic number; `quick` for a first look at one."""

    seeds: int = 3
    quick: bool = False  # strings and what is exact, in fewer and shorter runs
    long: bool = False  # with the trainings that take several times as many steps

    @property
    def bases(self) -> list[int]:
        """Their numbers; a quick run starts with the one that comes with the package."""
        return [SHIPPED, *range(1, self.seeds)] if self.quick else list(range(self.seeds))


WORLDS = ("strings", "text", "exact")  # "exact": equalities, and planted problems whose answer is known


@dataclass(frozen=True)
class Rule:
    """What a number must come to: in words with {} for the limit, and as the judge of its values against the limit."""

    words: str
    limit: float
    judge: Callable[[Sequence[float], float], str]
    margin: str = ""  # how surely, where bases scatter


@dataclass(frozen=True)
class Part:
    """One number of a claim, of each base or of each round of a clock; with a rule, it decides a verdict."""

    name: str  # in words: "share of full fine-tuning, r = 8"
    world: str  # one of WORLDS, or "time", whose verdicts count as exact
    measure: Callable[[Runs], Sequence[float]]  # of each base; empty where it was not run
    unit: str = ""  # "%" (of a measure that is a share of 1), "bits", "ms", "bytes", or nothing for a plain number
    rule: Rule | None = None
    what: str = ""  # in the rule's sentence, in place of the name: once for parts that share it

    @property
    def judged_in(self) -> str:
        return "exact" if self.world == "time" else self.world

    @property
    def clause(self) -> str:
        """The rule in words, with what it is about."""
        assert self.rule is not None
        number = f"{self.rule.limit * (100 if self.unit == '%' else 1):g}".replace("e-0", "e-")
        return f"{self.what or self.name} {self.rule.words.format(f'{number} {self.unit}'.rstrip())}"

    @property
    def one_base_decides(self) -> bool:
        """Whether the rule is an equality or the like: neither bases that scatter nor a clock."""
        return self.rule is not None and not self.rule.margin and self.world == "exact"

    def measured(self, runs: Runs, quick: bool = False) -> Measurement:
        """The values, judged where there is a rule for them; in a quick run only by one that one base decides."""
        values = [float(v) for v in self.measure(runs)]
        verdict = self.rule.judge(values, self.rule.limit) if self.rule and values else None
        if verdict and quick and not self.one_base_decides:
            verdict = UNDECIDED
        shown = [100 * v for v in values] if self.unit == "%" else values
        return Measurement(self, shown, verdict)


@dataclass(frozen=True)
class Measurement:
    """What came out of a part."""

    part: Part
    values: Sequence[float]  # in the part's unit
    verdict: str | None  # None where there is no rule

    def as_json(self) -> dict[str, Any]:
        """Name, world, unit, mean, its 90 % interval by Student's t, sample standard deviation (both None for a single
        value), n, every value; of a clock the quartiles, the median among them; of what is judged the rule and the
        verdict.

        None is what is no finite number: a share of full fine-tuning where that answered nothing.
        """
        part, values = self.part, self.values
        quartiles = list(quartiles_of(values)) if part.world == "time" else None
        return {
            "name": part.name,
            "world": part.world,
            "unit": part.unit,
            "value": _finite(mean(values)),
            "interval": [_finite(end) for end in interval(values)] if len(values) > 1 else None,
            "deviation": _finite(deviation(values)) if len(values) > 1 else None,
            "quartiles": quartiles,
            "n": len(values),
            "values": [_finite(v) for v in values],
            "rule": part.clause if part.rule else None,
            "verdict": self.verdict,
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class Outcome:
    """What a claim came to: its numbers, a line of them in words, and the verdicts of its rules."""

    measured: str
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
    """One claim of the paper.

    A configuration with a key "experiment" goes to the shared experiment of that name, and claims that ask for the
    same run share it; any other goes to the claim's own.
    """

    id: str
    short: str  # the statement in at most eight words
    statement: str
    where: str  # in the paper
    paper: str  # what the paper reports
    configurations: Callable[[Settings], list[Configuration]]
    experiment: Experiment
    parts: Sequence[Part]  # with their rules, which are written down before the run
    key: Callable[[Runs], str]  # the key number, in at most twelve words
    measured: Callable[[Runs], str]  # the numbers in a sentence
    draw: Callable[[Runs, Any], None]  # onto a matplotlib Figure

    @property
    def rule(self) -> str:
        """Of the verdicts, in words: each part's, with one for those that share it."""
        return f"holds if{_sentence([part for part in self.parts if part.rule])}"

    def conclude(self, runs: Runs, quick: bool = False) -> Outcome:
        """What these runs, perhaps of a quick run, come to. Parts that were not run are left out."""
        measurements = [m for part in self.parts if (m := part.measured(runs, quick)).values]
        verdicts = _by_world(measurements)
        whole = over_worlds(list(verdicts.values()))
        return Outcome(self.measured(runs), whole, self.key(runs), verdicts, measurements)


def _sentence(judged: Sequence[Part]) -> str:
    """ " a is 0; and, by the 90 % interval over bases: on strings and on text, b is at least 0.5"."""
    worlds: dict[tuple[str, str], list[str]] = {}  # (margin, clause) -> where it is asked
    for part in judged:
        assert part.rule is not None
        asked = worlds.setdefault((part.rule.margin, part.clause), [])
        if part.world in ("strings", "text") and f"on {part.world}" not in asked:
            asked.append(f"on {part.world}")
    said: dict[str, list[str]] = {}
    for (margin, clause), places in worlds.items():
        said.setdefault(margin, []).append(f"{' and '.join(places)}, {clause}" if places else clause)
    return "; and".join(f"{margin and f', {margin}:'} {'; '.join(clauses)}" for margin, clauses in said.items())


def _by_world(measurements: Sequence[Measurement]) -> dict[str, str]:
    """World -> the verdict of all that was judged there."""
    judged = {world: [m.verdict for m in measurements if m.verdict and m.part.judged_in == world] for world in WORLDS}
    return {world: worst(verdicts) for world, verdicts in judged.items() if verdicts}


def worst(verdicts: Sequence[str | None]) -> str:
    """The verdict of several parts that must all hold."""
    return next((v for v in (FAILS, NOISE, UNDECIDED) if v in verdicts), HOLDS)


def over_worlds(verdicts: Sequence[str]) -> str:
    """The verdict of a claim over all worlds: theirs if they agree, and that they differ where it holds in one of them
    and not in another."""
    if not verdicts:
        return UNDECIDED
    return MIXED if HOLDS in verdicts and FAILS in verdicts else worst(verdicts)
