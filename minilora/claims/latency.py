"""§4.1, §3, Table 1: a merged LoRA "does not introduce any additional inference latency"; adapters and prefixes cost.

Forward passes of one model in alternating rounds: the base twice, since two equal things also differ when timed;
LoRA merged and unmerged; adapters; a prefix. And what the older methods cost in kind: adapters deepen the model,
prefixes take positions of the context, so that less of a long text is read.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from ..autograd import no_grad
from ..gpt import GPT, GPTConfig
from ..lora import LoRAConfig, add_lora, merge_lora
from ..nn import Module
from .adaptation import adaptation, prepare, quality, rate
from .claim import (
    FAILS,
    HOLDS,
    NOISE,
    Claim,
    Configuration,
    Experiment,
    Measurement,
    Outcome,
    Result,
    Runs,
    Settings,
    deviation,
    mean,
    repeats_for,
    seconds_of,
    select,
)
from .figures import BLUE, GRAY, GREEN, ORANGE, PURPLE, RED, SKY, band

SHAPES = {  # batch x time, the paper's divided by 4 -> the paper's: batch x time, AdapterL and AdapterH, % over LoRA
    (8, 128): ("32 x 512", 2.2, 3.0),
    (4, 64): ("16 x 256", 5.0, 8.4),
    (1, 32): ("1 x 128", 20.7, 30.3),
}
PREFIX = 8
VARIANTS = ("base again", "LoRA merged", "LoRA unmerged", "adapters (Lin)", "adapters (Houlsby)", "prefix")
SIZES: dict[str, Any] = {"d_model": 128, "n_layers": 4, "n_heads": 4}
ROUNDS = 40
PREFIXES = (8, 16, 32, 48)
REFERENCE = "lora q,v 4"


def configurations(settings: Settings) -> list[Configuration]:
    seeds = settings.bases
    prefixes = PREFIXES[::2] if settings.quick else PREFIXES
    return [
        *({"batch": B, "time": T, "rounds": ROUNDS // 4 if settings.quick else ROUNDS} for B, T in SHAPES),
        *(adaptation("text", s, "code", REFERENCE) for s in seeds),
        # one learning rate for all lengths, tuned at 8
        *(adaptation("text", s, "code", f"prefix {P}", lr=rate("text", "prefix 8")) for s in seeds for P in prefixes),
    ]


def run(configuration: Configuration) -> Result:
    """Milliseconds of a forward pass, for each variant those of all rounds."""
    B, T = configuration["batch"], configuration["time"]
    ids = np.random.default_rng(0).integers(0, 96, (B, T))
    context = max(T for _, T in SHAPES) + PREFIX

    def model() -> GPT:
        return GPT(GPTConfig(vocab_size=96, context_length=context, **SIZES), seed=0)

    def lora(merged: bool) -> GPT:
        adapted = model()
        add_lora(adapted, LoRAConfig(4))
        if merged:
            merge_lora(adapted)
        return adapted

    models: dict[str, Module] = {
        "base": model(),
        "base again": model(),
        "LoRA merged": lora(True),
        "LoRA unmerged": lora(False),
        "adapters (Lin)": prepare(model(), "adapter-l 16", 0)[0],
        "adapters (Houlsby)": prepare(model(), "adapter-h 16", 0)[0],
        "prefix": prepare(model(), f"prefix {PREFIX}", 0)[0],
    }
    times: dict[str, list[float]] = {name: [] for name in models}
    names = list(models)
    with no_grad():
        repeats = repeats_for(lambda: models["base"].eval()(ids), 0.004)  # 4 ms or more are well timed
        for number in range(configuration["rounds"] + 2):
            order = names[number % len(names) :] + names[: number % len(names)]  # nobody is always first
            for name in order:
                took = seconds_of(partial(models[name].eval(), ids), repeats)
                if number >= 2:  # the first two warm up
                    times[name].append(1e3 * took)
    return {"milliseconds": times}


# ---- what it came to ---------------------------------------------------------------------------------


def of_rounds(runs: Runs, B: int, T: int, variant: str) -> np.ndarray:
    """A variant's time over the base's, in each round."""
    times = select(runs, batch=B, time=T)[0][1]["milliseconds"]
    return np.array(times[variant]) / np.array(times["base"])


def ratios(runs: Runs, B: int, T: int, variant: str) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of a variant's time over the base's in the same round."""
    low, middle, high = np.quantile(of_rounds(runs, B, T, variant), (0.25, 0.5, 0.75))
    return float(low), float(middle), float(high)


def free(runs: Runs) -> dict[tuple[int, int], bool]:
    """Of each shape, whether the merged model's median is within the quartiles of base against base, or faster."""
    return {shape: ratios(runs, *shape, "LoRA merged")[1] <= ratios(runs, *shape, "base again")[2] for shape in SHAPES}


def bits_at_end(runs: Runs, method: str) -> list[float]:
    """Of each base, on the last 16 characters of its windows of code."""
    return quality(runs, "text", method, ("code",), "bits_at_end")


def measurements(runs: Runs) -> list[Measurement]:
    reference = bits_at_end(runs, REFERENCE)
    eaten = {
        P: [b - a for a, b in zip(reference, bits, strict=True)]
        for P in PREFIXES
        if (bits := bits_at_end(runs, f"prefix {P}"))
    }
    return [
        *(
            Measurement(f"{variant} over base, {B} x {T}", "time", of_rounds(runs, B, T, variant).tolist())
            for B, T in SHAPES
            for variant in VARIANTS
        ),
        Measurement(f"loss at the end, {REFERENCE}", "text", reference, "bits"),
        *(
            Measurement(
                f"loss at the end, prefix leaving {64 - P} of 64 positions, minus {REFERENCE}", "text", v, "bits"
            )
            for P, v in eaten.items()
        ),
    ]


