"""The verdicts' rules on synthetic measurements, and one test named after each claim."""

import json
import math
import re
from functools import partial

import numpy as np
import pytest
from helpers import run_short
from test_budget import synthetic

from minilora import claims
from minilora.bases import held_out_strings, string_sampler
from minilora.claims import (
    alpha_learning_rate,
    amplification,
    init_scaling,
    intrinsic_dimension,
    intrinsic_rank,
    latency,
    low_data,
    rank,
    rivals,
    subspaces,
    task_switching,
    which_matrices,
    zero_init,
)
from minilora.claims.bases import pretrained
from minilora.claims.claim import FAILS, HOLDS, NOISE, UNDECIDED, WORLDS, Claim, Part, Settings, worst
from minilora.claims.figures import save_figure
from minilora.claims.measures import deviation
from minilora.claims.report import draw_figures, make_row, markdown, write_report
from minilora.claims.rules import always_above, always_equal, always_true, always_within, at_least, at_most
from minilora.data import fixed


def judged(rule, values):
    return Part("x", "strings", lambda runs: values, rule=rule).measured([]).verdict


def test_a_mean_above_the_threshold_by_two_standard_errors_holds():
    for sign, rule in ((1, at_least(0.95)), (-1, at_most(-0.95))):
        assert judged(rule, [0.99 * sign, 0.98 * sign, 1.0 * sign]) == HOLDS
        assert judged(rule, [0.70 * sign, 0.72 * sign, 0.71 * sign]) == FAILS
        assert judged(rule, [0.99 * sign, 0.90 * sign, 0.97 * sign]) == NOISE
        assert judged(rule, [0.99 * sign, math.nan]) == FAILS
    assert deviation([1, 2, 3]) == 1 and deviation([5]) == 0
    assert worst([HOLDS, NOISE, FAILS]) == FAILS and worst([HOLDS, NOISE]) == NOISE and worst([HOLDS]) == HOLDS


def test_an_equality_is_asked_of_every_value():
    for rule, right, wrong in (
        (always_equal(0), 0.0, 1e-300),
        (always_above(0.01), 0.011, 0.01),
        (always_within(1e-12), 1e-12, 2e-12),
        (always_true(), True, False),
    ):
        assert judged(rule, [right, right]) == HOLDS
        assert judged(rule, [right, wrong]) == judged(rule, [wrong, right]) == judged(rule, [right, math.nan]) == FAILS
    assert judged(None, [1.0]) is None and judged(always_equal(0), []) is None


def test_a_part_says_its_rule_and_its_row():
    part = Part("share", "strings", lambda runs: [0.5, 0.75], "%", rule=at_least(0.6), what="the share of it")
    assert part.clause == "the share of it is at least 60 %"
    row = part.measured([]).as_json()
    assert (row["values"], row["value"], row["rule"], row["verdict"]) == ([50, 75], 62.5, part.clause, NOISE)
    assert Part("x", "exact", lambda runs: [0.0], rule=always_within(1e-9)).clause == "x is at most 1e-9"
    assert Part("x", "text", lambda runs: [1.0], "bits", rule=at_least(0)).clause == "x is at least 0 bits"


def test_a_claim_asks_for_all_of_its_parts_and_for_none_beside_it():
    def claim(strings, text, clock, beside=False):
        rules = {"rule": at_least(0.5), "what": "it"}
        parts = (
            Part("error", "exact", lambda runs: [0.0], rule=always_equal(0)),
            Part("a", "strings", lambda runs: strings, **rules),
            Part("a", "text", lambda runs: text, beside=beside, **rules),
            Part("b", "time", lambda runs: clock, rule=always_above(1)),
            Part("shown only", "text", lambda runs: text),
        )
        said = {name: lambda runs: "1" for name in ("key", "measured", "spread")}
        fields = dict.fromkeys(("id", "short", "statement", "where", "paper"), "x")
        return Claim(**fields, **said, configurations=None, experiment=None, parts=parts, draw=None)

    all_hold = claim([1.0], [0.6], [2.0]).conclude([])
    assert all_hold.verdict == HOLDS and all_hold.verdicts == {"strings": HOLDS, "text": HOLDS, "exact": HOLDS}
    assert [m.part.name for m in all_hold.measurements] == ["error", "a", "a", "b", "shown only"]
    assert claim([1.0], [0.4], [2.0]).conclude([]).verdict == FAILS
    besides = claim([1.0], [0.4], [2.0], beside=True).conclude([])
    assert besides.verdict == HOLDS and besides.verdicts["text"] == FAILS
    slow = claim([1.0], [0.6], [2.0, 0.9]).conclude([])
    assert slow.verdict == FAILS and slow.verdicts == {"strings": HOLDS, "text": HOLDS, "exact": FAILS}
    quick = claim([1.0], [], []).conclude([])  # text and the clock were not run
    assert quick.verdicts == {"strings": HOLDS, "exact": HOLDS} and len(quick.measurements) == 2
    margin = "by two standard errors over bases"
    exact = "error is 0; b is above 1"
    both = f"holds if {exact}; and, {margin}: on strings and on text, it is at least 0.5"
    assert claim([1.0], [1.0], [2.0]).rule == both
    also = f"holds if {exact}; and, {margin}: on strings, it is at least 0.5"
    alone = f"; for the verdict on text only, {margin}: on text, it is at least 0.5"
    assert claim([1.0], [1.0], [2.0], beside=True).rule == also + alone


