"""Every kernel of the engine room against the operation that it replaces: results, gradients, whole training runs."""

import re
import subprocess
import sys
import threading
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from helpers import lora_gpt, tiny_gpt
from hypothesis import given
from hypothesis import strategies as st
from operations import OPERATIONS

import minilora as ml
from minilora import fast
from minilora import functional as F
from minilora.autograd import FASTER
from minilora.backend import asarray, to_numpy
from minilora.llama import rms_norm, swiglu

CORE = Path(ml.__file__).parent
ELEVEN = (
    "autograd", "functional", "gradient_check", "nn", "gpt", "optim", "lora", "data", "tasks", "training", "generate",
)  # fmt: skip


def run(fn, inputs, wanted):
    """The result, and the gradients of a weighted sum of it; `wanted` says which inputs require one."""
    tensors = [ml.Tensor(asarray(x), requires_grad=w) for x, w in zip(inputs, wanted, strict=True)]
    y = fn(*tensors)
    if any(wanted):
        (y * asarray(np.random.default_rng(0).normal(size=y.shape))).sum().backward()
    return y.numpy(), [None if t.grad is None else to_numpy(t.grad) for t in tensors]


@pytest.mark.parametrize("name", OPERATIONS)
@given(data=st.data())
def test_an_operation_gives_what_the_textbook_says(name, data):
    fn, inputs = data.draw(OPERATIONS[name])
    wanted = data.draw(st.tuples(*[st.booleans()] * len(inputs)))
    result, gradients = run(fn, inputs, wanted)
    with ml.textbook():
        expected, expected_gradients = run(fn, inputs, wanted)
    np.testing.assert_allclose(result, expected, rtol=1e-10, atol=1e-11)
    for a, b, w in zip(gradients, expected_gradients, wanted, strict=True):
        assert (a is not None) == (b is not None) == w
        if w:
            assert a.shape == b.shape
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-11)


def test_no_kernel_is_left_out(monkeypatch):
    """Each is called by the operation of its name in the table above; the walk and Adam in the runs below."""
    called = Counter()
    for name, kernel in fast.KERNELS.items():
        monkeypatch.setitem(
            FASTER, name, lambda *a, _name=name, _kernel=kernel, **k: called.update([_name]) or _kernel(*a, **k)
        )
    names = {name.removeprefix("Tensor."): name for name in fast.KERNELS}
    assert names.keys() - OPERATIONS.keys() == {"walk", "adam"}
    rng = np.random.default_rng(0)
    x, w = ml.Tensor(rng.normal(size=(2, 3)), requires_grad=True), ml.Tensor(rng.normal(size=(4, 3)))
    q, b = ml.Tensor(rng.normal(size=(1, 1, 2, 3))), ml.Tensor(np.zeros(3))
    y = (F.linear(x, w).sum() + F.softmax(F.gelu(x)) * x)[0] + F.layer_norm(x, b, b) + F.embedding(w, [[0], [1]])
    (y.sum() + F.cross_entropy(x, [0, 1]) + F.causal_attention(q, q, q).sum()).backward()
    rms_norm(swiglu(x, x), b)
    losses(lora_gpt(dtype="float64"), 1)
    assert called.keys() == fast.KERNELS.keys()


@pytest.mark.parametrize("method", ["full", "lora", "lora with dropout"])
def test_twenty_steps_are_the_same_in_the_textbook_and_in_the_engine_room(method):
    def model():
        if method == "full":
            return tiny_gpt(dtype="float64")
        return lora_gpt(dtype="float64", dropout=0.1 if "dropout" in method else 0.0)

    quick = losses(model(), 20)
    with ml.textbook():
        np.testing.assert_allclose(losses(model(), 20), quick, rtol=1e-10)
    assert quick[-1] != quick[0]


def losses(model, steps):
    def batches(step):
        rows = np.random.default_rng(step % 2).integers(0, model.config.vocab_size, (4, 7))
        return rows[:, :-1], rows[:, 1:]

    trained = [p for p in model.parameters() if p.requires_grad]
    return ml.train(model, ml.AdamW(trained, 1e-2), ml.batch_loss(model, batches), steps, clip=1.0)["loss"]


def test_a_graph_of_kernels_may_be_walked_by_the_textbook_and_the_other_way_round():
    def loss(x):
        return (F.gelu(F.layer_norm(x, x[0], x[1])) * x).sum()

    gradients = []
    for recorded, walked in ((False, False), (False, True), (True, False), (True, True)):
        x = ml.Tensor(np.random.default_rng(0).normal(size=(3, 4)), requires_grad=True)
        with ml.textbook() if recorded else nullcontext():
            y = loss(x)
        with ml.textbook() if walked else nullcontext():
            y.backward()
        gradients.append(to_numpy(x.grad))
    for gradient in gradients[1:]:
        np.testing.assert_allclose(gradient, gradients[0], rtol=1e-12)


def test_the_textbook_is_for_this_thread_and_ends_with_an_exception():
    seen = []
    with pytest.raises(KeyError), ml.textbook():
        with ml.textbook():
            pass
        assert fast.is_textbook()
        thread = threading.Thread(target=lambda: seen.append(fast.is_textbook()))
        thread.start()
        thread.join()
        raise KeyError
    assert seen == [False] and not fast.is_textbook()


def test_a_variable_makes_a_whole_command_read_from_the_textbook(monkeypatch):
    for value, said in (("1", "textbook"), ("0", "kernels"), ("", "kernels")):
        monkeypatch.setenv("MINILORA_TEXTBOOK", value)
        done = subprocess.run([sys.executable, "-m", "minilora", "info"], capture_output=True, text=True, check=True)
        assert re.search(rf"operations +{said}", done.stdout), done.stdout


# ---- the core never mentions its guest ---------------------------------------------------------------


@pytest.mark.parametrize("name", ELEVEN)
def test_the_core_is_formulas(name):
    """No file of the eleven computes into memory given to it, or imports what does; none is long."""
    source = (CORE / f"{name}.py").read_text(encoding="utf-8")
    assert not re.findall(r"\bout=|\bempty\(|einsum|\bfast\b", source)
    assert len(source.splitlines()) <= {"functional": 170}.get(name, 300)


def test_the_eleven_files_are_an_evening():
    assert sum(len((CORE / f"{name}.py").read_text(encoding="utf-8").splitlines()) for name in ELEVEN) <= 1700
