"""The experiment behind what is said of learning rates: one base, one rate, a short training; and what a sweep says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..bases import string_sampler
from ..lora import LoRAConfig, add_lora
from ..optim import Adam, linear_schedule
from ..texts import BITS
from ..training import DivergedError, evaluate
from .adaptation import held_out
from .bases import adapt, pretrained, seeds, text_sampler
from .claim import Configuration, Experiment, Result, Runs
from .measures import select
from .optimum import Optimum, optimum

NAME = "sweep"
STEPS = 150
ALPHA = 8.0
TASKS = {"strings": "revupper", "text": "code"}
_STEPS_OF_ROOT_2 = range(-3, 4)
_BATCH = {"strings": 32, "text": 8}


def sweep(world: str, base: int, center: float, quick: bool = False, **method: Any) -> list[Configuration]:
    """The runs of one curve: seven rates in steps of √2 around 2^center, or three in steps of 4 for a quick look.

    method: r, alpha and scaling of LoRA on q and v; none of them for full fine-tuning.
    """
    exponents = [center - 2, center, center + 2] if quick else [center + k / 2 for k in _STEPS_OF_ROOT_2]
    return [
        {
            "experiment": NAME,
            "base": [world, base],
            "lr": 2.0**exponent,
            "steps": STEPS // 3 if quick else STEPS,
            **seeds(base),
            **method,
        }
        for exponent in exponents
    ]


def run(configuration: Configuration) -> Result:
    """Held-out bits a character at the end."""
    (world, base), steps, lr = (configuration[name] for name in ("base", "steps", "lr"))
    model, task = pretrained(world, base), TASKS[world]
    parameters = model.parameters()
    if "r" in configuration:
        config = LoRAConfig(configuration["r"], configuration["alpha"], scaling=configuration["scaling"])
        parameters = add_lora(model, config, seed=configuration["adapter_seed"])
    B = _BATCH[world]
    sample = string_sampler((task,), B) if world == "strings" else text_sampler(task, B)
    try:
        adapt(model, Adam(parameters, lr), sample, steps, configuration["data_seed"], linear_schedule(steps))
    except DivergedError:
        return {"bits": 10.0}
    return {"bits": min(BITS * evaluate(model, held_out(world, task)[:4]), 10.0)}


EXPERIMENT = Experiment(run)


def curves(runs: Runs, world: str, **method: Any) -> tuple[list[float], list[list[float]]]:
    """The rates of a sweep, and of each base its bits at them; of full fine-tuning where no method is given."""
    wanted = {"experiment": NAME, **(method or {"r": None})}
    cells = [(c, r) for c, r in select(runs, **wanted) if c["base"][0] == world]
    rates = sorted({c["lr"] for c, _ in cells})
    bases = sorted({c["base"][1] for c, _ in cells})
    of_cell = {(c["base"][1], c["lr"]): r["bits"] for c, r in cells}
    return rates, [[of_cell[base, lr] for lr in rates] for base in bases]


def optima(runs: Runs, world: str, **method: Any) -> list[Optimum]:
    """Of each base, what its sweep says."""
    rates, losses = curves(runs, world, **method)
    return [optimum(rates, of_base) for of_base in losses]


def mean_optimum(runs: Runs, world: str, **method: Any) -> Optimum | None:
    """Of the mean curve over bases; None where it was not run."""
    rates, losses = curves(runs, world, **method)
    return optimum(rates, _mean(losses)) if losses else None


def _mean(losses: Sequence[Sequence[float]]) -> list[float]:
    return [sum(column) / len(column) for column in zip(*losses, strict=True)]
