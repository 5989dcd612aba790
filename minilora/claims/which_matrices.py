"""§7.1, Table 5: "adapting both W_q and W_v gives the best performance overall", under one parameter budget.

Every choice trains 2,048 parameters (the MLP's 1,920). Three string tasks take the roles apart: `pairs` only moves
letters, so it is a matter of where to read; `prev` only changes them, a matter of what is written; `revupper` is both.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from .adaptation import EXPERIMENT, adaptation, quality, steps_of, trained_for
from .claim import Claim, Configuration, Part, Runs, Settings
from .figures import BLUE, GRAY, GREEN, ORANGE, PURPLE, RED, grouped_points, panels, point
from .measures import deviation, each, mean, of, percent
from .methods import LoRA
from .rules import at_least

CHOICES = {  # what is adapted -> method, and the paper's WikiSQL accuracy at 18M (±0.5)
    "q": (LoRA("q", 8), 70.4),
    "k": (LoRA("k", 8), 70.0),
    "v": (LoRA("v", 8), 73.0),
    "o": (LoRA("o", 8), 73.2),
    "q, k": (LoRA("q,k", 4), 71.4),
    "q, v": (LoRA("q,v", 4), 73.7),
    "q, k, v, o": (LoRA("q,k,v,o", 2), 73.7),
    "MLP in": (LoRA("in", 3), None),
}
TASKS = {"pairs": "where to read", "prev": "what to write", "revupper": "both"}
ALONE = ("q", "k", "v", "o")


def configurations(settings: Settings) -> list[Configuration]:
    seeds = settings.bases
    if settings.quick:
        steps, few = steps_of("strings", settings), ("q", "v", "q, v")
        return [adaptation("strings", s, "revupper", CHOICES[c][0], steps=steps) for s in seeds for c in few]
    return [
        *(adaptation("strings", s, task, CHOICES[c][0]) for s in seeds for task in TASKS for c in CHOICES),
        *(adaptation("text", s, "code", CHOICES[c][0]) for s in seeds for c in CHOICES),
    ]


def accuracy(runs: Runs, choice: str, tasks: tuple[str, ...] = tuple(TASKS)) -> list[float]:
    """Of each base on strings, the mean over tasks."""
    return quality(runs, "strings", CHOICES[choice][0], tasks, "accuracy")


def tasks_run(runs: Runs) -> list[str]:
    return [task for task in TASKS if accuracy(runs, "q", (task,))]


def bits(runs: Runs, choice: str) -> list[float]:
    """Of each base on code."""
    return quality(runs, "text", CHOICES[choice][0], ("code",), "bits")


def lead(runs: Runs, choice: str) -> list[float]:
    """Of each base on strings, how much more q, v answer than a choice, as a share of 1."""
    return each(operator.sub, accuracy(runs, "q, v"), accuracy(runs, choice))


def lead_on_text(runs: Runs, choice: str) -> list[float]:
    """Of each base, how many bits q, v lose less than a choice."""
    return each(operator.sub, bits(runs, choice), bits(runs, "q, v"))


PARTS = (
    *(Part(f"answered, {choice}", "strings", of(accuracy, choice), "%") for choice in CHOICES),
    *(
        Part(
            f"lead of q, v over {choice}",
            "strings",
            of(lead, choice),
            "%",
            rule=at_least(0),
            what="the lead of q, v (r = 4) over each of q, k, v and o alone (r = 8), mean of three tasks,",
        )
        for choice in ALONE
    ),
    *(Part(f"loss, {choice}", "text", of(bits, choice), "bits") for choice in CHOICES),
    *(
        Part(
            f"lead of q, v over {choice}",
            "text",
            of(lead_on_text, choice),
            "bits",
            rule=at_least(0),
            what="the same lead in loss",
            beside=True,
        )
        for choice in ALONE
    ),
)


def chosen(runs: Runs, measure: Callable[[Runs, str], list[float]]) -> dict[str, float]:
    """The mean over bases of each choice that was run."""
    return {choice: mean(values) for choice in CHOICES if (values := measure(runs, choice))}


def best_alone(runs: Runs) -> str:
    """The single matrix that q, v lead by least."""
    leads = {choice: mean(values) for choice in ALONE if (values := lead(runs, choice))}
    return min(leads, key=lambda choice: leads[choice])


def key(runs: Runs) -> str:
    both, best = accuracy(runs, "q, v"), best_alone(runs)
    said = f"q, v {percent(both)} %, {best} {percent(accuracy(runs, best))} %"
    if leads := {choice: mean(lead) for choice in ALONE if (lead := lead_on_text(runs, choice))}:
        closest = min(leads, key=lambda choice: leads[choice])
        said += f"; text{' too,' if leads[closest] > 0 else f': {closest}'} by {abs(leads[closest]):.2f} bits"
    return said


def measured(runs: Runs) -> str:
    shown = ", ".join(f"{choice} {100 * answered:.0f}" for choice, answered in chosen(runs, accuracy).items())
    tasks, steps = len(tasks_run(runs)), trained_for(runs, "strings")
    said = f"strings, mean of {tasks} task{'s' if tasks > 1 else ''} after {steps} steps (%): {shown}"
    if on_text := chosen(runs, bits):
        order = sorted(on_text, key=lambda choice: on_text[choice])
        said += (
            f"; text: best {order[0]} ({on_text[order[0]]:.2f} bits), q, v {on_text['q, v']:.2f}, worst {order[-1]} "
            f"({on_text[order[-1]]:.2f})"
        )
    return said


def spread(runs: Runs) -> str:
    return (
        f"q, v ±{100 * deviation(accuracy(runs, 'q, v')):.0f} %, its lead over the best single matrix "
        f"±{100 * deviation(lead(runs, best_alone(runs))):.0f} %"
    )


def draw(runs: Runs, figure: Any) -> None:
    choices, on_text = list(chosen(runs, accuracy)), chosen(runs, bits)
    left, *right = panels(figure, 2, 12.5, 4.4, (1.7, 1)) if on_text else panels(figure, 1, 7.5, 4.4)
    grouped_points(
        left,
        choices,
        {
            f"{task}: {TASKS[task]}": [[100 * a for a in accuracy(runs, choice, (task,))] for choice in choices]
            for task in tasks_run(runs)
        },
        (BLUE, ORANGE, GREEN),
    )
    left.set(ylabel="answered exactly (%)", ylim=(-4, 128), yticks=range(0, 101, 20))
    if "prev" in tasks_run(runs):
        where, what = (
            max(mean(accuracy(runs, choice, ("prev",))) for choice in of_kind)
            for of_kind in (("q", "k", "q, k"), ("v", "o"))
        )
        said = (
            f"To write anew takes more than q and k: prev {100 * what:.0f} % with v or o, {100 * where:.0f} % with q, k"
        )
    else:
        said = key(runs)
    left.set_title(said)
    left.legend(loc="upper left", ncols=3)
    for x, choice in enumerate(choices):
        paper = CHOICES[choice][1]
        left.text(x, 106, "" if paper is None else f"{paper:.1f}", ha="center", fontsize=8, color=GRAY)
    left.text(0.01, 112.5, "paper, WikiSQL:", fontsize=8, color=GRAY, transform=left.get_yaxis_transform())
    for ax in right:
        for x, choice in enumerate(on_text):
            point(ax, x, bits(runs, choice), PURPLE, "o")
        ax.set(ylabel="held-out code (bits/character), range over bases", xlim=(-0.6, len(on_text) - 0.4))
        ax.axhline(on_text["q, v"], color=RED, linewidth=1, linestyle=":", label="q, v")
        ax.set_title(f"Text: {min(on_text, key=lambda choice: on_text[choice])} is best (lower is better)")
        ax.legend()
    for ax in (left, *right):
        ax.set_xticks(np.arange(len(choices)), [c.replace(", ", ",").replace("MLP in", "MLP\nin") for c in choices])
        ax.set_xlabel("adapted, 2,048 parameters each")


CLAIM = Claim(
    id="which_matrices",
    short="q and v beat any one matrix",
    statement="Under one budget, adapting q and v together beats any one matrix",
    where="§7.1, Table 5",
    paper="WikiSQL at 18M: q 70.4, k 70.0, v 73.0, o 73.2, q,k 71.4, q,v 73.7, all four 73.7 (±0.5)",
    configurations=configurations,
    experiment=EXPERIMENT,
    parts=PARTS,
    key=key,
    measured=measured,
    spread=spread,
    draw=draw,
)
