"""Plant one wrong sign, factor or axis at a time in the core and its kernels, and see whether the suite catches it.

    python tests/stress/planted_faults.py [--workers 2] [--only NUMBER ...]      # two minutes on two cores

Each fault goes into a copy of the package in a folder of its own, where the tests of the core run until the first one
fails. Prints a line a fault; exits 1 where one was not caught, or where its place is no longer in the source.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = (
    "fast", "autograd", "autograd_tape", "functional", "optim", "lora", "gpt", "training", "generate", "gradient_check",
)  # fmt: skip

# (file of minilora/, what stands there, what is planted): the first of its kind in the file
FAULTS = [
    ("autograd.py", "(a, lambda g: g * y), (b, lambda g: g * x)", "(a, lambda g: g * x), (b, lambda g: g * y)"),
    ("autograd.py", "g * (p * x ** (p - 1))", "g * (p * x ** (p + 1))"),
    ("autograd.py", "lambda g: x.swapaxes(-1, -2) @ g", "lambda g: x.swapaxes(-1, -2) @ -g"),
    ("autograd.py", "winners.sum(axis=axis, keepdims=True)", "winners.sum(axis=axis, keepdims=True) ** 2"),
    ("autograd.py", "arrived[parent] + part if parent in arrived", "arrived[parent] - part if parent in arrived"),
    ("autograd.py", "total * (total.size / self.size)", "total * (self.size / max(1, total.size))"),
    ("autograd.py", "[place.index(axis) for axis in range(self.ndim)]", "place"),
    ("autograd.py", "return_index=True", "return_inverse=True"),
    ("functional.py", "g * (1 - y * y)", "g * (1 + y * y)"),
    ("functional.py", "g / (2 * y)", "g / y"),
    ("functional.py", "(1 + 3 * k * a**2)", "(1 + 2 * k * a**2)"),
    ("functional.py", "y * (g - (g * y).sum(axis=-1, keepdims=True))", "y * (g - (g * y).sum(axis=0, keepdims=True))"),
    ("functional.py", "g - xp.exp(y) * g.sum(axis=-1, keepdims=True)", "g - y * g.sum(axis=-1, keepdims=True)"),
    ("functional.py", "1 / len(places)", "1 / len(targets)"),
    ("functional.py", "- x_hat * (h * x_hat).mean(axis=-1, keepdims=True)", "- (h * x_hat).mean(axis=-1, keepdims=True)"),  # noqa: E501
    ("functional.py", "1 + S - T", "S - T"),
    ("functional.py", "(1 / math.sqrt(d))", "(1 / d)"),
    ("functional.py", "/ (1 - p)", "/ p"),
    ("optim.py", "v / (1 - beta2**t)", "v / (1 - beta2)"),
    ("optim.py", "1 - group[\"lr\"] * group[\"weight_decay\"]", "1 + group[\"lr\"] * group[\"weight_decay\"]"),
    ("lora.py", "+ s * F.linear", "- s * F.linear"),
    ("fast/elementwise.py", "square *= 6 * k", "square *= 3 * k"),
    ("fast/elementwise.py", "(b, lambda g: elementwise(xp.multiply, g, x))", "(b, lambda g: elementwise(xp.multiply, g, y))"),  # noqa: E501
    ("fast/layers.py", "xp.einsum(\"md,md->m\", h, x_hat)[:, None] / D", "xp.einsum(\"md,md->m\", h, x_hat)[:, None]"),
    ("fast/layers.py", "h -= h @ _column(1 / D, D, h.dtype)", "h += h @ _column(1 / D, D, h.dtype)"),
    ("fast/layers.py", "d[xp.arange(count), target] -= scale", "d[xp.arange(count), target] += scale"),
    ("fast/layers.py", "scale = g / divisor", "scale = g"),
    ("fast/layers.py", "lambda g: matmul_over_rows(_rows(g), rows)", "lambda g: matmul_over_rows(_rows(g), -rows)"),
    ("fast/attention.py", "ds -= correlation[..., chunk]", "ds += correlation[..., chunk]"),
    ("fast/attention.py", "positions[:, None] <= positions", "positions[:, None] < positions + 2"),
    ("fast/attention.py", "(ds.swapaxes(-1, -2), keys[:, :, seen]", "(ds.swapaxes(-1, -2), -keys[:, :, seen]"),
    ("fast/scatter.py", "ids[1:] != ids[:-1]", "ids[1:] == ids[:-1]"),
    ("fast/lora.py", "        dz *= scaling\n", ""),
    ("fast/lora.py", "dx += dropped_dx", "dx -= dropped_dx"),
    ("fast/optim.py", "correction / (1 - beta1**t)", "correction / (1 + beta1**t)"),
    ("fast/walk.py", "arrived[parent] += part", "arrived[parent] -= part"),
]  # fmt: skip


def caught(number: int) -> tuple[int, str]:
    """Number of a fault, and what the first failing test was; "" where none failed."""
    file, right, wrong = FAULTS[number]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("minilora", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        path = copy / "minilora" / file
        source = path.read_text(encoding="utf-8")
        if right not in source:
            return number, f"GONE: {right!r} is no longer in {file}"
        path.write_text(source.replace(right, wrong, 1), encoding="utf-8")
        tests = [f"tests/core/test_{name}.py" for name in TESTS]
        environment = {**os.environ, "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"}
        environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-p",
            "no:cacheprovider",
            "-m",
            "not slow and not stress",
            *tests,
        ]
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
        failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        if done.returncode == 1 and failed:
            return number, failed[0].split(" - ")[0]
        return (
            number,
            "" if done.returncode == 0 else f"GONE: the tests did not run: {done.stdout[-300:]}{done.stderr[-300:]}",
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--only", type=int, nargs="+", help="numbers of faults")
    options = parser.parse_args()
    numbers = options.only or range(len(FAULTS))
    missed = 0
    with ThreadPoolExecutor(options.workers) as executor:
        for number, said in executor.map(caught, numbers):
            file, right, wrong = FAULTS[number]
            missed += not said or said.startswith("GONE")
            print(
                f"{number:>2} {file:<20} {right.strip()[:40]!r} -> {wrong.strip()[:40]!r}: {said or 'NOT CAUGHT'}",
                flush=True,
            )
    print(f"{len(numbers) - missed} of {len(numbers)} caught.")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
