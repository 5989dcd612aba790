"""The GGUF container: what its bytes mean, and that nothing in it is believed."""

import itertools
import struct
import time
import tracemalloc

import numpy as np
import pytest
from gguf_files import KINDS, gguf_bytes, numbers, random_blocks, text, typed

from minilora.interop.checkpoint import CheckpointError
from minilora.interop.gguf import GGUFFile

SHAPE = (6, 64)


@pytest.fixture
def write(tmp_path):
    """write(settings, tensors, ...) -> the path of a new file of those."""
    numbers = itertools.count()

    def make(settings=None, tensors=(), **options):
        path = tmp_path / f"{next(numbers)}.gguf"
        path.write_bytes(gguf_bytes(settings or {}, list(tensors), **options))
        return path

    return make


def tensor(kind="F32", shape=SHAPE, name="w", seed=0):
    return name, kind, shape, random_blocks(kind, shape, np.random.default_rng(seed)).tobytes()


# ---- what is read ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_block_is_what_its_description_says(write, kind):
    raw = random_blocks(kind, SHAPE, np.random.default_rng(1))
    file = GGUFFile(write(tensors=[tensor(name="before"), ("w", kind, SHAPE, raw.tobytes())]))
    assert file.tensors["w"].kind == kind and file.tensors["w"].shape == SHAPE
    wanted = numbers(kind, raw).reshape(SHAPE)
    for dtype in ("float32", "float64"):
        array = file.array("w", dtype)
        assert array.dtype == dtype and array.flags.writeable and np.array_equal(array, wanted)
    blocks = file.blocks("w")
    assert blocks.shape == (SHAPE[0] * SHAPE[1] // KINDS[kind][1], KINDS[kind][2]) and not blocks.flags.writeable
    assert blocks.tobytes() == raw.tobytes()


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_the_extremes_of_blocks_and_their_zeros_have_the_right_signs(write, kind):
    block = bytearray(KINDS[kind][2])
    block[:2] = struct.pack("<e", -65504.0)
    block[-16:] = bytes(range(0, 256, 17))
    raw = np.frombuffer(bytes(block), np.uint8)
    array = GGUFFile(write(tensors=[("w", kind, (1, 32), bytes(block))])).array("w")
    assert array.tobytes() == numbers(kind, raw).tobytes() and np.isfinite(array).all()


def test_settings_of_every_type(write):
    forms = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}
    settings = {f"type {n}": struct.pack("<I" + form, n, 3) for n, form in forms.items()}
    settings.update({f"list {n}": struct.pack(f"<IIQ3{form}", 9, n, 3, 1, 2, 3) for n, form in forms.items()})
    settings.update(yes=True, text="é漢", texts=["a", "", "漢"], none=struct.pack("<IIQ", 9, 4, 0))
    settings["lists"] = struct.pack("<IIQ", 9, 9, 2) + typed([1, 2])[4:] + typed(["a"])[4:]
    settings["ε"] = 1e-5
    file = GGUFFile(write(settings, [tensor()]))
    assert file.settings == tuple(settings) and len(file["none"]) == 0
    for number in forms:
        assert file[f"type {number}"] == 3 and file[f"list {number}"].tolist() == [1, 2, 3]
    assert file["yes"] is True and file["text"] == "é漢" and file["texts"] == ["a", "", "漢"]
    assert file["lists"][0].tolist() == [1, 2] and file["lists"][1] == ["a"]
    assert file["ε"] == 1e-5  # the number that was meant, not the float32 next to it
    assert "yes" in file and "no" not in file and file.get("no", 7) == 7
    with pytest.raises(KeyError):
        file["no"]


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [8, 32, 256])
def test_versions_and_alignments(write, version, alignment):
    tensors = [tensor(shape=(3, 3), name="a"), tensor("Q8_0", name="b"), tensor("F16", (5,), "c")]
    file = GGUFFile(write({"general.alignment": alignment}, tensors, version=version, alignment=alignment))
    for name, kind, shape, raw in tensors:
        assert np.array_equal(file.array(name), numbers(kind, np.frombuffer(raw, np.uint8)).reshape(shape))


# ---- what is refused ---------------------------------------------------------------------------------

LIST = struct.pack("<I", 9)
BAD_SETTINGS = {
    "a list of 2^60 texts": (LIST + struct.pack("<IQ", 8, 2**60), "a list of 1152921504606846976"),
    "a list of 2^60 numbers": (LIST + struct.pack("<IQ", 4, 2**60), "it promises 4611686018427387904 more"),
    "more texts than follow": (LIST + struct.pack("<IQ", 8, 2**20) + b"\0" * 64, "it promises"),
    "lists of lists of lists": (struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 9, "a list too deep"),
    "a list of no type": (LIST + struct.pack("<IQ", 77, 0), "a list of 0 values of type 77"),
    "no type": (struct.pack("<I", 13), "is of type 13"),
    "a text of 2^63 bytes": (struct.pack("<IQ", 8, 2**63), "a text of 9223372036854775808 bytes"),
    "a text longer than the file": (struct.pack("<IQ", 8, 2**19), "it promises 524288 more"),
}


@pytest.mark.parametrize(("value", "message"), BAD_SETTINGS.values(), ids=BAD_SETTINGS.keys())
def test_settings_that_lie_cost_neither_time_nor_memory(write, value, message):
    path = write({"x": value})
    started = time.perf_counter()
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=message):
            GGUFFile(path)
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - started < 5