def test_one_base_decides_what_is_exact_and_nothing_else():
    rules = {"rule": at_least(0.5), "what": "it"}
    parts = {
        "equality": Part("error", "exact", lambda runs: [0.0], rule=always_equal(0)),
        "bases": Part("planted", "exact", lambda runs: [9.0], **rules),
        "strings": Part("a", "strings", lambda runs: [9.0], **rules),
        "clock": Part("b", "time", lambda runs: [9.0], rule=always_above(1)),
    }
    decided = {name: part.measured([], quick=True).verdict for name, part in parts.items()}
    assert decided == {"equality": HOLDS, "bases": UNDECIDED, "strings": UNDECIDED, "clock": UNDECIDED}
    assert all(part.measured([]).verdict == HOLDS for part in parts.values())
    assert worst([HOLDS, UNDECIDED]) == UNDECIDED and worst([UNDECIDED, FAILS]) == FAILS


# ---- an outcome's numbers ------------------------------------------------------------------------------

BESIDE = {"rank": {"text"}, "which_matrices": {"text"}, "intrinsic_rank": {"text"}}  # judged, but not in the rule


def check_numbers(name, outcome):
    """What holds for the numbers of every outcome of the claim of that name."""
    assert 0 < len(outcome.key.split()) <= 12 and re.search(r"\d", outcome.key)
    assert outcome.verdicts.keys() <= set(WORLDS) and set(outcome.verdicts.values()) <= {HOLDS, FAILS, NOISE}
    assert outcome.verdict == worst([v for world, v in outcome.verdicts.items() if world not in BESIDE.get(name, ())])
    names = [(m.part.world, m.part.name) for m in outcome.measurements]
    assert len(set(names)) == len(names) > 0
    written = json.loads(json.dumps([m.as_json() for m in outcome.measurements], allow_nan=False))
    for m, row in zip(outcome.measurements, written, strict=True):
        assert m.part.world in (*WORLDS, "time") and m.part.unit in ("%", "bits", "ms", "bytes", "")
        assert row["n"] == len(row["values"]) > 0 and None not in row["values"]
        assert (row["deviation"] is None) == (row["interval"] is None) == (row["n"] == 1)
        assert (row["quartiles"] is not None) == (m.part.world == "time")
        assert (row["rule"] is None) == (row["verdict"] is None) == (m.part.rule is None)


# Numbers of the sentences that are no measurements: ranks, examples, steps, what theory says, how often something is.
SETTINGS = {
    "zero_init": {"0"},  # ∂L/∂A = 0
    "alpha_learning_rate": {"3", "4", "0", "150"},
    "init_scaling": {"1", "64", "2", "3", "4", "150"},
    "rank": {"1", "8", "64", "300", "400"},
    "which_matrices": {"3", "300"},
    "rivals": {"300", "1,000", "2", "4", "8", "16"},
    "latency": {"1", "4", "6", "8", "16", "32", "48", "56", "64", "128"},
    "budget": {"0.75", "3"},  # and the counts of the paper's figures, which are cut off before
    "task_switching": {"150", "1", "10", "100", "353.5", "35"},
    "low_data": {"64", "2", "8", "16", "256", "1024"},
    "intrinsic_dimension": {"64", "256", "1,024", "4,096", "16,384", "90", "300", "1", "4", "16"},
    "intrinsic_rank": {"0", "1", "4", "8", "16"},
    "subspaces": {"1", "4", "8", "32", "0.02", "0.06"},
    "amplification": {"4", "32"},
}
NUMBER = r"\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?"
SCALES = {"bytes": (1, 1e-3, 1e-6)}  # as bytes, kB and MB