def conclude(runs: Runs) -> Outcome:
    is_free = free(runs)
    shown = "; ".join(
        f"{B} x {T}: " + ", ".join(f"{name} {ratios(runs, B, T, name)[1]:.3f}" for name in VARIANTS) for B, T in SHAPES
    )
    widest = max(ratios(runs, *shape, "base again")[2] - ratios(runs, *shape, "base again")[0] for shape in SHAPES)
    slow = all(
        ratios(runs, *shape, "adapters (Houlsby)")[0] > ratios(runs, *shape, "base again")[2] for shape in SHAPES
    )
    reference = bits_at_end(runs, REFERENCE)
    eaten = ", ".join(
        f"{64 - P}: {mean(bits_at_end(runs, f'prefix {P}')) - mean(reference):+.2f}"
        for P in PREFIXES
        if bits_at_end(runs, f"prefix {P}")
    )
    merged = [ratios(runs, *shape, "LoRA merged")[1] for shape in SHAPES]
    if all(is_free.values()) and slow:
        verdict = HOLDS
    elif not any(is_free.values()) or not slow:
        verdict = FAILS
    else:
        verdict = NOISE
    return Outcome(
        f"time over the base's, {shown}; products in a row per block: 4, with adapters 6 (Lin) and 8 (Houlsby); bits "
        f"against LoRA when a prefix leaves of 64 positions {eaten}",
        f"quartiles of base against base up to {widest:.3f} apart; bits ±{deviation(reference):.2f}",
        verdict,
        key=f"merged {min(merged):.3f} to {max(merged):.3f} of the base",
        verdicts={"exact": verdict},  # the clock's: the models are of no world, and a merged one is the base in kind
        measurements=measurements(runs),
    )


def draw(runs: Runs, figure: Any) -> None:
    figure.set_size_inches(12.5, 4.4)
    left, right = figure.subplots(1, 2, width_ratios=(1.8, 1))
    colors = (GRAY, BLUE, SKY, GREEN, RED, PURPLE)
    for number, (variant, color) in enumerate(zip(VARIANTS, colors, strict=True)):
        for place, shape in enumerate(SHAPES):
            low, middle, high = (100 * (x - 1) for x in ratios(runs, *shape, variant))
            x = place + (number - 2.5) * 0.12
            label = variant if place == 0 else None
            left.errorbar(
                [x], [middle], [[middle - low], [high - middle]], fmt="o", color=color, capsize=2, label=label
            )
    for place, (_, lin, houlsby) in enumerate(SHAPES.values()):
        for number, value in ((3, lin), (4, houlsby)):
            label = "paper, GPT-2 M on a GPU" if (place, number) == (0, 3) else None
            left.plot([place + (number - 2.5) * 0.12 + 0.05], [value], "x", color="black", label=label)
    left.axhline(0, color=GRAY, linewidth=1)
    left.set_xticks(range(len(SHAPES)), [f"{B} x {T}\n(paper: {name})" for (B, T), (name, *_) in SHAPES.items()])
    left.set(ylabel="forward pass, % over the base", xlabel="batch x time; bars are quartiles")
    merged = max(abs(ratios(runs, *shape, "LoRA merged")[1] - 1) for shape in SHAPES)
    left.set_title(f"Merged LoRA: within {100 * merged:.1f} % of the base")
    left.legend(fontsize=8, loc="upper left")
    present = [P for P in PREFIXES if bits_at_end(runs, f"prefix {P}")]
    band(
        right,
        [64 - P for P in present],
        np.array([bits_at_end(runs, f"prefix {P}") for P in present]).T,
        PURPLE,
        "prefix tuning",
        marker="o",
    )
    right.axhline(mean(bits_at_end(runs, REFERENCE)), color=BLUE, label="LoRA on q, v, r = 4: all 64 positions")
    right.invert_xaxis()
    right.set(xlabel="positions of 64 that the prefix leaves", ylabel="bits/character, last 16 of each window")
    lost = mean(bits_at_end(runs, f"prefix {present[-1]}")) - mean(bits_at_end(runs, f"prefix {present[0]}"))
    right.set_title(f"A prefix of {present[-1]} costs {lost:+.2f} bits against one of {present[0]}")
    right.legend(fontsize=8)
    right.axvline(64, color=ORANGE, linewidth=0)  # unseen: only brings the whole context into view


CLAIM = Claim(
    id="latency",
    short="Merged LoRA adds no latency",
    statement="Merged, LoRA adds no latency; adapters do",
    where="§3, §4.1, Table 1",
    paper="GPT-2 medium, over LoRA: AdapterL +2.2, +5.0, +20.7 %, AdapterH +3.0, +8.4, +30.3 %",
    rule=(
        "holds if at every shape the median ratio merged/base is at most the upper quartile of base/base, and the "
        "lower quartile of adapters (Houlsby)/base is above it; does not hold if merged is slower at every shape or "
        "adapters are not; within noise otherwise"
    ),
    exact=False,
    configurations=configurations,
    experiment=Experiment(run, alone=True),
    conclude=conclude,
    draw=draw,
)
