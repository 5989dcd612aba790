"""One BLAS thread, set before NumPy is imported; the same hypothesis examples on every run."""

import os
import sys

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from strict.library import use_strict

import minilora as ml
from minilora import backend
from minilora.backend import asarray

settings.register_profile(
    "quick", derandomize=True, deadline=None, max_examples=20, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("thorough", settings.get_profile("quick"), derandomize=False, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


def pytest_addoption(parser):
    parser.addoption(
        "--backend",
        choices=["numpy", "strict", "cupy"],
        default="numpy",
        help="what computes: NumPy; a stand-in that refuses all that CuPy would (tests/strict); CuPy, on a GPU",
    )


def use(name):
    """The backend of that name, of the stand-in too."""
    if name == "strict":
        use_strict()
    else:
        backend.use_backend(name)


def pytest_configure(config):
    try:
        use(config.getoption("--backend"))
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_report_header(config):
    return f"backend: {backend.backend_name()}"


def pytest_collection_modifyitems(config, items):
    """What is about NumPy alone is skipped on another backend, what is about a GPU without one: with the reason."""
    name = config.getoption("--backend")
    for item in items:
        alone = item.get_closest_marker("numpy_only")
        if alone is not None and name != "numpy":
            item.add_marker(pytest.mark.skip(reason=f"{alone.args[0]}; this run is on {name}"))
        if item.get_closest_marker("gpu") is not None and name != "cupy":
            item.add_marker(pytest.mark.skip(reason="needs a GPU: run with --backend cupy"))


@pytest.fixture
def restore_backend(request):
    """What this run computes with computes again after the test, whatever library it put in."""
    yield
    use(request.config.getoption("--backend"))


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
            p.data += asarray(noise.normal(0, 0.3, p.shape), dtype)
        return model

    return make


@pytest.fixture
def tiny_bases(monkeypatch):
    """Untrained small models instead of the pretrained bases, two steps instead of hundreds, few examples. Gives a
    function that forgets what was remembered of them."""
    from minilora import claims
    from minilora.claims import adaptation, bases, sweeps
    from minilora.data import fixed
    from minilora.tasks import WIDTH
    from minilora.training import evaluate

    def base(world, seed):
        sizes = {"d_model": 64, "n_layers": 2, "n_heads": 2}
        model = ml.GPT(ml.GPTConfig(96, 2 * WIDTH if world == "strings" else 64, **sizes), seed=seed)
        for _name, p in model.named_parameters():
            if p.ndim == 2:
                p.data *= 3
        return model

    def few(draw, count, seed=2**31):
        return fixed(draw, 1, seed)

    def some_right(model, batches):  # a model that learned nothing answers nothing
        return 0.5 + 1e-3 * evaluate(model, batches)

    def some_match(logits, targets):
        return 0.5 + 1e-3 * float(abs(logits).mean())

    def forget():  # what is remembered of the real bases, of these, or of another backend's
        for cached in (adaptation._held_out, adaptation._before):
            cached.cache_clear()

    replaced = {"pretrained": base, "fixed": few, "evaluate_exact_match": some_right, "exact_match": some_match}
    for module in (adaptation, bases, sweeps, *(sys.modules[claim.draw.__module__] for claim in claims.CLAIMS)):
        for name, value in replaced.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(adaptation, "_tuned", lambda setting, method: 0.01)
    for world, steps in (("strings", 6), ("text", 8)):
        monkeypatch.setitem(adaptation.STEPS, world, steps)
    forget()
    yield forget
    forget()
