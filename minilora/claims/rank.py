"""§7.2, Table 6: "LoRA already performs competitively with a very small r."

As in the table, a small r is compared with a large one, each at its own tuned rate; and, since a low rank may only need
more time, after trainings of several lengths. Three worlds. Planted: ΔW of rank 4 is to be found; Eckart and Young say
what each r can reach. Strings: a base that knows seven functions learns an eighth. Text: a model of English moves to
source code, far from its pretraining; the paper's footnote 6 expects a small r to fall short on such a task. r = 4 of
d = 64 is d/16: at GPT-3's width that part would be 768.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend import to_numpy
from ..optim import SGD
from .adaptation import LENGTHS, LONG, STEPS, TASKS, adaptation, behind, bits, gained, quality, steps_of, worlds_run
from .claim import HOLDS, Claim, Configuration, Experiment, Part, Result, Runs, Settings
from .figures import BLUE, GRAY, GREEN, ORANGE, band, finding, label_lines, panels, ticks
from .measures import each, mean, of, percent, select
from .methods import FULL, LoRA, Method
from .planted import fit, planted
from .rules import NEAR, NEAR_IN_WORDS, always_within, at_least, at_most

D, SPECTRUM = 32, (4.0, 3.0, 2.0, 1.0)  # the planted problem
PLANTED_RANKS: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 16, 32)
RANKS: tuple[int, ...] = (1, 2, 4, 8, 16, 64)
SMALL, LARGE = 4, 64
ONE, FEW, MANY = (LoRA("q,v", r) for r in (1, SMALL, LARGE))
OVER_STEPS = {"r = 1": ONE, "r = 4": FEW, "r = 64": MANY, "full": FULL}
SHORT, LONGEST = 100, 3000  # steps; the longest for r = 1 and full fine-tuning on strings, on the first three bases
ALONE: tuple[int, ...] = (1, 8, 64)  # ranks of W_q alone, which in Table 6 wants more than q and v


def configurations(settings: Settings) -> list[Configuration]:
    planted_ranks = (1, 2, 4, 16) if settings.quick else PLANTED_RANKS
    seeds = [{"world": "planted", "seed": s, "r": r} for s in settings.bases for r in planted_ranks]
    if settings.quick:
        methods, steps = OVER_STEPS.values(), steps_of("strings", settings)
        return [
            *seeds,
            *(adaptation("strings", s, "revupper", m, steps=steps) for s in settings.bases for m in methods),
        ]
    asked: list[tuple[str, Method, int]] = [
        *(("strings", LoRA("q,v", r), STEPS["strings"]) for r in RANKS),
        *(("strings", LoRA("q", r), STEPS["strings"]) for r in ALONE),
        *((world, m, SHORT) for world in TASKS for m in OVER_STEPS.values()),
        *(("text", m, STEPS["text"]) for m in OVER_STEPS.values()),
        ("strings", FULL, STEPS["strings"]),
    ]
    if settings.long:
        asked += [(world, m, LONG[world]) for world in TASKS for m in OVER_STEPS.values()]
    longest = [("strings", m, LONGEST) for m in (ONE, FULL)] if settings.long else []
    return [
        *seeds,
        *(adaptation(w, s, TASKS[w], m, steps=steps) for s in settings.bases for w, m, steps in asked),
        *(adaptation(w, s, TASKS[w], m, steps=steps) for s in settings.bases[:3] for w, m, steps in longest),
    ]


def run(configuration: Configuration) -> Result:
    """‖ΔW - D‖² after training, and the least that rank r allows."""
    seed, r = configuration["seed"], configuration["r"]
    W0, change = planted(D, SPECTRUM, np.random.default_rng(seed))
    white = np.eye(D)  # all inputs: the loss is ‖W₀ + ΔW - (W₀ + D)‖²
    layer = fit(W0, white, (W0 + change).T, r, lambda p: SGD(p, 0.02), 3000, seed)
    delta = to_numpy(layer.delta_weight())
    floor = float(sum(v**2 for v in SPECTRUM[r:]))
    return {"loss": float(((delta - change) ** 2).sum()), "floor": floor, "start": float((change**2).sum())}


# ---- what it came to ---------------------------------------------------------------------------------


def answered_of_full(runs: Runs, method: Method) -> list[float]:
    """Of each base, the share of full fine-tuning's answers, which Table 6 has too."""
    own, full = (quality(runs, "strings", m, "accuracy") for m in (method, FULL))
    return each(lambda a, b: a / b if b else 0.0, own, full)


def off_floor(runs: Runs, of_start: bool) -> list[float]:
    """Of each seed, the largest distance from the least loss at any rank: as a share of ‖D‖², or of what is allowed,
    0.1 % of that least loss, or 1e-12 of ‖D‖² where it is 0."""

    def distance(r: Result) -> float:
        allowed = 1e-3 * r["floor"] if r["floor"] else 1e-12 * r["start"]
        return abs(r["loss"] - r["floor"]) / (r["start"] if of_start else allowed)

    planted_runs = select(runs, world="planted")
    return [
        max(distance(r) for c, r in planted_runs if c["seed"] == seed)
        for seed in sorted({c["seed"] for c, _ in planted_runs})
    ]


ON_FLOOR = Part(
    "distance from the Eckart–Young floor, of what is allowed",
    "exact",
    of(off_floor, False),
    rule=always_within(1),
    what="the planted losses' distance from the Eckart–Young floor, as a multiple of 0.1 % of it (of 1e-12 of the "
    "start where it is 0),",
)


