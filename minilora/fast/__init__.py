"""The engine room: for each operation marked `@operation`, a quicker way to the same numbers.

Speed is a guest here as LoRA is in the model: it takes the place of an operation from outside, and the files that it
speeds up never mention it. tests/core/test_fast.py holds each pair together, result and gradients, operation by
operation and over whole training runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..autograd import FASTER, thread
from .attention import causal_attention
from .elementwise import add, gelu, mul
from .layers import cross_entropy, layer_norm, linear
from .llama import rms_norm, swiglu
from .lora import lora_linear
from .optim import adam
from .scatter import embedding, getitem
from .walk import walk

# How many times as fast each makes its operation, forward and backward at d 64 (benchmarks/kernels.py, docs/speed.md)
KERNELS: dict[str, Callable[..., Any]] = {
    "walk": walk,  # a whole step: 1.00 to 1.05
    "Tensor.__add__": add,  # 1.3
    "Tensor.__mul__": mul,  # 1.3
    "Tensor.__getitem__": getitem,  # 1.2; slices are views
    "gelu": gelu,  # 2.0
    "cross_entropy": cross_entropy,  # 2.1
    "linear": linear,  # 1.2
    "layer_norm": layer_norm,  # 1.5
    "embedding": embedding,  # 6.4
    "causal_attention": causal_attention,  # 3.0
    "lora_linear": lora_linear,  # 1.15
    "rms_norm": rms_norm,  # 1.4
    "swiglu": swiglu,  # 5.5
    "adam": adam,  # 1.7
}
if os.environ.get("MINILORA_TEXTBOOK", "0") in ("", "0"):
    FASTER.update(KERNELS)


@contextmanager
def textbook() -> Iterator[None]:
    """Within this context, in this thread, every operation runs as written in its file: the same numbers, slower."""
    before, thread.textbook = thread.textbook, True
    try:
        yield
    finally:
        thread.textbook = before


def is_textbook() -> bool:
    """Whether operations run here as written in their own files."""
    return thread.textbook or not FASTER
