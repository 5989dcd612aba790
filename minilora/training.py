"""One training loop, for pretraining and for adapting, and evaluation on fixed batches."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import checks
from . import functional as F
from .autograd import Array, Tensor, no_grad
from .backend import backend_name, to_numpy, xp
from .data import Batch
from .machine import tune_machine
from .nn import Module, evaluating
from .optim import Optimizer, Schedule, clip_grad_norm, grad_norm
from .tasks import IGNORED, exact_match


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
    log_every: int | None = None,
) -> dict[str, list[Any]]:
    """Steps `start` to `steps - 1` of: loss, backward, clip, optimizer step. Returns the history.

    `loss(step)` is the loss to descend, such as `batch_loss(model, batches)`. `schedule(step)` multiplies
    each group's learning rate; `clip` bounds the gradients' global norm. Losses are fetched every `log_every` steps and
    at the end (None: 1 with NumPy; 50 on a GPU, which waits for each fetch), and `callback(steps_done, loss)`
    follows: for progress and checkpoints. After every `evaluate_every` steps, and at the end, `evaluation()` runs. The
    history is {"loss": [...], "evaluated_at": [...], "evaluation": [...]}. Raises `DivergedError` naming the first step
    whose loss or gradient is NaN or infinite; the step of the fetch that met it is not taken, those before it were.
    """
    losses = _Losses(log_interval() if log_every is None else log_every, steps)
    checks.check_run(start, steps, losses.every)
    tune_machine()
    model.train()
    history: dict[str, list[Any]] = {"loss": losses.read, "evaluated_at": [], "evaluation": []}
    for step in range(start, steps):
        optimizer.zero_grad()
        value = loss(step)
        with np.errstate(all="ignore"):  # NumPy would warn of an infinite loss; DivergedError says it better
            value.backward()
        optimizer.collect_gradients()
        norm = grad_norm(optimizer.params) if clip is None else clip_grad_norm(optimizer.params, clip)
        fetched = losses.add(value.array, norm, step + 1)
        del value  # and with it the graph, before the next
        if schedule is not None:
            for group in optimizer.groups:
                group["lr"] = group["initial_lr"] * schedule(step)
        optimizer.step()
        if evaluation is not None and (step + 1 == steps or (evaluate_every and (step + 1) % evaluate_every == 0)):
            history["evaluated_at"].append(step + 1)
            history["evaluation"].append(evaluation())
        if callback is not None and fetched:
            callback(step + 1, losses.read[-1])
    return history


class _Losses:
    """Losses and norms, left where they are computed and fetched together every so many steps, and at the end."""

    def __init__(self, every: int, steps: int) -> None:
        self.every, self.steps = every, steps
        self.read: list[float] = []
        self.unread: list[Array] = []  # loss and norm of each step since the last fetch, 0-d

    def add(self, loss: Array, norm: Array, done: int) -> bool:
        """Whether that was a fetch. Raises `DivergedError` where a number is not finite."""
        self.unread += [loss.reshape(()), norm]
        if done % self.every and done != self.steps:
            return False
        numbers = to_numpy(xp.stack(self.unread)).reshape(-1, 2)  # of each step: loss, norm
        for step, which in np.argwhere(~np.isfinite(numbers)):  # the first, if any
            raise DivergedError(
                f"Training stopped: the {('loss', 'norm of the gradients')[which]} became {numbers[step, which]} at "
                f"step {done - len(numbers) + step}. Try a smaller learning rate, a longer warm-up, or clipping."
            )
        self.read += numbers[:, 0].tolist()
        self.unread = []
        return True


def log_interval() -> int:
    """How many steps' losses are fetched together, unless a run says otherwise."""
    return 1 if backend_name() == "numpy" else 50


def batch_loss(model: Module, batches: Callable[[int], Batch]) -> Callable[[int], Tensor]:
    """step -> mean cross-entropy of the model on that step's batch, in nats."""

    def loss(step: int) -> Tensor:
        ids, targets = batches(step)
        return F.cross_entropy(model(ids), targets)

    return loss


def evaluate(model: Module, batches: Sequence[Batch]) -> float:
    """Cross-entropy in nats per counted target of all batches together, read in evaluation mode. Raises `ValueError`
    where there is no batch, or no target to count."""
    checks.check_batches(batches)
    total, count = 0.0, 0
    with no_grad(), evaluating():
        for ids, targets in batches:
            counted = counted_targets(targets)
            if counted:
                total += counted * F.cross_entropy(model(ids), targets).item()
                count += counted
    checks.check_counted(count, IGNORED)
    return total / count


def evaluate_exact_match(model: Module, batches: Sequence[Batch]) -> float:
    """Share of the examples of all batches together that are answered exactly, read in evaluation mode."""
    checks.check_batches(batches)
    with no_grad(), evaluating():
        right = sum(exact_match(to_numpy(model(ids).array), targets) * len(targets) for ids, targets in batches)
    return right / sum(len(targets) for _, targets in batches)


def counted_targets(targets: Any) -> int:
    """How many targets `cross_entropy` counts."""
    return int((to_numpy(targets.array if isinstance(targets, Tensor) else targets) != IGNORED).sum())
