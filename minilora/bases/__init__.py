"""The two small bases that come with minilora, and the strings to ask one of them.

"strings" knows seven functions of strings (tasks.PRETRAINING), "text" reads English; `python -m
minilora.tools.ship_bases` made them.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import as_file, files

import numpy as np

from ..data import Batch, fixed
from ..gpt import GPT
from ..interop.checkpoint import load_model
from ..tasks import string_batch

Sampler = Callable[[np.random.Generator], Batch]
FOLDER = files("minilora") / "bases"


def load_base(world: str) -> GPT:
    """A copy of the base "strings" or "text"."""
    with as_file(FOLDER / f"{world}.npz") as path:
        return load_model(path)


def string_sampler(tasks: tuple[str, ...], B: int, held_out: bool = False) -> Sampler:
    """generator -> a batch of B examples of these string tasks."""
    return lambda rng: string_batch(tasks, B, rng, held_out)


def held_out_strings(task: str) -> list[Batch]:
    """512 examples that no training ever saw, the same every time."""
    return fixed(string_sampler((task,), 256, held_out=True), 2)
