"""§4.1, §3, Table 1: a merged LoRA "does not introduce any additional inference latency"; adapters and prefixes cost.

Forward passes of one model in alternating rounds: the base twice, since two equal things also differ when timed;
LoRA merged and unmerged; adapters; a prefix. And what the older methods cost in kind: adapters deepen the model,
prefixes take positions of the context, so that less of a long text is read.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from ..autograd import no_grad
from ..gpt import GPT, GPTConfig
from ..lora import LoRAConfig, add_lora, merge_lora
from ..nn import Module
from .adaptation import adaptation, quality, rate
from .claim import FAILS, HOLDS, NOISE, Claim, Configuration, Experiment, Part, Result, Rule, Runs, Settings
from .figures import BLUE, GRAY, GREEN, ORANGE, PURPLE, RED, SKY, band, panels, quartiles
from .measures import deviation, each, mean, of, quartiles_of, select
from .methods import Adapter, LoRA, Method, Prefix
from .rules import always_above
from .stopwatch import repeats_for, seconds_of

# batch x time, the paper's divided by 4 -> the paper's: batch x time, AdapterL and AdapterH, % over LoRA
SHAPES: dict[tuple[int, int], tuple[str, float, float]] = {
    (8, 128): ("32 x 512", 2.2, 3.0),
    (4, 64): ("16 x 256", 5.0, 8.4),
    (1, 32): ("1 x 128", 20.7, 30.3),
}
PREFIX = 8
VARIANTS = ("base again", "LoRA merged", "LoRA unmerged", "adapters (Lin)", "adapters (Houlsby)", "prefix")
SIZES: dict[str, Any] = {"d_model": 128, "n_layers": 4, "n_heads": 4}
ROUNDS = 40
PREFIXES = (8, 16, 32, 48)
REFERENCE = LoRA("q,v", 4)


def configurations(settings: Settings) -> list[Configuration]:
    seeds = settings.bases
    if settings.quick:
        return [{"batch": B, "time": T, "rounds": ROUNDS // 4} for B, T in list(SHAPES)[1:]]
    return [
        *({"batch": B, "time": T, "rounds": ROUNDS} for B, T in SHAPES),
        *(adaptation("text", s, "code", REFERENCE) for s in seeds),
        # one learning rate for all lengths, tuned at 8
        *(adaptation("text", s, "code", Prefix(P), lr=rate("text", Prefix(8))) for s in seeds for P in PREFIXES),
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
        "adapters (Lin)": Adapter("l", 16).prepare(model(), 0)[0],
        "adapters (Houlsby)": Adapter("h", 16).prepare(model(), 0)[0],
        "prefix": Prefix(PREFIX).prepare(model(), 0)[0],
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


def of_rounds(runs: Runs, B: int, T: int, variant: str) -> list[float]:
    """A variant's time over the base's, in each round."""
    found = select(runs, batch=B, time=T)
    if not found:
        return []
    times = found[0][1]["milliseconds"]
    return (np.array(times[variant]) / np.array(times["base"])).tolist()


def shapes_run(runs: Runs) -> list[tuple[int, int]]:
    return [shape for shape in SHAPES if of_rounds(runs, *shape, "base again")]


def ratios(runs: Runs, B: int, T: int, variant: str) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of a variant's time over the base's in the same round."""
    return quartiles_of(of_rounds(runs, B, T, variant))


def over_the_base_itself(runs: Runs, variant: str, quartile: int) -> list[float]:
    """Of each shape, a quartile of a variant's ratios (1: the median) over the upper quartile of base against base."""
    return [
        ratios(runs, *shape, variant)[quartile] / ratios(runs, *shape, "base again")[2] for shape in shapes_run(runs)
    ]


def bits_at_end(runs: Runs, method: Method) -> list[float]:
    """Of each base, on the last 16 characters of its windows of code."""
    return quality(runs, "text", method, ("code",), "bits_at_end")


def prefixes_run(runs: Runs) -> list[int]:
    return [P for P in PREFIXES if bits_at_end(runs, Prefix(P))]


def lost_to(runs: Runs, P: int) -> list[float]:
    """Of each base, how many bits more a prefix of P loses at the end of a window than LoRA."""
    return each(operator.sub, bits_at_end(runs, Prefix(P)), bits_at_end(runs, REFERENCE))


def _at_every_shape(values: Sequence[float], limit: float) -> str:
    slower = [v > limit for v in values]
    return FAILS if all(slower) else NOISE if any(slower) else HOLDS


PARTS = (
    *(
        Part(f"{variant} over base, {B} x {T}", "time", of(of_rounds, B, T, variant))
        for B, T in SHAPES
        for variant in VARIANTS
    ),
    Part(
        "LoRA merged, median over the upper quartile of base again",
        "time",
        of(over_the_base_itself, "LoRA merged", 1),
        rule=Rule("is at most {} at every shape (does not hold if at none)", 1, _at_every_shape),
        what="merged LoRA's median ratio to the base, divided by the upper quartile of the base against itself,",
    ),
    Part(
        "adapters (Houlsby), lower quartile over the upper quartile of base again",
        "time",
        of(over_the_base_itself, "adapters (Houlsby)", 0),
        rule=always_above(1),
        what="the lower quartile of adapters (Houlsby), divided by the same,",
    ),
    Part(f"loss at the end, {REFERENCE}", "text", of(bits_at_end, REFERENCE), "bits"),
    *(
        Part(
            f"loss at the end, prefix leaving {64 - P} of 64 positions, minus {REFERENCE}",
            "text",
            of(lost_to, P),
            "bits",
        )
        for P in PREFIXES
    ),
)


