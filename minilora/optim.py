"""SGD, Adam and AdamW, learning-rate schedules, and clipping by the global norm."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from . import checks
from .autograd import Array, Tensor, operation
from .backend import asarray, multiplies, to_numpy, xp

Parameters = Iterable[Tensor] | Iterable[dict[str, Any]]


class Optimizer:
    """Parameters in groups, each with its own `lr` and other settings, as in PyTorch.

    `params` is a list of parameters, or of dictionaries `{"params": [...], "lr": ...}` whose settings
    stand for that group alone. A parameter without a gradient is left alone by `step`.
    Raises `ValueError` where there is no parameter, or one is frozen or given twice.
    """

    slots: tuple[str, ...] = ()  # the arrays kept for each parameter

    def __init__(self, params: Parameters, **defaults: float | tuple[float, float]) -> None:
        self.groups = checks.check_groups(type(self).__name__, params, defaults)
        self.params: list[Tensor] = [p for group in self.groups for p in group["params"]]
        checks.check_trainable(type(self).__name__, self.params)
        for group in self.groups:
            checks.check_settings(group)
            group["initial_lr"] = group["lr"]  # what a schedule multiplies
        self.steps = [0] * len(self.params)  # of each parameter: one that joins later starts its means then
        self.state: dict[str, list[Array]] = {
            slot: [xp.zeros(p.shape, dtype=p.dtype) for p in self.params] for slot in self.slots
        }

    def zero_grad(self) -> None:
        for p in self.params:
            p.grad = None

    def step(self) -> None:
        """Change each parameter by its gradient. Raises `ValueError` where none has a gradient."""
        checks.check_any_gradient(self.params)
        number = 0
        for group in self.groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.steps[number] += 1
                    self._update(p, p.grad, group, number)
                number += 1

    def collect_gradients(self) -> None:
        """Between `backward` and clipping: where the parameters are not the model's own, their gradients come now."""

    def _update(self, p: Tensor, g: Array, group: Mapping[str, Any], number: int) -> None:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """`{"kind", "steps", "groups", "arrays"}`: how many steps the parameters took (a number, or one for each where
        they differ), settings of the groups, and a copy of every slot's arrays."""
        return {
            "kind": type(self).__name__,
            "steps": self.steps[0] if len(set(self.steps)) == 1 else list(self.steps),
            "groups": [{**checks.plain_settings(group), "count": len(group["params"])} for group in self.groups],
            "arrays": {slot: [to_numpy(a).copy() for a in arrays] for slot, arrays in self.state.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict` of the same kind of optimizer for the same shapes, else `ValueError`."""
        steps, settings = checks.check_optimizer_state(state, self)
        arrays = {
            slot: [xp.array(asarray(a), dtype=p.dtype) for a, p in zip(state["arrays"][slot], self.params, strict=True)]
            for slot in self.slots
        }
        self.steps = steps  # only now, when nothing can fail any more
        for group, saved in zip(self.groups, settings, strict=True):
            group.update(saved)
        self.state.update(arrays)


class SGD(Optimizer):
    """θ ← θ - η g."""

    def __init__(self, params: Parameters, lr: float) -> None:
        super().__init__(params, lr=lr)

    def _update(self, p: Tensor, g: Array, group: Mapping[str, Any], number: int) -> None:
        p.data -= group["lr"] * g


@operation
def adam(p: Array, g: Array, m: Array, v: Array, t: int, lr: float, betas: tuple[float, float], eps: float) -> None:
    """Algorithm 1 of Kingma & Ba 2015, one step of it in place: m and v are running means of g and g²."""
    beta1, beta2 = betas
    m[...] = beta1 * m + (1 - beta1) * g
    v[...] = beta2 * v + (1 - beta2) * g * g
    m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
    p[...] = p - lr * m_hat / (xp.sqrt(v_hat) + eps)


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015, algorithm 1): with m and v the running means of g and g²,

    θ ← θ - η m̂/(√v̂ + ε),  m̂ = m/(1 - β₁ᵗ),  v̂ = v/(1 - β₂ᵗ).

    t counts a parameter's own steps, as in PyTorch: those in which it had a gradient.
    """

    slots = ("m", "v")

    def __init__(
        self, params: Parameters, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps)

    def _update(self, p: Tensor, g: Array, group: Mapping[str, Any], number: int) -> None:
        m, v = self.state["m"][number], self.state["v"][number]
        adam(p.data, g, m, v, self.steps[number], group["lr"], group["betas"], group["eps"])


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019): first θ ← (1 - η λ) θ.

    Every parameter decays, biases and LayerNorm's too, as in PyTorch; `decay_groups` leaves those out.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        Optimizer.__init__(self, params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def _update(self, p: Tensor, g: Array, group: Mapping[str, Any], number: int) -> None:
        p.data *= 1 - group["lr"] * group["weight_decay"]
        super()._update(p, g, group, number)


def decay_groups(params: Iterable[Tensor]) -> list[dict[str, Any]]:
    """Two groups for `AdamW`: matrices, which decay as it says, and vectors (biases, LayerNorm), which do not.

    Leaves out what is frozen. Raises `ValueError` where nothing trains.
    """
    trainable = [p for p in params if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trainable if p.ndim >= 2]},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    if not trainable:
        raise ValueError("None of these parameters trains: there is nothing to decay.")
    return [group for group in groups if group["params"]]


# ---- schedules: step -> factor of the learning rate --------------------------------------------------

Schedule = Callable[[int], float]


def linear_schedule(steps: int, warmup: float = 0.0, final: float = 0.0) -> Schedule:
    """Up from 0 over the first `warmup` share of the steps, then down in a straight line to `final`."""
    return _schedule(steps, warmup, final, lambda progress: 1 - progress)


def cosine_schedule(steps: int, warmup: float = 0.0, final: float = 0.0) -> Schedule:
    """Up from 0 over the first `warmup` share of the steps, then down half a cosine to `final`."""
    return _schedule(steps, warmup, final, lambda progress: 0.5 * (1 + math.cos(math.pi * progress)))


def _schedule(steps: int, warmup: float, final: float, decay: Callable[[float], float]) -> Schedule:
    checks.check_schedule(steps, warmup, final)
    rise = round(warmup * steps)

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return final + (1 - final) * decay(min(1.0, (step - rise) / max(1, steps - rise)))

    return factor


# ---- clipping ----------------------------------------------------------------------------------------


@multiplies
def grad_norm(params: Iterable[Tensor]) -> Array:
    """The norm of all gradients together, 0-d: not finite where one of them is not."""
    return xp.sqrt(sum(xp.vdot(p.grad, p.grad) for p in params if p.grad is not None))


def clip_grad_norm(params: Iterable[Tensor], max_norm: float) -> Array:
    """Scale all gradients so that their norm together is at most `max_norm`; returns the norm before, 0-d.

    Raises `ValueError` for a `max_norm` that is not above 0, or where there is no gradient to scale.
    """
    params = list(params)
    gradients = checks.check_clipping(params, max_norm)
    total = grad_norm(params)
    factor = xp.minimum(1.0, max_norm / (total + 1e-12)).astype(total.dtype)  # 0-d: nothing leaves the GPU
    for g in gradients:
        g *= factor
    return total
