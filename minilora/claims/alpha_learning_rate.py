"""§4.1: "When optimizing with Adam, tuning α is roughly the same as tuning the learning rate if we scale the
initialization appropriately."

With A′ = √c·A and B′ = √c·B, (cα)·BA = α·B′A′: a run with α times c is, in ΔW, the very run with α whose A
starts √c times as wide, whose learning rate is √c times as high and whose ε is 1/√c times as large. So the
paper's sentence is an equality with its clause, and wrong without it: "α times c is the learning rate times
c" holds for Adam's first step only. How the best rate follows α when the start is left alone is measured.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .claim import Claim, Configuration, Experiment, Part, Result, Runs, Settings
from .figures import BLUE, GRAY, GREEN, ORANGE, band, finding, label_lines, panels, ticks
from .measures import each, interval, mean, of, relative
from .rules import always_equal, always_within
from .sweeps import ALPHA, best_rates, curves, lora, sweep
from .two_factors import multiples, trained_delta

R = 8
ALPHAS = (0.5, ALPHA, 128.0)
CENTERS = {0.5: -3.5, ALPHA: -6.0, 128.0: -8.5}  # log₂ of the rate around which the best is looked for
IDENTITIES = {"3": 3.0, "4": 4.0}  # c; √4 is a power of 2, so that nothing is rounded


def configurations(settings: Settings) -> list[Configuration]:
    alphas = ALPHAS[1:] if settings.quick else ALPHAS
    grid = [
        c for b in settings.bases for a in alphas for c in sweep("strings", b, CENTERS[a], settings.quick, **lora(R, a))
    ]
    return [{"identities": list(IDENTITIES)}, *grid]


def run(configuration: Configuration) -> Result:
    """How far ΔW of the run that equals α·c is from it, for Adam and SGD; and of the one with the rate times c."""
    result: Result = {}
    for kind in ("adam", "sgd"):
        for name in configuration["identities"]:
            c = IDENTITIES[name]
            wanted = trained_delta(kind, alpha=c)
            times = multiples(kind, math.sqrt(c), math.sqrt(c))
            result[f"{kind} {name}"] = relative(trained_delta(kind, **{**times, "alpha": 1}), wanted)
            result[f"naive {kind} {name}"] = relative(trained_delta(kind, lr_A=c, lr_B=c), wanted)
    return result


# ---- what it came to ---------------------------------------------------------------------------------


def identity_error(runs: Runs, c: str) -> list[float]:
    """The larger of Adam's and SGD's, of ΔW's largest entry."""
    return [max(_of_identities(runs)[f"{kind} {c}"] for kind in ("adam", "sgd"))]


def naive_error(runs: Runs) -> list[float]:
    return [_of_identities(runs)["naive adam 3"]]


def _of_identities(runs: Runs) -> Result:
    return next(result for c, result in runs if "identities" in c)


def alphas_run(runs: Runs) -> list[float]:
    return [alpha for alpha in ALPHAS if curves(runs, "strings", **lora(R, alpha))[0]]


def exponents(runs: Runs) -> list[float]:
    """Of each base, γ in best rate ∝ α^-γ, by least squares: 1 if α were the rate itself, ½ as the identity says."""
    alphas = alphas_run(runs)
    rates = [best_rates(runs, "strings", **lora(R, alpha)) for alpha in alphas]
    return each(lambda *best: -float(np.polyfit(np.log2(alphas), best, 1)[0]), *rates)


def losses_apart(runs: Runs) -> list[float]:
    """Of each base, how far the lowest losses of the alphas are apart."""
    lowest = [[min(losses) for losses in curves(runs, "strings", **lora(R, a))[1]] for a in alphas_run(runs)]
    return each(lambda *least: max(least) - min(least), *lowest)


