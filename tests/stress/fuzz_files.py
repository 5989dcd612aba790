"""Files changed at one place, by the thousand: each loads as exactly what was saved, or raises the one error named.

    python tests/stress/fuzz_files.py [--count 10000] [--seed 0] [--first 0] [--only gguf]

A case is drawn from (seed, number) alone: `--first N --count 1` repeats case N. For minilora's own files "exactly"
means every bit of weights, settings, optimizer, step and generator; a GPT-2 or Llama of others and another program's
adapter have no digest, so that a changed value is a value: there the model must be whole and finite. After a failed
load the model is as it was. No load may take more memory than what the intact file takes, or twice the file.
"""

from __future__ import annotations

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import argparse
import io
import json
import re
import resource
import shutil
import struct
import sys
import tempfile
import tracemalloc
import warnings
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import deserialize
from safetensors.numpy import save as safetensors_bytes

sys.path.insert(0, str(Path(__file__).parent.parent))

from gguf_files import llama_folder, llama_gguf, llama_gguf_bytes
from helpers import adapter_state, gpt2_folder, optimizer_state, randomize_lora, save_bfloat16, tiny_gpt

import minilora as ml
from minilora.backend import asarray
from minilora.interop.checkpoint import CheckpointError
from minilora.interop.llama import tokenizer_of
from minilora.interop.peft import AdapterError
from minilora.lora import lora_layers

SLACK = 64 * 1024  # bytes, for what Python itself allocates around a load

# ---- what is loaded ----------------------------------------------------------------------------------


def state_of(model, optimizer=None, rng=None):
    """All that loading may change, in a form that compares exactly."""
    if optimizer is None:
        return adapter_state(model)
    generators = (rng, next(iter(lora_layers(model).values())).adapter.rng)
    return adapter_state(model), optimizer_state(optimizer), [str(g.bit_generator.state) for g in generators]


def trained(model, seed=0):
    """LoRA on q and v as if it had been trained, with settings that are no defaults."""
    ml.add_lora(model, ml.LoRAConfig(2, alpha=5, dropout=0.25), seed=seed)
    randomize_lora(model, seed)
    return model


def optimized(seed, frozen_seed=0):
    model = trained(tiny_gpt(frozen_seed), seed)
    optimizer = ml.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1 + seed)
    for slot in optimizer.state.values():
        for number, array in enumerate(slot):
            array[...] = asarray(np.random.default_rng([seed, number]).random(array.shape))
    return model, optimizer, np.random.default_rng(seed)


class Adapter:
    """A folder of `save_adapter`; loaded into a plain model or in place of another adapter."""

    error = AdapterError

    def __init__(self, folder, base):
        self.base = base
        ml.save_adapter(trained(base()), folder)

    def load(self, folder, number):
        model = trained(self.base(), seed=7) if number % 2 else self.base()
        before = state_of(model)
        try:
            measured(lambda: ml.load_adapter(model, folder))
        except AdapterError:
            assert state_of(model) == before, "changed by a load that failed"
            raise
        assert state_of(model) == state_of(trained(self.base())), "loaded as something else"


class ForeignAdapter:
    """As other programs may write it: bfloat16, an adapter's name in the tensors' names, a sub-folder, a regular
    expression for the targets, and no digest."""

    error = AdapterError

    def __init__(self, folder, base):
        self.base = base
        ml.save_adapter(trained(base()), folder / "default")
        path, config = folder / "default" / "adapter_model.safetensors", folder / "default" / "adapter_config.json"
        arrays = tensors_of(path.read_bytes())
        save_bfloat16({default_name(name): array for name, array in arrays.items()}, path)
        config.write_text(json.dumps({**json.loads(config.read_text()), "target_modules": ".*attn.*"}))

    def load(self, folder, number):
        model = trained(self.base(), seed=7) if number % 2 else self.base()
        before = state_of(model)
        try:
            trainable = measured(lambda: ml.load_adapter(model, folder))
        except AdapterError:
            assert state_of(model) == before, "changed by a load that failed"
            raise
        assert trainable and all(np.isfinite(p.numpy()).all() for p in trainable), "not finite"
        with np.errstate(all="ignore"):  # of an α that is finite and enormous
            assert model(np.zeros((1, 2), int)).shape == (1, 2, model.config.vocab_size)