BAD_FILES = {
    "tensors by the trillion": ({"counts": (2**60, 0)}, "claims 1152921504606846976 tensors"),
    "settings by the trillion": ({"counts": (0, 2**60)}, "claims 1152921504606846976 settings"),
    "more tensors than follow": ({"counts": (3, 0)}, "damaged"),
    "version 1": ({"version": 1}, "of version 1; minilora reads versions 2 and 3"),
    "version 4": ({"version": 4}, "of version 4"),
    "big-endian": ({"version": 3 << 24}, "with big-endian numbers"),
    "a name twice": ({"tensors": [tensor(), tensor()]}, "the name w comes twice"),
    "a setting twice": ({"settings": [("a", 1), ("a", 1)]}, "the name a comes twice"),
    "a name that is no text": ({"settings": [(b"\xff", 1)]}, "a name is not UTF-8"),
    "a name without end": ({"settings": [("a" * 70_000, 1)]}, "a name of 70000 bytes"),
    "no dimensions": ({"tensors": [("w", 0, (), b"1234")]}, "w has 0 dimensions, not 1 to 4"),
    "five dimensions": ({"tensors": [("w", 0, (1,) * 5, b"1234")]}, "w has 5 dimensions"),
    "a size of zero": ({"tensors": [("w", 0, (0, 4), b"")]}, r"w has shape \(0, 4\)"),
    "more numbers than 2^64": ({"tensors": [("w", 0, (2**62, 4), b"")]}, "w ends .* bytes behind the file's end"),
    "a row of half a block": ({"tensors": [("w", 8, (2, 48), bytes(102))]}, "in rows of blocks of 32"),
    "one byte too few": ({"tensors": [("w", 0, (2, 2), bytes(15))]}, "w ends 1 bytes behind"),
    "an offset beyond": ({"tensors": [tensor()], "offsets": {"w": 2**63}}, "behind the file's end"),
    "an offset askew": ({"tensors": [tensor()], "offsets": {"w": 4}}, "begins at 4, which is no multiple of 32"),
    "two on one place": ({"tensors": [tensor(), tensor(name="v")], "offsets": {"v": 0}}, "begins within another"),
    "Q4_K": (
        {"tensors": [("w", 12, (1, 256), bytes(144))]},
        "w as Q4_K: minilora reads F32, F16, BF16, Q8_0, Q4_0 and",
    ),
    "Q6_K": ({"tensors": [("w", 14, (1, 256), bytes(210))]}, "w as Q6_K"),
    "a type to come": ({"tensors": [("w", 99, (1, 256), bytes(210))]}, "w as type 99"),
    "alignment 24": ({"settings": {"general.alignment": 24}}, "general.alignment is no power of two from 8 on"),
    "alignment 0": ({"settings": {"general.alignment": 0}}, "general.alignment is no power"),
    "alignment of text": ({"settings": {"general.alignment": "32"}}, "general.alignment is no power"),
    "alignments": ({"settings": {"general.alignment": [32]}}, "general.alignment is no power"),
}


@pytest.mark.parametrize(("given", "message"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_files_that_lie_are_refused_in_a_sentence(write, given, message):
    path = write(**given)
    with pytest.raises(CheckpointError, match=message) as error:
        GGUFFile(path)
    assert str(path) in str(error.value) and str(error.value).endswith(".")


def test_every_shorter_file_is_refused(write):
    path = write({"a": "text", "b": [1, 2], "c": ["x"]}, [tensor("Q4_0", (1, 32))])
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            GGUFFile(path)


def test_files_that_are_no_gguf(tmp_path):
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "other.gguf").write_bytes(b"PK\3\4" + bytes(100))
    for name, message in (
        ("no.gguf", "cannot be read: No such file"),
        ("empty.gguf", "cannot be read"),
        ("other.gguf", "is no GGUF file, since it does not begin with those four letters"),
        ("", "cannot be read"),
        ("a\0b", "cannot be read"),
    ):
        with pytest.raises(CheckpointError, match=message):
            GGUFFile(tmp_path / name)


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_and_scales_that_are_not_finite_are_refused(write, kind):
    bad = {"F32": b"\0\0\x80\x7f", "BF16": b"\x80\x7f"}.get(kind, b"\0\x7c")  # infinity
    size = KINDS[kind][2]
    for at in (0, 2) if kind == "Q4_1" else (0,):
        raw = bytearray(tensor(kind)[3])
        raw[3 * size + at : 3 * size + at + len(bad)] = bad
        file = GGUFFile(write(tensors=[tensor(name="good"), ("w", kind, SHAPE, bytes(raw))]))
        file.array("good")
        for read in (file.array, file.blocks):
            with pytest.raises(CheckpointError, match="w does not hold finite floats"):
                read("w")


def test_values_that_are_read_late_are_refused_then(write):
    file = GGUFFile(write({"text": struct.pack("<I", 8) + text(b"\xff"), "bool": struct.pack("<IB", 7, 2)}))
    for name, message in (("text", "text is not UTF-8"), ("bool", "bool is 2, and not true or false")):
        with pytest.raises(CheckpointError, match=message):
            file[name]


def test_a_tensor_is_read_alone(write):
    """In the memory of its numbers and a little more; the file is only mapped."""
    tensors = [tensor(kind, (128, 256), kind) for kind in KINDS]
    file = GGUFFile(write(tensors=tensors))
    for kind in KINDS:
        tracemalloc.start()
        file.array(kind)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 * 128 * 256 * 2.1 + 2**16, kind
