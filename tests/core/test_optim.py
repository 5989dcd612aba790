"""Optimizers, schedules and clipping: their formulas, their states, what they refuse."""

import math

import numpy as np
import pytest
from helpers import ALL_TARGETS, batches, lora_gpt, loss, snapshot, tiny_gpt

import minilora as ml
from minilora.backend import asarray, to_numpy, xp
from minilora.nn import Module, Parameter
from minilora.optim import grad_norm


def parameter(*values):
    return Parameter(np.array(values, dtype=np.float64))


def reference_step(kind, theta, m, v, g, t, lr):
    """The papers' algorithms, line by line."""
    if kind is ml.SGD:
        return theta - lr * g, m, v
    if kind is ml.AdamW:
        theta = theta - lr * 0.01 * theta
    m = 0.9 * m + 0.1 * g
    v = 0.999 * v + 0.001 * g * g
    return theta - lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8), m, v


@pytest.mark.parametrize("kind", [ml.SGD, ml.Adam, ml.AdamW])
def test_an_optimizer_follows_its_paper_under_a_schedule_and_in_groups(kind):
    """Gradients from 1e-12 to 1e6, one group at a tenth of the rate, and a parameter without a gradient."""
    rng = np.random.default_rng(0)
    p, q, idle = parameter(*rng.normal(size=5)), parameter(*rng.normal(size=5)), parameter(1.0)
    optimizer = kind([{"params": [p, idle]}, {"params": [q], "lr": 0.003}], lr=0.03)
    expected = [[x.numpy(), np.zeros(5), np.zeros(5)] for x in (p, q)]
    for t in range(1, 41):
        factor = ml.linear_schedule(40, warmup=0.25)(t - 1)
        for group in optimizer.groups:
            group["lr"] = group["initial_lr"] * factor
        for x, state, lr in zip((p, q), expected, (0.03, 0.003), strict=True):
            g = rng.normal(size=5) * 10.0 ** np.array([-12, -6, -1, 0, 6])
            x.grad = asarray(g)
            state[:] = reference_step(kind, *state, g, t, lr * factor)
        optimizer.step()
        for x, state in zip((p, q), expected, strict=True):
            np.testing.assert_allclose(x.numpy(), state[0], rtol=1e-12)
    assert idle.data.item() == 1.0


def test_decay_does_not_pass_through_the_moments():
    """With decay in the gradient, as in Adam with L2, the moments would see it."""
    p, q = parameter(5.0), parameter(5.0)
    plain, decayed = ml.Adam([p], lr=0.1), ml.AdamW([q], lr=0.1, weight_decay=0.5)
    p.grad = q.grad = asarray([0.3])
    plain.step()
    decayed.step()
    for slot in ("m", "v"):
        assert plain.state[slot][0].item() == decayed.state[slot][0].item()
    assert q.data.item() == pytest.approx(p.data.item() - 0.1 * 0.5 * 5.0, rel=1e-12)


def test_a_state_dict_is_a_copy():
    p = parameter(1.0)
    optimizer = ml.Adam([p], lr=0.1)
    p.grad = xp.ones(1)
    optimizer.step()
    state = optimizer.state_dict()
    before = state["arrays"]["m"][0].copy()
    optimizer.step()
    assert state["arrays"]["m"][0] == before and state["steps"] == 1
    other = ml.Adam([parameter(1.0)], lr=0.1)
    other.load_state_dict(state)
    state["arrays"]["m"][0][...] = 77
    assert other.state["m"][0].tolist() == before.tolist()


def test_zero_grad_forgets_and_a_step_needs_a_gradient():
    p = parameter(1.0)
    optimizer = ml.SGD([p], lr=0.1)
    p.grad = xp.ones(1)
    optimizer.zero_grad()
    assert p.grad is None
    with pytest.raises(ValueError, match=r"No parameter of this optimizer has a gradient: call backward\(\) first"):
        optimizer.step()
    assert p.data.item() == 1.0


