"""The claims about the start, the rank, the matrices, and switching: their rules on made-up measurements."""

import numpy as np
import pytest
from made_up_claims import assert_the_sentence_is_in_the_numbers, check_numbers, learned, made_up, rank_result, shaken

from minilora.claims import rank, task_switching, which_matrices, zero_init
from minilora.claims.claim import FAILS, HOLDS, MIXED, NOISE, Settings

rng = np.random.default_rng


def start_result(harm=0.4, **changes):
    def result(c):
        if c["start"] == "first steps":
            return {"full_error": 1e-15, "lora_error": 1e-14}
        b = c["base"][1]
        bits = harm[b] if isinstance(harm, tuple) else harm
        kept = {"A Gaussian, B zero": changes} if c["start"] == zero_init.STARTS[0] else {}
        return {
            "equal_float32": True, "equal_float64": True, "equal_merged": True, "largest_change": 20.0,
            "bits_at_start": bits if c["start"] == "both Gaussian" else 0.0, "gradient_norms": [[0.0, 1.0], [0.5, 1.0]],
            "loss": [1.0 - 0.001 * k for k in range(zero_init.STEPS)], "bits_at_end": 0.1 + 0.01 * b,
            "largest_parameter": 0.0 if c["start"] == "both zero" else 1.0, **kept.get(c["start"], {}),
        }  # fmt: skip

    return result


def test_zero_init_allows_no_difference_at_the_start_and_asks_for_harm_from_two_gaussians():
    def outcome(**of):
        return zero_init.CLAIM.conclude(made_up(zero_init.CLAIM, start_result(**of)))

    assert outcome().verdict == HOLDS and outcome().key == "logits bit-equal on 3 of 3 bases"
    assert outcome(harm=0.02).verdicts == {"strings": FAILS, "exact": HOLDS}
    assert (
        outcome(harm=(0.15, 0.35, 0.25)).verdicts["strings"] == NOISE
    )  # 0.25; two standard errors are 0.115, t's 0.169
    for key, wrong in (("equal_float32", False), ("equal_merged", False), ("gradient_norms", [[1e-9, 1.0], [1, 1]])):
        assert outcome(**{key: wrong}).verdicts["exact"] == FAILS
    check_numbers(outcome())
    loose = zero_init.CLAIM.conclude(shaken(made_up(zero_init.CLAIM, start_result()), rng(0)))
    assert_the_sentence_is_in_the_numbers(loose, {"0", "100"})


def test_zero_init_on_real_runs_starts_as_the_base_exactly(tiny_bases, monkeypatch):
    monkeypatch.setattr(zero_init, "STEPS", 5)
    monkeypatch.setattr(
        zero_init, "held_out_strings", lambda task: [zero_init.string_sampler((task,), 8)(np.random.default_rng(0))]
    )
    runs = [(c, zero_init.run(c)) for c in zero_init.configurations(Settings(1))]
    outcome = zero_init.CLAIM.conclude(runs)
    assert outcome.verdicts["exact"] == HOLDS and outcome.key == "logits bit-equal on 1 of 1 bases"
    moved = [(c, {**r, "largest_parameter": 1e-30} if c["start"] == "both zero" else r) for c, r in runs]
    assert zero_init.CLAIM.conclude(moved).verdicts["exact"] == FAILS


def test_rank_compares_a_small_r_with_a_large_one_in_each_world():
    def outcome(**of):
        return rank.CLAIM.conclude(made_up(rank.CLAIM, rank_result(**of)))

    assert outcome().verdict == HOLDS
    assert outcome(small=0.1).verdicts == {"exact": HOLDS, "strings": FAILS, "text": HOLDS}
    assert outcome(text_small=2.5).verdict == MIXED and outcome(text_small=2.5).verdicts["text"] == FAILS
    assert outcome(planted_loss=1e-6).verdicts["exact"] == FAILS
    assert outcome(small=(0.002, 0.010, 0.018)).verdicts["strings"] == NOISE  # 0.01 below; 0.0092 and 0.0135
    runs = made_up(rank.CLAIM, rank_result())
    assert rank.gained(runs, rank.FEW, rank.MANY) == pytest.approx([0.95] * 3)
    assert rank.behind(runs, "strings", rank.FEW, rank.MANY) == pytest.approx([0.005] * 3)
    check_numbers(outcome())
    loose = rank.CLAIM.conclude(shaken(runs, rng(0)))
    assert_the_sentence_is_in_the_numbers(loose, {"1", "4", "64", "300", "400", "1,000", "1,200"})


