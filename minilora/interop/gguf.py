"""GGUF, the one file in which llama.cpp keeps a model: settings, the tokenizer, and tensors, most of them in blocks of
32 numbers with a scale (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).

    "GGUF" version n_tensors n_settings · settings: name, type, value · tensors: name, sizes, type, offset · numbers

Everything is little-endian; a text is its length and its bytes. No length is believed before the bytes left allow it.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .checkpoint import CheckpointError

# The types of settings, by their number in the file: how struct reads one. Texts and arrays are the other two.
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q", 11: "<q", 12: "<d"}
_UINT32, _FLOAT, _BOOL, _TEXT, _ARRAY = 4, 6, 7, 8, 9
# Bounds on what becomes Python's objects, which take more memory than the bytes they are made of. The largest models
# have 1,200 tensors, 50 settings and 500,000 merges.
_MOST_ENTRIES, _MOST_TEXTS = 10_000, 2**20
_LONGEST_NAME, _LONGEST_TEXT = 2**16 - 1, 2**20  # bytes
_MOST_DIMENSIONS, _DEEPEST = 4, 3

# Types of tensors that are read, by their number in the file: name, numbers in a block, bytes in a block.
_READ = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 8: ("Q8_0", 32, 34),
    30: ("BF16", 1, 2),
}  # fmt: skip
# And those that are not, so that a refusal can name them.
_NOT_READ = {
    6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K",
    16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS",
    24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip


@dataclass(frozen=True)
class GGUFTensor:
    """Where a tensor lies. `kind` is the name of its type, as "Q4_1"; `shape` is NumPy's, (out, in) for a matrix."""

    kind: str
    shape: tuple[int, ...]
    start: int  # of its bytes in the file
    count: int  # of its blocks
    block_bytes: int


