"""`minilora info --backend cupy`: does all of this hold on your GPU? A report to paste into an issue."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from .. import __version__
from .. import functional as F
from ..autograd import Tensor
from ..backend import asarray, backend_name, device_count, to_numpy, use_array_library
from ..claims.stopwatch import seconds_of
from ..data import Batch
from ..gpt import GPT, GPTConfig
from ..gradient_check import gradcheck
from ..lora import LoRAConfig, add_lora
from ..optim import Adam
from ..training import batch_loss, train

STEPS = 20
# d_model, layers, B, T: two sizes of the claims, one of GPT-2 small's layers
SIZES = ((64, 2, 64, 20), (320, 8, 8, 128), (768, 12, 4, 256))
ALLOWED = {"float64": 1e-12, "float32": 1e-4}  # of the loss, between two libraries that round in another order


def device_report(sizes: tuple[tuple[int, ...], ...] = SIZES) -> str:
    """What the backend in use computes with, whether its gradients are right, how far a training run is from NumPy's,
    and how long steps take on both. Markdown."""
    lines = [
        f"minilora {__version__} on {backend_name()}, {device()}; Python {platform.python_version()}, "
        f"NumPy {np.__version__}, {platform.system()} {platform.machine()}",
        "",
        f"- allocation: {allocation()}",
        f"- gradients, float64: {gradients()}",
    ]
    for dtype, allowed in ALLOWED.items():
        apart = training_apart(dtype)
        lines.append(
            f"- {STEPS} steps of full training and LoRA, {dtype}: losses {apart:.1e} from NumPy's "
            f"({'within' if apart <= allowed else 'BEYOND'} {allowed:g})"
        )
    lines += ["", "| d, layers, B, T | step | here (ms) | NumPy (ms) | ratio |", "|---|---|---|---|---|"]
    for size in sizes:
        for method in ("full", "LoRA"):
            here = step_time(size, method)
            with on_numpy():
                there = step_time(size, method)
            shown = ", ".join(map(str, size))
            lines.append(f"| {shown} | {method} | {1e3 * here:.1f} | {1e3 * there:.1f} | {here / there:.2f} |")
    return "\n".join(lines)


def device() -> str:
    """The name of the GPU, and how many there are."""
    if backend_name() != "cupy":
        return "no GPU"
    import cupy

    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    version = cupy.cuda.runtime.runtimeGetVersion()
    return f"CuPy {cupy.__version__}, CUDA {version}, {device_count()} × {properties['name'].decode()}"


def allocation() -> str:
    """64 MB there and back."""
    numbers = np.arange(16 * 1024**2, dtype=np.float32)
    return "64 MB there and back unchanged" if np.array_equal(to_numpy(asarray(numbers)), numbers) else "WRONG"


def gradients() -> str:
    """The checker on every operation of the transformer, and on a whole model with LoRA."""
    rng = np.random.default_rng(0)
    config = GPTConfig(vocab_size=11, context_length=8, d_model=16, n_layers=1, n_heads=2)
    model = GPT(config, seed=0, dtype="float64")
    trained = add_lora(model, LoRAConfig(2))
    for p in trained:
        p.data[...] = asarray(rng.normal(0, 0.3, p.shape))
    ids = rng.integers(0, 11, (2, 2, 5))
    x, w, b, q, k, v = (rng.normal(size=s) for s in ((3, 4), (5, 4), (5,), *((2, 2, 3, 4),) * 3))
    checks: dict[str, tuple[Callable[..., Tensor], tuple[Any, ...]]] = {
        "linear": (F.linear, (x, w, b)),
        "gelu": (F.gelu, (x,)),
        "softmax": (F.softmax, (x,)),
        "layer_norm": (F.layer_norm, (x, w[0], w[1])),
        "embedding": (lambda e: F.embedding(e, [[0, 2, 2], [1, 0, 2]]), (w,)),
        "causal_attention": (F.causal_attention, (q, k, v)),
        "cross_entropy": (lambda y: F.cross_entropy(y, [1, -100, 3]), (x,)),
        "model with LoRA": (lambda *_: F.cross_entropy(model(ids[0]), ids[1]), tuple(trained)),
    }
    wrong = []
    for name, (fn, inputs) in checks.items():
        try:
            gradcheck(fn, *inputs)
        except AssertionError as error:
            wrong.append(f"{name}: {error}")
    return f"{len(checks)} of {len(checks)} right" if not wrong else f"WRONG: {'; '.join(wrong)}"


def training_apart(dtype: str) -> float:
    """The largest relative difference of a loss from NumPy's, in full training and then in LoRA."""
    here = _losses(dtype)
    with on_numpy():
        there = _losses(dtype)
    return float(np.max(np.abs(here - there) / np.abs(there)))


def _losses(dtype: str) -> np.ndarray:
    model, draw = _model((64, 2, 16, 20), dtype)
    losses = train(model, Adam(model.parameters(), 1e-3), batch_loss(model, draw), STEPS, clip=1.0)["loss"]
    trained = add_lora(model, LoRAConfig(4))
    return np.array(losses + train(model, Adam(trained, 1e-2), batch_loss(model, draw), STEPS)["loss"])


def step_time(size: tuple[int, ...], method: str) -> float:
    """Seconds a training step, the median of five after two that warm up."""
    model, draw = _model(size, "float32")
    parameters = model.parameters() if method == "full" else add_lora(model, LoRAConfig(4))
    optimizer, loss = Adam(parameters, 1e-3), batch_loss(model, draw)

    def step(number: int) -> None:
        optimizer.zero_grad()
        loss(number).backward()
        optimizer.step()

    return float(np.median([seconds_of(partial(step, number)) for number in range(7)][2:]))


def _model(size: tuple[int, ...], dtype: str) -> tuple[GPT, Callable[[int], Batch]]:
    """A GPT with a head for every 64 dimensions (at least two), and random batches of its size."""
    d_model, layers, B, T = size
    model = GPT(GPTConfig(96, T, d_model, layers, max(2, d_model // 64)), seed=0, dtype=dtype)

    def draw(step: int) -> Batch:
        ids = np.random.default_rng(step).integers(0, 96, (B, T + 1))
        return ids[:, :-1], ids[:, 1:]

    return model, draw


@contextmanager
def on_numpy() -> Iterator[None]:
    """Within this context NumPy computes; no array of the other library may be used in it."""
    name = backend_name()
    library = use_array_library(np, "numpy")
    try:
        yield
    finally:
        use_array_library(library, name)
