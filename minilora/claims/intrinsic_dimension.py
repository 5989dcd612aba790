"""§1, after Li et al. 2018 and Aghajanyan et al. 2020: "learned over-parametrized models in fact reside on a low
intrinsic dimension", the premise that led to LoRA.

Everything is trained, but only within θ₀ + Pz, a random P of n columns; or only n weights drawn from all, the others
staying as they are; or LoRA, whose n is 512 r on q and v. All three start at the base and have n numbers to move: what
sets them apart is which changes these numbers can make. Judged in bits: on strings every share of the gain is near 1,
so there it is the distance from full fine-tuning; on text the share, whose 90 % is Aghajanyan's d₉₀.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .adaptation import EXPERIMENT, TASKS, adaptation, behind, gained, steps_of, worlds_run
from .claim import Claim, Configuration, Part, Runs, Settings
from .figures import BLUE, GRAY, GREEN, ORANGE, band, finding, label_lines, panels
from .measures import each, mean, of, percent
from .methods import FULL, LoRA, Method, Subset, Subspace
from .rules import NEAR, NEAR_IN_WORDS, at_least, at_most

SIZES = {"strings": (256, 1024, 4096, 16384), "text": (1024, 4096, 16384)}
LORAS = {"strings": tuple(LoRA("q,v", r) for r in (1, 4, 16)), "text": tuple(LoRA("q,v", r) for r in (1, 4, 64))}
ASKED = 4096  # the n of the verdict: below 4 % of the parameters
KINDS: dict[str, Callable[[int], Method]] = {"random directions": Subspace, "random weights": Subset}
REFERENCE = LoRA("q,v", 4)
COUNT = 2048  # what it trains


def configurations(settings: Settings) -> list[Configuration]:
    asked: list[tuple[str, Method]] = []
    for world, sizes in SIZES.items():
        # Without the long trainings only those on either side of LoRA's own count; in a quick look, on strings alone.
        few = sizes if settings.long else (1024, ASKED)
        if not settings.quick or world == "strings":
            asked += [(world, kind(n)) for kind in KINDS.values() for n in few]
            asked += [(world, method) for method in (*(LORAS[world][:2] if settings.quick else LORAS[world]), FULL)]
    return [
        adaptation(world, s, TASKS[world], m, steps=steps_of(world, settings))
        for s in settings.bases
        for world, m in asked
    ]


def lead(runs: Runs, world: str, kind: str) -> list[float]:
    """Of each base, how many bits LoRA at r = 4 is ahead of that kind with as many numbers: on a line over log n
    between half and twice that many."""
    half, twice = (behind(runs, world, KINDS[kind](n)) for n in (COUNT // 2, 2 * COUNT))
    return each(lambda a, b, lora: (a + b) / 2 - lora, half, twice, behind(runs, world, REFERENCE))


def sizes_run(runs: Runs, world: str, kind: str) -> list[int]:
    return [n for n in SIZES[world] if behind(runs, world, KINDS[kind](n))]


def d90(runs: Runs) -> int | None:
    """The smallest number of random directions whose mean share on text is at least 90 %; None where none is."""
    return next((n for n in SIZES["text"] if (share := gained(runs, Subspace(n))) and mean(share) >= 0.9), None)


METHODS = {
    world: {
        **{f"{n:,} {kind}": make(n) for kind, make in KINDS.items() for n in SIZES[world]},
        **{f"LoRA on q, v, r = {m.size}": m for m in LORAS[world]},
    }
    for world in TASKS
}
PARTS = (
    *(
        Part(
            f"bits more than full fine-tuning, {name}",
            world,
            of(behind, world, method),
            "bits",
            rule=at_most(NEAR) if (world, method) == ("strings", Subspace(ASKED)) else None,
            what=f"what training within {ASKED:,} random directions loses more than full fine-tuning, a character "
            f"{NEAR_IN_WORDS},",
        )
        for world, methods in METHODS.items()
        for name, method in methods.items()
    ),
    *(
        Part(
            f"share of full fine-tuning's gain, {name}",
            "text",
            of(gained, method),
            "%",
            rule=at_least(0.9) if method == Subspace(ASKED) else None,
            what=f"the share of full fine-tuning's gain in bits that {ASKED:,} random directions reach",
        )
        for name, method in METHODS["text"].items()
    ),
    *(
        Part(f"lead of LoRA over {COUNT:,} {kind}", world, of(lead, world, kind), "bits")
        for world in TASKS
        for kind in KINDS
    ),
)


def key(runs: Runs) -> str:
    said = f"{ASKED:,}: {mean(behind(runs, 'strings', Subspace(ASKED))):+.3f} bits"
    return said + (f"; text gains {percent(share)} %" if (share := gained(runs, Subspace(ASKED))) else "")


def measured(runs: Runs) -> str:
    said = []
    for world in worlds_run(runs):
        shown = ", ".join(
            f"{name} {mean(b):.3f}" for name, m in METHODS[world].items() if (b := behind(runs, world, m))
        )
        said.append(f"{world}, bits more than full fine-tuning: {shown}")
    if gained(runs, Subspace(ASKED)):
        found = d90(runs)
        said.append(f"d₉₀ on text: {'above all tried' if found is None else f'at most {found:,}'} of 114,944")
    return "; ".join(said)


def draw(runs: Runs, figure: Any) -> None:
    worlds = worlds_run(runs)
    axes, ends = panels(figure, len(worlds), 3.7), []
    for ax, world in zip(axes, worlds, strict=True):
        labels = []
        for kind, color in zip(KINDS, (ORANGE, GREEN), strict=True):
            sizes = sizes_run(runs, world, kind)
            losses = np.array([behind(runs, world, KINDS[kind](n)) for n in sizes]).T
            middle = band(ax, sizes, losses, color, marker="o")
            labels.append((float(sizes[-1]), float(middle[-1]), kind.removeprefix("random "), color))
        methods = [m for m in LORAS[world] if behind(runs, world, m)]
        counts = [512 * m.size for m in methods]
        middle = band(ax, counts, np.array([behind(runs, world, m) for m in methods]).T, BLUE, marker="s")
        labels.append((float(counts[-1]), float(middle[-1]), "LoRA", BLUE))
        ax.axhline(0, color=GRAY, linestyle=":", linewidth=1.2)
        ax.set(xscale="log", xlabel="numbers that train", title=world, xlim=(200, 4e5))
        ends.append((ax, labels))
        low, high = ax.get_ylim()
        ax.set_ylim(min(low, -0.12 * high), high)
    axes[0].set_ylabel("bits/character above full fine-tuning")
    behind_lora = " and ".join(f"{kind} {mean(lead(runs, 'strings', kind)):+.2f}" for kind in KINDS)
    said = f"With {COUNT:,} numbers on strings, bits more than LoRA: {behind_lora}"
    finding(figure, said, len(behind(runs, "strings", REFERENCE)))
    for ax, labels in ends:
        label_lines(ax, labels)


CLAIM = Claim(
    id="intrinsic_dimension",
    short="A few random directions suffice",
    statement="A random subspace of few dimensions is enough to adapt",
    where="§1",
    paper='"reside on a low intrinsic dimension" (Aghajanyan et al.: RoBERTa reaches 90 % on MRPC with about 200 '
    "directions)",
    configurations=configurations,
    experiment=EXPERIMENT,
    parts=PARTS,
    key=key,
    measured=measured,
    draw=draw,
)