@pytest.mark.parametrize("frozen", ["all", "some"])
def test_frozen_parameters_are_refused(frozen):
    model = lora_gpt()
    params = model.parameters()
    if frozen == "all":
        params = [p for p in params if not p.requires_grad]
    with pytest.raises(ValueError, match=r"frozen parameter \(number 0.*add_lora returns"):
        ml.AdamW(params, lr=0.1)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (lambda p: p, "takes a list of parameters, not one alone"),
        (lambda p: [{"lr": 0.1}], 'under "params"'),
        (lambda p: [{"params": [p]}, p], 'under "params"'),
        (lambda p: [p, {"params": [p]}], "takes parameters, not dict"),
        (lambda p: ["weight"], "takes parameters, not str"),
    ],
)
def test_what_is_no_list_of_parameters_is_refused(params, message):
    with pytest.raises(TypeError, match=message):
        ml.Adam(params(parameter(1.0, 2.0)), lr=0.1)


def test_the_same_parameter_in_two_groups_is_refused():
    p = parameter(1.0)
    with pytest.raises(ValueError, match="the same parameter twice"):
        ml.SGD([{"params": [p]}, {"params": [p], "lr": 0.2}], lr=0.1)


# ---- schedules and clipping --------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [ml.linear_schedule, ml.cosine_schedule])
@pytest.mark.parametrize(("warmup", "final"), [(0.0, 0.0), (0.2, 0.1), (0.5, 1.0)])
def test_a_schedule_rises_to_one_and_falls_to_its_end(schedule, warmup, final):
    factor = schedule(50, warmup, final)
    rise = round(50 * warmup)
    values = [factor(step) for step in range(51)]
    np.testing.assert_allclose(values[:rise], np.arange(1, rise + 1) / rise if rise else [], rtol=1e-12)
    assert values[rise] == 1 and values[50] == pytest.approx(final) and factor(1000) == pytest.approx(final)
    assert all(a >= b for a, b in zip(values[rise:], values[rise + 1 :], strict=False))
    middle = (rise + 50) // 2
    exact = (middle - rise) / (50 - rise)
    fall = 1 - exact if schedule is ml.linear_schedule else 0.5 * (1 + math.cos(math.pi * exact))
    assert values[middle] == pytest.approx(final + (1 - final) * fall)


@pytest.mark.parametrize("settings", [(0,), (10, 1.0), (10, -0.1), (10, 0.0, 1.5), (10, math.nan)])
def test_a_schedule_that_cannot_be_is_refused(settings):
    with pytest.raises(ValueError, match="A schedule needs"):
        ml.cosine_schedule(*settings)


def test_clipping_scales_all_gradients_alike_and_leaves_small_ones_alone():
    model = tiny_gpt()
    loss(model).backward()
    before = [to_numpy(p.grad).copy() for p in model.parameters()]
    norm = grad_norm(model.parameters()).item()
    assert norm == pytest.approx(np.sqrt(sum((g.astype(float) ** 2).sum() for g in before)), rel=1e-6)
    ml.clip_grad_norm(model.parameters(), norm * 2)
    assert all(np.array_equal(to_numpy(p.grad), g) for p, g in zip(model.parameters(), before, strict=True))
    assert ml.clip_grad_norm(model.parameters(), norm / 4).item() == pytest.approx(norm)
    for p, g in zip(model.parameters(), before, strict=True):
        np.testing.assert_allclose(to_numpy(p.grad), g / 4, rtol=1e-5, atol=1e-12)
    for wrong in (0, -1, math.nan):
        with pytest.raises(ValueError, match="max_norm must be above 0"):
            ml.clip_grad_norm(model.parameters(), wrong)


# ---- the loop ----------------------------------------------------------------------------------------


