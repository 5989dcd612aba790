"""Warnings of others end no program, though `python -W error` would make them errors."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import minilora

pytestmark = pytest.mark.numpy_only("it is about NumPy's warnings")

PACKAGE = Path(minilora.__file__).parent

# A simulation of NumPy on Apple's Accelerate (numpy#28687): every product, though right, sets floating-point flags.
ACCELERATE = """
import numpy as np

np.show_config = lambda mode: {"Build Dependencies": {"blas": {"name": "accelerate"}}}
right = np.matmul
calls = []

def matmul(*arguments, **settings):
    calls.append(np.geterr()["divide"])
    np.ones(1) / np.zeros(1)
    np.zeros(1) / np.zeros(1)
    np.full(1, 1e308) * 10
    return right(*arguments, **settings)

np.matmul = matmul
import minilora as ml

model = ml.GPT(ml.GPTConfig(11, 40, 64, 2, 4), seed=1)
ids = np.random.default_rng(0).integers(0, 11, (4, 40))
model(ids)
loss = ml.functional.cross_entropy(model(ids), ids)
loss.backward()
trained = ml.add_lora(model, ml.LoRAConfig(2))
ml.train(model, ml.Adam(trained, 1e-2), ml.batch_loss(model, lambda step: (ids, ids)), 2, clip=1.0)
ml.merge_lora(model)
ml.evaluate(model, [(ids, ids)])
ml.generate(model, [1], 3)
print(len(calls), set(calls))
"""


def test_products_on_accelerate_do_not_end_a_program_under_w_error():
    done = subprocess.run([sys.executable, "-W", "error", "-c", ACCELERATE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    count, *said = done.stdout.split()
    assert int(count) > 50 and said == ["{'ignore'}"]


def test_the_simulation_would_end_it():
    """The same without knowing of Accelerate."""
    script = ACCELERATE.replace('"name": "accelerate"', '"name": "other"')
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True)
    assert done.returncode == 1 and "RuntimeWarning: divide by zero" in done.stderr


@pytest.mark.parametrize("name", ["autograd", "functional", "lora", "optim", "analysis"])
def test_whatever_multiplies_matrices_is_marked(name):
    """`@` cannot be simulated, so it is looked for: within a function marked @multiplies, or an @operation, through
    which every kernel and every rule is called."""
    unmarked = []

    def look(node, marked, where):
        for child in ast.iter_child_nodes(node):
            inside, place = marked, where
            if isinstance(child, ast.FunctionDef):
                names = {d.id for d in child.decorator_list if isinstance(d, ast.Name)}
                inside = marked or not names.isdisjoint({"multiplies", "operation"})
                place = child.name
            operator = isinstance(child, ast.BinOp) and isinstance(child.op, ast.MatMult)
            call = isinstance(child, ast.Call) and getattr(child.func, "attr", "") in ("matmul", "vdot", "dot")
            if (operator or call) and not inside and place != "__rmatmul__":  # which is __matmul__ on Tensors
                unmarked.append(place)
            look(child, inside, place)

    look(ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8")), False, name)
    assert not unmarked
