"""What each kernel of minilora/fast saves: the time of its operation in the textbook, over its own.

    python benchmarks/kernels.py [--rounds 9]      # two minutes; prints a table in Markdown

In one process, with one BLAS thread; rounds of textbook and kernel alternate, so that a machine that slows down slows
both alike. An operation is timed forward and backward, on the shapes of a step at d 64; then whole steps with all
kernels, with all but one, and with none. Medians of rounds, and quartiles of the ratio.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import contextmanager

import numpy as np

import minilora as ml
from minilora import functional as F
from minilora.autograd import FASTER
from minilora.fast import KERNELS
from minilora.llama import rms_norm, swiglu
from minilora.lora import lora_linear
from minilora.optim import adam

STEPS = {"B64 T20 d64 L2": (64, 20, 64, 2), "B16 T64 d64 L2": (16, 64, 64, 2), "B32 T64 d128 L4": (32, 64, 128, 4)}
B, T, D, H, V = 16, 64, 64, 4, 96


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    ml.tune_machine()  # one BLAS thread
    print("| operation | textbook (ms) | kernel (ms) | factor |\n|---|---|---|---|")
    for name, call in operations().items():
        say(name, *compared(call, textbook, rounds))
    print("\n| step | textbook (ms) | kernels (ms) | factor |\n|---|---|---|---|")
    for name, sizes in STEPS.items():
        for method in ("full", "LoRA"):
            say(f"{name}, {method}", *compared(step_of(sizes, method), textbook, rounds))
    print("\n| a full step without the kernel of | step (ms) | all kernels (ms) | factor |\n|---|---|---|---|")
    step = step_of(STEPS["B32 T64 d128 L4"], "full")
    for name in KERNELS:
        if name not in ("lora_linear",):
            say(name, *compared(step, lambda name=name: without(name), rounds))


def say(name: str, slow: list[float], quick: list[float]) -> None:
    low, middle, high = np.quantile(np.array(slow) / quick, (0.25, 0.5, 0.75))
    print(
        f"| {name} | {np.median(slow):.2f} | {np.median(quick):.2f} | {middle:.2f} ({low:.2f} to {high:.2f}) |",
        flush=True,
    )


def compared(call, context, rounds: int) -> tuple[list[float], list[float]]:
    """ms within the context and outside, of alternating rounds; each the least of some calls."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        with context():
            times[0].append(least(call))
        times[1].append(least(call))
    return times


def least(call, seconds: float = 0.15) -> float:
    """ms of the quickest call within that time, three at least: what else runs only adds."""
    call()
    found, end = [], time.perf_counter() + seconds
    while len(found) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        found.append(1e3 * (time.perf_counter() - start))
    return min(found)


def textbook():
    return ml.textbook()


@contextmanager
def without(name: str):
    kernel = FASTER.pop(name)
    try:
        yield
    finally:
        FASTER[name] = kernel


def operations():
    """Name -> forward and backward of one operation."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> ml.Tensor:
        return ml.Tensor(rng.normal(size=shape).astype("float32"), requires_grad=True)

    x, wide, weight, scale, logits, table = (
        draw(B, T, D),
        draw(B, T, 4 * D),
        draw(4 * D, D),
        draw(D),
        draw(B, T, V),
        draw(V, D),
    )
    q, k, v, a, b = *(draw(B, H, T, D // H) for _ in "qkv"), draw(8, D), draw(4 * D, 8)
    ids = rng.integers(0, V, (B, T))
    leaves = (x, wide, weight, scale, logits, table, q, k, v, a, b)
    frozen = ml.Tensor(weight.numpy())

    def forward_and_backward(call):
        def run() -> None:
            for leaf in leaves:
                leaf.grad = None
            call().sum().backward()

        return run

    p, g, m, u = (rng.normal(size=(4 * D, D)).astype("float32") ** 2 for _ in range(4))
    return {
        "x + x": forward_and_backward(lambda: wide + wide),
        "x * x": forward_and_backward(lambda: wide * wide),
        "x[ids]": forward_and_backward(lambda: table[ids]),
        "gelu": forward_and_backward(lambda: F.gelu(wide)),
        "layer_norm": forward_and_backward(lambda: F.layer_norm(x, scale, scale)),
        "cross_entropy": forward_and_backward(lambda: F.cross_entropy(logits, ids)),
        "linear": forward_and_backward(lambda: F.linear(x, weight)),
        "embedding": forward_and_backward(lambda: F.embedding(table, ids)),
        "causal_attention": forward_and_backward(lambda: F.causal_attention(q, k, v)),
        "lora_linear": forward_and_backward(lambda: lora_linear(x, x, frozen, None, a, b, 2.0)),
        "rms_norm": forward_and_backward(lambda: rms_norm(x, scale)),
        "swiglu": forward_and_backward(lambda: swiglu(wide, wide)),
        "adam": lambda: adam(p, g, m, u, 10, 1e-3, (0.9, 0.999), 1e-8),
    }


def step_of(sizes, method: str):
    batch, positions, d, layers = sizes
    model = ml.GPT(ml.GPTConfig(V, positions, d, layers, 4))
    optimizer = ml.Adam(model.parameters() if method == "full" else ml.add_lora(model, ml.LoRAConfig(4)), 1e-3)
    ids = np.random.default_rng(0).integers(0, V, (batch, positions))

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(ids), ids).backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    sys.exit(main())
