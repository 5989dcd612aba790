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
from ..tasks import planted
from .adaptation import adaptation, learn
from .bases import seed_of
from .claim import (
    Claim,
    Configuration,
    Experiment,
    Measurement,
    Outcome,
    Result,
    Runs,
    Settings,
    at_least,
    deviation,
    mean,
    worst,
)
from .figures import BLUE, GRAY, ORANGE, point
from .planted import fit

PLANTED_D, SPECTRUM = 64, (8.0, 4.0, 2.0, 1.0)
SMALL, LARGE = 8, 32  # never the full rank of 64, whose directions are everything
INIT_STD = 0.01  # a small A₀, which would otherwise fill A's directions with noise
TASKS = {"strings": "revupper", "text": "code"}
SHOWN = ("blocks.1.attn.q_proj", "blocks.1.attn.v_proj")  # the last layer, as the paper's 48th


def configurations(settings: Settings) -> list[Configuration]:
    return [
        *({"world": "planted", "seed": s} for s in range(settings.seeds)),
        *(
            {
                "base": [world, s],
                "runs": [
                    adaptation(world, s, task, f"lora q,v {r}", init_std=INIT_STD, seed=seed)
                    for r, seed in ((SMALL, seed_of(s)), (LARGE, seed_of(s)), (LARGE, seed_of(s) + 1000))
                ],
            }
            for s in settings.bases
            for world, task in TASKS.items()
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


def measurements(runs: Runs) -> list[Measurement]:
    pairs = {"ranks": f"r = {SMALL} against r = {LARGE}", "seeds": "two seeds"}
    return [
        *(
            Measurement(f"φ({i},{i}) of ΔW, {pairs['ranks']}", "exact", phi(runs, "planted", "ranks", i, i))
            for i in (4, 8)
        ),
        *(
            Measurement(f"φ({i},{i}) of ΔW, {name}", world, phi(runs, world, pair, i, i))
            for world in TASKS
            for pair, name in pairs.items()
            for i in (1, 4)
        ),
    ]


def conclude(runs: Runs) -> Outcome:
    known = phi(runs, "planted", "ranks", 4, 4)
    verdicts = {
        "exact": at_least(known, 0.99),
        **{world: at_least(phi(runs, world, "ranks", 1, 1), 0.5) for world in TASKS},
    }
    top = {world: mean(phi(runs, world, "ranks", 1, 1)) for world in TASKS}

    def line(world: str) -> str:
        four, seeds = (mean(phi(runs, world, *what)) for what in (("ranks", 4, 4), ("seeds", 1, 1)))
        return f"{world} φ(1,1) {top[world]:.2f}, φ(4,4) {four:.2f}, two seeds φ(1,1) {seeds:.2f} ({verdicts[world]})"

    return Outcome(
        f"ΔW of r = {SMALL} against r = {LARGE}: planted φ(4,4) {mean(known):.3f}, "
        f"φ(8,8) {mean(phi(runs, 'planted', 'ranks', 8, 8)):.2f}; last layer's q and v: "
        f"{'; '.join(line(world) for world in TASKS)}; random φ(1,1) {1 / 64:.2f}, φ(4,4) {4 / 64:.2f}",
        "; ".join(f"{world} φ(1,1) ±{deviation(phi(runs, world, 'ranks', 1, 1)):.2f}" for world in TASKS),
        worst(list(verdicts.values())),
        key=f"φ(1,1): strings {top['strings']:.2f}, text {top['text']:.2f}",
        verdicts=verdicts,
        measurements=measurements(runs),
    )


def draw(runs: Runs, figure: Any) -> None:
    figure.set_size_inches(12.5, 8.6)
    upper, lower = figure.subfigures(2, 1, height_ratios=(1.25, 1))
    panels = [("planted", "ΔW")] + [(world, kind) for world in TASKS for kind in ("A", "B", "ΔW")]
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
    for world, color in (("strings", BLUE), ("text", ORANGE)):
        for pair, style, label in (
            ("ranks", "o-", f"r = {SMALL} against {LARGE}"),
            ("seeds", "s--", "two seeds of r = 32"),
        ):
            values = [mean(phi(runs, world, pair, int(n), int(n))) for n in i]
            left.plot(i, values, style, color=color, label=f"{world}: {label}")
    left.plot(i, np.diag(random_similarity(SMALL, SMALL, 64)), ":", color=GRAY, label="random: i/d")
    left.set(xlabel="i", ylabel="φ(i, i) of ΔW, last layer's q and v", ylim=(0, 1.05))
    left.set_title(
        f"Top direction shared: strings {mean(phi(runs, 'strings', 'ranks', 1, 1)):.2f}, "
        f"text {mean(phi(runs, 'text', 'ranks', 1, 1)):.2f}"
    )
    for place, kind in enumerate(("A", "B", "ΔW")):
        for shift, world, color in ((-0.12, "strings", BLUE), (0.12, "text", ORANGE)):
            point(
                right, place + shift, phi(runs, world, "ranks", 1, 1, kind), color, "o", world if place == 0 else None
            )
    right.axhline(0.5, color=GRAY, linestyle="--", linewidth=1, label="paper: above 0.5")
    right.axhline(1 / 64, color=GRAY, linestyle=":", label="random: 1/d")
    right.set_xticks(range(3), ["A (rows)", "B (columns)", "ΔW (inputs)"])
    right.set(ylim=(0, 1.05), xlim=(-0.5, 2.5), ylabel="φ(1, 1), range over bases")
    shared = [
        f"{kind} " + " / ".join(f"{mean(phi(runs, world, 'ranks', 1, 1, kind)):.2f}" for world in TASKS)
        for kind in ("A", "B", "ΔW")
    ]
    right.set_title(f"Strings / text: {', '.join(shared)}")
    for ax in (left, right):
        ax.legend(fontsize=8)


CLAIM = Claim(
    id="subspaces",
    short="Small and large r agree at the top",
    statement="Small and large r find the same top directions",
    where="§7.2, Figures 3 and 4",
    paper="48th layer of GPT-3, q and v: φ(1, 1) above 0.5 between r = 8 and r = 64; other directions share little",
    rule=(
        "holds if, by two standard errors: in the planted map φ(4, 4) of ΔW is at least 0.99 (its rank is 4), and in "
        "the last layer's q and v the mean φ(1, 1) of ΔW between r = 8 and r = 32 is at least 0.5 over bases, on "
        "strings and on text"
    ),
    exact=False,
    configurations=configurations,
    experiment=Experiment(run),
    conclude=conclude,
    draw=draw,
)
