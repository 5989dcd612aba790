"""Many independent runs, side by side: one process a core, one BLAS thread a process."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any

from ..machine import THREAD_VARIABLES


def sweep(
    fn: Callable[[Any], Any],
    configurations: Sequence[Any],
    executor: Executor,
    callback: Callable[[int, Any], Any] | None = None,
) -> list[Any]:
    """[fn(c) for c in configurations] on any `concurrent.futures` executor, in their order.

    `callback(place, result)` follows each run as it finishes. The first exception stops the sweep.
    """
    futures = {executor.submit(fn, c): place for place, c in enumerate(configurations)}
    results: list[Any] = [None] * len(futures)
    try:
        for future in as_completed(futures):
            results[futures[future]] = future.result()
            if callback is not None:
                callback(futures[future], results[futures[future]])
    except BaseException:
        for future in futures:
            future.cancel()
        raise
    return results


@contextmanager
def process_pool(workers: int) -> Iterator[Executor]:
    """A pool of fresh processes, each with one BLAS thread: set before a worker imports NumPy, or it has no effect."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    executor = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_ignore_interrupt)
    try:
        yield executor
    except BaseException:
        for process in list((executor._processes or {}).values()):
            process.terminate()  # a run may last a minute, and nobody wants its result any more
        raise
    finally:
        executor.shutdown(cancel_futures=True)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _ignore_interrupt() -> None:
    """Ctrl-C reaches every process of a terminal; only the parent answers it, and ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def available_cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
