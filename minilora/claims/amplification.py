"""§7.3, Table 7: "ΔW amplifies some features that W already has, and not those it emphasizes".

W is projected onto the top directions of ΔW, onto its own and onto random ones. The paper reports the factor
‖ΔW‖/‖UᵀWVᵀ‖, 21.5 at r = 4; random directions give a large factor too, so each projection is also divided by what
random directions of that rank give on average, r‖W‖/d.
"""

from __future__ import annotations

from operator import itemgetter
from typing import Any

import numpy as np

from ..analysis import amplification
from ..lora import lora_layers
from .adaptation import STEPS, adaptation, learn, steps_of
from .claim import Claim, Configuration, Experiment, Part, Result, Runs, Settings
from .figures import BLUE, GRAY, GREEN, ORANGE, grouped_points, panels, ticks
from .measures import deviation, mean, of
from .methods import LoRA, named
from .rules import at_least

RANKS = (4, 32)
TASKS = {"text": "code", "strings": "revupper"}
KINDS = ("q_proj", "v_proj")
SHOWN = {  # of a row of the table, in words
    "change": "‖UᵀWVᵀ‖, ΔW's directions",
    "own": "‖UᵀWVᵀ‖, W's own",
    "expected": "‖UᵀWVᵀ‖, random",
    "factor": "factor ‖ΔW‖/‖UᵀWVᵀ‖",
}
PAPER = {"change": (0.32, 1.90), "own": (21.67, 37.71), "random": (0.02, 0.33), "delta_norm": (6.91, 3.57)}


def configurations(settings: Settings) -> list[Configuration]:
    steps = {world: steps_of(world, settings) for world in STEPS}
    return [
        {**adaptation(world, s, task, LoRA("q,v", r), steps=steps[world]), "experiment": "amplification"}
        for s in settings.bases
        for world, task in TASKS.items()
        for r in RANKS
        if world == "strings" or not settings.quick
    ]


def run(configuration: Configuration) -> Result:
    """Table 7 of every adapted matrix: {name: amplification(...)}."""
    model, _ = learn(configuration)
    r = named(configuration["method"]).size
    rng = np.random.default_rng(0)
    return {name: amplification(m.weight.data, m.delta_weight(), r, rng) for name, m in lora_layers(model).items()}


def values(runs: Runs, world: str, r: int, fn: Any, kinds: tuple[str, ...] = KINDS) -> list[float]:
    """Of each base, the mean over its matrices of fn(row of the table)."""
    return [
        mean([fn(row) for name, row in result.items() if name.endswith(kinds)])
        for c, result in runs
        if c["base"][0] == world and c["method"] == LoRA("q,v", r).name
    ]


def over_random(row: dict[str, float]) -> float:
    return row["change"] / row["expected"]


def own_over_change(row: dict[str, float]) -> float:
    return row["own"] / row["change"]


NUMBERS: dict[str, Any] = {
    **{name: itemgetter(k) for k, name in SHOWN.items()},
    "ΔW's directions over random": over_random,
    "W's own over ΔW's directions": own_over_change,
}
RULES = {
    own_over_change: (at_least(2), "‖UᵀWVᵀ‖ with W's own directions over that with ΔW's (r = 4, mean over matrices)"),
    over_random: (at_least(1), "‖UᵀWVᵀ‖ with ΔW's directions over what random ones give, r‖W‖/d,"),
}
PARTS = tuple(
    Part(f"{name}, r = {r}", world, of(values, world, r, fn), "", *(RULES.get(fn, ()) if r == RANKS[0] else ()))
    for world in TASKS
    for r in RANKS
    for name, fn in NUMBERS.items()
)


def worlds_run(runs: Runs) -> list[str]:
    return [world for world in TASKS if values(runs, world, RANKS[0], over_random)]


def key(runs: Runs) -> str:
    worlds = sorted(worlds_run(runs))
    factors = ", ".join(f"{world} {mean(values(runs, world, RANKS[0], itemgetter('factor'))):.0f}" for world in worlds)
    return f"factor on {factors}"