class GGUFFile:
    """A GGUF file of version 2 or 3, mapped into memory: `file[name]` is a setting, `file.array(name)` a tensor.

    `tensors` are found by name; `settings` are the names of all settings. Raises `CheckpointError` where the file
    cannot be read, is damaged, or holds a tensor of a type other than F32, F16, BF16, Q8_0, Q4_0 and Q4_1. The file
    must not change as long as it is in use.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.tensors: dict[str, GGUFTensor] = {}
        self._places: dict[str, tuple[int, int]] = {}  # a setting's name -> its type, and where its value begins
        try:
            with open(self.path, "rb") as file:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as problem:  # ValueError: an empty file, or a name that no file can have
            raise CheckpointError(
                f"{path} cannot be read: {getattr(problem, 'strerror', None) or problem}."
            ) from problem
        self._at = 0
        try:
            self._read_directory()
        except CheckpointError:
            self._bytes.close()  # as long as it is mapped, Windows lets no one replace it
            raise

    @property
    def settings(self) -> tuple[str, ...]:
        """The names of all settings."""
        return tuple(self._places)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __getitem__(self, name: str) -> Any:
        """A setting as Python's number, bool, text or list of texts; numbers in a row are a read-only array (n,).

        Made anew each time, since lists of tokens are large.
        Raises `KeyError` where there is none of that name, `CheckpointError` where its text is not UTF-8.
        """
        kind, self._at = self._places[name]
        return self._value(kind, name)

    def get(self, name: str, default: Any = None) -> Any:
        """A setting, or `default` where there is none of that name."""
        return self[name] if name in self._places else default

    def blocks(self, name: str) -> np.ndarray:
        """A tensor's bytes as they are in the file, (blocks, bytes of one), read-only and not copied.

        A block of F32, F16 and BF16 is one number. Raises `CheckpointError` where a number or a scale is not finite.
        """
        tensor = self.tensors[name]
        count = tensor.count * tensor.block_bytes
        raw = np.frombuffer(self._bytes, np.uint8, count, tensor.start).reshape(tensor.count, tensor.block_bytes)
        if not _finite(tensor.kind, raw):
            raise self._damaged(f"{name} does not hold finite floats")
        return raw

    def array(self, name: str, dtype: Any = "float32") -> np.ndarray:
        """A tensor as floats of its shape, a copy. Blocks become numbers in float32, whatever the dtype asked for."""
        tensor = self.tensors[name]
        return dequantize(tensor.kind, self.blocks(name)).reshape(tensor.shape).astype(dtype, copy=False)

    # ---- the directory -------------------------------------------------------------------------------

    def _read_directory(self) -> None:
        magic, version = self._take("<4sI")
        if magic != b"GGUF":
            raise CheckpointError(
                f"{self.path} is no GGUF file, since it does not begin with those four letters: name a .gguf file."
            )
        if version not in (2, 3):
            big = struct.pack("<I", version) in (b"\0\0\0\2", b"\0\0\0\3")
            which = "with big-endian numbers" if big else f"of version {version}"
            raise CheckpointError(
                f"{self.path} is a GGUF file {which}; minilora reads versions 2 and 3, little-endian: convert the "
                "model anew with a current llama.cpp."
            )
        n_tensors, n_settings = self._take("<QQ")
        for count, what in ((n_tensors, "tensors"), (n_settings, "settings")):
            if count > _MOST_ENTRIES:
                raise self._damaged(f"it claims {count} {what}, and a model has at most {_MOST_ENTRIES}")
        for _ in range(n_settings):
            name = self._name(self._places)
            (kind,) = self._take("<I")
            self._places[name] = kind, self._at
            self._skip(kind, name)
        entries: dict[str, GGUFTensor] = {}
        for _ in range(n_tensors):
            name = self._name(entries)
            entries[name] = self._tensor(name)
        self._place_tensors(entries)

    def _place_tensors(self, entries: dict[str, GGUFTensor]) -> None:
        """Offsets count from the end of the directory, on its alignment: they must lie on it too, each tensor within
        the file and no two on the same bytes, which would make a small file a large model."""
        directory_end = self._at
        alignment = self._alignment()
        origin = end = -(-directory_end // alignment) * alignment
        for name, tensor in sorted(entries.items(), key=lambda item: item[1].start):
            if tensor.start % alignment:
                raise self._damaged(f"{name} begins at {tensor.start}, which is no multiple of {alignment}")
            start = origin + tensor.start
            if start < end:
                raise self._damaged(f"{name} begins within another tensor")
            end = start + tensor.count * tensor.block_bytes
            if end > len(self._bytes):
                raise self._damaged(f"{name} ends {end - len(self._bytes)} bytes behind the file's end")
            self.tensors[name] = GGUFTensor(tensor.kind, tensor.shape, start, tensor.count, tensor.block_bytes)

    def _alignment(self) -> int:
        kind, place = self._places.get("general.alignment", (_UINT32, None))
        alignment = 32 if place is None else self["general.alignment"] if kind == _UINT32 else 0
        if alignment < 8 or alignment & (alignment - 1):
            raise self._damaged("general.alignment is no power of two from 8 on")
        return alignment

    def _tensor(self, name: str) -> GGUFTensor:
        """An entry of the directory; its start still counts from the directory's end."""
        (dimensions,) = self._take("<I")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise self._damaged(f"{name} has {dimensions} dimensions, not 1 to {_MOST_DIMENSIONS}")
        shape = self._take(f"<{dimensions}Q")[::-1]  # in the file the last comes first
        number, start = self._take("<IQ")
        if number not in _READ:
            kind = _NOT_READ.get(number, f"type {number}")
            raise CheckpointError(
                f"{self.path} holds {name} as {kind}: minilora reads F32, F16, BF16, Q8_0, Q4_0 and Q4_1; take a file "
                "with those alone, or make one with llama-quantize --pure."
            )
        kind, numbers, block_bytes = _READ[number]
        if 0 in shape or shape[-1] % numbers:
            raise self._damaged(f"{name} has shape {shape}, which is not in rows of blocks of {numbers}")
        return GGUFTensor(kind, shape, start, math.prod(shape) // numbers, block_bytes)

    # ---- what it is made of --------------------------------------------------------------------------

    def _take(self, form: str) -> tuple[Any, ...]:
        self._need(struct.calcsize(form))
        values = struct.unpack_from(form, self._bytes, self._at)
        self._at += struct.calcsize(form)
        return values

    def _need(self, count: int) -> None:
        left = len(self._bytes) - self._at
        if count > left:
            raise self._damaged(f"at byte {self._at} it promises {count} more, and {left} follow")

    def _name(self, taken: Any) -> str:
        (length,) = self._take("<Q")
        if length > _LONGEST_NAME:
            raise self._damaged(f"a name of {length} bytes is longer than any")
        name = self._text(length, "a name")
        if name in taken:
            raise self._damaged(f"the name {name} comes twice")
        return name

    def _text(self, length: int, what: str) -> str:
        self._need(length)
        self._at += length
        try:
            return self._bytes[self._at - length : self._at].decode("utf-8")
        except UnicodeDecodeError as problem:
            raise self._damaged(f"{what} is not UTF-8") from problem

    def _skip(self, kind: int, name: str, depth: int = 0) -> None:
        """Go on behind a value, and make sure that the whole of it is there."""
        if kind in _SCALARS:
            self._need(struct.calcsize(_SCALARS[kind]))
            self._at += struct.calcsize(_SCALARS[kind])
        elif kind == _TEXT:
            (length,) = self._take("<Q")
            if length > _LONGEST_TEXT:
                raise self._damaged(f"{name} is a text of {length} bytes, longer than any")
            self._need(length)
            self._at += length
        elif kind == _ARRAY and depth < _DEEPEST:
            of, count = self._take("<IQ")
            if of in _SCALARS:
                self._need(count * struct.calcsize(_SCALARS[of]))
                self._at += count * struct.calcsize(_SCALARS[of])
                return
            if of not in (_TEXT, _ARRAY) or count > _MOST_TEXTS:
                raise self._damaged(f"{name} is a list of {count} values of type {of}, unlike any")
            for _ in range(count):
                self._skip(of, name, depth + 1)
        else:
            raise self._damaged(f"{name} is of type {kind}, which GGUF does not have, or a list too deep")

    def _value(self, kind: int, name: str) -> Any:
        """The value here, all of which `_skip` has seen."""
        if kind == _TEXT:
            (length,) = self._take("<Q")
            return self._text(length, name)
        if kind == _ARRAY:
            of, count = self._take("<IQ")
            if of in (_TEXT, _ARRAY):
                return [self._value(of, name) for _ in range(count)]
            array = np.frombuffer(self._bytes, np.dtype(_SCALARS[of]), count, self._at)
            self._at += array.nbytes
            return array
        (value,) = self._take(_SCALARS[kind])
        if kind == _BOOL:
            if value > 1:
                raise self._damaged(f"{name} is {value}, and not true or false")
            return bool(value)
        return float(str(np.float32(value))) if kind == _FLOAT else value  # 1e-05, not 9.999999747378752e-06

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path} is damaged, or no GGUF file: {what}.")


