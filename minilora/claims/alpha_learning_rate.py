"""§4.1: "When optimizing with Adam, tuning α is roughly the same as tuning the learning rate if we scale the
initialization appropriately."

With A′ = √c·A and B′ = √c·B, (cα)·BA = α·B′A′: a run with α times c is, in ΔW, the very run with α whose A
starts √c times as wide, whose learning rate is √c times as high and whose ε is 1/√c times as large. So the
paper's sentence is an equality with its clause, and wrong without it: "α times c is the learning rate times
c" holds for Adam's first step only. How well one replaces the other when the start is left alone is measured
on a grid of α and learning rate.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import functional as F
from ..backend import to_numpy
from ..bases import held_out_strings, string_sampler
from ..data import seeded
from ..gpt import GPT, GPTConfig
from ..lora import LoRAConfig, add_lora, lora_layers
from ..optim import SGD, Adam, Optimizer, linear_schedule
from ..texts import BITS
from ..training import evaluate
from .bases import adapt, pretrained, seed_of
from .claim import Claim, Configuration, Experiment, Part, Result, Runs, Settings
from .measures import deviation, mean, of, relative, select
from .rules import always_equal, always_within

TASK, R = "revupper", 8
ALPHAS = (0.5, 2.0, 8.0, 32.0, 128.0)  # powers of 4
RATES = tuple(2.0**-k for k in range(10, 1, -1))  # powers of 2
STEPS = 150


# ---- the identities ----------------------------------------------------------------------------------

# For α times s, the run with α that equals it: how A starts, the learning rates of A and of B, and the ε of
# A and of B, as multiples of the first run's. "naive" is what is said without the clause.
ADAM = {
    "A₀·√s, lr·√s, ε/√s": lambda s: (s**0.5, s**0.5, s**0.5, s**-0.5, s**-0.5),
    "A₀, lr of B·s, ε of B/s": lambda s: (1, 1, s, 1, 1 / s),
    "naive: lr·s": lambda s: (1, s, s, 1, 1),
    "naive: lr·√s": lambda s: (1, s**0.5, s**0.5, 1, 1),
}
SGD_ = {
    "A₀·√s, lr·s": lambda s: (s**0.5, s, s, 1, 1),
    "A₀, lr of B·s²": lambda s: (1, 1, s**2, 1, 1),
    "naive: lr·s": lambda s: (1, s, s, 1, 1),
}


def trained_delta(kind: str, s: float, multiples: tuple[float, ...] | None) -> np.ndarray:
    """ΔW of every layer after 60 steps: with α = s·r (multiples None), or α = r and the multiples given.

    float64; a GPT of d 32, 2 layers, weights N(0, 0.02²), so that attention stays near linear and rounding
    is not amplified; q and v at r = 4; Adam at lr 1e-3 with ε = 1e-6, SGD at 0.1.
    """
    start, rate_a, rate_b, eps_a, eps_b = multiples or (1, 1, 1, 1, 1)
    model = GPT(GPTConfig(vocab_size=96, context_length=20, d_model=32, n_layers=2, n_heads=4), seed=0, dtype="float64")
    add_lora(model, LoRAConfig(4, alpha=4 * (s if multiples is None else 1)), seed=0)
    layers = list(lora_layers(model).values())
    for layer in layers:
        layer.lora_A.data *= start
    lr = 1e-3 if kind == "adam" else 0.1
    groups: list[dict[str, Any]] = [
        {"params": [layer.lora_A for layer in layers], "lr": lr * rate_a},
        {"params": [layer.lora_B for layer in layers], "lr": lr * rate_b},
    ]
    optimizer: Optimizer
    if kind == "adam":
        groups[0]["eps"], groups[1]["eps"] = 1e-6 * eps_a, 1e-6 * eps_b
        optimizer = Adam(groups, lr)
    else:
        optimizer = SGD(groups, lr)
    batches = seeded(string_sampler((TASK,), 8), 0)
    for step in range(60):
        ids, targets = batches(step)
        optimizer.zero_grad()
        F.cross_entropy(model(ids), targets).backward()
        optimizer.step()
    return np.concatenate([to_numpy(layer.delta_weight()).ravel() for layer in layers])


def _identities() -> Result:
    result: Result = {}
    for kind, forms in (("adam", ADAM), ("sgd", SGD_)):
        for s in (3.0, 4.0):
            wanted = trained_delta(kind, s, None)
            for name, multiples in forms.items():
                result[f"{kind} | {name} | {s:g}"] = relative(trained_delta(kind, s, multiples(s)), wanted)
    return result


# ---- the grid ----------------------------------------------------------------------------------------


def configurations(settings: Settings) -> list[Configuration]:
    alphas, rates, steps, scaled = list(ALPHAS), RATES, STEPS, settings.bases[:1]
    if settings.quick:
        alphas, rates, steps, scaled = alphas[1:4:2], RATES[::2], STEPS // 3, []
    cells = [
        {"start": start, "base": ["strings", seed], "alpha": alpha, "lr": lr, "steps": steps}
        for start, seeds in (("fixed", settings.bases), ("scaled", scaled))
        for seed in seeds
        for alpha in alphas
        for lr in rates
    ]
    return [{"start": "identities"}, *cells]


def run(configuration: Configuration) -> Result:
    if configuration["start"] == "identities":
        return _identities()
    world, base = configuration["base"]
    model, steps, seed = pretrained(world, base), configuration["steps"], seed_of(base)
    parameters = add_lora(model, LoRAConfig(R, configuration["alpha"]), seed=seed)
    if configuration["start"] == "scaled":  # A₀ ∝ 1/√s: cells of one √α·lr are then one and the same run
        for layer in lora_layers(model).values():
            layer.lora_A.data /= math.sqrt(layer.scaling)
    optimizer = Adam(parameters, configuration["lr"])
    adapt(model, optimizer, string_sampler((TASK,), 32), steps, seed, linear_schedule(steps))
    return {"bits": min(BITS * evaluate(model, held_out_strings(TASK)), 10.0)}


def grid(runs: Runs, start: str, seed: int) -> tuple[list[float], list[float], np.ndarray]:
    """The alphas, the rates, and the bits of their cells, (alphas, rates)."""
    cells = [(c, r) for c, r in select(runs, start=start) if c["base"][1] == seed]
    alphas, rates = (sorted({c[name] for c, _ in cells}) for name in ("alpha", "lr"))
    bits = np.full((len(alphas), len(rates)), np.nan)
    for c, r in cells:
        bits[alphas.index(c["alpha"]), rates.index(c["lr"])] = r["bits"]
    return alphas, rates, bits


def best_rates(rates: list[float], bits: np.ndarray) -> np.ndarray:
    """log2 of the best learning rate of each α: the bottom of a parabola through the best cell and its neighbours."""
    best = []
    x = np.log2(rates)
    for row in bits:
        i = int(np.clip(row.argmin(), 1, len(rates) - 2))
        left, middle, right = row[i - 1 : i + 2]
        bend = left - 2 * middle + right
        shift = 0.5 * (left - right) / bend if bend > 0 else float(row.argmin() - i)
        best.append(x[i] + float(np.clip(shift, -1, 1)) * (x[1] - x[0]))
    return np.array(best)


def exchange(alphas: list[float], rates: list[float], bits: np.ndarray) -> float:
    """γ in best lr ∝ α^-γ, by least squares: 1 if α were the learning rate itself, ½ as the identity says."""
    return -float(np.polyfit(np.log2(alphas), best_rates(rates, bits), 1)[0])


def identity_error(runs: Runs, s: str) -> list[float]:
    """How far the four identities, two for Adam and two for SGD, are from each other at most, of ΔW's largest entry."""
    found = [v for k, v in _of_identities(runs).items() if "naive" not in k and k.endswith(f"| {s}")]
    return [max(found)]


