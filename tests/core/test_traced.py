"""Whatever traces, debugs, profiles or covers the process, and whenever it does: the same numbers, bit for bit."""

import ast
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import minilora as ml

pytestmark = pytest.mark.numpy_only("it is about the blocks of memory that only NumPy's arrays look at")

SCRIPT = str(Path(__file__).parents[1] / "traced.py")


def printed(*command, **environment):
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env={**os.environ, **environment}, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return next(line for line in done.stdout.splitlines() if line.startswith("['0x"))


@pytest.fixture(scope="module")
def untraced():
    return printed(SCRIPT, "never")


@pytest.mark.parametrize("look", ["", "locals"])
@pytest.mark.parametrize("how", ["settrace", "setprofile"])
@pytest.mark.parametrize("when", ["import", "later", "always", "thread"])
def test_a_tracer_changes_no_number(untraced, when, how, look):
    assert printed(SCRIPT, when, how, look) == untraced


@pytest.mark.parametrize("core", ["pytrace", "ctrace"])
def test_coverage_changes_no_number(untraced, core, tmp_path):
    pytest.importorskip("coverage", reason="coverage is not installed")
    command = ["-m", "coverage", "run", f"--data-file={tmp_path / 'data'}", SCRIPT]
    assert printed(*command, COVERAGE_CORE=core) == untraced


@pytest.mark.parametrize(
    "module", [["cProfile"], ["profile"], ["pdb", "-c", "continue", "-c", "quit"]], ids=lambda m: m[0]
)
def test_profilers_and_the_debugger_change_no_number(untraced, module):
    assert printed("-m", *module, SCRIPT) == untraced


def test_a_debugger_that_stops_in_every_operation_changes_no_number(untraced, tmp_path):
    """pdb reads f_locals at every stop."""
    names = ("linear", "gelu", "layer_norm", "causal_attention")
    stops = [f"tbreak {Path(ml.__file__).with_name('functional.py')}:{line_of(name)}" for name in names]
    steps = ["continue", "p len(locals())", "up", "p len(locals())"] * len(names)
    commands = [word for command in (*stops, *steps, "continue", "quit") for word in ("-c", command)]
    assert printed("-m", "pdb", *commands, SCRIPT) == untraced


def line_of(name):
    """The first line within a function of minilora.functional, after its docstring."""
    function = ast.parse(inspect.getsource(getattr(ml.functional, name))).body[0]
    return getattr(ml.functional, name).__code__.co_firstlineno + function.body[1].lineno - 1