class Checkpoint:
    """A file of `save_checkpoint`, with an optimizer and a generator, with the frozen base or without."""

    error = CheckpointError

    def __init__(self, folder, frozen):
        model, optimizer, rng = self.saved = optimized(1)
        ml.save_checkpoint(folder / "c.npz", model, optimizer, 11, rng, frozen=frozen, notes={"a": 1})

    def load(self, folder, number):
        own = optimized(2)
        before = state_of(*own)
        try:
            step = measured(lambda: ml.load_checkpoint(folder / "c.npz", *own))
        except CheckpointError:
            assert state_of(*own) == before, "changed by a load that failed"
            raise
        assert step == 11 and state_of(*own) == state_of(*self.saved), "loaded as something else"


class Model:
    """A file of `save_checkpoint` that `load_model` rebuilds; of 200 kB, so that twice its size means something."""

    error = CheckpointError

    def __init__(self, folder):
        self.saved = trained(tiny_gpt(d_model=48))
        ml.save_checkpoint(folder / "c.npz", self.saved)

    def load(self, folder, number):
        model = measured(lambda: ml.load_model(folder / "c.npz"))
        assert state_of(model) == state_of(self.saved), "loaded as something else"


class GPT2:
    """A foreign folder, in one file or in shards, in float32 or bfloat16."""

    error = CheckpointError

    def __init__(self, folder, shards, bfloat16=False):
        gpt2_folder(folder, shards=shards)
        for path in folder.glob("*.safetensors") if bfloat16 else ():
            save_bfloat16(tensors_of(path.read_bytes()), path)

    def load(self, folder, number):
        model = measured(lambda: ml.load_gpt2(folder))
        assert all(np.isfinite(p.numpy()).all() for p in model.parameters()), "not finite"
        assert model(np.zeros((1, 2), int)).shape == (1, 2, model.config.vocab_size)


class Llama:
    """A folder, in one file or in shards, in float32 or bfloat16."""

    error = CheckpointError

    def __init__(self, folder, shards, dtype):
        llama_folder(folder, dtype=dtype, shards=shards)

    def load(self, folder, number):
        model = measured(lambda: ml.load_llama(folder))
        assert all(np.isfinite(p.numpy()).all() for p in model.parameters()), "not finite"
        T = min(2, model.config.context_length)
        with np.errstate(all="ignore"):  # of weights that are finite and enormous
            assert model(np.zeros((1, T), int)).shape == (1, T, model.config.vocab_size)


class GGUF(Llama):
    """A file with tensors in all six types, and its tokenizer."""

    def __init__(self, folder):
        llama_gguf(folder / "x.gguf")

    def load(self, folder, number):
        if number % 2:
            return super().load(folder, number)
        tokenizer = measured(lambda: tokenizer_of(folder))
        tokenizer.decode(tokenizer.encode("hello w 12 漢字<|im_end|>"))
        try:
            assert isinstance(tokenizer.chat([{"role": "user", "content": "hello"}]), str)
        except ValueError as error:
            assert re.search("chat template", str(error)), error


_peak = [0]


def measured(load):
    """What `load()` returns; notes the most memory it held at once."""
    tracemalloc.start()
    try:
        return load()
    finally:
        _peak[0] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()


# ---- one change --------------------------------------------------------------------------------------
#
# Each takes a generator and the bytes of a file, and returns other bytes, or None where it does not apply.


def place(rng, data):
    return int(rng.integers(len(data)))


def truncated(rng, data):
    return data[: place(rng, data)]


