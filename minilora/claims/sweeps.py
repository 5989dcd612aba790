"""The experiment behind what is said of learning rates: one base, one rate, a short training; and what a sweep says."""

from __future__ import annotations

import math
from typing import Any

from ..lora import LoRAConfig, add_lora
from ..optim import Adam, linear_schedule
from ..texts import BITS
from ..training import DivergedError, evaluate
from .adaptation import TASKS, WORST, held_out, sampler
from .bases import adapt, pretrained, seeds
from .claim import Configuration, Experiment, Result, Runs
from .measures import mean, select
from .optimum import Optimum, optimum

NAME = "sweep"
STEPS = 150
ALPHA = 8.0
_STEPS_OF_ROOT_2 = range(-3, 4)


def lora(r: int, alpha: float = ALPHA, scaling: str = "alpha/r") -> dict[str, Any]:
    """LoRA on q and v."""
    return {"r": r, "alpha": alpha, "scaling": scaling}


def sweep(world: str, base: int, center: float, quick: bool = False, **method: Any) -> list[Configuration]:
    """The runs of one curve: seven rates in steps of √2 around 2^center, or three in steps of 4 for a quick look.

    method: that of `lora`; nothing for full fine-tuning.
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
    optimizer, sample = Adam(parameters, lr), sampler(world, task)
    try:
        adapt(model, optimizer, sample, steps, configuration["data_seed"], linear_schedule(steps))
    except DivergedError:
        return {"bits": WORST}
    return {"bits": min(BITS * evaluate(model, held_out(world, task)[:4]), WORST)}


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


def best_rates(runs: Runs, world: str, **method: Any) -> list[float]:
    """Of each base, log₂ of its best rate."""
    return [math.log2(o.best) for o in optima(runs, world, **method)]


def mean_optimum(runs: Runs, world: str, **method: Any) -> Optimum | None:
    """Of the mean curve over bases; None where it was not run."""
    rates, losses = curves(runs, world, **method)
    return optimum(rates, [mean(column) for column in zip(*losses, strict=True)]) if losses else None
