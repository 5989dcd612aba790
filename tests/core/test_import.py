"""`import minilora` is light, silent and changes nothing."""

import json
import os
import subprocess
import sys

import pytest

import minilora as ml

SCRIPT = """
import json, sys, threading, warnings
import numpy as np
from threadpoolctl import threadpool_info
state = lambda: (
    [(pool["user_api"], pool["num_threads"]) for pool in threadpool_info()], np.geterr(), threading.active_count(),
    len(warnings.filters), str(np.random.get_state()), np.get_printoptions(),
)
before = state()
modules = set(sys.modules)
import minilora
assert repr(state()) == repr(before), (state(), before)
print(json.dumps(sorted({name.split(".")[0] for name in set(sys.modules) - modules})))
"""


def run(code, **environment):
    clean = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, env={**clean, **environment}
    )


def test_importing_loads_nothing_heavy_prints_nothing_and_leaves_blas_alone():
    done = run(SCRIPT)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" and done.stdout.count("\n") == 1
    loaded = json.loads(done.stdout)
    heavy = {
        "matplotlib",
        "safetensors",
        "tqdm",
        "filelock",
        "cupy",
        "torch",
        "platformdirs",
        "scipy",
        "multiprocessing",
    }
    assert "minilora" in loaded and not heavy & set(loaded)


def test_the_core_runs_without_the_packages_that_only_files_and_figures_need():
    """As in a browser: a model with LoRA trains, though none of them can be imported."""
    code = """
import sys
for name in ("matplotlib", "safetensors", "tqdm", "filelock", "platformdirs", "cupy"):
    sys.modules[name] = None
import minilora as ml
model = ml.GPT(ml.GPTConfig(5, 4, 4, 1, 1))
optimizer = ml.Adam(ml.add_lora(model, ml.LoRAConfig(1)), lr=0.1)
ml.train(model, optimizer, ml.batch_loss(model, lambda step: ([[1, 2]], [[2, 3]])), 2)
print(ml.generate(model, [1], 3).shape)
"""
    done = run(code)
    assert (done.stdout, done.stderr) == ("(4,)\n", "")


def test_every_public_name_is_there_and_no_other():
    assert all(getattr(ml, name) is not None for name in ml.__all__)
    assert len(set(ml.__all__)) == len(ml.__all__)
    with pytest.raises(AttributeError, match="minilora has no 'lora_everything'"):
        ml.lora_everything  # noqa: B018


@pytest.mark.parametrize("environment", [{"MINILORA_TUNE": "0"}, {"OMP_NUM_THREADS": "2"}, {}], ids=str)
def test_tuning_limits_blas_to_one_thread_once_unless_told_otherwise(environment):
    code = """
import minilora as ml, numpy
from minilora.machine import blas_threads
print(blas_threads(), ml.tune_machine(), blas_threads())
print(ml.tune_machine())
"""
    done = run(code, **environment)
    assert done.stderr == ""
    first, second = done.stdout.splitlines()
    before, after = int(first.split()[0]), int(first.split()[-1])
    changed = not environment and before > 1
    assert first == f"{before} { ({'blas_threads': (before, 1)} if changed else {}) } {1 if changed else before}"
    assert second == "{}" and after == (1 if changed else before)


def test_threadpoolctl_s_warnings_stop_nothing():
    """It warns where two OpenMP libraries are loaded, which nobody who asks for BLAS can change."""
    code = """
import warnings
import threadpoolctl
def warning(real):
    def call(*args, **kwargs):
        warnings.warn("Found Intel OpenMP and LLVM OpenMP loaded at the same time.", RuntimeWarning)
        return real(*args, **kwargs)
    return call
threadpoolctl.threadpool_info = warning(threadpoolctl.threadpool_info)
threadpoolctl.threadpool_limits = warning(threadpoolctl.threadpool_limits)
import minilora as ml
from minilora.machine import blas_name, blas_threads
ml.tune_machine()
print(blas_name() != "none found", blas_threads() >= 1)
"""
    done = run(code)
    assert (done.stdout, done.stderr) == ("True True\n", "")
