"""What holds for every claim, and each of them run, shrunk; their rules are tested in files of their own."""

import json
from functools import partial

import numpy as np
import pytest
from helpers import run_short
from made_up_claims import check_numbers, made_up, rank_result

from minilora import claims
from minilora.bases import held_out_strings, string_sampler
from minilora.claims import latency, rank
from minilora.claims.bases import pretrained, seeds
from minilora.claims.claim import HOLDS, UNDECIDED, Settings
from minilora.claims.figures import save_figure
from minilora.claims.report import closest_call, draw_figures, make_row, markdown, write_report
from minilora.data import fixed


@pytest.mark.parametrize("claim", [c for c in claims.CLAIMS if c.id != "zero_init"], ids=lambda claim: claim.id)
def test_every_claim_runs_concludes_and_draws(claim, tiny_bases, monkeypatch, tmp_path):
    monkeypatch.setattr(latency, "SECONDS", 0.1)
    runs = [(c, run_short(claim, c)) for c in claim.configurations(Settings(1, quick=True))]
    json.dumps([runs], allow_nan=False)  # what is kept, and what goes to other machines
    outcome = claim.conclude(runs)
    assert "nan" not in outcome.measured and "nan" not in outcome.key
    check_numbers(outcome)
    save_figure(tmp_path / "figure.png", partial(claim.draw, runs))
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"


def test_bases_starts_and_batches_have_seeds_of_their_own():
    for c in claims.find(["rank"])[0].configurations(Settings(3)):
        if "method" in c:
            assert {k: c[k] for k in ("adapter_seed", "data_seed")} == seeds(c["base"][1])
            assert len({c["base"][1], c["adapter_seed"], c["data_seed"]}) == 3


def test_the_closest_call_is_the_interval_nearest_to_its_limit():
    def said(**of):
        return closest_call(rank.CLAIM.conclude(made_up(rank.CLAIM, rank_result(**of))).measurements)

    assert said(small=(0.016, 0.019, 0.022)) == (
        "closest call: r = 4 behind r = 64, short on strings, 0.0139 to 0.0241 bits (n = 3)"
    )
    assert said(text_small=(2.08, 2.1, 2.13)).startswith(
        "closest call: gain of r = 64 that r = 4 reaches, short on text, 85.4 to"
    )
    assert closest_call([]) == "no number that scatters over bases is judged"


def test_every_claim_says_what_it_is_and_no_two_share_a_name():
    ids = [claim.id for claim in claims.CLAIMS]
    assert len(set(ids)) == len(ids)
    for claim in claims.CLAIMS:
        assert all((claim.statement, claim.where, claim.paper)) and 0 < len(claim.short.split()) <= 8
        assert claim.rule.startswith("holds if")
        for settings in (Settings(3), Settings(3, long=True), Settings(1, quick=True)):
            configurations = claim.configurations(settings)
            texts = [json.dumps(c, sort_keys=True) for c in configurations]
            assert len(set(texts)) == len(texts) > 0
    with pytest.raises(ValueError, match="no claim 'ranks'; there are: zero_init, alpha_learning_rate, invariance"):
        claims.find(["ranks"])


def test_a_quick_run_decides_equalities_only(tmp_path, monkeypatch):
    monkeypatch.setenv("MINILORA_CACHE", str(tmp_path / "cache"))
    runs = made_up(rank.CLAIM, rank_result())
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
