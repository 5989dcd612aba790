"""One BLAS thread, set before NumPy is imported; the same hypothesis examples on every run."""

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import pytest
from hypothesis import HealthCheck, settings
from support import batch, rng, small  # noqa: F401

from minilora import backend

settings.register_profile(
    "quick", derandomize=True, deadline=None, max_examples=20, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("thorough", settings.get_profile("quick"), derandomize=False, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


@pytest.fixture
def restore_backend():
    """NumPy computes again after the test, whatever library it put in."""
    yield
    backend.use_backend("numpy")