def naive_error(runs: Runs) -> list[float]:
    return [_of_identities(runs)["adam | naive: lr·s | 3"]]


def _of_identities(runs: Runs) -> Result:
    return select(runs, start="identities")[0][1]


def exponents(runs: Runs) -> list[float]:
    """γ of each base, A₀ fixed."""
    return [exchange(*of_base) for of_base in _grids(runs)]


def best_losses_apart(runs: Runs) -> list[float]:
    """Of each base, how far the best losses of the alphas are apart, A₀ fixed."""
    return [float(np.ptp(bits.min(axis=1))) for _, _, bits in _grids(runs)]


def _grids(runs: Runs) -> list[tuple[list[float], list[float], np.ndarray]]:
    seeds = sorted({c["base"][1] for c, _ in select(runs, start="fixed")})
    return [grid(runs, "fixed", seed) for seed in seeds]


PARTS = (
    Part(
        "identities, largest difference of ΔW, s = 3",
        "exact",
        of(identity_error, "3"),
        rule=always_within(1e-12),
        what="ΔW's difference between a run with s times α and the run that equals it (two for Adam, two for SGD; "
        "60 steps in float64; of its largest entry), for s = 3,",
    ),
    Part(
        "identities, largest difference of ΔW, s = 4",
        "exact",
        of(identity_error, "4"),
        rule=always_equal(0),
        what="for s = 4 it",
    ),
    Part("naive lr·s, difference of ΔW, s = 3", "exact", naive_error, "%"),
    Part("γ in best lr ∝ α^-γ, A₀ fixed", "strings", exponents),
    Part("best losses of all α, largest difference, A₀ fixed", "strings", best_losses_apart, "bits"),
)


