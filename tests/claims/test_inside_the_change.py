"""The claims about what adapting changed: its dimension, its rank, its directions, what it amplifies."""

import numpy as np
import pytest
from made_up_claims import assert_the_sentence_is_in_the_numbers, check_numbers, learned, made_up, shaken

from minilora.analysis import amplification as table_7
from minilora.claims import amplification, intrinsic_dimension, intrinsic_rank, subspaces
from minilora.claims.claim import FAILS, HOLDS, MIXED, NOISE

rng = np.random.default_rng


def dimension_runs(strings=0.01, text=2.05):
    def bits(c):
        value = strings if c["base"][0] == "strings" else text
        return value[c["base"][1]] if isinstance(value, tuple) else value

    full = (1.0, lambda c: 0.0 if c["base"][0] == "strings" else 2.0)
    few = {f"{kind}_1024": (0.1, 2.8) for kind in ("subspace", "subset")}
    return made_up(intrinsic_dimension.CLAIM, learned(0.9, 2.5, 3.0, full=full, subspace_4096=(1.0, bits), **few))


def test_a_few_random_directions_are_judged_by_bits_on_strings_and_by_the_gain_on_text():
    def outcome(**of):
        return intrinsic_dimension.CLAIM.conclude(dimension_runs(**of))

    assert outcome().verdict == HOLDS
    assert outcome(strings=0.1).verdict == MIXED and outcome(strings=0.1, text=2.5).verdict == FAILS
    # 0.01 below the limit; two standard errors are 0.0092, t's 0.0135
    assert outcome(strings=(0.002, 0.010, 0.018)).verdicts["strings"] == NOISE
    runs = dimension_runs()
    assert intrinsic_dimension.d90(runs) == 4096 and intrinsic_dimension.d90(dimension_runs(text=2.5)) is None
    # at 2,048, between 2.8 bits of half as many and 2.5 of twice as many; LoRA has 2.5
    assert intrinsic_dimension.lead(runs, "text", "random weights") == pytest.approx([0.15] * 3)
    check_numbers(outcome())
    loose = intrinsic_dimension.CLAIM.conclude(shaken(runs, rng(0)))
    counts = {"256", "1,024", "4,096", "16,384", "114,944", "1", "4", "16", "64"}
    assert_the_sentence_is_in_the_numbers(loose, counts)


def cut_runs(lost=0.005, kept=0.95, energy=0.8):
    def result(c):
        strings = c["base"][0] == "strings"
        at_eight = lost[c["base"][1]] if isinstance(lost, tuple) else lost
        whole, base = (0.0, 5.0) if strings else (2.0, 3.0)
        eight = whole + at_eight if strings else base - kept * (base - whole)
        spectrum = [energy] * 63 + [1.0]
        return {
            "bits": [base, 2.9, 2.8, 2.7, eight, whole, whole, whole],
            "answered": [0.0, 0.1, 0.2, 0.5, 0.9, 1.0, 1.0, 1.0],
            "energy": spectrum, "random": [0.33] * 63 + [1.0],
        }  # fmt: skip

    return made_up(intrinsic_rank.CLAIM, result)


def test_a_cut_keeps_what_the_task_needs_and_the_spectrum_is_steeper_than_a_gaussians():
    def outcome(**of):
        return intrinsic_rank.CLAIM.conclude(cut_runs(**of))

    assert outcome().verdict == HOLDS
    assert outcome(lost=0.2).verdicts == {"strings": FAILS, "text": HOLDS} and outcome(kept=0.5).verdict == MIXED
    assert outcome(lost=(0.002, 0.010, 0.018)).verdicts["strings"] == NOISE
    assert outcome(energy=0.3).verdict == FAILS  # a change as flat as noise is of no low rank, whatever the cut keeps
    check_numbers(outcome())
    loose = intrinsic_rank.CLAIM.conclude(shaken(cut_runs(), rng(0)))
    assert_the_sentence_is_in_the_numbers(loose, {"1", "2", "4", "8", "16"})


def test_a_gaussians_energy_lies_in_half_of_its_values():
    energy = intrinsic_rank._of_gaussian((64, 64))
    assert 1 + int(np.argmax(energy > 0.9)) in range(30, 37) and energy[-1] == pytest.approx(1)
    low = rng(0).normal(size=(64, 2)) @ rng(1).normal(size=(2, 64))
    assert intrinsic_rank._energy(low)[1] == pytest.approx(1)