def bit_flipped(rng, data):
    i = place(rng, data)
    return data[:i] + bytes([data[i] ^ (1 << int(rng.integers(8)))]) + data[i + 1 :]


def bit_flipped_where_sizes_stand(rng, data):
    """The header of a safetensors file, the directory of an archive or of a GGUF file."""
    if data[:2] == b"PK":
        i = data.index(b"PK\x01\x02") + int(rng.integers(len(data) - data.index(b"PK\x01\x02")))
    elif is_gguf(data) and rng.random() < 0.5:
        i = data.index(b"token_embd") + int(rng.integers(1200))
    else:
        i = int(rng.integers(min(len(data), 600)))
    return data[:i] + bytes([data[i] ^ (1 << int(rng.integers(8)))]) + data[i + 1 :]


def zeroed(rng, data):
    i, n = place(rng, data), int(rng.integers(1, 64))
    return data[:i] + bytes(len(data[i : i + n])) + data[i + n :]


def inserted(rng, data):
    i = place(rng, data)
    return data[:i] + rng.bytes(int(rng.integers(1, 64))) + data[i:]


def removed(rng, data):
    i = place(rng, data)
    return data[:i] + data[i + int(rng.integers(1, 64)) :]


def trailing(rng, data):
    return data + rng.bytes(int(rng.integers(1, 64)))


def length_lies(rng, data):
    if is_safetensors(data):
        length = int.from_bytes(data[:8], "little")
        lies = [0, 1, length - 1, length + 1, len(data), 10**8 - 1, 10**8, 2**32, 2**60, 2**64 - 1]
        return lies[int(rng.integers(len(lies)))].to_bytes(8, "little") + data[8:]
    if is_gguf(data):  # the two counts, and the lengths of names and of texts that are values
        names = re.finditer(rb"\0\0\0(general|llama|tokenizer|blk|output|token_embd|\{%|gpt2|smollm)", data)
        places = [8, 16, *(match.start() - 5 for match in names)]
        return with_number(rng, data, places[int(rng.integers(len(places)))], "<Q")
    if data[:2] != b"PK":
        return None
    local = rng.random() < 0.5
    signature, offsets = (b"PK\x03\x04", (18, 22)) if local else (b"PK\x01\x02", (20, 24, 42))
    starts = [i for i in range(len(data)) if data.startswith(signature, i)]
    i = starts[int(rng.integers(len(starts)))] + offsets[int(rng.integers(len(offsets)))]
    lies = [0, 1, 2**16, 2**31, 2**32 - 2, 2**32 - 1]
    return data[:i] + lies[int(rng.integers(len(lies)))].to_bytes(4, "little") + data[i + 4 :]


def is_safetensors(data):
    return data[8:9] == b"{"


def is_gguf(data):
    return data[:4] == b"GGUF"


def with_number(rng, data, i, form):
    """Another number there, of a few bytes: a small one, one near, one enormous."""
    (old,) = struct.unpack_from(form, data, i)
    size = struct.calcsize(form)
    lies = [0, 1, 2, 3, 8, old - 1, old + 1, 2 * old, 32 * old, len(data), 10**6, 2**31, 2**32, 2**60, 2**63, 2**64 - 1]
    lie = lies[int(rng.integers(len(lies)))] % 256**size
    return data[:i] + lie.to_bytes(size, "little") + data[i + size :]


def tensors_of(data):
    """Name -> array; bfloat16 as float32."""
    dtypes = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
    arrays = {}
    for name, tensor in deserialize(data):
        array = np.frombuffer(tensor["data"], dtypes[tensor["dtype"]]).reshape(tensor["shape"])
        arrays[name] = (array.astype(np.uint32) << 16).view(np.float32) if tensor["dtype"] == "BF16" else array
    return arrays


def default_name(name):
    """A tensor's name in PEFT's memory, where the adapter is called "default"."""
    return name.replace(".weight", ".default.weight") if ".lora_" in name else name


