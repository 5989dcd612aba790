"""§1, §4.1: one base serves many tasks; switching is "swapping LoRA weights only, as opposed to all the parameters".

Two adapters are trained on one base and saved; then they are loaded, swapped, merged and dropped. Nothing may be
left behind: the base must come back bit for bit, and so must each adapter's answers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..autograd import no_grad
from ..gpt import GPT
from ..interop.checkpoint import load_model, save_checkpoint
from ..interop.peft import load_adapter, save_adapter
from ..lora import LoRAConfig, add_lora, merge_lora, remove_lora, unmerge_lora
from ..optim import Adam, linear_schedule
from ..training import evaluate_exact_match
from .adaptation import held_out, rate
from .bases import adapt, load_base, seed_of, string_draw
from .claim import (
    FAILS,
    HOLDS,
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
    percent,
    seconds_of,
)
from .figures import BLUE, GRAY, GREEN, ORANGE

TASKS = ("revupper", "pairs")
R, STEPS = 8, 150
COUNTS = (1, 10, 100)
PAPER = {"base": 350e9, "adapter": 35e6}  # bytes, GPT-3 in float16 (footnote 4)


def configurations(settings: Settings) -> list[Configuration]:
    return [{"base": ["strings", s], "lr": rate("strings", f"lora q,v {R}"), "steps": STEPS} for s in settings.bases]


def run(configuration: Configuration) -> Result:
    """What comes back exactly, what a swap costs, and how many bytes."""
    world, number = configuration["base"]
    model, steps, seed = load_base(world, number), configuration["steps"], seed_of(number)
    ids = held_out(world, TASKS[0])[0][0]

    def logits() -> np.ndarray:
        with no_grad():
            return model(ids).numpy()

    base, weights = logits(), model.state_dict()
    result: Result = {"own": {}, "other": {}}
    with tempfile.TemporaryDirectory() as name:
        folders = {task: Path(name) / task for task in TASKS}
        answers = {}
        for task in TASKS:
            parameters = add_lora(model, LoRAConfig(R, 2 * R), seed=seed)
            optimizer = Adam(parameters, configuration["lr"])
            adapt(model, optimizer, string_draw((task,), 32), steps, seed, linear_schedule(steps))
            save_adapter(model, folders[task])
            answers[task] = logits()
            for other in TASKS:
                place = "own" if other == task else "other"
                result[place][other] = evaluate_exact_match(model, held_out(world, other))
            remove_lora(model)
        first, second = folders.values()
        load_adapter(model, first)
        load_adapter(model, second)  # in the place of the first
        swapped = logits()
        merge_lora(model)
        unmerge_lora(model)
        load_adapter(model, first)
        back = logits()
        result["adapters_equal"] = bool(
            np.array_equal(swapped, answers[TASKS[1]]) and np.array_equal(back, answers[TASKS[0]])
        )
        result["swap_ms"] = _median(lambda i: load_adapter(model, (first, second)[i % 2]))
        result["merge_ms"] = _median(lambda i: _merge_and_unmerge(model))
        remove_lora(model)
        result["base_equal"] = bool(
            np.array_equal(logits(), base) and all(np.array_equal(v, weights[k]) for k, v in model.state_dict().items())
        )
        result["adapter_bytes"] = sum(file.stat().st_size for file in first.iterdir())
        path = Path(name) / "base.npz"
        save_checkpoint(path, model)
        result["base_bytes"] = path.stat().st_size
        result["reload_ms"] = _median(lambda i: load_model(path))
    return result


def _merge_and_unmerge(model: GPT) -> None:
    merge_lora(model)
    unmerge_lora(model)


def _median(call: Callable[[int], Any], repeats: int = 11) -> float:
    return 1e3 * float(np.median([seconds_of(partial(call, i)) for i in range(repeats)]))


def storage(base: float, adapter: float, tasks: int) -> tuple[float, float]:
    """Bytes for so many tasks: one base and their adapters, and a full model for each."""
    return base + tasks * adapter, tasks * base


def comes_back(result: Result) -> bool:
    """Whether nothing was left behind on a base."""
    return result["base_equal"] and result["adapters_equal"]


def answered(runs: Runs, place: str) -> list[float]:
    """Of each base, the mean over the adapters of the share of the "own" task, or the "other", that they answer."""
    return [mean(list(r[place].values())) for _, r in runs]


def measurements(runs: Runs) -> list[Measurement]:
    results = [r for _, r in runs]
    stored = {n: [storage(r["base_bytes"], r["adapter_bytes"], n) for r in results] for n in COUNTS}
    clocks = {
        "swap_ms": "swapping adapters",
        "merge_ms": "merging and unmerging",
        "reload_ms": "reloading a full model",
    }
    return [
        Measurement("comes back bit for bit (1: yes)", "exact", [comes_back(r) for r in results]),
        Measurement("an adapter's files", "exact", [r["adapter_bytes"] for r in results], "bytes"),
        Measurement("a full model's file", "exact", [r["base_bytes"] for r in results], "bytes"),
        *(Measurement(f"{n} tasks, base and adapters", "exact", [a for a, _ in v], "bytes") for n, v in stored.items()),
        *(Measurement(f"{n} tasks, full models", "exact", [b for _, b in v], "bytes") for n, v in stored.items()),
        *(percent(f"answered, {place} task", "strings", answered(runs, place)) for place in ("own", "other")),
        *(
            Measurement(f"{name}, median of a base", "time", [r[key] for r in results], "ms")
            for key, name in clocks.items()
        ),
    ]


def conclude(runs: Runs) -> Outcome:
    results = [r for _, r in runs]
    exact = all(map(comes_back, results))
    verdict = HOLDS if exact else FAILS
    base, adapter = results[0]["base_bytes"], results[0]["adapter_bytes"]
    sizes = ", ".join(
        f"{n}: {a / 1e6:.2f} MB instead of {b / 1e6:.2f}" for n in COUNTS for a, b in [storage(base, adapter, n)]
    )
    swaps = [r["swap_ms"] for r in results]
    own, other = answered(runs, "own"), answered(runs, "other")
    together, apart = storage(PAPER["base"], PAPER["adapter"], 100)
    return Outcome(
        f"{'base and adapters come back bit for bit' if exact else 'something was left behind'}; swapping reads "
        f"{adapter / 1e3:.0f} kB in {mean(swaps):.1f} ms, reloading a full model {base / 1e3:.0f} kB in "
        f"{mean([r['reload_ms'] for r in results]):.1f} ms; after {STEPS} steps an adapter answers its task "
        f"{100 * mean(own):.0f} %, the "
        f"other {100 * mean(other):.0f} %; storage for tasks {sizes} (the paper's sizes give {together / 1e9:.1f} GB "
        f"and {apart / 1e12:.0f} TB for 100)",
        f"swap ±{deviation(swaps):.1f} ms; own task ±{100 * deviation(own):.0f} %",
        verdict,
        key=f"{sum(map(comes_back, results))} of {len(results)} bases come back bit for bit",
        verdicts={"exact": verdict},  # no rule for the clock
        measurements=measurements(runs),
    )


def draw(runs: Runs, figure: Any) -> None:
    left, right = figure.subplots(1, 2)
    results = [r for _, r in runs]
    counts = np.array([1, 2, 5, 10, 20, 50, 100])
    for (base, adapter), color, name in (
        ((results[0]["base_bytes"], results[0]["adapter_bytes"]), BLUE, "here"),
        ((PAPER["base"], PAPER["adapter"]), ORANGE, "GPT-3, from the paper's sizes"),
    ):
        left.plot(
            counts, [storage(base, adapter, n)[1] for n in counts], "--", color=color, label=f"{name}: full models"
        )
        left.plot(
            counts, [storage(base, adapter, n)[0] for n in counts], "-", color=color, label=f"{name}: base + LoRA"
        )
    left.plot([100], [354e9], "x", color="black", label="paper: 354 GB")
    left.set(xscale="log", yscale="log", xlabel="tasks", ylabel="storage (bytes)")
    left.set_xticks(COUNTS, [str(n) for n in COUNTS])
    left.minorticks_off()
    ratio = storage(results[0]["base_bytes"], results[0]["adapter_bytes"], 100)
    left.set_title(f"100 tasks: {ratio[1] / ratio[0]:.0f} times less than full models")
    left.legend(fontsize=8)
    names = {"swap_ms": "swap the\nadapter", "merge_ms": "merge and\nunmerge", "reload_ms": "reload a\nfull model"}
    for place, (key, color) in enumerate(zip(names, (BLUE, GREEN, GRAY), strict=True)):
        values = [r[key] for r in results]
        right.bar([place], [mean(values)], 0.6, color=color, alpha=0.55)
        right.plot([place] * len(values), values, ".", color=color)
    right.set_xticks(range(3), list(names.values()))
    right.grid(axis="x", visible=False)
    right.set(ylabel="milliseconds, median of 11 (dots: bases)")
    exact = all(map(comes_back, results))
    right.set_title("Switching leaves nothing behind" if exact else "Switching left something behind")


CLAIM = Claim(
    id="task_switching",
    short="One base serves many tasks",
    statement="One base serves many tasks: adapters are swapped, and dropping one gives the base back",
    where="§1, §4.2, footnote 4",
    paper="100 adapted GPT-3 take 354 GB instead of 35 TB; switching swaps the LoRA weights only",
    rule=(
        "holds if, on every base, logits and weights are bit-equal to the base's after two adapters were loaded, "
        "swapped, merged, unmerged and dropped, and each adapter's logits, loaded from its file, to those it was "
        "trained to give"
    ),
    exact=True,
    configurations=configurations,
    experiment=Experiment(run, alone=True),
    conclude=conclude,
    draw=draw,
)
