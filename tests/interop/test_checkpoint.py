"""Checkpoints: training goes on bit for bit, and a file that is not whole changes nothing."""

import json
import pickle
import zipfile

import numpy as np
import pytest
from helpers import batches, ids, lora_gpt, optimizer_state, randomize_lora, snapshot, tiny_gpt

import minilora as ml
from minilora.interop.checkpoint import FORMAT, CheckpointError, read_notes
from minilora.lora import lora_layers

KINDS = {"adam": ml.Adam, "adamw": ml.AdamW, "sgd": ml.SGD}


def fresh(kind, seed=0):
    """A model with LoRA and dropout, and an optimizer in two groups."""
    model = tiny_gpt(seed)
    trainable = ml.add_lora(model, ml.LoRAConfig(2, dropout=0.3), seed=seed)
    groups = [{"params": trainable[::2], "lr": 0.02}, {"params": trainable[1::2]}]
    return model, KINDS[kind](groups, lr=0.01)


def train(model, optimizer, start, steps):
    loss = ml.batch_loss(model, batches(model))
    schedule = ml.cosine_schedule(20, warmup=0.2)
    return ml.train(model, optimizer, loss, steps, start=start, schedule=schedule, clip=0.5)["loss"]


def state_of(model, optimizer=None):
    """Everything a checkpoint keeps, as bytes and numbers that compare exactly."""
    state = [snapshot(model), [layer.adapter.rng.bit_generator.state for layer in lora_layers(model).values()][:1]]
    if optimizer is not None:
        state += optimizer_state(optimizer)
    return state


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_is_the_unbroken_run_bit_for_bit(tmp_path, kind):
    """With LoRA's dropout, a schedule, groups and clipping; the fresh objects start from other seeds."""
    path = tmp_path / "run.npz"
    whole_model, whole_optimizer = fresh(kind)
    whole = train(whole_model, whole_optimizer, 0, 20)

    model, optimizer = fresh(kind)
    first = train(model, optimizer, 0, 10)
    ml.save_checkpoint(path, model, optimizer, step=10)

    model, optimizer = fresh(kind, seed=99)
    step = ml.load_checkpoint(path, model, optimizer)
    assert step == 10
    second = train(model, optimizer, step, 20)
    assert first + second == whole
    assert state_of(model, optimizer) == state_of(whole_model, whole_optimizer)


def test_a_generator_goes_on_where_it_was(tmp_path):
    path, rng = tmp_path / "c.npz", np.random.default_rng(1)
    rng.normal(size=3)
    ml.save_checkpoint(path, tiny_gpt(), rng=rng)
    other = np.random.default_rng(2)
    ml.load_checkpoint(path, tiny_gpt(5), rng=other)
    assert rng.normal() == other.normal()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_load_model_rebuilds_a_plain_model(tmp_path, dtype, tied):
    model = tiny_gpt(4, dtype=dtype, tied_head=tied)
    ml.save_checkpoint(tmp_path / "c.npz", model)
    again = ml.load_model(tmp_path / "c.npz")
    assert again.config == model.config and snapshot(again) == snapshot(model)
    assert (again.lm_head.weight is again.token_embedding.weight) is tied
    assert np.array_equal(again(ids(model)).numpy(), model(ids(model)).numpy())


@pytest.mark.parametrize("merged", [False, True])
def test_load_model_rebuilds_lora_with_its_settings_and_its_dropout(tmp_path, merged):
    model = lora_gpt(alpha=5, dropout=0.4, scaling="alpha/sqrt(r)", init="kaiming")
    model(ids(model))  # moves the dropout's generator on
    if merged:
        ml.merge_lora(model)
    ml.save_checkpoint(tmp_path / "c.npz", model)
    again = ml.load_model(tmp_path / "c.npz")
    if merged:
        ml.unmerge_lora(model)
    assert state_of(again) == state_of(model)
    own, rebuilt = (next(iter(lora_layers(m).values())).adapter.config for m in (model, again))
    assert own == rebuilt
    assert np.array_equal(again(ids(model)).numpy(), model(ids(model)).numpy())  # the same entries dropped


