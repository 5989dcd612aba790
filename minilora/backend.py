"""Which array library computes: NumPy, or CuPy on a GPU.

Library code writes `xp.exp(x)` and never names NumPy for an array that a model computes with, so one
switch at the start of a program moves everything. Random numbers are drawn by NumPy on the CPU and
moved with `asarray`, so both libraries start from the same numbers.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np


class _ArrayLibrary:
    """`xp.exp` is `numpy.exp`, or `cupy.exp` once the backend is switched."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(_current.library, name)
        self.__dict__[name] = value  # the next look-up costs nothing
        return value


class _Current:
    library: Any = np
    name: str = "numpy"


_current = _Current()
xp: Any = _ArrayLibrary()


def use_backend(name: str) -> None:
    """Choose the array library, `"numpy"` or `"cupy"`, once, before any tensor is made.

    Raises `ValueError` where the name is unknown, CuPy is not installed or no GPU answers.
    """
    if name == "numpy":
        use_array_library(np, "numpy")
    elif name == "cupy":
        use_array_library(_cupy(), "cupy")
    else:
        raise ValueError(f'The backend must be "numpy" or "cupy", not {name!r}.')


def use_array_library(library: Any, name: str) -> None:
    """Compute with any module that speaks NumPy's names; tests use it to put a stricter one in."""
    _current.library, _current.name = library, name
    xp.__dict__.clear()
    _pool.blocks.clear()
    _pool.last_use.clear()


def backend_name() -> str:
    """The name of the array library in use."""
    return _current.name


def _cupy() -> Any:
    try:
        import cupy
    except ImportError as error:
        raise ValueError(
            "The cupy backend needs CuPy, which is not installed: "
            "install cupy-cuda12x or cupy-cuda13x to match your CUDA driver."
        ) from error
    try:
        if not cupy.cuda.is_available():
            raise RuntimeError("no CUDA device is visible")
        cupy.zeros(1).sum()  # is_available alone does not prove that an allocation works
    except Exception as error:
        raise ValueError(
            f"The cupy backend needs an NVIDIA GPU with a working CUDA driver, and none answered ({error}): "
            'run on a machine that has one, or use the "numpy" backend.'
        ) from error
    return cupy


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

_SMALL = 32 * 1024  # bytes; below this the C library keeps blocks itself
_LINE = 64  # bytes of a cache line
_MEMORY = 1000  # requests after which an idle size is forgotten


class _Pool(threading.local):
    def __init__(self) -> None:
        self.blocks: dict[int, list[np.ndarray]] = {}  # bytes -> blocks of that size
        self.last_use: dict[int, int] = {}
        self.requests = 0

    def take(self, size: int) -> np.ndarray:
        """A block that no array looks at any more, or a new one."""
        self.requests += 1
        self.last_use[size] = self.requests
        blocks = self.blocks.setdefault(size, [])
        # The block handed out last is tried first: it is the likeliest to be in the cache still.
        for place in range(len(blocks) - 1, -1, -1):
            block = blocks[place]
            if sys.getrefcount(block) == _IDLE:
                del blocks[place]
                blocks.append(block)
                return block
        self._forget()
        blocks.append(_aligned(size))
        return blocks[-1]

    def _forget(self) -> None:
        """Let go of sizes that nobody asked for lately; arrays still looking at them stay alive."""
        for size, used in list(self.last_use.items()):
            if self.requests - used > _MEMORY:
                del self.blocks[size], self.last_use[size]


def _aligned(size: int) -> np.ndarray:
    """A new block that begins at a cache line. NumPy's own begin 16 bytes beyond one, so that every wide load
    crosses two lines: an elementwise pass within the cache is then 2.4 times as slow."""
    raw = np.empty(size + _LINE, np.uint8)
    start = -raw.ctypes.data % _LINE
    # through a memoryview, so that views of the block count as references to it, not to `raw`
    return np.frombuffer(raw.data[start : start + size], np.uint8)


def _idle_references() -> int:
    """What `sys.getrefcount` says, in a loop like the pool's, of a block only the pool holds."""
    for block in [np.empty(1, np.uint8)]:
        return sys.getrefcount(block)
    return 0


_IDLE = _idle_references()
_pool = _Pool()


def empty(shape: tuple[int, ...], dtype: Any) -> Any:
    """An uninitialised array, in a block used before where one of that size is free."""
    if _current.library is not np:
        return xp.empty(shape, dtype=dtype)
    dtype = np.dtype(dtype)
    size = dtype.itemsize
    for length in shape:
        size *= length
    if size < _SMALL:
        return np.empty(shape, dtype)
    return _pool.take(size).view(dtype).reshape(shape)
