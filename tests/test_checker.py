"""The checker is checked with derivatives that are wrong."""

import re

import numpy as np
import pytest
from test_gradients import normal, wrong_square

import minilora as ml
from minilora import autograd
from minilora import functional as F
from minilora.autograd import record


def test_a_wrong_factor_is_named_with_its_place_and_both_derivatives():
    x, y = normal(0, 3), normal(1, 2, 2)
    with pytest.raises(AssertionError) as error:
        ml.gradcheck(lambda a, b: a.sum() + wrong_square(b).sum(), x, y)
    message = str(error.value)
    found = re.search(r"Input 1, index \((\d), (\d)\): analytic (\S+), numeric (\S+), absolute error", message)
    assert found and "relative error 0.0005" in message
    index = int(found[1]), int(found[2])
    assert float(found[4]) * 1.0005 == pytest.approx(float(found[3]), rel=1e-6)
    assert index == np.unravel_index(np.abs(y).argmax(), y.shape)  # the worst one


def test_a_missing_broadcast_sum_is_caught(monkeypatch):
    monkeypatch.setattr(autograd, "unbroadcast", lambda g, shape: g.ravel()[: int(np.prod(shape))].reshape(shape))
    with pytest.raises(AssertionError, match="Input 1"):
        ml.gradcheck(lambda a, b: a + b, normal(0, 4, 3), normal(1, 3))


def test_a_transposed_gradient_is_caught():
    def product(a, b):
        saved_a, saved_b = a.data, b.data
        return record(saved_a @ saved_b, (a, b), lambda g: ((saved_b @ g.T), saved_a.T @ g))

    with pytest.raises(AssertionError, match="Input 0"):
        ml.gradcheck(product, normal(0, 3, 3), normal(1, 3, 3))


def test_a_kink_is_called_a_kink():
    with pytest.raises(AssertionError, match="near a kink"):
        ml.gradcheck(F.relu, np.array([1.0, 0.0, -2.0]))


def test_a_function_that_draws_anew_each_time_is_refused():
    generator = np.random.default_rng(0)
    with pytest.raises(AssertionError, match="re-seed"):
        ml.gradcheck(lambda x: F.dropout(x, 0.5, generator), normal(0, 30))


def test_float32_is_refused_and_so_is_nothing_to_check():
    with pytest.raises(TypeError, match=r"float64; input 0 is float32"):
        ml.gradcheck(F.tanh, np.ones(3, np.float32))
    with pytest.raises(ValueError, match="no input requires a gradient"):
        ml.gradcheck(F.tanh, ml.Tensor(np.ones(3)))


def test_inputs_come_back_as_they_were():
    x = ml.Tensor(normal(0, 3), requires_grad=True)
    x.grad = np.full(3, 7.0)
    before = x.data.copy()
    ml.gradcheck(F.tanh, x)
    np.testing.assert_array_equal(x.grad, [7, 7, 7])
    np.testing.assert_array_equal(x.data, before)


def test_plain_numpy_functions():
    x, y = normal(0, 3, 2), normal(1, 3)
    assert ml.check_gradient(lambda a: float((a**3).sum()), lambda a: 3 * a**2, x)
    assert ml.check_gradient(
        lambda a, b: b @ a @ a.T @ b, lambda a, b: (2 * np.outer(b, b @ a), 2 * a @ a.T @ b), (x, y)
    )
    with pytest.raises(AssertionError, match=r"Input 1, index \(\d,\)"):
        ml.check_gradient(lambda a, b: b @ a @ a.T @ b, lambda a, b: (2 * np.outer(b, b @ a), a @ a.T @ b), (x, y))
    with pytest.raises(ValueError, match=r"shape \(2, 3\); its input has shape \(3, 2\)"):
        ml.check_gradient(lambda a: float((a**2).sum()), lambda a: 2 * a.T, x)
    with pytest.raises(ValueError, match="one number"):
        ml.check_gradient(lambda a: a**2, lambda a: 2 * a, x)


@pytest.mark.parametrize("point", [1e-4, 1.0, 1e3])
def test_functions_that_bend_sharply_pass(point):
    assert ml.gradcheck(F.log, np.array([point]))
    assert ml.gradcheck(lambda x: 1 / x, np.array([point]))


def test_a_constant_has_gradient_zero():
    assert ml.gradcheck(lambda x: F.softmax(x).sum(), normal(0, 5))
