"""Every operation's gradient against differences of the operation itself, and the checker against wrong gradients."""

import inspect
import sys

import numpy as np
import pytest
from helpers import lora_gpt, loss, randomize_lora, tiny_gpt
from hypothesis import given
from hypothesis import strategies as st
from operations import OPERATIONS

import minilora as ml
from minilora import autograd, llama, nn
from minilora import functional as F
from minilora.autograd import record
from minilora.backend import asarray, to_numpy
from minilora.fast.elementwise import CHUNK
from minilora.lora import lora_layers


@pytest.mark.parametrize("name", OPERATIONS)
@given(data=st.data())
def test_gradient_of_every_operation(name, data):
    fn, inputs = data.draw(OPERATIONS[name])
    assert ml.gradcheck(fn, *inputs, tolerance=1e-7)


@pytest.mark.parametrize("name", OPERATIONS)
@given(data=st.data())
def test_gradient_of_every_operation_when_its_inputs_fan_out(name, data):
    """Each input reaches the operation through a view and a product, and joins the result once more."""
    fn, inputs = data.draw(OPERATIONS[name])

    def diamond(*tensors):
        out = fn(*(t.reshape(t.shape) * 1.25 for t in tensors))
        total = (out * out).sum()
        for t in tensors:
            total = total + (t + t).sum() * (total + 1) * 0.1
        return total

    assert ml.gradcheck(diamond, *inputs, tolerance=1e-7)


def test_no_differentiable_operation_is_missing_from_the_table():
    """Whatever is annotated as returning a Tensor is one."""

    def operations(owner, module):
        """Those written here: imported helpers have another module."""
        functions = {name: f for name, f in vars(owner).items() if inspect.isfunction(f)}
        return {
            name
            for name, f in functions.items()
            if f.__annotations__.get("return") in (ml.Tensor, "Tensor") and f.__module__ == module
        }

    public = {name for name in operations(F, F.__name__) if not name.startswith("_")}
    assert {"linear", "softmax"} <= public and {"__add__", "mean"} <= operations(ml.Tensor, autograd.__name__)
    written = public | operations(llama, llama.__name__) | (operations(ml.Tensor, autograd.__name__) - {"detach"})
    assert written == OPERATIONS.keys() - {"lora_linear"}, "each needs a row in OPERATIONS of tests/operations.py"


@pytest.mark.parametrize(("T", "S"), [(33, 33), (64, 67), (40, 75)])
def test_gradient_of_attention_over_several_blocks_of_queries(T, S):
    rng = np.random.default_rng(T)
    q, k, v = (rng.normal(size=(1, 2, n, 2)) for n in (T, S, S))
    assert ml.gradcheck(F.causal_attention, q, k, v, tolerance=1e-7)


def test_gradient_of_gelu_over_several_blocks():
    x = ml.Tensor(np.random.default_rng(0).normal(size=CHUNK + 5), requires_grad=True)
    assert ml.gradcheck(F.gelu, x, tolerance=1e-7)


def test_gradient_where_softmax_saturates():
    """Logits in the hundreds, which a softmax that forgets to subtract the largest cannot take."""
    logits = np.array([[300.0, 0.5, -200.0], [0.1, 0.2, 300.2]])
    for fn in (F.softmax, F.log_softmax, lambda x: F.cross_entropy(x, [1, 0])):
        assert ml.gradcheck(fn, logits)


# ---- the whole model ---------------------------------------------------------------------------------


def strong_lora_gpt(**changes):
    """In float64, all parameters trainable, with weights ten times as large, so that every layer matters."""
    model = lora_gpt(dtype="float64", **changes)
    for name, p in model.named_parameters():
        p.requires_grad = True
        if name.endswith("weight") and "ln_" not in name:
            p.data *= 10
    return model


