"""The claims that compare LoRA with other ways: full fine-tuning, rivals of its size, little data, forgetting."""

import math

import numpy as np
import pytest
from made_up_claims import assert_the_sentence_is_in_the_numbers, check_numbers, learned, made_up, shaken

from minilora.backend import backend_name
from minilora.claims import forgetting, full_quality, low_data, rivals
from minilora.claims.claim import FAILS, HOLDS, MIXED, NOISE, Settings
from minilora.claims.measures import log_odds

rng = np.random.default_rng


def of_world(strings, text):
    """Bits on strings and on text, each a number or one a base."""

    def bits(c):
        value = strings if c["base"][0] == "strings" else text
        return value[c["base"][1]] if isinstance(value, tuple) else value

    return bits


def quality_runs(strings=0.005, text=2.05):
    made = {"full": (1.0, of_world(0.0, 2.0)), "lora_qv_4": (0.9, of_world(strings, text))}
    return made_up(full_quality.CLAIM, learned(0.95, of_world(0.005, 2.05), 3.0, **made))


def test_lora_is_as_good_as_full_fine_tuning_by_bits_on_strings_and_by_the_gain_on_text():
    def outcome(**of):
        return full_quality.CLAIM.conclude(quality_runs(**of))

    assert outcome().verdict == HOLDS and outcome().verdicts == {"strings": HOLDS, "text": HOLDS}
    assert outcome(strings=0.1).verdicts == {"strings": FAILS, "text": HOLDS} and outcome(strings=0.1).verdict == MIXED
    assert outcome(strings=0.1, text=2.5).verdict == FAILS
    # 0.01 below the limit; two standard errors are 0.0092, t's 0.0135
    assert outcome(strings=(0.002, 0.010, 0.018)).verdicts["strings"] == NOISE
    check_numbers(outcome())
    loose = full_quality.CLAIM.conclude(shaken(quality_runs(), rng(0)))
    assert_the_sentence_is_in_the_numbers(loose, {"1", "4", "64"})


def test_full_quality_does_not_read_answers_at_their_ceiling():
    made = {"full": (1.0, 0.0), "lora_qv_4": (1.0, of_world((0.03, 0.031, 0.032), 2.0))}
    runs = made_up(full_quality.CLAIM, learned(1.0, of_world(0.0, 2.0), 3.0, **made))
    assert full_quality.CLAIM.conclude(runs).verdicts["strings"] == FAILS


def rivals_runs(text=2.9, **of):
    made = {"lora_qv_4": (0.9, of_world(0.1, 2.5)), "bitfit": (0.5, of_world(0.8, text)), **of}
    return made_up(rivals.CLAIM, learned(0.5, of_world(1.0, 2.9), 3.0, **made))


def test_lora_is_ahead_of_every_rival_of_its_size_at_each_length_in_each_world():
    def outcome(**of):
        return rivals.CLAIM.conclude(rivals_runs(**of))

    assert outcome().verdict == HOLDS
    assert outcome(text=2.4).verdicts == {"strings": HOLDS, "text": FAILS} and outcome(text=2.4).verdict == MIXED
    # 0.3 ahead; two standard errors are 0.23, t's 0.34
    assert outcome(text=(2.6, 2.8, 3.0)).verdicts["text"] == NOISE
    late = (0.5, lambda c: 0.05 if c["steps"] == 1000 else 1.0)
    assert outcome(prefix_8=late).verdicts["strings"] == FAILS  # behind after the long training alone
    bigger = outcome(last_block=(0.9, of_world(0.01, 2.0)))
    assert bigger.verdict == HOLDS  # the last block is shown and not judged: it is 24 times as large
    check_numbers(outcome())
    loose = rivals.CLAIM.conclude(shaken(rivals_runs(), rng(0)))
    assert_the_sentence_is_in_the_numbers(loose, {"8"})


def test_rivals_have_about_as_many_numbers_as_lora():
    from minilora.bases import load_base

    sizes = {}
    for name, method in {**rivals.RIVALS, "LoRA": rivals.LORA}.items():
        _, parameters = method.prepare(load_base("strings"), 0)
        sizes[name] = sum(p.size for p in parameters)
    assert sizes == {
        "BitFit": 1472, "prompt of 8": 512, "prefix of 8": 2048, "adapters (Houlsby)": 2320, "adapters (Lin)": 1932,
        "LoRA": 2048,
    }  # fmt: skip


def low_data_result(small=0.03, full=0.3, stopped=0.2, answered=(0.5, 0.5, 0.5)):
    def result(c):
        if "r" in c:
            more = 0.001 * c["seed"]
            whole = {"excess": full + more, "stopped": stopped + more}
            return whole if c["r"] == "full" else {"excess": small + more}
        return learned(0.4, lora_qv_4=(answered, 2.5))(c)

    return result


