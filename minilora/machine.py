"""What is set once for the whole process: one BLAS thread.

The products of a tiny model are too short to share: two threads on two busy cores can be many times
slower than one. Cores are better used for runs side by side.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
_tuned = False


def tune_machine() -> dict[str, Any]:
    """Limit BLAS to one thread, once a process; returns what changed, such as `{"blas_threads": (2, 1)}`.

    Does nothing, and returns {}, the second time, where MINILORA_TUNE=0, or where one of the usual
    variables (OPENBLAS_NUM_THREADS, ...) already says how many threads you want. The training loop and
    the command line call it; `import minilora` does not.
    """
    global _tuned
    if _tuned or os.environ.get("MINILORA_TUNE") == "0" or any(os.environ.get(v) for v in THREAD_VARIABLES):
        return {}
    _tuned = True
    before = blas_threads()
    if before in (0, 1):
        return {}
    with _quiet():
        from threadpoolctl import threadpool_limits

        threadpool_limits(1, user_api="blas")
    return {"blas_threads": (before, blas_threads())}


def blas_threads() -> int:
    """How many threads NumPy's BLAS uses now; 0 where no BLAS is found."""
    return max((pool["num_threads"] for pool in _blas()), default=0)


def blas_name() -> str:
    """The BLAS that NumPy computes with, such as "openblas 0.3.31 (SkylakeX)"."""
    for pool in _blas():
        return f"{pool['internal_api']} {pool['version']} ({pool.get('architecture', 'unknown')})"
    return "none found"


def _blas() -> list[dict[str, Any]]:
    with _quiet():
        from threadpoolctl import threadpool_info

        return [pool for pool in threadpool_info() if pool["user_api"] == "blas"]


@contextmanager
def _quiet() -> Iterator[None]:
    """threadpoolctl warns of pairs of libraries that may hang, whatever one asks of it: nothing to stop a run for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