def stands_for(text, value, unit):
    """Whether a printed number is a value, as it is rounded to the last digit printed."""
    digits, _, power = text.replace(",", "").partition("e")
    last = 10.0 ** (int(power or 0) - len(digits.partition(".")[2]))
    return any(
        abs(abs(value) * scale - float(f"{digits}e{power or 0}")) <= 0.5001 * last for scale in SCALES.get(unit, (1,))
    )


def numbers_of(measurement):
    """What a sentence may say of a measurement: its mean and deviation; the median and the quartiles' distance."""
    row = measurement.as_json()
    low, middle, high = row["quartiles"] or (0, 0, 0)
    deviation_of = [] if row["deviation"] is None else [row["deviation"]]
    return [row["value"], *deviation_of, middle, high - low]


def assert_the_sentence_is_in_the_numbers(name, outcome):
    """Every number of `measured` and `spread` is one of the measurements, or a setting."""
    known = [(value, m.part.unit) for m in outcome.measurements for value in numbers_of(m)]
    said = f"{outcome.measured.partition('; of the paper')[0]}; {outcome.spread}"
    for text in re.findall(NUMBER, re.sub(r"φ\(\d,\d\)|d₉₀", "", said)):
        text = text.rstrip(",")
        found = text in SETTINGS[name] or any(stands_for(text, *of) for of in known)
        assert found, f"{text} of {name} is not among its measurements: {said}"


def test_a_measurement_says_what_it_is_in_json():
    def row(world, values, unit):
        return Part("x", world, lambda runs: values, unit).measured([]).as_json()

    s = 2 / math.sqrt(3)  # two standard errors of 1, 2, 3
    assert row("strings", [1.0, 2.0, 3.0], "bits") == {
        "name": "x", "world": "strings", "unit": "bits", "value": 2.0, "interval": pytest.approx([2 - s, 2 + s]),
        "deviation": 1.0, "quartiles": None, "n": 3, "values": [1.0, 2.0, 3.0], "rule": None, "verdict": None,
    }  # fmt: skip
    clock = row("time", [4.0, 1.0, 2.0, 3.0, 5.0], "ms")
    assert clock["quartiles"] == [2.0, 3.0, 4.0] and clock["values"] == [4.0, 1.0, 2.0, 3.0, 5.0]
    none = row("strings", [0.5, math.nan], "%")
    assert none["values"] == [50.0, None] and none["value"] is None and none["deviation"] is None
    assert none["interval"] == [None, None]
    assert row("exact", [np.float32(2)], "")["deviation"] is None


def test_zero_init_starts_as_the_base_exactly_and_still_learns(tiny_bases, monkeypatch):
    monkeypatch.setattr(zero_init, "STEPS", 5)
    monkeypatch.setattr(
        zero_init, "held_out_strings", lambda task: [zero_init.string_sampler((task,), 8)(np.random.default_rng(0))]
    )
    runs = [(c, zero_init.run(c)) for c in zero_init.configurations(Settings(1))]
    outcome = zero_init.CLAIM.conclude(runs)
    assert outcome.verdict == HOLDS and outcome.key == "logits bit-equal on 1 of 1 bases"
    check_numbers("zero_init", outcome)
    assert_the_sentence_is_in_the_numbers("zero_init", outcome)
    for key, wrong in (("equal_float32", False), ("equal_merged", False), ("gradient_norms", [[1e-9, 1.0], [1, 1]])):
        broken = [(c, {**r, key: wrong} if c["start"] == "A Gaussian, B zero" else r) for c, r in runs]
        assert zero_init.CLAIM.conclude(broken).verdict == FAILS
        assert zero_init.CLAIM.conclude(broken).verdicts == {"exact": FAILS}
        assert ("0 of 1" in zero_init.CLAIM.conclude(broken).key) is key.startswith("equal")
    moved = [(c, {**r, "largest_parameter": 1e-30} if c["start"] == "both zero" else r) for c, r in runs]
    assert zero_init.CLAIM.conclude(moved).verdict == FAILS


def test_alpha_learning_rate_identities_hold_and_the_naive_forms_do_not():
    identities = alpha_learning_rate.run({"start": "identities"})
    for name, error in identities.items():
        if "naive" in name:
            assert error > 0.05, name
        elif name.endswith("| 4"):
            assert error == 0, name
        else:
            assert error <= 1e-12, name
    assert len(identities) == 14