def test_the_loop_is_the_few_lines_it_says_it_is():
    model, other = tiny_gpt(), tiny_gpt()
    optimizer, plain = ml.AdamW(model.parameters(), lr=0.01), ml.AdamW(other.parameters(), lr=0.01)
    schedule = ml.cosine_schedule(6, warmup=0.4)
    history = ml.train(model, optimizer, ml.batch_loss(model, batches(model)), 6, schedule=schedule, clip=0.2)
    losses = []
    for step in range(6):
        plain.zero_grad()
        value = loss(other, step)
        value.backward()
        ml.clip_grad_norm(other.parameters(), 0.2)
        plain.groups[0]["lr"] = 0.01 * schedule(step)
        plain.step()
        losses.append(value.item())
    assert history == {"loss": losses, "evaluated_at": [], "evaluation": []}
    assert snapshot(model) == snapshot(other)


@pytest.mark.parametrize("kind", [ml.SGD, ml.Adam])
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("lr", [1e1, 1e5, 1e9, 1e13])
def test_a_run_that_diverges_stops_with_parameters_that_are_finite(kind, clip, lr):
    """A finite loss may still have a gradient that is not: it must not reach the parameters."""
    model = tiny_gpt()
    seen = []

    def watched(step):
        seen.append(snapshot(model))
        return loss(model, step)

    try:
        with np.errstate(all="ignore"):
            ml.train(model, kind(model.parameters(), lr=lr), watched, 20, clip=clip, log_every=1)
    except ml.DivergedError as error:
        assert f"at step {len(seen) - 1}" in str(error) and "smaller learning rate" in str(error)
        assert snapshot(model) == seen[-1]
    assert all(np.isfinite(p.numpy()).all() for p in model.parameters())


def test_such_runs_do_diverge():
    """Else the test above would show nothing."""
    model = tiny_gpt()
    with np.errstate(all="ignore"), pytest.raises(ml.DivergedError):
        ml.train(model, ml.SGD(model.parameters(), lr=1e9), lambda step: loss(model, step), 20)


def test_a_gradient_that_is_not_finite_stops_before_the_step():
    p = parameter(1.0, 2.0)

    def root_of_nothing(step):
        return (p * p).sum() if step < 2 else ml.functional.sqrt(p * 0).sum()  # the loss is 0, its slope 0 · ∞

    with np.errstate(all="ignore"), pytest.raises(ml.DivergedError, match="norm of the gradients became nan at step 2"):
        ml.train(Module(), ml.SGD([p], lr=0.25), root_of_nothing, 5, log_every=1)
    assert p.data.tolist() == [0.25, 0.5]


def test_a_loss_that_is_not_finite_stops_even_where_its_gradient_is_finite():
    p = parameter(1.0)
    with pytest.raises(ml.DivergedError, match="the loss became inf at step 2"):
        ml.train(Module(), ml.SGD([p], lr=0.25), lambda step: p.sum() + (np.inf if step == 2 else 0.0), 5, log_every=1)
    assert p.data.item() == 0.5


def test_a_run_that_is_over_changes_nothing_and_one_of_no_steps_is_refused():
    model = tiny_gpt()
    optimizer = ml.SGD(model.parameters(), lr=0.1)
    before = snapshot(model)
    assert ml.train(model, optimizer, lambda step: loss(model), 5, start=5)["loss"] == []
    assert snapshot(model) == before
    for steps, start in ((0, 0), (5, 6), (5, -1)):
        with pytest.raises(ValueError, match="Training runs from step"):
            ml.train(model, optimizer, lambda step: loss(model), steps, start=start)


def test_evaluation_runs_without_dropout_and_without_a_tape():
    model = lora_gpt(ALL_TARGETS, dropout=0.5)
    batch = batches(model)(0)
    value = ml.evaluate(model, [batch, batch])
    assert model.training and all(p.grad is None for p in model.parameters())
    model.eval()
    assert value == loss(model).item() == ml.evaluate(model, [batch])
    assert not model.training


def test_an_evaluation_that_fails_gives_the_mode_back():
    model = tiny_gpt()
    with pytest.raises(ValueError, match="outside the vocabulary"):
        ml.evaluate(model, [(np.full((1, 2), 99), np.zeros((1, 2), int))])
    assert model.training and loss(model).requires_grad
