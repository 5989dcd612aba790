"""Many independent runs, side by side: one process a core, one BLAS thread a process; or on Dask's workers."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import (
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    as_completed,
)
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import Any
from urllib.parse import urlsplit

from ..backend import use_device
from ..machine import THREAD_VARIABLES

SCHEDULER_TIMEOUT = 5  # seconds


class WorkerDiedError(ValueError):
    """Some runs ended their worker process (out of memory, killed), twice; `places` says which ones."""

    def __init__(self, names: Sequence[Any], places: Sequence[int] = ()) -> None:
        super().__init__(
            f"The process died twice, as when memory runs out, in {'these runs' if len(names) > 1 else 'this run'}: "
            f"{'; '.join(map(str, names))}."
        )
        self.places = list(places)


def sweep(
    fn: Callable[[Any], Any],
    configurations: Sequence[Any],
    executor: Executor | None = None,
    callback: Callable[[int, Any], Any] | None = None,
) -> list[Any]:
    """[fn(c) for c in configurations], in their order, on any `concurrent.futures` executor, or a process a core.

    `callback(place, result)` follows each run as it finishes. The first exception stops the sweep; but a run whose
    worker dies is run again after the others, and then `WorkerDiedError` names those that failed again.
    """
    if executor is None:
        with process_pool(max(1, min(available_cores(), len(configurations)))) as executor:
            return sweep(fn, configurations, executor, callback)
    results: list[Any] = [None] * len(configurations)

    def run(places: Iterable[int]) -> list[int]:
        """Run the configurations at these places; returns the places where the worker died."""
        futures = {_submit(executor, fn, configurations[place]): place for place in places}
        died = []
        try:
            for future in as_completed(futures):
                place = futures[future]
                try:
                    results[place] = future.result()
                except Exception as error:
                    if not _worker_died(error):
                        raise
                    died.append(place)
                else:
                    if callback is not None:
                        callback(place, results[place])
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        return sorted(died)

    died = run(run(range(len(configurations))))
    if died:
        raise WorkerDiedError([configurations[place] for place in died], died)
    return results


def _submit(executor: Executor, fn: Callable[[Any], Any], configuration: Any) -> Future:
    """`executor.submit`; on a pool that a death has broken for good, a future that says so."""
    try:
        return executor.submit(fn, configuration)
    except BrokenExecutor as error:
        future: Future = Future()
        future.set_exception(error)
        return future


def _worker_died(error: Exception) -> bool:
    distributed = sys.modules.get("distributed")  # if it is not loaded, the error is not Dask's
    return isinstance(error, BrokenExecutor) or (
        distributed is not None and isinstance(error, distributed.KilledWorker)
    )


# ---- processes of this machine -----------------------------------------------------------------------


@contextmanager
def process_pool(workers: int) -> Iterator[Executor]:
    """A pool of fresh processes, each with one BLAS thread: set before a worker imports NumPy, or it has no effect."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    executor = _ProcessPool(workers)
    try:
        yield executor
    except BaseException:
        executor.terminate()  # a run may last a minute, and its result is no longer wanted
        raise
    finally:
        executor.shutdown(cancel_futures=True)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class _ProcessPool(Executor):
    """Processes behind one queue, each a pool of its own: `ProcessPoolExecutor` does not survive a worker's death."""

    def __init__(self, workers: int) -> None:
        self._board = multiprocessing.get_context("spawn").Array("d", 3 * workers, lock=False)
        self._pools = [self._one_process(place) for place in range(workers)]
        self._idle: SimpleQueue[int] = SimpleQueue()
        for place in range(workers):
            self._idle.put(place)
        self._threads = ThreadPoolExecutor(workers, initializer=_block_ctrl_c)  # each waits for one process
        self._starting = threading.Lock()
        self._terminated = False

    def _one_process(self, place: int) -> ProcessPoolExecutor:
        spawn = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(1, spawn, initializer=_start_worker, initargs=(place, self._board))

    def progress(self) -> list[tuple[int, int, float]]:
        """What each busy process last reported by `tell`: steps done, steps in all, loss."""
        told = [self._board[place : place + 3] for place in range(0, len(self._board), 3)]
        return [(int(done), int(steps), loss) for done, steps, loss in told if steps]

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        return self._threads.submit(self._run, fn, args, kwargs)

    def _run(self, fn: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        place = self._idle.get()
        try:
            with self._starting:  # no process starts once the others have been terminated
                if self._terminated:
                    raise CancelledError
                future = self._pools[place].submit(fn, *args, **kwargs)
            return future.result()
        except BrokenExecutor:
            self._pools[place].shutdown()
            self._pools[place] = self._one_process(place)
            raise
        finally:
            self._idle.put(place)

    def terminate(self) -> None:
        """End every process now, in the middle of its run."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._starting:
            self._terminated = True
            for pool in self._pools:
                for process in list((pool._processes or {}).values()):
                    process.terminate()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._threads.shutdown(wait, cancel_futures=cancel_futures)
        for pool in self._pools:
            pool.shutdown(wait)


def tell(done: int, steps: int, loss: float) -> None:
    """Within a worker: how far its run is, for `progress` to see; elsewhere nothing. 0 steps: it is not busy."""
    if _slot is not None:
        board, place = _slot
        board[3 * place : 3 * place + 3] = [done, steps, loss]


_slot: tuple[Any, int] | None = None  # of this worker: the board that it shares with its parent, and its place there


def _block_ctrl_c() -> None:
    """In this thread, and so in the processes that it starts, which would otherwise answer while they import."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def _start_worker(place: int, board: Any) -> None:
    """Ctrl-C reaches every process of a terminal; only the parent answers. A parent that is gone ends its workers.
    Of several GPUs, each worker takes one."""
    global _slot
    _slot = (board, place)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    use_device(place)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def available_cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---- Dask --------------------------------------------------------------------------------------------


@contextmanager
def dask_workers(address: str) -> Iterator[Executor]:
    """The workers of the Dask scheduler at an address such as tcp://127.0.0.1:8786.

    Raises `ValueError` for an address of another form, where nothing answers, and without the package.
    """
    check_address(address)
    try:
        from distributed import Client
    except ImportError as error:
        raise ValueError('--scheduler needs Dask: pip install -e ".[sweep]" in the clone of minilora.') from error
    try:
        client = Client(address, timeout=SCHEDULER_TIMEOUT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"No Dask scheduler answers at {address}.") from error
    with client:
        yield client.get_executor(pure=False)  # the second try of a run is a run, not the answer of the first


def check_address(address: str) -> None:
    """Raise `ValueError` where this is not a scheduler's address."""
    parts = urlsplit(address)
    port = None
    with suppress(ValueError):  # not a number, or too large a one
        port = parts.port
    if parts.scheme not in ("tcp", "tls") or not parts.hostname or not port:
        raise ValueError(f"--scheduler must be an address such as tcp://127.0.0.1:8786, not {address!r}.")
