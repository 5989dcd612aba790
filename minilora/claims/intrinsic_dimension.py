"""§1, after Li et al. 2018 and Aghajanyan et al. 2020: "learned over-parametrized models in fact reside on a low
intrinsic dimension", the premise that led to LoRA.

Everything is trained, but only within θ₀ + Pz: a random P of n columns. The smallest n that reaches 90 % of full
fine-tuning is Aghajanyan's d₉₀. LoRA is another small ΔΦ(Θ), drawn at its own count.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from .adaptation import EXPERIMENT, adaptation, quality, steps_of, trained_for
from .claim import Claim, Configuration, Part, Runs, Settings
from .figures import BLUE, GRAY, ORANGE, band, point
from .measures import deviation, each, mean, of, percent, share
from .methods import FULL, LoRA, Method, Subspace
from .rules import at_least

TASK = "revupper"
DIMENSIONS = tuple(4**k for k in range(3, 8))
LORAS = tuple(LoRA("q,v", r) for r in (1, 4, 16))
ASKED = 4096  # the n of the verdict: below 4 % of the parameters


def configurations(settings: Settings) -> list[Configuration]:
    dimensions, loras = (DIMENSIONS[::3], LORAS[:2]) if settings.quick else (DIMENSIONS, LORAS)
    methods, steps = (*map(Subspace, dimensions), *loras, FULL), steps_of("strings", settings)
    return [adaptation("strings", s, TASK, method, steps=steps) for s in settings.bases for method in methods]


def accuracy(runs: Runs, method: Method) -> list[float]:
    """Of each base."""
    return quality(runs, "strings", method, (TASK,), "accuracy")


def share_of_full(runs: Runs, method: Method) -> list[float]:
    return each(share, accuracy(runs, method), accuracy(runs, FULL))


def methods_run(runs: Runs, methods: Iterable[Method]) -> list[Method]:
    return [m for m in methods if accuracy(runs, m)]


def dimensions_run(runs: Runs) -> list[int]:
    return [n for n in DIMENSIONS if accuracy(runs, Subspace(n))]


def d90(runs: Runs) -> int | None:
    """The smallest n whose mean share of full fine-tuning is at least 90 %; None where none is."""
    return next((n for n in dimensions_run(runs) if mean(share_of_full(runs, Subspace(n))) >= 0.9), None)


def trained(runs: Runs, method: Method) -> list[float]:
    """Of each base, how many numbers a method trains."""
    return quality(runs, "strings", method, (TASK,), "trainable")


NAMES = {f"n = {n:,}": Subspace(n) for n in DIMENSIONS} | {m.name: m for m in LORAS}
PARTS = (
    *(
        Part(
            f"share of full fine-tuning, {name}",
            "strings",
            of(share_of_full, method),
            "%",
            rule=at_least(0.9) if method == Subspace(ASKED) else None,
            what=f"what training within {ASKED:,} random directions answers, as a share of full fine-tuning's,",
        )
        for name, method in NAMES.items()
    ),
    *(Part(f"answered, {name}", "strings", of(accuracy, method), "%") for name, method in NAMES.items()),
    Part("answered, full", "strings", of(accuracy, FULL), "%"),
    *(Part(f"trained parameters, {m}", "strings", of(trained, m)) for m in (*LORAS, FULL)),
)


def key(runs: Runs) -> str:
    shares, total = share_of_full(runs, Subspace(ASKED)), trained(runs, FULL)[0]
    return f"{ASKED:,} of {total:,.0f}: {100 * mean(shares):.3g} % of full"


def measured(runs: Runs) -> str:
    shares = {n: share_of_full(runs, Subspace(n)) for n in dimensions_run(runs)}
    reached, total = d90(runs), trained(runs, FULL)[0]
    lora = ", ".join(
        f"{trained(runs, m)[0]:,.0f} (r = {m.size}): {percent(share_of_full(runs, m))}"
        for m in methods_run(runs, LORAS)
    )
    return (
        f"random subspace of n directions, share of full fine-tuning after {trained_for(runs, 'strings')} steps (%): "
        f"{', '.join(f'{n:,}: {percent(s)}' for n, s in shares.items())}; d₉₀ "
        f"{'is not reached' if reached is None else f'≤ {reached:,}'} of {total:,.0f}; LoRA at its parameters {lora}"
    )


def spread(runs: Runs) -> str:
    return f"n = {ASKED:,}: ±{100 * deviation(share_of_full(runs, Subspace(ASKED))):.0f} %"


def draw(runs: Runs, figure: Any) -> None:
    ax = figure.subplots()
    dimensions = dimensions_run(runs)
    values = 100 * np.array([accuracy(runs, Subspace(n)) for n in dimensions]).T
    band(ax, dimensions, values, ORANGE, "random subspace θ₀ + Pz of n directions", marker="o")
    loras = methods_run(runs, LORAS)
    for number, method in enumerate(loras):
        x = trained(runs, method)[0]
        point(
            ax,
            x,
            [100 * a for a in accuracy(runs, method)],
            BLUE,
            "s",
            None if number else f"LoRA on q, v: r = {', '.join(str(m.size) for m in loras)}",
        )
    full = mean(accuracy(runs, FULL))
    total = trained(runs, FULL)[0]
    point(ax, total, [100 * a for a in accuracy(runs, FULL)], GRAY, "D", "full fine-tuning")
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
    short="A few random directions suffice",
    statement="A random subspace of few dimensions is enough to adapt",
    where="§1",
    paper="over-parametrized models reside on a low intrinsic dimension (Aghajanyan et al.: RoBERTa reaches 90 % on "
    "MRPC with about 200 directions)",
    configurations=configurations,
    experiment=EXPERIMENT,
    parts=PARTS,
    key=key,
    measured=measured,
    spread=spread,
    draw=draw,
)
