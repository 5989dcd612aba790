"""The verdicts' rules on synthetic measurements, and one test named after each claim."""

import json
import math

import numpy as np
import pytest

from minilora import claims
from minilora.claims import alpha_learning_rate, rank, zero_init
from minilora.claims.bases import load_base
from minilora.claims.claim import FAILS, HOLDS, ILLUSTRATION, NOISE, Settings, at_least, deviation, worst
from minilora.claims.report import make_row, markdown, table, write_report
from minilora.gpt import GPT, GPTConfig
from minilora.tasks import WIDTH


def test_a_mean_above_the_threshold_by_two_standard_errors_holds():
    assert at_least([0.99, 0.98, 1.0], 0.95) == HOLDS
    assert at_least([0.70, 0.72, 0.71], 0.95) == FAILS
    assert at_least([0.99, 0.90, 0.97], 0.95) == NOISE
    assert at_least([0.99, math.nan], 0.95) == FAILS
    assert deviation([1, 2, 3]) == 1 and deviation([5]) == 0
    assert worst([HOLDS, NOISE, FAILS]) == FAILS and worst([HOLDS, NOISE]) == NOISE and worst([HOLDS]) == HOLDS


@pytest.fixture
def tiny_bases(monkeypatch):
    """Untrained one-layer models instead of the pretrained bases: the exact claims hold for any model."""

    def base(world, seed):
        sizes = {"d_model": 16, "n_layers": 2, "n_heads": 2}
        model = GPT(GPTConfig(96, WIDTH if world == "strings" else 64, **sizes), seed=seed)
        for _name, p in model.named_parameters():
            if p.ndim == 2:
                p.data *= 8
        return model

    for module in (zero_init, alpha_learning_rate, rank):
        monkeypatch.setattr(module, "load_base", base)


def runs_of(module, configurations):
    return [(c, module.run(c)) for c in configurations]


def test_zero_init_starts_as_the_base_exactly_and_still_learns(tiny_bases, monkeypatch):
    monkeypatch.setattr(zero_init, "STEPS", 5)
    monkeypatch.setattr(
        zero_init, "held_out_strings", lambda task: [zero_init.string_draw((task,), 8)(np.random.default_rng(0))]
    )
    runs = runs_of(zero_init, zero_init.configurations(Settings(1)))
    assert zero_init.conclude(runs).verdict == HOLDS
    for key, wrong in (("equal_float32", False), ("equal_merged", False), ("gradient_norms", [[1e-9, 1.0], [1, 1]])):
        broken = [(c, {**r, key: wrong} if c["start"] == "A Gaussian, B zero" else r) for c, r in runs]
        assert zero_init.conclude(broken).verdict == FAILS
    moved = [(c, {**r, "largest_parameter": 1e-30} if c["start"] == "both zero" else r) for c, r in runs]
    assert zero_init.conclude(moved).verdict == FAILS


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
    runs = [({"start": "identities"}, {"adam | x | 3": 1e-15, "adam | x | 4": 0.0, "adam | naive: lr·s | 3": 0.4})]
    runs += [
        ({"start": "fixed", "base": ["strings", s], "alpha": a, "lr": lr}, {"bits": (math.log2(lr * a**0.5) + 5) ** 2})
        for s in range(2)
        for a in alphas
        for lr in rates
    ]
    assert alpha_learning_rate.conclude(runs).verdict == HOLDS
    runs[0] = ({"start": "identities"}, {**runs[0][1], "adam | x | 4": 1e-18})
    assert alpha_learning_rate.conclude(runs).verdict == FAILS


def synthetic_rank(accuracy, full=1.0, loss=0.0):
    runs = [
        ({"world": "planted", "seed": 0, "r": r}, {"loss": loss, "floor": 0.0, "start": 30.0})
        for r in rank.PLANTED_RANKS
    ]
    for s in range(3):
        for task in rank.STRING_TASKS:
            for r in rank.STRING_RANKS:
                runs.append(
                    ({"world": "strings", "base": ["strings", s], "task": task, "r": r}, {"accuracy": accuracy[s]})
                )
            runs.append(({"world": "strings", "base": ["strings", s], "task": task, "r": "full"}, {"accuracy": full}))
        for r in (*rank.TEXT_RANKS, "all-linear 16", "full"):
            bits = 2.0 if r == "full" else 2.5
            runs.append(({"world": "text", "base": ["text", s], "r": r}, {"before": 3.0, "bits": bits}))
    return runs


