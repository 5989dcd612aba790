"""`minilora reproduce --tune`: the learning rate of every method, chosen where no report looks.

On base 100, which no claim uses, each method trains with each rate of one grid, on two string tasks and on code; the
rate with the lowest mean loss on held-out batches, drawn with another seed than the report's, is written down. Where
that is an end of the grid, the grid is extended beyond it, since a better rate may lie there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..interop.files import write_text
from .adaptation import RATES_FILE, adaptation
from .claim import Configuration, Result
from .methods import BITFIT, FULL, LAST_BLOCK, Adapter, LoRA, Prefix, Prompt, Subspace

BASE, EVALUATION_SEED = 100, 2**30
GRID = tuple(2e-3 * 2**k for k in range(9))
TASKS = {"strings": ("pairs", "revupper"), "text": ("code",)}
_EVERYWHERE = (
    FULL, LAST_BLOCK, BITFIT, Prompt(8), Prefix(8), Adapter("h", 4), Adapter("h", 16), Adapter("l", 16),
    *(LoRA(one, 8) for one in "qkvo"), LoRA("q,k", 4), LoRA("q,v", 4), LoRA("q,k,v,o", 2), LoRA("in", 3),
    *(LoRA("q,v", r) for r in (1, 8, 32, 64)),
)  # fmt: skip
_ON_STRINGS = (Prefix(2), LoRA("q,v", 2), LoRA("q,v", 16), *(Subspace(4**k) for k in range(3, 8)))
METHODS = {
    "strings": [method.name for method in (*_EVERYWHERE, *_ON_STRINGS)],
    "text": [method.name for method in (*_EVERYWHERE, LoRA("all", 16))],
}


def configurations() -> list[Configuration]:
    """Every run of the grid."""
    return [
        c for world, methods in METHODS.items() for method in methods for lr in GRID for c in _tries(world, method, lr)
    ]


def _tries(world: str, method: str, lr: float) -> list[Configuration]:
    return [adaptation(world, BASE, task, method, lr=lr, evaluation_seed=EVALUATION_SEED) for task in TASKS[world]]


def beyond(runs: Sequence[tuple[Configuration, Result]]) -> list[Configuration]:
    """The runs to add where the best rate of a method is the lowest or the highest that it tried."""
    tried: dict[tuple[str, str], set[float]] = {}
    for c, _ in runs:
        tried.setdefault((c["base"][0], c["method"]), set()).add(c["lr"])
    more = []
    for world, rates in best_rates(runs).items():
        for method, best in rates.items():
            if best == max(tried[world, method]):
                more += _tries(world, method, 2 * best)
            elif best == min(tried[world, method]):
                more += _tries(world, method, best / 2)
    return more


def best_rates(runs: Sequence[tuple[Configuration, Result]]) -> dict[str, dict[str, float]]:
    """World -> method -> the rate whose mean loss over the tasks is lowest; the lower of two equal ones."""
    total: dict[tuple[str, str, float], float] = {}
    for c, result in runs:
        cell = (c["base"][0], c["method"], c["lr"])
        total[cell] = total.get(cell, 0.0) + result["bits"]
    rates: dict[str, dict[str, float]] = {}
    for world, method, lr in sorted(total, key=lambda cell: (total[cell], cell[2])):
        rates.setdefault(world, {}).setdefault(method, lr)
    return {world: {m: rates[world][m] for m in METHODS[world] if m in rates[world]} for world in rates}


def rates_file() -> Path:
    """The file that the claims read their learning rates from."""
    return Path(str(RATES_FILE))


def write_rates(runs: Sequence[tuple[Configuration, Result]]) -> Path:
    """Write the chosen rates to the file that the claims read, and return its place."""
    path = rates_file()
    content: dict[str, Any] = {
        "made_by": f"minilora {__version__}, minilora reproduce --tune",
        "chosen_on": f"base {BASE} of each world, which no claim reports; the lowest mean loss on held-out batches "
        f"of seed {EVALUATION_SEED}, over the tasks",
        "grid": GRID,
        "beyond": "where the best rate was an end of the grid, doubled or halved until it was not",
        "tasks": TASKS,
        "rates": best_rates(runs),
    }
    write_text(path, json.dumps(content, indent=2) + "\n")
    return path
