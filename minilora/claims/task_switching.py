"""§1, §4.1: one base serves many tasks. "When we need to switch to another downstream task, we can recover W₀ by
subtracting BA and then adding a different B′A′".

Two adapters are trained on one base and saved; then they are loaded, swapped, merged and dropped. Nothing may be
left behind: the base must come back bit for bit, and so must each adapter's answers. minilora keeps W₀ beside the
merged weight for that. The paper's own way needs no second copy, but each subtraction and addition rounds: how far W
drifts with the number of switches is measured beside it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..autograd import no_grad
from ..backend import to_numpy
from ..bases import string_sampler
from ..gpt import GPT
from ..interop.checkpoint import load_model, save_checkpoint
from ..interop.peft import load_adapter, save_adapter
from ..lora import LoRAConfig, add_lora, lora_layers, merge_lora, remove_lora, unmerge_lora
from ..optim import Adam, linear_schedule
from ..training import evaluate_exact_match
from .adaptation import held_out, rate
from .bases import adapt, pretrained, seeds
from .claim import Claim, Configuration, Experiment, Part, Result, Runs, Settings
from .figures import BLUE, GRAY, ORANGE, band, finding, label_lines, panels, ticks
from .measures import mean, of, percent, relative
from .methods import LoRA
from .rules import always_true
from .stopwatch import seconds_of

TASKS = ("revupper", "pairs")
R, STEPS = 8, 150
COUNTS = (1, 10, 100)
SWITCHES = (1, 10, 100, 1000)


def configurations(settings: Settings) -> list[Configuration]:
    lr, steps = rate("strings", LoRA("q,v", R)), STEPS // 2 if settings.quick else STEPS
    return [{"base": ["strings", s], "lr": lr, "steps": steps, **seeds(s)} for s in settings.bases]


def run(configuration: Configuration) -> Result:
    """What comes back exactly, what a swap costs, and how many bytes."""
    world, number = configuration["base"]
    model, steps, seed = pretrained(world, number), configuration["steps"], configuration["adapter_seed"]
    ids = held_out(world, TASKS[0])[0][0]

    def logits() -> np.ndarray:
        with no_grad():
            return model(ids).numpy()

    base, weights = logits(), model.state_dict()
    result: Result = {"own": {}, "other": {}}
    with tempfile.TemporaryDirectory() as name:
        folders = {task: Path(name) / task for task in TASKS}
        answers, changes = {}, {}
        for task in TASKS:
            parameters = add_lora(model, LoRAConfig(R, 2 * R), seed=seed)
            optimizer = Adam(parameters, configuration["lr"])
            adapt(
                model, optimizer, string_sampler((task,), 32), steps, configuration["data_seed"], linear_schedule(steps)
            )
            changes[task] = {name: to_numpy(layer.delta_weight()) for name, layer in lora_layers(model).items()}
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
    result["drift"] = _drift({n: weights[f"{n}.weight"] for n in changes[TASKS[0]]}, [changes[task] for task in TASKS])
    result["kept_bytes"] = sum(change.nbytes for change in changes[TASKS[0]].values())
    return result


def _drift(weights: dict[str, np.ndarray], changes: list[dict[str, np.ndarray]]) -> list[float]:
    """How far W is from W₀ after so many switches by subtraction and addition in float32, of W₀'s largest entry."""
    found = []
    now = {name: weight + changes[0][name] for name, weight in weights.items()}
    for switch in range(1, SWITCHES[-1] + 1):
        before, after = changes[(switch - 1) % 2], changes[switch % 2]
        now = {name: weight - before[name] + after[name] for name, weight in now.items()}
        if switch in SWITCHES:
            found.append(max(relative(now[name] - after[name], weight) for name, weight in weights.items()))
    return found


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


def drift(runs: Runs, switches: int) -> list[float]:
    """Of each base."""
    return [r["drift"][SWITCHES.index(switches)] for _, r in runs]


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
    *(Part(f"drift of W by subtracting and adding, {n:,} switches", "exact", of(drift, n)) for n in SWITCHES),
    Part("memory of W₀ beside the merged weights", "exact", of(result_of, "kept_bytes"), "bytes"),
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
    exact, (_, result) = all(comes_back(runs)), runs[0]
    together, apart = (stored(runs, 100, way)[0] / 1e6 for way in (False, True))
    return (
        f"{'base and adapters come back bit for bit' if exact else 'something was left behind'}, for "
        f"{result['kept_bytes'] / 1e3:.0f} kB of W₀ kept beside; subtracting and adding drifts by "
        f"{mean(drift(runs, 1)):.0e} after 1 switch, {mean(drift(runs, 1000)):.0e} after 1,000; a swap reads "
        f"{result['adapter_bytes'] / 1e3:.0f} kB in {mean(result_of(runs, 'swap_ms')):.1f} ms, a full model "
        f"{result['base_bytes'] / 1e3:.0f} kB in {mean(result_of(runs, 'reload_ms')):.1f}; 100 tasks take "
        f"{together:.2f} MB instead of {apart:.2f}; an adapter answers its task {percent(answered(runs, 'own'))} %, "
        f"the other {percent(answered(runs, 'other'))} %"
    )


def draw(runs: Runs, figure: Any) -> None:
    left, right = panels(figure, 2, 3.6)
    middle = band(left, SWITCHES, [r["drift"] for _, r in runs], ORANGE, marker="o")
    floor = float(middle[0]) / 100
    left.plot(SWITCHES, [floor] * len(SWITCHES), color=BLUE)
    left.set(xscale="log", yscale="log", xlabel="switches", ylabel="W off W₀, of its largest entry", xlim=(0.8, 2e4))
    ticks(left, SWITCHES)
    left.set_title("float32, W₀ kept or not")
    base, adapter, counts = runs[0][1]["base_bytes"], runs[0][1]["adapter_bytes"], np.array([1, 2, 5, 10, 20, 50, 100])
    together, apart = storage(base, adapter, counts)
    right.plot(counts, apart / 1e6, color=GRAY)
    right.plot(counts, together / 1e6, color=BLUE)
    right.set(xscale="log", yscale="log", xlabel="tasks", ylabel="storage (MB)", title="files", xlim=(0.9, 900))
    ticks(right, COUNTS, (0.5, 1, 2, 5, 10, 20, 50))
    said = "W₀ kept beside comes back bit for bit; subtracting and adding drifts"
    finding(figure, said if all(comes_back(runs)) else "Switching left something behind", len(runs))
    last = float(middle[-1])
    label_lines(left, [(SWITCHES[-1], last, "subtract,\nadd", ORANGE), (SWITCHES[-1], floor, "kept: 0", BLUE)])
    ends = [
        (100, float(apart[-1]) / 1e6, "full models", GRAY),
        (100, float(together[-1]) / 1e6, "base and\nadapters", BLUE),
    ]
    label_lines(right, ends)


CLAIM = Claim(
    id="task_switching",
    short="One base, swapped adapters",
    statement="One base serves many tasks: adapters are swapped, and dropping one gives the base back",
    where="§1, §4.2, footnote 4",
    paper="100 adapted GPT-3 take 354 GB instead of 35 TB; to switch, BA is subtracted from W and B′A′ added",
    configurations=configurations,
    experiment=Experiment(run, version=2, alone=True),
    parts=PARTS,
    key=key,
    measured=measured,
    draw=draw,
)