def test_alpha_learning_rate_reads_the_ridge_of_a_known_grid():
    alphas, rates = [0.5, 2.0, 8.0, 32.0], [2.0**-k for k in range(10, 0, -1)]
    for gamma in (0.5, 1.0):
        bits = np.array([[(math.log2(lr) + gamma * math.log2(a) + 5) ** 2 for lr in rates] for a in alphas])
        assert alpha_learning_rate.exchange(alphas, rates, bits) == pytest.approx(gamma, abs=0.06)
    assert alpha_learning_rate.CLAIM.conclude(made_up(alpha_learning_rate.CLAIM, alpha_result())).verdict == HOLDS
    assert alpha_learning_rate.CLAIM.conclude(made_up(alpha_learning_rate.CLAIM, alpha_result(1e-18))).verdict == FAILS


# ---- verdicts of the claims whose numbers scatter, on measurements made up -----------------------------


def made_up(claim, result):
    """All runs of a claim at three bases, each with `result(configuration)`."""
    return [(c, result(c)) for c in claim.configurations(Settings(3))]


def alpha_result(identity=0.0):
    def result(c):
        if c["start"] == "identities":
            return {"adam | x | 3": 1e-15, "adam | x | 4": identity, "adam | naive: lr·s | 3": 0.4}
        return {"bits": (math.log2(c["lr"] * c["alpha"] ** 0.5) + 5) ** 2 + 0.01 * c["base"][1] * c["alpha"]}

    return result


def learned(accuracy=0.99, bits=2.5, **of):
    """Results of the shared experiment: accuracy and bits of each method, a number or one a base."""

    def result(c):
        method, seed = c["method"], c["base"][1]
        right, loss = of.get(method.replace(" ", "_").replace(",", ""), (accuracy, bits))
        right, loss = (v[seed] if isinstance(v, tuple) else v for v in (right, loss))
        return {"accuracy": right, "bits": loss, "bits_at_end": loss, "before": 3.0, "trainable": 2048}

    return result


def rank_result(accuracy, planted_loss=0.0):
    shared = learned(accuracy, lora_qv_1=(0.5, 2.5), full=(1.0, 2.0))

    def result(c):
        if c.get("world") == "planted":
            return {"loss": planted_loss, "floor": 0.0, "start": 30.0}
        return shared(c)

    return result


def test_rank_verdict_follows_the_strings_and_the_planted_floor():
    def verdict(*of, **also):
        return rank.CLAIM.conclude(made_up(rank.CLAIM, rank_result(*of, **also))).verdict

    assert verdict((0.99, 0.98, 1.0)) == HOLDS
    assert verdict((0.80, 0.82, 0.79)) == FAILS
    assert verdict((0.99, 0.85, 0.97)) == NOISE
    assert verdict((0.99, 0.98, 1.0), planted_loss=1e-6) == FAILS
    assert "50, 50, 50 % of the gap" in rank.CLAIM.conclude(made_up(rank.CLAIM, rank_result(1.0))).measured


def test_which_matrices_verdict_asks_that_q_and_v_together_lead_every_single_one():
    def verdict(**of):
        return which_matrices.CLAIM.conclude(made_up(which_matrices.CLAIM, learned(0.5, **of))).verdict

    assert verdict(lora_qv_4=((0.9, 0.92, 0.88), 2.5)) == HOLDS
    assert verdict(lora_qv_4=((0.9, 0.92, 0.88), 2.5), lora_o_8=((0.95, 0.96, 0.97), 2.5)) == FAILS
    assert verdict(lora_qv_4=((0.9, 0.3, 0.6), 2.5)) == NOISE


def test_rivals_verdict_asks_for_full_fine_tunings_quality_and_a_lead():
    def verdict(**of):
        return rivals.CLAIM.conclude(made_up(rivals.CLAIM, learned(0.4, full=(1.0, 2.0), **of))).verdict

    assert verdict(lora_qv_4=((0.99, 0.98, 1.0), 2.5)) == HOLDS
    assert verdict(lora_qv_4=((0.8, 0.81, 0.79), 2.5)) == FAILS
    assert verdict(lora_qv_4=((0.97, 0.98, 0.96), 2.5), bitfit=((1.0, 1.0, 1.0), 2.5)) == FAILS
    assert verdict(lora_qv_4=((0.99, 0.98, 1.0), 2.5), bitfit=((0.99, 0.2, 1.0), 2.5)) == NOISE


def latency_result(merged=1.0, adapters=1.2, noise=0.02):
    def result(c):
        if "rounds" not in c:
            return learned()(c)
        wobble = noise * np.linspace(-1, 1, 41)
        times = {name: (1 + wobble).tolist() for name in latency.VARIANTS}
        times["base"] = [1.0] * 41
        times["LoRA merged"] = (merged + wobble).tolist()
        times["adapters (Houlsby)"] = (adapters + wobble).tolist()
        return {"milliseconds": times}

    return result


