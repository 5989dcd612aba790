"""§7.2, Figures 3 and 4: "the top singular-vector directions overlap significantly between r = 8 and r = 64".

φ(i, j) of two learned ΔW: of a small and a large rank, and of two seeds. Planted first, where the answer is known,
then the transformer. The directions of A alone depend on how ΔW is split into B and A; those of ΔW do not. Beside
each measured φ stands what two random subspaces share, max(i, j)/d, and how far two seeds of one rank agree.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..analysis import input_directions, output_directions, random_similarity, subspace_similarity
from ..lora import lora_layers
from ..optim import Adam, linear_schedule
from .adaptation import STEPS, adaptation, learn, steps_of
from .bases import seed_of
from .claim import Claim, Configuration, Experiment, Part, Result, Runs, Settings
from .figures import BLUE, GRAY, ORANGE, point
from .measures import deviation, mean, of
from .methods import LoRA
from .planted import fit, planted
from .rules import at_least

PLANTED_D, SPECTRUM = 64, (8.0, 4.0, 2.0, 1.0)
SMALL, LARGE = 8, 32  # never the full rank of 64, whose directions are everything
INIT_STD = 0.01  # a small A₀, which would otherwise fill A's directions with noise
TASKS = {"strings": "revupper", "text": "code"}
SHOWN = ("blocks.1.attn.q_proj", "blocks.1.attn.v_proj")  # the last layer, as the paper's 48th


def configurations(settings: Settings) -> list[Configuration]:
    steps = {world: steps_of(world, settings) for world in STEPS}
    return [
        *({"world": "planted", "seed": s} for s in range(settings.seeds)),
        *(
            {
                "base": [world, s],
                "runs": [
                    adaptation(world, s, TASKS[world], LoRA("q,v", r), init_std=INIT_STD, seed=seed, steps=steps[world])
                    for r, seed in ((SMALL, seed_of(s)), (LARGE, seed_of(s)), (LARGE, seed_of(s) + 1000))
                ],
            }
            for s in settings.bases
            for world, task in TASKS.items()
            if world == "strings" or not settings.quick
        ),
    ]


def run(configuration: Configuration) -> Result:
    """φ of small against large, and of large against large of another seed: {layer: {matrix: {pair: φ}}}."""
    if configuration.get("world") == "planted":
        return {"layer": _compare(*_planted(configuration["seed"]))}
    learned = [lora_layers(learn(c)[0]) for c in configuration["runs"]]
    return {
        name: _compare(
            *({"A": m[name].lora_A.data, "B": m[name].lora_B.data, "ΔW": m[name].delta_weight()} for m in learned)
        )
        for name in learned[0]
    }


def _compare(small: dict[str, Any], large: dict[str, Any], other: dict[str, Any]) -> Result:
    def directions(of: dict[str, Any], kind: str, r: int) -> np.ndarray:
        return output_directions(of["B"], r) if kind == "B" else input_directions(of[kind], r)

    return {
        kind: {
            "ranks": subspace_similarity(directions(small, kind, SMALL), directions(large, kind, LARGE)).tolist(),
            "seeds": subspace_similarity(directions(large, kind, SMALL), directions(other, kind, SMALL)).tolist(),
        }
        for kind in ("A", "B", "ΔW")
    }


def _planted(seed: int) -> list[dict[str, Any]]:
    """LoRA of the small rank, the large one, and the large one from another seed, on a map of known ΔW."""
    W0, change = planted(PLANTED_D, SPECTRUM, np.random.default_rng(seed))
    white, steps = np.eye(PLANTED_D), 1000
    learned = []
    for r, lora_seed in ((SMALL, seed), (LARGE, seed), (LARGE, seed + 1000)):
        answers, schedule = (W0 + change).T, linear_schedule(steps)
        layer = fit(W0, white, answers, r, lambda p: Adam(p, 0.01), steps, lora_seed, schedule, INIT_STD)
        learned.append({"A": layer.lora_A.data, "B": layer.lora_B.data, "ΔW": layer.delta_weight()})
    return learned


# ---- what it came to ---------------------------------------------------------------------------------


def tables(runs: Runs, world: str, pair: str, kind: str = "ΔW") -> list[np.ndarray]:
    """Of each base, φ(i, j), the mean over the layers shown; of the planted map, of each seed."""
    layers = ("layer",) if world == "planted" else SHOWN
    return [
        np.mean([r[name][kind][pair] for name in layers], axis=0)
        for c, r in runs
        if world in (c.get("world"), *c.get("base", ()))
    ]


def phi(runs: Runs, world: str, pair: str, i: int, j: int, kind: str = "ΔW") -> list[float]:
    """Of each base, one entry of its table."""
    return [float(table[i - 1, j - 1]) for table in tables(runs, world, pair, kind)]


def worlds_run(runs: Runs) -> list[str]:
    return [world for world in TASKS if tables(runs, world, "ranks")]


PAIRS = {"ranks": f"r = {SMALL} against r = {LARGE}", "seeds": "two seeds"}
RULES = {  # (world, i, pair): what φ(i, i) must come to
    ("planted", 4, "ranks"): at_least(0.99),
    ("strings", 1, "ranks"): at_least(0.5),
    ("text", 1, "ranks"): at_least(0.5),
}
PARTS = tuple(
    Part(
        f"φ({i},{i}) of ΔW, {PAIRS[pair]}",
        "exact" if world == "planted" else world,
        of(phi, world, pair, i, i),
        rule=RULES.get((world, i, pair)),
        what=f"φ({i},{i}) of ΔW between r = {SMALL} and r = {LARGE}, "
        + ("planted with rank 4," if world == "planted" else "in the mean of the last layer's q and v,"),
    )
    for world, pairs, places in (("planted", ("ranks",), (4, 8)), ("strings", PAIRS, (1, 4)), ("text", PAIRS, (1, 4)))
    for pair in pairs
    for i in places
)


def top(runs: Runs) -> str:
    """ "strings 0.53, text 0.42": the mean φ(1, 1) of each world."""
    return ", ".join(f"{world} {mean(phi(runs, world, 'ranks', 1, 1)):.2f}" for world in worlds_run(runs))


def key(runs: Runs) -> str:
    return f"top direction: {top(runs)}"


def measured(runs: Runs) -> str:
    def line(world: str) -> str:
        one, four, seeds = (
            mean(phi(runs, world, pair, i, i)) for pair, i in (("ranks", 1), ("ranks", 4), ("seeds", 1))
        )
        return f"{world} φ(1,1) {one:.2f}, φ(4,4) {four:.2f}, two seeds φ(1,1) {seeds:.2f}"

    return (
        f"ΔW of r = {SMALL} against r = {LARGE}: planted φ(4,4) {mean(phi(runs, 'planted', 'ranks', 4, 4)):.3f}, "
        f"φ(8,8) {mean(phi(runs, 'planted', 'ranks', 8, 8)):.2f}; last layer's q and v: "
        f"{'; '.join(map(line, worlds_run(runs)))}; random φ(1,1) {1 / 64:.2f}, φ(4,4) {4 / 64:.2f}"
    )


def spread(runs: Runs) -> str:
    return "; ".join(f"{w} φ(1,1) ±{deviation(phi(runs, w, 'ranks', 1, 1)):.2f}" for w in worlds_run(runs))


def draw(runs: Runs, figure: Any) -> None:
    figure.set_size_inches(12.5, 8.6)
    upper, lower = figure.subfigures(2, 1, height_ratios=(1.25, 1))
    colors = {world: color for world, color in (("strings", BLUE), ("text", ORANGE)) if world in worlds_run(runs)}
    panels = [("planted", "ΔW")] + [(world, kind) for world in colors for kind in ("A", "B", "ΔW")]
    axes = upper.subplots(2, len(panels), sharey=True, sharex="row")
    for row, (pair, columns) in zip(axes, (("ranks", LARGE), ("seeds", SMALL)), strict=True):
        for ax, (world, kind) in zip(row, panels, strict=True):
            heat = np.mean(tables(runs, world, pair, kind), axis=0)
            edges = (0.5, columns + 0.5, SMALL + 0.5, 0.5)
            image = ax.imshow(heat, cmap="cividis", vmin=0, vmax=1, aspect="auto", extent=edges)
            ax.set_title(f"{world}, {kind}: {heat[0, 0]:.2f}", fontsize=9.5)
            ax.set_xticks([1, 8, 16, 32] if columns == LARGE else [1, 4, 8])
            ax.set_yticks([1, 4, 8])
            ax.grid(False)
    axes[0, 0].set_ylabel(f"i of r = {SMALL},\nj of r = {LARGE}")
    axes[1, 0].set_ylabel(f"i and j of two\nseeds of r = {LARGE}")
    for ax in axes[1]:
        ax.set_xlabel("j")
    upper.colorbar(image, ax=axes, label="φ(i, j), in titles φ(1, 1)")
    left, right = lower.subplots(1, 2, width_ratios=(1, 1.15))
    i = np.arange(1, SMALL + 1)
    for world, color in colors.items():
        for pair, style, label in (
            ("ranks", "o-", f"r = {SMALL} against {LARGE}"),
            ("seeds", "s--", "two seeds of r = 32"),
        ):
            values = [mean(phi(runs, world, pair, int(n), int(n))) for n in i]
            left.plot(i, values, style, color=color, label=f"{world}: {label}")
    left.plot(i, np.diag(random_similarity(SMALL, SMALL, 64)), ":", color=GRAY, label="random: i/d")
    left.set(xlabel="i", ylabel="φ(i, i) of ΔW, last layer's q and v", ylim=(0, 1.05))
    left.set_title(f"Top direction shared: {top(runs)}")
    for place, kind in enumerate(("A", "B", "ΔW")):
        for shift, (world, color) in zip((-0.12, 0.12), colors.items(), strict=False):
            values = phi(runs, world, "ranks", 1, 1, kind)
            point(right, place + shift, values, color, "o", world if place == 0 else None)
    right.axhline(0.5, color=GRAY, linestyle="--", linewidth=1, label="paper: above 0.5")
    right.axhline(1 / 64, color=GRAY, linestyle=":", label="random: 1/d")
    right.set_xticks(range(3), ["A (rows)", "B (columns)", "ΔW (inputs)"])
    right.set(ylim=(0, 1.05), xlim=(-0.5, 2.5), ylabel="φ(1, 1), range over bases")
    shared = [
        f"{kind} " + " / ".join(f"{mean(phi(runs, world, 'ranks', 1, 1, kind)):.2f}" for world in colors)
        for kind in ("A", "B", "ΔW")
    ]
    right.set_title(f"{' / '.join(colors).capitalize()}: {', '.join(shared)}")
    for ax in (left, right):
        ax.legend(fontsize=8)


CLAIM = Claim(
    id="subspaces",
    short="Small and large r agree on top",
    statement="Small and large r find the same top directions",
    where="§7.2, Figures 3 and 4",
    paper="48th layer of GPT-3, q and v: φ(1, 1) above 0.5 between r = 8 and r = 64; other directions share little",
    configurations=configurations,
    experiment=Experiment(run),
    parts=PARTS,
    key=key,
    measured=measured,
    spread=spread,
    draw=draw,
)
