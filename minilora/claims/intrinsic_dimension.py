"""§1, after Li et al. 2018 and Aghajanyan et al. 2020: "learned over-parametrized models in fact reside on a low
intrinsic dimension", the premise that led to LoRA.

Everything is trained, but only within θ₀ + Pz: a random P of n columns. The smallest n that reaches 90 % of full
fine-tuning is Aghajanyan's d₉₀. LoRA is another small ΔΦ(Θ), drawn at its own count.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .adaptation import EXPERIMENT, STEPS, adaptation, quality
from .claim import Claim, Configuration, Measurement, Outcome, Runs, Settings, at_least, deviation, mean, percent
from .figures import BLUE, GRAY, ORANGE, band, point

TASK = "revupper"
DIMENSIONS = tuple(4**k for k in range(3, 8))
LORAS = ("lora q,v 1", "lora q,v 4", "lora q,v 16")
ASKED = 4096  # the n of the verdict: below 4 % of the parameters


def configurations(settings: Settings) -> list[Configuration]:
    methods = (*(f"subspace {n}" for n in DIMENSIONS), *LORAS, "full")
    return [adaptation("strings", s, TASK, method) for s in settings.bases for method in methods]


def accuracy(runs: Runs, method: str) -> list[float]:
    """Of each base."""
    return quality(runs, "strings", method, (TASK,), "accuracy")


def share_of_full(runs: Runs, method: str) -> list[float]:
    return [a / f if f else math.nan for a, f in zip(accuracy(runs, method), accuracy(runs, "full"), strict=True)]


def d90(runs: Runs) -> int | None:
    """The smallest n whose mean share of full fine-tuning is at least 90 %; None where none is."""
    return next((n for n in DIMENSIONS if mean(share_of_full(runs, f"subspace {n}")) >= 0.9), None)


def trained(runs: Runs, method: str) -> list[float]:
    """Of each base, how many numbers a method trains."""
    return quality(runs, "strings", method, (TASK,), "trainable")


def measurements(runs: Runs) -> list[Measurement]:
    methods = {f"n = {n:,}": f"subspace {n}" for n in DIMENSIONS} | {m: m for m in LORAS}
    return [
        *(
            percent(f"share of full fine-tuning, {name}", "strings", share_of_full(runs, m))
            for name, m in methods.items()
        ),
        *(percent(f"answered, {name}", "strings", accuracy(runs, m)) for name, m in methods.items()),
        percent("answered, full", "strings", accuracy(runs, "full")),
        *(Measurement(f"trained parameters, {m}", "strings", trained(runs, m)) for m in (*LORAS, "full")),
    ]


def conclude(runs: Runs) -> Outcome:
    shares = {n: share_of_full(runs, f"subspace {n}") for n in DIMENSIONS}
    reached, total = d90(runs), trained(runs, "full")[0]
    verdict = at_least(shares[ASKED], 0.9)
    lora = ", ".join(
        f"{trained(runs, m)[0]:,.0f} (r = {m.split()[-1]}): {100 * mean(share_of_full(runs, m)):.0f}" for m in LORAS
    )
    return Outcome(
        f"random subspace of n directions, share of full fine-tuning after {STEPS['strings']} steps (%): "
        f"{', '.join(f'{n:,}: {100 * mean(s):.0f}' for n, s in shares.items())}; d₉₀ "
        f"{'is not reached' if reached is None else f'≤ {reached:,}'} of {total:,.0f}; LoRA at its parameters {lora}",
        f"n = {ASKED:,}: ±{100 * deviation(shares[ASKED]):.0f} %",
        verdict,
        key=f"{ASKED:,} answer {100 * mean(accuracy(runs, f'subspace {ASKED}')):.0f} %, "
        f"full {100 * mean(accuracy(runs, 'full')):.0f} %",
        verdicts={"strings": verdict},
        measurements=measurements(runs),
    )


def draw(runs: Runs, figure: Any) -> None:
    ax = figure.subplots()
    values = 100 * np.array([accuracy(runs, f"subspace {n}") for n in DIMENSIONS]).T
    band(ax, DIMENSIONS, values, ORANGE, "random subspace θ₀ + Pz of n directions", marker="o")
    for number, method in enumerate(LORAS):
        x = trained(runs, method)[0]
        point(
            ax,
            x,
            [100 * a for a in accuracy(runs, method)],
            BLUE,
            "s",
            None if number else "LoRA on q, v: r = 1, 4, 16",
        )
    full = mean(accuracy(runs, "full"))
    total = trained(runs, "full")[0]
    point(ax, total, [100 * a for a in accuracy(runs, "full")], GRAY, "D", "full fine-tuning")
    ax.axhline(90 * full, color=GRAY, linestyle=":", label="90 % of full")
    reached = d90(runs)
    ax.set(xscale="log", xlabel="trained numbers", ylabel="answered exactly (%)", ylim=(-4, 104))
    ax.set_title(
        "Random directions: "
        + (
            "90 % of full is not reached"
            if reached is None
            else f"90 % of full needs at most {reached:,} of {total:,.0f}"
        )
    )
    ax.legend(loc="upper left")


CLAIM = Claim(
    id="intrinsic_dimension",
    short="A few random directions are enough",
    statement="A random subspace of few dimensions is enough to adapt",
    where="§1",
    paper="over-parametrized models reside on a low intrinsic dimension (Aghajanyan et al.: RoBERTa reaches 90 % on "
    "MRPC with about 200 directions)",
    rule=(
        f"holds if training within {ASKED:,} random directions reaches 0.9 of full fine-tuning's accuracy on a string "
        "task, by two standard errors over bases"
    ),
    exact=False,
    configurations=configurations,
    experiment=EXPERIMENT,
    conclude=conclude,
    draw=draw,
)
