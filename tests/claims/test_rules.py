"""The rules of verdicts, on values made up."""

import math

import pytest

from minilora.claims.claim import FAILS, HOLDS, MIXED, NOISE, UNDECIDED, Claim, Part, over_worlds, worst
from minilora.claims.measures import T95, T995, deviation, interval
from minilora.claims.rules import always_above, always_equal, always_true, always_within, at_least, at_most


def judged(rule, values):
    return Part("x", "strings", lambda runs: values, rule=rule).measured([]).verdict


def test_a_mean_is_judged_by_students_t():
    for sign, rule in ((1, at_least(0.95)), (-1, at_most(-0.95))):
        assert judged(rule, [0.99 * sign, 0.98 * sign, 1.0 * sign]) == HOLDS
        assert judged(rule, [0.70 * sign, 0.72 * sign, 0.71 * sign]) == FAILS
        assert judged(rule, [0.99 * sign, 0.90 * sign, 0.97 * sign]) == NOISE
        assert judged(rule, [0.99 * sign, math.nan]) == FAILS
        assert judged(rule, [0.99 * sign]) == UNDECIDED
    assert deviation([1, 2, 3]) == 1 and deviation([5]) == 0


def test_what_two_standard_errors_of_three_bases_would_have_passed_is_noise():
    values = [0.0, 1.0, 2.0]
    standard_error = 1 / math.sqrt(3)
    limit = 1 - 2.4 * standard_error
    assert 1 - 2 * standard_error > limit  # the old rule: holds
    assert judged(at_least(limit), values) == NOISE
    assert judged(at_least(1 - 2.93 * standard_error), values) == HOLDS
    assert judged(at_least(1 + 2.4 * standard_error), values) == NOISE  # and the old rule: does not hold
    assert judged(at_least(1 + 9.9 * standard_error), values) == NOISE
    assert judged(at_least(1 + 9.95 * standard_error), values) == FAILS


def test_the_more_bases_the_surer():
    spread = [0.9, 1.1] * 4
    assert judged(at_least(0.95), spread[:2]) == NOISE and judged(at_least(0.92), spread) == HOLDS
    low, high = interval(spread)
    assert (low + high) / 2 == pytest.approx(1) and (high - low) / 2 == pytest.approx(
        1.895 * deviation(spread) / 8**0.5
    )


def test_the_quantiles_are_students():
    """Of the integral of t's density, by the trapezoidal rule."""
    for table, level in ((T95, 0.95), (T995, 0.995)):
        for freedom, quantile in enumerate(table, start=1):
            density = [(1 + (quantile * i / 1e5) ** 2 / freedom) ** (-(freedom + 1) / 2) for i in range(100_001)]
            area = (sum(density) - (density[0] + density[-1]) / 2) * quantile / 1e5
            scale = math.gamma((freedom + 1) / 2) / math.sqrt(freedom * math.pi) / math.gamma(freedom / 2)
            assert 0.5 + area * scale == pytest.approx(level, abs=6e-5), freedom  # of three digits


def test_an_equality_is_asked_of_every_value():
    for rule, right, wrong in (
        (always_equal(0), 0.0, 1e-300),
        (always_above(0.01), 0.011, 0.01),
        (always_within(1e-12), 1e-12, 2e-12),
        (always_true(), True, False),
    ):
        assert judged(rule, [right, right]) == judged(rule, [right]) == HOLDS
        assert judged(rule, [right, wrong]) == judged(rule, [wrong, right]) == judged(rule, [right, math.nan]) == FAILS
    assert judged(None, [1.0]) is None and judged(always_equal(0), []) is None


def test_a_part_says_its_rule_and_its_row():
    part = Part("share", "strings", lambda runs: [0.5, 0.75], "%", rule=at_least(0.6), what="the share of it")
    assert part.clause == "the share of it is at least 60 %"
    row = part.measured([]).as_json()
    assert (row["values"], row["value"], row["rule"], row["verdict"]) == ([50, 75], 62.5, part.clause, NOISE)
    assert Part("x", "exact", lambda runs: [0.0], rule=always_within(1e-9)).clause == "x is at most 1e-9"
    assert Part("x", "text", lambda runs: [1.0], "bits", rule=at_least(0)).clause == "x is at least 0 bits"


