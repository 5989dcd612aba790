"""The planted problem: a change whose spectrum is the one asked for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.claims.planted import planted


def test_the_planted_change_has_the_spectrum_asked_for(rng):
    _, change = planted(8, (3.0, 1.0), rng)
    np.testing.assert_allclose(np.linalg.svd(change, compute_uv=False), [3, 1, 0, 0, 0, 0, 0, 0], atol=1e-12)
    with pytest.raises(ValueError, match="at most 2"):
        planted(2, (3.0, 1.0, 1.0), rng)


@given(d=st.integers(1, 12), seed=st.integers(0, 100), data=st.data())
def test_the_planted_change_has_exactly_its_spectrum(d, seed, data):
    k = data.draw(st.integers(1, d))
    spectrum = np.sort(np.random.default_rng(seed).uniform(0.1, 5, k))[::-1]
    w0, change = planted(d, spectrum, np.random.default_rng(seed))
    assert w0.shape == change.shape == (d, d)
    np.testing.assert_allclose(np.linalg.svd(change)[1], [*spectrum, *[0] * (d - k)], atol=1e-12)
    again = planted(d, spectrum, np.random.default_rng(seed))
    assert np.array_equal(again[0], w0) and np.array_equal(again[1], change)
