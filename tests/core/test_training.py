"""The loop: what it descends, evaluates, reports and refuses, with every optimizer."""

import math

import numpy as np
import pytest

import minilora as ml
from minilora import functional as F
from minilora.backend import asarray, xp
from minilora.nn import Parameter
from minilora.training import evaluate_exact_match


def parameters(*values):
    return [Parameter(np.array(v, dtype=np.float64)) for v in values]


def test_adam_is_the_six_lines_of_the_paper(rng):
    p, q = parameters(rng.normal(size=(3, 2)), rng.normal(size=4))
    optimizer = ml.Adam([p, q], lr=0.1, betas=(0.8, 0.95), eps=1e-3)
    reference = [(x.numpy(), np.zeros(x.shape), np.zeros(x.shape)) for x in (p, q)]
    for t in range(1, 30):
        for i, x in enumerate((p, q)):
            g = rng.normal(size=x.shape)
            x.grad = asarray(g)
            theta, m, v = reference[i]
            m = 0.8 * m + 0.2 * g
            v = 0.95 * v + 0.05 * g**2
            m_hat = m / (1 - 0.8**t)
            v_hat = v / (1 - 0.95**t)
            theta = theta - 0.1 * m_hat / (np.sqrt(v_hat) + 1e-3)
            reference[i] = (theta, m, v)
        optimizer.step()
    for x, (theta, _, _) in zip((p, q), reference, strict=True):
        np.testing.assert_allclose(x.numpy(), theta, rtol=1e-12)


def test_adamw_decays_apart_from_the_gradient():
    (p,) = parameters([2.0])
    p.grad = xp.zeros(1)
    ml.AdamW([p], lr=0.1, weight_decay=0.5).step()
    assert p.data.item() == pytest.approx(2.0 * (1 - 0.1 * 0.5))


def test_groups_have_their_own_rates():
    p, q = parameters([1.0], [1.0])
    optimizer = ml.SGD([{"params": [p], "lr": 0.5}, {"params": [q]}], lr=0.1)
    p.grad = q.grad = xp.ones(1)
    optimizer.step()
    assert (p.data.item(), q.data.item()) == (0.5, 0.9)


@pytest.mark.parametrize("kind", [ml.Adam, ml.AdamW])
def test_an_optimizer_goes_on_from_its_state(kind, rng):
    (p,), (q,) = parameters([1.0, 2.0]), parameters([1.0, 2.0])
    first, second = kind([p], lr=0.1), kind([q], lr=0.7)
    for _ in range(3):
        p.grad = asarray(rng.normal(size=2))
        first.step()
    q.data[...] = p.data
    second.load_state_dict(first.state_dict())
    p.grad = q.grad = asarray(rng.normal(size=2))
    first.step()
    second.step()
    np.testing.assert_array_equal(p.numpy(), q.numpy())
    with pytest.raises(ValueError, match="shapes"):
        kind(parameters([1.0]), lr=0.1).load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match="this optimizer is SGD"):
        ml.SGD([p], lr=0.1).load_state_dict(first.state_dict())


def test_what_optimizers_refuse(small):
    model = small()
    early = ml.Adam(model.parameters(), lr=1e-3)
    trainable = ml.add_lora(model, ml.LoRAConfig(2))
    for params, error, message in [
        ([], ValueError, "no parameters"),
        (model.parameters(), ValueError, "frozen parameter.*add_lora returns"),
        ([*trainable, trainable[0]], ValueError, "twice"),
        ([np.ones(2)], TypeError, "takes parameters, not ndarray"),
        ([{"params": trainable, "momentum": 0.9}], ValueError, "does not know momentum"),
    ]:
        with pytest.raises(error, match=message):
            ml.Adam(params, lr=1e-3)
    for settings in ({"lr": -1}, {"lr": math.nan}, {"lr": 1, "betas": (1.0, 0.9)}, {"lr": 1, "eps": -1}):
        with pytest.raises(ValueError, match="must be"):
            ml.Adam(trainable, **settings)
    F.cross_entropy(model(np.ones((1, 3), int)), np.ones((1, 3), int)).backward()
    with pytest.raises(ValueError, match="before add_lora"):
        early.step()


