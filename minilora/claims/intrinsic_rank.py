"""§4.1 and §1: "the updates to the weights also have a low intrinsic rank during adaptation".

Full fine-tuning learns a task; then the change of every matrix in the blocks is replaced by its best rank-k part
(everything else stays as learned), and the model is examined again. LoRA, which is given rank k from the start, is
drawn beside it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..analysis import spectrum, truncate
from ..backend import asarray
from ..nn import Linear
from ..training import evaluate, evaluate_exact_match
from .adaptation import adaptation, held_out, learn, quality
from .bases import load_base
from .claim import (
    BITS,
    Claim,
    Configuration,
    Experiment,
    Measurement,
    Outcome,
    Result,
    Runs,
    Settings,
    at_least,
    deviation,
    mean,
    percent,
)
from .figures import BLUE, GRAY, GREEN, ORANGE, PURPLE, band

TASKS = ("pairs", "revupper")
CUTS = (0, 1, 2, 4, 8, 16, 32, 64)
SMALL = 8  # the k that the verdict asks about
LORA_RANKS = (1, 2, 4, 8, 16, 64)


def configurations(settings: Settings) -> list[Configuration]:
    seeds = settings.bases
    tasks = TASKS[1:] if settings.quick else TASKS
    truncations = [("strings", s, task) for s in seeds for task in tasks] + [("text", s, "code") for s in seeds]
    return [
        *({**adaptation(*of, "full"), "experiment": "intrinsic_rank"} for of in truncations),
        *(adaptation("strings", s, task, f"lora q,v {r}") for s in seeds for task in tasks for r in LORA_RANKS),
    ]


def run(configuration: Configuration) -> Result:
    """Quality with every ΔW cut to rank k, for each k; and the mean spectrum of the ΔW."""
    (world, seed), task = configuration["base"], configuration["task"]
    base = load_base(world, seed)
    model, _ = learn(configuration)
    names = [n for n, m in model.named_modules() if isinstance(m, Linear) and n.startswith("blocks")]
    starts, modules = dict(base.named_modules()), dict(model.named_modules())
    changes = {n: modules[n].weight.numpy() - starts[n].weight.numpy() for n in names}  # type: ignore[attr-defined]
    batches = held_out(world, task)

    def examine(m: Any) -> float:
        return evaluate_exact_match(m, batches) if world == "strings" else BITS * evaluate(m, batches)

    result: Result = {"before": examine(base), "cut": []}
    for k in CUTS:
        for n in names:
            modules[n].weight.data[...] = starts[n].weight.data + asarray(truncate(changes[n], k))  # type: ignore[attr-defined]
        result["cut"].append(examine(model))
    energy = [spectrum(change) ** 2 for change in changes.values()]
    result["energy"] = np.mean([np.cumsum(e) / e.sum() for e in energy], axis=0).tolist()
    return result


def kept(runs: Runs, world: str, task: str | None = None) -> list[list[float]]:
    """Of each base, the share of what the linear ΔW gain that remains at each k; on strings of full's accuracy."""
    of_base: dict[int, list[list[float]]] = {}
    for c, r in runs:
        if "cut" in r and c["base"][0] == world and (task is None or c["task"] == task):
            cut = np.array(r["cut"])
            share = cut / cut[-1] if world == "strings" else (cut[0] - cut) / (cut[0] - cut[-1])
            of_base.setdefault(c["base"][1], []).append(share.tolist())
    return [np.mean(of_base[s], axis=0).tolist() for s in sorted(of_base)]


def remains(runs: Runs, world: str) -> dict[int, list[float]]:
    """Of each k: of each base, the share that `kept` says."""
    return dict(zip(CUTS, (list(of_bases) for of_bases in zip(*kept(runs, world), strict=True)), strict=True))


def measurements(runs: Runs) -> list[Measurement]:
    return [
        *(
            percent(f"remains of full fine-tuning at rank {k}", world, shares)
            for world in ("strings", "text")
            for k, shares in remains(runs, world).items()
        ),
        *(percent(f"answered, LoRA on q, v at r = {r}", "strings", answered(runs, r)) for r in LORA_RANKS),
    ]


def answered(runs: Runs, r: int) -> list[float]:
    """Of each base on strings, by LoRA on q and v."""
    return quality(runs, "strings", f"lora q,v {r}", TASKS, "accuracy")