# ---- blocks -> numbers -------------------------------------------------------------------------------


def dequantize(kind: str, raw: np.ndarray) -> np.ndarray:
    """Blocks (n, bytes) of a kind of tensor -> float32 (n, numbers in a block), in float32 arithmetic.

    Q8_0 is a scale and 32 signed bytes: x = d q. Q4_1 is a scale, a minimum and 16 bytes, whose low halves are the
    first 16 numbers and whose high halves the others: x = d q + m. Q4_0 has no minimum: x = d (q - 8). d and m are
    float16.
    """
    if kind == "F32":
        return raw.view("<f4").astype(np.float32)
    if kind == "F16":
        return raw.view("<f2").astype(np.float32)
    if kind == "BF16":  # the upper half of a float32
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    out = np.empty((len(raw), 32), np.float32)
    if kind == "Q8_0":
        out[...] = raw[:, 2:].view(np.int8)
    else:
        nibbles = raw[:, -16:]
        np.bitwise_and(nibbles, 15, out=out[:, :16], casting="unsafe")
        np.right_shift(nibbles, 4, out=out[:, 16:], casting="unsafe")
    if kind == "Q4_0":
        out -= 8
    out *= _halves(raw, 0)
    if kind == "Q4_1":
        out += _halves(raw, 1)
    return out


def _halves(raw: np.ndarray, number: int) -> np.ndarray:
    """The first or second float16 of each block, (n, 1), as float32."""
    return raw[:, 2 * number : 2 * number + 2].view("<f2").astype(np.float32)


def _finite(kind: str, raw: np.ndarray) -> bool:
    """Whether all numbers are. Of blocks, whose other parts are integers, the scales say it: 65504 · 127 is finite."""
    if kind in ("F32", "F16"):
        return bool(np.isfinite(raw.view("<f4" if kind == "F32" else "<f2")).all())
    if kind == "BF16":
        return bool(((raw.view("<u2") & 0x7F80) != 0x7F80).all())
    return all(bool(np.isfinite(_halves(raw, number)).all()) for number in range(2 if kind == "Q4_1" else 1))
