"""Is a gradient right? Compare it with differences of the function itself, in float64.

First each input along one random direction, four evaluations whatever its size; an error anywhere in
the gradient shows there almost surely. Only if that fails, element by element, to say where.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from .autograd import Tensor, no_grad
from .backend import asarray, to_numpy

# The error of the four-point difference is about h⁴ f⁗′/30 from the curve and 1e-16 f/h from rounding:
# the first step is best for a smooth function, the others are for one that bends sharply, whose gradient is large.
_STEPS = (1e-3, 1e-4, 1e-5, 1e-6)


def gradcheck(fn: Callable[..., Tensor], *inputs: Any, tolerance: float = 1e-6, seed: int = 0) -> bool:
    """Check the gradients of `fn(*inputs)` with respect to every input; returns True.

    Inputs are float64 arrays, of which `fn` gets copies, or Tensors (a model's parameters, say), whose data is
    exchanged for the time of the check; those that do not require a gradient are left alone. A result that is not one
    number is weighted with random numbers. `tolerance` is relative to the largest gradient of the whole check.
    Raises `AssertionError` naming the input, the index, and both derivatives, or the input that `fn` wrote into;
    `TypeError` for inputs that are not float64.
    """
    tensors = [x if isinstance(x, Tensor) else Tensor(to_numpy(x), requires_grad=True) for x in inputs]
    checked = [i for i, t in enumerate(tensors) if t.requires_grad]
    for i in checked:
        if tensors[i].dtype != np.float64:
            raise TypeError(
                f"gradcheck compares in float64; input {i} is {tensors[i].dtype}: convert it first, "
                'or build the model with dtype="float64".'
            )
    if not checked:
        raise ValueError("gradcheck found nothing to check: no input requires a gradient.")
    rng = np.random.default_rng(seed)
    originals = [(tensor, tensor.array, tensor._readers) for tensor in tensors]
    everything = [to_numpy(tensor.array).copy() for tensor in tensors]
    points = [everything[i] for i in checked]

    def give_copies() -> None:
        for tensor, array in zip(tensors, everything, strict=True):
            tensor.data = asarray(array.copy())

    def give_back() -> None:
        for tensor, array, readers in originals:
            tensor.array, tensor._readers = array, readers

    def call() -> Tensor:
        """fn, which must leave its inputs as they are."""
        given = [to_numpy(tensor.array).copy() for tensor in tensors]
        out = fn(*tensors)
        for i, (tensor, array) in enumerate(zip(tensors, given, strict=True)):
            _check_unchanged(f"fn changed its input {i}", to_numpy(tensor.array), array)
        return out

    before = [tensors[i].grad for i in checked]
    try:
        give_copies()
        for i in checked:
            tensors[i].grad = None
        out = call()
        weights = rng.normal(size=out.shape)
        (out * asarray(weights)).sum().backward()
        analytic = [
            np.zeros(tensors[i].shape) if tensors[i].grad is None else to_numpy(tensors[i].grad).copy() for i in checked
        ]
    finally:
        give_back()
        for i, grad in zip(checked, before, strict=True):
            tensors[i].grad = grad

    def value(number: int, x: np.ndarray) -> np.ndarray:
        """fn with input `number` at x."""
        try:
            give_copies()
            tensors[checked[number]].data = asarray(x.copy())
            with no_grad():
                return to_numpy(call().array) * weights
        finally:
            give_back()

    _compare(value, points, analytic, checked, tolerance, rng)
    return True


def check_gradient(
    f: Callable[..., Any], grad: Callable[..., Any], x: Any, tolerance: float = 1e-6, seed: int = 0
) -> bool:
    """Check a hand-written gradient of a plain NumPy function; returns True.

    `f(x)` is one number and `grad(x)` an array like x, float64. x may be a tuple of arrays: then
    `f(*x)` and `grad(*x)`, a tuple in the same order. Both get copies, and must leave them as they are. Raises as
    `gradcheck` does, `ValueError` where a gradient does not have the shape of its input, and `TypeError` for complex
    numbers.
    """
    points = [_real(a, "x") for a in (x if isinstance(x, tuple) else (x,))]

    def call(function: Callable[..., Any], name: str, arrays: Sequence[np.ndarray]) -> Any:
        given = [array.copy() for array in arrays]
        result = function(*given)
        for i, (after, array) in enumerate(zip(given, arrays, strict=True)):
            _check_unchanged(f"{name} changed its input {i}", after, array)
        return result

    result = call(grad, "grad", points)
    analytic = [_real(a, "a gradient") for a in (result if isinstance(x, tuple) else (result,))]
    if len(analytic) != len(points):
        raise ValueError(f"grad returned {len(analytic)} gradients for {len(points)} inputs.")
    for i, (a, p) in enumerate(zip(analytic, points, strict=True)):
        if a.shape != p.shape:
            raise ValueError(f"The gradient of input {i} has shape {a.shape}; its input has shape {p.shape}.")
    shape = np.shape(call(f, "f", points))
    if np.prod(shape) != 1:
        raise ValueError(f"f must return one number; it returned shape {shape}: sum it, weighted or not.")

    def value(number: int, x: np.ndarray) -> np.ndarray:
        return _real(call(f, "f", [*points[:number], x, *points[number + 1 :]]), "f(x)")

    _compare(value, points, analytic, list(range(len(points))), tolerance, np.random.default_rng(seed))
    return True


def _check_unchanged(what: str, after: np.ndarray, before: np.ndarray) -> None:
    if not np.array_equal(after, before, equal_nan=True):
        raise AssertionError(
            f"{what} in place, so its result means nothing at that point: let it work on a copy (x = x.copy()), or "
            "make a new array (x = 2 * x, not x *= 2)."
        )


def _real(numbers: Any, what: str) -> np.ndarray:
    """A float64 copy. Raises `TypeError` for complex numbers, whose imaginary part would be lost."""
    if np.iscomplexobj(numbers):
        raise TypeError(f"check_gradient compares real numbers; {what} is complex.")
    return np.array(numbers, dtype=np.float64)


# ---- how it compares ---------------------------------------------------------------------------------

Value = Callable[[int, np.ndarray], np.ndarray]


def _compare(
    value: Value,
    points: Sequence[np.ndarray],
    analytic: Sequence[np.ndarray],
    names: Sequence[int],
    tolerance: float,
    rng: np.random.Generator,
) -> None:
    first = value(0, points[0])
    if not np.array_equal(first, value(0, points[0]), equal_nan=True):
        raise AssertionError(
            "The function gave two different results at the same point: re-seed its random generator on every call."
        )
    if not np.all(np.isfinite(first)):
        raise AssertionError("The function is not finite at this point, so no difference of it means anything.")
    for name, gradient in zip(names, analytic, strict=True):
        if not np.all(np.isfinite(gradient)):
            raise AssertionError(f"The gradient of input {name} is not finite.")
    scale = max((float(np.max(np.abs(g))) for g in analytic if g.size), default=0.0)
    # What rounding alone does to a difference at the first step; a smaller step is given no more.
    rounding = 10 * float(np.finfo(np.float64).eps) * float(np.sum(np.abs(first))) / _STEPS[0]

    for number, (point, gradient) in enumerate(zip(points, analytic, strict=True)):
        direction = rng.choice([-1.0, 1.0], size=point.shape) * rng.uniform(0.5, 1.0, size=point.shape)
        expected = float(np.sum(gradient * direction))
        numeric, close = _along(value, number, point, direction, expected, tolerance * scale, rounding)
        if not close:
            _blame(value, number, names[number], point, gradient, tolerance, scale, rounding, expected, numeric)


def _along(
    value: Value,
    number: int,
    point: np.ndarray,
    direction: np.ndarray,
    expected: float,
    allowed: float,
    rounding: float,
) -> tuple[float, bool]:
    """The difference along a direction, at the step that comes closest to `expected`."""
    best = np.inf
    for h in _STEPS:
        with _quiet():
            numeric = _difference(lambda x: value(number, x), point, direction, h)
        if abs(numeric - expected) <= allowed + rounding:
            return numeric, True
        if not abs(numeric - expected) >= abs(best - expected):
            best = numeric
    return best, False


def _difference(f: Callable[[np.ndarray], np.ndarray], x: np.ndarray, u: np.ndarray, h: float) -> float:
    """(8[f(x + hu) - f(x - hu)] - [f(x + 2hu) - f(x - 2hu)])/12h, subtracted before it is summed."""
    near = f(x + h * u) - f(x - h * u)
    far = f(x + 2 * h * u) - f(x - 2 * h * u)
    return float(np.sum(8 * near - far)) / (12 * h)


def _blame(
    value: Value,
    number: int,
    name: int,
    point: np.ndarray,
    gradient: np.ndarray,
    tolerance: float,
    scale: float,
    rounding: float,
    expected: float,
    numeric: float,
) -> None:
    """Raise `AssertionError` with the element of this input that is furthest off."""
    worst: tuple[float, tuple[int, ...], float, float] | None = None
    for index in np.ndindex(point.shape):
        unit = np.zeros(point.shape)
        unit[index] = 1.0
        a = float(gradient[index])
        n, close = _along(value, number, point, unit, a, tolerance * scale, rounding)
        error = abs(n - a) if np.isfinite(n) else np.inf
        if not close and (worst is None or error > worst[0]):
            worst = (error, index, a, n)
    if worst is None:
        raise AssertionError(
            f"Input {name}: along a random direction the analytic derivative is {expected:.9g} and the numeric one "
            f"{numeric:.9g}, though each element alone agrees: the error is spread thin, or the point is near a kink."
        )
    error, index, a, n = worst
    size = max(abs(a), abs(n), float(np.finfo(np.float64).tiny))
    message = (
        f"Input {name}, index {index}: analytic {a:.9g}, numeric {n:.9g}, absolute error {error:.3g}, "
        f"relative error {error / size:.3g} (allowed: {tolerance:g} of the largest gradient, {scale:.3g})."
    )
    if _kinked(value, number, point, index):
        message += " The slopes on the two sides differ: the point is near a kink, so choose another."
    raise AssertionError(message)


def _kinked(value: Value, number: int, point: np.ndarray, index: tuple[int, ...]) -> bool:
    """Whether left and right slopes differ, and still differ as the step shrinks."""

    def gap(h: float) -> tuple[float, float]:
        step = np.zeros(point.shape)
        step[index] = h
        with _quiet():
            middle = np.sum(value(number, point))
            right = (np.sum(value(number, point + step)) - middle) / h
            left = (middle - np.sum(value(number, point - step))) / h
        return abs(right - left), max(abs(right), abs(left))

    (wide, size), (narrow, _) = gap(1e-3), gap(1e-4)
    return bool(wide > 1e-3 * size and narrow > 0.5 * wide)


@contextmanager
def _quiet() -> Iterator[None]:
    """A step may leave the function's domain; the NaN that follows is handled, not announced."""
    with np.errstate(all="ignore"):
        yield