def phi_runs(ranks=0.7, seeds=0.75, tail=0.2, planted=1.0):
    """φ of tables whose first direction is shared so far and whose others lie in the first 16 as `tail` says."""

    def table(first, others):
        grid = np.full((8, 32), 0.3)
        for i in range(1, 9):
            grid[i - 1, 15] = (first + (i - 1) * others) / i
        grid[0, 0] = first
        return grid.tolist()

    def result(c):
        if "seed" in c:
            return {"ranks": np.full((8, 32), planted).tolist(), "seeds": table(1, 1)}
        of_ranks = ranks[c["base"][1]] if isinstance(ranks, tuple) else ranks
        return {"ranks": table(of_ranks, tail), "seeds": table(seeds, tail)}

    return made_up(subspaces.CLAIM, result)


def test_two_ranks_share_the_top_direction_as_far_as_two_starts_do_and_others_do_not():
    def outcome(**of):
        return subspaces.CLAIM.conclude(phi_runs(**of))

    assert outcome().verdict == HOLDS
    assert outcome(planted=0.9).verdicts["exact"] == FAILS
    assert outcome(ranks=0.1).verdict == MIXED  # far below what two starts share, and hardly above random
    assert outcome(ranks=0.1).verdicts == {"exact": HOLDS, "strings": FAILS, "text": FAILS}
    assert outcome(ranks=0.4).verdicts["text"] == FAILS  # half of what two starts share
    assert outcome(tail=0.9).verdicts["strings"] == FAILS  # the others agree as well
    # 0.09 above 0.8 of 0.75; two standard errors are 0.069, t's 0.10
    assert outcome(ranks=(0.63, 0.69, 0.75)).verdicts["strings"] == NOISE
    assert subspaces.others(phi_runs(tail=0.25), "strings") == pytest.approx([0] * 3)
    check_numbers(outcome())
    loose = subspaces.CLAIM.conclude(shaken(phi_runs(), rng(0)))
    assert_the_sentence_is_in_the_numbers(loose, {"5", "8", "0.016"})


def test_subspaces_of_a_planted_change_are_found_at_both_ranks():
    assert np.array(subspaces.run({"seed": 0})["ranks"])[3, 3] == pytest.approx(1, abs=1e-6)


def row_of(change=2.0, bits=2.5):
    over = {"change": change, "own": 8.0, "random": 1.0}
    sizes = {
        "change": 0.5 * change,
        "own": 4.0,
        "random": 0.5,
        "expected": 0.5,
        "delta_norm": 4.0,
        "factor": 8 / change,
    }
    return {"bits": bits, **sizes, "over": over}


def amplified(change=2.0, **of_rate):
    def result(c):
        own = change[c["base"][1]] if isinstance(change, tuple) else change
        return row_of(own, of_rate.get(f"bits_{c['times']:g}".replace(".", "_"), 2.5))

    return made_up(amplification.CLAIM, result)


def test_amplification_asks_for_a_margin_over_random_directions():
    def outcome(**of):
        return amplification.CLAIM.conclude(amplified(**of))

    assert outcome().verdict == HOLDS and outcome(change=1.05).verdict == FAILS
    assert outcome(change=(1.7, 1.8, 2.0)).verdict == HOLDS
    assert outcome(change=(1.55, 1.75, 1.95)).verdict == NOISE  # 0.25 above; two standard errors are 0.23, t's 0.34
    check_numbers(outcome())
    loose = amplification.CLAIM.conclude(shaken(amplified(), rng(0)))
    assert_the_sentence_is_in_the_numbers(loose, {"0.5", "1", "2"})


def test_a_random_change_does_not_pass():
    """It passed the rule of before, that W's own directions carry at least twice as much."""
    W = rng(0).normal(size=(64, 64)) @ np.diag(np.linspace(3, 0.1, 64)) / 8
    rows = [
        table_7(W, rng(seed).normal(size=(64, 4)) @ rng(-seed % 97).normal(size=(4, 64)), 4, rng(1))
        for seed in range(3)
    ]
    change = tuple(row["change"] / row["expected"] for row in rows)
    assert all(row["own"] > 2 * row["change"] for row in rows)
    assert amplification.CLAIM.conclude(amplified(change=change)).verdict != HOLDS
    assert np.mean(change) < 1.5


def test_rates_that_reach_another_loss_are_not_judged():
    def result(c):
        return row_of(9.0, 3.0) if c["times"] == 2 else row_of(1.0, 2.5)

    runs = made_up(amplification.CLAIM, result)
    assert amplification.at_equal_loss(runs, "text") == [1.0] * 3