def test_latency_verdict_is_measured_against_the_noise_of_the_base():
    def verdict(**of):
        return latency.CLAIM.conclude(made_up(latency.CLAIM, latency_result(**of))).verdict

    assert verdict() == HOLDS
    assert verdict(merged=1.005) == HOLDS and verdict(merged=0.9) == HOLDS
    assert verdict(merged=1.1) == FAILS and verdict(adapters=1.0) == FAILS
    runs = made_up(latency.CLAIM, latency_result())
    slow = latency_result(merged=1.1)(runs[0][0])
    assert latency.CLAIM.conclude([(runs[0][0], slow), *runs[1:]]).verdict == NOISE


def switching_result(c):
    exact = {"base_equal": True, "adapters_equal": True, "own": {"a": 0.9}, "other": {"b": 0.0}}
    times = {"swap_ms": 1.0, "merge_ms": 0.5, "reload_ms": 4.0}
    return {**exact, **times, "adapter_bytes": 17_000, "base_bytes": 460_000}


def test_task_switching_verdict_allows_no_difference_at_all():
    runs = made_up(task_switching.CLAIM, switching_result)
    assert task_switching.CLAIM.conclude(runs).verdict == HOLDS
    for key in ("base_equal", "adapters_equal"):
        assert task_switching.CLAIM.conclude([*runs[1:], (runs[0][0], {**runs[0][1], key: False})]).verdict == FAILS
    assert "354 GB" in runs[0][0].get("paper", task_switching.CLAIM.paper)
    assert task_switching.storage(350e9, 35e6, 100) == (353.5e9, 35e12)  # the paper's footnote 4


def low_data_result(small=0.03, full=0.3, accuracy=(0.5, 0.5, 0.5)):
    def result(c):
        if c.get("world") == "planted":
            return {"excess": (full if c["r"] == "full" else small) + 0.001 * c["seed"]}
        if "examples" in c:
            return learned(0.4, lora_qv_8=(accuracy, 2.5))(c)
        if c["base"][0] == "strings":
            return {"before": 0.98, "known": 0.1}
        return {"known": [1.8, 1.9, 2.0], "learned": [3.0, 2.6, 2.4]}

    return result


def test_low_data_verdict_asks_for_a_lead_in_both_worlds():
    def verdict(**of):
        return low_data.CLAIM.conclude(made_up(low_data.CLAIM, low_data_result(**of))).verdict

    assert verdict() == HOLDS
    assert verdict(accuracy=(0.3, 0.31, 0.29)) == FAILS and verdict(full=0.01) == FAILS
    assert verdict(accuracy=(0.5, 0.2, 0.45)) == NOISE


def test_intrinsic_dimension_verdict_and_d90():
    def runs(accuracy):
        few = {f"subspace_{n}": (0.0, 2.5) for n in (64, 256, 1024)}
        return made_up(intrinsic_dimension.CLAIM, learned(1.0, subspace_4096=(accuracy, 2.5), **few))

    assert intrinsic_dimension.CLAIM.conclude(runs((0.95, 0.96, 0.97))).verdict == HOLDS
    assert intrinsic_dimension.CLAIM.conclude(runs((0.5, 0.6, 0.55))).verdict == FAILS
    assert intrinsic_dimension.CLAIM.conclude(runs((0.95, 0.7, 0.97))).verdict == NOISE
    assert intrinsic_dimension.d90(runs((0.95, 0.96, 0.97))) == 4096
    assert intrinsic_dimension.d90(runs((0.5, 0.6, 0.55))) == 16384


def cut_result(at_eight):
    def result(c):
        if c["experiment"] != "intrinsic_rank":
            return learned()(c)
        if c["base"][0] == "text":
            return {"before": 3.0, "cut": [3.0, 2.9, 2.8, 2.7, 2.5, 2.3, 2.1, 2.0], "energy": [0.5] * 63 + [1.0]}
        share = at_eight[c["base"][1]]
        return {"before": 0.0, "cut": [0.0, 0.1, 0.2, 0.5, share, 1.0, 1.0, 1.0], "energy": [0.5] * 63 + [1.0]}

    return result


