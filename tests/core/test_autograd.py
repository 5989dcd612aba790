"""Tensor operators against NumPy; gradients that fan out, graphs that are long, shared or broken."""

import gc
import operator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minilora as ml
from minilora import functional as F
from minilora.autograd import record
from minilora.backend import asarray, to_numpy, xp
from minilora.fast.walk import together


def leaf(array):
    return ml.Tensor(np.asarray(array, dtype=np.float64), requires_grad=True)


ARITHMETIC = [operator.add, operator.sub, operator.mul, operator.truediv]
A, B = np.arange(6.0).reshape(2, 3) + 0.5, np.array([2.0, -1.0, 4.0])


@pytest.mark.parametrize("operation", ARITHMETIC)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_arithmetic_is_numpys_on_either_side(operation, dtype):
    a, b = A.astype(dtype), B.astype(dtype)
    expected = operation(a, b)
    for result in (
        operation(ml.Tensor(a), ml.Tensor(b)),
        operation(ml.Tensor(a), b),
        operation(a, ml.Tensor(b)),
    ):
        assert isinstance(result, ml.Tensor) and result.dtype == dtype
        np.testing.assert_allclose(result.numpy(), expected, rtol=1e-6)
    for number in (3, 0.25, np.float64(3), np.float32(0.25), np.int64(3)):
        for result in (operation(ml.Tensor(b), number), operation(number, ml.Tensor(b))):
            assert isinstance(result, ml.Tensor) and result.dtype == dtype
        np.testing.assert_allclose(operation(number, ml.Tensor(b)).numpy(), operation(float(number), b), rtol=1e-6)


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x**3,
        lambda x: -x,
        lambda x: x @ x.transpose(),
        lambda x: np.ones((4, 2)) @ x,
        lambda x: x.sum(),
        lambda x: x.sum(axis=1, keepdims=True),
        lambda x: x.mean(axis=0),
        lambda x: x.max(axis=(0, 1)),
        lambda x: x.reshape(3, 2),
        lambda x: x.reshape((-1,)),
        lambda x: x.transpose(1, 0),
        lambda x: x.transpose((-1, 0)),
        lambda x: x[1],
        lambda x: x[:, ::-2],
        lambda x: x[..., None],
        lambda x: x[[0, 0, 1]],
        lambda x: x[np.array([[True, False, True], [False, True, False]])],
    ],
)
def test_other_operators_are_numpys(operation):
    result = operation(ml.Tensor(A))
    assert isinstance(result, ml.Tensor)
    np.testing.assert_array_equal(result.numpy(), operation(A))


@given(data=st.data())
def test_no_two_leaves_ever_share_a_gradient(data):
    """A random graph of sums, views and products of four leaves, then every pair of gradients, and the saved data."""
    leaves = [leaf(np.full((2, 3), i + 1.0)) for i in range(4)]
    tensors = list(leaves)
    for _ in range(data.draw(st.integers(1, 8))):
        a, b = data.draw(st.sampled_from(tensors)), data.draw(st.sampled_from(tensors))
        step = data.draw(
            st.sampled_from(
                [
                    lambda a, b: a + b,
                    lambda a, b: a - b,
                    lambda a, b: a.reshape(3, 2).reshape(2, 3) + b,
                    lambda a, b: a.transpose().transpose() + b,
                    lambda a, b: a * 0.5 + b[:],
                    lambda a, b: a.sum() + b,
                    lambda a, b: a * b,
                ]
            )
        )
        tensors.append(step(a, b))
    sum((t.sum() for t in tensors), ml.Tensor(0.0)).backward()
    for i, x in enumerate(leaves):
        assert x.grad.shape == x.shape
        for y in leaves[:i]:
            assert not xp.may_share_memory(x.grad, y.grad)
        for y in leaves:
            assert not xp.may_share_memory(x.grad, y.data)


@pytest.mark.parametrize("view", [lambda d: d, lambda d: d[:], lambda d: d.reshape(3, 1).reshape(3)])
def test_one_new_array_returned_for_two_parents_corrupts_nothing(view):
    """Neither within the walk, where one parent gets more, nor in the next, where gradients add up."""

    def add(x, y):
        def backward(g):
            d = 2 * g
            return d, view(d)

        return record(2 * (x.data + y.data), *together((x, y), backward))

    x, y = leaf(np.ones(3)), leaf(np.ones(3))
    (add(x, y) + x * 10 + x * 100).sum().backward()
    assert x.grad.tolist() == [112.0] * 3 and y.grad.tolist() == [2.0] * 3
    x.grad = y.grad = None
    add(x, y).sum().backward()
    assert not xp.may_share_memory(x.grad, y.grad)
    (x * 1).sum().backward()
    assert x.grad.tolist() == [3.0] * 3 and y.grad.tolist() == [2.0] * 3
    middle = add(x * 1, y * 1)
    x.grad = y.grad = None
    (middle + add(x * 1, y * 1)).sum().backward()
    assert x.grad.tolist() == y.grad.tolist() == [4.0] * 3


def test_fan_out_adds_up():
    x = leaf([3.0])
    (x + x).sum().backward()
    assert x.grad.tolist() == [2.0]
    x.grad = None
    (x * x * x).sum().backward()
    assert x.grad.tolist() == [27.0]
    x.grad = None
    y = x * 2
    (y * y + y).sum().backward()  # 4x² + 2x
    assert x.grad.tolist() == [26.0]


