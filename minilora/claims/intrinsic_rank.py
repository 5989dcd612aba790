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
from ..texts import BITS
from ..training import evaluate, evaluate_exact_match
from .adaptation import adaptation, held_out, learn, quality, steps_of
from .bases import pretrained
from .claim import Claim, Configuration, Experiment, Part, Result, Runs, Settings
from .figures import BLUE, GRAY, GREEN, ORANGE, PURPLE, band, panels, ticks
from .measures import deviation, mean, of, percent
from .methods import FULL, LoRA
from .rules import at_least

TASKS: tuple[str, ...] = ("pairs", "revupper")
CUTS = (0, 1, 2, 4, 8, 16, 32, 64)
SMALL = 8  # the k that the verdict asks about
LORA_RANKS: tuple[int, ...] = (1, 2, 4, 8, 16, 64)


def configurations(settings: Settings) -> list[Configuration]:
    seeds, steps, tasks, ranks = settings.bases, steps_of("strings", settings), TASKS, LORA_RANKS
    if settings.quick:
        tasks, ranks = TASKS[1:], (1, 4, SMALL, 64)
    truncated = [
        *(adaptation("strings", s, task, FULL, steps=steps) for s in seeds for task in tasks),
        *(adaptation("text", s, "code", FULL) for s in seeds if not settings.quick),
    ]
    return [
        *({**c, "experiment": "intrinsic_rank"} for c in truncated),
        *(adaptation("strings", s, task, LoRA("q,v", r), steps=steps) for s in seeds for task in tasks for r in ranks),
    ]


def run(configuration: Configuration) -> Result:
    """Quality with every ΔW cut to rank k, for each k; and the mean spectrum of the ΔW."""
    (world, seed), task = configuration["base"], configuration["task"]
    base = pretrained(world, seed)
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


def remains(runs: Runs, world: str, k: int) -> list[float]:
    """Of each base, the share that `kept` says of that k."""
    return [shares[CUTS.index(k)] for shares in kept(runs, world)]


def answered(runs: Runs, r: int) -> list[float]:
    """Of each base on strings, by LoRA on q and v."""
    return quality(runs, "strings", LoRA("q,v", r), TASKS, "accuracy")


WHAT = {
    "strings": f"what every ΔW of full fine-tuning, cut to rank {SMALL} of 64, still answers, as a share of all of it,",
    "text": f"the share of the linear ΔW's gain that rank {SMALL} keeps",
}
PARTS = (
    *(
        Part(
            f"remains of full fine-tuning at rank {k}",
            world,
            of(remains, world, k),
            "%",
            rule=at_least(0.95) if k == SMALL else None,
            what=what,
            beside=world == "text",
        )
        for world, what in WHAT.items()
        for k in CUTS
    ),
    *(Part(f"answered, LoRA on q, v at r = {r}", "strings", of(answered, r), "%") for r in LORA_RANKS),
)


def key(runs: Runs) -> str:
    on_text = remains(runs, "text", SMALL)
    text = f", of text's {percent(on_text)} %" if on_text else ""
    return f"rank {SMALL} of 64 keeps {percent(remains(runs, 'strings', SMALL))} %{text}"


def measured(runs: Runs) -> str:
    def shares(world: str, cuts: tuple[int, ...]) -> str:
        return ", ".join(f"{k}: {percent(remains(runs, world, k))}" for k in cuts)

    said = (
        "share of full fine-tuning that remains when every ΔW is cut to rank k (%): strings "
        f"{shares('strings', (0, 1, 4, 8, 16))}"
    )
    if remains(runs, "text", SMALL):
        said += f"; text {shares('text', (1, 4, 8, 16))}"
    return f"{said}; LoRA on q, v at r = {SMALL} answers {percent(answered(runs, SMALL))} %"


def spread(runs: Runs) -> str:
    said = f"strings k = {SMALL}: ±{100 * deviation(remains(runs, 'strings', SMALL)):.0f} %"
    text = remains(runs, "text", SMALL)
    return f"{said}; text ±{100 * deviation(text):.0f} %" if text else said


def draw(runs: Runs, figure: Any) -> None:
    left, right = panels(figure, 2, 12.5, 4.2)
    half = {}
    for world, color in (("strings", BLUE), ("text", ORANGE)):
        if energies := [r["energy"] for c, r in runs if "energy" in r and c["base"][0] == world]:
            band(left, np.arange(1, 65), 100 * np.array(energies), color, world)
            half[world] = 1 + int(np.argmax(np.mean(energies, 0) > 0.9))
    left.set(xscale="log", xlabel="first k singular values", ylabel="share of ‖ΔW‖² (%), mean of all matrices")
    left.set_title(f"Full ΔW: 90 % in {' and '.join(f'{k} ({world})' for world, k in half.items())} of 64")
    x = np.arange(len(CUTS))
    for task, color in zip(TASKS, (BLUE, GREEN), strict=True):
        if shares := kept(runs, "strings", task):
            band(right, x, 100 * np.array(shares), color, f"strings, {task}", marker="o")
    if shares := kept(runs, "text"):
        band(right, x, 100 * np.array(shares), ORANGE, "text (of the linear ΔW's gain)", marker="o")
    ranks = [r for r in LORA_RANKS if answered(runs, r)]
    lora = [100 * mean(answered(runs, r)) for r in ranks]
    right.plot([CUTS.index(r) for r in ranks], lora, "x--", color=PURPLE, label="LoRA on q, v at r = k (% answered)")
    right.axhline(100, color=GRAY, linewidth=1, linestyle=":")
    right.set_xticks(x, [str(k) for k in CUTS])
    right.set(xlabel="rank k that every ΔW is cut to", ylabel="remains of full fine-tuning (%)", ylim=(-8, 108))
    keeps = [f"{percent(remains(runs, world, SMALL))} % on {world}" for world in half]
    right.set_title(f"k = {SMALL} keeps {', '.join(keeps)}")
    for ax in (left, right):
        ax.legend(loc="lower right", fontsize=8)
    ticks(left, CUTS[1:])


CLAIM = Claim(
    id="intrinsic_rank",
    short="Full fine-tuning: low-rank ΔW",
    statement="What full fine-tuning changes has a low rank",
    where="§1, §4.1",
    paper="a hypothesis: updates have a low intrinsic rank; r = 1 to 8 suffices for GPT-3",
    configurations=configurations,
    experiment=Experiment(run, version=2),
    parts=PARTS,
    key=key,
    measured=measured,
    spread=spread,
    draw=draw,
)
