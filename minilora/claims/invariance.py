"""After the paper (Schulman and Thinking Machines 2025, "LoRA Without Regret"): of α, the size of A₀ and the two
learning rates, two are free.

α → α/(pq), A₀ → p·A₀, rate of A → p times, rate of B → q times (and each ε divided by as much) leaves ΔW as it was,
step by step, under Adam: `two_factors` says why. Two uses of it have names: p = q = √c is "α is the learning rate",
p = 1 is LoRA+ (Hayou et al. 2024), which gives B a higher rate than A: it is a larger α by another name.
"""

from __future__ import annotations

from typing import Any

from .claim import Claim, Configuration, Experiment, Part, Result, Runs, Settings
from .figures import BLUE, GREEN, ORANGE, finding, panels
from .measures import of, relative
from .rules import always_equal, always_within
from .two_factors import multiples, trained_delta

POWERS = {"p = 2, q = 4": (2.0, 4.0), "p = 1/8, q = 2": (0.125, 2.0), "p = 1, q = 16 (LoRA+)": (1.0, 16.0)}
OTHERS = {"p = 3, q = 5": (3.0, 5.0), "p = 1, q = 10 (LoRA+)": (1.0, 10.0)}
PAIRS = {**POWERS, **OTHERS}
BROKEN = "p = 3, q = 5"  # the pair that is also tried with one multiple left out


def configurations(settings: Settings) -> list[Configuration]:
    return [{"pairs": list(PAIRS)}]


def run(configuration: Configuration) -> Result:
    """How far ΔW is from the first run's, of its largest entry: of each pair, and with one multiple left out."""
    result: Result = {}
    first = {kind: trained_delta(kind) for kind in ("adam", "sgd")}
    for kind, wanted in first.items():
        for name in configuration["pairs"]:
            result[f"{kind}, {name}"] = relative(trained_delta(kind, **multiples(kind, *PAIRS[name])), wanted)
        whole = multiples(kind, *PAIRS[BROKEN])
        for forgotten in whole:
            times = {**whole, forgotten: 1.0}
            result[f"{kind}, without {forgotten}"] = relative(trained_delta(kind, **times), wanted)
    result["sgd, Adam's rates"] = relative(trained_delta("sgd", **_rates_of_adam()), first["sgd"])
    return result


def _rates_of_adam() -> dict[str, float]:
    return {k: v for k, v in multiples("adam", *PAIRS[BROKEN]).items() if not k.startswith("eps")}


def largest(runs: Runs, pairs: tuple[str, ...]) -> list[float]:
    """The largest difference of these pairs, for Adam and SGD."""
    return [max(runs[0][1][f"{kind}, {name}"] for kind in ("adam", "sgd") for name in pairs)]


def single(runs: Runs, name: str) -> list[float]:
    return [runs[0][1][name]]


FORGOTTEN = {"A0": "A₀", "lr_A": "A's rate", "lr_B": "B's rate", "eps_A": "A's ε", "eps_B": "B's ε"}
PARTS = (
    Part(
        "largest difference of ΔW, p and q powers of 2",
        "exact",
        of(largest, tuple(POWERS)),
        rule=always_equal(0),
        what="ΔW's difference between a run and the one whose A is p times and whose B is q times as large, for powers "
        "of 2 (Adam and SGD, each with its own multiples; 60 steps in float64; of its largest entry)",
    ),
    Part(
        "largest difference of ΔW, other p and q",
        "exact",
        of(largest, tuple(OTHERS)),
        rule=always_within(1e-12),
        what="for other p and q it",
    ),
    *(
        Part(f"difference of ΔW if {words} is left as it was", "exact", of(single, f"adam, without {name}"), "%")
        for name, words in FORGOTTEN.items()
    ),
    Part("difference of ΔW, Adam's multiples under SGD", "exact", of(single, "sgd, Adam's rates"), "%"),
)


def key(runs: Runs) -> str:
    (powers,), (others,) = largest(runs, tuple(POWERS)), largest(runs, tuple(OTHERS))
    return f"ΔW {'bit-equal' if powers == 0 else f'off by {powers:.0e}'}, or to {others:.0e}"


def measured(runs: Runs) -> str:
    (powers,), (others,) = largest(runs, tuple(POWERS)), largest(runs, tuple(OTHERS))
    left = ", ".join(f"{words} {100 * single(runs, f'adam, without {n}')[0]:.3g} %" for n, words in FORGOTTEN.items())
    return (
        f"{'bit-equal' if powers == 0 else f'{powers:.0e}'} for powers of 2, {others:.0e} for others; one multiple "
        f"left out (p = 3, q = 5) moves ΔW by: {left}"
    )


def draw(runs: Runs, figure: Any) -> None:
    (ax,) = panels(figure, 1, 3.4)
    result = runs[0][1]
    rows = [
        *((f"all, {name}", result[f"adam, {name}"], BLUE) for name in PAIRS),
        *((f"all but {words}", result[f"adam, without {name}"], ORANGE) for name, words in FORGOTTEN.items()),
        ("Adam's multiples under SGD", result["sgd, Adam's rates"], GREEN),
    ]
    least = 1e-18
    for place, (_, value, color) in enumerate(reversed(rows)):
        ax.plot([least, max(value, least)], [place, place], color=color, linewidth=2)
        ax.plot([max(value, least)], [place], "o", color=color)
        words = "0" if value == 0 else f"{value:.0e}" if value < 1e-3 else f"{100 * value:.2g} %"
        ax.annotate(
            words, (max(value, least), place), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9
        )
    ax.set_yticks(range(len(rows)), [name for name, _, _ in reversed(rows)])
    ax.set(xscale="log", xlim=(least, 1e3), xlabel="difference of ΔW after 60 steps, of its largest entry")
    ax.grid(axis="y", visible=False)
    worst = max(result[f"adam, {name}"] for name in PAIRS)
    finding(figure, f"Two of the four settings are free: ΔW stays the same to {worst:.0e}")


CLAIM = Claim(
    id="invariance",
    short="Two of four settings are free",
    statement="Of α, A₀'s size and the two learning rates, two are free: others give the same ΔW",
    where="after the paper: LoRA Without Regret; LoRA+",
    paper="nothing of it; §4.1 says it of α and the learning rate alone",
    configurations=configurations,
    experiment=Experiment(run),
    parts=PARTS,
    key=key,
    measured=measured,
    draw=draw,
)
