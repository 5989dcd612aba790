"""The claims about α, learning rates and the first step: α as a rate, the two free settings, α/r, and LoRA's rate."""

import math

import numpy as np
import pytest
from made_up_claims import assert_the_sentence_is_in_the_numbers, check_numbers, made_up, shaken

from minilora.claims import alpha_learning_rate, init_scaling, invariance, rank_scaling
from minilora.claims.claim import FAILS, HOLDS, MIXED, NOISE
from minilora.claims.two_factors import multiples, trained_delta


def alpha_result(identity=0.0, gamma=0.6):
    def result(c):
        if "identities" in c:
            return {f"{kind} {n}": v for kind in ("adam", "sgd") for n, v in (("3", 1e-15), ("4", identity))} | {
                "naive adam 3": 0.4
            }
        best = -6 - gamma * math.log2(c["alpha"] / 8)
        return {"bits": 0.1 + 0.05 * (math.log2(c["lr"]) - best) ** 2 + 0.01 * c["base"][1]}

    return result


def test_alpha_is_the_rate_where_the_identities_hold_exactly():
    def outcome(**of):
        return alpha_learning_rate.CLAIM.conclude(made_up(alpha_learning_rate.CLAIM, alpha_result(**of)))

    assert outcome().verdict == HOLDS and outcome(identity=1e-18).verdict == FAILS
    for gamma in (0.5, 0.7):
        runs = made_up(alpha_learning_rate.CLAIM, alpha_result(gamma=gamma))
        assert alpha_learning_rate.exponents(runs) == pytest.approx([gamma] * 3)
        assert alpha_learning_rate.losses_apart(runs) == pytest.approx([0] * 3, abs=3e-3)  # cells of √2
    check_numbers(outcome())
    loose = alpha_learning_rate.CLAIM.conclude(shaken(made_up(alpha_learning_rate.CLAIM, alpha_result()), rng(0)))
    assert_the_sentence_is_in_the_numbers(loose, {"3", "4"})


rng = np.random.default_rng


def test_a_run_with_more_alpha_is_another_run_and_the_naive_one_is_not():
    result = alpha_learning_rate.run({"identities": ["3", "4"]})
    for kind in ("adam", "sgd"):
        assert result[f"{kind} 3"] <= 1e-12 and result[f"{kind} 4"] == 0
        assert min(result[f"naive {kind} {c}"] for c in "34") > 0.05


def test_two_settings_are_free_and_no_multiple_may_be_left_out():
    runs = [(c, invariance.run(c)) for c in invariance.CLAIM.configurations(None)]
    outcome = invariance.CLAIM.conclude(runs)
    assert outcome.verdict == HOLDS and "bit-equal" in outcome.key
    check_numbers(outcome)
    assert_the_sentence_is_in_the_numbers(outcome, {"2", "3", "5"})
    for forgotten in multiples("adam", 3, 5):
        assert runs[0][1][f"adam, without {forgotten}"] > 1e-3, forgotten
    assert runs[0][1]["sgd, Adam's rates"] > 0.05
    for pair, wrong in (("p = 2, q = 4", 1e-17), ("p = 3, q = 5", 1e-9)):
        broken = [(runs[0][0], {**runs[0][1], f"sgd, {pair}": wrong})]
        assert invariance.CLAIM.conclude(broken).verdict == FAILS


def test_the_multiples_are_of_one_training():
    first = trained_delta("adam")
    assert np.array_equal(trained_delta("adam", **multiples("adam", 0.25, 8)), first)
    assert np.array_equal(trained_delta("sgd", **multiples("sgd", 0.25, 8)), trained_delta("sgd"))
    assert not np.allclose(trained_delta("adam", **multiples("sgd", 0.25, 8)), first)


def first_steps(adam=1.0, sgd=1.0, scatter=0.0, off=1e-14):
    """The fall of the loss for s = 1 follows these powers of r; the bases' are `scatter` apart."""

    def result(c):
        more = scatter * (c["base"][1] - 1)
        return {
            "off": off,
            "Adam": [float(r) ** (adam + more) for r in rank_scaling.RANKS],
            "SGD": [float(r) ** (sgd + more) for r in rank_scaling.RANKS],
        }

    return result


