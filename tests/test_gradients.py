"""Every differentiable operation against differences of itself, in float64, over drawn shapes."""

import inspect

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import randomize

import minilora as ml
from minilora import functional as F
from minilora.lora import lora_linear
from minilora.nn import Module

TOLERANCE = 1e-7
sizes = st.integers(1, 4)
seeds = st.integers(0, 10**6)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def away_from_zero(seed, *shape):
    x = normal(seed, *shape)
    return np.sign(x) * (0.2 + np.abs(x))


def layouts(x):
    """The same numbers, contiguous or not."""
    wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1]))
    wide[..., ::2] = x
    return [x, np.asfortranarray(x), wide[..., ::2]]


ELEMENTWISE = {
    "relu": (F.relu, away_from_zero),
    "tanh": (F.tanh, normal),
    "exp": (F.exp, normal),
    "log": (F.log, lambda *a: np.abs(away_from_zero(*a))),
    "sqrt": (F.sqrt, lambda *a: np.abs(away_from_zero(*a))),
    "gelu": (F.gelu, normal),
    "softmax": (F.softmax, normal),
    "log_softmax": (F.log_softmax, normal),
    "neg": (lambda x: -x, normal),
    "square": (lambda x: x**2, normal),
    "power -1.5": (lambda x: x**-1.5, lambda *a: np.abs(away_from_zero(*a))),
    "power 0": (lambda x: x**0 + x, normal),
    "1 - x": (lambda x: 1 - x, normal),
    "2 / x": (lambda x: 2 / x, away_from_zero),
    "array @ x": (lambda x: np.ones((2, x.shape[-2])) @ x, normal),
    "x used twice": (lambda x: x * x + x, normal),
    "x + x": (lambda x: x + x, normal),
    "diamond": (lambda x: (x * 2) * (x + 3) + F.tanh(x * 2), normal),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
@given(a=sizes, b=sizes, c=sizes, seed=seeds)
def test_elementwise(name, a, b, c, seed):
    operation, draw = ELEMENTWISE[name]
    for x in layouts(draw(seed, a, b, c)):
        assert ml.gradcheck(operation, x, tolerance=TOLERANCE)


BINARY = {
    "+": lambda x, y: x + y,
    "-": lambda x, y: x - y,
    "*": lambda x, y: x * y,
    "/": lambda x, y: x / y,
}


@pytest.mark.parametrize("name", BINARY)
@given(a=sizes, b=sizes, c=sizes, seed=seeds, data=st.data())
def test_binary_with_broadcasting(name, a, b, c, seed, data):
    shape = tuple(data.draw(st.sampled_from([n, 1])) for n in (a, b, c))[data.draw(st.integers(0, 3)) :]
    y = away_from_zero(seed + 1, *shape)
    for x in layouts(normal(seed, a, b, c)):
        assert ml.gradcheck(BINARY[name], x, y, tolerance=TOLERANCE)
        if name != "/":
            assert ml.gradcheck(BINARY[name], y, x, tolerance=TOLERANCE)


@given(a=sizes, n=sizes, k=sizes, m=sizes, seed=seeds)
def test_matmul(a, n, k, m, seed):
    for left, right in [((n, k), (k, m)), ((a, n, k), (k, m)), ((a, n, k), (a, k, m)), ((a, 1, n, k), (2, k, m))]:
        assert ml.gradcheck(lambda x, y: x @ y, normal(seed, *left), normal(seed + 1, *right), tolerance=TOLERANCE)
    for left, right in [((k,), (k,)), ((k,), (k, m)), ((n, k), (k,)), ((k,), (a, k, m)), ((a, n, k), (k,))]:
        x, y = normal(seed, *left), normal(seed + 1, *right)
        np.testing.assert_allclose((ml.Tensor(x) @ ml.Tensor(y)).numpy(), x @ y, atol=1e-12)
        assert ml.gradcheck(lambda x, y: x @ y, x, y, tolerance=TOLERANCE)


@given(
    a=sizes, b=sizes, c=sizes, seed=seeds, axis=st.sampled_from([None, 0, 1, -1, (0, 2), (1, 2)]), keep=st.booleans()
)
def test_reductions(a, b, c, seed, axis, keep):
    x = np.random.default_rng(seed).permutation(a * b * c).reshape(a, b, c) / 7.0  # no ties, so no kink
    for operation in ("sum", "mean", "max"):
        assert ml.gradcheck(lambda t, op=operation: getattr(t, op)(axis=axis, keepdims=keep), x, tolerance=TOLERANCE)


def test_equal_maxima_share_the_gradient():
    x = ml.Tensor(np.array([1.0, 3.0, 3.0]), requires_grad=True)
    x.max().backward()
    np.testing.assert_array_equal(x.grad, [0, 0.5, 0.5])


@given(a=sizes, b=sizes, c=sizes, seed=seeds, order=st.permutations([0, 1, 2]))
def test_shapes(a, b, c, seed, order):
    x = normal(seed, a, b, c)
    assert ml.gradcheck(lambda t: t.transpose(*order), x, tolerance=TOLERANCE)
    assert ml.gradcheck(lambda t: t.transpose().reshape(-1, a), x, tolerance=TOLERANCE)


@pytest.mark.parametrize(
    "index",
    [0, -1, slice(1, None), (slice(None), 1), (..., 0), None, [0, 2, 0], np.array([1, 1, 1]), (slice(None), [0, 0])],
    ids=str,
)
def test_getitem_and_repeated_indices(index):
    assert ml.gradcheck(lambda t: t[index], normal(0, 3, 4, 2), tolerance=TOLERANCE)


def test_getitem_by_a_mask():
    mask = np.array([[True, False, True], [False, False, True]])
    assert ml.gradcheck(lambda t: t[mask], normal(0, 2, 3), tolerance=TOLERANCE)


@given(lead=st.lists(sizes, max_size=2), i=sizes, o=sizes, bias=st.booleans(), seed=seeds)
def test_linear(lead, i, o, bias, seed):
    inputs = [normal(seed, *lead, i), normal(seed + 1, o, i)] + [normal(seed + 2, o)] * bias
    assert ml.gradcheck(F.linear, *inputs, tolerance=TOLERANCE)


@given(lead=st.lists(sizes, max_size=2), d=st.integers(2, 6), seed=seeds)
def test_layer_norm(lead, d, seed):
    inputs = normal(seed, *lead, d), normal(seed + 1, d), normal(seed + 2, d)
    assert ml.gradcheck(F.layer_norm, *inputs)


@given(v=sizes, d=sizes, n=st.integers(1, 9), seed=seeds)
def test_embedding_with_repeated_ids(v, d, n, seed):
    ids = np.random.default_rng(seed).integers(0, v, (2, n))  # 2n ids of at most four kinds
    assert ml.gradcheck(lambda w: F.embedding(w, ids), normal(seed, v, d), tolerance=TOLERANCE)


@given(b=sizes, t=sizes, v=st.integers(2, 6), seed=seeds, ignored=st.booleans())
def test_cross_entropy_with_ignored_targets(b, t, v, seed, ignored):
    targets = np.random.default_rng(seed).integers(0, v, (b, t))
    if ignored and targets.size > 1:
        targets.ravel()[1:][::2] = -100
    logits = normal(seed, b, t, v)
    assert ml.gradcheck(lambda x: F.cross_entropy(x, targets), logits, tolerance=TOLERANCE)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    counted = [(i, j) for i in range(b) for j in range(t) if targets[i, j] != -100]
    expected = -np.mean([np.log(p[i, j, targets[i, j]]) for i, j in counted])
    assert F.cross_entropy(ml.Tensor(logits), targets).item() == pytest.approx(expected, rel=1e-12)


@given(b=sizes, h=sizes, t=sizes, more=st.integers(0, 3), d=sizes, seed=seeds)
def test_causal_attention(b, h, t, more, d, seed):
    s = t + more
    q, k, v = (normal(seed + i, b, n, h, d).swapaxes(1, 2) for i, n in enumerate((t, s, s)))
    assert ml.gradcheck(F.causal_attention, q, k, v)


@pytest.mark.parametrize(("t", "s"), [(33, 33), (70, 70), (33, 40), (64, 64)])
def test_causal_attention_over_several_blocks_of_queries(t, s):
    q, k, v = normal(0, 2, 2, t, 3), normal(1, 2, 2, s, 3), normal(2, 2, 2, s, 3)
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(3)
    scores[..., np.arange(s)[None] > np.arange(t)[:, None] + s - t] = -np.inf
    p = np.exp(scores - scores.max(-1, keepdims=True))
    expected = p / p.sum(-1, keepdims=True) @ v
    np.testing.assert_allclose(F.causal_attention(*map(ml.Tensor, (q, k, v))).numpy(), expected, atol=1e-12)
    assert ml.gradcheck(F.causal_attention, q, k, v)


@given(n=sizes, d=sizes, p=st.sampled_from([0.0, 0.3, 0.8]), seed=seeds)
def test_dropout(n, d, p, seed):
    x = normal(seed, n, d)
    assert ml.gradcheck(lambda t: F.dropout(t, p, np.random.default_rng(seed)), x, tolerance=TOLERANCE)


@given(lead=sizes, i=sizes, o=sizes, r=sizes, bias=st.booleans(), p=st.sampled_from([0.0, 0.5]), seed=seeds)
def test_lora_linear(lead, i, o, r, bias, p, seed):
    def h(x, weight, a, b, *rest):
        dropped = F.dropout(x, p, np.random.default_rng(seed))
        return lora_linear(x, dropped, weight, rest[0] if rest else None, a, b, 1.7)

    shapes = [(lead, 2, i), (o, i), (r, i), (o, r)] + [(o,)] * bias
    assert ml.gradcheck(h, *(normal(seed + n, *shape) for n, shape in enumerate(shapes)), tolerance=TOLERANCE)


def test_no_public_operation_goes_unchecked():
    here = inspect.getsource(inspect.getmodule(test_no_public_operation_goes_unchecked))
    public = [
        name
        for name, f in vars(F).items()
        if inspect.isfunction(f) and f.__module__ == F.__name__ and not name.startswith("_")
    ]
    helpers = {"matmul", "sum_rows", "dropout_mask"}  # on arrays, not Tensors
    assert [name for name in public if name not in helpers and f"F.{name}" not in here] == []


# ---- the whole model ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_of_the_model(small, batch, tied):
    model = small("float64", tied_head=tied)
    ids, targets = batch
    assert ml.gradcheck(lambda *_: F.cross_entropy(model(ids), targets), *model.parameters())


def test_the_model_with_lora_and_dropout(small, batch):
    """B is random, so that A has a gradient; the dropout draws alike on every call."""
    model = small("float64")
    ids, targets = batch
    targets_of_lora = ("q_proj", "k_proj", "v_proj", "o_proj", "fc_in", "fc_out")
    ml.add_lora(model, ml.LoRAConfig(2, alpha=3, target_modules=targets_of_lora, dropout=0.2))
    randomize(model)
    for p in model.parameters():
        p.requires_grad = True  # the base too
    generator = model.blocks[0].attn.q_proj.adapter.rng

    def loss(*_):
        generator.bit_generator.state = np.random.default_rng(9).bit_generator.state
        return F.cross_entropy(model(ids), targets)

    assert ml.gradcheck(loss, *model.parameters())


def test_a_gradient_that_is_zero_in_theory_does_not_fail_by_rounding(small, batch):
    """Adding a number to every key shifts all scores of a query alike, and softmax does not see it."""
    model = small("float64")
    bias = model.blocks[0].attn.k_proj.bias
    ids, targets = batch
    parameters = [bias, model.blocks[0].attn.k_proj.weight]
    assert ml.gradcheck(lambda *_: F.cross_entropy(model(ids), targets), *parameters)
    F.cross_entropy(model(ids), targets).backward()
    assert 0 < np.abs(bias.grad).max() < 1e-12


def test_a_wrong_gradient_near_1e_minus_6_still_fails():
    class Scaled(Module):
        def forward(self, x):
            return wrong_square(x) * 1e-6

    with pytest.raises(AssertionError, match="relative error"):
        ml.gradcheck(Scaled(), normal(0, 5))


def wrong_square(x):
    from minilora.autograd import record

    saved = x.data
    return record(saved**2, (x,), lambda g: (g * 2.001 * saved,))
