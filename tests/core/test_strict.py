"""The stand-in for CuPy and the static check: what each must find, that the library has nothing to find, and that
it computes the same numbers there, without a transfer too many."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import batches, ids, lora_gpt, loss, randomize_lora, run_short, snapshot, tiny_gpt
from strict.library import MANIFEST, StrictArray, StrictLibrary, counts, that_numpy_has, use_strict
from strict.static import library_problems, problems

import minilora as ml
from minilora import backend, claims
from minilora.backend import asarray, to_numpy
from minilora.claims.claim import Settings
from minilora.fast import products

pytestmark = pytest.mark.usefixtures("restore_backend")


@pytest.fixture
def strict():
    use_strict()


# ---- what must be found ------------------------------------------------------------------------------

# x (3, 4) and ids (3,) live on the device. Each line is one fault.
FAULTS = {
    "np ufunc": "np.exp(x)",
    "np function": "np.concatenate([x, x])",
    "np reduction": "np.sum(x)",
    "np.asarray": "np.asarray(x)",
    "np.linalg": "np.linalg.norm(x)",
    "math of an array": "math.sqrt(x.sum())",
    "float": "float(x.sum())",
    "int": "int(x.max())",
    "range": "range(ids.max())",
    "built-in max": "max(x.sum(), x.mean())",
    "truth value": "assert x.any()",
    "if": "y = 1 if (x > 0).all() else 2",
    "while": "while x.sum(): pass",
    "not": "y = not x.any()",
    "and": "y = (x > 0).all() and True",
    "in a text": "f'{x.sum():.3f}'",
    "loop": "for row in x: pass",
    "list": "list(x)",
    "host operand": "x + np.ones((3, 4))",
    "host operand in place": "x += np.ones((3, 4))",
    "host array on the left of @": "np.ones((3, 3)) @ x",
    "host array to a ufunc": "xp.add(x, np.ones((3, 4)))",
    "list to a ufunc": "xp.add(x, [1.0, 2.0, 3.0, 4.0])",
    "host index": "x[np.array([0, 1])]",
    "list as an index": "x[[0, 1]]",
    "host value stored": "x[...] = np.ones((3, 4))",
    "list stored": "x[0] = [1.0, 2.0, 3.0, 4.0]",
    "tuple stored": "x[0] = (1.0, 2.0, 3.0, 4.0)",
    "list in place": "x += [1.0, 2.0, 3.0, 4.0]",
    "slice bound on the device": "x[: ids.max()]",
    "id out of range": "x[xp.asarray(np.array([0, 3]))]",
    "id twice in a store": "x[ids] = x[ids] * 2",
    "ufunc where": "xp.add(x, x, where=x > 0)",
    "reduction where": "x.sum(where=x > 0)",
    "reduction initial": "x.max(initial=0.0)",
    "take mode": "xp.take(x, ids, mode='clip')",
    "errstate": "xp.errstate(all='ignore')",
    "einsum_path": "xp.einsum_path('ij,jk', x, x)",
    "svdvals": "xp.linalg.svdvals(x)",
    "Generator normal": "xp.random.default_rng(0).normal(size=3)",
    "random": "xp.random.normal(size=3)",
    "bincount": "xp.bincount(ids)",
    "add.at": "xp.add.at(x, ids, 1.0)",
    "maximum.reduceat": "xp.maximum.reduceat(x, ids)",
    "maximum.reduce": "xp.maximum.reduce(x)",
    "ctypes": "x.ctypes.data",
    "itemset": "x.itemset(0, 1.0)",
    "tostring": "x.tostring()",
    "a scalar's method": "x.sum().is_integer()",
    "a list of device arrays": "xp.asarray([x, x])",
    "text": "xp.asarray(np.array(['a', 'b']))",
    "unknown keyword": "xp.zeros(3, device='cpu')",
}
# Seen only when the line runs: the value decides.
BY_VALUE = {"id out of range", "id twice in a store", "a list of device arrays", "text", "a scalar's method"}


def run(line):
    xp = StrictLibrary()
    x, ids = xp.asarray(np.ones((3, 4))), xp.asarray(np.array([0, 1, 1]))
    exec(line, {"xp": xp, "np": np, "math": math, "x": x, "ids": ids})


@pytest.mark.parametrize("name", FAULTS)
def test_a_line_that_cupy_would_not_like_is_refused_when_it_runs(name):
    with pytest.raises((TypeError, AttributeError, IndexError)):
        run(FAULTS[name])


@pytest.mark.parametrize("name", sorted(FAULTS.keys() - BY_VALUE))
def test_a_line_that_cupy_would_not_like_is_seen_without_running_it(name):
    source = f"def f(rng):\n    x, ids = xp.ones((3, 4)), xp.arange(3)\n    {FAULTS[name]}\n"
    assert [found.split(":")[1] for found in problems(source)].count("3") >= 1


FINE = """
def f(a: Array, host_ids, size: int):
    x = xp.ones((3, 4), dtype=a.dtype)
    ids = asarray(host_ids)
    y = xp.multiply(x, a, out=xp.empty(x.shape, x.dtype))
    y -= y.max(axis=-1, keepdims=True)
    y[:, : size - 1] += x[:, 1:size]
    y[xp.arange(3), ids] -= 1.0
    total = xp.add.reduceat(y[ids], ids, axis=0).sum()
    for part in (x, y):
        part *= 0.5
    number = float(to_numpy(total)) + total.item()
    if x.shape != y.shape or x.ndim > 2 or number > 3:
        return np.zeros(x.shape) + np.sqrt(x.size) + to_numpy(y)
    return sum(p.grad for p in (x, y)), len(x), isinstance(x, xp.ndarray)