def test_schedules():
    linear, cosine = ml.linear_schedule(100, warmup=0.1), ml.cosine_schedule(100, warmup=0.1, final=0.2)
    assert linear(0) == pytest.approx(0.1) and linear(9) == 1 and linear(55) == pytest.approx(0.5) and linear(100) == 0
    assert cosine(9) == 1 and cosine(55) == pytest.approx(0.6) and cosine(100) == pytest.approx(0.2)
    with pytest.raises(ValueError, match="schedule needs"):
        ml.linear_schedule(0)


def test_clipping_bounds_the_norm_of_all_together():
    p, q = parameters([3.0], [4.0])
    p.grad, q.grad = asarray([3.0]), asarray([4.0])
    assert ml.clip_grad_norm([p, q], 1.0).item() == pytest.approx(5)
    assert (p.grad.item(), q.grad.item()) == (pytest.approx(0.6), pytest.approx(0.8))
    ml.clip_grad_norm([p, q], 10.0)
    assert p.grad.item() == pytest.approx(0.6)


def test_training_learns_evaluates_and_reports(small, batch):
    model, calls = small(), []
    optimizer = ml.Adam(model.parameters(), lr=1e-2)
    history = ml.train(
        model,
        optimizer,
        lambda step: F.cross_entropy(model(batch[0]), batch[1]),
        30,
        schedule=ml.linear_schedule(30),
        clip=1.0,
        evaluate_every=10,
        evaluation=lambda: ml.evaluate(model, [batch]),
        callback=lambda done, loss: calls.append((done, loss)),
        log_every=1,
    )
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    assert history["evaluated_at"] == [10, 20, 30] and history["evaluation"][-1] < history["evaluation"][0]
    assert [done for done, _ in calls] == list(range(1, 31)) and [loss for _, loss in calls] == history["loss"]
    assert model.training


def test_a_loss_may_be_a_tensor_of_one_number_in_any_shape():
    (p,) = parameters([2.0])
    history = ml.train(ml.nn.Module(), ml.SGD([p], lr=0.25), lambda step: p * p, 3)
    assert history["loss"] == [4.0, 1.0, 0.25] and p.numpy() == [0.25]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_training_stops_at_the_first_loss_that_is_not_finite(small, batch, bad):
    model = small()
    optimizer = ml.SGD(model.parameters(), lr=0.1)
    seen = {}

    def loss(step):
        seen[step] = model.state_dict()
        value = F.cross_entropy(model(batch[0]), batch[1])
        return value * bad if step == 3 else value

    with pytest.raises(ml.DivergedError, match=rf"became {bad} at step 3"):
        ml.train(model, optimizer, loss, 10, log_every=1)
    assert max(seen) == 3
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, seen[3][name])


def test_evaluation_is_the_same_every_time_and_leaves_the_mode(small, batch):
    model = small()
    ml.add_lora(model, ml.LoRAConfig(2, dropout=0.5))
    assert ml.evaluate(model, [batch]) == ml.evaluate(model, [batch])
    assert model.training and 0 <= evaluate_exact_match(model.eval(), [batch]) <= 1 and not model.training
    with pytest.raises(ValueError, match="at least one batch"):
        ml.evaluate(model, [])


def test_sampling(small):
    model = small()
    greedy = ml.generate(model, [1, 2], 12, temperature=0)
    assert greedy.shape == (14,) and greedy[:2].tolist() == [1, 2]  # beyond the context of 8
    np.testing.assert_array_equal(greedy, ml.generate(model, [1, 2], 12, temperature=5.0, top_k=1, seed=9))
    one, two, other = (ml.generate(model, [1], 20, temperature=2.0, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other) and model.training
    few = ml.generate(model, [1], 200, temperature=100.0, top_k=2, seed=0)
    for t in range(1, 8):
        with ml.no_grad():
            logits = model(few[None, :t]).numpy()[0, -1]
        assert few[t] in np.argsort(logits)[-2:]
    for settings in ({"temperature": -1}, {"top_k": 0}, {"temperature": math.nan}):
        with pytest.raises(ValueError, match="must be"):
            ml.generate(model, [1], 3, **settings)
    with pytest.raises(ValueError, match="at least one token"):
        ml.generate(model, [], 3)
