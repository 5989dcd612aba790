"""§4.1, and what was asked after the paper: how A starts, which factor is zero, α/r against α/√r, LoRA+.

The paper scales by α/r "to reduce the need to retune hyperparameters when we vary r". rsLoRA (Kalajdzievski 2023)
scales by α/√r instead; LoRA+ (Hayou et al. 2024) gives B a higher learning rate than A, which is α/r by another name:
with α times s, the run equals the one whose B has s times the rate and 1/s times the ε.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..bases import string_sampler
from ..lora import LoRAConfig, add_lora, lora_layers
from ..optim import Adam, linear_schedule
from ..texts import BITS
from ..training import DivergedError, evaluate, evaluate_exact_match
from .adaptation import held_out, rate, steps_of
from .alpha_learning_rate import ADAM, best_rates, trained_delta
from .bases import adapt, pretrained, seed_of, text_sampler
from .claim import Claim, Configuration, Experiment, Part, Result, Runs, Settings
from .figures import BLUE, GREEN, ORANGE, band, grouped_points, panels
from .measures import deviation, each, mean, of, percent, relative, select
from .methods import LoRA
from .rules import always_equal, always_within, at_most

TASK, R = "revupper", 8
STARTS = ("A Gaussian", "A Kaiming", "A zero, B Gaussian")
SCALINGS = {"alpha/r": "α/r", "alpha/sqrt(r)": "α/√r"}
RANKS: tuple[int, ...] = (1, 8, 64)
ALPHA = 8.0
RATES = tuple(4e-3 * 2.0**k for k in range(6))
SWEEP_STEPS = 150
PLUS = "A₀, lr of B·s, ε of B/s"


def configurations(settings: Settings) -> list[Configuration]:
    seeds = settings.bases
    ranks, rates, steps, scalings = RANKS, RATES, SWEEP_STEPS, tuple(SCALINGS)
    if settings.quick:
        ranks, rates, steps, scalings = RANKS[::2], RATES[::2], SWEEP_STEPS // 3, scalings[:1]
    starts = {"part": "start", "lr": rate("strings", LoRA("q,v", R)), "steps": steps_of("strings", settings)}
    return [
        {"part": "LoRA+"},
        *({**starts, "base": ["strings", s], "start": start} for s in seeds for start in STARTS),
        *(
            {"part": "scaling", "base": ["text", s], "scaling": scaling, "r": r, "lr": lr, "steps": steps}
            for s in seeds
            for r in ranks
            for scaling in (scalings if r > 1 else ("alpha/r",))  # at r = 1 both are one run
            for lr in rates
        ),
    ]


def run(configuration: Configuration) -> Result:
    if configuration["part"] == "LoRA+":
        return {f"{s:g}": _plus(s) for s in (3.0, 4.0)}
    world, base = configuration["base"]
    model, lr, seed, steps = pretrained(world, base), configuration["lr"], seed_of(base), configuration["steps"]
    if configuration["part"] == "start":
        start = configuration["start"]
        kaiming = start == "A Kaiming"
        config = LoRAConfig(R, 2 * R, init="kaiming" if kaiming else "gaussian")
        parameters = add_lora(model, config, seed=seed)
        if start == "A zero, B Gaussian":
            for layer in lora_layers(model).values():
                layer.lora_B.data[...] = layer.lora_A.data.T  # the same numbers; W₀ is square
                layer.lora_A.data[...] = 0
        adapt(model, Adam(parameters, lr), string_sampler((TASK,), 32), steps, seed, linear_schedule(steps))
        return {"accuracy": evaluate_exact_match(model, held_out(world, TASK))}
    config = LoRAConfig(configuration["r"], ALPHA, scaling=configuration["scaling"])
    parameters = add_lora(model, config, seed=seed)
    try:
        adapt(model, Adam(parameters, lr), text_sampler("code", 16), steps, seed, linear_schedule(steps))
    except DivergedError:
        return {"bits": 10.0}
    return {"bits": min(BITS * evaluate(model, held_out(world, "code")[:4]), 10.0)}


def _plus(s: float) -> float:
    """How far α·s is from LoRA+ with ratio s, as a share of the largest entry of ΔW, after 60 steps of Adam."""
    return relative(trained_delta("adam", s, ADAM[PLUS](s)), trained_delta("adam", s, None))


# ---- what it came to ---------------------------------------------------------------------------------


def accuracy(runs: Runs, start: str) -> list[float]:
    """Of each base."""
    return [r["accuracy"] for _, r in select(runs, part="start", start=start)]


def sweep_of(runs: Runs, scaling: str, r: int) -> tuple[list[float], np.ndarray]:
    """The rates, and the bits of each base at each, (bases, rates)."""
    cells = select(runs, part="scaling", r=r, scaling=scaling if r > 1 else "alpha/r")
    rates = sorted({c["lr"] for c, _ in cells})
    seeds = sorted({c["base"][1] for c, _ in cells})
    of_cell = {(c["base"][1], c["lr"]): result["bits"] for c, result in cells}
    return rates, np.array([[of_cell[s, lr] for lr in rates] for s in seeds])


def best(runs: Runs, scaling: str, r: int) -> np.ndarray:
    """log2 of the best rate of each base."""
    return best_rates(*sweep_of(runs, scaling, r))


def drift(runs: Runs, scaling: str) -> list[float]:
    """Of each base, how many doublings the best rate moves from r = 1 to r = 64."""
    if not select(runs, part="scaling", scaling=scaling):
        return []
    return list(best(runs, scaling, RANKS[-1]) - best(runs, scaling, RANKS[0]))


def apart(runs: Runs, start: str) -> list[float]:
    """Of each base, how far a start's share of answers is from A Gaussian's."""
    return each(lambda a, b: abs(a - b), accuracy(runs, STARTS[0]), accuracy(runs, start))


def scalings_run(runs: Runs) -> list[str]:
    return [scaling for scaling in SCALINGS if drift(runs, scaling)]


def moved_either_way(runs: Runs) -> list[float]:
    return [abs(doublings) for doublings in drift(runs, "alpha/r")]


def gain(runs: Runs) -> list[float]:
    """Of each base, how much lower the best loss is with α/√r, at the largest rank."""
    by_r, by_root = (sweep_of(runs, scaling, RANKS[-1])[1] for scaling in SCALINGS)
    return each(lambda a, b: float(a.min() - b.min()), list(by_r), list(by_root))


def plus_error(runs: Runs, s: str) -> list[float]:
    return [select(runs, part="LoRA+")[0][1][s]]


PARTS = (
    Part(
        "LoRA+ against α·s, largest difference of ΔW, s = 3",
        "exact",
        of(plus_error, "3"),
        rule=always_within(1e-12),
        what="the difference of ΔW between LoRA+ with ratio s and α·s, for s = 3,",
    ),
    Part(
        "LoRA+ against α·s, largest difference of ΔW, s = 4",
        "exact",
        of(plus_error, "4"),
        rule=always_equal(0),
        what="for s = 4 it",
    ),
    *(Part(f"answered, {start}", "strings", of(accuracy, start), "%") for start in STARTS),
    *(
        Part(
            f"{start} apart from {STARTS[0]}",
            "strings",
            of(apart, start),
            "%",
            rule=at_most(0.05),
            what=f"each other start's distance from {STARTS[0]} in answers",
        )
        for start in STARTS[1:]
    ),
    *(
        Part(f"doublings of the best lr from r = 1 to 64, {name}", "text", of(drift, scaling))
        for scaling, name in SCALINGS.items()
    ),
    Part(
        "doublings of the best lr from r = 1 to 64, α/r, either way",
        "text",
        moved_either_way,
        rule=at_most(1),
        what="the move of the best learning rate from r = 1 to r = 64 with α/r, in doublings either way,",
    ),
    Part("best loss at r = 64, α/r minus α/√r", "text", gain, "bits"),
)


def key(runs: Runs) -> str:
    return f"text: rate {mean(drift(runs, 'alpha/r')):+.1f} doublings, r = 1 to 64"


def measured(runs: Runs) -> str:
    steps = select(runs, part="scaling")[0][0]["steps"]
    (three,), (four,) = plus_error(runs, "3"), plus_error(runs, "4")
    answered = ", ".join(f"{start} {percent(accuracy(runs, start))} %" for start in STARTS)
    by_r, root = mean(drift(runs, "alpha/r")), ""
    if moved := drift(runs, "alpha/sqrt(r)"):
        lower = mean(gain(runs))
        root = f", 2^{mean(moved):+.1f} with α/√r (whose best loss at r = 64 is {lower:+.3f} bits lower)"
    return (
        f"starts: {answered}; best lr of {steps} steps from r = 1 to 64 moves by 2^{by_r:+.1f} with α/r{root}; "
        f"LoRA+ is α·s to {three:.0e} for s = 3, {'bit for bit' if four == 0 else format(four, '.0e')} for s = 4"
    )


def spread(runs: Runs) -> str:
    moves = [f"±{deviation(drift(runs, scaling)):.1f}" for scaling in scalings_run(runs)]
    apart = 100 * max(deviation(accuracy(runs, start)) for start in STARTS)
    return f"starts ±{apart:.0f} %; moves {' and '.join(moves)} doublings"


def draw(runs: Runs, figure: Any) -> None:
    scalings = scalings_run(runs)
    count = len(scalings)
    start, *sweeps = panels(figure, 1 + count, 4.5 + 4 * count, 4.2, (0.8, *[1] * count))
    grouped_points(start, list(STARTS), {"": [[100 * a for a in accuracy(runs, s)] for s in STARTS]}, (BLUE,))
    start.set_xticks(range(3), ["A Gaussian\nB zero", "A Kaiming\nB zero", "A zero\nB Gaussian"])
    start.set(ylabel="answered exactly (%)", ylim=(0, 104))
    means = [100 * mean(accuracy(runs, s)) for s in STARTS]
    start.set_title(f"Starts: {max(means) - min(means):.1f} points apart")
    for ax, scaling in zip(sweeps, scalings, strict=True):
        for r, color in zip(RANKS, (BLUE, GREEN, ORANGE), strict=True):
            rates, bits = sweep_of(runs, scaling, r)
            if not rates:  # a quick run leaves a rank out
                continue
            band(ax, rates, bits, color, f"r = {r}", marker="o")
            ax.axvline(2 ** float(np.mean(best(runs, scaling, r))), color=color, linewidth=1, linestyle=":")
        ax.set(
            xscale="log",
            xlabel="learning rate",
            title=f"{SCALINGS[scaling]}: best lr times {2 ** mean(drift(runs, scaling)):.1f}, r 1 → 64",
        )
        ax.set_xticks(RATES, [f"{1000 * lr:.0f}e-3" for lr in RATES])
        ax.minorticks_off()
        ax.legend()
    low = min(r["bits"] for _, r in select(runs, part="scaling"))
    for ax in sweeps:
        ax.set_ylim(low - 0.02, low + 0.45)
    sweeps[0].set_ylabel("held-out code (bits/character)")


CLAIM = Claim(
    id="init_scaling",
    short="No retuning for r, start, LoRA+",
    statement="α/r spares retuning when r changes; how A starts does not matter; LoRA+ is α by another name",
    where="§4.1; after the paper",
    paper="scaling by α/r helps to reduce the need to retune when r varies (no numbers)",
    configurations=configurations,
    experiment=Experiment(run, version=2),
    parts=PARTS,
    key=key,
    measured=measured,
    spread=spread,
    draw=draw,
)