def _steps(world: str) -> list[int]:
    return [SHORT, STEPS[world], LONG[world], *([LONGEST] if world == "strings" else [])]


PARTS = (
    ON_FLOOR,
    Part("largest distance from the Eckart–Young floor, of ‖D‖²", "exact", of(off_floor, True)),
    *(
        Part(
            f"r = {SMALL} behind r = {LARGE}, {length}",
            "strings",
            of(behind, "strings", FEW, MANY, steps["strings"]),
            "bits",
            rule=at_most(NEAR),
            what=f"what r = {SMALL} loses a character more than r = {LARGE}, after a short and a long training "
            f"{NEAR_IN_WORDS},",
        )
        for length, steps in LENGTHS.items()
    ),
    *(
        Part(
            f"gain of r = {LARGE} that r = {SMALL} reaches, {length}",
            "text",
            of(gained, FEW, MANY, steps["text"]),
            "%",
            rule=at_least(0.9),
            what=f"the share of r = {LARGE}'s gain in bits that r = {SMALL} reaches, after a short and a long one,",
        )
        for length, steps in LENGTHS.items()
    ),
    *(
        Part(f"r = 1 behind r = {LARGE}, {length}", world, of(behind, world, ONE, MANY, steps[world]), "bits")
        for world in TASKS
        for length, steps in LENGTHS.items()
    ),
    *(
        Part(f"loss after {n:,} steps, {name}", w, of(bits, w, method, n), "bits")
        for w in TASKS
        for n in _steps(w)
        for name, method in OVER_STEPS.items()
    ),
    *(
        Part(f"answers, of full fine-tuning's, r = {r}", "strings", of(answered_of_full, LoRA("q,v", r)), "%")
        for r in RANKS
    ),
    *(
        Part(f"answers, of full fine-tuning's, q alone, r = {r}", "strings", of(answered_of_full, LoRA("q", r)), "%")
        for r in ALONE
    ),
)


def key(runs: Runs) -> str:
    said = f"r = {SMALL} {mean(behind(runs, 'strings', FEW, MANY)):+.3f} bits"
    return said + (f"; text gains {percent(reached)} %" if (reached := gained(runs, FEW, MANY)) else "")


def measured(runs: Runs) -> str:
    said = [f"planted: {'on' if ON_FLOOR.measured(runs).verdict == HOLDS else 'not on'} the Eckart–Young floor"]
    for world in TASKS:
        for steps in lengths(runs, world):
            losses = [f"{name} {mean(b):.3f}" for name, m in OVER_STEPS.items() if (b := bits(runs, world, m, steps))]
            if steps in (*STEPS.values(), *LONG.values()) or len(lengths(runs, world)) == 1:
                said.append(f"{world} after {steps:,} steps (bits): {', '.join(losses)}")
    return "; ".join(said)


def lengths(runs: Runs, world: str) -> list[int]:
    """The numbers of steps that were run."""
    return sorted({c["steps"] for c, _ in runs if c.get("base", [None])[0] == world})


def draw(runs: Runs, figure: Any) -> None:
    worlds = worlds_run(runs)
    axes = panels(figure, len(worlds), 3.7)
    ends = []
    for ax, world in zip(axes, worlds, strict=True):
        labels = []
        for (name, method), color in zip(OVER_STEPS.items(), (GREEN, BLUE, ORANGE, GRAY), strict=True):
            losses = {n: b for n in lengths(runs, world) if (b := bits(runs, world, method, n))}
            longest = losses.pop(LONGEST, None)  # of fewer bases
            middle = band(ax, list(losses), np.array(list(losses.values())).T, color, marker="o")
            end = (float(max(losses)), float(middle[-1]))
            if longest:
                median = sorted(longest)[len(longest) // 2]
                ax.plot([end[0], LONGEST], [end[1], median], ":", color=color, linewidth=1)
                ax.plot([LONGEST] * len(longest), longest, ".", color=color)
                end = (float(LONGEST), median)
            labels.append((*end, name, color))
        ax.set(xscale="log", xlabel="steps", yscale="log" if world == "strings" else "linear")
        ax.set_title("strings; after 3,000 steps three bases, as dots" if LONGEST in lengths(runs, world) else world)
        ax.set_ylabel("bits/character of the answer" if world == "strings" else "bits/character of code")
        ticks(ax, lengths(runs, world))
        ax.set_xlim(lengths(runs, world)[0] * 0.85, lengths(runs, world)[-1] * 2.4)
        ends.append((ax, labels))
    reached = mean(behind(runs, "strings", FEW, MANY))
    said = f"On strings r = {SMALL} is {abs(reached):.3f} bits {'behind' if reached > 0 else 'ahead of'} r = {LARGE}"
    if share := gained(runs, FEW, MANY):
        said += f"; on text it has {percent(share)} % of its gain"
    finding(figure, said, len(bits(runs, "strings", FEW)))
    for ax, labels in ends:
        label_lines(ax, labels)


CLAIM = Claim(
    id="rank",
    short="A very small r is enough",
    statement="A very small r does as well as a large one",
    where="§7.2, Table 6",
    paper="WikiSQL with q, v: 73.4 at r = 1, 73.7 at r = 4, 73.5 at r = 64; q alone: 68.8, 70.5, 70.0 (±0.5)",
    configurations=configurations,
    experiment=Experiment(run),
    parts=PARTS,
    key=key,
    measured=measured,
    draw=draw,
)
