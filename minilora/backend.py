"""Which array library computes: NumPy, or CuPy on a GPU.

Library code writes `xp.exp(x)` and never names NumPy for an array that a model computes with, so one
switch at the start of a program moves everything. Random numbers are drawn by NumPy on the CPU and
moved with `asarray`, so both libraries start from the same numbers.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np


class _ArrayLibrary:
    """`xp.exp` is `numpy.exp`, or `cupy.exp` once the backend is switched."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(library(), name)
        self.__dict__[name] = value  # the next look-up costs nothing
        return value


class _Current:
    library: Any = None  # not chosen yet
    name: str = "none"


_current = _Current()
SWITCHED: list[Callable[[], None]] = []  # called where another library takes over
xp: Any = _ArrayLibrary()


def use_backend(name: str) -> None:
    """Choose the array library, `"numpy"` or `"cupy"`, once, before any tensor is made.

    Where nothing is chosen, the first array looks at the variable MINILORA_BACKEND; if unset, NumPy computes.
    Raises `ValueError` where the name is unknown, CuPy is not installed or no GPU answers.
    """
    if name == "numpy":
        use_array_library(np, "numpy")
    elif name == "cupy":
        use_array_library(_cupy(), "cupy")
    else:
        raise ValueError(f'The backend must be "numpy" or "cupy", not {name!r}.')


def use_array_library(library: Any, name: str) -> Any:
    """Compute with any module that has NumPy's names; returns the one used before. Tests put a stricter one in."""
    before = _current.library
    _current.library, _current.name = library, name
    xp.__dict__.clear()
    for forget in SWITCHED:
        forget()
    return before


def library() -> Any:
    """The array library in use."""
    if _current.library is None:
        use_backend(os.environ.get("MINILORA_BACKEND") or "numpy")
    return _current.library


def backend_name() -> str:
    """The name of the array library in use."""
    library()
    return _current.name


def device_count() -> int:
    """How many GPUs CuPy sees; 1 for NumPy, whose device is the machine."""
    return library().cuda.runtime.getDeviceCount() if backend_name() == "cupy" else 1


def use_device(number: int) -> None:
    """Let this thread compute on one of several GPUs; numbers beyond the last begin again at the first."""
    if backend_name() == "cupy":
        library().cuda.Device(number % device_count()).use()


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
        library().cuda.get_current_stream().synchronize()


def to_numpy(array: Any) -> np.ndarray:
    """The array as a NumPy array; a copy from the GPU where it lives there."""
    return array.get() if hasattr(array, "get") else np.asarray(array)


def asarray(array: Any, dtype: Any = None) -> Any:
    """A NumPy array, or a nested list, moved to where the backend computes."""
    return xp.asarray(array, dtype=dtype)


CONFIGURATION: Any = np.show_config(mode="dicts")
BLAS: str = CONFIGURATION.get("Build Dependencies", {}).get("blas", {}).get("name", "")
_Function = TypeVar("_Function", bound=Callable[..., Any])


def multiplies(function: _Function) -> _Function:
    """For whatever multiplies matrices: on Apple's Accelerate NumPy warns, in products that are right, of overflows and
    divisions that never happened (numpy#28687), and under `python -W error` a warning ends a program. What really
    becomes infinite is caught where losses and logits are checked."""
    return np.errstate(all="ignore")(function) if "accelerate" in BLAS.lower() else function
