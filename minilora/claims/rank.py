"""§7.2, Table 6: "LoRA already performs competitively with a very small r."

Three worlds. Planted: ΔW of rank 4 is to be found; Eckart and Young say what each r can reach. Strings: a base
that knows seven functions learns an eighth, the task adaptation that the paper is about. Text: a model of
English moves to source code, far from its pretraining; the paper's footnote 6 expects a small r to fall short
on such a task, so that world is reported beside the verdict.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend import to_numpy
from ..optim import SGD
from .adaptation import adaptation, quality, steps_of, trained_for
from .claim import HOLDS, Claim, Configuration, Experiment, Part, Result, Runs, Settings
from .figures import BLUE, GRAY, GREEN, ORANGE, band, panels, ticks
from .measures import deviation, each, mean, of, percent, select, share
from .methods import FULL, LoRA, Method
from .planted import fit, planted
from .rules import always_within, at_least

D, SPECTRUM = 32, (4.0, 3.0, 2.0, 1.0)  # the planted problem
PLANTED_RANKS: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 16, 32)
STRING_TASKS: tuple[str, ...] = ("pairs", "revupper")
STRING_RANKS: tuple[int, ...] = (1, 2, 4, 8, 16, 64)
TEXT_RANKS = (1, 8, 64)
WIDE = LoRA("all", 16)  # on every Linear
SMALL = 8  # the r that the verdict asks about
PAPER = {1: 73.4, 2: 73.3, 4: 73.7, 8: 73.8, 64: 73.5}  # Table 6, WikiSQL with q, v (±0.5)


def configurations(settings: Settings) -> list[Configuration]:
    seeds, steps = settings.bases, steps_of("strings", settings)
    tasks, planted_ranks, ranks = STRING_TASKS, PLANTED_RANKS, STRING_RANKS
    on_text: tuple[Method, ...] = (*map(_method, TEXT_RANKS), WIDE, FULL)
    if settings.quick:
        tasks, planted_ranks, ranks, on_text = STRING_TASKS[1:], (1, 2, 4, 16), (1, SMALL, 64), ()
    return [
        *({"world": "planted", "seed": s, "r": r} for s in seeds for r in planted_ranks),
        *(
            adaptation("strings", s, task, method, steps=steps)
            for s in seeds
            for task in tasks
            for method in (*map(_method, ranks), FULL)
        ),
        *(adaptation("text", s, "code", method) for s in seeds for method in on_text),
    ]


def _method(r: int) -> Method:
    return LoRA("q,v", r)


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


def string_accuracies(runs: Runs, method: Method) -> list[float]:
    """Of each base, the mean over tasks."""
    return quality(runs, "strings", method, STRING_TASKS, "accuracy")


def share_of_full(runs: Runs) -> list[float]:
    """Of each base on strings, what the small r answers as a share of full fine-tuning's."""
    return each(share, string_accuracies(runs, _method(SMALL)), string_accuracies(runs, FULL))


def gap_closed(runs: Runs, method: Method) -> list[float]:
    """Of each base on text, the share of full fine-tuning's gain that a method reaches."""
    before, bits, full = (
        quality(runs, "text", m, ("code",), measure)
        for m, measure in ((method, "before"), (method, "bits"), (FULL, "bits"))
    )
    return each(lambda b, x, f: (b - x) / (b - f), before, bits, full)


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
ON_TEXT = Part(
    f"gap closed, r = {SMALL}",
    "text",
    of(gap_closed, _method(SMALL)),
    "%",
    rule=at_least(0.9),
    what=f"the share of full fine-tuning's gain that r = {SMALL} reaches (footnote 6 excepts such a task)",
    beside=True,
)
PARTS = (
    ON_FLOOR,
    Part("largest distance from the Eckart–Young floor, of ‖D‖²", "exact", of(off_floor, True)),
    *(
        Part(f"answered, {name}", "strings", of(string_accuracies, method), "%")
        for name, method in {**{f"r = {r}": _method(r) for r in STRING_RANKS}, "full": FULL}.items()
    ),
    Part(
        f"share of full fine-tuning, r = {SMALL}",
        "strings",
        share_of_full,
        "%",
        rule=at_least(0.95),
        what=f"what r = {SMALL} answers, as a share of full fine-tuning's,",
    ),
    *(
        ON_TEXT if r == SMALL else Part(f"gap closed, r = {r}", "text", of(gap_closed, _method(r)), "%")
        for r in TEXT_RANKS
    ),
    Part("gap closed, every Linear, r = 16", "text", of(gap_closed, WIDE), "%"),
)


def key(runs: Runs) -> str:
    text = f", text {percent(closed)} %" if (closed := gap_closed(runs, _method(SMALL))) else ""
    return f"r = {SMALL} reaches {100 * mean(share_of_full(runs)):.3g} % of full{text}"