PARTS = (
    Part(
        "identity, largest difference of ΔW, c = 3",
        "exact",
        of(identity_error, "3"),
        rule=always_within(1e-12),
        what="ΔW's difference between a run with c times α and the run that equals it (Adam and SGD; 60 steps in "
        "float64; of its largest entry), for c = 3,",
    ),
    Part(
        "identity, largest difference of ΔW, c = 4",
        "exact",
        of(identity_error, "4"),
        rule=always_equal(0),
        what="for c = 4 it",
    ),
    Part("rate times c instead, difference of ΔW, c = 3", "exact", naive_error, "%"),
    Part("γ in best rate ∝ α^-γ, A₀ left alone", "strings", exponents),
    Part("lowest losses of the three α, largest difference", "strings", losses_apart, "bits"),
)


def key(runs: Runs) -> str:
    return f"the same ΔW, to {max(identity_error(runs, '3') + identity_error(runs, '4')):.0e}"


def measured(runs: Runs) -> str:
    (exact3,), (exact4,), (naive,) = identity_error(runs, "3"), identity_error(runs, "4"), naive_error(runs)
    return (
        f"identities: {exact3:.0e} for c = 3, {'bit-equal' if exact4 == 0 else f'{exact4:.0e}'} for c = 4; "
        f"the rate times c instead is off by {100 * naive:.0f} %; with A₀ left alone the best rate goes like "
        f"α^-{mean(exponents(runs)):.2f}, and the lowest losses are {mean(losses_apart(runs)):.3f} bits apart"
    )


def draw(runs: Runs, figure: Any) -> None:
    left, right = panels(figure, 2, 3.7, (1.25, 1))
    alphas = alphas_run(runs)
    labels = []
    for alpha, color in zip(alphas, (GREEN, BLUE, ORANGE), strict=False):
        rates, losses = curves(runs, "strings", **lora(R, alpha))
        middle = band(left, rates, losses, color, marker=".")
        lowest = int(np.argmin(middle))
        labels.append((rates[lowest], middle[lowest], f"α = {alpha:g}", color))
        best = best_rates(runs, "strings", **lora(R, alpha))
        low, high = interval(best) if len(best) > 1 else (best[0], best[0])
        bar = [[2 ** mean(best) - 2**low], [2**high - 2 ** mean(best)]]
        right.errorbar([alpha], [2 ** mean(best)], yerr=bar, fmt="o", color=color, capsize=3)
    left.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="bits/character of the answer")
    for x, y, words, color in labels:
        left.annotate(words, (x, y), xytext=(0, -13), textcoords="offset points", color=color, ha="center", fontsize=9)
    low, high = left.get_ylim()
    left.set_ylim(low * 0.6, min(high, 12))
    grid = np.array([alphas[0], alphas[-1]])
    anchor = mean(best_rates(runs, "strings", **lora(R)))
    slopes = []
    for slope, style, words in ((0.5, "--", "∝ 1/√α"), (1.0, ":", "∝ 1/α")):
        line = 2**anchor * (grid / ALPHA) ** -slope
        right.plot(grid, line, style, color=GRAY, linewidth=1.3)
        slopes.append((float(grid[-1]), float(line[-1]), words, GRAY))
    right.set(xscale="log", yscale="log", xlabel="α (r = 8, A₀ left alone)", ylabel="best learning rate")
    ticks(right, alphas)
    right.set_xlim(grid[0] * 0.7, grid[1] * 5)
    said = f"A larger α wants a lower rate: about α to the power −{mean(exponents(runs)):.2f}, A₀ left alone"
    finding(figure, said, len(best_rates(runs, "strings", **lora(R))))
    label_lines(right, slopes)


CLAIM = Claim(
    id="alpha_learning_rate",
    short="α is the rate, if A₀ scales too",
    statement="Tuning α is tuning the learning rate, if the start is scaled with it",
    where="§4.1",
    paper='"roughly the same as tuning the learning rate if we scale the initialization appropriately"',
    configurations=configurations,
    experiment=Experiment(run, version=3),
    parts=PARTS,
    key=key,
    measured=measured,
    draw=draw,
)
