"""The experiment that most claims share: a base learns a task by one method, and is then examined.

A method, one of methods.py or its name, has a learning rate of its own for each length of training, from a committed
file that `minilora reproduce --tune` makes, on two bases that no report uses.
"""

from __future__ import annotations

import json
import operator
from functools import lru_cache
from importlib.resources import files
from typing import Any

import numpy as np

from .. import functional as F
from ..autograd import Tensor, no_grad
from ..backend import to_numpy
from ..bases import Sampler, string_sampler
from ..data import Batch, fixed
from ..nn import Module, evaluating
from ..optim import linear_schedule
from ..tasks import IGNORED, exact_match
from ..texts import BITS
from ..training import DivergedError, counted_targets, evaluate
from .bases import adapt, pretrained, seeds, text_sampler
from .claim import Configuration, Experiment, Result, Runs, Settings
from .measures import each, mean, select
from .methods import FULL, Method, named

NAME = "adaptation"
TASKS = {"strings": "revupper", "text": "code"}  # world -> what its bases learn
STEPS = {"strings": 300, "text": 400}
LONG = {"strings": 1000, "text": 1200}
LENGTHS: dict[str, dict[str, int | None]] = {"short": dict.fromkeys(STEPS), "long": {**LONG}}
_BATCH = {"strings": 32, "text": 8}
WORST = 10.0  # bits; what a run that diverged counts


def steps_of(world: str, settings: Settings) -> int:
    """How long a run of a world takes; a third of that in a quick look, by when LoRA has learned `revupper`."""
    return STEPS[world] // 3 if settings.quick else STEPS[world]


def adaptation(world: str, base: int, task: str, method: Method | str, **changes: Any) -> Configuration:
    """The configuration of one run: a base of a world learns a string task, or "code" from "text".

    Changes: lr and steps; adapter_seed, of A's start, and data_seed, of the batches; init_std of A; examples, to learn
    from that many only; shortened, by how many characters the context is cut when the model is read once more. The
    learning rate is the one tuned for such a run, if not given.
    """
    steps = changes.pop("steps", STEPS[world])
    return {
        "experiment": NAME,
        "base": [world, base],
        "task": task,
        "method": str(method),
        "lr": changes.pop("lr", None) or rate(world, method, steps, changes.get("examples")),
        "steps": steps,
        **seeds(base),
        **changes,
    }


def learn(configuration: Configuration) -> tuple[Module, int]:
    """Train one configuration: the model, and how many numbers were trained. Raises `DivergedError`."""
    (world, base), task, method = (configuration[name] for name in ("base", "task", "method"))
    steps, lr, seed, data_seed = (configuration[name] for name in ("steps", "lr", "adapter_seed", "data_seed"))
    method = named(method)
    model, parameters = method.prepare(pretrained(world, base), seed, configuration.get("init_std"))
    sample = sampler(world, task, method.positions)
    if "examples" in configuration:
        sample = _from_few(string_sampler((task,), configuration["examples"]), _BATCH[world], data_seed)
    optimizer, trained = method.optimizer(parameters, lr, seed)
    adapt(model, optimizer, sample, steps, data_seed, linear_schedule(steps))
    return model, trained


def sampler(world: str, task: str, room: int = 0) -> Sampler:
    """Batches to learn from, without the first `room` characters of a text."""
    B = _BATCH[world]
    return string_sampler((task,), B) if world == "strings" else text_sampler(task, B, room=room)


def _from_few(sample: Sampler, B: int, seed: int) -> Sampler:
    """Batches of B out of the examples of one fixed batch."""
    ids, targets = sample(np.random.default_rng([seed, 1]))

    def batch(rng: np.random.Generator) -> Batch:
        rows = rng.integers(0, len(ids), B)
        return ids[rows], targets[rows]

    return batch


def held_out(world: str, task: str, method: Method | str = FULL, seed: int = 2**31) -> list[Batch]:
    """512 examples or windows that no training ever saw, the same every time."""
    return _held_out(world, task, named(method).positions, seed)


@lru_cache(maxsize=16)
def _held_out(world: str, task: str, room: int, seed: int) -> list[Batch]:
    if world == "strings":
        return fixed(string_sampler((task,), 256, held_out=True), 2, seed)
    return fixed(text_sampler(task, 64, held_out=True, room=room), 8, seed)


def run(configuration: Configuration) -> Result:
    """Bits a character of the answer or text before and after, and how many numbers were trained; for strings also the
    share answered exactly, for text also the bits of each window's last 16 characters."""
    (world, base), task, method = (configuration[name] for name in ("base", "task", "method"))
    evaluation_seed = configuration.get("evaluation_seed", 2**31)
    batches = held_out(world, task, method, evaluation_seed)
    result: Result = {"before": _before(world, base, task, named(method).positions, evaluation_seed)}
    try:
        model, result["trainable"] = learn(configuration)
    except DivergedError:
        return {**result, "bits": WORST, "bits_at_end": WORST, "accuracy": 0.0, "trainable": 0}
    if "shortened" in configuration:
        shorter = [_held_out(world, task, room, evaluation_seed) for room in configuration["shortened"]]
        result["bits_at_end_shortened"] = [_examine(model, world, of_room)["bits_at_end"] for of_room in shorter]
    return {**result, **_examine(model, world, batches)}


