"""§5, Figure 2, Tables 2 to 4: LoRA against the methods before it, at equal numbers of parameters.

LoRA on q and v trains 2,048 numbers; a prefix of 8 as many, adapters of Houlsby 2,320 and of Lin 1,932, BitFit 1,472,
a prompt of 8 512. The last block alone (the paper's FT-Top), with 49,984, tells "low rank" from "few parameters": it is
drawn, not judged. Our prefix has no reparametrisation by an MLP, which Li and Liang found to make it easier to train.
Every method has its own learning rate for each length of training: short is 300 steps on strings and 400 on text, long
1,000 and 1,200.
"""

from __future__ import annotations

from typing import Any

from .adaptation import EXPERIMENT, LENGTHS, LONG, STEPS, TASKS, adaptation, behind, bits, quality, steps_of, worlds_run
from .claim import Claim, Configuration, Part, Runs, Settings
from .figures import BLUE, GRAY, GREEN, ORANGE, dots, finding, panels
from .measures import mean, of
from .methods import BITFIT, FULL, LAST_BLOCK, Adapter, LoRA, Method, Prefix, Prompt
from .rules import at_least

LORA = LoRA("q,v", 4)
RIVALS = {
    "BitFit": BITFIT,
    "prompt of 8": Prompt(8),
    "prefix of 8": Prefix(8),
    "adapters (Houlsby)": Adapter("h", 4),
    "adapters (Lin)": Adapter("l", 6),
}
OTHERS = {"LoRA on q, v": LORA, "LoRA on all six": LoRA("all", 1), "last block": LAST_BLOCK, "full fine-tuning": FULL}
METHODS = {**OTHERS, **RIVALS}
LONGER = ("LoRA on q, v", "LoRA on all six", "full fine-tuning", "BitFit", "prefix of 8", "adapters (Houlsby)")
COLORS = {"LoRA on q, v": BLUE, "LoRA on all six": BLUE, "last block": ORANGE, "full fine-tuning": GRAY}


def configurations(settings: Settings) -> list[Configuration]:
    if settings.quick:
        methods, steps = (LORA, BITFIT, Adapter("h", 4), LAST_BLOCK, FULL), steps_of("strings", settings)
        return [adaptation("strings", s, "revupper", m, steps=steps) for s in settings.bases for m in methods]
    return [
        adaptation(world, s, task, method, steps=steps)
        for world, task in TASKS.items()
        for steps in (STEPS[world], *((LONG[world],) if settings.long else ()))
        for s in settings.bases
        for name, method in METHODS.items()
        if steps == STEPS[world] or name in LONGER
    ]


def lead(runs: Runs, world: str, rival: Method, steps: int | None = None) -> list[float]:
    """Of each base, how many bits LoRA on q and v loses less than a rival."""
    return behind(runs, world, rival, LORA, steps)


def trained(runs: Runs, method: Method) -> list[float]:
    """How many numbers a method trains, the same on every base."""
    return quality(runs, "strings", method, "trainable")[:1]


PARTS = (
    *(
        Part(
            f"lead of LoRA, {length}, over {name}",
            world,
            of(lead, world, method, steps[world]),
            "bits",
            rule=at_least(0) if name in RIVALS else None,
            what="the lead in loss of LoRA on q, v at r = 4 over each rival of about its size, after a short and a "
            "long training,",
        )
        for world in TASKS
        for length, steps in LENGTHS.items()
        for name, method in {**RIVALS, "last block": LAST_BLOCK}.items()
    ),
    *(
        Part(f"loss, {length}, {name}", world, of(bits, world, method, steps[world]), "bits")
        for world in TASKS
        for length, steps in LENGTHS.items()
        for name, method in METHODS.items()
    ),
    *(
        Part(f"answered, {length}, {name}", "strings", of(quality, "strings", m, "accuracy", steps["strings"]), "%")
        for length, steps in LENGTHS.items()
        for name, m in METHODS.items()
    ),
    *(Part(f"trained numbers, {name}", "exact", of(trained, method)) for name, method in METHODS.items()),
)


def closest(runs: Runs, world: str) -> tuple[float, str]:
    """The smallest mean lead of the ordinary length, and over whom."""
    leads = {name: lead(runs, world, method) for name, method in RIVALS.items()}
    return min((mean(values), name) for name, values in leads.items() if values)


def key(runs: Runs) -> str:
    (first, _), *others = (closest(runs, world) for world in worlds_run(runs))
    return "".join([f"{first:+.2f} bits on rivals", *(f"; text {ahead:+.2f}" for ahead, _ in others)])


def measured(runs: Runs) -> str:
    said = []
    for world in worlds_run(runs):
        for length, steps in LENGTHS.items():
            losses = {name: bits(runs, world, m, steps[world]) for name, m in METHODS.items()}
            order = sorted((mean(values), name) for name, values in losses.items() if values)
            if order:
                said.append(f"{world}, {length} (bits): {', '.join(f'{name} {loss:.3f}' for loss, name in order)}")
    return "; ".join(said)


def draw(runs: Runs, figure: Any) -> None:
    worlds = worlds_run(runs)
    axes = panels(figure, len(worlds), 4.2)
    for ax, world in zip(axes, worlds, strict=True):
        methods = {name: m for name, m in METHODS.items() if bits(runs, world, m)}
        values = [bits(runs, world, method) for method in methods.values()]
        dots(ax, list(methods), values, [COLORS.get(name, GREEN) for name in methods])
        longer = [bits(runs, world, method, LONG[world]) for method in methods.values()]
        for row, (short, long) in enumerate(zip(values[::-1], longer[::-1], strict=True)):
            if long:
                ax.plot([mean(short), mean(long)], [row, row], ":", color=GRAY, linewidth=1)
                ax.plot([mean(long)], [row], "o", markerfacecolor="white", markeredgecolor=GRAY, markersize=5)
        hollow = f", hollow: {LONG[world]:,} steps" if any(longer) else ""
        ax.set(xlabel="bits/character", title=f"{world}{hollow}", xscale="log" if world == "strings" else "linear")
    finding(figure, _said(runs), len(bits(runs, "strings", LORA)))


def _said(runs: Runs) -> str:
    said = []
    for world in worlds_run(runs):
        ahead, name = closest(runs, world)
        place = f"{abs(ahead):.2f} bits {'ahead of' if ahead > 0 else 'behind'} the best rival, {name}"
        said.append(f"on {world} {place}")
    return f"LoRA on q, v: {', '.join(said)}"


CLAIM = Claim(
    id="rivals",
    short="LoRA beats rivals of its size",
    statement="LoRA is better than the methods before it, at equal numbers of parameters",
    where="§5, Figure 2, Tables 2–4",
    paper="GPT-2 M, E2E BLEU: adapters 66.3–68.9, prefix 69.7, LoRA 70.4 at 0.35M; GPT-3, WikiSQL: BitFit 71.3, prefix "
    "63.1 and 70.1, adapters 71.9, LoRA 73.4",
    configurations=configurations,
    experiment=EXPERIMENT,
    parts=PARTS,
    key=key,
    measured=measured,
    draw=draw,
)