def test_each_world_has_a_verdict_of_its_own_and_the_claim_says_where_they_differ():
    def claim(strings, text, clock):
        rules = {"rule": at_least(0.5), "what": "it"}
        parts = (
            Part("error", "exact", lambda runs: [0.0], rule=always_equal(0)),
            Part("a", "strings", lambda runs: strings, **rules),
            Part("a", "text", lambda runs: text, **rules),
            Part("b", "time", lambda runs: clock, rule=always_above(1)),
            Part("shown only", "text", lambda runs: text),
        )
        said = {name: lambda runs: "1" for name in ("key", "measured")}
        fields = dict.fromkeys(("id", "short", "statement", "where", "paper"), "x")
        return Claim(**fields, **said, configurations=None, experiment=None, parts=parts, draw=None)

    yes, no, unsure = [1.0, 1.0], [0.4, 0.4], [0.4, 0.6]
    all_hold = claim(yes, yes, [2.0]).conclude([])
    assert all_hold.verdict == HOLDS and all_hold.verdicts == {"strings": HOLDS, "text": HOLDS, "exact": HOLDS}
    assert [m.part.name for m in all_hold.measurements] == ["error", "a", "a", "b", "shown only"]
    differs = claim(yes, no, [2.0]).conclude([])
    assert differs.verdict == MIXED and differs.verdicts == {"strings": HOLDS, "text": FAILS, "exact": HOLDS}
    assert claim(yes, unsure, [2.0]).conclude([]).verdict == NOISE
    slow = claim(yes, yes, [2.0, 0.9]).conclude([])
    assert slow.verdict == MIXED and slow.verdicts["exact"] == FAILS
    quick = claim(yes, [], []).conclude([])  # text and the clock were not run
    assert quick.verdicts == {"strings": HOLDS, "exact": HOLDS} and len(quick.measurements) == 2
    exact = "error is 0; b is above 1"
    margin = "by the 90 % interval of the mean over bases"
    assert claim(yes, yes, [2.0]).rule == f"holds if {exact}; and, {margin}: on strings and on text, it is at least 0.5"


def test_one_base_decides_what_is_exact_and_nothing_else():
    rules = {"rule": at_least(0.5), "what": "it"}
    parts = {
        "equality": Part("error", "exact", lambda runs: [0.0], rule=always_equal(0)),
        "bases": Part("planted", "exact", lambda runs: [9.0, 9.0], **rules),
        "strings": Part("a", "strings", lambda runs: [9.0, 9.0], **rules),
        "clock": Part("b", "time", lambda runs: [9.0], rule=always_above(1)),
    }
    decided = {name: part.measured([], quick=True).verdict for name, part in parts.items()}
    assert decided == {"equality": HOLDS, "bases": UNDECIDED, "strings": UNDECIDED, "clock": UNDECIDED}
    assert all(part.measured([]).verdict == HOLDS for part in parts.values())


def test_the_worst_of_parts_and_the_difference_of_worlds():
    assert worst([HOLDS, NOISE, FAILS]) == FAILS and worst([HOLDS, NOISE]) == NOISE and worst([HOLDS]) == HOLDS
    assert worst([HOLDS, UNDECIDED]) == UNDECIDED and worst([UNDECIDED, FAILS]) == FAILS
    assert over_worlds([HOLDS, FAILS]) == over_worlds([NOISE, FAILS, HOLDS]) == MIXED
    assert (
        over_worlds([FAILS, NOISE]) == FAILS and over_worlds([HOLDS, NOISE]) == NOISE and over_worlds([HOLDS]) == HOLDS
    )


def test_a_measurement_says_what_it_is_in_json():
    def row(world, values, unit):
        return Part("x", world, lambda runs: values, unit).measured([]).as_json()

    off = 2.92 / math.sqrt(3)  # of 1, 2, 3
    assert row("strings", [1.0, 2.0, 3.0], "bits") == {
        "name": "x", "world": "strings", "unit": "bits", "value": 2.0,
        "interval": pytest.approx([2 - off, 2 + off]), "deviation": 1.0, "quartiles": None, "n": 3,
        "values": [1.0, 2.0, 3.0], "rule": None, "verdict": None,
    }  # fmt: skip
    clock = row("time", [4.0, 1.0, 2.0, 3.0, 5.0], "ms")
    assert clock["quartiles"] == [2.0, 3.0, 4.0] and clock["values"] == [4.0, 1.0, 2.0, 3.0, 5.0]
    none = row("strings", [0.5, math.nan], "%")
    assert none["values"] == [50.0, None] and none["value"] is None and none["deviation"] is None
    assert none["interval"] == [None, None]
    assert row("exact", [2.0], "")["deviation"] is row("exact", [2.0], "")["interval"] is None
