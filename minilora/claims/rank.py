"""§7.2, Table 6: "LoRA already performs competitively with a very small r."

Three worlds. Planted: ΔW of rank 4 is to be found; Eckart and Young say what each r can reach. Strings: a base
that knows seven functions learns an eighth, the task adaptation that the paper is about. Text: a model of
English moves to source code, far from its pretraining; the paper's footnote 6 expects a small r to fall short
on such a task, so that world is reported beside the verdict.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..autograd import Tensor
from ..lora import LoRAConfig, add_lora, lora_layers
from ..nn import Linear, Module
from ..optim import SGD, Adam, linear_schedule
from ..tasks import planted
from ..training import evaluate, evaluate_exact_match, train
from .bases import adapt, held_out_strings, held_out_text, load_base, string_draw, text_draw
from .claim import (
    BITS,
    FAILS,
    HOLDS,
    Claim,
    Configuration,
    Outcome,
    Result,
    Runs,
    Settings,
    at_least,
    deviation,
    mean,
    select,
    worst,
)
from .figures import BLUE, GRAY, GREEN, ORANGE, band

D, SPECTRUM = 32, (4.0, 3.0, 2.0, 1.0)  # the planted problem
PLANTED_RANKS = (1, 2, 3, 4, 6, 8, 16, 32)
STRING_TASKS, STRING_RANKS, STRING_STEPS = ("pairs", "revupper"), (1, 2, 4, 8, 16, 64), 300
TEXT_RANKS, TEXT_STEPS = (1, 8, 64), 600
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "fc_in", "fc_out")
SMALL = 8  # the r that the verdict asks about
# Learning rates, decaying linearly to 0: each the best of 5e-3, 1e-2, 2e-2, 4e-2 (full: 1e-3 ... 1.6e-2) on base 100,
# which the report does not use. One rate serves all ranks, by their mean; only r = 64 on strings, where LoRA has more
# parameters than the matrix, has its own, since it diverges at the others'.
RATES: dict[str, dict[Any, float]] = {
    "strings": {**dict.fromkeys((1, 2, 4, 8, 16), 2e-2), 64: 5e-3, "full": 4e-3},
    "text": {**dict.fromkeys((1, 8, 64, "all-linear 16"), 1e-2), "full": 4e-3},
}


def configurations(settings: Settings) -> list[Configuration]:
    seeds = range(settings.seeds)
    text_steps = TEXT_STEPS // 2 if settings.quick else TEXT_STEPS
    return [
        *({"world": "planted", "seed": s, "r": r} for s in seeds for r in PLANTED_RANKS),
        *(
            {"world": "strings", "base": ["strings", s], "task": task, "r": r, "steps": STRING_STEPS}
            for s in seeds
            for task in (STRING_TASKS[1:] if settings.quick else STRING_TASKS)
            for r in (*STRING_RANKS, "full")
        ),
        *(
            {"world": "text", "base": ["text", s], "r": r, "steps": text_steps}
            for s in seeds
            for r in (*TEXT_RANKS, "all-linear 16", "full")
        ),
    ]


def run(configuration: Configuration) -> Result:
    return {"planted": _planted, "strings": _strings, "text": _text}[configuration["world"]](configuration)


class _Student(Module):
    def __init__(self, weight: np.ndarray) -> None:
        self.layer = Linear(D, D, bias=False, dtype="float64")
        self.layer.weight.data[...] = weight

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def _planted(configuration: Configuration) -> Result:
    """‖ΔW - D‖² after training, and the least that rank r allows."""
    seed, r = configuration["seed"], configuration["r"]
    W0, change = planted(D, SPECTRUM, np.random.default_rng(seed))
    model = _Student(W0)
    parameters = add_lora(model, LoRAConfig(r, target_modules=("layer",)), seed=seed)
    inputs = Tensor(np.eye(D))  # white inputs, all of them: the loss is ‖W₀ + ΔW - (W₀ + D)‖²
    answers = Tensor(np.eye(D) @ (W0 + change).T)
    train(model, SGD(parameters, 0.02), lambda step: ((model(inputs) - answers) ** 2).sum(), steps=3000)
    delta = lora_layers(model)["layer"].delta_weight()
    floor = float(sum(v**2 for v in SPECTRUM[r:]))
    return {"loss": float(((delta - change) ** 2).sum()), "floor": floor, "start": float((change**2).sum())}


def _strings(configuration: Configuration) -> Result:
    (world, seed), r, task = configuration["base"], configuration["r"], configuration["task"]
    model, steps = load_base(world, seed), configuration["steps"]
    parameters = model.parameters() if r == "full" else add_lora(model, LoRAConfig(r, alpha=2 * r), seed=seed)
    optimizer = Adam(parameters, RATES["strings"][r])
    adapt(model, optimizer, string_draw((task,), 32), steps, seed, linear_schedule(steps))
    return {"accuracy": evaluate_exact_match(model, held_out_strings(task))}


def _text(configuration: Configuration) -> Result:
    (world, seed), r, steps = configuration["base"], configuration["r"], configuration["steps"]
    model = load_base(world, seed)
    batches = held_out_text("code")
    before = BITS * evaluate(model, batches)
    if r == "full":
        parameters = model.parameters()
    else:
        wide = r == "all-linear 16"
        rank = 16 if wide else r
        targets = ALL_LINEAR if wide else ("q_proj", "v_proj")
        parameters = add_lora(model, LoRAConfig(rank, alpha=2 * rank, target_modules=targets), seed=seed)
    optimizer = Adam(parameters, RATES["text"][r])
    adapt(model, optimizer, text_draw("code", 16), steps, seed, linear_schedule(steps))
    return {"before": before, "bits": BITS * evaluate(model, batches)}


# ---- what it came to ---------------------------------------------------------------------------------


def string_accuracies(runs: Runs, r: Any) -> list[float]:
    """Of each base, the mean over tasks."""
    cells = select(runs, world="strings", r=r)
    seeds = sorted({c["base"][1] for c, _ in cells})
    return [mean([result["accuracy"] for c, result in cells if c["base"][1] == s]) for s in seeds]


def gap_closed(runs: Runs, r: Any) -> list[float]:
    """Of each base on text, the share of full fine-tuning's gain that r reaches."""
    shares = []
    for c, result in select(runs, world="text", r=r):
        full = select(runs, world="text", r="full", base=c["base"])[0][1]
        shares.append((result["before"] - result["bits"]) / (full["before"] - full["bits"]))
    return shares


