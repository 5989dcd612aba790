"""Which array library computes: NumPy, or CuPy on a GPU.

Library code writes `xp.exp(x)` and never names NumPy for an array that a model computes with, so one
switch at the start of a program moves everything. Random numbers are drawn by NumPy on the CPU and
moved with `asarray`, so both libraries start from the same numbers.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np


class _ArrayLibrary:
    """`xp.exp` is `numpy.exp`, or `cupy.exp` once the backend is switched."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(_library(), name)
        self.__dict__[name] = value  # the next look-up costs nothing
        return value


class _Current:
    library: Any = None  # not chosen yet
    name: str = "none"


_current = _Current()
xp: Any = _ArrayLibrary()


def use_backend(name: str) -> None:
    """Choose the array library, `"numpy"` or `"cupy"`, once, before any tensor is made.

    Where nothing is chosen, the first array asks the variable MINILORA_BACKEND, and NumPy computes without it.
    Raises `ValueError` where the name is unknown, CuPy is not installed or no GPU answers.
    """
    if name == "numpy":
        use_array_library(np, "numpy")
    elif name == "cupy":
        use_array_library(_cupy(), "cupy")
    else:
        raise ValueError(f'The backend must be "numpy" or "cupy", not {name!r}.')


def use_array_library(library: Any, name: str) -> Any:
    """Compute with any module that speaks NumPy's names; returns the one before. Tests put a stricter one in."""
    before = _current.library
    _current.library, _current.name = library, name
    xp.__dict__.clear()
    _of_thread.pool = _Pool()
    return before


def _library() -> Any:
    if _current.library is None:
        use_backend(os.environ.get("MINILORA_BACKEND") or "numpy")
    return _current.library


def backend_name() -> str:
    """The name of the array library in use."""
    _library()
    return _current.name


def device_count() -> int:
    """How many GPUs CuPy sees; 1 for NumPy, whose device is the machine."""
    return _library().cuda.runtime.getDeviceCount() if backend_name() == "cupy" else 1


def use_device(number: int) -> None:
    """Let this thread compute on one of several GPUs; numbers beyond the last begin again at the first."""
    if backend_name() == "cupy":
        _library().cuda.Device(number % device_count()).use()


def _cupy() -> Any:
    try:
        import cupy
    except ImportError as error:
        raise ValueError(
            "The cupy backend needs CuPy, which is not installed: pip install cupy-cuda13x, "
            "or cupy-cuda12x for an older driver, on a machine with an NVIDIA GPU."
        ) from error
    try:
        if not cupy.cuda.is_available():
            raise RuntimeError("no CUDA device is visible")
        zero = cupy.zeros(1)  # is_available alone does not prove that an allocation works
    except Exception as error:
        raise ValueError(
            f"The cupy backend needs an NVIDIA GPU with a working CUDA driver, and none answered ({error}): "
            'run on a machine that has one, or use the "numpy" backend.'
        ) from error
    try:
        (zero + 1).sum()  # compiled here and now, with CUDA's headers
    except Exception as error:
        lines = [line for line in str(error).splitlines() if "error" in line] or [type(error).__name__]
        raise ValueError(
            f"The GPU answers, but CuPy cannot compile for it ({lines[0].strip():.200}): CUDA's header files are "
            "missing, or CUDA_PATH leads to those of another version. Unset CUDA_PATH, and pip install "
            '"cupy-cuda13x[ctk]" (or "cupy-cuda12x[ctk]"), which brings headers that fit.'
        ) from error
    return cupy


def synchronize() -> None:
    """Wait until a GPU has done what it was told: for measuring time."""
    if backend_name() == "cupy":
        _library().cuda.get_current_stream().synchronize()


def to_numpy(array: Any) -> np.ndarray:
    """The array as a NumPy array; a copy from the GPU where it lives there."""
    return array.get() if hasattr(array, "get") else np.asarray(array)