def test_settings_given_as_numpy_numbers_can_be_saved(tmp_path):
    model = tiny_gpt(d_model=np.int64(8), vocab_size=np.int32(7))
    ml.add_lora(model, ml.LoRAConfig(np.int64(2), alpha=np.float32(3), dropout=np.float32(0.5)))
    ml.save_checkpoint(tmp_path / "c.npz", model)
    assert snapshot(ml.load_model(tmp_path / "c.npz")) == snapshot(model)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_without_the_frozen_base_goes_on_bit_for_bit(tmp_path, kind):
    path = tmp_path / "run.npz"
    model, optimizer = fresh(kind)
    train(model, optimizer, 0, 5)
    ml.save_checkpoint(path, model, optimizer, step=5, frozen=False)
    again, other = fresh(kind)
    assert ml.load_checkpoint(path, again, other) == 5
    assert state_of(again, other) == state_of(model, optimizer)
    with np.load(path) as file:
        kept = [name for name in file.files if name.startswith("model/")]
    assert len(kept) == len(optimizer.params) and all(".lora_" in name for name in kept)

    stranger, optimizer = fresh(kind, seed=1)
    before = state_of(stranger, optimizer)
    with pytest.raises(CheckpointError, match="saved beside another base"):
        ml.load_checkpoint(path, stranger, optimizer)
    assert state_of(stranger, optimizer) == before
    with pytest.raises(CheckpointError, match="holds only what trained: load_checkpoint"):
        ml.load_model(path)


def test_notes_come_back(tmp_path):
    ml.save_checkpoint(tmp_path / "c.npz", tiny_gpt(), step=7, notes={"text": "é", "list": [1, 2]})
    assert read_notes(tmp_path / "c.npz") == {"text": "é", "list": [1, 2], "step": 7}


def test_the_file_holds_no_pickle_and_only_floats_beside_its_header(tmp_path):
    model, optimizer = fresh("adam")
    train(model, optimizer, 0, 1)
    ml.save_checkpoint(tmp_path / "c.npz", model, optimizer)
    with np.load(tmp_path / "c.npz", allow_pickle=False) as file:
        dtypes = {name: file[name].dtype for name in file.files}
    assert dtypes.pop("header") == np.uint8
    assert set(dtypes.values()) == {np.dtype("float32")}
    assert len(dtypes) == len(model.parameters()) + 2 * len(optimizer.params)


# ---- writing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError("disk full"), RuntimeError("killed"), KeyboardInterrupt()])
def test_a_failure_halfway_leaves_the_old_file_whole_and_nothing_else(tmp_path, monkeypatch, error):
    path = tmp_path / "c.npz"
    ml.save_checkpoint(path, tiny_gpt(1), step=1)
    old = path.read_bytes()

    def half(file, **arrays):
        file.write(old[: len(old) // 2])
        raise error

    monkeypatch.setattr(np, "savez", half)
    with pytest.raises(ValueError if isinstance(error, OSError) else type(error)):
        ml.save_checkpoint(path, tiny_gpt(2), step=2)
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


def test_a_folder_is_made_and_one_that_cannot_be_is_an_error(tmp_path):
    ml.save_checkpoint(tmp_path / "new" / "folder" / "c.npz", tiny_gpt())
    assert ml.load_checkpoint(tmp_path / "new" / "folder" / "c.npz", tiny_gpt(1)) == 0
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match=r"c.npz cannot be written: .*directory|exists"):
        ml.save_checkpoint(tmp_path / "file" / "c.npz", tiny_gpt())
    with pytest.raises(ValueError, match="cannot be written"):
        ml.save_checkpoint(tmp_path / "new" / "folder", tiny_gpt())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "new"]


# ---- files that are damaged or foreign ---------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a file, and the state it was saved from."""
    model, optimizer = fresh("adam")
    train(model, optimizer, 0, 2)
    path = tmp_path_factory.mktemp("whole") / "c.npz"
    ml.save_checkpoint(path, model, optimizer, step=2)
    return path.read_bytes(), state_of(model, optimizer)


def load_or_refuse(path, content, saved):
    """Loading either gives exactly what was saved, or refuses and changes nothing."""
    path.write_bytes(content)
    model, optimizer = fresh("adam", seed=5)
    before = state_of(model, optimizer)
    try:
        step = ml.load_checkpoint(path, model, optimizer)
    except CheckpointError as error:
        assert str(path) in str(error)
        assert state_of(model, optimizer) == before
        return False
    assert step == 2 and state_of(model, optimizer) == saved
    return True