def on_floor(runs: Runs) -> bool:
    """Whether every planted run ended at the least loss its rank allows."""
    return all(
        abs(r["loss"] - r["floor"]) <= (1e-3 * r["floor"] if r["floor"] else 1e-12 * r["start"])
        for _, r in select(runs, world="planted")
    )


def conclude(runs: Runs) -> Outcome:
    planted_ok = on_floor(runs)
    small, full = string_accuracies(runs, SMALL), string_accuracies(runs, "full")
    ratio = [a / b if b else math.nan for a, b in zip(small, full, strict=True)]
    closed = gap_closed(runs, SMALL)
    text_verdict = at_least(closed, 0.9)
    strings = {r: 100 * mean(string_accuracies(runs, r)) for r in (1, SMALL, "full")}
    shares = ", ".join(f"{100 * mean(gap_closed(runs, r)):.0f}" for r in TEXT_RANKS)
    return Outcome(
        f"planted: {'on' if planted_ok else 'not on'} the Eckart–Young floor; strings: r = 1 answers "
        f"{strings[1]:.0f} %, "
        f"r = 8 {strings[SMALL]:.0f} %, full {strings['full']:.0f} %; text: r = 1, 8, 64 close {shares} % of the gap "
        f"({text_verdict} there)",
        f"strings r = 8: ±{100 * deviation(small):.0f} %; text r = 8: ±{100 * deviation(closed):.0f} %",
        worst([HOLDS if planted_ok else FAILS, at_least(ratio, 0.95)]),
    )


