"""The engine room: for each operation marked `@operation`, a quicker way to the same numbers.

Speed is a guest here as LoRA is in the model: it takes the place of an operation from outside, and the files that it
speeds up never mention it. tests/test_fast.py holds each pair together, result and gradients, operation by operation
and over whole training runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..autograd import FASTER, _thread
from .attention import causal_attention
from .elementwise import add, gelu, mul
from .layers import cross_entropy, layer_norm, linear
from .lora import lora_linear
from .optim import adam
from .scatter import embedding, getitem
from .walk import walk

KERNELS: dict[str, Callable[..., Any]] = {
    "walk": walk,
    "Tensor.__add__": add,
    "Tensor.__mul__": mul,
    "Tensor.__getitem__": getitem,
    "gelu": gelu,
    "cross_entropy": cross_entropy,
    "linear": linear,
    "layer_norm": layer_norm,
    "embedding": embedding,
    "causal_attention": causal_attention,
    "lora_linear": lora_linear,
    "adam": adam,
}
if os.environ.get("MINILORA_TEXTBOOK", "0") in ("", "0"):
    FASTER.update(KERNELS)


@contextmanager
def textbook() -> Iterator[None]:
    """Within this context, in this thread, every operation runs as its own file writes it: the same numbers, slower."""
    before, _thread.textbook = _thread.textbook, True
    try:
        yield
    finally:
        _thread.textbook = before


def is_textbook() -> bool:
    """Whether operations run here as their own files write them."""
    return _thread.textbook or not FASTER
