"""SGD, Adam and AdamW, learning-rate schedules, and clipping by the global norm."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from . import checks
from .autograd import Array, Tensor, operation
from .backend import multiplies, xp
from .groups import Groups, Parameters

Betas = tuple[float, float]


class Optimizer(Groups):
    """What a step does; a parameter without a gradient is left alone. `groups.py` has the parameters, their settings,
    their `steps` (one count each) and their `state` (m, v)."""

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
        """Between `backward` and clipping: for what trains other numbers than the model's (baselines.py)."""

    def _update(self, p: Tensor, g: Array, group: Mapping[str, Any], number: int) -> None:
        raise NotImplementedError


class SGD(Optimizer):
    """θ ← θ - η g."""

    def __init__(self, params: Parameters, lr: float) -> None:
        super().__init__(params, lr=lr)

    def _update(self, p: Tensor, g: Array, group: Mapping[str, Any], number: int) -> None:
        p.data -= group["lr"] * g


@operation
def adam(p: Array, g: Array, m: Array, v: Array, t: int, lr: float, betas: Betas, eps: float) -> None:
    """One step of algorithm 1 of Kingma & Ba 2015, in place: m and v are running means of g and g²."""
    beta1, beta2 = betas
    m[...] = beta1 * m + (1 - beta1) * g
    v[...] = beta2 * v + (1 - beta2) * g * g
    m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
    p[...] = p - lr * m_hat / (xp.sqrt(v_hat) + eps)


class Adam(Optimizer):
    """Adam: θ ← θ - η m̂/(√v̂ + ε), by `adam`. t counts a parameter's own steps, those in which it had a gradient, as in
    PyTorch."""

    slots = ("m", "v")

    def __init__(self, params: Parameters, lr: float, betas: Betas = (0.9, 0.999), eps: float = 1e-8) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps)

    def _update(self, p: Tensor, g: Array, group: Mapping[str, Any], number: int) -> None:
        m, v = self.state["m"][number], self.state["v"][number]
        adam(p.data, g, m, v, self.steps[number], group["lr"], group["betas"], group["eps"])


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019): first θ ← (1 - η λ) θ.

    Every parameter decays, biases and LayerNorm's too, as in PyTorch; `groups.decay_groups` leaves those out.
    """

    def __init__(
        self, params: Parameters, lr: float, betas: Betas = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.01
    ) -> None:
        Optimizer.__init__(self, params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def _update(self, p: Tensor, g: Array, group: Mapping[str, Any], number: int) -> None:
        p.data *= 1 - group["lr"] * group["weight_decay"]
        super()._update(p, g, group, number)


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
    factor = xp.minimum(1.0, max_norm / (total + 1e-12)).astype(total.dtype)  # 0-d, not Python's: a GPU need not wait
    for g in gradients:
        g *= factor
    return total
