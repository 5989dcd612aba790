"""Files that can be trusted: written so that a crash at any moment leaves the old one or the new one, whole, and read
so that whatever is in them ends up as arrays of finite floats or as one error."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then move it there in one step.

    A link stays, and what it leads to is replaced. Raises `ValueError` where the folder cannot be written to, or
    something other than a file stands there.
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
    """Where a file written to `path` ends up: there, or where the link that is there leads.

    Raises `ValueError` where something other than a file or a link to one stands: a folder, a device, a pipe. Moving a
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
    """Raise `ValueError` where `write_atomically` could not write `path`: to ask before the work that makes it.

    Its folder may be missing; then this asks whether it could be made. Nothing is left behind.
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
    """A new empty file beside `place`, named after it, as far as the limit on names allows."""
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
        text = data.decode("utf-8-sig")  # editors on Windows put a mark first, which is not part of the JSON
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


# What puts its own name before those of the model that it wraps.
_WRAPPERS = {
    "module.": ", as torch's DataParallel and DistributedDataParallel put it there",
    "_orig_mod.": ", as torch.compile puts it there",
    "_fsdp_wrapped_module.": ", as torch's FSDP puts it there",
}


def check_prefix(wanted: Collection[str], found: Iterable[str]) -> None:
    """Raise `ValueError` where the names found would be the wanted ones without a prefix that they all have."""
    prefixes = set()
    for name in found:
        starts = [0, *(match.end() for match in re.finditer(r"\.", name))]
        prefixes.update([name[:start] for start in starts if name[start:] in wanted][:1])
    if len(prefixes) == 1 and (prefix := prefixes.pop()):
        raise ValueError(
            f"every name begins with {prefix!r}{_WRAPPERS.get(prefix, '')}: save what is wrapped itself, or write the "
            f"tensors anew under name.removeprefix({prefix!r})."
        )


def all_transposed(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether each shape found is the one wanted the other way round; square ones say nothing."""
    telling = [name for name, shape in wanted.items() if shape != shape[::-1]]
    return bool(telling) and all(found[name] == wanted[name][::-1] for name in telling)


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
    finite floats of 16, 32 or 64 bits. bfloat16 becomes float32, which holds each of its numbers exactly.
    """

    def __init__(self, path: Path, error: type[ValueError]) -> None:
        self.path, self.error = path, error
        self.metadata: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}  # name -> shape, as the header says
        self._dtypes: dict[str, str] = {}  # name -> safetensors' word for it: "F32", "BF16"

        def look(file: Any) -> None:
            self.metadata = file.metadata() or {}
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_slice(name)
                self.shapes[name], self._dtypes[name] = tuple(tensor.get_shape()), tensor.get_dtype()

        self._open(look)

    def read(self, *names: str) -> list[np.ndarray]:
        """The arrays of these tensors, copies of their own."""
        for name in names:
            if self._dtypes[name] not in ("F64", "F32", "F16", "BF16"):
                raise self.error(
                    f"{self.path} holds {name} as {self._dtypes[name]}, which minilora does not read: save it as "
                    "float32 or bfloat16."
                )
        arrays: list[np.ndarray] = self._open(
            lambda file: [
                self._read_bfloat16(name) if self._dtypes[name] == "BF16" else file.get_tensor(name) for name in names
            ]
        )
        for name, array in zip(names, arrays, strict=True):
            if not np.isfinite(array).all():
                raise self.error(f"{self.path} is damaged: {name} does not hold finite floats.")
        return arrays

    def _read_bfloat16(self, name: str) -> np.ndarray:
        """A tensor that safetensors cannot give to NumPy, which has no bfloat16: the upper halves of float32."""
        with open(self.path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            start, stop = json.loads(file.read(size))[name]["data_offsets"]  # safetensors has checked all of them
            file.seek(8 + size + start)
            array = np.frombuffer(file.read(stop - start), "<u2").astype(np.uint32)
        array <<= 16
        return array.view(np.float32).reshape(self.shapes[name])

    def _open(self, use: Callable[[Any], Any]) -> Any:
        from safetensors import safe_open

        try:
            # Opened anew for each reading: as long as a file is open, all that was read of it stays mapped into memory.
            with safe_open(self.path, framework="np") as file:
                return use(file)
        except OSError as problem:
            raise self.error(f"{self.path} cannot be read: {problem.strerror or problem}.") from problem
        except Exception as problem:  # SafetensorError, and what a lying header raises
            raise self.error(f"{self.path} is damaged, or no safetensors file: {problem}.") from problem
