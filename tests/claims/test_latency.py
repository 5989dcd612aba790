"""The latency claim: what is counted, what is timed, and that noise turns no verdict round."""

import numpy as np
import pytest
from made_up_claims import assert_the_sentence_is_in_the_numbers, check_numbers, learned, made_up, shaken

import minilora as ml
from minilora.claims import latency
from minilora.claims.claim import FAILS, HOLDS, NOISE, Part
from minilora.claims.measures import median_interval
from minilora.claims.products import counted
from minilora.claims.rules import median_at_least, median_at_most

rng = np.random.default_rng
ALL = ("base", "base again", *latency.VARIANTS)


def rounds(noise, seed, merged=1.0, adapters=1.2, load=None, n=60):
    """Times of every variant in every round, each multiplied by what `load(draw, round's draw, n)` says."""
    draw = rng(seed)
    times = {}
    for name in ALL:
        level = {latency.MERGED: merged, latency.HOULSBY: adapters}.get(name, 1.0)
        slowed = load(draw, rng(-seed % 1000), n) if load else 1.0
        times[name] = (level * (1 + noise * draw.normal(size=n)) * slowed).clip(0.1).tolist()
    return times


def runs_of(noise=0.01, extra=0, **of):
    def result(c):
        if "count" in c:
            return {
                name: {"products": 25 + (extra if name == latency.MERGED else 0), "multiply_adds": 1000} for name in ALL
            }
        if "seconds" in c:
            return {"milliseconds": rounds(noise, c["time"], **of)}
        made = learned(0.9, 2.5, 3.0)(c)
        return {**made, "bits_at_end_shortened": [2.5, 2.6, 2.7, 2.9]} if "shortened" in c else made

    return made_up(latency.CLAIM, result)


def verdict(**of):
    return latency.CLAIM.conclude(runs_of(**of)).verdict


def test_merged_lora_is_the_base_within_the_tolerance_and_adapters_are_slower():
    assert verdict() == HOLDS and verdict(merged=0.9) == HOLDS
    assert verdict(merged=1.1) == FAILS and verdict(adapters=0.9) == FAILS
    assert verdict(adapters=1.0, noise=0.05) == NOISE
    more = latency.CLAIM.conclude(
        [
            (c, {**r, latency.MERGED: {"products": 25, "multiply_adds": 1001}} if "count" in c else r)
            for c, r in runs_of()
        ]
    )
    assert more.verdict == FAILS  # one multiply-add more is no noise
    outcome = latency.CLAIM.conclude(runs_of())
    check_numbers(outcome)
    loose = latency.CLAIM.conclude(shaken(runs_of(), rng(0)))
    assert_the_sentence_is_in_the_numbers(loose, {"8", "16", "32", "48", "128", "4", "64", "1"})
    assert latency.hard_to_train(runs_of(), 48) == pytest.approx([-0.4] * 3)


def spikes(draw, of_round, n):
    return 1 + (draw.random(n) < 0.3) * draw.exponential(1.0, n)


def slow_stretches(draw, of_round, n):
    return 1 + 0.5 * np.repeat(of_round.random(n // 10) < 0.5, 10)


def shared_machine(draw, of_round, n):
    return (1 + 0.3 * draw.random(n)) * (1 + of_round.random(n))


@pytest.mark.parametrize("load", [spikes, slow_stretches, shared_machine])
def test_noise_never_turns_a_verdict_round(load):
    """Twenty machines that are busy with something else: none says that merged LoRA is slower, or adapters faster."""
    for seed in range(20):
        times = rounds(0.02, seed, load=load)
        for variant, rule in ((latency.MERGED, median_at_most(1.02)), (latency.HOULSBY, median_at_least(1))):
            ratios = latency._over_base(times, variant)
            assert Part("x", "time", lambda runs, r=ratios: r, rule=rule).measured([]).verdict in (HOLDS, NOISE)


@pytest.mark.parametrize("load", [spikes, slow_stretches, shared_machine])
def test_noise_makes_no_model_faster_than_its_equal(load):
    """Of 200 busy machines the rule may err on one; a ratio that noise moves would be called faster on dozens."""
    verdicts = []
    for seed in range(200):
        ratios = latency._over_base(rounds(0.02, seed, adapters=1.0, load=load, n=240), latency.HOULSBY)
        verdicts.append(Part("x", "time", lambda runs, r=ratios: r, rule=median_at_least(1)).measured([]).verdict)
    assert verdicts.count(FAILS) <= 4


def test_the_interval_of_a_median_is_between_two_of_the_values():
    assert median_interval([1, 2, 3, 4]) == (-np.inf, np.inf)  # four coins all fall the same way too often
    assert median_interval([5, 1, 3, 2, 4]) == (1, 5)  # five do so in 3 % of all cases
    low, high = median_interval(list(range(100)))
    assert (low, high) == (41, 58)  # the 42nd and the 59th, as tables of the sign test have it
    inside = sum(a <= 0 <= b for a, b in (median_interval(rng(seed).normal(size=25).tolist()) for seed in range(400)))
    assert 0.88 <= inside / 400 <= 0.97


def test_the_products_of_a_forward_and_a_backward_pass_are_counted():
    x = ml.Tensor(np.ones((3, 5)))
    weight = ml.Tensor(np.ones((7, 5)), requires_grad=True)
    with counted() as count:
        y = ml.functional.linear(x, weight)
    assert (count.products, count.forward, count.backward) == (1, 3 * 5 * 7, 3 * 5 * 7)  # dW; x needs none
    y.sum().backward()
    with counted() as count:
        model = ml.GPT(ml.GPTConfig(7, 6, 8, 2, 2), seed=0)
        model(np.zeros((2, 6), dtype=int))
    rows, D = 12, 8
    linear = 2 * rows * (4 * D * D + 8 * D * D) + rows * 7 * D  # four projections and the MLP of two blocks; the head
    attention = 2 * 2 * (2 * 6 * 6 * D)  # scores and values of two blocks, two texts
    assert count.forward == linear + attention and count.backward == 2 * count.forward - rows * 0
    assert count.products == 2 * (6 + 2) + 1
    plain = ml.Tensor.__matmul__
    with pytest.raises(ZeroDivisionError), counted():
        raise ZeroDivisionError
    assert ml.Tensor.__matmul__ is plain


def test_a_models_time_is_taken_until_it_is_known_or_the_time_is_up(monkeypatch):
    monkeypatch.setattr(latency, "FEWEST", 6)
    models = latency._models(40)
    ids = rng(0).integers(0, 96, (1, 8))
    monkeypatch.setattr(latency, "NARROW", 10.0)
    times = latency._time(models, ids, 0.0)
    assert all(len(of) == 6 for of in times.values()) and set(times) == set(ALL)
    assert latency._count(models[latency.MERGED], ids) == latency._count(models["base"], ids)
    assert latency._count(models["LoRA unmerged"], ids)["products"] > latency._count(models["base"], ids)["products"]