def rewritten(data, change):
    """The same file with its arrays (name -> array) changed, and all that the format itself checks right again."""
    if is_safetensors(data):
        arrays = tensors_of(data)
        change(arrays)
        return safetensors_bytes(arrays, metadata=header_of(data).get("__metadata__"))
    if data[:2] != b"PK":
        return None
    with np.load(io.BytesIO(data)) as file:
        arrays = {name: file[name] for name in file.files}
    head = arrays.pop("header")
    change(arrays)
    stream = io.BytesIO()
    np.savez(stream, header=head, **arrays)
    return stream.getvalue()


def header_of(data):
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def of_one_array(make):
    """A mutation that changes one array by `make(rng, array)`."""

    def mutation(rng, data):
        def change(arrays):
            name = sorted(arrays)[int(rng.integers(len(arrays)))]
            arrays[name] = make(rng, arrays[name])

        return rewritten(data, change)

    mutation.__name__ = make.__name__
    return mutation


@of_one_array
def wrong_dtype(rng, array):
    return array.astype([np.float16, np.float64, np.int32, np.int8, np.uint8, bool][int(rng.integers(6))])


@of_one_array
def wrong_shape(rng, array):
    other = [array[..., None], array.reshape(1, -1), array[:-1], np.concatenate([array, array]), array.T][
        rng.integers(5)
    ]
    return np.ascontiguousarray(other)


def not_finite(rng, data):
    if not is_gguf(data):
        return _not_finite(rng, data)
    i = int(rng.integers(len(data) // 2, len(data)))  # where the tensors are
    return data[:i] + b"\xff" * 40 + data[i + 40 :]


@of_one_array
def _not_finite(rng, array):
    array = array.copy()
    array.flat[rng.integers(array.size)] = [np.nan, np.inf, -np.inf][rng.integers(3)]
    return array


@of_one_array
def value_nudged(rng, array):
    array = array.copy()
    i = rng.integers(array.size)
    array.flat[i] = np.nextafter(array.flat[i], array.dtype.type(9))
    return array


@of_one_array
def emptied(rng, array):
    return array[:0]


NAMES = [
    "../../x",
    "/abs",
    "a\\..\\b",
    "x\0y",
    "",
    "é",
    "base_model.model.../x.lora_A.weight",
    "model/../x",
    "h.0",
    "9" * 99,
]


def key_missing(rng, data):
    return rewritten(data, lambda arrays: arrays.pop(sorted(arrays)[int(rng.integers(len(arrays)))]))


def key_added(rng, data):
    return rewritten(data, lambda arrays: arrays.update({NAMES[int(rng.integers(len(NAMES)))]: np.ones(3, np.float32)}))


def key_renamed(rng, data):
    def change(arrays):
        name = sorted(arrays)[int(rng.integers(len(arrays)))]
        others = [*NAMES, name + "x", name[1:], name.upper()]
        arrays[others[int(rng.integers(len(others)))]] = arrays.pop(name)

    return rewritten(data, change)


def default_named(rng, data):
    """All tensors with an adapter's name, or all but one."""

    def change(arrays):
        kept = sorted(arrays)[int(rng.integers(len(arrays)))] if rng.random() < 0.5 else None
        for name in sorted(arrays):
            arrays[name if name == kept else default_name(name)] = arrays.pop(name)

    return rewritten(data, change) if is_safetensors(data) else None


def as_bfloat16(rng, data):
    """Half the bytes for one tensor, or all: the dtype that NumPy has not."""
    if not is_safetensors(data):
        return None
    arrays = tensors_of(data)
    kept = sorted(arrays)[int(rng.integers(len(arrays)))]
    header, values, offset = {"__metadata__": header_of(data).get("__metadata__", {})}, [], 0
    for name, array in arrays.items():
        half = rng.random() < 0.5 or name != kept
        upper = np.ascontiguousarray(array, np.float32).view(np.uint32) >> 16
        values.append(upper.astype("<u2").tobytes() if half else array.astype("<f4").tobytes())
        places = [offset, offset := offset + len(values[-1])]
        header[name] = {"dtype": "BF16" if half else "F32", "shape": list(array.shape), "data_offsets": places}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(values)


def in_a_dtype_of_others(rng, data):
    """A tensor that says that it holds numbers of a dtype that no one here reads."""
    if not is_safetensors(data):
        return None
    header = header_of(data)
    tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
    tensor = tensors[int(rng.integers(len(tensors)))]
    sizes = {"BF16": ["I16", "U16", "F16"], "F32": ["I32", "U32"]}[tensor["dtype"]]
    tensor["dtype"] = ["F8_E4M3", "F8_E5M2", "BOOL", "I8", *sizes][int(rng.integers(4 + len(sizes)))]
    if tensor["dtype"] not in sizes:
        tensor["shape"] = [(tensor["data_offsets"][1] - tensor["data_offsets"][0])]
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + int.from_bytes(data[:8], "little") :]


def huge_sizes(rng, data):
    """A header that declares what is not there, of other sizes, of another type or elsewhere."""
    if is_gguf(data):  # after a name: how many sizes, the sizes, the type, the offset
        entries = list(re.finditer(rb"(blk\.\d+\.\w+|output_norm|token_embd)\.weight", data))
        i = entries[int(rng.integers(len(entries)))].end()
        (n,) = struct.unpack_from("<I", data, i)
        fields = [(i, "<I"), (i + 4, "<Q"), (i + 4 * n, "<Q"), (i + 4 + 8 * n, "<I"), (i + 8 + 8 * n, "<Q")]
        return with_number(rng, data, *fields[int(rng.integers(len(fields)))])
    shape = [[10**9, 10**9], [2**31], [2**62, 4], [10**6, 10**6]][int(rng.integers(4))]
    if is_safetensors(data):
        header = header_of(data)
        name = sorted(set(header) - {"__metadata__"})[int(rng.integers(len(header) - 1))]
        header[name]["shape"] = shape
        if rng.random() < 0.5:
            header[name]["data_offsets"][1] = header[name]["data_offsets"][0] + 4 * shape[0]
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + int.from_bytes(data[:8], "little") :]
    if data[:2] != b"PK":
        return None

    def member(name, content):
        stream = io.BytesIO()
        np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": tuple(shape)})
        return stream.getvalue() + content[-16:]

    return with_member(rng, data, member)