def check_model(model, factor=1.0, **settings):
    """gradcheck of the loss in every trainable parameter, with LoRA's dropout re-seeded on every call."""
    tensors = [p for p in model.parameters() if p.requires_grad]
    adapters = [layer.adapter for layer in lora_layers(model).values()]

    def fn(*_):
        for adapter in adapters:
            adapter.rng.bit_generator.state = np.random.default_rng(5).bit_generator.state
        return loss(model) * factor

    return ml.gradcheck(fn, *tensors, **settings)


SMALL = {"vocab_size": 5, "context_length": 5, "d_model": 4}


@pytest.mark.parametrize("settings", [{}, {"dropout": 0.3}, {"tied_head": True}, {"scaling": "alpha/sqrt(r)"}], ids=str)
def test_gradient_of_the_whole_model_with_lora_everywhere(settings):
    model = strong_lora_gpt(**SMALL, **settings)
    assert len([p for p in model.parameters() if p.requires_grad]) == len(model.parameters())
    assert check_model(model, tolerance=1e-7)


def test_gradient_of_the_adapter_alone_with_the_base_frozen():
    assert check_model(lora_gpt(dtype="float64", dropout=0.2), tolerance=1e-7)


def test_gradient_of_a_plain_model():
    assert check_model(tiny_gpt(dtype="float64", **SMALL))


def test_a_gradient_that_is_zero_in_theory_passes():
    """A bias of the keys shifts all scores of a query alike, so softmax ignores it: only rounding is left."""
    model = strong_lora_gpt(**SMALL)
    bias = model.blocks[0].attn.k_proj.bias
    loss(model).backward()
    largest = max(np.abs(to_numpy(p.grad)).max() for p in model.parameters())
    assert np.abs(to_numpy(bias.grad)).max() < 1e-12 * largest
    model.zero_grad()
    for p in model.parameters():
        p.requires_grad = p is bias or p is model.ln_f.bias
    assert check_model(model, tolerance=1e-7)


@pytest.mark.parametrize("factor", [1.0, 1e-6, 1e-9])
def test_a_wrong_derivative_fails_however_small_the_gradients(factor, monkeypatch):
    right = F.gelu

    def wrong(x):
        out = right(x)
        return record(out.data, (out, lambda g: 1.0005 * g))

    model = strong_lora_gpt(**SMALL)
    assert check_model(model, factor)
    monkeypatch.setattr(F, "gelu", wrong)
    with pytest.raises(AssertionError, match="analytic"):
        check_model(model, factor)


# ---- the checker itself ------------------------------------------------------------------------------


def test_a_wrong_factor_is_caught_and_described():
    """2.001 for 2.0, in the second input."""

    def fn(a, b):
        return record(a.data + 2.0 * b.data, (a, lambda g: g), (b, lambda g: 2.001 * g))

    with pytest.raises(AssertionError) as error:
        ml.gradcheck(fn, np.zeros((2, 3)), np.zeros((2, 3)))
    message = str(error.value)
    assert "Input 1, index (" in message
    numbers = {
        word: float(message.split(word + " ")[1].split()[0].rstrip(",."))
        for word in ("analytic", "numeric", "absolute error", "relative error")
    }
    assert numbers["analytic"] == pytest.approx(1.0005 * numbers["numeric"], rel=1e-6)
    assert numbers["absolute error"] == pytest.approx(abs(numbers["analytic"] - numbers["numeric"]), rel=1e-2)
    assert numbers["relative error"] == pytest.approx(5e-4, rel=1e-2)


def test_one_wrong_element_is_named():
    def fn(x):
        factors = np.ones(x.shape)
        factors[1, 2] = 1.01
        return record(x.data**2, (x, lambda g: 2 * g * x.data * asarray(factors)))

    with pytest.raises(AssertionError, match=r"index \(1, 2\)"):
        ml.gradcheck(fn, np.random.default_rng(0).uniform(1, 2, (3, 4)))


def test_two_errors_that_cancel_in_the_sum_are_caught():
    """A gradient in the wrong order has the right sum."""
    with pytest.raises(AssertionError):
        ml.gradcheck(
            lambda x: record(x.data**2, (x, lambda g: (2 * g * x.data)[::-1].copy())), np.array([1.0, 2.0, 3.0])
        )