def conclude(runs: Runs) -> Outcome:
    strings, text = (remains(runs, world) for world in ("strings", "text"))
    verdicts = {
        "strings": at_least(strings[SMALL], 0.95),
        "text": at_least(text[SMALL], 0.95),  # shown beside the rule
    }
    on_strings = ", ".join(f"{k}: {100 * mean(strings[k]):.0f}" for k in (0, 1, 4, 8, 16))
    on_text = ", ".join(f"{k}: {100 * mean(text[k]):.0f}" for k in (1, 4, 8, 16))
    return Outcome(
        f"share of full fine-tuning that remains when every ΔW is cut to rank k (%): strings {on_strings}; text "
        f"{on_text} ({verdicts['text']} there); LoRA on q, v at r = {SMALL} answers "
        f"{100 * mean(answered(runs, SMALL)):.0f} %",
        f"strings k = {SMALL}: ±{100 * deviation(strings[SMALL]):.0f} %; text ±{100 * deviation(text[SMALL]):.0f} %",
        verdicts["strings"],
        key=f"rank {SMALL} of 64 keeps {100 * mean(strings[SMALL]):.0f} % of it",
        verdicts=verdicts,
        measurements=measurements(runs),
    )


def draw(runs: Runs, figure: Any) -> None:
    figure.set_size_inches(12.5, 4.2)
    left, right = figure.subplots(1, 2)
    for world, color, label in (("strings", BLUE, "strings"), ("text", ORANGE, "text")):
        energies = [r["energy"] for c, r in runs if "energy" in r and c["base"][0] == world]
        band(left, np.arange(1, 65), 100 * np.array(energies), color, label)
    half = {
        world: 1
        + int(np.argmax(np.mean([r["energy"] for c, r in runs if "energy" in r and c["base"][0] == world], 0) > 0.9))
        for world in ("strings", "text")
    }
    left.set(xscale="log", xlabel="first k singular values", ylabel="share of ‖ΔW‖² (%), mean of all matrices")
    left.set_title(f"Full ΔW: 90 % in {half['strings']} (strings) and {half['text']} (text) of 64")
    x = np.arange(len(CUTS))
    for task, color in zip(TASKS, (BLUE, GREEN), strict=True):
        if shares := kept(runs, "strings", task):
            band(right, x, 100 * np.array(shares), color, f"strings, {task}", marker="o")
    if shares := kept(runs, "text"):
        band(right, x, 100 * np.array(shares), ORANGE, "text (of the linear ΔW's gain)", marker="o")
    lora = [quality(runs, "strings", f"lora q,v {r}", TASKS, "accuracy") for r in LORA_RANKS]
    places = [CUTS.index(r) for r in LORA_RANKS]
    right.plot(places, [100 * mean(v) for v in lora], "x--", color=PURPLE, label="LoRA on q, v at r = k (% answered)")
    right.axhline(100, color=GRAY, linewidth=1, linestyle=":")
    right.set_xticks(x, [str(k) for k in CUTS])
    right.set(xlabel="rank k that every ΔW is cut to", ylabel="remains of full fine-tuning (%)", ylim=(-8, 108))
    place = CUTS.index(SMALL)
    right.set_title(
        f"k = {SMALL} keeps {100 * mean([s[place] for s in kept(runs, 'strings')]):.0f} % on strings, "
        f"{100 * mean([s[place] for s in kept(runs, 'text')]):.0f} % on text"
    )
    for ax in (left, right):
        ax.legend(loc="lower right", fontsize=8)
    left.set_xticks([1, 2, 4, 8, 16, 32, 64], ["1", "2", "4", "8", "16", "32", "64"])
    left.minorticks_off()


CLAIM = Claim(
    id="intrinsic_rank",
    short="Full fine-tuning's ΔW has low rank",
    statement="What full fine-tuning changes has a low rank",
    where="§1, §4.1",
    paper="a hypothesis: updates have a low intrinsic rank; r = 1 to 8 suffices for GPT-3",
    rule=(
        f"holds if, on string tasks, cutting every ΔW of full fine-tuning to rank {SMALL} of 64 keeps 0.95 of its "
        "accuracy, by two standard errors over bases; text, where the share of the linear ΔW's gain counts, is shown "
        "beside it"
    ),
    exact=False,
    configurations=configurations,
    experiment=Experiment(run, version=2),
    conclude=conclude,
    draw=draw,
)
