"""What the course stands on: numbers that differ for each student, and comparisons that say what is wrong."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np


def student_rng(student: str, exercise: str) -> np.random.Generator:
    """The generator of one student for one exercise: the same on every machine, different for everyone else."""
    digest = hashlib.sha256(f"{student}\n{exercise}".encode()).digest()
    return np.random.default_rng(list(digest))


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
