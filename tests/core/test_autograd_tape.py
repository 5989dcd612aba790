"""The tape: what it keeps, what it frees, what it refuses."""

import threading
import weakref

import numpy as np
import pytest

import minilora as ml
from minilora import functional as F
from minilora.autograd import record
from minilora.backend import to_numpy, xp


def leaf(*values):
    return ml.Tensor(np.array(values, dtype=np.float64), requires_grad=True)


def test_a_chain_of_ten_thousand_operations():
    x = leaf(1.0)
    y = x
    for _ in range(10_000):
        y = y * 1.0001
    y.backward()
    assert x.grad.item() == pytest.approx(1.0001**10_000)


def test_the_diamond_needs_topological_order():
    """a feeds b and c, c also feeds from b: a naive walk would visit a's part of b too early."""
    a = leaf(2.0)
    b = a * 3
    c = a * b + b
    c.backward()
    assert a.grad.item() == 2 * 3 * 2 + 3


def test_walking_twice_is_refused_and_changes_nothing():
    x = leaf(1.0, 2.0)
    y = (x * x).sum()
    y.backward()
    before = x.grad.copy()
    with pytest.raises(ValueError, match="already walked"):
        y.backward()
    np.testing.assert_array_equal(to_numpy(x.grad), to_numpy(before))


def test_a_retained_graph_adds_exactly_the_same_again(small, batch):
    model = small()
    ids, targets = batch
    loss = F.cross_entropy(model(ids), targets)
    loss.backward(retain_graph=True)
    once = [p.grad.copy() for p in model.parameters()]
    loss.backward()
    for p, g in zip(model.parameters(), once, strict=True):
        np.testing.assert_array_equal(to_numpy(p.grad), to_numpy(g + g))


def test_only_leaves_keep_a_gradient_and_it_adds_up():
    x = leaf(3.0)
    middle = x * 2
    middle.sum().backward()
    (x * 5).sum().backward()
    assert middle.grad is None and x.grad.item() == 7


def test_two_tensors_never_share_a_gradient():
    x, y = leaf(1.0, 2.0), leaf(3.0, 4.0)
    (x + y).sum().backward()
    x.grad[0] = 100
    assert y.grad[0].item() == 1 and not xp.may_share_memory(x.grad, y.grad)


def test_an_operation_that_hands_out_one_array_twice_does_no_harm():
    """Even where a backward returns g itself for both parents and one of them gets more."""
    x, y = leaf(1.0), leaf(1.0)
    both = record(x.data + y.data, (x, lambda g: g), (y, lambda g: g))
    (both * 1 + x * 10 + x * 100).sum().backward()
    assert x.grad.item() == 111 and y.grad.item() == 1


def test_a_backward_that_raises_leaves_every_gradient_alone():
    x, y = leaf(1.0), leaf(1.0)

    def fail(g):
        raise ValueError("broken")

    broken = record(y.data.copy(), (y, fail))
    with pytest.raises(ValueError, match="broken"):
        (x * 2 + broken).sum().backward()
    assert x.grad is None and y.grad is None


def test_no_grad_is_for_this_thread_only():
    x, seen = leaf(1.0), []
    with ml.no_grad():
        thread = threading.Thread(target=lambda: seen.append((x * 2).requires_grad))
        thread.start()
        thread.join()
        assert not (x * 2).requires_grad
    assert seen == [True] and (x * 2).requires_grad


def test_a_node_keeps_only_what_its_backward_needs():
    """A sum needs no data of its parents, so an intermediate result is freed with its Tensor."""
    x = leaf(*range(10))
    middle = x + 1
    array = weakref.ref(middle.data)
    total = middle.sum()
    del middle
    assert array() is None
    total.backward()
    np.testing.assert_array_equal(to_numpy(x.grad), np.ones(10))


def test_the_walk_lets_arrays_go():
    x = leaf(*range(10))
    middle = F.exp(x)
    array = weakref.ref(middle.data)
    total = (middle * middle).sum()
    del middle
    assert array() is not None
    total.backward()
    assert array() is None