"""


def test_what_is_fine_is_left_alone():
    assert problems(FINE) == []
    for line in ("x += x.mean()", "x[1:, ids]", "np.float64(2) * x", "x[xp.arange(3), ids] -= 1", "x.sum().item()"):
        run(line)


def test_the_library_has_no_line_that_cupy_would_not_like():
    assert list(library_problems()) == []


def test_the_manifest_is_what_the_real_cupy_has():
    pytest.importorskip("cupy", reason="CuPy is not installed (it imports without a GPU)", exc_type=ImportError)
    from strict import make_manifest

    if make_manifest.cupy.__version__ != MANIFEST["cupy"]:
        pytest.skip(f"the manifest is of CuPy {MANIFEST['cupy']}, installed is {make_manifest.cupy.__version__}")
    here = json.loads(json.dumps(make_manifest.manifest()))
    assert here == that_numpy_has(MANIFEST)


def test_the_manifest_is_compared_by_the_names_that_this_numpy_has(monkeypatch):
    assert that_numpy_has(MANIFEST)["functions"].keys() >= {"einsum", "concatenate", "take"}
    monkeypatch.delattr(np, "einsum")
    monkeypatch.delattr(np, "exp")
    monkeypatch.delattr(np.linalg, "norm")
    left = that_numpy_has(MANIFEST)
    assert MANIFEST["functions"].keys() - left["functions"].keys() >= {"einsum"}
    assert "exp" not in left["ufuncs"] and "exp" not in left["ufunc_methods"]
    assert "norm" not in left["modules"]["linalg"] and "norm" in MANIFEST["modules"]["linalg"]


# ---- the same numbers --------------------------------------------------------------------------------


def one_of_everything():
    """Forward, backward, Adam, clipping, merging, states and sampling; all results as bytes and numbers."""
    model = lora_gpt(dropout=0.2)
    optimizer = ml.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    value = loss(model)
    value.backward()
    gradients = [to_numpy(p.grad).tobytes() for p in optimizer.params]
    norm = ml.clip_grad_norm(optimizer.params, 0.1).item()
    optimizer.step()
    after = snapshot(model)
    with ml.no_grad():
        unmerged = model.eval()(ids(model)).numpy().tobytes()
        ml.merge_lora(model)
        merged = model(ids(model)).numpy().tobytes()
        ml.unmerge_lora(model)
    model.load_state_dict(model.state_dict())
    optimizer.load_state_dict(optimizer.state_dict())
    sampled = ml.generate(model, [1, 2], 8, seed=3).tolist()
    evaluated = ml.evaluate(model, [(ids(model), ids(model, seed=1))])
    return value.item(), gradients, norm, after, unmerged, merged, sampled, evaluated


def test_the_whole_library_computes_the_same_on_the_stand_in():
    backend.use_backend("numpy")
    expected = one_of_everything()
    use_strict()
    assert isinstance(tiny_gpt().lm_head.weight.data, StrictArray)
    assert one_of_everything() == expected


def test_files_are_the_same_whatever_library_computes(tmp_path):
    backend.use_backend("numpy")
    model = lora_gpt()
    ml.save_checkpoint(tmp_path / "numpy.npz", model)
    ml.save_adapter(model, tmp_path / "numpy")
    use_strict()
    ml.save_checkpoint(tmp_path / "other.npz", lora_gpt())
    ml.save_adapter(lora_gpt(), tmp_path / "other")
    assert (tmp_path / "numpy.npz").read_bytes() == (tmp_path / "other.npz").read_bytes()
    for file in (tmp_path / "numpy").iterdir():
        assert file.read_bytes() == (tmp_path / "other" / file.name).read_bytes()
    again = lora_gpt(seed=4)
    randomize_lora(again, seed=9)
    with pytest.warns(UserWarning, match="another base"):  # which the checkpoint then brings
        ml.load_adapter(again, tmp_path / "numpy")
    ml.load_checkpoint(tmp_path / "numpy.npz", again)
    assert snapshot(again) == snapshot(lora_gpt())


def test_gradients_are_checked_wherever_they_are_computed(strict):
    a, b = np.random.default_rng(0).normal(size=(2, 3, 3))
    assert ml.gradcheck(lambda a, b: (a @ b).max() + ml.functional.gelu(a)[0].sum(), a, asarray(b))


def test_what_is_read_on_the_cpu_may_come_from_the_device(strict):
    """Ids, targets, prompts, indices and weights: fetched on purpose, and checked where they can be."""
    model = tiny_gpt()
    tokens, targets = batches(model)(0)
    there = ml.functional.cross_entropy(model(asarray(tokens)), asarray(targets))
    assert there.item() == loss(model).item()
    with pytest.raises(ValueError, match="outside the vocabulary"):
        model(asarray(tokens + 7))
    assert ml.generate(model, asarray([1, 2]), 4, seed=1).tolist() == ml.generate(model, [1, 2], 4, seed=1).tolist()
    x = ml.Tensor(np.arange(12.0).reshape(3, 4), requires_grad=True)
    x[asarray([2, 0, 2]), 1].sum().backward()
    assert x.grad[:, 1].tolist() == [1, 0, 2]
    with pytest.raises(IndexError, match="out of bounds"):
        x[asarray([3])]
    other = tiny_gpt(seed=1)
    other.load_state_dict({name: p.data for name, p in model.named_parameters()})
    assert snapshot(other) == snapshot(model)


# One configuration of each kind, shrunk; what measures time is left out, since no two runs of it agree.
SHRUNK = {
    "zero_init": lambda c: c["start"] != "first steps",
    "alpha_learning_rate": lambda c: "lr" in c,
    "rank_scaling": lambda c: True,
    "init_scaling": lambda c: "r" not in c,
    "rank": lambda c: c.get("world") == "planted" and c["r"] == 4,
    "which_matrices": lambda c: c["base"][0] == "text",
    "rivals": lambda c: c["method"].startswith("prefix"),
    "low_data": lambda c: c.get("method", "").startswith("lora"),
    "forgetting": lambda c: c["doublings"] == 0 and c["method"] == "full",
    "intrinsic_dimension": lambda c: c["method"].startswith("subset"),
    "intrinsic_rank": lambda c: c["base"][0] == "strings",
    "subspaces": lambda c: "seed" in c,
    "amplification": lambda c: True,
}


@pytest.mark.parametrize("name", SHRUNK)
def test_a_claim_finds_the_same_numbers_on_the_stand_in(name, tiny_bases, monkeypatch):
    claim = claims.find([name])[0]
    configuration = next(c for c in claim.configurations(Settings(1)) if SHRUNK[name](c))
    monkeypatch.setattr(products, "_SMALL_PRODUCT", 0)  # NumPy's products whole too: a cut one rounds otherwise
    backend.use_backend("numpy")
    expected = run_short(claim, configuration)
    tiny_bases()
    use_strict()
    assert run_short(claim, configuration) == expected


# ---- what crosses ------------------------------------------------------------------------------------


def crossings(model, steps, log_every, targets=None):
    """Transfers to the device, to the host, and waits, of some training steps once warm."""
    optimizer = ml.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
    draw = batches(model)
    fixed = [draw(step) for step in range(steps)]
    if targets is not None:
        fixed = [(read, np.where(targets, answers, -100)) for read, answers in fixed]
    losses = ml.batch_loss(model, lambda step: fixed[step])
    counts.reset()
    ml.train(model, optimizer, losses, steps, clip=1.0, log_every=log_every, schedule=ml.linear_schedule(steps))
    return counts.to_device, counts.to_host, counts.waits


def test_a_step_moves_ids_in_and_nothing_out(strict):
    """In: ids and targets; in pretraining also the order in which rows of the embedding add up (order, starts, places).
    Out: the losses of an interval, together. The CPU never waits in between."""
    pretraining = crossings(tiny_gpt(), 12, log_every=4)
    assert pretraining == (12 * 5, 3, 0)
    adapting = crossings(lora_gpt(), 12, log_every=6)
    assert adapting == (12 * 2, 2, 0)


def test_ignored_targets_cost_one_transfer_more_and_dropout_one_for_each_mask(strict):
    some = np.ones((2, 5), bool)
    some[:, :2] = False
    assert crossings(lora_gpt(), 5, 5, targets=some) == (5 * 3, 1, 0)
    assert crossings(lora_gpt(dropout=0.5), 5, 5) == (5 * (2 + 12), 1, 0)  # two layers of six projections


def test_losses_are_fetched_once_for_an_interval_and_a_divergence_still_says_its_step(strict):
    model, calls = tiny_gpt(), []
    optimizer = ml.SGD(model.parameters(), 1e-2)
    losses = ml.batch_loss(model, batches(model))
    history = ml.train(model, optimizer, losses, 10, log_every=4, callback=lambda *call: calls.append(call))
    assert calls == [(done, history["loss"][done - 1]) for done in (4, 8, 10)]
    assert len(history["loss"]) == 10
    bad = ml.Tensor(np.float32(math.nan))
    with pytest.raises(ml.DivergedError, match="the loss became nan at step 5"):
        ml.train(model, optimizer, lambda step: losses(step) * bad if step == 5 else losses(step), 10, log_every=4)


# ---- choosing it -------------------------------------------------------------------------------------


def test_several_gpus_are_taken_in_turn():
    used = []
    fake = SimpleNamespace(
        cuda=SimpleNamespace(
            runtime=SimpleNamespace(getDeviceCount=lambda: 2),
            Device=lambda number: SimpleNamespace(use=lambda: used.append(number)),
        )
    )
    backend.use_array_library(fake, "cupy")
    assert backend.device_count() == 2
    for worker in range(5):
        backend.use_device(worker)
    assert used == [0, 1, 0, 1, 0]
    backend.use_backend("numpy")
    assert backend.device_count() == 1
    backend.use_device(3)
    assert len(used) == 5