@pytest.mark.parametrize("part", range(40))
def test_a_truncated_file_is_refused(tmp_path, whole, part):
    content, saved = whole
    assert not load_or_refuse(tmp_path / "c.npz", content[: part * len(content) // 40], saved)


@pytest.mark.parametrize("part", range(60))
def test_a_flipped_bit_is_refused_or_harmless(tmp_path, whole, part):
    content, saved = whole
    rng = np.random.default_rng(part)
    damaged = bytearray(content)
    damaged[(part * len(content) + int(rng.integers(len(content)))) // 60] ^= 1 << int(rng.integers(8))
    load_or_refuse(tmp_path / "c.npz", bytes(damaged), saved)


def test_flipped_bits_in_the_zip_directory_and_in_headers_are_refused_or_harmless(tmp_path, whole):
    """Where names, sizes, checksums, shapes and dtypes stand: the places a reader trusts first."""
    content, saved = whole
    directory = content.rindex(b"PK\x01\x02")
    header = content.index(b"\x93NUMPY")
    loaded = [
        load_or_refuse(tmp_path / "c.npz", content[:i] + bytes([content[i] ^ (1 << i % 8)]) + content[i + 1 :], saved)
        for i in [*range(header - 60, header + 128, 2), *range(directory, len(content), 2)]
    ]
    assert not all(loaded)


def rewritten(content, path, **changes):
    """The file with some arrays changed, and every checksum of the archive right again."""
    path.write_bytes(content)
    with np.load(path) as file:
        arrays = {**{name: file[name] for name in file.files}, **changes}
    np.savez(path, **arrays)
    return path.read_bytes()


def test_every_value_counts_and_so_does_the_header(tmp_path, whole):
    """What the archive's own checksums cannot tell, since they are right: a digest of all that was saved."""
    content, saved = whole
    path = tmp_path / "c.npz"
    assert load_or_refuse(path, rewritten(content, path), saved)
    with np.load(path) as file:
        weight, head = file["model/lm_head.weight"], json.loads(bytes(file["header"]))
    weight[0, 0] = np.nextafter(weight[0, 0], np.float32(1))
    assert not load_or_refuse(path, rewritten(content, path, **{"model/lm_head.weight": weight}), saved)
    head["optimizer"]["groups"][0]["lr"] = 0.5
    changed = np.frombuffer(json.dumps(head).encode(), np.uint8)
    assert not load_or_refuse(path, rewritten(content, path, header=changed), saved)
    del head["digest"]  # as files of the first days have none
    path.write_bytes(rewritten(content, path, header=np.frombuffer(json.dumps(head).encode(), np.uint8)))
    assert ml.load_checkpoint(path, *fresh("adam", seed=5)) == 2


def test_a_rank_that_the_weights_do_not_have_asks_for_no_memory(tmp_path):
    """A file of the first days has no digest, and r stands in its settings alone."""
    path = tmp_path / "c.npz"
    ml.save_checkpoint(path, lora_gpt())
    with np.load(path) as file:
        head = json.loads(bytes(file["header"]))
    del head["digest"]
    head["lora"]["r"] = 10**15
    path.write_bytes(rewritten(path.read_bytes(), path, header=np.frombuffer(json.dumps(head).encode(), np.uint8)))
    with pytest.raises(CheckpointError, match="settings say r = 1000000000000000, which its lora_A do not have"):
        ml.load_model(path)


def test_a_compressed_archive_is_not_unpacked(tmp_path):
    """minilora writes none, and one of a kilobyte may hold a gigabyte."""
    np.savez_compressed(tmp_path / "c.npz", header=header(), **{"model/a": np.zeros(10**6)})
    with pytest.raises(CheckpointError, match="is not as saved"):
        ml.load_model(tmp_path / "c.npz")


def npz(path, **arrays):
    np.savez(path, **arrays)


def npy(path, array):
    with path.open("wb") as file:
        np.save(file, array)


def archive(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.txt", "a")


def header(**fields):
    return np.frombuffer(json.dumps({"format": FORMAT, "step": 0, "notes": {}, **fields}).encode(), np.uint8)


FOREIGN = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("not a checkpoint"),
    "pickle": lambda path: path.write_bytes(pickle.dumps({"step": 1})),
    "npy": lambda path: npy(path, np.ones(3)),
    "npz of something else": lambda path: npz(path, weights=np.ones(3)),
    "npz with a pickled array": lambda path: npz(path, header=header(), a=np.array([{}], dtype=object)),
    "pickled .npy": lambda path: npy(path, np.array([{}], dtype=object)),
    "zip of something else": lambda path: archive(path),
    "another format": lambda path: npz(path, header=header(format="minilora checkpoint 0")),
    "header that is no JSON": lambda path: npz(path, header=np.frombuffer(b"{", np.uint8)),
    "header that is a list": lambda path: npz(path, header=np.frombuffer(b"[1]", np.uint8)),
    "header of text": lambda path: npz(path, header=np.array("text")),
    "nothing but a header": lambda path: npz(path, header=header()),
    "an array of no one's": lambda path: npz(path, header=header(), stray=np.ones(3)),
    "weights that are not finite": lambda path: npz(path, header=header(), **{"model/a": np.array([np.nan])}),
    "a folder": lambda path: path.mkdir(),
    "nothing": lambda path: None,
}


@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN.keys())
def test_files_that_are_no_checkpoint_are_refused(tmp_path, make):
    path = tmp_path / "c.npz"
    make(path)
    model, optimizer = fresh("adam")
    before = state_of(model, optimizer)
    with pytest.raises(CheckpointError, match=r"c\.npz"):
        ml.load_checkpoint(path, model, optimizer)
    with pytest.raises(CheckpointError, match=r"c\.npz"):
        ml.load_model(path)
    assert state_of(model, optimizer) == before


class Bomb:
    """What a hostile pickle can hold: a call, here one that makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_nothing_in_a_file_is_ever_executed(tmp_path):
    trace = tmp_path / "executed"
    bomb = np.array([Bomb(trace)], dtype=object)
    npz(tmp_path / "pickled.npz", header=header(), **{"model/a": bomb})
    npy(tmp_path / "pickled.npy", bomb)
    for name in ("pickled.npz", "pickled.npy"):
        for load in (lambda path: ml.load_checkpoint(path, tiny_gpt()), ml.load_model, read_notes):
            with pytest.raises(CheckpointError):
                load(tmp_path / name)
    assert not trace.exists()


OTHERS = {
    "another size": (lambda: tiny_gpt(d_model=4), "from a model with d_model=8; this one has d_model=4"),
    "another depth": (lambda: tiny_gpt(n_layers=1), "from a model with n_layers=2; this one has n_layers=1"),
    "another number of heads": (lambda: tiny_gpt(n_heads=4), "n_heads=2"),
    "a model with LoRA": (lambda: lora_gpt(), "it lacks"),
}


@pytest.mark.parametrize(("make", "message"), OTHERS.values(), ids=OTHERS.keys())
def test_the_checkpoint_of_another_model_is_refused(tmp_path, make, message):
    ml.save_checkpoint(tmp_path / "c.npz", tiny_gpt())
    model = make()
    before = state_of(model)
    with pytest.raises(CheckpointError, match=message):
        ml.load_checkpoint(tmp_path / "c.npz", model)
    assert state_of(model) == before


def test_lora_of_another_scaling_is_refused(tmp_path):
    """The shapes fit, but the function would be another."""
    ml.save_checkpoint(tmp_path / "c.npz", lora_gpt(alpha=4))
    model = lora_gpt(alpha=8)
    randomize_lora(model, seed=9)
    before = state_of(model)
    with pytest.raises(CheckpointError, match="scaled by 2; the model's is by 4"):
        ml.load_checkpoint(tmp_path / "c.npz", model)
    assert state_of(model) == before


def test_what_a_checkpoint_does_not_hold_cannot_be_asked_of_it(tmp_path):
    model, optimizer = fresh("adam")
    before = state_of(model, optimizer)
    ml.save_checkpoint(tmp_path / "c.npz", fresh("adam", seed=3)[0])
    with pytest.raises(CheckpointError, match="holds no optimizer state"):
        ml.load_checkpoint(tmp_path / "c.npz", model, optimizer)
    with pytest.raises(CheckpointError, match="holds no generator state"):
        ml.load_checkpoint(tmp_path / "c.npz", model, rng=np.random.default_rng(0))
    assert state_of(model, optimizer) == before


def test_nothing_changes_where_only_the_optimizer_or_a_generator_does_not_fit(tmp_path):
    """Model, optimizer, dropout and generator are brought back together or not at all."""
    saved, saved_optimizer = fresh("adam", seed=3)
    train(saved, saved_optimizer, 0, 2)
    ml.save_checkpoint(tmp_path / "c.npz", saved, saved_optimizer, rng=np.random.default_rng(1))

    model, optimizer = fresh("adamw")
    before = state_of(model, optimizer)
    with pytest.raises(CheckpointError, match="of Adam; this optimizer is AdamW"):
        ml.load_checkpoint(tmp_path / "c.npz", model, optimizer)
    assert state_of(model, optimizer) == before

    model, optimizer = fresh("adam")
    other = np.random.Generator(np.random.Philox(0))
    before, rng_before = state_of(model, optimizer), str(other.bit_generator.state)
    with pytest.raises(CheckpointError, match="does not fit"):
        ml.load_checkpoint(tmp_path / "c.npz", model, optimizer, other)
    assert state_of(model, optimizer) == before and str(other.bit_generator.state) == rng_before


def test_loading_into_a_merged_model_is_refused(tmp_path):
    model = lora_gpt()
    ml.save_checkpoint(tmp_path / "c.npz", model)
    ml.merge_lora(model)
    before = state_of(model)
    with pytest.raises(CheckpointError, match="unmerge_lora"):
        ml.load_checkpoint(tmp_path / "c.npz", model)
    assert state_of(model) == before
