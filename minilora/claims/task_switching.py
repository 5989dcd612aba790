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
from ..bases import string_sampler
from ..gpt import GPT
from ..interop.checkpoint import load_model, save_checkpoint
from ..interop.peft import load_adapter, save_adapter
from ..lora import LoRAConfig, add_lora, merge_lora, remove_lora, unmerge_lora
from ..optim import Adam, linear_schedule
from ..training import evaluate_exact_match
from .adaptation import held_out, rate
from .bases import adapt, pretrained, seed_of
from .claim import Claim, Configuration, Experiment, Part, Result, Runs, Settings
from .figures import BLUE, GRAY, GREEN, ORANGE, ticks
from .measures import deviation, mean, of, percent
from .methods import LoRA
from .rules import always_true
from .stopwatch import seconds_of

TASKS = ("revupper", "pairs")
R, STEPS = 8, 150
COUNTS = (1, 10, 100)
PAPER = {"base": 350e9, "adapter": 35e6}  # bytes, GPT-3 in float16 (footnote 4)


def configurations(settings: Settings) -> list[Configuration]:
    lr, steps = rate("strings", LoRA("q,v", R)), STEPS // 2 if settings.quick else STEPS
    return [{"base": ["strings", s], "lr": lr, "steps": steps} for s in settings.bases]


def run(configuration: Configuration) -> Result:
    """What comes back exactly, what a swap costs, and how many bytes."""
    world, number = configuration["base"]
    model, steps, seed = pretrained(world, number), configuration["steps"], seed_of(number)
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
            adapt(model, optimizer, string_sampler((task,), 32), steps, seed, linear_schedule(steps))
            save_adapter(model, folders[task])
            answers[task] = logits()
            for other in TASKS:
                place = "own" if other == task else "other"
                result[place][other] = evaluate_exact_match(model, held_out(world, other))
            remove_lora(model)
        first, second = folders.values()
        load_adapter(model, first)
        load_adapter(model, second)  # in place of the first
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


def storage(base: float, adapter: float, tasks: Any) -> tuple[Any, Any]:
    """Bytes for so many tasks, one number or several: one base and their adapters, and a full model for each."""
    return base + tasks * adapter, tasks * base


def comes_back(runs: Runs) -> list[float]:
    """Of each base, 1 where nothing was left behind on it, and each adapter came back."""
    return [float(r["base_equal"] and r["adapters_equal"]) for _, r in runs]


def answered(runs: Runs, place: str) -> list[float]:
    """Of each base, the mean over the adapters of the share of the "own" task, or the "other", that they answer."""
    return [mean(list(r[place].values())) for _, r in runs]


def result_of(runs: Runs, name: str) -> list[float]:
    """Of each base."""
    return [r[name] for _, r in runs]


def stored(runs: Runs, tasks: int, apart: bool) -> list[float]:
    """Of each base, bytes for so many tasks: together on one base, or apart, a full model for each."""
    return [storage(r["base_bytes"], r["adapter_bytes"], tasks)[apart] for _, r in runs]


CLOCKS = {"swap_ms": "swapping adapters", "merge_ms": "merging and unmerging", "reload_ms": "reloading a full model"}
PARTS = (
    Part(
        "comes back bit for bit (1: yes)",
        "exact",
        comes_back,
        rule=always_true(),
        what="logits and weights are bit-equal to the base's after two adapters were loaded, swapped, merged, "
        "unmerged and dropped, and each adapter's logits, loaded from its file, to those it was trained to give,",
    ),
    Part("an adapter's files", "exact", of(result_of, "adapter_bytes"), "bytes"),
    Part("a full model's file", "exact", of(result_of, "base_bytes"), "bytes"),
    *(Part(f"{n} task{'s' * (n > 1)}, base and adapters", "exact", of(stored, n, False), "bytes") for n in COUNTS),
    *(Part(f"{n} task{'s' * (n > 1)}, full models", "exact", of(stored, n, True), "bytes") for n in COUNTS),
    *(Part(f"answered, {place} task", "strings", of(answered, place), "%") for place in ("own", "other")),
    *(Part(f"{name}, median of a base", "time", of(result_of, key), "ms") for key, name in CLOCKS.items()),
)


def key(runs: Runs) -> str:
    equal = comes_back(runs)
    return f"bit-equal after swaps on {sum(equal):.0f} of {len(equal)} bases"


def measured(runs: Runs) -> str:
    exact, (configuration, result) = all(comes_back(runs)), runs[0]
    steps = configuration["steps"]
    sizes = ", ".join(
        f"{n}: {stored(runs, n, False)[0] / 1e6:.2f} MB instead of {stored(runs, n, True)[0] / 1e6:.2f}" for n in COUNTS
    )
    together, apart = storage(PAPER["base"], PAPER["adapter"], 100)
    return (
        f"{'base and adapters come back bit for bit' if exact else 'something was left behind'}; swapping reads "
        f"{result['adapter_bytes'] / 1e3:.0f} kB in {mean(result_of(runs, 'swap_ms')):.1f} ms, reloading a full model "
        f"{result['base_bytes'] / 1e3:.0f} kB in {mean(result_of(runs, 'reload_ms')):.1f} ms; after {steps} steps an "
        f"adapter answers its task {percent(answered(runs, 'own'))} %, the other "
        f"{percent(answered(runs, 'other'))} %; storage for tasks {sizes} (the paper's sizes give "
        f"{together / 1e9:.1f} GB and {apart / 1e12:.0f} TB for 100)"
    )


def spread(runs: Runs) -> str:
    swap, own = deviation(result_of(runs, "swap_ms")), deviation(answered(runs, "own"))
    return f"swap ±{swap:.1f} ms; own task ±{100 * own:.0f} %"


def draw(runs: Runs, figure: Any) -> None:
    left, right = figure.subplots(1, 2)
    results = [r for _, r in runs]
    counts = np.array([1, 2, 5, 10, 20, 50, 100])
    for (base, adapter), color, name in (
        ((results[0]["base_bytes"], results[0]["adapter_bytes"]), BLUE, "here"),
        ((PAPER["base"], PAPER["adapter"]), ORANGE, "GPT-3, from the paper's sizes"),
    ):
        together, apart = storage(base, adapter, counts)
        left.plot(counts, apart, "--", color=color, label=f"{name}: full models")
        left.plot(counts, together, "-", color=color, label=f"{name}: base + LoRA")
    left.plot([100], [354e9], "x", color="black", label="paper: 354 GB")
    left.set(xscale="log", yscale="log", xlabel="tasks", ylabel="storage (bytes)")
    ticks(left, COUNTS)
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
    exact = all(comes_back(runs))
    right.set_title("Switching leaves nothing behind" if exact else "Switching left something behind")


CLAIM = Claim(
    id="task_switching",
    short="One base, swapped adapters",
    statement="One base serves many tasks: adapters are swapped, and dropping one gives the base back",
    where="§1, §4.2, footnote 4",
    paper="100 adapted GPT-3 take 354 GB instead of 35 TB; switching swaps the LoRA weights only",
    configurations=configurations,
    experiment=Experiment(run, alone=True),
    parts=PARTS,
    key=key,
    measured=measured,
    spread=spread,
    draw=draw,
)