def with_member(rng, data, change, compression=zipfile.ZIP_STORED):
    """The archive with the bytes of one member changed, its checksum right."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(stream, "w") as new:
        names = old.namelist()
        chosen = names[int(rng.integers(len(names)))]
        for name in names:
            content = old.read(name)
            if name == chosen:
                new.writestr(name, change(name, content), compress_type=compression)
            else:
                new.writestr(name, content)
    return stream.getvalue()


def compressed(rng, data):
    return with_member(rng, data, lambda _, content: content, zipfile.ZIP_DEFLATED) if data[:2] == b"PK" else None


BOMB = io.BytesIO()
np.save(BOMB, np.zeros(3_000_000))


def bomb(rng, data):
    """A member of 24 MB in as many kilobytes."""
    return with_member(rng, data, lambda *_: BOMB.getvalue(), zipfile.ZIP_DEFLATED) if data[:2] == b"PK" else None


def pickled(rng, data):
    if data[:2] != b"PK":
        return None
    stream = io.BytesIO()
    np.save(stream, np.array([{}, print], dtype=object))
    return with_member(rng, data, lambda *_: stream.getvalue())


def json_changed(rng, data):
    """One field of a JSON file, of the JSON within a file, or of a GGUF's settings, removed, of another type or of
    another value."""
    if is_gguf(data):
        names = re.findall(rb"(?:general|llama|tokenizer)\.[\w.]+", data)
        name = names[int(rng.integers(len(names)))].decode()
        return llama_gguf_bytes(settings={name: SETTINGS[int(rng.integers(len(SETTINGS)))]})
    if is_safetensors(data):
        header = header_of(data)
        if "__metadata__" not in header:
            return None
        change_field(rng, header["__metadata__"], ["", "x", "{}", "0" * 64])
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + int.from_bytes(data[:8], "little") :]
    if data[:2] == b"PK":
        with np.load(io.BytesIO(data)) as file:
            arrays = {name: file[name] for name in file.files}
        arrays["header"] = np.frombuffer(changed_json(rng, bytes(arrays["header"])), np.uint8)
        stream = io.BytesIO()
        np.savez(stream, **arrays)
        return stream.getvalue()
    return changed_json(rng, data)


VALUES = [
    None, True, 0, -1, 0.5, 3, 10**9, 10**400, 1e300, float("nan"), float("inf"), "x", [], {}, ["x"], {"a": 1},
    "../x.safetensors", "/etc/passwd", [[]], "gpt2", "all-linear", "(.*)*x", [True, False, True], [0],
]  # fmt: skip


SETTINGS = [
    None, True, 0, 1, 2, 3, 16, 10**9, 0.0, -1.0, 1e-9, float("nan"), float("inf"), "", "x", "llama", "gpt-2", "é" * 99,
    [], [1, 2], ["a", "b"], ["a b", "c d e"], [3] * 265, ["a"] * 265, [str(number) for number in range(265)],
    struct.pack("<IQ", 10, 2**64 - 1), struct.pack("<Iq", 11, -1), struct.pack("<Id", 12, 1e300),
    struct.pack("<IB", 7, 9), struct.pack("<IIQ", 9, 9, 0), struct.pack("<IQ", 8, 2) + b"\xff\xfe",
]  # fmt: skip


def changed_json(rng, data):
    how = rng.random()
    if how < 0.05:
        return b"[" * 100_000
    if how < 0.1:  # a key that comes twice
        return data.replace(b"{", b'{"r": 1, "n_embd": 8, "step": 3, ', 1)
    fields = json.loads(data)
    change_field(rng, fields, VALUES)
    return json.dumps(fields).encode()


def change_field(rng, fields, values):
    name = sorted(fields)[int(rng.integers(len(fields)))]
    if isinstance(fields[name], dict) and fields[name] and rng.random() < 0.8:
        change_field(rng, fields[name], values)
    elif rng.random() < 0.2:
        del fields[name]
    else:
        fields[name] = values[int(rng.integers(len(values)))]


MUTATIONS = [
    truncated, bit_flipped, bit_flipped_where_sizes_stand, zeroed, inserted, removed, trailing, length_lies,
    wrong_dtype, wrong_shape, not_finite, value_nudged, emptied, key_missing, key_added, key_renamed,
    default_named, as_bfloat16, in_a_dtype_of_others, huge_sizes, compressed, bomb, pickled, json_changed,
]  # fmt: skip

# ---- the run -----------------------------------------------------------------------------------------


@dataclass
class Report:
    cases: Counter = field(default_factory=Counter)  # (kind, mutation, outcome) -> how many
    failures: list = field(default_factory=list)
    growth: int = 0  # of the process's peak, bytes

    def table(self):
        lines = [f"{'file':<16}{'mutation':<32}{'cases':>7}{'as saved':>10}{'refused':>9}"]
        for kind, mutation in sorted({key[:2] for key in self.cases}):
            loaded, refused = (self.cases[kind, mutation, outcome] for outcome in ("loaded", "refused"))
            lines.append(f"{kind:<16}{mutation:<32}{loaded + refused:>7}{loaded:>10}{refused:>9}")
        return "\n".join(lines)


def run(count, seed=0, first=0, only=""):
    """Try cases `first` to `first + count - 1`, of the kinds whose names begin with `only`; returns the report."""
    report = Report()
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", UserWarning)  # of fields that minilora does not know
        kinds = {kind: made for kind, made in make_kinds(Path(name)).items() if kind.startswith(only)}
        before = peak()
        for number in range(first, first + count):
            try_one(kinds, seed, number, Path(name) / "case", report)
        report.growth = peak() - before
    return report


def make_kinds(folder):
    """Name -> (what loads it, the bytes of its files, the most memory that loading them takes)."""
    gpt2_folder(folder / "base", d_model=16)
    makers = {
        "adapter": lambda f: Adapter(f, tiny_gpt),
        "adapter, c_attn": lambda f: Adapter(f, lambda: ml.load_gpt2(folder / "base")),
        "adapter, foreign": lambda f: ForeignAdapter(f, tiny_gpt),
        "foreign, c_attn": lambda f: ForeignAdapter(f, lambda: ml.load_gpt2(folder / "base")),
        "checkpoint": lambda f: Checkpoint(f, frozen=True),
        "training state": lambda f: Checkpoint(f, frozen=False),
        "model": Model,
        "gpt2": lambda f: GPT2(f, shards=1),
        "gpt2, shards": lambda f: GPT2(f, shards=3),
        "gpt2, bfloat16": lambda f: GPT2(f, shards=2, bfloat16=True),
        "llama": lambda f: Llama(f, shards=1, dtype="F32"),
        "llama, shards": lambda f: Llama(f, shards=3, dtype="BF16"),
        "gguf": GGUF,
    }
    kinds = {}
    for name, make in makers.items():
        (folder / name).mkdir()
        kind = make(folder / name)
        paths = [path for path in sorted((folder / name).rglob("*")) if path.is_file()]
        files = {path.relative_to(folder / name).as_posix(): path.read_bytes() for path in paths}
        peaks = []
        for number in range(4):
            kind.load(folder / name, number)
            peaks.append(_peak[0])
        kinds[name] = kind, files, max(peaks)
    return kinds


def try_one(kinds, seed, number, folder, report):
    rng = np.random.default_rng([seed, number])
    name = sorted(kinds)[int(rng.integers(len(kinds)))]
    kind, files, usual = kinds[name]
    changed = None
    while changed is None:
        file = sorted(files)[int(rng.integers(len(files)))]
        mutation = MUTATIONS[int(rng.integers(len(MUTATIONS)))]
        structural = mutation in MUTATIONS[MUTATIONS.index(length_lies) :]
        if file.endswith(".json") and structural:
            mutation = json_changed
        changed = mutation(rng, files[file])
    shutil.rmtree(folder, ignore_errors=True)
    for other, content in files.items():
        (folder / other).parent.mkdir(parents=True, exist_ok=True)
        (folder / other).write_bytes(changed if other == file else content)
    size = sum(len(content) for content in files.values()) - len(files[file]) + len(changed)
    _peak[0] = 0
    try:
        kind.load(folder, number)
        outcome = "loaded"
    except kind.error:
        outcome = "refused"
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of Rust's is no Exception
        report.failures.append(f"case {number}: {name}, {file}, {mutation.__name__}: {type(error).__name__}: {error}")
        return
    if _peak[0] > max(usual, 2 * size) + SLACK:
        report.failures.append(f"case {number}: {name}, {file}, {mutation.__name__}: {_peak[0]:,} bytes for {size:,}")
    report.cases[name, mutation.__name__, outcome] += 1


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", default="", help='kinds of files whose names begin so, as "gguf"')
    options = parser.parse_args()
    report = run(options.count, options.seed, options.first, options.only)
    print(report.table())
    total = sum(report.cases.values())
    print(f"{total:,} cases; the process's peak grew by {report.growth / 1e6:.1f} MB; {len(report.failures)} failures")
    print("\n".join(report.failures[:50]))
    return bool(report.failures)


if __name__ == "__main__":
    sys.exit(main())
