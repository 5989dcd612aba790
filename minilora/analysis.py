"""What is inside ΔW (§7.2, §7.3, App. G and H): spectra, the best matrix of rank k, similar subspaces, amplification.

Matrices are (out, in) as everywhere. Singular vectors are compared only through the subspaces they span: their signs,
and their order where singular values are equal, mean nothing.
"""

from __future__ import annotations

import math

import numpy as np

from .autograd import Array
from .backend import multiplies, to_numpy


def spectrum(matrix: Array) -> np.ndarray:
    """Singular values, largest first, (min(out, in),)."""
    return np.linalg.svd(to_numpy(matrix), compute_uv=False)


@multiplies
def truncate(matrix: Array, k: int) -> np.ndarray:
    """The nearest matrix of rank at most k (Eckart & Young 1936): the k largest singular values and their vectors."""
    u, s, vh = np.linalg.svd(to_numpy(matrix), full_matrices=False)
    return (u[:, :k] * s[:k]) @ vh[:k]  # (out, k) @ (k, in) -> (out, in)


def input_directions(matrix: Array, r: int) -> np.ndarray:
    """The r inputs that the matrix answers most, orthonormal columns (in, r): the right singular vectors."""
    return np.linalg.svd(to_numpy(matrix), full_matrices=False)[2][:r].T


def output_directions(matrix: Array, r: int) -> np.ndarray:
    """The r directions that the matrix writes most, orthonormal columns (out, r): the left singular vectors."""
    return np.linalg.svd(to_numpy(matrix), full_matrices=False)[0][:, :r]


@multiplies
def subspace_similarity(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """φ(i, j) = ‖U_iᵀV_j‖²/min(i, j) of the first i columns of u (d, p) and j of v (d, q), all at once: (p, q).

    §7.2, eq. 4: 1 where one span holds the other, 0 where they are orthogonal; columns are orthonormal. Entry
    [i - 1, j - 1] is φ(i, j). Raises `ValueError` where the columns have different lengths.
    """
    if len(u) != len(v):
        raise ValueError(f"Subspaces of one space are compared; these are of {len(u)} and {len(v)} dimensions.")
    overlap = ((u.T @ v) ** 2).cumsum(axis=0).cumsum(axis=1)  # ‖U_iᵀV_j‖² for every i and j
    smaller = np.minimum(np.arange(1, u.shape[1] + 1)[:, None], np.arange(1, v.shape[1] + 1))
    return overlap / smaller


def random_similarity(p: int, q: int, d: int) -> np.ndarray:
    """What φ(i, j) is on average for two independent random subspaces: max(i, j)/d, (p, q)."""
    return np.maximum(np.arange(1, p + 1)[:, None], np.arange(1, q + 1)) / d


@multiplies
def projected_norm(weight: Array, u: np.ndarray, v: np.ndarray) -> float:
    """‖UᵀWV‖, how much of W (out, in) lies between inputs v (in, r) and outputs u (out, r) (§7.3)."""
    return float(np.linalg.norm(u.T @ to_numpy(weight) @ v))


def amplification(weight: Array, delta: Array, r: int, rng: np.random.Generator) -> dict[str, float]:
    """Table 7 for one matrix: ‖UᵀWVᵀ‖ with the top r directions of ΔW, of W itself, and random ones; and ‖ΔW‖.

    "factor" is ‖ΔW‖ over the first, the paper's amplification factor. "expected" is the size that random directions
    give on average, r‖W‖/√(out·in): the factor alone is large for random directions as well. "random" is the root
    of the mean square over 20 draws.
    """
    out, in_ = weight.shape
    norm = float(np.linalg.norm(to_numpy(weight)))
    drawn = [projected_norm(weight, *(np.linalg.qr(rng.normal(size=(n, r)))[0] for n in (out, in_))) for _ in range(20)]
    change = projected_norm(weight, output_directions(delta, r), input_directions(delta, r))
    size = float(np.linalg.norm(to_numpy(delta)))
    return {
        "change": change,
        "own": projected_norm(weight, output_directions(weight, r), input_directions(weight, r)),
        "random": math.sqrt(sum(x * x for x in drawn) / len(drawn)),
        "expected": r * norm / math.sqrt(out * in_),
        "delta_norm": size,
        "weight_norm": norm,
        "factor": size / change,
    }
