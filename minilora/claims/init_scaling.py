"""§4.1: scaling by α/r is there "to reduce the need to retune hyperparameters when we vary r".

How far the best learning rate moves with r, with α/r and with α/√r (rsLoRA), by sweeps in steps of √2; and how far it
is from full fine-tuning's, which "LoRA Without Regret" (2025) finds ten times as low, whatever r is. Adam throughout,
α = 8. That A₀ scales with nothing here is part of the question: `alpha_learning_rate` says what it would change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .adaptation import TASKS, worlds_run
from .claim import Claim, Configuration, Part, Runs, Settings
from .figures import BLUE, GRAY, GREEN, ORANGE, band, finding, label_lines, panels, ticks
from .measures import each, interval, mean, of
from .rules import at_least, at_most
from .sweeps import EXPERIMENT, best_rates, curves, lora, mean_optimum, optima, sweep

RANKS: tuple[int, ...] = (1, 8, 64)
LARGE = RANKS[-1]
FULL: dict[str, Any] = {}
ROOT = lora(LARGE, scaling="alpha/sqrt(r)")
# log₂ of the rate around which the best is looked for
STRINGS: Sequence[tuple[dict[str, Any], float]] = (
    (FULL, -8.0), (lora(1), -5.5), (lora(8), -6.0), (lora(LARGE), -6.0), (ROOT, -7.5),
)  # fmt: skip
TEXT: Sequence[tuple[dict[str, Any], float]] = ((FULL, -8.0), (lora(1), -5.0), (lora(LARGE), -5.0))


def configurations(settings: Settings) -> list[Configuration]:
    on_strings = [STRINGS[0], STRINGS[1], STRINGS[3]] if settings.quick else STRINGS if settings.long else STRINGS[:-1]
    worlds = (("strings", on_strings), ("text", TEXT if settings.long else ()))
    return [
        c
        for world, methods in worlds
        for base in settings.bases
        for method, center in methods
        for c in sweep(world, base, center, settings.quick, **method)
    ]


# ---- what it came to ---------------------------------------------------------------------------------


def moved(runs: Runs, world: str, large: dict[str, Any]) -> list[float]:
    """Of each base, how many doublings the best rate moves from r = 1 to r = 64."""
    return each(lambda one, many: many - one, best_rates(runs, world, **lora(1)), best_rates(runs, world, **large))


def moved_either_way(runs: Runs, world: str) -> list[float]:
    return [abs(doublings) for doublings in moved(runs, world, lora(LARGE))]


def over_full(runs: Runs, world: str, r: int) -> list[float]:
    """Of each base, LoRA's best rate over full fine-tuning's."""
    return each(lambda own, full: 2 ** (own - full), best_rates(runs, world, **lora(r)), best_rates(runs, world))


def stable(runs: Runs, world: str, r: int) -> list[float]:
    """Of each base, the largest stable rate over the best one."""
    return [o.stable / o.best for o in optima(runs, world, **lora(r))]


def width(runs: Runs, world: str, r: int) -> list[float]:
    """Of each base, how many doublings of the rate stay within 0.02 bits of the lowest loss."""
    return [math.log2(o.high / o.low) for o in optima(runs, world, **lora(r))]


def at_an_end(runs: Runs, world: str) -> list[float]:
    """Of each base, how many of its sweeps (α/r, and full fine-tuning) have their best rate at an end of the grid."""
    ends = [[float(o.at_end) for o in optima(runs, world, **method)] for method in (FULL, *map(lora, RANKS))]
    return each(lambda *of_base: sum(of_base), *filter(None, ends))


PARTS = (
    *(
        Part(
            "doublings of the best rate from r = 1 to 64, α/r, either way",
            world,
            of(moved_either_way, world),
            rule=at_most(1),
            what="the move of the best learning rate from r = 1 to r = 64 with α/r, in doublings either way,",
        )
        for world in TASKS
    ),
    *(
        Part("doublings of the best rate from r = 1 to 64, α/r", world, of(moved, world, lora(LARGE)))
        for world in TASKS
    ),
    Part("doublings of the best rate from r = 1 to 64, α/√r", "strings", of(moved, "strings", ROOT)),
    *(
        Part(
            f"best rate over full fine-tuning's, r = {r}",
            world,
            of(over_full, world, r),
            rule=at_least(2),
            what="LoRA's best rate as a multiple of full fine-tuning's, at each r,",
        )
        for world in TASKS
        for r in RANKS
    ),
    *(Part("sweeps whose best rate is at an end of the grid", world, of(at_an_end, world)) for world in TASKS),
    *(
        Part(f"largest stable rate over the best, r = {r}", world, of(stable, world, r))
        for world in TASKS
        for r in RANKS
    ),
    *(
        Part(f"doublings within 0.02 bits of the best, r = {r}", world, of(width, world, r))
        for world in TASKS
        for r in RANKS
    ),
)


def ranks_run(runs: Runs, world: str) -> list[int]:
    return [r for r in RANKS if best_rates(runs, world, **lora(r))]


def key(runs: Runs) -> str:
    ratios = [mean(over_full(runs, "strings", r)) for r in ranks_run(runs, "strings")]
    doublings = mean(moved(runs, "strings", lora(LARGE)))
    return f"{doublings:+.1f} doublings; {min(ratios):.0f} to {max(ratios):.0f} × full's rate"


def measured(runs: Runs) -> str:
    said = []
    for world in worlds_run(runs):
        ratios = ", ".join(f"{mean(over_full(runs, world, r)):.1f}" for r in ranks_run(runs, world))
        ranks = ", ".join(map(str, ranks_run(runs, world)))
        doublings = mean(moved(runs, world, lora(LARGE)))
        said.append(f"{world}: {doublings:+.1f} doublings with α/r, times full's best rate {ratios} at r = {ranks}")
    if root := moved(runs, "strings", ROOT):
        said.append(f"with α/√r {mean(root):+.1f} doublings on strings")
    return "; ".join(said)


def draw(runs: Runs, figure: Any) -> None:
    left, right = panels(figure, 2, 3.7, (1.25, 1))
    methods = [
        (FULL, GRAY, "full"),
        (lora(1), GREEN, "r = 1"),
        (lora(8), BLUE, "r = 8"),
        (lora(LARGE), ORANGE, "r = 64"),
    ]
    labels = []
    for method, color, words in methods:
        rates, losses = curves(runs, "strings", **method)
        if not rates:  # a quick run leaves a rank out
            continue
        middle = band(left, rates, losses, color, marker=".")
        labels.append((rates[-1], float(middle[-1]), words, color))
        at = mean_optimum(runs, "strings", **method)
        assert at is not None
        left.axvspan(at.low / 2**0.1, at.high * 2**0.1, ymax=0.03, color=color, linewidth=0)
    left.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="bits/character of the answer")
    left.set_title("strings; at the bottom: within 0.02 bits of the best")
    low, high = left.get_ylim()
    left.set(ylim=(low * 0.7, min(high, 12)), xlim=(left.get_xlim()[0], 0.25))
    ticks(left, (0.001, 0.003, 0.01, 0.03, 0.1))
    ends = []
    for world, color in zip(worlds_run(runs), (BLUE, ORANGE), strict=False):
        ranks = ranks_run(runs, world)
        centers = [2 ** mean([math.log2(v) for v in over_full(runs, world, r)]) for r in ranks]
        for r, center in zip(ranks, centers, strict=True):
            values = [math.log2(v) for v in over_full(runs, world, r)]
            if len(values) > 1:
                below, above = (2**end for end in interval(values))
                right.errorbar([r], [center], yerr=[[center - below], [above - center]], color=color, capsize=3)
        right.plot(ranks, centers, "o-", color=color)
        ends.append((float(ranks[-1]), centers[-1], world, color))
    right.set(
        xscale="log", yscale="log", xlabel="rank r, α/r", title="best rate over full fine-tuning's", ylim=(0.8, 40)
    )
    right.axhline(1, color=GRAY, linewidth=1)
    right.plot([RANKS[0], RANKS[-1]], [10, 10], ":", color=GRAY, linewidth=1)
    ticks(right, RANKS, (1, 2, 5, 10, 20))
    right.set_xlim(0.8, 400)
    still = max(mean(moved_either_way(runs, world)) for world in worlds_run(runs)) <= 1
    ratios = [mean(over_full(runs, w, r)) for w in worlds_run(runs) for r in ranks_run(runs, w)]
    where = "at every r" if still else "depending on r"
    said = f"LoRA wants {min(ratios):.0f} to {max(ratios):.0f} times full fine-tuning's rate, {where}"
    finding(figure, said, len(best_rates(runs, "strings")))
    label_lines(left, labels)
    label_lines(right, [*ends, (float(RANKS[-1]), 10.0, '"10 times"', GRAY)])


CLAIM = Claim(
    id="init_scaling",
    short="α/r spares retuning when r changes",
    statement="With α/r the best learning rate stays when r changes, at a multiple of full fine-tuning's",
    where="§4.1; after the paper: rsLoRA, LoRA Without Regret",
    paper='"to reduce the need to retune hyperparameters when we vary r" (no numbers)',
    configurations=configurations,
    experiment=EXPERIMENT,
    parts=PARTS,
    key=key,
    measured=measured,
    draw=draw,
)
