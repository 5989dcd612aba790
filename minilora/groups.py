"""Parameters in groups with settings of their own, and what an optimizer keeps of each: made, saved, and loaded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .autograd import Array, Tensor
from .backend import asarray, to_numpy, xp
from .checks import Holder

Parameters = Iterable[Tensor] | Iterable[dict[str, Any]]


class Groups:
    """Parameters in groups, each with its own `lr` and other settings, as in PyTorch.

    `params` is a list of parameters, or of dictionaries `{"params": [...], "lr": ...}` whose settings
    apply to that group alone. Raises `ValueError` where there is no parameter, or one is frozen or given twice.
    """

    slots: tuple[str, ...] = ()  # the arrays kept for each parameter

    def __init__(self, params: Parameters, **defaults: float | tuple[float, float]) -> None:
        self.groups = _groups(type(self).__name__, params, defaults)
        self.params: list[Tensor] = [p for group in self.groups for p in group["params"]]
        check_trainable(type(self).__name__, self.params)
        for group in self.groups:
            check_settings(group)
            group["initial_lr"] = group["lr"]  # what a schedule multiplies
        self.steps = [0] * len(self.params)  # of each parameter: one that joins later starts its means then
        self.state: dict[str, list[Array]] = {
            slot: [xp.zeros(p.shape, dtype=p.dtype) for p in self.params] for slot in self.slots
        }

    def zero_grad(self) -> None:
        for p in self.params:
            p.grad = None

    def state_dict(self) -> dict[str, Any]:
        """`{"kind", "steps", "groups", "arrays"}`: how many steps the parameters took (a number, or one for each where
        they differ), settings of the groups, and a copy of every slot's arrays."""
        return {
            "kind": type(self).__name__,
            "steps": self.steps[0] if len(set(self.steps)) == 1 else list(self.steps),
            "groups": [{**_plain(group), "count": len(group["params"])} for group in self.groups],
            "arrays": {slot: [to_numpy(a).copy() for a in arrays] for slot, arrays in self.state.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict` of the same kind of optimizer for the same shapes, else `ValueError`."""
        steps, settings = check_state(state, self)
        arrays = {
            slot: [xp.array(asarray(a), dtype=p.dtype) for a, p in zip(state["arrays"][slot], self.params, strict=True)]
            for slot in self.slots
        }
        self.steps = steps  # only now, when nothing can fail any more
        for group, saved in zip(self.groups, settings, strict=True):
            group.update(saved)
        self.state.update(arrays)


def _groups(kind: str, params: Any, defaults: dict[str, Any]) -> list[dict[str, Any]]:
    """Groups with every setting, of parameters or of groups. Raises `TypeError` or `ValueError`."""
    if isinstance(params, Holder):
        raise TypeError(f"{kind} takes a list of parameters, not one alone: write [parameter].")
    entries = list(params)
    raw = entries if entries and isinstance(entries[0], dict) else [{"params": entries}]
    groups = []
    for group in raw:
        if not isinstance(group, dict) or "params" not in group:
            raise TypeError(
                f"{kind} takes parameters, or dictionaries that each hold their own under "
                f'"params"; among the dictionaries is {group!r:.80}.'
            )
        unknown = group.keys() - defaults.keys() - {"params"}
        if unknown:
            raise ValueError(
                f"{kind} does not know {', '.join(sorted(unknown))}; a group has params and {', '.join(defaults)}."
            )
        groups.append({**_plain({**defaults, **group}), "params": list(group["params"])})
    return groups


def _plain(group: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a group, as they can be saved."""
    return {name: _python(value) for name, value in group.items() if name != "params"}


def _python(setting: Any) -> Any:
    """NumPy's numbers as Python's, which neither widen float32 nor fail to be saved."""
    if isinstance(setting, np.generic):
        return setting.item()
    return tuple(_python(part) for part in setting) if isinstance(setting, (tuple, list)) else setting


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


# ---- refusals ----------------------------------------------------------------------------------------


def check_trainable(kind: str, params: Sequence[Any]) -> None:
    """Raise `TypeError` or `ValueError` for what an optimizer cannot change, or would change twice."""
    if not params:
        raise ValueError(f"{kind} was given no parameters, so it would train nothing.")
    for number, p in enumerate(params):
        if not isinstance(p, Holder):
            raise TypeError(f"{kind} takes parameters, not {type(p).__name__} (number {number}).")
        if not p.requires_grad:
            raise ValueError(
                f"{kind} was given a frozen parameter (number {number}, shape {p.shape}), which it "
                "would never change: pass only the trainable ones, such as the list that add_lora returns."
            )
    if len({id(p) for p in params}) != len(params):
        raise ValueError(f"{kind} was given the same parameter twice.")


def check_settings(group: Mapping[str, Any]) -> None:
    for name in ("lr", "eps", "weight_decay"):
        if name in group and not 0 <= group[name] < math.inf:
            raise ValueError(f"{name} must be a finite number, at least 0, not {group[name]}.")
    if not all(0 <= beta < 1 for beta in group.get("betas", ())):
        raise ValueError(f"betas must be at least 0 and less than 1, not {group['betas']}.")


def check_state(state: Mapping[str, Any], optimizer: Groups) -> tuple[list[int], list[dict[str, Any]]]:
    """Steps of each parameter and settings of each group of a saved state. Raises `ValueError` where it is of another
    optimizer."""
    kind, params = type(optimizer).__name__, optimizer.params
    if state["kind"] != kind:
        raise ValueError(f"The state is of {state['kind']}; this optimizer is {kind}.")
    if [g["count"] for g in state["groups"]] != [len(g["params"]) for g in optimizer.groups]:
        raise ValueError("The state belongs to other parameter groups than this optimizer's.")
    for slot in optimizer.slots:
        if [a.shape for a in state["arrays"].get(slot, ())] != [p.shape for p in params]:
            raise ValueError(f"The state's {slot!r} arrays do not have the shapes of this optimizer's parameters.")
    steps = state["steps"]
    steps = [int(n) for n in ([steps] * len(params) if isinstance(steps, (int, np.integer)) else steps)]
    if len(steps) != len(params) or min(steps) < 0:
        raise ValueError(f"The state has {len(steps)} step counts; this optimizer has {len(params)} parameters.")
    settings = [
        {k: tuple(v) if k == "betas" else v for k, v in saved.items() if k != "count"} for saved in state["groups"]
    ]
    for own, saved in zip(optimizer.groups, settings, strict=True):
        if own.keys() - {"params"} != saved.keys():
            raise ValueError(f"The state's groups have {', '.join(saved)}; this optimizer's have other settings.")
        check_settings(saved)
    return steps, settings
