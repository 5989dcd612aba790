"""§4.1, and rsLoRA (Kalajdzievski 2023): why α/r suits Adam, and α/√r suits SGD.

With B = 0 only B moves in the first step, and with H = ∂L/∂W · A₀ᵀ, of r columns, the gradient of B is s·H. To first
order the loss falls by -⟨∂L/∂W, ΔW⟩:

    SGD    B = -η s H         ΔW = -η s² H A₀       the loss falls by η s² Σ H²
    Adam   B = -η sign(H)     ΔW = -η s sign(H) A₀    the loss falls by η s Σ |H|

Both sums run over r columns of one size, so they grow like r. The step keeps its size over r if s ∝ 1/r under Adam, and
if s ∝ 1/√r under SGD: α/r is the rule of the first, α/√r that of the second.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import functional as F
from ..backend import to_numpy
from ..bases import string_sampler
from ..gpt import GPT
from ..lora import LoRAConfig, add_lora, lora_layers, remove_lora
from ..nn import Linear
from ..optim import SGD, Adam
from .bases import pretrained, seeds
from .claim import Claim, Configuration, Experiment, Part, Result, Runs, Settings
from .figures import BLUE, ORANGE, band, finding, label_lines, panels, ticks
from .measures import mean, of
from .rules import always_within, at_most

RANKS: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
DRAWS = 8  # of A₀: one column of H alone is small or large by chance
TARGETS = ("q_proj", "v_proj")
SCALINGS = {"α/r": lambda r: 1 / r, "α/√r": lambda r: 1 / math.sqrt(r)}
SUITS = {"Adam": "α/r", "SGD": "α/√r"}


def configurations(settings: Settings) -> list[Configuration]:
    draws = 2 if settings.quick else DRAWS
    return [{"base": ["strings", b], "draws": draws, **seeds(b)} for b in settings.bases]


def run(configuration: Configuration) -> Result:
    """By optimizer and rank, the fall of the loss to first order for s = 1, mean over draws of A₀; and how far ΔW is
    from the formula, of its largest entry, for s = 1 and s = 2."""
    base = pretrained(*configuration["base"])
    model = GPT(base.config, seed=None, dtype="float64")
    model.load_state_dict(base.state_dict())
    ids, targets = string_sampler(("revupper",), 32)(np.random.default_rng(configuration["data_seed"]))
    F.cross_entropy(model(ids), targets).backward()
    names = [n for n, m in model.named_modules() if isinstance(m, Linear) and n.endswith(TARGETS)]
    modules: dict[str, Any] = dict(model.named_modules())
    gradients = {name: to_numpy(modules[name].weight.grad).copy() for name in names}
    result: Result = {"off": 0.0, **{kind: [] for kind in SUITS}}
    for r in RANKS:
        falls: dict[str, list[float]] = {kind: [] for kind in SUITS}
        for draw in range(configuration["draws"]):
            for kind, s in (("SGD", 1), ("SGD", 2), ("Adam", 1), ("Adam", 2)):
                parameters = add_lora(model, LoRAConfig(r, s * r, TARGETS), seed=configuration["adapter_seed"] + draw)
                optimizer = Adam(parameters, 1.0, eps=1e-300) if kind == "Adam" else SGD(parameters, 1.0)
                F.cross_entropy(model(ids), targets).backward()
                starts = {name: layer.lora_A.numpy() for name, layer in lora_layers(model).items()}
                optimizer.step()
                changes = {name: to_numpy(layer.delta_weight()) for name, layer in lora_layers(model).items()}
                remove_lora(model)
                for name, change in changes.items():
                    H = gradients[name] @ starts[name].T  # (out, in) @ (in, r) -> (out, r)
                    B = np.sign(H) if kind == "Adam" else s * H
                    wanted = -s * B @ starts[name]
                    result["off"] = max(result["off"], float(np.abs(change - wanted).max() / np.abs(wanted).max()))
                if s == 1:
                    falls[kind].append(-sum(float((gradients[n] * changes[n]).sum()) for n in names))
        for kind, of_draws in falls.items():
            result[kind].append(mean(of_draws))
    return result


# ---- what it came to ---------------------------------------------------------------------------------


def off_the_formulas(runs: Runs) -> list[float]:
    return [r["off"] for _, r in runs]


def falls(runs: Runs, kind: str, scaling: str) -> list[list[float]]:
    """Of each base, how much the first step lowers the loss at each rank, as a multiple of r = 1."""
    s = np.array([SCALINGS[scaling](r) for r in RANKS])
    power = 2 if kind == "SGD" else 1
    return [(np.array(r[kind]) * s**power / r[kind][0]).tolist() for _, r in runs]


def exponents(runs: Runs, kind: str, scaling: str) -> list[float]:
    """Of each base, the power of r that the fall follows, by least squares."""
    return [float(np.polyfit(np.log2(RANKS), np.log2(fall), 1)[0]) for fall in falls(runs, kind, scaling)]


def off_zero(runs: Runs, kind: str) -> list[float]:
    return [abs(exponent) for exponent in exponents(runs, kind, SUITS[kind])]


PARTS = (
    Part(
        "first step off the formula",
        "exact",
        off_the_formulas,
        rule=always_within(1e-9),
        what="ΔW after the first step, off -η s² H A₀ (SGD) or -η s sign(H) A₀ (Adam), of its largest entry,",
    ),
    *(
        Part(f"power of r, {kind}, {scaling}", "exact", of(exponents, kind, scaling))
        for kind in SUITS
        for scaling in SCALINGS
    ),
    *(
        Part(
            f"power of r with {scaling}, {kind}, either way",
            "exact",
            of(off_zero, kind),
            rule=at_most(0.1),
            what="the power of r that the fall of the loss in the first step follows, either way, with α/r under Adam "
            "and with α/√r under SGD,",
        )
        for kind, scaling in SUITS.items()
    ),
)


def key(runs: Runs) -> str:
    powers = (f"{kind} {mean(exponents(runs, kind, scaling)):+.2f}" for kind, scaling in SUITS.items())
    return f"power of r: {', '.join(powers)}"


def measured(runs: Runs) -> str:
    shown = "; ".join(
        f"{kind}: " + ", ".join(f"{mean(exponents(runs, kind, s)):+.2f} with {s}" for s in SCALINGS) for kind in SUITS
    )
    return (
        f"first-step formulas to {max(off_the_formulas(runs)):.0e}; the fall of the loss follows the power of r {shown}"
    )


def draw(runs: Runs, figure: Any) -> None:
    axes = panels(figure, 2, 3.5)
    labels = []
    for ax, kind in zip(axes, SUITS, strict=True):
        for scaling, color in zip(SCALINGS, (BLUE, ORANGE), strict=True):
            middle = band(ax, RANKS, falls(runs, kind, scaling), color, marker="o")
            labels.append((ax, (RANKS[-1], float(middle[-1]), scaling, color)))
        ax.set(xscale="log", yscale="log", xlabel="rank r", title=kind, xlim=(0.9, 160), ylim=(0.01, 20))
        ticks(ax, RANKS[::2], (0.01, 0.1, 1, 10))
    axes[0].set_ylabel("fall of the loss in the first step, r = 1: 1")
    finding(
        figure,
        "The first step keeps its size over r: with α/r under Adam, with α/√r under SGD"
        if _as_said(runs)
        else "The first step does not keep its size over r as the formulas say",
        len(runs),
    )
    for ax in axes:
        label_lines(ax, [label for of_axes, label in labels if of_axes is ax])


def _as_said(runs: Runs) -> bool:
    return all(mean(off_zero(runs, kind)) <= 0.1 for kind in SUITS)


CLAIM = Claim(
    id="rank_scaling",
    short="α/r suits Adam, α/√r SGD",
    statement="α/r keeps the first step's size over r under Adam, α/√r under SGD",
    where="§4.1; after the paper: rsLoRA",
    paper="scaling by α/r reduces the need to retune when r varies (no numbers)",
    configurations=configurations,
    experiment=Experiment(run),
    parts=PARTS,
    key=key,
    measured=measured,
    draw=draw,
)
