"""§7.1, Table 5: "adapting both W_q and W_v gives the best performance overall", under one parameter budget.

Every choice trains 2,048 parameters (the MLP's 1,920). Three string tasks take the roles apart: `pairs` only moves
letters, so it is a matter of where to read; `prev` only changes them, a matter of what is written; `revupper` is both.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .adaptation import EXPERIMENT, STEPS, adaptation, quality
from .claim import (
    Claim,
    Configuration,
    Measurement,
    Outcome,
    Runs,
    Settings,
    at_least,
    deviation,
    mean,
    percent,
    worst,
)
from .figures import BLUE, GRAY, GREEN, ORANGE, PURPLE, RED, grouped_points, point

CHOICES = {  # what is adapted -> method, and the paper's WikiSQL accuracy at 18M (±0.5)
    "q": ("lora q 8", 70.4),
    "k": ("lora k 8", 70.0),
    "v": ("lora v 8", 73.0),
    "o": ("lora o 8", 73.2),
    "q, k": ("lora q,k 4", 71.4),
    "q, v": ("lora q,v 4", 73.7),
    "q, k, v, o": ("lora q,k,v,o 2", 73.7),
    "MLP in": ("lora in 3", None),
}
TASKS = {"pairs": "where to read", "prev": "what to write", "revupper": "both"}
ALONE = ("q", "k", "v", "o")


def configurations(settings: Settings) -> list[Configuration]:
    seeds, choices = settings.bases, tuple(CHOICES)
    on_strings, on_text = tuple(TASKS), choices
    if settings.quick:
        on_strings, on_text = ("prev",), (*ALONE, "q, v")
    return [
        *(adaptation("strings", s, task, CHOICES[c][0]) for s in seeds for task in on_strings for c in choices),
        *(adaptation("text", s, "code", CHOICES[c][0]) for s in seeds for c in on_text),
    ]


def accuracy(runs: Runs, choice: str, tasks: tuple[str, ...] = tuple(TASKS)) -> list[float]:
    """Of each base on strings, the mean over tasks."""
    return quality(runs, "strings", CHOICES[choice][0], tasks, "accuracy")


def tasks_run(runs: Runs) -> list[str]:
    return [task for task in TASKS if accuracy(runs, "q", (task,))]


def bits(runs: Runs, choice: str) -> list[float]:
    """Of each base on code; none where a quick run leaves the choice out."""
    return quality(runs, "text", CHOICES[choice][0], ("code",), "bits")


def lead(runs: Runs, choice: str) -> list[float]:
    """Of each base on strings, how much more q, v answer than a choice, as a share of 1."""
    return [a - b for a, b in zip(accuracy(runs, "q, v"), accuracy(runs, choice), strict=True)]


def lead_on_text(runs: Runs, choice: str) -> list[float]:
    """Of each base, how many bits q, v lose less than a choice."""
    return [b - a for a, b in zip(bits(runs, "q, v"), bits(runs, choice), strict=True)]


def measurements(runs: Runs) -> list[Measurement]:
    return [
        *(percent(f"answered, {choice}", "strings", accuracy(runs, choice)) for choice in CHOICES),
        *(percent(f"lead of q, v over {choice}", "strings", lead(runs, choice)) for choice in ALONE),
        *(Measurement(f"loss, {choice}", "text", b, "bits") for choice in CHOICES if (b := bits(runs, choice))),
        *(Measurement(f"lead of q, v over {choice}", "text", lead_on_text(runs, choice), "bits") for choice in ALONE),
    ]


def conclude(runs: Runs) -> Outcome:
    both = accuracy(runs, "q, v")
    ahead = {choice: lead(runs, choice) for choice in ALONE}
    best = min(ALONE, key=lambda choice: mean(ahead[choice]))  # of the single matrices
    on_text = {choice: mean(b) for choice in CHOICES if (b := bits(runs, choice))}
    order = sorted(on_text, key=lambda choice: on_text[choice])
    verdicts = {
        "strings": worst([at_least(values, 0) for values in ahead.values()]),
        "text": worst([at_least(lead_on_text(runs, choice), 0) for choice in ALONE]),  # shown beside the rule
    }
    shown = ", ".join(f"{choice} {100 * mean(accuracy(runs, choice)):.0f}" for choice in CHOICES)
    return Outcome(
        f"strings, mean of {len(tasks_run(runs))} tasks after {STEPS['strings']} steps (%): {shown}; text: best "
        f"{order[0]} ({on_text[order[0]]:.2f} "
        f"bits), q, v {on_text['q, v']:.2f}, worst {order[-1]} ({on_text[order[-1]]:.2f}) ({verdicts['text']} there)",
        f"q, v ±{100 * deviation(both):.0f} %, its lead over the best single matrix "
        f"±{100 * deviation(ahead[best]):.0f} %",
        verdicts["strings"],
        key=f"q, v answer {100 * mean(both):.0f} %, {best} alone {100 * mean(accuracy(runs, best)):.0f} %",
        verdicts=verdicts,
        measurements=measurements(runs),
    )


def draw(runs: Runs, figure: Any) -> None:
    figure.set_size_inches(12.5, 4.4)
    left, right = figure.subplots(1, 2, width_ratios=(1.7, 1))
    present = tasks_run(runs)
    grouped_points(
        left,
        list(CHOICES),
        {
            f"{task}: {TASKS[task]}": [[100 * a for a in accuracy(runs, choice, (task,))] for choice in CHOICES]
            for task in present
        },
        (BLUE, ORANGE, GREEN),
    )
    left.set(ylabel="answered exactly (%)", ylim=(-4, 128), yticks=range(0, 101, 20))
    where, what = (
        max(mean(accuracy(runs, choice, ("prev",))) for choice in pair) for pair in (("q", "k", "q, k"), ("v", "o"))
    )
    left.set_title(f"To write anew takes v or o: prev {100 * what:.0f} % with one of them, {100 * where:.0f} % without")
    left.legend(loc="upper left", ncols=3)
    for x, (_, paper) in enumerate(CHOICES.values()):
        left.text(x, 106, "" if paper is None else f"{paper:.1f}", ha="center", fontsize=8, color=GRAY)
    left.text(-0.5, 112.5, "paper, WikiSQL:", fontsize=8, color=GRAY, ha="left")
    on_text = {choice: b for choice in CHOICES if (b := bits(runs, choice))}
    for x, choice in enumerate(CHOICES):
        if choice in on_text:
            point(right, x, on_text[choice], PURPLE, "o")
    right.set(ylabel="held-out code (bits/character), range over bases", xlim=(-0.6, len(CHOICES) - 0.4))
    best = min(on_text, key=lambda choice: mean(on_text[choice]))
    right.axhline(mean(bits(runs, "q, v")), color=RED, linewidth=1, linestyle=":", label="q, v")
    right.set_title(f"Text: {best} is best (lower is better)")
    right.legend()
    for ax in (left, right):
        ax.set_xticks(np.arange(len(CHOICES)), [c.replace(", ", ",").replace("MLP in", "MLP\nin") for c in CHOICES])
        ax.set_xlabel("adapted, 2,048 parameters each")


CLAIM = Claim(
    id="which_matrices",
    short="q and v together beat any one matrix",
    statement="Under one budget, adapting q and v together beats any one matrix",
    where="§7.1, Table 5",
    paper="WikiSQL at 18M: q 70.4, k 70.0, v 73.0, o 73.2, q,k 71.4, q,v 73.7, all four 73.7 (±0.5)",
    rule=(
        "holds if on string tasks q, v at r = 4 answers more, in the mean over three tasks, than each of q, k, v and o "
        "alone at r = 8, by two standard errors of the paired differences over bases; text, where loss is compared in "
        "the same way, is shown beside it"
    ),
    exact=False,
    configurations=configurations,
    experiment=EXPERIMENT,
    conclude=conclude,
    draw=draw,
)
