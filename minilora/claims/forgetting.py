"""After the paper (Biderman et al. 2024): "LoRA Learns Less and Forgets Less".

A base of English learns code by full fine-tuning and by LoRA, to the end of its schedule, at learning rates from too
small to too large; and each ΔW of the tuned rate is turned down, W₀ + λΔW, which costs no training. Every end is a
point: how much code was learned, how much English was forgotten. A method's front is the least English that it forgets
for so much code; two methods are compared on their fronts, at equal code.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..lora import lora_layers
from ..texts import BITS
from ..training import DivergedError, evaluate
from .adaptation import WORST, adaptation, held_out, learn, rate, steps_of
from .bases import pretrained
from .claim import Claim, Configuration, Experiment, Part, Result, Runs, Settings
from .figures import BLUE, GRAY, finding, label_lines, panels
from .measures import each, mean, of
from .methods import FULL, LoRA, Method
from .rules import at_least

LORA = LoRA("q,v", 4)
METHODS = {"full fine-tuning": FULL, "LoRA on q, v, r = 4": LORA}
DOUBLINGS = (-4, -2, 0, 2)  # of the tuned rate
VOLUMES = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)  # λ
LEVELS = (0.5, 0.9)  # of the most code that LoRA learned, where the fronts are compared


def configurations(settings: Settings) -> list[Configuration]:
    steps = steps_of("text", settings)
    return [
        {
            **adaptation("text", s, "code", method, lr=rate("text", method) * 2.0**doublings, steps=steps),
            "experiment": "forgetting",
            "doublings": doublings,
        }
        for s in settings.bases
        for method in METHODS.values()
        for doublings in ((0,) if settings.quick else DOUBLINGS)
    ]


def run(configuration: Configuration) -> Result:
    """Bits of code learned and of English forgotten at the end, [learned, forgotten]; at the tuned rate, of every λ."""
    base = pretrained(*configuration["base"])
    before = _read(base)
    try:
        model, _ = learn(configuration)
    except DivergedError:
        return {"points": [[-WORST, WORST]]}
    if configuration["doublings"]:
        return {"points": [_against(before, _read(model))]}
    if adapted := lora_layers(model):
        starts = {name: layer.lora_B.data.copy() for name, layer in adapted.items()}

        def turn(volume: float) -> None:
            for name, layer in adapted.items():
                layer.lora_B.data[...] = volume * starts[name]
    else:
        before_training, ends = base.state_dict(), model.state_dict()

        def turn(volume: float) -> None:
            model.load_state_dict({k: w + np.float32(volume) * (ends[k] - w) for k, w in before_training.items()})

    points = []
    for volume in VOLUMES:
        turn(volume)
        points.append(_against(before, _read(model)))
    return {"points": points}


def _read(model: Any) -> tuple[float, float]:
    """Bits of code and of English that was never trained on."""
    return tuple(BITS * evaluate(model, held_out("text", which)[:3]) for which in ("code", "english"))  # type: ignore[return-value]


def _against(before: tuple[float, float], after: tuple[float, float]) -> list[float]:
    return [before[0] - after[0], after[1] - before[1]]


# ---- what it came to ---------------------------------------------------------------------------------


def bases_run(runs: Runs) -> list[int]:
    return sorted({c["base"][1] for c, _ in runs})


def points(runs: Runs, base: int, method: Method) -> list[list[float]]:
    """All ends of a method on a base, [learned, forgotten]."""
    mine = [r["points"] for c, r in runs if c["base"][1] == base and c["method"] == method.name]
    return [point for of_run in mine for point in of_run]


def forgotten_at(ends: list[list[float]], level: float) -> float:
    """The least English forgotten for so much code, on the front of these ends and straight lines between them.

    NaN where so much was not learned. A mixture of two ends is no model, but λ lies close enough for a line to serve.
    """
    front: list[list[float]] = []
    for learned, forgotten in sorted(ends, reverse=True):  # the most code first
        if not front or forgotten < front[-1][1]:
            front.append([learned, forgotten])
    xs, ys = np.array(front[::-1]).T
    return float(np.interp(level, xs, ys)) if level <= xs[-1] else float("nan")


def most(runs: Runs, method: Method) -> list[float]:
    """Of each base, the most code that a method learned."""
    return [max(learned for learned, _ in points(runs, base, method)) for base in bases_run(runs)]


def forgotten(runs: Runs, method: Method, part: float) -> list[float]:
    """Of each base, on a method's front, where that part of LoRA's most code is learned."""
    levels = zip(bases_run(runs), most(runs, LORA), strict=True)
    return [forgotten_at(points(runs, base, method), part * level) for base, level in levels]


def saved(runs: Runs, part: float) -> list[float]:
    """Of each base, how much less English LoRA forgets than full fine-tuning at equal code."""
    return each(lambda full, lora: full - lora, forgotten(runs, FULL, part), forgotten(runs, LORA, part))


def of_volume(runs: Runs, what: int) -> list[float]:
    """Of each base, at λ = ½, the share that remains of what LoRA learned (0) or forgot (1) at the tuned rate."""
    tuned = [r["points"] for c, r in runs if c["method"] == LORA.name and c["doublings"] == 0]
    return [of_run[VOLUMES.index(0.5)][what] / of_run[-1][what] for of_run in tuned]


PARTS = (
    *(
        Part(
            f"English that LoRA forgets less, at {100 * part:.0f} % of its most code",
            "text",
            of(saved, part),
            "bits",
            rule=at_least(0),
            what="the English that LoRA forgets less than full fine-tuning on its front, where "
            f"{' and where '.join(f'{100 * p:.0f} %' for p in LEVELS)} of the most code that LoRA learns is learned,",
        )
        for part in LEVELS
    ),
    *(Part(f"most code learned, {name}", "text", of(most, method), "bits") for name, method in METHODS.items()),
    *(
        Part(
            f"English forgotten at {100 * part:.0f} % of LoRA's most code, {name}",
            "text",
            of(forgotten, m, part),
            "bits",
        )
        for part in LEVELS
        for name, m in METHODS.items()
    ),
    Part("learning kept at half of LoRA's ΔW", "text", of(of_volume, 0), "%"),
    Part("forgetting left at half of LoRA's ΔW", "text", of(of_volume, 1), "%"),
)


def key(runs: Runs) -> str:
    less = mean(saved(runs, LEVELS[-1]))
    return f"at equal code forgets {abs(less):.2f} bits {'less' if less > 0 else 'more'}"


def measured(runs: Runs) -> str:
    ends = [(mean(forgotten(runs, FULL, part)), mean(forgotten(runs, LORA, part))) for part in LEVELS]
    shown = "; ".join(
        f"at {100 * part:.0f} % of LoRA's most code, English forgotten: full {full:.2f} bits, LoRA {lora:.2f}"
        for part, (full, lora) in zip(LEVELS, ends, strict=True)
    )
    return (
        f"most code learned: full {mean(most(runs, FULL)):.2f} bits, LoRA {mean(most(runs, LORA)):.2f}; {shown}; half "
        f"of LoRA's ΔW keeps {100 * mean(of_volume(runs, 0)):.0f} % of the learning and "
        f"{100 * mean(of_volume(runs, 1)):.0f} % of the forgetting"
    )


def draw(runs: Runs, figure: Any) -> None:
    (ax,) = panels(figure, 1, 4.2)
    labels = []
    for (name, method), color in zip(METHODS.items(), (GRAY, BLUE), strict=True):
        ends = [r["points"] for c, r in runs if c["method"] == method.name and c["doublings"]]
        if ends:  # a quick run has the tuned rate alone
            ax.plot(*np.array([p for of_run in ends for p in of_run]).T, "o", color=color, alpha=0.6, markersize=4)
        volumes = [r["points"] for c, r in runs if c["method"] == method.name and not c["doublings"]]
        for of_run in volumes:
            ax.plot(*np.array(of_run).T, color=color, alpha=0.25, linewidth=1)
        middle = np.mean(volumes, axis=0)
        ax.plot(*middle.T, ".-", color=color)
        labels.append((float(middle[-1][0]), float(middle[-1][1]), name, color))
    ax.axhline(0, color=GRAY, linewidth=1)
    right, top = max(0.1, *(x for x, _, _, _ in labels)), max(0.1, *(y for _, y, _, _ in labels))
    ax.set(xlabel="code learned (bits/character)", ylabel="English forgotten (bits/character)")
    ax.set(xlim=(-0.1, 1.45 * right), ylim=(-0.1 * top, 2.2 * top))
    ax.set_title("line: λ from 0 to 1 at the tuned rate; points: ends of other learning rates")
    less = mean(saved(runs, LEVELS[-1]))
    said = f"At equal code LoRA forgets {abs(less):.2f} bits {'less' if less > 0 else 'more'} than full fine-tuning"
    finding(figure, said)
    label_lines(ax, labels)


CLAIM = Claim(
    id="forgetting",
    short="LoRA learns less, forgets less",
    statement="LoRA forgets less than full fine-tuning of what the base knew, at equal learning",
    where="after the paper: Biderman et al. 2024",
    paper="nothing of it; Biderman et al. find it in code and mathematics, with Llama 2",
    configurations=configurations,
    experiment=Experiment(run),
    parts=PARTS,
    key=key,
    measured=measured,
    draw=draw,
)
