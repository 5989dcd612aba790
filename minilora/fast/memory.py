"""Memory: arrays in buffers used before."""

from __future__ import annotations

import math
import threading
import weakref
from typing import Any

import numpy as np

from ..backend import SWITCHED, library, xp

# A fresh array of a megabyte costs more in page faults than most operations cost in arithmetic: the
# C library returns such buffers to the kernel and takes them again on every step. Keeping them makes a
# training step 1.1 to 1.25 times as fast, measured against np.empty on the configurations of
# benchmarks/step_time.py. The results are bit-equal.
#
# Whether a buffer is free is never guessed from reference counts, which tracers, debuggers and new versions of Python
# change. An array of the pool looks at its buffer through a sentinel made for it alone; whatever looks at the array's
# memory, a view or a memoryview, keeps the sentinel alive, by the rules of Python's buffers. When the sentinel goes,
# its weak reference, the lease, appends itself to the free list: by `list.append`, into which no tracer can step. (The
# sentinel is an array, since the garbage collector, which clears weak references before it asks finalizers, does not
# know arrays.)

_SMALL = 8 * 1024  # bytes; below this the C library keeps buffers itself
_LINE = 64  # bytes of a cache line
_PERIOD = 10_000  # requests; a buffer that was free throughout is freed. A step of a large model asks for thousands
_ROOM = 64 * 1024**2  # bytes that the pool may hold before it looks, between periods, at how much it has grown


class _Lease(weakref.ref):
    """The lease of one sentinel: it ends when that goes, and knows whose memory is then free."""

    __slots__ = ("memory",)
    memory: memoryview


class _Shelf:
    """The buffers of one size."""

    __slots__ = ("free", "leases", "least")

    def __init__(self) -> None:
        self.leases: dict[int, _Lease] = {}  # the latest of every buffer, by its id: a lease that is lost never ends
        self.free: list[_Lease] = []  # those that ended, the latest last; an array may end in any thread
        self.least = 0  # the fewest that were free at once in this period


class _Pool:
    """The buffers of one thread."""

    __slots__ = ("bytes", "limit", "requests", "shelves")

    def __init__(self) -> None:
        self.shelves: dict[int, _Shelf] = {}  # bytes of a buffer -> such buffers
        self.bytes, self.limit, self.requests = 0, _ROOM, 0

    def take(self, size: int) -> memoryview:
        """`size` bytes that no array looks at: a buffer for one."""
        self.requests += 1
        if self.requests % _PERIOD == 0:
            self._let_go({size: shelf.least for size, shelf in self.shelves.items()})
        shelf = self.shelves.get(size) or self.shelves.setdefault(size, _Shelf())
        ended = None
        try:
            ended = shelf.free.pop()  # the latest: the likeliest to be in the cache still
            memory = ended.memory
        except IndexError:
            memory = self._grow(size)
        if len(shelf.free) < shelf.least:
            shelf.least = len(shelf.free)
        sentinel = np.frombuffer(memory, np.uint8)
        lease = _Lease(sentinel, shelf.free.append)
        lease.memory = memory
        shelf.leases[id(lease)] = lease
        if ended is not None:
            shelf.leases.pop(id(ended), None)
        return sentinel.data

    def _grow(self, size: int) -> memoryview:
        """A new buffer; where the pool has doubled, as with shapes that never come again, what is free goes first."""
        if self.bytes + size > self.limit:
            self._let_go({size: len(shelf.free) for size, shelf in self.shelves.items()}, needed=size)
        self.bytes += size
        # NumPy's own buffers begin 16 bytes beyond a cache line, so that every wide load crosses two lines: an
        # elementwise pass within the cache is then 2.4 times as slow.
        raw = np.empty(size + _LINE, np.uint8)
        start = -raw.ctypes.data % _LINE
        return raw.data[start : start + size]

    def _let_go(self, counts: dict[int, int], needed: int = 0) -> None:
        """Forget that many free buffers of each size, the coldest first; buffers that arrays look at stay."""
        for size, count in counts.items():
            shelf = self.shelves[size]
            del shelf.free[:count]
            # An exception within `take`, from a signal handler say, may have lost a buffer that is free by now.
            free = {id(lease) for lease in shelf.free}
            shelf.leases = {key: lease for key, lease in shelf.leases.items() if key in free or lease() is not None}
            shelf.least = len(shelf.free)
            if not shelf.leases and size != needed:
                del self.shelves[size]
        self.bytes = sum(size * len(shelf.leases) for size, shelf in self.shelves.items())
        self.limit = max(_ROOM, 2 * self.bytes)


class _OfThread(threading.local):
    def __init__(self) -> None:
        self.pool = _Pool()


_of_thread = _OfThread()


@SWITCHED.append
def _forget() -> None:
    _of_thread.pool = _Pool()


def empty(shape: tuple[int, ...], dtype: Any) -> Any:
    """An uninitialised array, in a buffer used before where one of that size is free."""
    if library() is not np:
        return xp.empty(shape, dtype=dtype)
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    if size < _SMALL:
        return np.empty(shape, dtype)
    return np.frombuffer(_of_thread.pool.take(size), dtype).reshape(shape)