def test_no_operation_needs_to_undo_broadcasting_and_a_gradient_of_another_shape_is_refused():
    def add(rule):
        return lambda a, b: record(a.data + b.data, (a, lambda g: g), (b, rule))

    assert ml.gradcheck(add(lambda g: g), np.ones((3, 4)), np.ones(4))
    for rule in (lambda g: g[:, :3], lambda g: g[0, :, None]):
        with pytest.raises(
            ValueError, match=r"A rule gave a gradient of shape \(\d, \d\) for an input of shape \(4,\)"
        ):
            ml.gradcheck(add(rule), np.ones((3, 4)), np.ones(4))


def test_a_missing_broadcast_sum_inside_a_graph_is_caught(monkeypatch):
    """The right shape, but one row of the gradient in place of the sum over rows."""
    for module in (autograd, sys.modules["minilora.fast.walk"]):
        monkeypatch.setattr(module, "unbroadcast", lambda g, shape: g[(0,) * (g.ndim - len(shape))].reshape(shape))
    with pytest.raises(AssertionError, match="Input 1"):
        ml.gradcheck(lambda a, b: F.tanh(a + b), np.ones((3, 4)), np.ones(4))


def test_a_function_that_is_not_deterministic_is_reported_as_such():
    rng = np.random.default_rng(0)
    with pytest.raises(AssertionError, match="two different results"):
        ml.gradcheck(lambda x: F.dropout(x, 0.5, rng), np.ones(50))


@pytest.mark.parametrize("fn", [F.relu, lambda x: x.max(), lambda x: F.relu(x * 3).sum() + (x * x).sum()])
def test_a_kink_is_reported_as_a_kink(fn):
    """relu at 0, and the largest of equal numbers."""
    with pytest.raises(AssertionError, match="near a kink"):
        ml.gradcheck(fn, np.zeros(3))


def test_a_smooth_wrong_gradient_is_not_called_a_kink():
    with pytest.raises(AssertionError) as error:
        ml.gradcheck(lambda x: record(x.data**3, (x, lambda g: g * x.data)), np.array([1.0, 2.0]))
    assert "kink" not in str(error.value)


@pytest.mark.parametrize("point", [1e-4, 1.0, 1e3])
def test_functions_that_bend_sharply_pass(point):
    assert ml.gradcheck(F.log, np.array([point]))
    assert ml.gradcheck(lambda x: 1 / x, np.array([point]))


def test_a_difference_that_is_no_number_does_not_hide_one_that_is():
    """Not finite at small steps only, where the difference comes last."""

    def f(x):
        return np.nan if 0 < abs(x[0] - 1) < 5e-5 else x[0] ** 2

    with pytest.raises(AssertionError, match=r"analytic 2\.02, numeric (2|1\.9{4})"):
        ml.check_gradient(f, lambda x: 2.02 * x, np.ones(1))


def test_gradients_and_functions_that_are_not_finite_are_reported():
    with pytest.raises(AssertionError, match="not finite"), np.errstate(all="ignore"):
        ml.gradcheck(F.sqrt, np.zeros(2))
    with pytest.raises(AssertionError, match="not finite"), np.errstate(all="ignore"):
        ml.gradcheck(F.log, np.array([-1.0, 1.0]))


def test_a_tensor_that_is_there_twice_moves_in_both_places():
    x = ml.Tensor(np.array([1.0, 2.0]), requires_grad=True)
    assert ml.gradcheck(lambda a, b: a * b, x, x)
    assert np.array_equal(x.numpy(), [1.0, 2.0]) and x.grad is None
    with pytest.raises(AssertionError, match="Input 0, index"):
        ml.gradcheck(lambda a, b: record(a.data * b.data, (a, lambda g: g * b.data)), x, x)


