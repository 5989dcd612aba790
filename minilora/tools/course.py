"""What the course stands on: numbers that differ for each student, and checks that say what is wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np

PLACEHOLDER = "student"  # what STUDENT is in a notebook without a name


def student_rng(student: str, exercise: str) -> np.random.Generator:
    """The generator of one student for one exercise: the same on every machine, different for everyone else.

    Raises `ValueError` while `student` is empty or still the notebook's placeholder.
    """
    if str(student).strip().casefold() in ("", PLACEHOLDER):
        raise ValueError(
            f"STUDENT is {student!r}: put your name or number between the quotes in the first code cell, run that "
            "cell, and then this one."
        )
    digest = hashlib.sha256(f"{student}\n{exercise}".encode()).digest()
    return np.random.default_rng(list(digest))


def yours(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a student's function returns for copies of these arguments (arrays and lists; all else is given as it is).

    Raises `AssertionError`, in a sentence, where the function wrote into one of them.
    """
    given = [deepcopy(a) if isinstance(a, np.ndarray | list) else a for a in arguments]
    result = function(*given)
    for number, (before, after) in enumerate(zip(arguments, given, strict=True), 1):
        if isinstance(before, np.ndarray | list) and not np.array_equal(before, after):
            name = getattr(function, "__name__", "function")
            raise AssertionError(
                f"Your {name} changed its input: argument {number} is no longer what it was given. Make a new array "
                "instead (x = x - 1, not x -= 1), or work on a copy (x.copy())."
            )
    return result


def expect_close(actual: Any, expected: Any, what: str, tolerance: float = 1e-9) -> None:
    """Raise `AssertionError`, in a sentence, unless `actual` is an array of numbers equal to `expected`.

    `tolerance` is relative to the largest expected number.
    """
    got, wanted = np.asarray(actual), np.asarray(expected)
    if got.shape != wanted.shape:
        raise AssertionError(f"The {what} should have shape {wanted.shape}; yours has {got.shape}.")
    if got.dtype.kind not in "fiub":
        raise AssertionError(f"The {what} should be numbers; yours are of type {got.dtype}.")
    if wanted.size == 0:
        return
    off = np.abs(got - wanted)
    place = np.unravel_index(np.argmax(np.where(np.isnan(off), np.inf, off)), wanted.shape)
    if not off[place] <= tolerance * max(1e-300, float(np.abs(wanted).max())):
        at = f" at {tuple(map(int, place))}" if wanted.ndim else ""
        raise AssertionError(f"The {what}{at} should be {wanted[place]:.6g}; yours is {got[place]:.6g}.")
