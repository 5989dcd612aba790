"""Files that can be trusted: written so that a crash at any moment leaves the old one or the new one, whole, and read
so that whatever stands in them ends as arrays of finite floats or as one error."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then move it there in one step.

    A link stays, and what it leads to is replaced. Raises `ValueError` where the folder cannot be written to, or
    something else than a file stands there.
    """
    place = output_place(path)
    temporary = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(place)
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())  # the bytes reach the disk before the name does
        temporary.chmod(_mode(place))  # mkstemp made it private
        os.replace(temporary, place)
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def output_place(path: str | Path) -> Path:
    """Where a file written to `path` ends: there, or where the link that stands there leads.

    Raises `ValueError` where something else than a file or a link to one stands: a folder, a device, a pipe. Moving a
    file onto a device would put that file in the device's place.
    """
    try:
        place = Path(os.path.realpath(path))
        kind = place.stat().st_mode
    except FileNotFoundError:
        return place
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror or error}.") from error
    except ValueError as error:  # a zero byte, or half a character
        raise ValueError(f"{str(path)!r} cannot be written: no file has such a name.") from error
    if stat.S_ISDIR(kind):
        raise ValueError(f"{path} cannot be written, since it is a folder: name a file.")
    if not stat.S_ISREG(kind):
        raise ValueError(f"{path} cannot be written, since it is a device, a pipe or a socket: name a file.")
    return place


def check_output(path: str | Path) -> None:
    """Raise `ValueError` where `write_atomically` could not write `path`: to ask before the work whose result it is.

    Its folder may be missing; then whether it could be made is asked. Nothing is left behind.
    """
    place = output_place(path)
    folder = place.parent
    try:
        while not os.path.lexists(folder) and folder != folder.parent:
            folder = folder.parent
        _temporary(folder / place.name).unlink()
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror or error}.") from error


def _temporary(place: Path) -> Path:
    """A new empty file beside `place`, named after it as far as names may be long."""
    handle, name = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name[:50]}.", suffix=".tmp")
    os.close(handle)
    return Path(name)


def _mode(place: Path) -> int:
    """Who may read and write: as the file that is replaced, or as any new file."""
    if place.exists():
        return stat.S_IMODE(place.stat().st_mode)
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def digest(settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of settings that JSON can hold, and of every array's name, dtype, shape and values."""
    value = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        value.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        value.update(np.ascontiguousarray(array).data)
    return value.hexdigest()


def read_json(path: Path, error: type[ValueError]) -> dict[str, Any]:
    """The object in a JSON file. Raises `error` where it cannot be read or holds something else."""
    return parse_json(read_bytes(path, error), path, error)


def read_bytes(path: Path, error: type[ValueError]) -> bytes:
    """All of a small file. Raises `error` where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror or problem}.") from problem


_DEEPEST = 100  # brackets within brackets, those in strings too: settings have a handful


def parse_json(data: bytes, path: Path, error: type[ValueError]) -> dict[str, Any]:
    """The object in JSON that came from `path`. Raises `error` where it holds something else."""
    try:
        text = data.decode()
        depth = 0
        for bracket in re.finditer(r"[][{}]", text):  # before parsing, whose memory grows with the depth
            depth += 1 if bracket.group() in "[{" else -1
            if depth > _DEEPEST:
                raise ValueError(f"brackets within brackets, more than {_DEEPEST} deep")
        value = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise error(f"{path} is not JSON: {problem}.") from problem
    if not isinstance(value, dict):
        raise error(f"{path} holds {type(value).__name__}, not the settings of anything.")
    return value


def check_names(wanted: Iterable[str], found: Iterable[str], lacks: str, has: str) -> None:
    """Raise `ValueError` where the tensors found are not those wanted: "<lacks> a, b." or "<has> c."."""
    for what, names in ((lacks, set(wanted) - set(found)), (has, set(found) - set(wanted))):
        if names:
            some = ", ".join(sorted(names)[:3]) + (" ..." if len(names) > 3 else "")
            raise ValueError(f"{what} {some}.")


def cast(name: str, array: np.ndarray, dtype: Any) -> np.ndarray:
    """Finite numbers as another float dtype. Raises `ValueError` where one is too large for it."""
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore"):
        array = array.astype(dtype)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds numbers too large for {array.dtype}.")
    return array


class SafetensorsFile:
    """The tensors of a safetensors file, read one at a time or together.

    Raises `error`, the caller's own class, wherever the file cannot be read, is damaged, or a tensor does not hold
    finite floats of a dtype that NumPy has.
    """

    def __init__(self, path: Path, error: type[ValueError]) -> None:
        self.path, self.error = path, error
        self.metadata: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}  # name -> shape, as the header says

        def look(file: Any) -> None:
            self.metadata = file.metadata() or {}
            self.shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118

        self._open(look)

    def read(self, *names: str) -> list[np.ndarray]:
        """The arrays of these tensors, copies of their own."""
        arrays: list[np.ndarray] = self._open(lambda file: [file.get_tensor(name) for name in names])
        for name, array in zip(names, arrays, strict=True):
            if array.dtype.kind != "f" or not np.isfinite(array).all():
                raise self.error(f"{self.path} is damaged: {name} does not hold finite floats.")
        return arrays

    def _open(self, use: Callable[[Any], Any]) -> Any:
        from safetensors import safe_open

        try:
            # Opened anew for each reading: as long as a file is open, all that was read of it stays mapped into memory.
            with safe_open(self.path, framework="np") as file:
                return use(file)
        except OSError as problem:
            raise self.error(f"{self.path} cannot be read: {problem.strerror or problem}.") from problem
        except Exception as problem:  # SafetensorError, and what a dtype that NumPy has not or a lying header raises
            if "bfloat16" in str(problem):
                raise self.error(f"{self.path} holds bfloat16, which NumPy has not: save it as float32.") from problem
            raise self.error(f"{self.path} is damaged, or no safetensors file: {problem}.") from problem