def test_intrinsic_rank_verdict_asks_what_rank_8_keeps():
    def verdict(at_eight):
        return intrinsic_rank.CLAIM.conclude(made_up(intrinsic_rank.CLAIM, cut_result(at_eight)))

    assert verdict((0.99, 0.98, 1.0)).verdict == HOLDS
    assert verdict((0.6, 0.7, 0.65)).verdict == FAILS
    assert verdict((0.99, 0.85, 0.97)).verdict == NOISE
    partly = verdict((1, 1, 1))
    assert "text 1: 10, 4: 30, 8: 50, 16: 70" in partly.measured and partly.key.endswith("100 %, of text's 50 %")
    assert partly.verdict == HOLDS and partly.verdicts["text"] == FAILS


def phi_result(top, planted=1.0):
    def table(value):
        grid = np.full((subspaces.SMALL, subspaces.LARGE), value).tolist()
        return {kind: {"ranks": grid, "seeds": grid} for kind in ("A", "B", "ΔW")}

    def result(c):
        return {"layer": table(planted)} if "base" not in c else {n: table(top[c["base"][1]]) for n in subspaces.SHOWN}

    return result


def test_subspaces_verdict_asks_for_the_planted_map_and_a_shared_first_direction():
    def verdict(*of):
        return subspaces.CLAIM.conclude(made_up(subspaces.CLAIM, phi_result(*of))).verdict

    assert verdict((0.8, 0.82, 0.79)) == HOLDS
    assert verdict((0.2, 0.3, 0.25)) == FAILS and verdict((0.8, 0.82, 0.79), 0.9) == FAILS
    assert verdict((0.8, 0.4, 0.45)) == NOISE


def amplification_result(change, own=5.0):
    def result(c):
        row = {"change": change[c["base"][1]], "own": own, "random": 0.5, "expected": 0.5}
        row |= {"delta_norm": 4.0, "weight_norm": 8.0, "factor": 4.0}
        return {f"blocks.1.attn.{kind}": row for kind in amplification.KINDS}

    return result


def test_amplification_verdict_asks_that_delta_avoids_what_w_emphasizes():
    def verdict(*of):
        return amplification.CLAIM.conclude(made_up(amplification.CLAIM, amplification_result(*of))).verdict

    assert verdict((1.0, 1.1, 0.9)) == HOLDS
    assert verdict((0.3, 0.31, 0.29)) == FAILS and verdict((4.0, 4.1, 4.2)) == FAILS
    assert verdict((1.0, 0.3, 0.6)) == NOISE


def init_scaling_result(identity=0.0, zero_a=(0.95, 0.95, 0.95), shift=0.0):
    def result(c):
        if c["part"] == "LoRA+":
            return {"3": 1e-15, "4": identity}
        if c["part"] == "start":
            return {"accuracy": zero_a[c["base"][1]] if c["start"] == "A zero, B Gaussian" else 0.95}
        best = np.log2(0.02) + shift * np.log2(c["r"]) / 6 + (np.log2(c["r"]) / 2 if "sqrt" in c["scaling"] else 0)
        return {"bits": 2.5 + (np.log2(c["lr"]) - best) ** 2}

    return result


def test_init_scaling_verdict_asks_for_the_identity_equal_starts_and_a_still_rate():
    def verdict(**of):
        return init_scaling.CLAIM.conclude(made_up(init_scaling.CLAIM, init_scaling_result(**of))).verdict

    assert verdict() == HOLDS
    assert verdict(identity=1e-18) == FAILS and verdict(zero_a=(0.5, 0.5, 0.5)) == FAILS and verdict(shift=2.0) == FAILS
    assert verdict(zero_a=(0.97, 0.80, 0.96)) == NOISE


