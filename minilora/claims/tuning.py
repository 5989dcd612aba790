"""`minilora reproduce --tune`: the learning rate of every method and length, chosen where no report looks.

On bases 100 and 101, which no claim uses, each method trains with a rate, half of it and twice it; while the best of
them is an end, the next beyond it is added; then √2 to either side of the best. What counts is the mean over both bases
of the loss on held-out batches, drawn with another seed than the reports'; of few examples, where that is not what is
judged, of the odds of an answer. A length's search starts at the best rate of the ordinary length, in steps of √2.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..interop.files import write_text
from .adaptation import LONG, RATES_FILE, STEPS, TASKS, adaptation, setting
from .claim import Configuration, Result
from .measures import log_odds, mean
from .methods import BITFIT, FULL, LAST_BLOCK, Adapter, LoRA, Method, Prefix, Prompt, Subset, Subspace
from .optimum import PLATEAU

BASES, EVALUATION_SEED = (100, 101), 2**30
FEWEST, MOST = 2.0**-14, 2.0**2  # no search goes beyond these rates
# Where the search of a kind of method starts.
_STARTS = {"full": 2**-8, "last-block": 2**-7, "bitfit": 2**-4, "prompt": 2**-5, "prefix": 2**-2, "subset": 2**-6}
_ELSE = 2**-6
_PAIRS = ("q,k", "q,o", "k,v", "k,o", "v,o")
_PLACES = (
    *(LoRA(one, 8) for one in "qkvo"), *(LoRA(pair, 4) for pair in _PAIRS), LoRA("q,k,v,o", 2), LoRA("all", 1),
    LoRA("in,out", 2),
)  # fmt: skip
_RIVALS = (LAST_BLOCK, BITFIT, Prompt(8), Prefix(8), Adapter("h", 4), Adapter("l", 6))
_RANKS = (LoRA("q,v", 1), LoRA("q,v", 4), LoRA("q,v", 64))
_LONG = (FULL, *_RANKS, LoRA("all", 1), LoRA("all", 64), BITFIT, Prefix(8), Adapter("h", 4))
# (world, steps, examples) -> the methods that some claim trains so; the ordinary lengths first.
METHODS: dict[tuple[str, int, int | None], Sequence[Method]] = {
    ("strings", STEPS["strings"], None): (
        FULL, *_RIVALS, *_PLACES, *(LoRA("q,v", r) for r in (1, 2, 4, 8, 16, 32, 64)), LoRA("q", 1), LoRA("q", 64),
        LoRA("all", 64), *(kind(4**k) for kind in (Subspace, Subset) for k in (4, 5, 6, 7)),
    ),
    ("text", STEPS["text"], None): (
        FULL, *_RIVALS, *_PLACES, *(LoRA("q,v", r) for r in (1, 4, 8, 32, 64)), LoRA("all", 64),
        *(Prefix(P) for P in (16, 32, 48)), *(kind(4**k) for kind in (Subspace, Subset) for k in (5, 6, 7)),
    ),
    **{("strings", STEPS["strings"], n): (FULL, LoRA("q,v", 4)) for n in (16, 64, 256, 1024)},
    ("strings", 100, None): (FULL, *_RANKS),
    ("text", 100, None): (FULL, *_RANKS),
    ("strings", LONG["strings"], None): _LONG,
    ("text", LONG["text"], None): _LONG,
    ("strings", 3000, None): (FULL, LoRA("q,v", 1)),
}  # fmt: skip
Runs = Sequence[tuple[Configuration, Result]]
Curve = dict[float, float]  # rate -> mean loss over both bases


def beyond(runs: Runs) -> list[Configuration]:
    """The runs that the search wants next, after those that were made; none once it is over."""
    found, more = curves(runs), []
    for (world, steps, examples), methods in METHODS.items():
        for method in methods:
            curve = found.get((setting(world, steps, examples), method.name), {})
            ordinary = found.get((setting(world, STEPS[world]), method.name), {})
            for lr in _wanted(curve, method, ordinary if (steps, examples) != (STEPS[world], None) else None):
                more += [_try(world, base, method, lr, steps, examples) for base in BASES]
    return more


def _try(world: str, base: int, method: Method, lr: float, steps: int, examples: int | None) -> Configuration:
    few = {} if examples is None else {"examples": examples}
    return adaptation(world, base, TASKS[world], method, lr=lr, steps=steps, evaluation_seed=EVALUATION_SEED, **few)


def _wanted(curve: Curve, method: Method, ordinary: Curve | None) -> list[float]:
    """The rates that a curve lacks: around its start, beyond its end, or √2 to either side of its best."""
    if ordinary is not None and (not ordinary or _wanted(ordinary, method, None)):
        return []  # its start is not known yet
    start = _STARTS.get(method.kind, _ELSE) if ordinary is None else best(ordinary)
    step = 2.0 if ordinary is None else math.sqrt(2)
    if not curve:
        return [_rounded(lr) for lr in (start / step, start, start * step)]
    at = best(curve)
    for end, next_one in ((max(curve), at * step), (min(curve), at / step)):
        if at == end and FEWEST <= next_one <= MOST:
            return [_rounded(next_one)]
    return [lr for lr in (_rounded(at / math.sqrt(2)), _rounded(at * math.sqrt(2))) if lr not in curve]


def _rounded(lr: float) -> float:
    """The same number by whatever way a search came to it: a power of √2, to eight digits."""
    return float(f"{2 ** (round(2 * math.log2(lr)) / 2):.8g}")


def best(curve: Curve) -> float:
    """The rate of the lowest loss, the lower of two equal ones."""
    return min(sorted(curve), key=lambda lr: curve[lr])


def curves(runs: Runs) -> dict[tuple[str, str], Curve]:
    """(setting, method) -> rate -> the mean loss over the bases."""
    losses: dict[tuple[str, str], dict[float, list[float]]] = {}
    for c, result in runs:
        of = (setting(c["base"][0], c["steps"], c.get("examples")), c["method"])
        loss = -log_odds(result["accuracy"]) if "examples" in c else result["bits"]
        losses.setdefault(of, {}).setdefault(c["lr"], []).append(loss)
    return {of: {lr: mean(bits) for lr, bits in tried.items()} for of, tried in losses.items()}


def rates_file() -> Path:
    """The file that the claims read their learning rates from."""
    return Path(str(RATES_FILE))


def write_rates(runs: Runs) -> Path:
    """Write the chosen rates to the file that the claims read, and return its place."""
    path, found = rates_file(), curves(runs)
    rates: dict[str, dict[str, float]] = {}
    ends, flat = [], {}
    for (world, steps, examples), methods in METHODS.items():
        name = setting(world, steps, examples)
        for method in methods:
            if curve := found.get((name, method.name)):
                rates.setdefault(name, {})[method.name] = at = best(curve)
                if at in (min(curve), max(curve)):
                    ends.append(f"{name}: {method.name}")
                within = [lr for lr, loss in curve.items() if loss <= curve[at] + PLATEAU]
                flat[f"{name}: {method.name}"] = [min(within), max(within)]
    content: dict[str, Any] = {
        "made_by": f"minilora {__version__}, minilora reproduce --tune",
        "chosen_on": f"bases {' and '.join(map(str, BASES))} of each world, which no claim reports; the lowest mean "
        f"loss on held-out batches of seed {EVALUATION_SEED}; in steps of √2 around the best",
        "tasks": TASKS,
        "runs": len(runs),
        "optimum_at_an_end_of_its_grid": ends,
        "rates": rates,
        "within_0.02_bits_of_the_best": flat,
    }
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return path