def test_rank_verdict_follows_the_strings_and_the_planted_floor():
    assert rank.conclude(synthetic_rank([0.99, 0.98, 1.0])).verdict == HOLDS
    assert rank.conclude(synthetic_rank([0.80, 0.82, 0.79])).verdict == FAILS
    assert rank.conclude(synthetic_rank([0.99, 0.85, 0.97])).verdict == NOISE
    assert rank.conclude(synthetic_rank([0.99, 0.98, 1.0], loss=1e-6)).verdict == FAILS
    assert "50, 50, 50 % of the gap (does not hold" in rank.conclude(synthetic_rank([1, 1, 1])).measured


def test_rank_of_a_planted_change_is_found_to_the_last_digit():
    """Eckart and Young: rank r leaves the sum of the squares of the singular values after the r-th."""
    for r, least in ((1, 9 + 4 + 1), (3, 1), (4, 0), (16, 0)):
        result = rank.run({"world": "planted", "seed": 0, "r": r})
        assert result["floor"] == least
        assert result["loss"] == pytest.approx(least, rel=1e-9, abs=1e-20)


def test_rank_string_and_text_runs_train(tiny_bases, monkeypatch):
    monkeypatch.setattr(rank, "held_out_strings", lambda task: [rank.string_draw((task,), 8)(np.random.default_rng(0))])
    monkeypatch.setattr(rank, "held_out_text", lambda which: [rank.text_draw(which, 2)(np.random.default_rng(0))])
    for r in (2, "full"):
        result = rank.run({"world": "strings", "base": ["strings", 0], "task": "pairs", "r": r, "steps": 2})
        assert 0 <= result["accuracy"] <= 1
    for r in (8, "all-linear 16", "full"):
        result = rank.run({"world": "text", "base": ["text", 0], "r": r, "steps": 3})
        assert 0 < result["bits"] != result["before"]


def test_every_claim_says_what_it_is_and_no_two_share_a_name():
    ids = [claim.id for claim in claims.CLAIMS]
    assert len(set(ids)) == len(ids)
    for claim in claims.CLAIMS:
        assert all((claim.statement, claim.where, claim.paper)) and claim.rule.startswith("holds if")
        for settings in (Settings(3), Settings(1, quick=True)):
            configurations = claim.configurations(settings)
            texts = [json.dumps(c, sort_keys=True) for c in configurations]
            assert len(set(texts)) == len(texts) > 0
    with pytest.raises(ValueError, match="no claim 'ranks'; there are: zero_init, alpha_learning_rate, rank"):
        claims.find(["ranks"])


def test_a_quick_run_decides_exact_claims_only(tmp_path):
    runs = synthetic_rank([1.0, 1.0, 1.0])
    settings = Settings(3, quick=True)
    row = make_row(rank.CLAIM, runs, settings, 1.25)
    assert row["verdict"] == ILLUSTRATION
    assert make_row(rank.CLAIM, runs, Settings(3), 1.25)["verdict"] == HOLDS
    write_report(tmp_path, [rank.CLAIM], {"rank": runs}, [row], settings)
    report = json.loads((tmp_path / "claims.json").read_text(encoding="utf-8"))
    assert report["quick"] is True and report["seeds"] == 3
    assert list(report["claims"][0]) == [
        "id", "statement", "where", "paper", "measured", "spread", "rule", "verdict", "seconds", "figure",
    ]  # fmt: skip
    assert (tmp_path / "rank.png").read_bytes()[:4] == b"\x89PNG"
    assert ILLUSTRATION in markdown([row], settings) and ILLUSTRATION.upper() in table([row])


@pytest.mark.slow
def test_a_base_is_pretrained_once_and_knows_its_tasks(tmp_path, monkeypatch):
    from minilora.claims import bases
    from minilora.tasks import PRETRAINING
    from minilora.training import evaluate_exact_match

    monkeypatch.setenv("MINILORA_CACHE", str(tmp_path))
    model = load_base("strings", 0)
    known = bases.fixed(bases.string_draw(PRETRAINING, 128, held_out=True), 2)
    assert evaluate_exact_match(model, known) > 0.85
    assert evaluate_exact_match(model, bases.held_out_strings("revupper")) < 0.01
    again = load_base("strings", 0)
    assert all(
        np.array_equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    )
