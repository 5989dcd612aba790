"""The operations' values against NumPy written out plainly, at their limits, and what they refuse."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minilora as ml
from minilora import functional as F
from minilora.backend import to_numpy

X = np.random.default_rng(0).normal(size=(3, 4, 5))


def naive_softmax(x):
    e = np.exp(x)
    return e / e.sum(-1, keepdims=True)


REFERENCE = {
    "relu": lambda x: np.where(x > 0, x, 0),
    "tanh": np.tanh,
    "exp": np.exp,
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "softmax": naive_softmax,
    "log_softmax": lambda x: np.log(naive_softmax(x)),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", REFERENCE)
def test_values_are_the_formulas_in_either_dtype_and_any_layout(name, dtype):
    tolerance = {"float32": 2e-6, "float64": 1e-14}[dtype]
    for x in (X.astype(dtype), X.astype(dtype).T, X.astype(dtype)[::2, ::-1], np.zeros((), dtype).reshape(1)):
        before = x.copy()
        y = getattr(F, name)(ml.Tensor(x))
        assert y.dtype == dtype and y.shape == x.shape
        np.testing.assert_allclose(y.numpy(), REFERENCE[name](x.astype(float)), rtol=0, atol=tolerance * 3)
        assert np.array_equal(x, before), "the input was written to"


@pytest.mark.parametrize("name", ["log", "sqrt"])
def test_log_and_sqrt(name):
    np.testing.assert_array_equal(getattr(F, name)(ml.Tensor(np.abs(X))).numpy(), getattr(np, name)(np.abs(X)))


def test_layer_norm_has_mean_zero_and_variance_one_before_scale_and_shift():
    x, w, b = 5 + 3 * X, np.arange(5.0), -np.arange(5.0)
    y = F.layer_norm(ml.Tensor(x), ml.Tensor(w), ml.Tensor(b)).numpy()
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * w + b
    np.testing.assert_allclose(y, expected, atol=1e-13)
    other = F.layer_norm(ml.Tensor(x), ml.Tensor(w), ml.Tensor(b), eps=0.5).numpy()
    np.testing.assert_allclose(
        other, (y - b) * np.sqrt((x.var(-1, keepdims=True) + 1e-5) / (x.var(-1, keepdims=True) + 0.5)) + b
    )


def test_a_constant_row_normalizes_to_the_bias():
    y = F.layer_norm(ml.Tensor(np.full((2, 4), 7.0)), ml.Tensor(np.ones(4)), ml.Tensor(np.full(4, 0.25)))
    assert (y.numpy() == 0.25).all()


def test_linear_is_x_times_w_transposed_plus_b():
    w, b = np.arange(10.0).reshape(2, 5), np.array([1.0, -1.0])
    np.testing.assert_allclose(F.linear(*map(ml.Tensor, (X, w, b))).numpy(), X @ w.T + b, atol=1e-13)
    np.testing.assert_allclose(F.linear(*map(ml.Tensor, (X[0, 0], w))).numpy(), X[0, 0] @ w.T, atol=1e-13)


def test_embedding_takes_rows_and_adds_up_gradients_of_repeated_ids():
    weight = ml.Tensor(X[0], requires_grad=True)
    ids = np.array([[0, 3, 0], [0, 1, 3]])
    y = F.embedding(weight, ids)
    assert np.array_equal(y.numpy(), X[0][ids])
    y.sum().backward()
    assert weight.grad[:, 0].tolist() == [3.0, 1.0, 0.0, 2.0]


@given(seed=st.integers(0, 1000), ignored=st.integers(0, 11))
def test_cross_entropy_is_the_mean_of_the_targets_that_count(seed, ignored):
    rng = np.random.default_rng(seed)
    logits, targets = rng.normal(size=(3, 4, 5)), rng.integers(0, 5, (3, 4))
    targets.ravel()[rng.permutation(12)[:ignored]] = -100
    counted = targets != -100
    expected = -np.mean(np.log(naive_softmax(logits))[counted, targets[counted]])
    assert F.cross_entropy(ml.Tensor(logits), targets).item() == pytest.approx(expected, rel=1e-12)
    assert F.cross_entropy(ml.Tensor(logits), ml.Tensor(targets)).item() == pytest.approx(expected, rel=1e-12)


def test_logits_of_any_size_give_finite_numbers():
    """No overflow at ±1e4 in float32, in value or gradient."""
    x = ml.Tensor(np.array([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4]], np.float32), requires_grad=True)
    np.testing.assert_allclose(F.softmax(x).numpy(), [[1, 0, 0], [1 / 3] * 3], rtol=1e-6)
    assert np.isfinite(F.log_softmax(x).numpy()).all()
    assert F.cross_entropy(x, [1, 0]).item() == pytest.approx((2e4 + np.log(3)) / 2)
    (F.cross_entropy(x, [1, 0]) + F.log_softmax(x).mean()).backward()
    assert np.isfinite(to_numpy(x.grad)).all()
    for name in ("gelu", "tanh"):
        large = getattr(F, name)(ml.Tensor(np.array([-1e4, 1e4], np.float32))).numpy()
        np.testing.assert_array_equal(large, [0, 1e4] if name == "gelu" else [-1, 1])


@given(
    T=st.sampled_from([1, 2, 5, 31, 32, 33, 65]),
    more=st.sampled_from([0, 1, 9]),
    B=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_attention_is_softmax_of_the_scores_of_what_a_query_may_see(T, more, B, seed):
    rng, S = np.random.default_rng(seed), T + more
    q, k, v = (rng.normal(size=(B, 2, n, 3)) for n in (T, S, S))
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(3)
    scores[..., np.arange(S) > np.arange(T)[:, None] + S - T] = -np.inf
    y = F.causal_attention(*map(ml.Tensor, (q, k, v)))
    np.testing.assert_allclose(y.numpy(), naive_softmax(scores) @ v, atol=1e-12)


def test_one_query_at_a_time_gives_what_all_at_once_give():
    """S > T is what generating with kept keys needs."""
    q, k, v = np.random.default_rng(0).normal(size=(3, 1, 2, 9, 4))
    whole = F.causal_attention(*map(ml.Tensor, (q, k, v))).numpy()
    for t in range(9):
        one = F.causal_attention(*map(ml.Tensor, (q[:, :, t : t + 1], k[:, :, : t + 1], v[:, :, : t + 1]))).numpy()
        np.testing.assert_allclose(one[:, :, 0], whole[:, :, t], atol=1e-14)


def test_dropout_keeps_the_mean_and_p_zero_keeps_everything():
    x = ml.Tensor(np.ones(100_000, np.float32))
    y = F.dropout(x, 0.25, np.random.default_rng(0)).numpy()
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
    assert (y == 0).mean() == pytest.approx(0.25, abs=0.01) and y.mean() == pytest.approx(1, abs=0.01)
    rng = np.random.default_rng(0)
    assert F.dropout(x, 0.0, rng) is x and rng.bit_generator.state == np.random.default_rng(0).bit_generator.state


def test_frozen_inputs_get_no_gradient_and_nothing_is_recorded_without_one():
    tensors = [ml.Tensor(X[0]) for _ in range(2)]
    for i in range(2):
        inputs = [ml.Tensor(t.data, requires_grad=j == i) for j, t in enumerate(tensors)]
        F.linear(*inputs).sum().backward()
        assert [t.grad is not None for t in inputs] == [j == i for j in range(2)]
    assert F.linear(*tensors)._node is None


Q = ml.Tensor(np.ones((1, 2, 3, 4)))


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        (lambda: F.embedding(ml.Tensor(X[0]), [0, 4]), ValueError, "id 4 is outside the vocabulary of 4: use 0 to 3"),
        (lambda: F.embedding(ml.Tensor(X[0]), [-1]), ValueError, "id -1 is outside"),
        (lambda: F.embedding(ml.Tensor(X[0]), [0.0]), TypeError, "ids must be integers, not float64"),
        (lambda: F.embedding(ml.Tensor(X[0]), [True]), TypeError, "integers, not bool"),
        (lambda: F.cross_entropy(ml.Tensor(X[0]), [0, 1, 2, 5]), ValueError, "target 5 is outside the vocabulary of 5"),
        (lambda: F.cross_entropy(ml.Tensor(X[0]), [0, 1, 2, -1]), ValueError, "target -1 is outside"),
        (lambda: F.cross_entropy(ml.Tensor(X[0]), [-100] * 4), ValueError, "all 4 are ignored"),
        (lambda: F.cross_entropy(ml.Tensor(X[0]), [3] * 4, ignore_index=3), ValueError, r"all 4 are ignored \(3\)"),
        (lambda: F.cross_entropy(ml.Tensor(X[0]), [0.5] * 4), TypeError, "targets must be integers"),
        (lambda: F.cross_entropy(ml.Tensor(X[0]), [0, 1]), ValueError, r"shape \(2,\) do not fit .* \(4, 5\)"),
        (lambda: F.linear(ml.Tensor(X), ml.Tensor(X[0].T)), ValueError, r"these are \(3, 4, 5\) and \(5, 4\)"),
        (lambda: F.layer_norm(Q, ml.Tensor(np.ones(3)), ml.Tensor(np.ones(4))), ValueError, r"weight \(D,\)"),
        (lambda: F.causal_attention(Q, Q, ml.Tensor(np.ones((1, 2, 2, 4)))), ValueError, "needs q"),
        (lambda: F.causal_attention(Q, Q[:, :, :2], Q[:, :, :2]), ValueError, "each of the 3 queries|Each of the 3"),
        (lambda: F.dropout(Q, -0.1, np.random.default_rng(0)), ValueError, "at least 0"),
        (lambda: F.dropout(Q, float("nan"), np.random.default_rng(0)), ValueError, "at least 0"),
    ],
)
def test_inputs_that_cannot_be_are_refused(action, error, message):
    with pytest.raises(error, match=message):
        action()