def test_float32_is_rejected_in_a_sentence():
    with pytest.raises(TypeError, match=r"gradcheck compares in float64; input 1 is float32: convert it first"):
        ml.gradcheck(lambda a, b: a * b, np.ones(2), np.ones(2, np.float32))
    with pytest.raises(TypeError, match="float32"):
        ml.gradcheck(lambda *_: loss(tiny_gpt()), *tiny_gpt().parameters())


def test_a_check_of_nothing_is_refused():
    with pytest.raises(ValueError, match="nothing to check"):
        ml.gradcheck(lambda a: a, ml.Tensor(np.ones(2)))


@pytest.mark.parametrize("right", [True, False])
def test_inputs_and_their_gradients_are_as_before_afterwards(right):
    x = ml.Tensor(np.array([1.0, 2.0]), requires_grad=True)
    data, grad = x.data, np.array([7.0, 8.0])
    x.grad = grad
    try:
        ml.gradcheck(lambda t: record(t.data**2, (t, lambda g: g * (2 if right else 3) * t.data)), x)
    except AssertionError:
        assert not right
    assert x.data is data and x.grad is grad
    assert x.data.tolist() == [1.0, 2.0] and x.grad.tolist() == [7.0, 8.0]


def test_frozen_inputs_are_left_alone():
    frozen = ml.Tensor(np.array([3.0]))
    assert ml.gradcheck(lambda a, b: a * b, ml.Tensor(np.array([2.0]), requires_grad=True), frozen)
    assert frozen.grad is None


# ---- check_gradient, for one's own NumPy backward ----------------------------------------------------


def test_check_gradient_accepts_a_right_gradient():
    assert ml.check_gradient(lambda x: np.sum(np.sin(x)), np.cos, np.linspace(-1, 1, 6).reshape(2, 3))


def test_check_gradient_takes_a_tuple_of_inputs():
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(3, 2)), rng.normal(size=2)

    def f(x, w):
        return np.tanh(x @ w).sum()

    def grad(x, w):
        g = 1 - np.tanh(x @ w) ** 2
        return np.outer(g, w), x.T @ g

    assert ml.check_gradient(f, grad, (x, w))
    with pytest.raises(AssertionError, match="Input 1"):
        ml.check_gradient(f, lambda x, w: (grad(x, w)[0], grad(x, w)[1] * 1.001), (x, w))


def test_check_gradient_catches_a_wrong_one():
    with pytest.raises(AssertionError, match=r"Input 0, index .*analytic .*numeric"):
        ml.check_gradient(lambda x: np.sum(x**2), lambda x: 2.001 * x, np.array([1.0, -2.0]))


@pytest.mark.parametrize(
    ("f", "grad", "x", "message"),
    [
        (np.sum, lambda x: np.ones(2), np.ones(3), r"shape \(2,\); its input has shape \(3,\)"),
        (np.sin, np.cos, np.ones(3), "f must return one number"),
        (lambda a, b: a @ b, lambda a, b: (b,), (np.ones(2), np.ones(2)), "1 gradients for 2 inputs"),
    ],
    ids=["wrong shape", "not one number", "one gradient missing"],
)
def test_check_gradient_refuses_what_it_cannot_check(f, grad, x, message):
    with pytest.raises(ValueError, match=message):
        ml.check_gradient(f, grad, x)


def test_modules_check_too():
    """A layer of one's own, as a student would check it."""
    layer = nn.LayerNorm(4, dtype="float64")
    x = np.random.default_rng(0).normal(size=(3, 4))
    assert ml.gradcheck(lambda x, *_: layer(x), x, layer.weight, layer.bias)
    model = tiny_gpt(dtype="float64")
    ml.add_lora(model, ml.LoRAConfig(2))
    randomize_lora(model)
    layer = model.blocks[0].attn.q_proj
    x = np.random.default_rng(1).normal(size=(2, 8))
    assert ml.gradcheck(lambda x, *_: layer(x), x, layer.lora_A, layer.lora_B)