def test_frozen_parents_cost_nothing():
    """With a frozen weight, the input of a linear layer is not kept, and no gradient for it is computed."""
    x = ml.Tensor(np.ones((2, 3)))
    weight, bias = ml.Tensor(np.ones((4, 3))), ml.Tensor(np.zeros(4), requires_grad=True)
    y = F.linear(x, weight, bias)
    kept = [c.cell_contents for _, _, rule in y._node.steps for c in rule.__closure__ or ()]
    assert not any(isinstance(k, xp.ndarray) and k.size for k in kept)
    y.sum().backward()
    assert weight.grad is None and bias.grad.tolist() == [2, 2, 2, 2]


def test_python_numbers_are_float32_and_arrays_keep_their_dtype():
    assert ml.Tensor(1.5).dtype == ml.Tensor([1, 2]).dtype == np.float32
    assert ml.Tensor(np.ones(2)).dtype == np.float64 and ml.Tensor(np.arange(2)).dtype == np.int64
    single = ml.Tensor(np.ones(2, np.float32))
    for result in (single * 2.0, 1 - single, single / np.float64(3), np.float64(3) * single, np.ones(2) * single):
        assert isinstance(result, ml.Tensor)
    assert (np.float64(3) * single).dtype == (single / np.float64(3)).dtype == np.float32


def test_a_gradient_has_the_dtype_of_its_leaf():
    x = ml.Tensor(np.ones(2, np.float32), requires_grad=True)
    (x * ml.Tensor(np.ones(2))).sum().backward()
    assert x.grad.dtype == np.float32
    zero_d = ml.Tensor(np.float64(2.0), requires_grad=True)
    (zero_d * zero_d).backward()
    assert isinstance(zero_d.grad, xp.ndarray) and zero_d.grad.item() == 4


def test_what_numpy_handed_out_never_changes():
    x = leaf(1.0)
    handed_out = x.numpy()
    x.data[0] = 5
    assert handed_out[0] == 1


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        (lambda: ml.Tensor(np.arange(3), requires_grad=True), TypeError, "Only floats"),
        (lambda: ml.Tensor("abc"), TypeError, "holds numbers"),
        (lambda: ml.Tensor(np.ones(2) * 1j), TypeError, "real numbers"),
        (lambda: ml.Tensor(ml.Tensor(1.0)), TypeError, "Tensor already"),
        (lambda: leaf(1.0, 2.0).backward(), ValueError, "one number"),
        (lambda: ml.Tensor(1.0).backward(), ValueError, "requires a gradient"),
        (lambda: leaf(1.0, 2.0).item(), ValueError, "exactly one number"),
        (lambda: leaf(1.0) ** leaf(1.0), TypeError, "Python number"),
        (lambda: setattr(leaf(1.0), "data", xp.ones(2)), ValueError, "cannot be replaced"),
        (lambda: setattr(leaf(1.0), "data", [1.0]), TypeError, "takes an array"),
        (lambda: setattr(leaf(1.0) * 2, "requires_grad", False), ValueError, "belongs to leaves"),
        (lambda: F.linear(leaf(1.0), ml.Tensor(np.ones((2, 2)))), ValueError, "linear"),
        (lambda: F.layer_norm(leaf(1.0, 2.0), leaf(1.0), leaf(1.0)), ValueError, "layer_norm"),
        (lambda: F.dropout(leaf(1.0), 1.0, np.random.default_rng(0)), ValueError, "less than 1"),
        (
            lambda: F.causal_attention(*(ml.Tensor(np.ones((1, 1, n, 2))) for n in (3, 2, 2))),
            ValueError,
            "only 2 keys",
        ),
    ],
)
def test_refusals_are_full_sentences(action, error, message):
    with pytest.raises(error, match=message) as caught:
        action()
    assert str(caught.value)[0].isupper() or str(caught.value).startswith(
        ("linear()", "layer_norm()", "item()", "backward()")
    )
    assert str(caught.value).endswith(".")