def all_made_up():
    """Claim -> runs that hold, that fail, and, where the rule knows noise, that are within it."""
    results = {
        "alpha_learning_rate": (alpha_result(), alpha_result(1e-3)),
        "init_scaling": (
            init_scaling_result(),
            init_scaling_result(shift=2.0),
            init_scaling_result(zero_a=(0.97, 0.80, 0.96)),
        ),
        "rank": (
            rank_result((0.99, 0.98, 1.0)),
            rank_result((0.80, 0.82, 0.79), planted_loss=1e-6),
            rank_result((0.99, 0.85, 0.97)),
        ),
        "which_matrices": tuple(
            learned(0.5, lora_qv_4=(accuracy, 2.4)) for accuracy in ((0.9, 0.92, 0.88), 0.4, (0.9, 0.3, 0.6))
        ),
        "rivals": tuple(
            learned(0.4, full=(1.0, 2.0), bitfit=(bitfit, 2.6), lora_qv_4=(lora, 2.5))
            for lora, bitfit in (
                ((0.99, 0.98, 1.0), 0.3),
                ((0.8, 0.81, 0.79), 0.3),
                ((0.99, 0.98, 1.0), (0.99, 0.2, 1)),
            )
        ),
        "latency": (latency_result(), latency_result(merged=1.1)),
        "task_switching": (
            switching_result,
            lambda c: {**switching_result(c), "base_equal": c["base"][1] > 0},
        ),
        "low_data": (
            low_data_result(),
            low_data_result(accuracy=(0.3, 0.31, 0.29)),
            low_data_result(accuracy=(0.5, 0.2, 0.45)),
        ),
        "intrinsic_dimension": tuple(
            learned(1.0, subspace_4096=(accuracy, 2.5)) for accuracy in ((0.95, 0.96, 0.97), 0.5, (0.95, 0.7, 0.97))
        ),
        "intrinsic_rank": tuple(map(cut_result, ((0.99, 0.98, 1.0), (0.6, 0.7, 0.65), (0.99, 0.85, 0.97)))),
        "subspaces": tuple(map(phi_result, ((0.8, 0.82, 0.79), (0.2, 0.3, 0.25), (0.8, 0.4, 0.45)))),
        "amplification": tuple(map(amplification_result, ((1.0, 1.1, 0.9), (0.3, 0.31, 0.29), (1.0, 0.3, 0.6)))),
    }
    runs = {name: [made_up(claims.find([name])[0], r) for r in of] for name, of in results.items()}
    return runs | {"budget": [synthetic(), synthetic(ratio=1.1, adam=0), synthetic(ratio=0.98, spread=0.1)]}


def shaken(x, rng):
    """The same, each float up to half larger or smaller."""
    if isinstance(x, dict):
        return {key: shaken(value, rng) for key, value in x.items()}
    if isinstance(x, tuple):  # a run
        return x[0], shaken(x[1], rng)
    if isinstance(x, list):
        return [shaken(value, rng) for value in x]
    return x * (0.5 + rng.random()) if isinstance(x, float) else x


# How many values a measurement has: one of each of three bases, but for what is computed once, planted or timed.
COUNTS = {
    "alpha_learning_rate": {"exact": 1},
    "init_scaling": {"exact": 1},
    "latency": {"time": 41},
    "low_data": {"exact": 9},
    "budget": {"exact": 1, "time": 9},
}


PER_SHAPE = {part.name for part in latency.PARTS if part.rule}  # of each of three shapes, not of each round


@pytest.mark.parametrize("name", [c.id for c in claims.CLAIMS if c.id != "zero_init"])
def test_the_numbers_of_a_claim_say_what_its_sentence_says(name):
    claim, runs = claims.find([name])[0], all_made_up()[name]
    outcomes = [claim.conclude(of) for of in runs]
    assert [o.verdict for o in outcomes] == [HOLDS, FAILS, NOISE][: len(outcomes)]
    for outcome in outcomes:
        check_numbers(name, outcome)
        for m in outcome.measurements:
            assert len(m.values) == COUNTS.get(name, {}).get(m.part.world, 3) or m.part.name in PER_SHAPE, m.part.name
    assert (outcomes[0].key, outcomes[0].measured) != (outcomes[1].key, outcomes[1].measured)
    for of in runs:
        outcome = claim.conclude(shaken(of, np.random.default_rng(0)))  # where no two numbers are the same
        if "not as the formulas say" not in outcome.measured:  # which lists the formulas' numbers too
            assert_the_sentence_is_in_the_numbers(name, outcome)


def test_a_verdict_of_a_world_is_that_worlds_own():
    def verdicts(module, result):
        return module.CLAIM.conclude(made_up(module.CLAIM, result)).verdicts

    assert verdicts(rank, rank_result((0.99, 0.98, 1.0), 1e-6)) == {"exact": FAILS, "strings": HOLDS, "text": FAILS}
    assert verdicts(low_data, low_data_result(full=0.01)) == {"exact": FAILS, "strings": HOLDS}
    assert verdicts(subspaces, phi_result((0.8, 0.82, 0.79), 0.9)) == {"exact": FAILS, "strings": HOLDS, "text": HOLDS}
    moved = init_scaling_result(zero_a=(0.97, 0.80, 0.96), shift=2.0)
    assert verdicts(init_scaling, moved) == {"exact": HOLDS, "strings": NOISE, "text": FAILS}


# ---- the experiments themselves, shrunk ----------------------------------------------------------------


def test_rank_of_a_planted_change_is_found_to_the_last_digit():
    """Eckart and Young: rank r leaves the sum of the squares of the singular values after the r-th."""
    for r, least in ((1, 9 + 4 + 1), (3, 1), (4, 0), (16, 0)):
        result = rank.run({"world": "planted", "seed": 0, "r": r})
        assert result["floor"] == least
        assert result["loss"] == pytest.approx(least, rel=1e-9, abs=1e-20)


