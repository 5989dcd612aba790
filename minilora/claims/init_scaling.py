"""§4.1, and what was asked after the paper: how A starts, which factor is zero, α/r against α/√r, LoRA+.

The paper scales by α/r "to reduce the need to retune hyperparameters when we vary r". rsLoRA (Kalajdzievski 2023)
scales by α/√r instead; LoRA+ (Hayou et al. 2024) gives B a higher learning rate than A, which is α/r by another name:
with α times s, the run equals the one whose B has s times the rate and 1/s times the ε.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..lora import LoRAConfig, add_lora, lora_layers
from ..optim import Adam, linear_schedule
from ..training import DivergedError, evaluate, evaluate_exact_match
from .adaptation import STEPS, held_out, rate
from .alpha_learning_rate import ADAM, best_rates, trained_delta
from .bases import adapt, load_base, seed_of, string_draw, text_draw
from .claim import (
    BITS,
    FAILS,
    HOLDS,
    Claim,
    Configuration,
    Experiment,
    Measurement,
    Outcome,
    Result,
    Runs,
    Settings,
    at_least,
    deviation,
    mean,
    percent,
    select,
    worst,
)
from .figures import BLUE, GREEN, ORANGE, band, grouped_points

TASK, R = "revupper", 8
STARTS = ("A Gaussian", "A Kaiming", "A zero, B Gaussian")
SCALINGS = {"alpha/r": "α/r", "alpha/sqrt(r)": "α/√r"}
RANKS = (1, 8, 64)
ALPHA = 8.0
RATES = tuple(4e-3 * 2.0**k for k in range(6))
SWEEP_STEPS = 150
PLUS = "A₀, lr of B·s, ε of B/s"


def configurations(settings: Settings) -> list[Configuration]:
    seeds = settings.bases
    rates, steps = (RATES[::2], SWEEP_STEPS // 3) if settings.quick else (RATES, SWEEP_STEPS)
    return [
        {"part": "LoRA+"},
        *(
            {"part": "start", "base": ["strings", s], "start": start, "lr": rate("strings", f"lora q,v {R}")}
            for s in seeds
            for start in STARTS
        ),
        *(
            {"part": "scaling", "base": ["text", s], "scaling": scaling, "r": r, "lr": lr, "steps": steps}
            for s in seeds
            for r in RANKS
            for scaling in (SCALINGS if r > 1 else ("alpha/r",))  # at r = 1 both are one run
            for lr in rates
        ),
    ]


def run(configuration: Configuration) -> Result:
    if configuration["part"] == "LoRA+":
        return {f"{s:g}": _plus(s) for s in (3.0, 4.0)}
    world, base = configuration["base"]
    model, lr, seed = load_base(world, base), configuration["lr"], seed_of(base)
    if configuration["part"] == "start":
        start = configuration["start"]
        kaiming = start == "A Kaiming"
        config = LoRAConfig(R, 2 * R, init="kaiming" if kaiming else "gaussian")
        parameters = add_lora(model, config, seed=seed)
        if start == "A zero, B Gaussian":
            for layer in lora_layers(model).values():
                layer.lora_B.data[...] = layer.lora_A.data.T  # the same numbers; W₀ is square
                layer.lora_A.data[...] = 0
        steps = STEPS[world]
        adapt(model, Adam(parameters, lr), string_draw((TASK,), 32), steps, seed, linear_schedule(steps))
        return {"accuracy": evaluate_exact_match(model, held_out(world, TASK))}
    config = LoRAConfig(configuration["r"], ALPHA, scaling=configuration["scaling"])
    parameters, steps = add_lora(model, config, seed=seed), configuration["steps"]
    try:
        adapt(model, Adam(parameters, lr), text_draw("code", 16), steps, seed, linear_schedule(steps))
    except DivergedError:
        return {"bits": 10.0}
    return {"bits": min(BITS * evaluate(model, held_out(world, "code")[:4]), 10.0)}


def _plus(s: float) -> float:
    """How far α·s is from LoRA+ with ratio s, as a share of the largest entry of ΔW, after 60 steps of Adam."""
    wanted, got = trained_delta("adam", s, None), trained_delta("adam", s, ADAM[PLUS](s))
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


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
    return list(best(runs, scaling, RANKS[-1]) - best(runs, scaling, RANKS[0]))


def conclude(runs: Runs) -> Outcome:
    identity = select(runs, part="LoRA+")[0][1]
    exact = identity["3"] <= 1e-12 and identity["4"] == 0
    answered = {start: accuracy(runs, start) for start in STARTS}
    gaussian = answered[STARTS[0]]
    apart = {start: [abs(a - b) for a, b in zip(gaussian, answered[start], strict=True)] for start in STARTS[1:]}
    moved = {scaling: drift(runs, scaling) for scaling in SCALINGS}
    gain = [float(a.min() - b.min()) for a, b in zip(*(sweep_of(runs, s, RANKS[-1])[1] for s in SCALINGS), strict=True)]
    verdicts = {
        "exact": HOLDS if exact else FAILS,
        "strings": worst([at_least([0.05 - x for x in values], 0) for values in apart.values()]),
        "text": at_least([1 - abs(x) for x in moved["alpha/r"]], 0),
    }
    steps = select(runs, part="scaling")[0][0]["steps"]
    return Outcome(
        f"starts: {', '.join(f'{start} {100 * mean(a):.0f} %' for start, a in answered.items())}; best lr of "
        f"{steps} steps from r = 1 to 64 moves by 2^{mean(moved['alpha/r']):+.1f} with α/r, "
        f"2^{mean(moved['alpha/sqrt(r)']):+.1f} with α/√r (whose best loss at r = 64 is {mean(gain):+.3f} bits lower); "
        f"LoRA+ is α·s to {identity['3']:.0e} for s = 3, "
        f"{'bit for bit' if identity['4'] == 0 else format(identity['4'], '.0e')} for s = 4",
        f"starts ±{100 * max(map(deviation, answered.values())):.0f} %; moves "
        f"±{deviation(moved['alpha/r']):.1f} and ±{deviation(moved['alpha/sqrt(r)']):.1f} doublings",
        worst(list(verdicts.values())),
        key=f"best rate moves 2^{mean(moved['alpha/r']):+.1f}, r = 1 to 64",
        verdicts=verdicts,
        measurements=[
            Measurement("LoRA+ against α·s, largest difference of ΔW, s = 3", "exact", [identity["3"]]),
            Measurement("LoRA+ against α·s, largest difference of ΔW, s = 4", "exact", [identity["4"]]),
            *(percent(f"answered, {start}", "strings", values) for start, values in answered.items()),
            *(percent(f"{start} apart from {STARTS[0]}", "strings", values) for start, values in apart.items()),
            *(
                Measurement(f"doublings of the best lr from r = 1 to 64, {SCALINGS[scaling]}", "text", values)
                for scaling, values in moved.items()
            ),
            Measurement("best loss at r = 64, α/r minus α/√r", "text", gain, "bits"),
        ],
    )


def draw(runs: Runs, figure: Any) -> None:
    figure.set_size_inches(12.5, 4.2)
    panels = figure.subplots(1, 3, width_ratios=(0.8, 1, 1))
    start, *sweeps = panels
    grouped_points(start, list(STARTS), {"": [[100 * a for a in accuracy(runs, s)] for s in STARTS]}, (BLUE,))
    start.set_xticks(range(3), ["A Gaussian\nB zero", "A Kaiming\nB zero", "A zero\nB Gaussian"])
    start.set(ylabel="answered exactly (%)", ylim=(0, 104))
    means = [100 * mean(accuracy(runs, s)) for s in STARTS]
    start.set_title(f"Starts: {max(means) - min(means):.1f} points apart")
    for ax, (scaling, name) in zip(sweeps, SCALINGS.items(), strict=True):
        for r, color in zip(RANKS, (BLUE, GREEN, ORANGE), strict=True):
            rates, bits = sweep_of(runs, scaling, r)
            band(ax, rates, bits, color, f"r = {r}", marker="o")
            ax.axvline(2 ** float(np.mean(best(runs, scaling, r))), color=color, linewidth=1, linestyle=":")
        ax.set(
            xscale="log",
            xlabel="learning rate",
            title=f"{name}: best lr times {2 ** mean(drift(runs, scaling)):.1f}, r 1 → 64",
        )
        ax.set_xticks(RATES, [f"{1000 * lr:.0f}e-3" for lr in RATES])
        ax.minorticks_off()
        ax.legend()
    low = min(sweep_of(runs, s, r)[1].min() for s in SCALINGS for r in RANKS)
    for ax in sweeps:
        ax.set_ylim(low - 0.02, low + 0.45)
    sweeps[0].set_ylabel("held-out code (bits/character)")


CLAIM = Claim(
    id="init_scaling",
    short="No retuning for r, start or LoRA+",
    statement="α/r spares retuning when r changes; how A starts does not matter; LoRA+ is α by another name",
    where="§4.1; after the paper",
    paper="scaling by α/r helps to reduce the need to retune when r varies (no numbers)",
    rule=(
        "holds if LoRA+ with ratio s gives the ΔW of α·s to 1e-12 for s = 3 and bit for bit for s = 4; and, by two "
        "standard errors over bases, each other start is within 5 points of A Gaussian on strings, and the best "
        "learning rate with α/r moves by less than a factor of 2 between r = 1 and r = 64 on text"
    ),
    exact=False,
    configurations=configurations,
    experiment=Experiment(run, version=2),
    conclude=conclude,
    draw=draw,
)