def draw(runs: Runs, figure: Any) -> None:
    figure.set_size_inches(12.5, 4.2)
    left, middle, right = figure.subplots(1, 3)
    ranks = list(PLANTED_RANKS)
    losses = np.array([[r["loss"] for _, r in select(runs, world="planted", r=rank)] for rank in ranks]).T
    band(left, ranks, np.maximum(losses, 1e-26), BLUE, "LoRA", marker="o")
    least = [max(select(runs, world="planted", r=rank)[0][1]["floor"], 1e-26) for rank in ranks]
    left.plot(ranks, least, "x", color=ORANGE, markersize=9, label="least possible at rank r")
    left.set(xscale="log", yscale="log", ylabel="‖ΔW − D‖²")
    left.set_title("Planted: on the floor at every r" if on_floor(runs) else "Planted: above the floor")

    ranks = list(STRING_RANKS)
    for task, color in zip(STRING_TASKS, (BLUE, GREEN), strict=True):
        if select(runs, task=task):
            accuracy = [[r["accuracy"] for _, r in select(runs, task=task, r=rank)] for rank in ranks]
            band(middle, ranks, 100 * np.array(accuracy).T, color, task, marker="o")
    full = string_accuracies(runs, "full")
    middle.axhline(100 * mean(full), color=GRAY, linestyle="--", label="full fine-tuning")
    middle.axvline(32, color=GRAY, linewidth=1, linestyle=":")
    middle.annotate("r > d/2: larger\nthan the matrix", (34, 45), fontsize=8, color=GRAY)
    middle.set(xscale="log", ylabel="answered exactly (%)", ylim=(0, 104))
    share_of_full = 100 * mean(string_accuracies(runs, SMALL)) / mean(full)
    middle.set_title(f"Strings: r = {SMALL} reaches {share_of_full:.0f} % of full")
    share = middle.secondary_xaxis("top", functions=(lambda r: r / 64, lambda share: share * 64))
    share.set_xlabel("r / d")
    share.set_xticks([1 / 64, 1 / 16, 1 / 4, 1], ["1/64", "1/16", "1/4", "1"])
    share.minorticks_off()

    ranks = list(TEXT_RANKS)
    band(right, ranks, 100 * np.array([gap_closed(runs, rank) for rank in ranks]).T, BLUE, "LoRA on q, v", marker="o")
    wide = gap_closed(runs, "all-linear 16")
    right.plot([16], [100 * mean(wide)], "s", color=ORANGE, label="LoRA on every Linear, r = 16")
    right.axhline(100, color=GRAY, linestyle="--", label="full fine-tuning")
    right.set(xscale="log", ylabel="share of the gap closed (%)", ylim=(0, 148))
    right.set_title(f"Text: r = {SMALL} closes {100 * mean(gap_closed(runs, SMALL)):.0f} % of the gap")
    for ax, ticks in ((left, PLANTED_RANKS), (middle, STRING_RANKS), (right, (1, 4, 16, 64))):
        ax.set_xlabel("rank r")
        ax.set_xticks(ticks, [str(t) for t in ticks])
        ax.minorticks_off()
        ax.legend(loc={left: "center right", middle: "lower right", right: "upper left"}[ax])


CLAIM = Claim(
    id="rank",
    statement="A very small r is enough",
    where="§7.2, Table 6",
    paper="WikiSQL with q, v: 73.4 at r = 1, 73.8 at r = 8, 73.5 at r = 64 (±0.5)",
    rule=(
        "holds if planted losses are on the Eckart–Young floor (to 0.1 %, or 1e-12 of the start where it is 0) and on "
        "string tasks the mean over bases of accuracy(r = 8)/accuracy(full) is at least 0.95 by two standard "
        "errors; text, which footnote 6 excepts, is judged in the same way at 0.9 of the gap and shown beside it"
    ),
    exact=False,
    configurations=configurations,
    run=run,
    conclude=conclude,
    draw=draw,
)