def test_rank_is_not_decided_by_answers_at_their_ceiling():
    """All answered, and still a hundredth of the bits: the loss tells, the answers do not."""
    outcome = rank.CLAIM.conclude(made_up(rank.CLAIM, rank_result(small=(0.03, 0.031, 0.032))))
    answers = next(m for m in outcome.measurements if m.part.name == "answers, of full fine-tuning's, r = 4")
    assert set(answers.values) == {100} and outcome.verdicts["strings"] == FAILS


def test_rank_of_a_planted_change_is_found_to_the_last_digit():
    """Eckart and Young: rank r leaves the sum of the squares of the singular values after the r-th."""
    for r, least in ((1, 9 + 4 + 1), (3, 1), (4, 0), (16, 0)):
        result = rank.run({"world": "planted", "seed": 0, "r": r})
        assert result["floor"] == least
        assert result["loss"] == pytest.approx(least, rel=1e-9, abs=1e-20)


def test_which_matrices_asks_that_q_and_v_lead_every_single_one():
    def outcome(**of):
        made = {"lora_qv_4": (0.9, 2.0), "lora_qk_4": (0.2, 3.0), "lora_vo_4": (0.2, 3.0), **of}
        return which_matrices.CLAIM.conclude(made_up(which_matrices.CLAIM, learned(0.5, 2.5, **made)))

    assert outcome().verdict == HOLDS
    assert outcome(lora_o_8=(0.9, 1.9)).verdict == FAILS
    assert outcome(lora_o_8=(0.9, (2.2, 2.3, 2.4))).verdict == HOLDS
    assert (
        outcome(lora_o_8=(0.9, (2.1, 2.3, 2.5))).verdict == NOISE
    )  # 0.3 ahead; two standard errors are 0.23, t's 0.34
    assert outcome(lora_qk_4=(0.9, 1.5)).verdict == FAILS  # the finding about pairs
    text_only = outcome(lora_k_8=(0.9, lambda c: 1.5 if c["base"][0] == "text" else 2.5))
    assert text_only.verdict == MIXED and text_only.verdicts == {"strings": HOLDS, "text": FAILS}
    check_numbers(outcome())
    loose = which_matrices.CLAIM.conclude(shaken(made_up(which_matrices.CLAIM, learned(0.5, 2.5)), rng(0)))
    assert_the_sentence_is_in_the_numbers(loose, set())


def switching_result(c):
    exact = {"base_equal": True, "adapters_equal": True, "own": {"a": 0.9}, "other": {"b": 0.0}}
    times = {"swap_ms": 1.0, "merge_ms": 0.5, "reload_ms": 4.0}
    return {
        **exact, **times, "adapter_bytes": 17_000, "base_bytes": 460_000, "kept_bytes": 65_536,
        "drift": [1e-7, 5e-7, 4e-6, 5e-5],
    }  # fmt: skip


def test_task_switching_allows_no_difference_at_all():
    runs = made_up(task_switching.CLAIM, switching_result)
    outcome = task_switching.CLAIM.conclude(runs)
    assert outcome.verdict == HOLDS
    for key in ("base_equal", "adapters_equal"):
        assert task_switching.CLAIM.conclude([*runs[1:], (runs[0][0], {**runs[0][1], key: False})]).verdict == FAILS
    assert task_switching.storage(350e9, 35e6, 100) == (353.5e9, 35e12)  # the paper's footnote 4
    check_numbers(outcome)
    assert_the_sentence_is_in_the_numbers(task_switching.CLAIM.conclude(shaken(runs, rng(0))), {"1", "1,000", "100"})


def test_a_weight_that_changes_are_added_to_and_taken_from_drifts():
    draw = rng(0)
    weights = {"w": draw.normal(size=(8, 8)).astype(np.float32)}
    changes = [{"w": draw.normal(size=(8, 8)).astype(np.float32)} for _ in range(2)]
    drift = task_switching._drift(weights, changes)
    assert len(drift) == len(task_switching.SWITCHES) and 0 < drift[0] < 1e-6 and drift[0] <= drift[-1] < 1e-3
    zero = [{"w": np.zeros((8, 8), np.float32)}] * 2
    assert task_switching._drift(weights, zero) == [0] * len(task_switching.SWITCHES)
