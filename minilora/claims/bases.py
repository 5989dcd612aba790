"""The pretrained models that claims adapt: one that knows seven string tasks, one that reads English.

One of each comes with the package, for a first look and for the notebooks (tools/ship_bases.py makes them). Those of
the full run are pretrained, each once, and cached under a key of everything that made it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from .. import __version__
from ..backend import backend_name
from ..bases import FOLDER, Sampler, load_base, string_sampler
from ..data import PRINTABLE, Batch, seeded, split, windows
from ..gpt import GPT, GPTConfig
from ..nn import Module
from ..optim import AdamW, cosine_schedule
from ..tasks import PRETRAINING, WIDTH
from ..texts import english_text, python_source
from ..training import batch_loss, train
from .store import cached_model

Configuration = dict[str, Any]

_RECIPE = {"d_model": 64, "n_layers": 2, "n_heads": 4, "betas": (0.9, 0.99), "weight_decay": 0.01, "clip": 1.0}
# Twice the longest line: the rest is for the prefixes that LoRA is compared with, which take positions of the context.
WORLDS: dict[str, Configuration] = {
    "strings": {**_RECIPE, "context_length": 2 * WIDTH, "steps": 2500, "batch": 64, "lr": 4e-3},
    "text": {**_RECIPE, "context_length": 64, "steps": 2000, "batch": 16, "lr": 4e-3},
}


# The number of the base that comes with the package, among those of the full run, which are 0, 1, 2, ...: it was
# pretrained with seed 0, on the computer of whoever made the package.
SHIPPED = 1000


def base_configuration(world: str, seed: int) -> Configuration:
    """Everything that decides the weights of the base `seed` of the world "strings" or "text"."""
    if seed == SHIPPED:
        return {"world": world, "shipped": hashlib.sha256(_shipped(world)).hexdigest()}
    configuration = {"world": world, "seed": seed, "minilora": __version__, **computed_by(), **WORLDS[world]}
    if world == "text":
        configuration["text"] = text_digest("english")
    return configuration


def computed_by() -> Configuration:
    """The array library, where it is not NumPy: another one rounds otherwise, so what it made is kept apart."""
    return {} if backend_name() == "numpy" else {"backend": backend_name()}


@lru_cache
def text_digest(which: str) -> str:
    """Of "english" or "code", which differ between versions of Python."""
    return hashlib.sha256(_read(which).encode()).hexdigest()[:16]


def _read(which: str) -> str:
    return english_text() if which == "english" else python_source()


def pretrained(world: str, seed: int) -> GPT:
    """A copy of the base `seed` of the world "strings" or "text": the one that comes with the package, or one of the
    full run, made now if the cache has none, in about half a minute on one core."""
    if seed == SHIPPED:
        return load_base(world)
    return cached_model(base_configuration(world, seed), lambda: pretrain(world, seed))


def seeds(base: int) -> dict[str, int]:
    """The seeds of what a run on a base draws itself, A₀ and its batches, apart from each other and from the base's."""
    number = 0 if base == SHIPPED else base
    return {"adapter_seed": 1000 + number, "data_seed": 2000 + number}


def _shipped(world: str) -> bytes:
    return (FOLDER / f"{world}.npz").read_bytes()


def pretrain(world: str, seed: int) -> GPT:
    """Pretrain the base `seed` of a world, from its recipe."""
    recipe = WORLDS[world]
    B = recipe["batch"]
    sample = string_sampler(PRETRAINING, B) if world == "strings" else text_sampler("english", B)
    sizes = {name: recipe[name] for name in ("context_length", "d_model", "n_layers", "n_heads")}
    model = GPT(GPTConfig(vocab_size=len(PRINTABLE), **sizes), seed=seed)
    widen(model)
    optimizer = AdamW(model.parameters(), recipe["lr"], recipe["betas"], weight_decay=recipe["weight_decay"])
    train(
        model,
        optimizer,
        batch_loss(model, seeded(sample, seed)),
        recipe["steps"],
        schedule=cosine_schedule(recipe["steps"], warmup=0.05, final=0.1),
        clip=recipe["clip"],
        callback=lambda done, loss: _followed(done, recipe["steps"], loss),
    )
    return model


def widen(model: GPT) -> None:
    """Scale the projections' start from GPT-2's 0.02, made for a width of 768, to the width at hand.

    A sum over d inputs of spread 0.02 shrinks with √d: at d 64 attention starts nearly flat, and half of
    the string tasks are learned late or not at all.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "embedding" not in name:
            parameter.data *= math.sqrt(768 / model.config.d_model)


# ---- who wants to see how far a training is ----------------------------------------------------------

Follower = Callable[[int, int, float], None]  # steps done, steps in all, the last loss
_follower: Follower | None = None


def follow(follower: Follower | None) -> None:
    """Let `follower` see the steps of every training of this process from now on, in place of the one before."""
    global _follower
    _follower = follower


def _followed(done: int, steps: int, loss: float) -> None:
    if _follower is not None:
        _follower(done, steps, loss)


# ---- batches of the three worlds' data ---------------------------------------------------------------


@lru_cache
def _text(which: str) -> tuple[np.ndarray, np.ndarray]:
    ids = PRINTABLE.encode(_read(which))
    return split(ids, WORLDS["text"]["context_length"])


def text_sampler(which: str, B: int, held_out: bool = False, room: int = 0) -> Sampler:
    """Windows of "english" or of "code"; the first `room` characters of each are cut off, for a prefix's sake."""
    training, rest = _text(which)

    def sample(rng: np.random.Generator) -> Batch:
        ids, targets = windows(rest if held_out else training, B, WORLDS["text"]["context_length"], rng)
        return ids[:, room:], targets[:, room:]

    return sample


# ---- adapting ----------------------------------------------------------------------------------------


def adapt(
    model: Module,
    optimizer: Any,
    sample: Sampler,
    steps: int,
    seed: int,
    schedule: Callable[[int], float] | None = None,
    after: Callable[[int], None] | None = None,
) -> list[float]:
    """Train on batches that depend on seed and step only, the same for every method; returns the losses.

    `after(steps_done)` follows each step.
    """

    def callback(done: int, loss: float) -> None:
        _followed(done, steps, loss)
        if after is not None:
            after(done)

    log_every = None if after is None else 1
    losses = batch_loss(model, seeded(sample, 10_000 + seed))
    history = train(model, optimizer, losses, steps, schedule=schedule, callback=callback, log_every=log_every)
    return history["loss"]