def test_gradients_at_points_where_a_formula_divides_by_zero():
    """x⁰ and x¹ at 0, and the largest of equal numbers, which share the gradient."""
    x = leaf([0.0, 2.0])
    (x**0 + x**1).sum().backward()
    assert x.grad.tolist() == [1.0, 1.0]
    x = leaf([[3.0, 1.0, 3.0], [0.0, 0.0, 0.0]])
    (x.max(axis=1) * np.array([1.0, 3.0])).sum().backward()
    assert x.grad.tolist() == [[0.5, 0.0, 0.5], [1.0, 1.0, 1.0]]


def test_the_gradient_of_a_leaf_is_its_own_even_where_it_is_the_loss():
    x = leaf(2.0)
    x.backward()
    x.backward()
    assert x.grad.item() == 2 and x.grad.shape == ()


def test_long_graphs_come_and_go_without_recursion():
    """Ten thousand operations that branch and join, walked; and as many thrown away unwalked."""
    x = leaf([1.0])
    y = x
    for _ in range(5_000):
        y = (y * 0.5) + (y * 0.5)
    y.sum().backward()
    assert x.grad.tolist() == [1.0]
    for _ in range(10_000):
        y = y + 1
    del y
    gc.collect()


def test_a_retained_graph_can_be_walked_a_third_time_and_then_no_more():
    x = leaf([1.0, 2.0])
    loss = (F.softmax(x) * F.tanh(x)).sum()
    loss.backward(retain_graph=True)
    once = x.grad.copy()
    loss.backward(retain_graph=True)
    np.testing.assert_array_equal(to_numpy(x.grad), to_numpy(once + once))
    loss.backward()
    np.testing.assert_array_equal(to_numpy(x.grad), to_numpy(once + once + once))
    with pytest.raises(ValueError, match=r"already walked.*retain_graph=True"):
        loss.backward()


def test_walking_a_part_that_was_walked_before_changes_nothing():
    """The shared part is gone, so the second loss is refused before any gradient moves."""
    x, y = leaf([1.0]), leaf([1.0])
    shared = F.exp(x)
    shared.sum().backward()
    before = x.grad.copy()
    with pytest.raises(ValueError, match="already walked"):
        (shared * y).sum().backward()
    assert y.grad is None and x.grad.tolist() == before.tolist()


def test_a_failure_deep_in_the_walk_leaves_gradients_that_were_there():
    x, y = leaf([1.0]), leaf([1.0])
    (x * y).sum().backward()

    def fail(g):
        raise FloatingPointError("deep")

    deep = record(x.data.copy(), (x, fail))
    with pytest.raises(FloatingPointError):
        (deep * 2 + y * 3 + x).sum().backward()
    assert x.grad.tolist() == [1.0] and y.grad.tolist() == [1.0]


def test_no_grad_ends_with_an_exception_and_nests():
    x = leaf([1.0])
    with pytest.raises(KeyError), ml.no_grad():
        raise KeyError
    with ml.no_grad():
        with ml.no_grad():
            pass
        assert not (x * 2).requires_grad
    assert (x * 2).requires_grad


def test_detach_cuts_the_graph():
    x = leaf([3.0])
    y = x * 2
    assert not y.detach().requires_grad
    (y.detach() * x).sum().backward()
    assert x.grad.tolist() == [6.0]


def test_data_written_in_place_counts_at_the_next_forward_and_numpy_stays():
    x = leaf([1.0, 2.0])
    handed_out = x.numpy()
    x.data[0] = 5
    x.data = asarray([7.0, 8.0])
    assert handed_out.tolist() == [1.0, 2.0] and (x * 1).numpy().tolist() == [7.0, 8.0]
    for wrong, error in ((xp.ones(3), ValueError), (xp.ones(2, dtype=np.float32), ValueError), (1.0, TypeError)):
        with pytest.raises(error):
            x.data = wrong
    assert x.data.tolist() == [7.0, 8.0]


@pytest.mark.parametrize(
    ("action", "error"),
    [
        (lambda x: x + "a", TypeError),
        (lambda x: x * None, TypeError),
        (lambda x: x @ 2.0, ValueError),
        (lambda x: x @ np.ones((4, 4)), ValueError),
        (lambda x: x + np.ones(4), ValueError),
        (lambda x: x ** np.ones(3), TypeError),
        (lambda x: x.reshape(4), ValueError),
        (lambda x: x.transpose(5, 0), ValueError),
        (lambda x: x.transpose(0, 0), ValueError),
        (lambda x: x.sum(axis=2), ValueError),
        (lambda x: x[:, :0].mean(), ValueError),
    ],
)
def test_what_cannot_be_computed_raises(action, error):
    with pytest.raises(error):
        action(leaf(A))


def test_integers_cannot_require_gradients_later_either():
    x = ml.Tensor(np.arange(3))
    with pytest.raises(TypeError, match="Only floats may require gradients; this tensor holds int64"):
        x.requires_grad = True
    assert not x.requires_grad


def test_a_tensor_shows_what_it_holds():
    assert repr(leaf([1.5])) == "Tensor([1.5], dtype=float64, requires_grad=True)"
