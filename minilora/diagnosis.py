"""What a gradient check says: about inputs it cannot check, and the element of a gradient that is furthest off."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

# ---- what cannot be checked --------------------------------------------------------------------------


def check_inputs(dtypes: Mapping[int, Any]) -> None:
    """Raise `TypeError` for an input that is not float64, `ValueError` where there is none."""
    for i, dtype in dtypes.items():
        if dtype != np.float64:
            raise TypeError(
                f"gradcheck compares in float64; input {i} is {dtype}: convert it first, "
                'or build the model with dtype="float64".'
            )
    if not dtypes:
        raise ValueError("gradcheck found nothing to check: no input requires a gradient.")


def real(numbers: Any, what: str) -> np.ndarray:
    """A float64 copy. Raises `TypeError` for complex numbers, whose imaginary part would be lost."""
    if np.iscomplexobj(numbers):
        raise TypeError(f"check_gradient compares real numbers; {what} is complex.")
    return np.array(numbers, dtype=np.float64)


def check_shapes(gradients: Sequence[np.ndarray], points: Sequence[np.ndarray], value: tuple[int, ...]) -> None:
    """Raise `ValueError` where a gradient is not an array like its input, or f is not one number."""
    if len(gradients) != len(points):
        raise ValueError(f"grad returned {len(gradients)} gradients for {len(points)} inputs.")
    for i, (gradient, point) in enumerate(zip(gradients, points, strict=True)):
        if gradient.shape != point.shape:
            raise ValueError(
                f"The gradient of input {i} has shape {gradient.shape}; its input has shape {point.shape}."
            )
    if np.prod(value) != 1:
        raise ValueError(f"f must return one number; it returned shape {value}: sum it, weighted or not.")


def of_copies(function: Callable[..., Any], name: str, arrays: Sequence[np.ndarray]) -> Any:
    """function(*arrays) on copies, which it must leave as they are."""
    copies = [array.copy() for array in arrays]
    result = function(*copies)
    check_untouched(name, copies, arrays)
    return result


def check_untouched(name: str, after: Sequence[np.ndarray], before: Sequence[np.ndarray]) -> None:
    """Raise `AssertionError` where a function wrote into one of its inputs."""
    for i, (new, old) in enumerate(zip(after, before, strict=True)):
        if not np.array_equal(new, old, equal_nan=True):
            raise AssertionError(
                f"{name} changed its input {i} in place, so its result means nothing at that point: let it work on a "
                "copy (x = x.copy()), or make a new array (x = 2 * x, not x *= 2)."
            )


def check_values(first: np.ndarray, again: np.ndarray, gradients: Mapping[int, np.ndarray]) -> None:
    """Raise `AssertionError` where results or gradients are such that no difference means anything."""
    if not np.array_equal(first, again, equal_nan=True):
        raise AssertionError(
            "The function gave two different results at the same point: re-seed its random generator on every call."
        )
    if not np.all(np.isfinite(first)):
        raise AssertionError("The function is not finite at this point, so no difference of it means anything.")
    for i, gradient in gradients.items():
        if not np.all(np.isfinite(gradient)):
            raise AssertionError(f"The gradient of input {i} is not finite.")


# ---- what is wrong -----------------------------------------------------------------------------------

Function = Callable[[np.ndarray], np.ndarray]


def worst(
    f: Function, x: np.ndarray, gradient: np.ndarray, slope: Callable[[np.ndarray], tuple[float, bool]], allowed: str
) -> str:
    """Of the elements that disagree with their difference (`slope` along a unit vector), the one furthest off, in a
    sentence; "" where each alone agrees."""
    found: tuple[float, tuple[int, ...], float] | None = None
    for index in np.ndindex(x.shape):
        numeric, close = slope(_unit(x, index))
        error = abs(numeric - gradient[index]) if np.isfinite(numeric) else np.inf
        if not close and (found is None or error > found[0]):
            found = error, index, numeric
    if found is None:
        return ""
    error, index, numeric = found
    analytic = float(gradient[index])
    size = max(abs(analytic), abs(numeric), float(np.finfo(np.float64).tiny))
    kink = " The slopes on the two sides differ: the point is near a kink, so choose another."
    return (
        f", index {index}: analytic {analytic:.9g}, numeric {numeric:.9g}, absolute error {error:.3g}, "
        f"relative error {error / size:.3g} (allowed: {allowed}).{kink if _kinked(f, x, _unit(x, index)) else ''}"
    )


def spread_thin(analytic: float, numeric: float) -> str:
    return (
        f": along a random direction the analytic derivative is {analytic:.9g} and the numeric one {numeric:.9g}, "
        "though each element alone agrees: the error is spread thin, or the point is near a kink."
    )


def _unit(x: np.ndarray, index: tuple[int, ...]) -> np.ndarray:
    u = np.zeros(x.shape)
    u[index] = 1.0
    return u


def _kinked(f: Function, x: np.ndarray, u: np.ndarray) -> bool:
    """Whether left and right slopes differ, and still differ as the step shrinks."""

    def gap(h: float) -> tuple[float, float]:
        with np.errstate(all="ignore"):
            middle = np.sum(f(x))
            right, left = (np.sum(f(x + h * u)) - middle) / h, (middle - np.sum(f(x - h * u))) / h
        return abs(right - left), max(abs(right), abs(left))

    (wide, size), (narrow, _) = gap(1e-3), gap(1e-4)
    return bool(wide > 1e-3 * size and narrow > 0.5 * wide)