def asarray(array: Any, dtype: Any = None) -> Any:
    """A NumPy array, or a nested list, moved to where the backend computes."""
    return xp.asarray(array, dtype=dtype)


# ---- memory ------------------------------------------------------------------------------------------
#
# A fresh array of a megabyte costs more in page faults than most operations cost in arithmetic: the
# C library returns such blocks to the kernel and takes them again on every step. Keeping them makes a
# training step 1.1 to 1.25 times as fast, measured against np.empty on the configurations of
# benchmarks/step_time.py. The results are bit-equal.
#
# Whether a block is free is never guessed from reference counts, which tracers, debuggers and new versions of Python
# change. An array of the pool looks at its block through a sentinel made for it alone; whatever looks at the array's
# memory, a view or a memoryview, keeps the sentinel alive, by the rules of Python's buffers. When the sentinel goes,
# its weak reference, the lease, appends itself to the free list: by `list.append`, in which no tracer can step. (The
# sentinel is an array, since the garbage collector, which clears weak references before it asks finalizers, does not
# know arrays.)

_SMALL = 8 * 1024  # bytes; below this the C library keeps blocks itself
_LINE = 64  # bytes of a cache line
_PERIOD = 10_000  # requests; a block that was free throughout is let go. A step of a large model asks for thousands
_ROOM = 64 * 1024**2  # bytes that the pool may hold before it looks, between periods, at how much it has grown


class _Lease(weakref.ref):
    """Of one sentinel; it ends with it, and knows whose memory is free then."""

    __slots__ = ("memory",)
    memory: memoryview


class _Shelf:
    """The blocks of one size."""

    __slots__ = ("free", "leases", "least")

    def __init__(self) -> None:
        self.leases: dict[int, _Lease] = {}  # the latest of every block, by its id: a lease that is lost never ends
        self.free: list[_Lease] = []  # those that ended, the latest last; an array may end in any thread
        self.least = 0  # the fewest that were free at once in this period


class _Pool:
    """The blocks of one thread."""

    __slots__ = ("bytes", "limit", "requests", "shelves")

    def __init__(self) -> None:
        self.shelves: dict[int, _Shelf] = {}  # bytes of a block -> such blocks
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
        """A new block; where the pool has doubled, as with shapes that never come again, what is free goes first."""
        if self.bytes + size > self.limit:
            self._let_go({size: len(shelf.free) for size, shelf in self.shelves.items()}, needed=size)
        self.bytes += size
        # NumPy's own blocks begin 16 bytes beyond a cache line, so that every wide load crosses two lines: an
        # elementwise pass within the cache is then 2.4 times as slow.
        raw = np.empty(size + _LINE, np.uint8)
        start = -raw.ctypes.data % _LINE
        return raw.data[start : start + size]

    def _let_go(self, counts: dict[int, int], needed: int = 0) -> None:
        """Forget that many free blocks of each size, the coldest first; blocks that arrays look at stay."""
        for size, count in counts.items():
            shelf = self.shelves[size]
            del shelf.free[:count]
            # An exception within `take`, of a signal handler say, may have lost a block that is free by now.
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


def empty(shape: tuple[int, ...], dtype: Any) -> Any:
    """An uninitialised array, in a block used before where one of that size is free."""
    if _library() is not np:
        return xp.empty(shape, dtype=dtype)
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    if size < _SMALL:
        return np.empty(shape, dtype)
    return np.frombuffer(_of_thread.pool.take(size), dtype).reshape(shape)


# ---- products ----------------------------------------------------------------------------------------
#
# With AVX-512, OpenBLAS has a kernel for products of at most a million multiplications that reads both matrices
# where they lie; for a larger one it first copies them, strip by strip, into an order of its own. At the sizes of a
# tiny model the copying costs more than it saves, so a large product is cut into a stack of small ones: a product
# takes 0.75 to 0.95 of the time, and a training step 0.9. That kernel wants the right matrix by rows, beginning at a
# cache line.


