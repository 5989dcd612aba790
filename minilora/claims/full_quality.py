"""§5, Tables 2 to 4, and §4.1: LoRA "performs on-par or better than fine-tuning"; with the rank of the matrices "we
roughly recover the expressiveness of full fine-tuning".

LoRA on q and v, where the paper puts it; on all six Linears at the same budget; and at full rank on all of them,
against full fine-tuning, after a short training (300 steps on strings, 400 on text) and a long one (1,000 and 1,200),
each at its own learning rate. On strings every share of the gain is near 1, so the distance in bits is judged; on text,
the share of the gain.
"""

from __future__ import annotations

from typing import Any

from .adaptation import EXPERIMENT, LENGTHS, LONG, STEPS, TASKS, adaptation, behind, bits, gained, steps_of, worlds_run
from .claim import Claim, Configuration, Part, Runs, Settings
from .figures import BLUE, GRAY, GREEN, ORANGE, PURPLE, dots, finding, panels
from .measures import mean, of, percent
from .methods import FULL, LoRA, Method
from .rules import NEAR, NEAR_IN_WORDS, at_least, at_most

Q_V, ALL = "LoRA on q, v, r = 4", "LoRA on all six, r = 1"
METHODS = {
    Q_V: LoRA("q,v", 4),
    ALL: LoRA("all", 1),
    "LoRA on q, v, r = 64": LoRA("q,v", 64),
    "LoRA on all six, r = 64": LoRA("all", 64),
}
JUDGED = (Q_V, ALL)  # at one budget: 2,048 and 2,304 numbers
COLORS = {Q_V: BLUE, ALL: ORANGE}


def configurations(settings: Settings) -> list[Configuration]:
    methods: tuple[Method, ...]
    if settings.quick:
        methods, lengths = (METHODS[Q_V], FULL), {"strings": [steps_of("strings", settings)]}
    else:
        methods = (*METHODS.values(), FULL)
        lengths = {world: [STEPS[world], *([LONG[world]] if settings.long else [])] for world in TASKS}
    return [
        adaptation(world, s, TASKS[world], method, steps=steps)
        for world, of_world in lengths.items()
        for steps in of_world
        for s in settings.bases
        for method in methods
    ]


WHERE = "on q, v at r = 4 and on all six at r = 1, after a short and a long training,"
PARTS = (
    *(
        Part(
            f"bits more than full fine-tuning, {length}, {name}",
            "strings",
            of(behind, "strings", method, FULL, steps["strings"]),
            "bits",
            rule=at_most(NEAR) if name in JUDGED else None,
            what=f"what LoRA loses a character more than full fine-tuning, {WHERE} {NEAR_IN_WORDS}",
        )
        for length, steps in LENGTHS.items()
        for name, method in METHODS.items()
    ),
    *(
        Part(
            f"share of full fine-tuning's gain, {length}, {name}",
            "text",
            of(gained, method, FULL, steps["text"]),
            "%",
            rule=at_least(0.9) if name in JUDGED else None,
            what=f"the share of full fine-tuning's gain that LoRA reaches, {WHERE}",
        )
        for length, steps in LENGTHS.items()
        for name, method in METHODS.items()
    ),
    *(
        Part(f"loss, {length}, {name}", world, of(bits, world, method, steps[world]), "bits")
        for world in TASKS
        for length, steps in LENGTHS.items()
        for name, method in {**METHODS, "full fine-tuning": FULL}.items()
    ),
)


def key(runs: Runs) -> str:
    said = f"{mean(behind(runs, 'strings', METHODS[Q_V])):.3f} bits behind"
    if shares := [gained(runs, METHODS[name]) for name in JUDGED if gained(runs, METHODS[name])]:
        said += f"; text {' and '.join(map(percent, shares))} %"
    return said


def measured(runs: Runs) -> str:
    said = []
    for world in worlds_run(runs):
        for length, steps in LENGTHS.items():
            losses = {name: bits(runs, world, m, steps[world]) for name, m in {"full": FULL, **METHODS}.items()}
            if any(losses.values()):
                shown = ", ".join(f"{name} {mean(values):.3f}" for name, values in losses.items() if values)
                said.append(f"{world}, {length} (bits): {shown}")
    return "; ".join(said)


def draw(runs: Runs, figure: Any) -> None:
    worlds = worlds_run(runs)
    axes = panels(figure, len(worlds), 3.4)
    for ax, world in zip(axes, worlds, strict=True):
        names, values, colors = [], [], []
        for length, steps in LENGTHS.items():
            for name, method in METHODS.items():
                if off := behind(runs, world, method, FULL, steps[world]):
                    names.append(f"{name.removeprefix('LoRA on ')}, {length}")
                    values.append(off)
                    colors.append(COLORS.get(name, GREEN if "all" in name else PURPLE))
        dots(ax, names, values, colors)
        ax.axvline(0, color=GRAY, linestyle=":", linewidth=1.2)
        ax.set(title=world, xlabel="bits/character above full")
    finding(figure, _said(runs), len(bits(runs, "strings", FULL)))


def _said(runs: Runs) -> str:
    off = mean(behind(runs, "strings", METHODS[Q_V]))
    said = f"On strings LoRA on q, v is {abs(off):.3f} bits {'behind' if off > 0 else 'ahead of'} full fine-tuning"
    shares = gained(runs, METHODS[Q_V])
    return said + (f"; on text it has {percent(shares)} % of its gain" if shares else "")


CLAIM = Claim(
    id="full_quality",
    short="LoRA matches full fine-tuning",
    statement="LoRA is as good as full fine-tuning",
    where="§5, Tables 2–4; §4.1",
    paper="GPT-2 M, E2E BLEU: full 68.2, LoRA 70.4 at 0.35M; GPT-3, WikiSQL: full 73.8, LoRA 73.4",
    configurations=configurations,
    experiment=EXPERIMENT,
    parts=PARTS,
    key=key,
    measured=measured,
    draw=draw,
)