def test_little_data_asks_for_a_lead_over_both_ways_of_full_fine_tuning():
    def outcome(**of):
        return low_data.CLAIM.conclude(made_up(low_data.CLAIM, low_data_result(**of)))

    assert outcome().verdict == HOLDS
    assert outcome(answered=(0.3, 0.31, 0.29)).verdicts == {"strings": FAILS, "exact": HOLDS}
    assert outcome(full=0.01).verdicts["exact"] == outcome(stopped=0.01).verdicts["exact"] == FAILS
    assert outcome(answered=(0.5, 0.2, 0.45)).verdicts["strings"] == NOISE
    check_numbers(outcome())
    loose = low_data.CLAIM.conclude(shaken(made_up(low_data.CLAIM, low_data_result()), rng(0)))
    assert_the_sentence_is_in_the_numbers(loose, {"64", "2", "16", "256", "1024"})


def test_no_answer_and_every_answer_have_log_odds():
    assert log_odds(0.5) == 0 and log_odds(1) == -log_odds(0)
    assert log_odds(1) == pytest.approx(math.log2(512.5 / 0.5))


def test_low_data_errors_grow_with_the_count_of_free_directions_and_stopping_helps_the_whole_matrix():
    excess = {r: [low_data.run({"seed": s, "r": r}) for s in range(3)] for r in (2, 8, "full")}
    means = {r: np.mean([result["excess"] for result in of]) for r, of in excess.items()}
    assert 3 * means[2] < means[8] < means["full"]
    assert all(result["stopped"] < result["excess"] for result in excess["full"])


def test_the_path_of_gradient_descent_is_gradient_descents():
    """By hand, in small steps: the closed form has the same best moment."""
    draw = rng(0)
    x, y, change = draw.normal(size=(20, 4)), draw.normal(size=(20, 3)), draw.normal(size=(3, 4))
    delta, best = np.zeros((3, 4)), np.inf
    for _ in range(20_000):
        best = min(best, ((delta - change) ** 2).sum())
        delta -= 2e-4 * (x @ delta.T - y).T @ x
    assert low_data._best_on_the_path(x, y, change) == pytest.approx(best, rel=2e-3)


# ---- forgetting ----------------------------------------------------------------------------------------


def test_the_front_is_the_least_that_is_forgotten_for_so_much():
    ends = [[0.0, 0.0], [1.0, 0.4], [0.5, 0.5], [2.0, 1.0], [1.5, 2.0]]  # two of them worse in both
    assert forgetting.forgotten_at(ends, 1.0) == 0.4 and forgetting.forgotten_at(ends, 2.0) == 1.0
    assert forgetting.forgotten_at(ends, 0.5) == pytest.approx(0.2) and forgetting.forgotten_at(ends, 1.5) == 0.7
    assert math.isnan(forgetting.forgotten_at(ends, 2.5))  # never learned so much


def forgetting_result(full=1.0, scatter=0.0):
    """Both methods forget the square of what they learn; full fine-tuning `full` times as much."""

    def result(c):
        times = full + scatter * (c["base"][1] - 1) if c["method"] == "full" else 1.0
        most = 1.0 if c["method"] == "full" else 0.6
        reach = [most * v for v in forgetting.VOLUMES] if c["doublings"] == 0 else [most / 2]
        return {"points": [[learned, times * learned**2] for learned in reach]}

    return result


def test_forgetting_is_compared_at_equal_learning():
    def outcome(**of):
        return forgetting.CLAIM.conclude(made_up(forgetting.CLAIM, forgetting_result(**of)))

    assert outcome(full=2.0).verdict == HOLDS and outcome(full=0.5).verdict == FAILS
    assert outcome(full=1.3, scatter=0.2).verdict == NOISE  # 0.3 more; two standard errors are 0.23, t's 0.34
    runs = made_up(forgetting.CLAIM, forgetting_result(full=2.0))
    assert forgetting.most(runs, forgetting.LORA) == pytest.approx([0.6] * 3)
    assert forgetting.saved(runs, 0.9) == pytest.approx([0.54**2] * 3, rel=0.05)
    assert forgetting.of_volume(runs, 0) == [0.5] * 3 and forgetting.of_volume(runs, 1) == [0.25] * 3
    check_numbers(outcome(full=2.0))
    loose = forgetting.CLAIM.conclude(shaken(runs, rng(0)))
    assert_the_sentence_is_in_the_numbers(loose, {"50", "90"})


def test_a_volume_of_zero_is_the_base_and_of_one_the_trained_model(tiny_bases):
    for c in forgetting.configurations(Settings(1, quick=True)):
        points = forgetting.run({**c, "steps": 3})["points"]
        assert len(points) == len(forgetting.VOLUMES) and points[0] == [0, 0] and points[-1] != [0, 0]
        plain = forgetting.run({**c, "steps": 3, "doublings": 2})["points"]  # the same lr: only λ = 1 is read
        rounding = 0 if backend_name() == "numpy" else 1e-5  # a GPU does not round alike twice
        assert plain == [pytest.approx(points[-1], abs=rounding, rel=0)]