@lru_cache(maxsize=16)
def _before(world: str, base: int, task: str, room: int, evaluation_seed: int) -> float:
    """Bits of a base that has not been adapted."""
    return BITS * evaluate(pretrained(world, base), _held_out(world, task, room, evaluation_seed))


def _examine(model: Module, world: str, batches: list[Batch]) -> Result:
    """Everything that `run` reports of how good a model is, from one forward pass."""
    with no_grad(), evaluating():
        read = [(model(ids), targets) for ids, targets in batches]
        if world == "strings":
            accuracy = mean([exact_match(to_numpy(logits.array), targets) for logits, targets in read])
            return {"bits": _bits(read), "accuracy": accuracy}
        return {"bits": _bits(read), "bits_at_end": _bits([(logits, _last(targets)) for logits, targets in read])}


def _bits(read: list[tuple[Tensor, np.ndarray]]) -> float:
    """Of a counted target, all batches together."""
    counts = [counted_targets(targets) for _, targets in read]
    losses = [F.cross_entropy(logits, targets).item() for logits, targets in read]
    return min(BITS * sum(n * loss for n, loss in zip(counts, losses, strict=True)) / sum(counts), WORST)


def _last(targets: np.ndarray) -> np.ndarray:
    """Only the last 16 characters of each window count: every method predicts the same ones, whatever it has read."""
    ends = targets.copy()
    ends[:, :-16] = IGNORED
    return ends


EXPERIMENT = Experiment(run, version=3)


# ---- learning rates ----------------------------------------------------------------------------------

RATES_FILE = files(__package__).joinpath("learning_rates.json")


@lru_cache
def _rates() -> dict[str, dict[str, float]]:
    return json.loads(RATES_FILE.read_text(encoding="utf-8"))["rates"]


def _tuned(setting: str, method: str) -> float | None:
    return _rates().get(setting, {}).get(method)


def setting(world: str, steps: int, examples: int | None = None) -> str:
    """What a rate is tuned for, beside the method: "strings 300", "strings 300 from 64"."""
    return f"{world} {steps}" + (f" from {examples}" if examples else "")


def rate(world: str, method: Method | str, steps: int | None = None, examples: int | None = None) -> float:
    """The learning rate tuned for a method and a length, the ordinary one if none is given; a shorter run, as a quick
    look makes them, takes the ordinary one's. Raises `ValueError` where there is none."""
    steps = steps or STEPS[world]
    found = _tuned(setting(world, steps, examples), str(method))
    if found is None and steps < STEPS[world]:
        found = _tuned(setting(world, STEPS[world], examples), str(method))
    if found is None:
        raise ValueError(
            f"No learning rate is known for {str(method)!r} on {setting(world, steps, examples)}: add it to METHODS in "
            "claims/tuning.py and run `minilora reproduce --tune`."
        )
    return found


# ---- measurements of several runs --------------------------------------------------------------------


def trained_for(runs: Runs, world: str) -> int:
    """The steps of a world's ordinary runs; of a quick look, its own."""
    steps = {c["steps"] for c, _ in select(runs, experiment=NAME) if c["base"][0] == world}
    return STEPS[world] if STEPS[world] in steps else min(steps)


def quality(
    runs: Runs, world: str, method: Method | str, measure: str, steps: int | None = None, **changes: Any
) -> list[float]:
    """Of each base, in order, a measurement of a method's run with these settings; empty where there are none.
    `steps`: those of the ordinary runs, if not given."""
    optional = ("init_std", "examples", "shortened")
    found = {
        c["base"][1]: float(r[measure])
        for c, r in select(runs, experiment=NAME, method=str(method), **changes)
        if c["base"][0] == world
        and c["steps"] == (steps or trained_for(runs, world))
        and all(c.get(k) == changes.get(k) for k in optional)
    }
    return [found[base] for base in sorted(found)]


def bits(runs: Runs, world: str, method: Method, steps: int | None = None) -> list[float]:
    """Of each base."""
    return quality(runs, world, method, "bits", steps)


def behind(runs: Runs, world: str, method: Method, other: Method = FULL, steps: int | None = None) -> list[float]:
    """Of each base, how many bits more than another a method loses."""
    return each(operator.sub, bits(runs, world, method, steps), bits(runs, world, other, steps))


def gained(runs: Runs, method: Method, other: Method = FULL, steps: int | None = None) -> list[float]:
    """Of each base on text, the share of another's gain in bits that a method reaches."""
    before = quality(runs, "text", other, "before", steps)
    own, whole = (bits(runs, "text", m, steps) for m in (method, other))
    return each(lambda b, x, least: (b - x) / (b - least), before, own, whole)


def worlds_run(runs: Runs) -> list[str]:
    """The worlds of the bases that were run."""
    return [world for world in TASKS if any(c.get("base", [None])[0] == world for c, _ in runs)]
