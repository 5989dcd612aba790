"""One BLAS thread, set before NumPy is imported; the same hypothesis examples on every run."""

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import minilora as ml
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


SMALL = ml.GPTConfig(vocab_size=11, context_length=8, d_model=16, n_layers=2, n_heads=4)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def batch(rng):
    """ids and targets (2, 7) for a SMALL model, some targets ignored."""
    ids, targets = rng.integers(0, 11, (2, 7)), rng.integers(0, 11, (2, 7))
    targets[0, :3] = -100
    return ids, targets


@pytest.fixture
def small():
    """small(dtype) -> a GPT whose weights are wide enough for every gradient to count."""

    def make(dtype="float32", **changes):
        config = ml.GPTConfig(**{**SMALL.__dict__, **changes})
        model = ml.GPT(config, seed=1, dtype=dtype)
        noise = np.random.default_rng(2)
        for p in model.parameters():
            p.data += noise.normal(0, 0.3, p.shape).astype(dtype)
        return model

    return make