def key(runs: Runs) -> str:
    merged = [ratios(runs, *shape, "LoRA merged")[1] for shape in shapes_run(runs)]
    return f"{min(merged):.3f} to {max(merged):.3f} of the base's time"


def measured(runs: Runs) -> str:
    shown = "; ".join(
        f"{B} x {T}: " + ", ".join(f"{name} {ratios(runs, B, T, name)[1]:.3f}" for name in VARIANTS)
        for B, T in shapes_run(runs)
    )
    said = f"time over the base's, {shown}; products in a row per block: 4, with adapters 6 (Lin) and 8 (Houlsby)"
    if prefixes := prefixes_run(runs):
        reference = mean(bits_at_end(runs, REFERENCE))
        lost = ", ".join(f"{64 - P}: {mean(bits_at_end(runs, Prefix(P))) - reference:+.2f}" for P in prefixes)
        said += f"; bits against LoRA when a prefix leaves of 64 positions {lost}"
    return said


def spread(runs: Runs) -> str:
    widest = max(
        ratios(runs, *shape, "base again")[2] - ratios(runs, *shape, "base again")[0] for shape in shapes_run(runs)
    )
    said = f"quartiles of base against base up to {widest:.3f} apart"
    reference = bits_at_end(runs, REFERENCE)
    return f"{said}; bits ±{deviation(reference):.2f}" if reference else said


def draw(runs: Runs, figure: Any) -> None:
    present = prefixes_run(runs)
    left, *others = panels(figure, 2, 12.5, 4.4, (1.8, 1)) if present else panels(figure, 1, 8.0, 4.4)
    colors = (GRAY, BLUE, SKY, GREEN, RED, PURPLE)
    for number, (variant, color) in enumerate(zip(VARIANTS, colors, strict=True)):
        for place, shape in enumerate(shapes_run(runs)):
            low, middle, high = (100 * (x - 1) for x in ratios(runs, *shape, variant))
            x, label = place + (number - 2.5) * 0.12, variant if place == 0 else None
            quartiles(left, x, (low, middle, high), color, capsize=2, label=label)
    for place, (_, lin, houlsby) in enumerate(SHAPES[shape] for shape in shapes_run(runs)):
        for number, value in ((3, lin), (4, houlsby)):
            label = "paper, GPT-2 M on a GPU" if (place, number) == (0, 3) else None
            left.plot([place + (number - 2.5) * 0.12 + 0.05], [value], "x", color="black", label=label)
    left.axhline(0, color=GRAY, linewidth=1)
    names = [f"{B} x {T}\n(paper: {SHAPES[B, T][0]})" for B, T in shapes_run(runs)]
    left.set_xticks(range(len(names)), names)
    left.set(ylabel="forward pass, % over the base", xlabel="batch x time; bars are quartiles")
    merged = max(abs(ratios(runs, *shape, "LoRA merged")[1] - 1) for shape in shapes_run(runs))
    left.set_title(f"Merged LoRA: within {100 * merged:.1f} % of the base")
    left.legend(fontsize=8, loc="upper left")
    for right in others:
        _draw_prefixes(runs, right, present)


def _draw_prefixes(runs: Runs, right: Any, present: list[int]) -> None:
    at_end = np.array([bits_at_end(runs, Prefix(P)) for P in present]).T
    band(right, [64 - P for P in present], at_end, PURPLE, "prefix tuning", marker="o")
    right.axhline(mean(bits_at_end(runs, REFERENCE)), color=BLUE, label="LoRA on q, v, r = 4: all 64 positions")
    right.invert_xaxis()
    right.set(xlabel="positions of 64 that the prefix leaves", ylabel="bits/character, last 16 of each window")
    lost = mean(bits_at_end(runs, Prefix(present[-1]))) - mean(bits_at_end(runs, Prefix(present[0])))
    right.set_title(f"A prefix of {present[-1]} costs {lost:+.2f} bits against one of {present[0]}")
    right.legend(fontsize=8)
    right.axvline(64, color=ORANGE, linewidth=0)  # unseen: only brings the whole context into view


CLAIM = Claim(
    id="latency",
    short="Merged LoRA adds no latency",
    statement="Merged, LoRA adds no latency; adapters do",
    where="§3, §4.1, Table 1",
    paper="GPT-2 medium, over LoRA: AdapterL +2.2, +5.0, +20.7 %, AdapterH +3.0, +8.4, +30.3 %",
    configurations=configurations,
    experiment=Experiment(run, alone=True),
    parts=PARTS,
    key=key,
    measured=measured,
    spread=spread,
    draw=draw,
)