def key(runs: Runs) -> str:
    return f"the same ΔW, to {max(identity_error(runs, '3') + identity_error(runs, '4')):.0e}"


def measured(runs: Runs) -> str:
    (exact3,), (exact4,), (naive,) = identity_error(runs, "3"), identity_error(runs, "4"), naive_error(runs)
    steps = select(runs, start="fixed")[0][0]["steps"]
    return (
        f"identities: {exact3:.0e} for s = 3, {'bit-equal' if exact4 == 0 else f'{exact4:.0e}'} for s = 4; "
        f"naive lr·s off by {100 * naive:.0f} %; A₀ fixed, {steps} steps: best lr ∝ α^-{mean(exponents(runs)):.2f}, "
        f"best losses of all α within {mean(best_losses_apart(runs)):.3f} bits"
    )


def spread(runs: Runs) -> str:
    return f"exponent ±{deviation(exponents(runs)):.2f}, bits ±{deviation(best_losses_apart(runs)):.3f}"


def draw(runs: Runs, figure: Any) -> None:
    names = {"scaled": "A₀ ∝ 1/√s", "fixed": "A₀ fixed"}
    starts = [start for start in names if select(runs, start=start)]
    axes = figure.subplots(1, len(starts), sharey=True, squeeze=False)[0]
    for ax, start in zip(axes, starts, strict=True):
        seeds = sorted({c["base"][1] for c, _ in select(runs, start=start)})
        alphas, rates, _ = grid(runs, start, seeds[0])
        bits = np.mean([grid(runs, start, seed)[2] for seed in seeds], axis=0)
        title = f"{names[start]}: best lr ∝ $\\mathbf{{α^{{-{exchange(alphas, rates, bits):.2f}}}}}$"
        x, y = np.log2(rates), np.log2(alphas)
        image = ax.pcolormesh(x, y, np.log10(bits), cmap="cividis", shading="nearest")
        ax.plot(best_rates(rates, bits), y, "o-", color="white", label="best lr of each α")
        anchor = best_rates(rates, bits)[len(y) // 2]
        for slope, style, label in ((0.5, "--", "√α·lr constant"), (1.0, ":", "α·lr constant")):
            ax.plot(anchor - slope * (y - y[len(y) // 2]), y, style, color="#D55E00", label=label, linewidth=1.6)
        ax.set(xlim=(x[0] - 0.5, x[-1] + 0.5), ylim=(y[0] - 1, y[-1] + 1), xlabel="learning rate", title=title)
        ax.set_xticks(x[::2], [f"$2^{{{int(v)}}}$" for v in x[::2]])
        ax.set_yticks(y, [f"{a:g}" for a in alphas])
        ax.grid(False)
    axes[0].set_ylabel("α  (r = 8)")
    axes[0].legend(loc="lower left", framealpha=0.85, frameon=True)
    figure.colorbar(image, ax=axes, label="log₁₀ loss on the answer (bits/character)")


CLAIM = Claim(
    id="alpha_learning_rate",
    short="α is the rate, if A₀ scales too",
    statement="Tuning α is tuning the learning rate, if the start is scaled with it",
    where="§4.1",
    paper="roughly the same, if we scale the initialization appropriately",
    configurations=configurations,
    experiment=Experiment(run, version=2),
    parts=PARTS,
    key=key,
    measured=measured,
    spread=spread,
    draw=draw,
)
