"""What a forward pass and a backward pass multiply, counted while they run: no clock, no noise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..autograd import Tensor
from ..fast import textbook


@dataclass
class Products:
    """How many matrix products a forward pass makes, its multiply-adds, and those of the backward pass it records."""

    products: int = 0
    forward: int = 0
    backward: int = 0


@contextmanager
def counted() -> Iterator[Products]:
    """Within this context every product of Tensors is counted, while operations run as written in their files.

    Each operand of (n, k) @ (k, m) that needs a gradient leaves a rule on the tape, another product of n·k·m.
    """
    count, plain = Products(), Tensor.__matmul__

    def counting(a: Tensor, b: Any) -> Tensor:
        y = plain(a, b)
        multiply_adds = math.prod(y.shape) * a.shape[-1]
        count.products += 1
        count.forward += multiply_adds
        count.backward += multiply_adds * sum(bool(x.requires_grad) for x in (a, b) if isinstance(x, Tensor))
        return y

    Tensor.__matmul__ = counting  # type: ignore[method-assign]
    try:
        with textbook():
            yield count
    finally:
        Tensor.__matmul__ = plain  # type: ignore[method-assign]
