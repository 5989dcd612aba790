"""Is a gradient right? Compare it with differences of the function itself, in float64.

First each input along one random direction, at most sixteen evaluations whatever its size; an error anywhere in
the gradient shows there almost surely. Only if that fails, element by element, to say where.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from . import diagnosis
from .autograd import Tensor, no_grad
from .backend import asarray, to_numpy

# The error of the four-point difference is about h⁴ f⁽⁵⁾/30 from the curve and 1e-16 f/h from rounding:
# the first step is best for a smooth function, the others are for one that bends sharply, whose gradient is large.
STEPS = (1e-3, 1e-4, 1e-5, 1e-6)


def gradcheck(fn: Callable[..., Tensor], *inputs: Any, tolerance: float = 1e-6, seed: int = 0) -> bool:
    """Check the gradients of `fn(*inputs)` with respect to every input; returns True.

    Inputs are float64 arrays, of which `fn` gets copies, or Tensors (a model's parameters, say), whose data is
    swapped out during the check; those that do not require a gradient are left alone. A result that is not one
    number is summed with random weights, so that no errors cancel. `tolerance` is relative to the largest gradient of
    all. Raises `AssertionError` naming the input, the index, and both derivatives, or the input that `fn` wrote into;
    `TypeError` for inputs that are not float64.
    """
    tensors = [x if isinstance(x, Tensor) else Tensor(to_numpy(x), requires_grad=True) for x in inputs]
    checked = [i for i, tensor in enumerate(tensors) if tensor.requires_grad]
    diagnosis.check_inputs({i: tensors[i].dtype for i in checked})
    rng = np.random.default_rng(seed)
    given = [to_numpy(tensor.array).copy() for tensor in tensors]

    def call(moved: Mapping[int, np.ndarray]) -> Tensor:
        """fn with some inputs moved, also where one is there twice; it must leave all as they are."""
        for i, array in (*enumerate(given), *moved.items()):
            tensors[i].data = asarray(array.copy())
        held = [to_numpy(tensor.array).copy() for tensor in tensors]
        out = fn(*tensors)
        diagnosis.check_untouched("fn", [to_numpy(tensor.array) for tensor in tensors], held)
        return out

    with _as_before(tensors):
        out = call({})
        weights = rng.normal(size=out.shape)
        (out * asarray(weights)).sum().backward()
        analytic = {
            i: np.zeros(given[i].shape) if (g := tensors[i].grad) is None else to_numpy(g).copy() for i in checked
        }

    def value(number: int, x: np.ndarray) -> np.ndarray:
        """fn with input `number` at x."""
        with no_grad(), _as_before(tensors):
            return to_numpy(call({number: x}).array) * weights

    _compare(value, given, analytic, tolerance, rng)
    return True


@contextmanager
def _as_before(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Within this context the tensors have no gradient; after it, what they had and held before."""
    before = [(tensor.array, tensor.grad, tensor._readers) for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.grad = None
        yield
    finally:
        for tensor, (array, grad, readers) in zip(tensors, before, strict=True):
            tensor.array, tensor.grad, tensor._readers = array, grad, readers


def check_gradient(
    f: Callable[..., Any], grad: Callable[..., Any], x: Any, tolerance: float = 1e-6, seed: int = 0
) -> bool:
    """Check a hand-written gradient of a plain NumPy function; returns True.

    `f(x)` is one number and `grad(x)` an array like x, float64. x may be a tuple of arrays: then
    `f(*x)` and `grad(*x)`, a tuple in the same order. Both get copies, and must leave them as they are. Raises as
    `gradcheck` does, `ValueError` where a gradient does not have the shape of its input, and `TypeError` for complex
    numbers.
    """
    points = [diagnosis.real(a, "x") for a in (x if isinstance(x, tuple) else (x,))]

    result = diagnosis.of_copies(grad, "grad", points)
    analytic = [diagnosis.real(a, "a gradient") for a in (result if isinstance(x, tuple) else (result,))]
    diagnosis.check_shapes(analytic, points, np.shape(diagnosis.of_copies(f, "f", points)))

    def value(number: int, x: np.ndarray) -> np.ndarray:
        return diagnosis.real(diagnosis.of_copies(f, "f", [*points[:number], x, *points[number + 1 :]]), "f(x)")

    _compare(value, points, dict(enumerate(analytic)), tolerance, np.random.default_rng(seed))
    return True


# ---- how it compares ---------------------------------------------------------------------------------


def _compare(
    value: Callable[[int, np.ndarray], np.ndarray],
    points: Sequence[np.ndarray],
    analytic: Mapping[int, np.ndarray],
    tolerance: float,
    rng: np.random.Generator,
) -> None:
    """Raise `AssertionError` where `value(i, x)`, which has input i at x, does not change as gradient i says."""
    some = next(iter(analytic))
    first = value(some, points[some])
    diagnosis.check_values(first, value(some, points[some]), analytic)
    scale = max((float(np.max(np.abs(g))) for g in analytic.values() if g.size), default=0.0)
    # What rounding alone does to a difference at the first step; a smaller step is allowed no more.
    rounding = 10 * float(np.finfo(np.float64).eps) * float(np.sum(np.abs(first))) / STEPS[0]

    for i, gradient in analytic.items():
        f, x = partial(value, i), points[i]
        slope = partial(_slope, f, x, gradient, allowed=tolerance * scale + rounding)
        direction = rng.choice([-1.0, 1.0], size=x.shape) * rng.uniform(0.5, 1.0, size=x.shape)
        numeric, close = slope(direction)
        if not close:
            allowed = f"{tolerance:g} of the largest gradient, {scale:.3g}"
            said = diagnosis.worst(f, x, gradient, slope, allowed)
            raise AssertionError(f"Input {i}" + (said or diagnosis.spread_thin(np.sum(gradient * direction), numeric)))


def _slope(
    f: Callable[[np.ndarray], np.ndarray], x: np.ndarray, gradient: np.ndarray, u: np.ndarray, allowed: float
) -> tuple[float, bool]:
    """The difference of f along u at the step that comes closest to gradient · u; whether it is within `allowed`."""
    expected, best = float(np.sum(gradient * u)), np.nan
    for h in STEPS:
        with np.errstate(all="ignore"):  # a step may leave the function's domain; the NaN that follows is handled
            numeric = _difference(f, x, u, h)
        if abs(numeric - expected) <= allowed:
            return numeric, True
        if not np.isfinite(best) or abs(numeric - expected) < abs(best - expected):
            best = numeric
    return best, False


def _difference(f: Callable[[np.ndarray], np.ndarray], x: np.ndarray, u: np.ndarray, h: float) -> float:
    """(8[f(x + hu) - f(x - hu)] - [f(x + 2hu) - f(x - 2hu)])/12h, subtracted before it is summed."""
    near = f(x + h * u) - f(x - h * u)
    far = f(x + 2 * h * u) - f(x - 2 * h * u)
    return float(np.sum(8 * near - far)) / (12 * h)
