"""SGD, Adam and AdamW, learning-rate schedules, and clipping by the global norm."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

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
        if isinstance(params, Tensor):
            raise TypeError(f"{type(self).__name__} takes a list of parameters, not one alone: write [parameter].")
        entries = list(params)
        grouped = bool(entries) and isinstance(entries[0], dict)
        raw: list[dict[str, Any]] = entries if grouped else [{"params": entries}]  # type: ignore[assignment]
        self.groups: list[dict[str, Any]] = []
        for group in raw:
            if not isinstance(group, dict) or "params" not in group:
                raise TypeError(
                    f"{type(self).__name__} takes parameters, or dictionaries that each hold their own under "
                    f'"params"; among the dictionaries is {group!r:.80}.'
                )
            unknown = group.keys() - defaults.keys() - {"params"}
            if unknown:
                raise ValueError(
                    f"{type(self).__name__} does not know {', '.join(sorted(unknown))}; a group has params and "
                    f"{', '.join(defaults)}."
                )
            settings = {name: _python(value) for name, value in {**defaults, **group}.items() if name != "params"}
            self.groups.append({**settings, "params": list(group["params"])})
        self.params: list[Tensor] = [p for group in self.groups for p in group["params"]]
        if not self.params:
            raise ValueError(f"{type(self).__name__} was given no parameters, so it would train nothing.")
        for number, p in enumerate(self.params):
            if not isinstance(p, Tensor):
                raise TypeError(f"{type(self).__name__} takes parameters, not {type(p).__name__} (number {number}).")
            if not p.requires_grad:
                raise ValueError(
                    f"{type(self).__name__} was given a frozen parameter (number {number}, shape {p.shape}), which it "
                    "would never change: pass only the trainable ones, such as the list that add_lora returns."
                )
        if len({id(p) for p in self.params}) != len(self.params):
            raise ValueError(f"{type(self).__name__} was given the same parameter twice.")
        for group in self.groups:
            self._check(group)
            group["initial_lr"] = group["lr"]  # what a schedule multiplies
        self.steps = [0] * len(self.params)  # of each parameter: one that joins later starts its means then
        self.state: dict[str, list[Array]] = {
            slot: [xp.zeros(p.shape, dtype=p.dtype) for p in self.params] for slot in self.slots
        }

    def _check(self, group: Mapping[str, Any]) -> None:
        for name in ("lr", "eps", "weight_decay"):
            if name in group and not 0 <= group[name] < math.inf:
                raise ValueError(f"{name} must be a finite number, at least 0, not {group[name]}.")
        if not all(0 <= beta < 1 for beta in group.get("betas", ())):
            raise ValueError(f"betas must be at least 0 and less than 1, not {group['betas']}.")

    def zero_grad(self) -> None:
        for p in self.params:
            p.grad = None

    def step(self) -> None:
        """Change each parameter by its gradient. Raises `ValueError` where none has a gradient."""
        if all(p.grad is None for p in self.params):
            raise ValueError(
                "No parameter of this optimizer has a gradient: call backward() first; if you did, the optimizer "
                "was made for other parameters, before add_lora or for another model."
            )
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
            "groups": [
                {**{k: _python(v) for k, v in group.items() if k != "params"}, "count": len(group["params"])}
                for group in self.groups
            ],
            "arrays": {slot: [to_numpy(a).copy() for a in arrays] for slot, arrays in self.state.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict` of the same kind of optimizer for the same shapes, else `ValueError`."""
        if state["kind"] != type(self).__name__:
            raise ValueError(f"The state is of {state['kind']}; this optimizer is {type(self).__name__}.")
        if [g["count"] for g in state["groups"]] != [len(g["params"]) for g in self.groups]:
            raise ValueError("The state belongs to other parameter groups than this optimizer's.")
        shapes = [p.shape for p in self.params]
        for slot in self.slots:
            if [a.shape for a in state["arrays"].get(slot, ())] != shapes:
                raise ValueError(f"The state's {slot!r} arrays do not have the shapes of this optimizer's parameters.")
        steps = state["steps"]
        if isinstance(steps, (int, np.integer)):
            steps = [steps] * len(self.params)
        steps = [int(count) for count in steps]
        if len(steps) != len(self.params) or min(steps) < 0:
            raise ValueError(
                f"The state has {len(steps)} step counts; this optimizer has {len(self.params)} parameters."
            )
        settings = [
            {k: tuple(v) if k == "betas" else v for k, v in saved.items() if k != "count"} for saved in state["groups"]
        ]
        for own, saved in zip(self.groups, settings, strict=True):
            if own.keys() - {"params"} != saved.keys():
                raise ValueError(f"The state's groups have {', '.join(saved)}; this optimizer's have other settings.")
            self._check(saved)
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
    if steps < 1 or not 0 <= warmup < 1 or not 0 <= final <= 1:
        raise ValueError(
            f"A schedule needs steps >= 1, 0 <= warmup < 1 and 0 <= final <= 1, not {steps}, {warmup} and {final}."
        )
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
    if not max_norm > 0:
        raise ValueError(f"max_norm must be above 0, not {max_norm}.")
    params = list(params)
    gradients = [p.grad for p in params if p.grad is not None]
    if not gradients:
        raise ValueError("There is no gradient to clip: call backward() first, and clip what it reaches.")
    total = grad_norm(params)
    factor = xp.minimum(1.0, max_norm / (total + 1e-12)).astype(total.dtype)  # 0-d: nothing leaves the GPU
    for g in gradients:
        g *= factor
    return total


def _python(setting: Any) -> Any:
    """NumPy's numbers as Python's, which neither widen float32 nor fail to be saved."""
    if isinstance(setting, np.generic):
        return setting.item()
    return tuple(_python(part) for part in setting) if isinstance(setting, (tuple, list)) else setting
