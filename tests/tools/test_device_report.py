"""`--backend cupy`: what every command says where there is no GPU, and the report for whoever has one."""

import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from strict.library import use_strict

from minilora import backend
from minilora.fast import products
from minilora.tools import device_report
from minilora.tools.cli import main

SMALL = ((16, 1, 2, 4),)
COMMANDS = {
    "reproduce": ["--quick"],
    "show": ["rank"],
    "pretrain": ["--out", "base.npz"],
    "adapt": ["--base", "strings", "--task", "prev", "--out", "adapter"],
    "generate": ["--base", "strings", "--prompt", "a"],
    "merge": ["--base", "strings", "--adapter", "adapter", "--out", "merged.npz"],
    "budget": ["--preset", "gpt3-175b"],
    "info": [],
}


@pytest.fixture
def without_gpu(monkeypatch, tmp_path, request):
    """CuPy as it is without a driver: it imports, and says that it is not available."""
    if request.config.getoption("--backend") == "cupy":
        pytest.skip("this run has a GPU")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MINILORA_BACKEND", raising=False)
    silent = SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: False))
    monkeypatch.setitem(sys.modules, "cupy", silent)
    return tmp_path


def refused(arguments, capsys):
    status, said = main(arguments), capsys.readouterr()
    assert status == 2 and said.out == "" and said.err.count("\n") == 1 and said.err.count(". ") == 0
    return said.err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_in_one_sentence_what_is_missing(command, without_gpu, capsys, monkeypatch, restore_backend):
    said = refused([command, *COMMANDS[command], "--backend", "cupy"], capsys)
    assert "needs an NVIDIA GPU with a working CUDA driver" in said and "run on a machine that has one" in said
    monkeypatch.setitem(sys.modules, "cupy", None)
    said = refused([command, *COMMANDS[command], "--backend", "cupy"], capsys)
    assert "CuPy, which is not installed: pip install cupy-cuda13x" in said
    assert list(without_gpu.iterdir()) == []


def test_the_variable_chooses_too_and_the_option_has_the_last_word(without_gpu, capsys, monkeypatch, restore_backend):
    monkeypatch.setenv("MINILORA_BACKEND", "cupy")
    backend.use_array_library(None, "none")  # as when the program starts
    assert "needs an NVIDIA GPU" in refused(["info"], capsys)
    assert main(["info", "--backend", "numpy"]) == 0
    assert re.search(r"backend +numpy", capsys.readouterr().out)


def test_an_unknown_backend_is_refused(without_gpu, capsys, restore_backend):
    assert "not 'jax'" in refused(["info", "--backend", "jax"], capsys)


@pytest.mark.numpy_only("the report compares another library with NumPy")
def test_the_report_finds_nothing_wrong_with_a_library_that_computes_as_numpy_does(restore_backend, monkeypatch):
    monkeypatch.setattr(products, "_SMALL_PRODUCT", 0)  # NumPy's products whole too: a cut one rounds otherwise
    use_strict()
    text = device_report.device_report(SMALL)
    assert backend.backend_name() == "strict"
    assert "64 MB there and back unchanged" in text and "8 of 8 right" in text
    assert text.count("losses 0.0e+00 from NumPy's (within") == 2
    assert len(re.findall(r"\| 16, 1, 2, 4 \| (?:full|LoRA) \| [\d.]+ \| [\d.]+ \| [\d.]+ \|", text)) == 2


def test_the_report_says_what_is_wrong(monkeypatch):
    right = device_report.F.gelu
    monkeypatch.setattr(device_report.F, "gelu", lambda x: right(x) + x.detach() * x)  # whose derivative is not x
    text = device_report.gradients()
    assert text.startswith("WRONG: gelu: Input 0") and "softmax" not in text
    losses = iter([np.array([1.0, 2.0]), np.array([1.0, 2.5])])
    monkeypatch.setattr(device_report, "_losses", lambda dtype: next(losses))
    assert device_report.training_apart("float32") == pytest.approx(0.2)


@pytest.mark.gpu
def test_the_gpu_computes_what_the_cpu_does():
    text = device_report.device_report()
    print(text)
    assert "unchanged" in text and "WRONG" not in text and "BEYOND" not in text
