"""§7.2, Figures 3 and 4: the top directions of r = 8 are contained in those of r = 64, "while others do not" overlap.

φ(i, j) of two learned ΔW: of a small and a large rank, and of two seeds of one rank. Planted first, where the answer is
known, then the transformer. The directions of A alone depend on how ΔW is split into B and A; those of ΔW do not. A
measured φ lies between two bounds: what random directions share, 1/d for the first, and how far two runs of one rank
agree that differ in A₀ alone; no two ranks can be expected to agree better.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..analysis import input_directions, random_similarity, subspace_similarity
from ..lora import lora_layers
from ..optim import Adam, linear_schedule
from .adaptation import TASKS, adaptation, learn, steps_of, worlds_run
from .bases import seeds
from .claim import Claim, Configuration, Experiment, Part, Result, Runs, Settings
from .figures import BLUE, GRAY, ORANGE, band, finding, label_lines, panels, ticks
from .measures import each, mean, of
from .methods import LoRA
from .planted import fit, planted
from .rules import at_least, at_most

D, SPECTRUM = 64, (8.0, 4.0, 2.0, 1.0)
SMALL, LARGE = 8, 32  # never the full rank of 64, whose directions are everything
INIT_STD = 0.01  # a small A₀, which would otherwise fill ΔW's directions with noise
SHOWN = ("blocks.1.attn.q_proj", "blocks.1.attn.v_proj")  # the last layer, as the paper's 48th
PAIRS = {"ranks": f"r = {SMALL} against {LARGE}", "seeds": f"two A₀ of r = {LARGE}"}
WELL_ABOVE = 0.25  # sixteen times the random floor, half of what the paper saw
RANDOM = 16 / D  # of any direction lies in 16 random ones
LITTLE = 0.25  # of what lies outside them at random


def configurations(settings: Settings) -> list[Configuration]:
    return [
        *({"seed": s} for s in range(settings.seeds)),
        *(
            {"base": [world, s], "runs": _runs(world, s, steps_of(world, settings))}
            for s in settings.bases
            for world in TASKS
            if world == "strings" or not settings.quick
        ),
    ]


def _runs(world: str, base: int, steps: int) -> list[Configuration]:
    """The small rank, the large one, and the large one from another A₀, on the same batches."""
    A0, task = seeds(base)["adapter_seed"], TASKS[world]
    return [
        adaptation(world, base, task, LoRA("q,v", r), init_std=INIT_STD, adapter_seed=seed, steps=steps)
        for r, seed in ((SMALL, A0), (LARGE, A0), (LARGE, A0 + 1000))
    ]


def run(configuration: Configuration) -> Result:
    """φ of small against large, and of two of the large: {pair: φ (i, j)}, the mean over the layers shown."""
    if "seed" in configuration:
        return _compare(*_planted(configuration["seed"]))
    learned = [lora_layers(learn(c)[0]) for c in configuration["runs"]]
    layers = [_compare(*(model[name].delta_weight() for model in learned)) for name in SHOWN]
    return {pair: np.mean([layer[pair] for layer in layers], axis=0).tolist() for pair in PAIRS}


def _compare(small: np.ndarray, large: np.ndarray, other: np.ndarray) -> Result:
    top = input_directions(large, LARGE)
    return {
        "ranks": subspace_similarity(input_directions(small, SMALL), top).tolist(),
        "seeds": subspace_similarity(input_directions(other, SMALL), top).tolist(),
    }


def _planted(seed: int) -> list[Any]:
    """ΔW of the small rank, the large one, and the large one from another A₀, on a map of known change."""
    W0, change = planted(D, SPECTRUM, np.random.default_rng(seed))
    answers, steps = (W0 + change).T, 1000
    layers = [
        fit(W0, np.eye(D), answers, r, lambda p: Adam(p, 0.01), steps, A0, linear_schedule(steps), INIT_STD)
        for r, A0 in ((SMALL, seed), (LARGE, seed), (LARGE, seed + 1000))
    ]
    return [layer.delta_weight() for layer in layers]


# ---- what it came to ---------------------------------------------------------------------------------


def tables(runs: Runs, world: str, pair: str) -> list[np.ndarray]:
    """φ(i, j) of each base, or of each planted map."""
    return [np.array(r[pair]) for c, r in runs if world == ("planted" if "seed" in c else c["base"][0])]


def phi(runs: Runs, world: str, pair: str, i: int) -> list[float]:
    """φ(i, i)."""
    return [float(table[i - 1, i - 1]) for table in tables(runs, world, pair)]


def of_ceiling(runs: Runs, world: str) -> list[float]:
    """Of each base, φ(1, 1) of two ranks over that of two A₀."""
    return each(lambda ranks, two: ranks / two, phi(runs, world, "ranks", 1), phi(runs, world, "seeds", 1))


def contained(runs: Runs, world: str, pair: str = "ranks") -> list[list[float]]:
    """Of each base, how much of each direction of the small rank lies in the first 16 of the large one.

    Of the first i together that is i·φ(i, 16); a direction of its own is the difference of two.
    """
    found = []
    for table in tables(runs, world, pair):
        together = [i * table[i - 1, 15] for i in range(1, SMALL + 1)]
        found.append(np.diff([0.0, *together]).tolist())
    return found


def others(runs: Runs, world: str) -> list[float]:
    """Of each base, the mean of `contained` over the directions 5 to 8: 0 at what random ones hold, 1 for all."""
    return [(mean(of_base[4:]) - RANDOM) / (1 - RANDOM) for of_base in contained(runs, world)]


PARTS = (
    Part(
        "φ(4,4) of ΔW, planted with rank 4",
        "exact",
        of(phi, "planted", "ranks", 4),
        rule=at_least(0.99),
        what=f"φ(4,4) of ΔW between r = {SMALL} and r = {LARGE}, planted with rank 4,",
    ),
    Part("φ(8,8) of ΔW, planted with rank 4", "exact", of(phi, "planted", "ranks", 8)),
    *(
        Part(
            f"φ(1,1) of ΔW, {PAIRS['ranks']}",
            world,
            of(phi, world, "ranks", 1),
            rule=at_least(WELL_ABOVE),
            what=f"φ(1,1) of ΔW between r = {SMALL} and r = {LARGE}, in the mean of the last layer's q and v,",
        )
        for world in TASKS
    ),
    *(
        Part(
            "φ(1,1) of two ranks over that of two A₀",
            world,
            of(of_ceiling, world),
            "%",
            rule=at_least(0.8),
            what="its share of what two A₀ of one rank have in common",
        )
        for world in TASKS
    ),
    *(
        Part(
            "directions 5 to 8 in the large rank's first 16, beyond random",
            world,
            of(others, world),
            "%",
            rule=at_most(LITTLE),
            what="how much of the directions 5 to 8 lies in the large rank's first 16, as a share of what does not at "
            "random,",
        )
        for world in TASKS
    ),
    *(Part(f"φ({i},{i}) of ΔW, {PAIRS['seeds']}", w, of(phi, w, "seeds", i)) for w in TASKS for i in (1, 4)),
    *(Part(f"φ(4,4) of ΔW, {PAIRS['ranks']}", world, of(phi, world, "ranks", 4)) for world in TASKS),
)


def key(runs: Runs) -> str:
    shown = (f"{world} {mean(phi(runs, world, 'ranks', 1)):.2f}" for world in worlds_run(runs))
    return f"top φ: {', '.join(shown)}"


def measured(runs: Runs) -> str:
    said = [f"planted φ(4,4) {mean(phi(runs, 'planted', 'ranks', 4)):.3f}"]
    for world in worlds_run(runs):
        ranks, two = (mean(phi(runs, world, pair, 1)) for pair in PAIRS)
        said.append(
            f"{world} φ(1,1) of two ranks {ranks:.2f}, of two A₀ {two:.2f}; directions 5 to 8 share "
            f"{100 * mean(others(runs, world)):.0f} % beyond random"
        )
    return f"{'; '.join(said)}; random φ(1,1) {1 / D:.3f}"


def draw(runs: Runs, figure: Any) -> None:
    worlds = worlds_run(runs)
    axes, ends = panels(figure, len(worlds), 3.7), []
    i = np.arange(1, SMALL + 1)
    random = np.diag(random_similarity(SMALL, SMALL, D))
    for ax, world in zip(axes, worlds, strict=True):
        labels = []
        for pair, color, words in (("ranks", BLUE, "r = 8, 32"), ("seeds", ORANGE, "two A₀")):
            values = [np.diag(table)[:SMALL] for table in tables(runs, world, pair)]
            middle = band(ax, i, values, color, marker="o")
            labels.append((float(SMALL), float(middle[-1]), words, color))
        ax.plot(i, random, ":", color=GRAY)
        labels.append((float(SMALL), float(random[-1]), "random", GRAY))
        ax.set(xlabel="i", ylim=(0, 1.05), xlim=(0.7, 11), title=world)
        ticks(ax, range(1, SMALL + 1))
        ends.append((ax, labels))
    axes[0].set_ylabel("φ(i, i) of ΔW, last layer's q and v")
    ranks, starts = (
        ", ".join(f"{mean(phi(runs, world, pair, 1)):.2f} on {world}" for world in worlds) for pair in PAIRS
    )
    n = len(phi(runs, "strings", "ranks", 1))
    finding(figure, f"Top direction shared by two ranks: φ {ranks}; by two A₀: {starts}", n)
    for ax, labels in ends:
        label_lines(ax, labels)


CLAIM = Claim(
    id="subspaces",
    short="Small and large r agree on top",
    statement="Small and large r find the same top directions, while others do not agree",
    where="§7.2, Figures 3 and 4",
    paper="48th layer of GPT-3, q and v: φ(1, 1) above 0.5 between r = 8 and r = 64; other directions share little",
    configurations=configurations,
    experiment=Experiment(run, version=2),
    parts=PARTS,
    key=key,
    measured=measured,
    draw=draw,
)