def test_subspaces_of_a_planted_change_are_found_at_both_ranks():
    result = subspaces.run({"world": "planted", "seed": 0})["layer"]["ΔW"]["ranks"]
    assert np.array(result)[3, 3] == pytest.approx(1, abs=1e-6)


def test_low_data_errors_grow_with_the_count_of_free_directions():
    excess = {
        r: np.mean([low_data.run({"world": "planted", "seed": s, "r": r})["excess"] for s in range(3)])
        for r in (2, 8, "full")
    }
    assert 3 * excess[2] < excess[8] < excess["full"]


def shrunk(claim, monkeypatch):
    """The claim's quick configurations, each with the result of a run of a few steps on a tiny base."""
    if claim is latency.CLAIM:
        monkeypatch.setattr(latency, "ROUNDS", 8)  # quick: a quarter
    return [(c, run_short(claim, c)) for c in claim.configurations(Settings(1, quick=True))]


@pytest.mark.parametrize(
    "claim", [c for c in claims.CLAIMS if c.id not in ("zero_init", "budget")], ids=lambda claim: claim.id
)
def test_every_claim_runs_concludes_and_draws(claim, tiny_bases, monkeypatch, tmp_path):
    runs = shrunk(claim, monkeypatch)
    json.dumps([runs], allow_nan=False)  # what is kept, and what goes to other machines
    outcome = claim.conclude(runs)
    assert outcome.measured and outcome.spread and outcome.verdict in (HOLDS, FAILS, NOISE)
    assert "nan" not in outcome.measured and "nan" not in outcome.key
    check_numbers(claim.id, outcome)
    save_figure(tmp_path / "figure.png", partial(claim.draw, runs))
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"


def test_every_claim_says_what_it_is_and_no_two_share_a_name():
    ids = [claim.id for claim in claims.CLAIMS]
    assert len(set(ids)) == len(ids)
    for claim in claims.CLAIMS:
        assert all((claim.statement, claim.where, claim.paper)) and 0 < len(claim.short.split()) <= 8
        assert claim.rule.startswith("holds if")
        for settings in (Settings(3), Settings(1, quick=True)):
            configurations = claim.configurations(settings)
            texts = [json.dumps(c, sort_keys=True) for c in configurations]
            assert len(set(texts)) == len(texts) > 0
    with pytest.raises(ValueError, match="no claim 'ranks'; there are: zero_init, alpha_learning_rate, init_scaling"):
        claims.find(["ranks"])


def test_a_quick_run_decides_equalities_only(tmp_path, monkeypatch):
    monkeypatch.setenv("MINILORA_CACHE", str(tmp_path / "cache"))
    runs = made_up(rank.CLAIM, rank_result(1.0))
    settings = Settings(3, quick=True)
    row = make_row(rank.CLAIM, runs, settings, 1.25)
    assert row["verdict"] == UNDECIDED
    assert make_row(rank.CLAIM, runs, Settings(3), 1.25)["verdict"] == HOLDS
    write_report(tmp_path, [row], settings)
    draw_figures(tmp_path, [rank.CLAIM], {"rank": runs})
    report = json.loads((tmp_path / "claims.json").read_text(encoding="utf-8"))
    assert report["quick"] is True and report["seeds"] == 3
    assert list(report["claims"][0]) == [
        "id", "short", "statement", "where", "paper", "measured", "spread", "rule", "verdict", "key", "verdicts",
        "measurements", "seconds", "figure",
    ]  # fmt: skip
    assert report["claims"][0]["verdicts"] == {"strings": UNDECIDED, "text": UNDECIDED, "exact": HOLDS}
    assert (tmp_path / "rank.png").read_bytes()[:4] == b"\x89PNG"
    assert UNDECIDED in markdown([row], settings)


@pytest.mark.slow
def test_a_base_is_pretrained_once_and_knows_its_tasks(tmp_path, monkeypatch):
    from minilora.tasks import PRETRAINING
    from minilora.training import evaluate_exact_match

    monkeypatch.setenv("MINILORA_CACHE", str(tmp_path))
    model = pretrained("strings", 0)
    known = fixed(string_sampler(PRETRAINING, 128, held_out=True), 2)
    assert evaluate_exact_match(model, known) > 0.85
    assert evaluate_exact_match(model, held_out_strings("revupper")) < 0.01
    again = pretrained("strings", 0)
    assert all(
        np.array_equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    )
