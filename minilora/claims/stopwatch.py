"""How long something takes, for the claims that are about time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ..backend import synchronize


def seconds_of(call: Callable[[], Any], repeats: int = 1) -> float:
    """How long a call takes; a GPU has finished it then, and not merely been told."""
    synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronize()
    return (time.perf_counter() - start) / repeats


def repeats_for(call: Callable[[], Any], seconds: float) -> int:
    """How often a call fits into that time, once it is warm; at least once."""
    call()
    return max(1, round(seconds / seconds_of(call)))