def measured(runs: Runs) -> str:
    first, small, full = (string_accuracies(runs, m) for m in (_method(1), _method(SMALL), FULL))
    said = [
        f"planted: {'on' if ON_FLOOR.measured(runs).verdict == HOLDS else 'not on'} the Eckart–Young floor",
        f"strings: r = 1 answers {percent(first)} %, r = {SMALL} {percent(small)} %, full "
        f"{percent(full)} % after {trained_for(runs, 'strings')} steps",
    ]
    if gap_closed(runs, _method(SMALL)):
        closed = ", ".join(f"{percent(gap_closed(runs, _method(r)))}" for r in TEXT_RANKS)
        steps = trained_for(runs, "text")
        said.append(f"text: r = 1, 8, 64 close {closed} % of the gap after {steps}")
    return "; ".join(said)


def spread(runs: Runs) -> str:
    said = [f"strings r = 8: ±{100 * deviation(string_accuracies(runs, _method(SMALL))):.0f} %"]
    if closed := gap_closed(runs, _method(SMALL)):
        said.append(f"text r = 8: ±{100 * deviation(closed):.0f} %")
    return "; ".join(said)


def draw(runs: Runs, figure: Any) -> None:
    text = gap_closed(runs, FULL)
    left, middle, *right = panels(figure, 3, 12.5, 4.2) if text else panels(figure, 2, 8.6, 4.2)
    ranks = sorted({c["r"] for c, _ in select(runs, world="planted")})
    losses = np.array([[r["loss"] for _, r in select(runs, world="planted", r=rank)] for rank in ranks]).T
    band(left, ranks, np.maximum(losses, 1e-26), BLUE, "LoRA", marker="o")
    least = [max(select(runs, world="planted", r=rank)[0][1]["floor"], 1e-26) for rank in ranks]
    left.plot(ranks, least, "x", color=ORANGE, markersize=9, label="least possible at rank r")
    left.set(xscale="log", yscale="log", ylabel="‖ΔW − D‖²")
    on_floor = ON_FLOOR.measured(runs).verdict == HOLDS
    left.set_title("Planted: on the floor at every r" if on_floor else "Planted: above the floor")

    ranks = [r for r in STRING_RANKS if string_accuracies(runs, _method(r))]
    for task, color in zip(STRING_TASKS, (BLUE, GREEN), strict=True):
        if select(runs, task=task):
            accuracy = [
                [r["accuracy"] for _, r in select(runs, task=task, method=str(_method(rank)))] for rank in ranks
            ]
            band(middle, ranks, 100 * np.array(accuracy).T, color, task, marker="o")
    middle.plot(PAPER.keys(), PAPER.values(), "x", color=GRAY, label="paper: GPT-3, WikiSQL")
    full = string_accuracies(runs, FULL)
    middle.axhline(100 * mean(full), color=GRAY, linestyle="--", label="full fine-tuning")
    middle.axvline(32, color=GRAY, linewidth=1, linestyle=":")
    middle.annotate("r > d/2: larger\nthan the matrix", (34, 45), fontsize=8, color=GRAY)
    middle.set(xscale="log", ylabel="answered exactly (%)", ylim=(0, 104))
    middle.set_title(f"Strings: r = {SMALL} reaches {percent(share_of_full(runs))} % of full")
    of_d = middle.secondary_xaxis("top", functions=(lambda r: r / 64, lambda part: part * 64))
    of_d.set_xlabel("r / d")
    of_d.set_xticks([1 / 64, 1 / 16, 1 / 4, 1], ["1/64", "1/16", "1/4", "1"])
    of_d.minorticks_off()

    for ax in right:
        closed = 100 * np.array([gap_closed(runs, _method(rank)) for rank in TEXT_RANKS]).T
        band(ax, TEXT_RANKS, closed, BLUE, "LoRA on q, v", marker="o")
        ax.plot([16], [100 * mean(gap_closed(runs, WIDE))], "s", color=ORANGE, label="LoRA on every Linear, r = 16")
        ax.axhline(100, color=GRAY, linestyle="--", label="full fine-tuning")
        ax.set(xscale="log", ylabel="share of the gap closed (%)", ylim=(0, 148))
        ax.set_title(f"Text: r = {SMALL} closes {percent(gap_closed(runs, _method(SMALL)))} % of the gap")
    ticks_and_places = ((PLANTED_RANKS, "center right"), (STRING_RANKS, "lower right"), ((1, 4, 16, 64), "upper left"))
    for ax, (shown, place) in zip((left, middle, *right), ticks_and_places, strict=False):
        ax.set_xlabel("rank r")
        ticks(ax, shown)
        ax.legend(loc=place)


CLAIM = Claim(
    id="rank",
    short="A very small r is enough",
    statement="A very small r is enough",
    where="§7.2, Table 6",
    paper=f"WikiSQL with q, v: {PAPER[1]} at r = 1, {PAPER[8]} at r = 8, {PAPER[64]} at r = 64 (±0.5)",
    configurations=configurations,
    experiment=Experiment(run),
    parts=PARTS,
    key=key,
    measured=measured,
    spread=spread,
    draw=draw,
)