def measured(runs: Runs) -> str:
    def line(world: str, r: int) -> str:
        change, own, random, factor = (mean(values(runs, world, r, itemgetter(k))) for k in SHOWN)
        return f"r = {r}: ΔW's directions {change:.2f}, W's own {own:.2f}, random {random:.2f}, factor {factor:.1f}"

    return "; ".join(f"{world} {line(world, RANKS[0])}, {line(world, RANKS[1])}" for world in worlds_run(runs))


def spread(runs: Runs) -> str:
    r, said = RANKS[0], []
    for world in worlds_run(runs):
        times = values(runs, world, r, over_random)
        said.append(f"{world} r = {r}: over random {mean(times):.2f} ±{deviation(times):.2f}")
    return "; ".join(said)


def draw(runs: Runs, figure: Any) -> None:
    worlds = worlds_run(runs)
    left, right = panels(figure, 2, 12.5, 4.4, (1.6, 1))
    groups = [(world, kind, r) for world in worlds for kind in KINDS for r in RANKS]
    series = {
        label: [values(runs, world, r, lambda row, k=k: row[k] / row["expected"], (kind,)) for world, kind, r in groups]
        for label, k in (("ΔW's directions", "change"), ("W's own", "own"), ("random", "random"))
    }
    grouped_points(left, [f"{world}\n{kind[0]}, r = {r}" for world, kind, r in groups], series, (BLUE, ORANGE, GRAY))
    left.axhline(1, color=GRAY, linewidth=1, linestyle=":")
    left.set(yscale="log", ylabel="‖UᵀWVᵀ‖ / (r‖W‖/d)")
    ratio, own = (
        mean([v for world in worlds for v in values(runs, world, RANKS[0], fn)])
        for fn in (over_random, lambda row: row["own"] / row["expected"])
    )
    left.set_title(f"At r = {RANKS[0]}, ΔW's directions: {ratio:.1f} times random; W's own: {own:.1f} times")
    ticks(left, y=(1, 2, 5, 10))
    left.legend(fontsize=8, ncols=3)
    colors = {"text": BLUE, "strings": GREEN}
    for world in worlds:
        for kind, marker in zip(KINDS, ("o", "s"), strict=True):
            factors = [mean(values(runs, world, r, lambda row: row["factor"], (kind,))) for r in RANKS]
            right.plot(RANKS, factors, marker + "-", color=colors[world], label=f"{world}, {kind[0]}")
    paper = [n / c for n, c in zip(PAPER["delta_norm"], PAPER["change"], strict=True)]
    right.plot((4, 64), paper, "x--", color=GRAY, label="paper, q of layer 48")
    right.set(xscale="log", yscale="log", xlabel="rank r", ylabel="factor ‖ΔW‖/‖UᵀWVᵀ‖")
    ticks(right, (4, 32, 64), (2, 5, 10, 20))
    falls = all(
        mean(values(runs, world, RANKS[1], lambda row: row["factor"]))
        < mean(values(runs, world, RANKS[0], lambda row: row["factor"]))
        for world in worlds
    )
    right.set_title(f"The factor {'falls with r, as in the paper' if falls else 'does not fall with r everywhere'}")
    right.legend(fontsize=8)


CLAIM = Claim(
    id="amplification",
    short="ΔW amplifies what W does not",
    statement="ΔW amplifies directions that W has but does not emphasize",
    where="§7.3, Table 7",
    paper="GPT-3, q of layer 48, r = 4: ‖UᵀWVᵀ‖ 0.32 with ΔW's directions, 21.67 W's own, 0.02 random; factor 21.5 "
    "(r = 64: 1.90, 37.71, 0.33; 1.9)",
    configurations=configurations,
    experiment=Experiment(run),
    parts=PARTS,
    key=key,
    measured=measured,
    spread=spread,
    draw=draw,
)
