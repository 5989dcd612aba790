"""App. F.3, Table 16: with few examples of MNLI LoRA is ahead of full fine-tuning, with many it is not behind.

Planted: a linear map W₀ + D, D of rank 2, is learned from few noisy examples. Theory counts free directions: r(2d - r)
of rank r against d² of all, and the error of an estimate grows with them. LoRA is given the right rank there, so full
fine-tuning is given the right moment to stop too: the least error on its path from W₀. Strings: a task from N examples,
each method and N at its own learning rate. Few examples are learned by heart, and the loss on others then grows without
end for an answer that is merely wrong, so answers are what counts: the log-odds of the share answered, half an answer
added on either side, so that none and all are numbers.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from ..backend import to_numpy
from ..optim import Adam, linear_schedule
from .adaptation import adaptation, quality, steps_of
from .claim import Claim, Configuration, Experiment, Part, Result, Runs, Settings
from .figures import BLUE, GRAY, GREEN, band, finding, label_lines, panels, ticks
from .measures import each, log_odds, mean, of
from .methods import FULL, LoRA, Method
from .planted import fit, planted
from .rules import at_least

D, RANK, EXAMPLES, NOISE_LEVEL = 32, 2, 64, 0.1  # the planted problem
RANKS: tuple[int, ...] = (2, 4, 8, 16, 32)
FEW: tuple[int, ...] = (16, 64, 256, 1024)
TASK, LORA = "revupper", LoRA("q,v", 4)
METHODS = {"full fine-tuning": FULL, "LoRA on q, v, r = 4": LORA}


def configurations(settings: Settings) -> list[Configuration]:
    few, ranks, of_base, steps = FEW, RANKS, 3, steps_of("strings", settings)
    if settings.quick:
        few, ranks, of_base = FEW[1:2], RANKS[::2], 1
    return [
        *({"seed": s, "r": r} for s in range(of_base * settings.seeds) for r in (*ranks, "full")),
        *(
            adaptation("strings", s, TASK, m, examples=n, steps=steps)
            for s in settings.bases
            for n in few
            for m in METHODS.values()
        ),
    ]


def run(configuration: Configuration) -> Result:
    """‖W - W*‖² of a W learned from EXAMPLES noisy examples; of "full", by least squares and by stopping at the best
    moment of gradient descent from W₀."""
    rng = np.random.default_rng(configuration["seed"])
    W0, change = planted(D, (1.0,) * RANK, rng)
    x = rng.normal(size=(EXAMPLES, D))
    y = x @ (W0 + change).T + NOISE_LEVEL * rng.normal(size=(EXAMPLES, D))
    if configuration["r"] != "full":
        steps = 2000
        layer = fit(
            W0, x, y, configuration["r"], lambda p: Adam(p, 0.02), steps, configuration["seed"], linear_schedule(steps)
        )
        return {"excess": _squared(to_numpy(layer.delta_weight()) - change)}
    exact = np.linalg.lstsq(x, y - x @ W0.T, rcond=None)[0].T
    return {"excess": _squared(exact - change), "stopped": _best_on_the_path(x, y - x @ W0.T, change)}


def _best_on_the_path(x: np.ndarray, y: np.ndarray, change: np.ndarray) -> float:
    """The least ‖ΔW - D‖² of gradient descent on ‖xΔWᵀ - y‖² from ΔW = 0, in steps so small that more change nothing.

    In the directions of x's singular vectors the path is known: after t steps of η a share 1 - (1 - η s²)ᵗ of the end.
    """
    u, s, vh = np.linalg.svd(x, full_matrices=False)
    ends = (u.T @ y) / s[:, None]  # (d, out), the least-squares solution along each right singular vector
    times = np.logspace(-2, 3, 200) / s[0] ** 2
    return min(_squared(((1 - np.exp(-t * s**2))[:, None] * ends).T @ vh - change) for t in times)


def _squared(error: np.ndarray) -> float:
    return float((error**2).sum())


# ---- what it came to ---------------------------------------------------------------------------------


def excess(runs: Runs, r: Any, which: str = "excess") -> list[float]:
    """Of each planted problem."""
    return [result[which] for c, result in runs if c.get("r") == r]


def saved(runs: Runs, which: str) -> list[float]:
    """Of each planted problem, the error of the whole matrix minus that of the right rank."""
    return each(operator.sub, excess(runs, "full", which), excess(runs, RANK))


def answered(runs: Runs, method: Method, n: int) -> list[float]:
    """Of each base on strings."""
    return quality(runs, "strings", method, "accuracy", examples=n)


def lead(runs: Runs, n: int) -> list[float]:
    """Of each base, how many doublings of the odds LoRA is ahead after n examples."""
    return each(lambda lora, full: log_odds(lora) - log_odds(full), answered(runs, LORA, n), answered(runs, FULL, n))


def mean_lead(runs: Runs) -> list[float]:
    return each(lambda *leads: mean(leads), *(lead(runs, n) for n in examples_run(runs)))


def examples_run(runs: Runs) -> list[int]:
    return sorted({c["examples"] for c, _ in runs if "examples" in c})


PARTS = (
    *(Part(f"excess error, r = {r}", "exact", of(excess, r)) for r in RANKS),
    Part("excess error, least squares", "exact", of(excess, "full")),
    Part("excess error, stopped at the best moment", "exact", of(excess, "full", "stopped")),
    *(
        Part(
            f"excess error, {name} minus r = {RANK}",
            "exact",
            of(saved, which),
            rule=at_least(0),
            what=f"planted, the excess error of the whole matrix, by least squares and stopped at the best moment, "
            f"minus that at r = {RANK}",
        )
        for which, name in (("excess", "least squares"), ("stopped", "stopped"))
    ),
    *(
        Part(f"answered from {n} examples, {name}", "strings", of(answered, m, n), "%")
        for n in FEW
        for name, m in METHODS.items()
    ),
    *(Part(f"lead of LoRA in doublings of the odds, {n} examples", "strings", of(lead, n)) for n in FEW),
    Part(
        "lead of LoRA in doublings of the odds, mean",
        "strings",
        mean_lead,
        rule=at_least(0),
        what=f"LoRA's lead over full fine-tuning, in doublings of the odds of an answer, in the mean over "
        f"{', '.join(map(str, FEW))} examples,",
    ),
)


def key(runs: Runs) -> str:
    small, full = mean(excess(runs, RANK)), mean(excess(runs, "full", "stopped"))
    return f"planted {small:.2f}, full {full:.2f}; odds 2^{mean(mean_lead(runs)):+.1f}"


def measured(runs: Runs) -> str:
    shown = "; ".join(
        f"{n}: {100 * mean(answered(runs, LORA, n)):.0f} and {100 * mean(answered(runs, FULL, n)):.0f}"
        for n in examples_run(runs)
    )
    return (
        f"planted, {EXAMPLES} examples: excess error r = {RANK} {mean(excess(runs, RANK)):.3f}, whole matrix "
        f"{mean(excess(runs, 'full')):.3f}, stopped at the best moment {mean(excess(runs, 'full', 'stopped')):.3f}; "
        f"strings, LoRA and full answer (%) from examples {shown}; odds {mean(mean_lead(runs)):+.2f} doublings"
    )


def draw(runs: Runs, figure: Any) -> None:
    left, right = panels(figure, 2, 3.7)
    ranks = [r for r in RANKS if excess(runs, r)]
    middle = band(left, ranks, np.array([excess(runs, r) for r in ranks]).T, BLUE, marker="o")
    ends = [(float(ranks[-1]), float(middle[-1]), "LoRA", BLUE)]
    stopped, full = (mean(excess(runs, "full", which)) for which in ("stopped", "excess"))
    for height, words, color in ((full, "least squares", GRAY), (stopped, "stopped early", GREEN)):
        left.plot([ranks[0], ranks[-1]], [height, height], "--", color=color, linewidth=1.3)
        ends.append((float(ranks[-1]), height, words, color))
    left.set(xscale="log", yscale="log", xlabel="rank r (planted: 2)", ylabel="excess error", title="planted")
    left.set_xlim(1.8, 160)
    ticks(left, ranks, (0.03, 0.1, 0.3))
    few, labels = examples_run(runs), []
    for (name, method), color in zip(METHODS.items(), (GRAY, BLUE), strict=True):
        values = 100 * np.array([answered(runs, method, n) for n in few]).T
        middle = band(right, few, values, color, marker="o")
        labels.append((float(few[-1]), float(middle[-1]), name.split(" ")[0], color))
    right.set(xscale="log", xlabel="examples", ylabel="answered exactly (%)", ylim=(-4, 104), title="strings")
    right.set_xlim(few[0] * 0.8, few[-1] * 3.5)
    ticks(right, few)
    place = "ahead" if mean(mean_lead(runs)) > 0 else "behind"
    times = stopped / mean(excess(runs, RANK))
    said = f"Planted, the right rank errs {times:.1f} times less; on strings LoRA is {place}"
    finding(figure, said, len(answered(runs, FULL, few[0])))
    label_lines(left, ends)
    label_lines(right, labels)


CLAIM = Claim(
    id="low_data",
    short="With little data LoRA beats full",
    statement="With little data LoRA does better than full fine-tuning",
    where="App. F.3, Table 16",
    paper="MNLI, full and LoRA: 100 examples 60.2 and 63.8, 1k 85.8 and 85.6, 10k 88.9 and 89.2, 392k 89.5 and 91.7",
    configurations=configurations,
    experiment=Experiment(run, version=3),
    parts=PARTS,
    key=key,
    measured=measured,
    draw=draw,
)