def test_the_first_step_keeps_its_size_with_one_scaling_for_each_optimizer():
    def outcome(**of):
        return rank_scaling.CLAIM.conclude(made_up(rank_scaling.CLAIM, first_steps(**of)))

    assert outcome().verdict == HOLDS and outcome(off=1e-6).verdict == FAILS
    assert outcome(sgd=1.5).verdict == FAILS and outcome(adam=0.5).verdict == FAILS
    assert outcome(adam=1.08, scatter=0.03).verdict == NOISE  # 0.05, 0.08, 0.11 off: two standard errors say 0.097
    check_numbers(outcome())
    loose = rank_scaling.CLAIM.conclude(shaken(made_up(rank_scaling.CLAIM, first_steps(scatter=0.1)), rng(0)))
    assert_the_sentence_is_in_the_numbers(loose, set())
    runs = made_up(rank_scaling.CLAIM, first_steps())
    assert rank_scaling.exponents(runs, "Adam", "α/√r") == pytest.approx([0.5] * 3)
    assert rank_scaling.exponents(runs, "SGD", "α/r") == pytest.approx([-1] * 3)


def test_the_first_step_is_what_the_formulas_say(tiny_bases, monkeypatch):
    monkeypatch.setattr(rank_scaling, "RANKS", (1, 4))
    result = rank_scaling.run({"base": ["strings", 0], "draws": 2, "adapter_seed": 1, "data_seed": 2})
    assert result["off"] < 1e-12 and all(len(result[kind]) == 2 and min(result[kind]) > 0 for kind in ("Adam", "SGD"))


def sweeps_made_up(shift=0.0, over_full=8.0, scatter=0.0):
    """Parabolas: LoRA's best rate at r = 1 is `over_full` times full fine-tuning's, at 64 `shift` doublings more."""

    def result(c):
        full = -8 + scatter * (c["base"][1] - 1)
        if "r" not in c:
            best = full
        else:
            best = -8 + math.log2(over_full) + shift * math.log2(c["r"]) / 6
            best -= math.log2(c["r"]) / 2 if "sqrt" in c["scaling"] else 0
        return {"bits": 0.5 + 0.04 * (math.log2(c["lr"]) - best) ** 2}

    return result


def test_alpha_over_r_spares_retuning_where_the_best_rate_stays():
    def outcome(**of):
        return init_scaling.CLAIM.conclude(made_up(init_scaling.CLAIM, sweeps_made_up(**of)))

    held = outcome(over_full=6.0)
    assert held.verdict == HOLDS and held.verdicts == {"strings": HOLDS, "text": HOLDS}
    assert outcome(over_full=6.0, shift=-1.5).verdict == FAILS
    assert outcome(over_full=1.2).verdicts["strings"] == FAILS  # on text it lies beyond the grid
    assert init_scaling.at_an_end(made_up(init_scaling.CLAIM, sweeps_made_up(over_full=1.2)), "text") == [2, 2, 2]
    # full's own scatter: LoRA's rate over it is 1.9, 2.3, 2.9 times, which two standard errors would pass
    assert outcome(over_full=2.35, scatter=0.3).verdict == NOISE
    check_numbers(held)
    runs = made_up(init_scaling.CLAIM, sweeps_made_up(over_full=6.0, shift=0.5))
    assert init_scaling.moved(runs, "strings", init_scaling.lora(64)) == pytest.approx([0.5] * 3)
    assert init_scaling.over_full(runs, "text", 1) == pytest.approx([6] * 3)
    loose = init_scaling.CLAIM.conclude(shaken(runs, rng(0)))
    assert_the_sentence_is_in_the_numbers(loose, {"1", "8", "64"})


def test_the_two_worlds_may_differ():
    def result(c):
        return sweeps_made_up(over_full=6.0, shift=2.0 if c["base"][0] == "text" else 0.0)(c)

    outcome = init_scaling.CLAIM.conclude(made_up(init_scaling.CLAIM, result))
    assert outcome.verdict == MIXED and outcome.verdicts == {"strings": HOLDS, "text": FAILS}
