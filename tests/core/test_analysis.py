"""Spectra, subspaces and amplification, on matrices whose answer is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.analysis import (
    amplification,
    input_directions,
    output_directions,
    random_similarity,
    spectrum,
    subspace_similarity,
    truncate,
)


def directions(d, r, seed):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(d, r)))[0]


@given(st.integers(2, 12), st.data())
def test_similarity_is_between_0_and_1_symmetric_and_1_within_a_span(d, data):
    p, q = data.draw(st.integers(1, d)), data.draw(st.integers(1, d))
    u, v = directions(d, p, 0), directions(d, q, 1)
    phi = subspace_similarity(u, v)
    assert phi.shape == (p, q) and (phi >= 0).all() and (phi <= 1 + 1e-12).all()
    np.testing.assert_allclose(phi, subspace_similarity(v, u).T)
    np.testing.assert_allclose(np.diag(subspace_similarity(u, u)), 1)
    i, j = data.draw(st.integers(1, p)), data.draw(st.integers(1, q))
    by_definition = np.linalg.norm(u[:, :i].T @ v[:, :j]) ** 2 / min(i, j)
    assert phi[i - 1, j - 1] == pytest.approx(by_definition)


def test_orthogonal_spans_share_nothing_and_a_rotation_within_a_span_changes_nothing():
    whole = directions(10, 10, 0)
    np.testing.assert_allclose(subspace_similarity(whole[:, :4], whole[:, 4:]), 0, atol=1e-12)
    turned = whole[:, :4] @ directions(4, 4, 1)
    assert subspace_similarity(whole[:, :4], turned)[-1, -1] == pytest.approx(1)
    with pytest.raises(ValueError, match="10 and 9 dimensions"):
        subspace_similarity(whole, directions(9, 3, 0))


def test_random_subspaces_overlap_by_max_i_j_over_d():
    d, p, q = 24, 3, 6
    mean = np.mean([subspace_similarity(directions(d, p, 2 * s), directions(d, q, 2 * s + 1)) for s in range(2000)], 0)
    np.testing.assert_allclose(mean, random_similarity(p, q, d), atol=0.006)


def test_phi_of_a_alone_depends_on_the_factorization_and_phi_of_the_product_does_not():
    """BA = (BM⁻¹)(MA): the rows of A mean something only as a span."""
    rng = np.random.default_rng(0)
    B, A, M, other = rng.normal(size=(9, 3)), rng.normal(size=(3, 9)), rng.normal(size=(3, 3)), directions(9, 3, 1)

    def phi(matrix):
        return subspace_similarity(input_directions(matrix, 3), other)

    np.testing.assert_allclose(phi(B @ A), phi((B @ np.linalg.inv(M)) @ (M @ A)), atol=1e-9)
    assert abs(phi(A) - phi(M @ A))[0, 0] > 0.01
    assert phi(A)[-1, -1] == pytest.approx(phi(M @ A)[-1, -1])


def test_truncation_leaves_what_eckart_and_young_say():
    matrix = np.random.default_rng(0).normal(size=(7, 5))
    for k in range(6):
        near = truncate(matrix, k)
        assert np.linalg.matrix_rank(near) == k
        assert np.linalg.norm(matrix - near) ** 2 == pytest.approx((spectrum(matrix)[k:] ** 2).sum(), abs=1e-12)


def test_amplification_of_a_change_in_known_directions():
    """W = 5 e₁e₁ᵀ + 1 e₂e₂ᵀ; ΔW = 3 e₂e₂ᵀ amplifies e₂ threefold, and W's own direction is five."""
    W, change = np.diag([5.0, 1.0, 0, 0]), np.diag([0, 3.0, 0, 0])
    result = amplification(W, change, 1, np.random.default_rng(0))
    assert result["factor"] == pytest.approx(3) and result["own"] == pytest.approx(5)
    assert result["change"] == pytest.approx(1) and result["delta_norm"] == 3
    assert result["expected"] == pytest.approx(np.sqrt(26) / 4)
    wide = np.random.default_rng(1).normal(size=(64, 64))
    drawn = amplification(wide, wide, 8, np.random.default_rng(0))
    assert drawn["random"] == pytest.approx(drawn["expected"], rel=0.05)
    assert drawn["factor"] == pytest.approx(np.linalg.norm(wide) / drawn["own"])
    assert output_directions(change, 1)[1, 0] ** 2 == pytest.approx(1)