_CONFIGURATION: Any = np.show_config(mode="dicts")
_BLAS: str = _CONFIGURATION.get("Build Dependencies", {}).get("blas", {}).get("name", "")


def _small_product() -> int:
    """How many multiplications that kernel takes at most; 0 where this NumPy or processor has none."""
    wide = {"AVX512_SKX", "X86_V4"} & set(_CONFIGURATION.get("SIMD Extensions", {}).get("found", []))
    return 10**6 if wide and "openblas" in _BLAS else 0


_SMALL_PRODUCT = _small_product()
_FEW_ROWS = 64  # fewer do not pay for bringing the right matrix into order
_LARGE = 2**16  # entries of a gradient of weights beyond which its parts cost more to write than they save
_HEIGHT, _WIDTH, _DEPTH = 32, 64, 256  # of a tile of a gradient of weights, and the rows it sums over


_Function = TypeVar("_Function", bound=Callable[..., Any])


def multiplies(function: _Function) -> _Function:
    """For whatever multiplies matrices: on Apple's Accelerate NumPy warns, in products that are right, of overflows and
    divisions that never happened (numpy#28687), and under `python -W error` a warning ends a program. What really
    becomes infinite is met where losses and logits are looked at."""
    return np.errstate(all="ignore")(function) if "accelerate" in _BLAS.lower() else function


@multiplies
def matmul(a: Any, b: Any) -> Any:
    """(M, k) @ (k, n) -> (M, n), into a block used before where one is free."""
    (M, k), n = a.shape, b.shape[1]
    out = empty((M, n), a.dtype if a.dtype == b.dtype else xp.result_type(a, b))
    rows = _power_of_two(_SMALL_PRODUCT // max(1, k * n))  # of one small product
    if rows < 8 or M < _FEW_ROWS or _library() is not np or not a.flags.c_contiguous:
        return xp.matmul(a, b, out=out)
    right = empty(b.shape, b.dtype)
    right[...] = b
    if rows >= M:
        return np.matmul(a, right, out=out)
    whole = M - M % rows
    np.matmul(a[:whole].reshape(-1, rows, k), right, out=out[:whole].reshape(-1, rows, n))
    if whole < M:
        np.matmul(a[whole:], right, out=out[whole:])
    return out


def _power_of_two(limit: int) -> int:
    """The largest one up to a limit: it divides most batches. 0 for 0."""
    return 1 << limit.bit_length() >> 1


@multiplies
def matmul_over_rows(a: Any, b: Any) -> Any:
    """aᵀ b, (M, n)ᵀ @ (M, k) -> (n, k): a sum over all rows of a batch, as in a gradient of weights."""
    (M, n), k = a.shape, b.shape[1]
    out = empty((n, k), xp.result_type(a, b))
    height, width = math.gcd(n, _HEIGHT), math.gcd(k, _WIDTH)
    if M < 2 * _DEPTH or n * k > _LARGE or min(height, width) < 32 or not _SMALL_PRODUCT or _library() is not np:
        return xp.matmul(a.T, b, out=out)
    whole = M - M % _DEPTH
    left = a[:whole].reshape(-1, _DEPTH, n // height, 1, height).transpose(0, 2, 3, 4, 1)
    right = b[:whole].reshape(-1, _DEPTH, 1, k // width, width).transpose(0, 2, 3, 1, 4)
    parts = empty((whole // _DEPTH, n, k), out.dtype)
    tiles = parts.reshape(-1, n // height, height, k // width, width).transpose(0, 1, 3, 2, 4)
    np.matmul(left, right, out=tiles)  # (…, height, _DEPTH) @ (…, _DEPTH, width) -> (…, height, width)
    np.matmul(np.ones(len(parts), out.dtype), parts.reshape(len(parts), -1), out=out.reshape(-1))
    if whole < M:
        out += a[whole:].T @ b[whole:]
    return out
