"""What the benchmarks compare is the same work; how fast it is done is no business of a test."""

import array_gpt
import libraries
import numpy as np
import pytest
import scaling
import step_time

import minilora as ml
from minilora import functional as F


def test_the_gpt_for_other_libraries_has_minilora_s_loss():
    config, weights = libraries.plain_weights(T=12, D=16, L=2)
    ids, targets = libraries.data(3, 12)
    ours = F.cross_entropy(ml.GPT(config)(ids), targets).item()
    assert array_gpt.loss(np, config, weights, ids, targets) == pytest.approx(ours, rel=1e-5)


@pytest.mark.parametrize(
    "worker", [name for name in libraries.MAKERS if name.startswith(("minilora", "textbook", "products"))]
)
def test_our_own_workers_take_a_step(worker):
    about, step = libraries.MAKERS[worker](2, 32, 16, 1, 1)
    step()
    assert about


def test_every_ratio_names_workers_that_exist():
    pairs = [*step_time.RATIOS, *step_time.ALL_CORES, *step_time.MEMORY]
    assert {worker for pair in pairs for worker in pair} <= set(libraries.MAKERS)
    for bars in (*step_time.RATIOS.values(), *step_time.ALL_CORES.values()):
        assert len(bars) == len(step_time.CONFIGURATIONS)


def test_a_ratio_is_of_medians_and_its_quartiles_are_over_rounds():
    times = {"a": [1.0, 2.0, 3.0, 4.0, 5.0], "b": [2.0, 2.0, 2.0, 4.0, 20.0]}
    assert step_time.ratio(times, "a", "b") == (0.5, 1.5, 1.0)
    assert step_time.ratio(times, "a", "missing") is None


def test_the_exponent_of_a_power_law_is_found():
    assert scaling.exponent((1, 2, 4, 8), [3 * n**1.5 for n in (1, 2, 4, 8)]) == pytest.approx(1.5)


@pytest.mark.numpy_only("it counts NumPy's own products")
@pytest.mark.parametrize("method", scaling.METHODS)
def test_counted_multiplications_are_those_of_a_step(method, monkeypatch):
    """Every product of a step, counted where NumPy makes it."""
    D, L, T, B, r, V = 32, 2, 64, 4, 2, 40
    model = ml.GPT(ml.GPTConfig(vocab_size=V, context_length=T, d_model=D, n_layers=L, n_heads=2))
    if method == "LoRA":
        ml.add_lora(model, ml.LoRAConfig(r))
    ids, targets = np.random.default_rng(0).integers(0, V, (2, B, T))
    counted = 0
    real = np.matmul

    def matmul(a, b, *args, **kwargs):
        nonlocal counted
        result = real(a, b, *args, **kwargs)
        counted += result.size * a.shape[-1]
        return result

    monkeypatch.setattr(ml.backend.np, "matmul", matmul)
    monkeypatch.setitem(ml.backend.xp.__dict__, "matmul", matmul)
    F.cross_entropy(model(ids), targets).backward()
    # left out of the formula: sums done as products, and attention's blocks, which keep somewhat more than half
    assert scaling.multiplications(method, D, L, T, B, r, V) == pytest.approx(counted / 1e6, rel=0.25)
