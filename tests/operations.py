"""Every differentiable operation, with inputs to draw: for the gradient checks, and for kernels beside the textbook."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minilora import functional as F
from minilora.llama import repeat_heads, rms_norm, rotary, swiglu
from minilora.lora import lora_linear

# ---- inputs: any small shape, in any layout ----------------------------------------------------------

seeds = st.integers(0, 2**32 - 1)
shapes = hnp.array_shapes(min_dims=0, max_dims=3, max_side=4)
shapes_with_axis = hnp.array_shapes(min_dims=1, max_dims=3, max_side=4)


@st.composite
def arrays(draw, shape=shapes, low=None, distinct=False):
    """Float64 of a drawn shape: contiguous, transposed, every second row, reversed, or with axes swapped.

    low: all entries lie between it and low + 2. distinct: all entries are at least 0.1 apart.
    """
    shape = draw(shape) if isinstance(shape, st.SearchStrategy) else shape
    rng = np.random.default_rng(draw(seeds))

    def values(shape):
        if distinct:
            return 0.1 * (1 + rng.permutation(int(np.prod(shape)))).reshape(shape) - 1.03
        return rng.normal(size=shape) if low is None else rng.uniform(low, low + 2, shape)

    layouts = ["contiguous"] + ["transposed", "strided", "reversed"] * (len(shape) > 0) + ["swapped"] * (len(shape) > 1)
    layout = draw(st.sampled_from(layouts))
    if layout == "transposed":
        return values(shape[::-1]).T
    if layout == "strided":
        return values((2 * shape[0], *shape[1:]))[::2]
    if layout == "reversed":
        return values(shape)[::-1]
    if layout == "swapped":
        return values((*shape[:-2], shape[-1], shape[-2])).swapaxes(-1, -2)
    return values(shape)


@st.composite
def unary(draw, fn, **settings):
    return fn, (draw(arrays(**settings)),)


@st.composite
def binary(draw, fn, low=None):
    """Two arrays that broadcast; those of the second are above `low`."""
    a, b = draw(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, max_side=3)).input_shapes
    return fn, (draw(arrays(a)), draw(arrays(b, low)))


@st.composite
def with_number_or_array(draw, fn, low=None):
    """fn(other, x), where other is a Python number, a NumPy number or an array that broadcasts with x."""
    x = draw(arrays(low=low))
    other = draw(st.sampled_from([2, -0.7, np.float32(1.5), np.ones((2, *x.shape)) * 0.3, np.full(x.shape, -1.2)]))
    return (lambda t: fn(other, t)), (x,)


@st.composite
def powers(draw):
    exponent = draw(st.sampled_from([-2, -1, 0, 0.5, 1, 1.5, 2, 3]))
    sign = draw(st.sampled_from([1, -1])) if isinstance(exponent, int) else 1
    return (lambda x: x**exponent), (sign * draw(arrays(low=0.3)),)


@st.composite
def products(draw):
    """Shapes that @ takes: 1-D on either side, and leading axes that broadcast."""
    n, k, m = (draw(st.integers(1, 3)) for _ in range(3))
    a, b = draw(
        st.sampled_from(
            [
                ((k,), (k,)),
                ((n, k), (k,)),
                ((k,), (k, m)),
                ((n, k), (k, m)),
                ((2, n, k), (k, m)),
                ((n, k), (2, k, m)),
                ((2, 1, n, k), (3, k, m)),
                ((k,), (2, k, m)),
                ((2, n, k), (k,)),
            ]
        )
    )
    return (lambda x, y: x @ y), (draw(arrays(a)), draw(arrays(b)))


@st.composite
def products_from_the_right(draw):
    k = draw(st.integers(1, 3))
    other = np.random.default_rng(draw(seeds)).normal(size=(2, k))
    return (lambda x: other @ x), (draw(arrays((k, draw(st.integers(1, 3))))),)


@st.composite
def reductions(draw, name):
    x = draw(arrays(distinct=name == "max"))
    axes = [None, *range(-x.ndim, x.ndim)] + [(0, -1)] * (x.ndim > 1)
    axis, keepdims = draw(st.sampled_from(axes)), draw(st.booleans())
    return (lambda t: getattr(t, name)(axis=axis, keepdims=keepdims)), (x,)


@st.composite
def reshapes(draw):
    x = draw(arrays(shapes_with_axis))
    target = draw(st.sampled_from([(-1,), (x.size,), x.shape[::-1], (1, x.size), (*x.shape, 1)]))
    return draw(st.sampled_from([lambda t: t.reshape(target), lambda t: t.reshape(*target)])), (x,)


@st.composite
def transposes(draw):
    x = draw(arrays())
    order = draw(st.permutations(range(x.ndim)))
    choices = [lambda t: t.transpose(), lambda t: t.transpose(order), lambda t: t.transpose(*order)]
    return draw(st.sampled_from(choices)), (x,)


@st.composite
def indexed(draw):
    """Slices, integers, None and ...; integer arrays, which may name an entry often; masks; mixtures."""
    x = draw(arrays(shapes_with_axis))
    fancy = st.sampled_from(
        [[0, -1, 0], np.array([[0, 0], [-1, 0]]), (slice(None), None) if x.ndim == 1 else (0, [0, 0, -1])]
    )
    mask = hnp.arrays(bool, x.shape)
    index = draw(
        st.one_of(hnp.basic_indices(x.shape, allow_newaxis=True), hnp.integer_array_indices(x.shape), fancy, mask)
    )
    return (lambda t: t[index]), (x,)


@st.composite
def linears(draw):
    n_in, n_out = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    lead = draw(hnp.array_shapes(min_dims=0, max_dims=2, max_side=3))
    inputs = (draw(arrays((*lead, n_in))), draw(arrays((n_out, n_in))))
    return F.linear, (*inputs, draw(arrays((n_out,)))) if draw(st.booleans()) else inputs


@st.composite
def layer_norms(draw):
    x = draw(arrays(shapes_with_axis))
    return F.layer_norm, (x, draw(arrays(x.shape[-1:])), draw(arrays(x.shape[-1:])))


@st.composite
def cross_entropies(draw):
    """Some targets ignored, by -100 or by an id of the vocabulary, and at least one left."""
    logits = draw(arrays(shapes_with_axis))
    V = logits.shape[-1]
    ignore_index = draw(st.sampled_from([-100, 0])) if V > 1 else -100
    rng = np.random.default_rng(draw(seeds))
    targets = rng.integers(0, V, logits.shape[:-1])
    targets = np.where(rng.random(targets.shape) < 0.3, ignore_index, targets)
    if (targets == ignore_index).all():
        targets = np.full_like(targets, V - 1)
    return (lambda t: F.cross_entropy(t, targets, ignore_index)), (logits,)


@st.composite
def embeddings(draw):
    """Often more ids than rows, so that ids repeat."""
    weight = draw(arrays((draw(st.integers(1, 4)), draw(st.integers(1, 3)))))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=2, max_side=4))
    ids = np.random.default_rng(draw(seeds)).integers(0, len(weight), shape)
    return (lambda w: F.embedding(w, ids)), (weight,)


@st.composite
def dropouts(draw):
    p, seed = draw(st.sampled_from([0.0, 0.1, 0.5, 0.9])), draw(seeds)
    return (lambda x: F.dropout(x, p, np.random.default_rng(seed))), (draw(arrays()),)


@st.composite
def concatenations(draw):
    first = draw(arrays(shapes_with_axis))
    axis = draw(st.integers(-first.ndim, first.ndim - 1))
    lengths = draw(st.lists(st.integers(0, 3), min_size=0, max_size=2))
    shape = list(first.shape)
    others = []
    for length in lengths:
        shape[axis] = length
        others.append(draw(arrays(tuple(shape))))
    return (lambda *parts: F.concatenate(parts, axis)), (first, *others)


@st.composite
def attentions(draw):
    """S >= T keys; heads split off by a transpose, as in the model, or not."""
    B, H, T, d = (draw(st.integers(1, 3)) for _ in range(4))
    S = T + draw(st.integers(0, 3))
    q, k, v = (draw(arrays((B, H, n, d))) for n in (T, S, S))
    if draw(st.booleans()):
        q, k, v = (a.transpose(0, 2, 1, 3).copy().transpose(0, 2, 1, 3) for a in (q, k, v))
    return F.causal_attention, (q, k, v)


@st.composite
def lora_linears(draw):
    """With the base's weight and bias among the inputs, with and without bias and dropout."""
    n_in, n_out, r = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    p, seed, scaling = draw(st.sampled_from([0.0, 0.5])), draw(seeds), draw(st.sampled_from([0.5, 1.0, 3.0]))
    lead = draw(hnp.array_shapes(min_dims=0, max_dims=2, max_side=3))
    shapes = [(*lead, n_in), (n_out, n_in), (r, n_in), (n_out, r)] + [(n_out,)] * draw(st.booleans())

    def fn(x, weight, A, B, bias=None):
        return lora_linear(x, F.dropout(x, p, np.random.default_rng(seed)), weight, bias, A, B, scaling)

    return fn, tuple(draw(arrays(shape)) for shape in shapes)


