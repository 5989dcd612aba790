"""§7.1, Table 5: "adapting both W_q and W_v gives the best performance overall", under one parameter budget.

Every choice trains 2,048 numbers, but for the MLP's two (2,560) and all six Linears at r = 1 (2,304). q and k
decide where a position reads, v and o what is read and written. So pairs are asked too: one of {q, k} with one of
{v, o}, or both of one kind. The MLP, which the paper leaves frozen, stands beside them: "LoRA Without Regret" (2025)
would adapt it first.
"""

from __future__ import annotations

from typing import Any

from .adaptation import EXPERIMENT, TASKS, adaptation, behind, bits, quality, steps_of, worlds_run
from .claim import Claim, Configuration, Part, Runs, Settings
from .figures import BLUE, GRAY, GREEN, ORANGE, PURPLE, dots, finding, panels
from .measures import each, mean, of
from .methods import FULL, LoRA
from .rules import at_least

Q_V = LoRA("q,v", 4)
CHOICES = {  # what is adapted -> method
    **{one: LoRA(one, 8) for one in "qkvo"},
    "q, k": LoRA("q,k", 4),
    "v, o": LoRA("v,o", 4),
    "q, v": Q_V,
    "q, o": LoRA("q,o", 4),
    "k, v": LoRA("k,v", 4),
    "k, o": LoRA("k,o", 4),
    "q, k, v, o": LoRA("q,k,v,o", 2),
    "MLP": LoRA("in,out", 2),
    "all six": LoRA("all", 1),
}
ALONE = ("q", "k", "v", "o")
ONE_KIND, MIXED = ("q, k", "v, o"), ("q, v", "q, o", "k, v", "k, o")
COLORS = {**dict.fromkeys(ALONE, GRAY), **dict.fromkeys(ONE_KIND, ORANGE), **dict.fromkeys(MIXED, BLUE)}


def configurations(settings: Settings) -> list[Configuration]:
    steps, choices = {world: steps_of(world, settings) for world in TASKS}, list(CHOICES)
    if settings.quick:
        choices = ["q", "v", "q, v"]
    return [
        adaptation(world, s, task, method, steps=steps[world])
        for world, task in TASKS.items()
        for s in settings.bases
        for method in (*(CHOICES[choice] for choice in choices), FULL)
        if world == "strings" or not settings.quick
    ]


def lead(runs: Runs, world: str, choice: str) -> list[float]:
    """Of each base, how many bits q, v lose less than a choice."""
    return behind(runs, world, CHOICES[choice], Q_V)


def mixed_lead(runs: Runs, world: str) -> list[float]:
    """Of each base, how many bits the four mixed pairs lose less in the mean than the two of one kind."""
    of_kind = [bits(runs, world, CHOICES[pair]) for pair in ONE_KIND]
    mixed = [bits(runs, world, CHOICES[pair]) for pair in MIXED]
    return each(lambda *losses: mean(losses[:2]) - mean(losses[2:]), *of_kind, *mixed)


PARTS = (
    *(Part(f"loss, {name}", world, of(bits, world, m), "bits") for world in TASKS for name, m in CHOICES.items()),
    *(Part(f"answered, {name}", "strings", of(quality, "strings", m, "accuracy"), "%") for name, m in CHOICES.items()),
    *(
        Part(
            f"lead of q, v over {choice}",
            world,
            of(lead, world, choice),
            "bits",
            rule=at_least(0) if choice in ALONE else None,
            what="the lead in loss of q, v (r = 4) over each of q, k, v and o alone (r = 8)",
        )
        for world in TASKS
        for choice in CHOICES
        if choice != "q, v"
    ),
    *(
        Part(
            "lead of the mixed pairs over those of one kind",
            world,
            of(mixed_lead, world),
            "bits",
            rule=at_least(0),
            what="the lead of one of {q, k} with one of {v, o} over q, k and over v, o, in the mean of pairs,",
        )
        for world in TASKS
    ),
)


def losses(runs: Runs, world: str) -> dict[str, list[float]]:
    """Of each choice that was run, the bits of each base."""
    return {choice: found for choice, method in CHOICES.items() if (found := bits(runs, world, method))}


def best(runs: Runs, world: str) -> str:
    """The choice with the lowest mean loss."""
    found = losses(runs, world)
    return min(found, key=lambda choice: mean(found[choice]))


def key(runs: Runs) -> str:
    closest = min((mean(lead(runs, "strings", c)), c) for c in ALONE if lead(runs, "strings", c))
    said = f"q,v {closest[0]:+.2f} bits ({closest[1]})"
    if losses(runs, "text"):
        off = min((mean(lead(runs, "text", c)), c) for c in ALONE)
        said += f"; text {off[0]:+.3f} ({off[1]})"
    return said


def measured(runs: Runs) -> str:
    said = []
    for world in worlds_run(runs):
        digits = 2 if world == "strings" else 3
        order = sorted(losses(runs, world).items(), key=lambda of_choice: mean(of_choice[1]))
        said.append(f"{world} (bits): " + ", ".join(f"{choice} {mean(b):.{digits}f}" for choice, b in order))
    return "; ".join(said)


def draw(runs: Runs, figure: Any) -> None:
    worlds = worlds_run(runs)
    axes = panels(figure, len(worlds), 4.6)
    for ax, world in zip(axes, worlds, strict=True):
        found = losses(runs, world)
        colors = [COLORS.get(choice, GREEN if choice.startswith("MLP") else PURPLE) for choice in found]
        dots(ax, list(found), list(found.values()), colors)
        full = mean(bits(runs, world, FULL))
        ax.axvline(full, color=GRAY, linestyle=":", linewidth=1.2)
        ax.annotate("full", (full, -0.55), xytext=(4, 2), textcoords="offset points", color=GRAY, fontsize=9)
        ax.set(title=world, xlabel="bits/character, lower is better")
    finding(figure, _said(runs), len(bits(runs, "strings", Q_V)))


def _said(runs: Runs) -> str:
    leads = {world: mean(mixed_lead(runs, world)) for world in TASKS if mixed_lead(runs, world)}
    if not leads:
        return f"Best on strings: {best(runs, 'strings')}"
    names = ", ".join(f"{best(runs, world)} on {world}" for world in leads)
    if all(bits_ahead > 0 for bits_ahead in leads.values()):
        return f"One of q, k with one of v, o beats a pair of one kind; best: {names}"
    return f"Best under one budget: {names}"


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
    draw=draw,
)
