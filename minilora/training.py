"""One training loop, for pretraining and for adapting, and evaluation on fixed batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from . import functional as F
from .autograd import Tensor, no_grad
from .backend import to_numpy
from .data import Batch
from .machine import tune_machine
from .nn import Module
from .optim import Optimizer, Schedule, clip_grad_norm, grad_norm
from .tasks import exact_match


class DivergedError(ValueError):
    """Training met a loss or a gradient that is NaN or infinite."""


def train(
    model: Module,
    optimizer: Optimizer,
    loss: Callable[[int], Tensor],
    steps: int,
    *,
    start: int = 0,
    schedule: Schedule | None = None,
    clip: float | None = None,
    evaluate_every: int | None = None,
    evaluation: Callable[[], float] | None = None,
    callback: Callable[[int, float], Any] | None = None,
) -> dict[str, list[Any]]:
    """Steps `start` to `steps - 1` of: loss, backward, clip, optimizer step. Returns the history.

    `loss(step)` is the loss to descend, such as `batch_loss(model, batches)`. `schedule(step)` multiplies
    each group's learning rate; `clip` bounds the gradients' global norm. After every `evaluate_every`
    steps, and at the end, `evaluation()` runs. `callback(steps_done, loss)` follows each step: for
    progress and checkpoints. The history is {"loss": [...], "evaluated_at": [...], "evaluation": [...]}.

    Raises `DivergedError` naming the step at the first loss or gradient that is NaN or infinite; the
    parameters are then those before that step.
    """
    if steps < 1 or not 0 <= start <= steps:
        raise ValueError(f"Training runs from step {start} to {steps}: it needs at least one step, and 0 <= start.")
    tune_machine()
    model.train()
    history: dict[str, list[Any]] = {"loss": [], "evaluated_at": [], "evaluation": []}
    for step in range(start, steps):
        optimizer.zero_grad()
        value = loss(step)
        number = value.item()
        if not math.isfinite(number):
            raise _diverged("loss", number, step)
        value.backward()
        del value
        norm = float(grad_norm(optimizer.params) if clip is None else clip_grad_norm(optimizer.params, clip))
        if not math.isfinite(norm):
            raise _diverged("norm of the gradients", norm, step)
        if schedule is not None:
            for group in optimizer.groups:
                group["lr"] = group["initial_lr"] * schedule(step)
        optimizer.step()
        history["loss"].append(number)
        done = step + 1
        if evaluation is not None and (done == steps or (evaluate_every and done % evaluate_every == 0)):
            history["evaluated_at"].append(done)
            history["evaluation"].append(evaluation())
        if callback is not None:
            callback(done, number)
    return history


def _diverged(what: str, number: float, step: int) -> DivergedError:
    return DivergedError(
        f"Training stopped: the {what} became {number} at step {step}. "
        "Try a smaller learning rate, a longer warm-up, or clipping."
    )


def batch_loss(model: Module, batches: Callable[[int], Batch]) -> Callable[[int], Tensor]:
    """step -> mean cross-entropy of the model on that step's batch, in nats."""

    def loss(step: int) -> Tensor:
        ids, targets = batches(step)
        return F.cross_entropy(model(ids), targets)

    return loss


def evaluate(model: Module, batches: Sequence[Batch]) -> float:
    """Mean cross-entropy over the batches, in nats per counted target, in evaluation mode."""
    return _mean(model, batches, lambda logits, targets: F.cross_entropy(logits, targets).item())


def evaluate_exact_match(model: Module, batches: Sequence[Batch]) -> float:
    """Share of the examples answered exactly, in evaluation mode."""
    return _mean(model, batches, lambda logits, targets: exact_match(to_numpy(logits.data), targets))


def _mean(model: Module, batches: Sequence[Batch], measure: Callable[[Tensor, Any], float]) -> float:
    if not batches:
        raise ValueError("Evaluation needs at least one batch.")
    was_training = model.training
    model.eval()
    try:
        with no_grad():
            return sum(measure(model(ids), targets) for ids, targets in batches) / len(batches)
    finally:
        model.train(was_training)