@st.composite
def rms_norms(draw):
    x = draw(arrays(shapes_with_axis))
    return rms_norm, (x, draw(arrays(x.shape[-1:])))


@st.composite
def rotaries(draw):
    lead = draw(hnp.array_shapes(min_dims=0, max_dims=2, max_side=3))
    x = draw(arrays((*lead, draw(st.integers(1, 3)), 2 * draw(st.integers(1, 3)))))
    start, base = draw(st.integers(0, 5)), draw(st.sampled_from([10.0, 10_000.0]))
    return (lambda t: rotary(t, start, base)), (x,)


@st.composite
def swiglus(draw):
    a = draw(arrays())
    return swiglu, (a, draw(arrays(a.shape)))


@st.composite
def repeated_heads(draw):
    n = draw(st.integers(1, 3))
    return (lambda x: repeat_heads(x, n)), (draw(arrays(tuple(draw(st.integers(1, 3)) for _ in range(4)))),)


# ---- the table of operations: name -> (function, inputs) to draw -------------------------------------

OPERATIONS = {
    "__add__": binary(lambda a, b: a + b),
    "__sub__": binary(lambda a, b: a - b),
    "__mul__": binary(lambda a, b: a * b),
    "__truediv__": binary(lambda a, b: a / b, low=0.5),
    "__pow__": powers(),
    "__matmul__": products(),
    "__neg__": unary(lambda x: -x),
    "__radd__": with_number_or_array(lambda other, x: other + x),
    "__rsub__": with_number_or_array(lambda other, x: other - x),
    "__rmul__": with_number_or_array(lambda other, x: other * x),
    "__rtruediv__": with_number_or_array(lambda other, x: other / x, low=0.5),
    "__rmatmul__": products_from_the_right(),
    "__getitem__": indexed(),
    "sum": reductions("sum"),
    "mean": reductions("mean"),
    "max": reductions("max"),
    "reshape": reshapes(),
    "transpose": transposes(),
    "relu": unary(F.relu, distinct=True),  # -1.03 + 0.1 n: never within 0.03 of the kink
    "tanh": unary(F.tanh),
    "exp": unary(F.exp),
    "log": unary(F.log, low=0.3),
    "sqrt": unary(F.sqrt, low=0.3),
    "gelu": unary(F.gelu),
    "softmax": unary(F.softmax, shape=shapes_with_axis),
    "log_softmax": unary(F.log_softmax, shape=shapes_with_axis),
    "dropout": dropouts(),
    "cross_entropy": cross_entropies(),
    "linear": linears(),
    "layer_norm": layer_norms(),
    "embedding": embeddings(),
    "concatenate": concatenations(),
    "causal_attention": attentions(),
    "lora_linear": lora_linears(),
    "rms_norm": rms_norms(),
    "rotary": rotaries(),
    "swiglu": swiglus(),
    "repeat_heads": repeated_heads(),
}
