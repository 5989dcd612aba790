"""Every refusal of the core, in a sentence: what was given, what is allowed, what to do.

The files that a reader reads first call these before they compute anything, and stay with their formulas. Here is also
the guard of the tape: an array that a rule has kept must be the same when the rule is used.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import numpy as np

from .backend import to_numpy, xp

# ---- tensors -----------------------------------------------------------------------------------------


def check_kind(data: Any, array: Any) -> None:
    """Raise `TypeError` where an array made of `data` does not hold real numbers."""
    if array.dtype.kind not in "fiub":
        what = "real numbers" if array.dtype.kind == "c" else "numbers: an array, or (nested) Python numbers"
        raise TypeError(f"A Tensor holds {what}, not {type(data).__name__} of dtype {array.dtype}.")


def check_wants_gradient(tensor: Any, value: bool) -> None:
    """Raise `TypeError` for integers, `ValueError` for what an operation has made."""
    if value and tensor.array.dtype.kind != "f":
        raise TypeError(f"Only floats may require gradients; this tensor holds {tensor.array.dtype}.")
    if tensor._node is not None:
        raise ValueError("Setting requires_grad belongs to leaves; this tensor is a result: detach() it first.")


def check_replacement(old: Any, new: Any) -> None:
    """Raise `TypeError` or `ValueError` where one array cannot take another's place."""
    if not isinstance(new, xp.ndarray):
        raise TypeError(f"The data takes an array like the one it replaces, not {type(new).__name__}.")
    if new.shape != old.shape or new.dtype != old.dtype:
        raise ValueError(
            f"The data has shape {old.shape} and dtype {old.dtype}; "
            f"it cannot be replaced by shape {new.shape} and dtype {new.dtype}."
        )


def check_one_number(tensor: Any) -> None:
    if tensor.size != 1:
        raise ValueError(f"item() needs exactly one number; this tensor has shape {tensor.shape}.")


def check_loss(tensor: Any) -> None:
    """Raise `ValueError` where `backward` cannot start."""
    if tensor.size != 1:
        raise ValueError(
            f"backward() starts from one number; this tensor has shape {tensor.shape}: "
            "reduce it first with .sum() or .mean()."
        )
    if not tensor.requires_grad:
        raise ValueError(
            "backward() found nothing that requires a gradient: pass requires_grad=True to a Tensor, "
            "and compute outside no_grad()."
        )


def check_steps(steps: Any) -> None:
    """Raise `ValueError` for those of a node that was walked before."""
    if steps is None:
        raise ValueError(
            "This graph was already walked by backward() and its arrays were let go: compute the loss "
            "again, or call backward(retain_graph=True) the first time."
        )


def check_broadcast(wide: tuple[int, ...], narrow: tuple[int, ...]) -> None:
    """Raise `ValueError` where NumPy does not repeat an array of the second shape to get one of the first."""
    ends = zip(wide[::-1], narrow[::-1], strict=False)
    if len(narrow) > len(wide) or any(n not in (1, w) for w, n in ends):
        raise ValueError(
            f"A rule gave a gradient of shape {wide} for an input of shape {narrow}: it must have the shape of the "
            "input, or of what that is broadcast to."
        )


def check_exponent(exponent: Any) -> None:
    if not isinstance(exponent, (int, float, np.integer, np.floating)):
        raise TypeError(f"A tensor is raised to a Python number, not to {type(exponent).__name__}.")


def check_product(a: Any, b: Any) -> None:
    if a.ndim == 0 or b.ndim == 0:
        raise ValueError("@ needs at least one axis on both sides; use * to multiply by a number.")


def check_mean(tensor: Any) -> None:
    if tensor.size == 0:
        raise ValueError(f"The mean of no numbers is not defined; this tensor has shape {tensor.shape}.")


# ---- what a rule has kept ----------------------------------------------------------------------------
#
# Whoever takes `tensor.data` may write into it, and an array that a rule still needs would then give another gradient
# than that of the loss computed. So `data` notes, for the nodes that read the array, what it held, and `backward`
# refuses to start where that has changed.


class Readers(list):
    """Weak references to the nodes whose rules may have kept an array."""

    __slots__ = ()

    def add(self, reader: weakref.ref[Any]) -> None:
        count = len(self)
        if count >= 16 and count & (count - 1) == 0:  # at each power of two, so that forgetting costs little
            self[:] = [r for r in self if _pending(r)]
        self.append(reader)

    def hand_out(self, array: Any) -> None:
        """Let every node that is still to be walked remember what the array, or all that it is a view of, holds now."""
        nodes = [node for reader in self if (node := _pending(reader))]
        if not nodes:
            return self.clear()
        while isinstance(array.base, xp.ndarray):
            array = array.base  # the owner of the memory, which other tensors may see through views of their own
        pair = None
        for node in nodes:
            if not any(known() is array for known, _ in node.handed_out):
                pair = pair or (weakref.ref(array), array.copy())
                node.handed_out.append(pair)


def _pending(reader: weakref.ref[Any]) -> Any:
    """The node, if it is still to be walked."""
    node = reader()
    return None if node is None or node.steps is None else node


def check_unchanged(nodes: Iterable[Any]) -> None:
    """Raise `ValueError` where an array that one of these operations read was written into since."""
    seen = {id(pair): pair for node in nodes for pair in getattr(node, "handed_out", ())}
    for reference, copy in seen.values():
        array = reference()
        if array is not None and not to_numpy(xp.array_equal(array, copy, equal_nan=True)):
            raise ValueError(
                f"The data of a tensor of shape {array.shape} was changed in place between the forward pass and "
                "backward(), so the gradient would be that of neither: change it before or after, or assign a new "
                "array (tensor.data = ...), which leaves the one of this graph alone."
            )


# ---- operations --------------------------------------------------------------------------------------


def check_probability(p: float) -> None:
    if not 0 <= p < 1:
        raise ValueError(f"The dropout probability must be at least 0 and less than 1, not {p}.")


def check_linear(x: Any, weight: Any) -> None:
    if weight.ndim != 2 or x.ndim == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"linear() needs x (..., in) and weight (out, in); these are {x.shape} and {weight.shape}.")


def check_layer_norm(x: Any, weight: Any, bias: Any) -> None:
    D = x.shape[-1] if x.ndim else 0
    if weight.shape != (D,) or bias.shape != (D,):
        raise ValueError(
            f"layer_norm() needs x (..., D), weight (D,) and bias (D,); "
            f"these are {x.shape}, {weight.shape} and {bias.shape}."
        )


def check_attention(q: Any, k: Any, v: Any) -> None:
    if q.ndim != 4 or k.shape != v.shape or k.shape[:2] + k.shape[3:] != q.shape[:2] + q.shape[3:]:
        raise ValueError(
            f"causal_attention() needs q (B, H, T, D/H) and k, v (B, H, S, D/H); "
            f"these are {q.shape}, {k.shape} and {v.shape}."
        )
    T, S = q.shape[2], k.shape[2]
    if S < T:
        raise ValueError(f"Each of the {T} queries needs a key at its own position; there are only {S} keys.")


def check_ids(ids: Any, count: int) -> np.ndarray:
    """The ids on the CPU, in an array that nobody else writes into: a GPU would wrap those outside silently."""
    host = _integers(ids, "ids")
    _check_range(host, count, "id")
    return host.copy()


def check_targets(targets: Any, shape: tuple[int, ...], ignore_index: int, reduction: str) -> tuple[np.ndarray, Any]:
    """The targets (N,) of logits of that shape, on the CPU, and which of them count (N,)."""
    if reduction not in ("mean", "sum"):
        raise ValueError(f'reduction must be "mean" or "sum", not {reduction!r}.')
    host = _integers(targets, "targets")
    if host.shape != shape[:-1]:
        raise ValueError(f"Targets of shape {host.shape} do not fit logits of shape {shape}.")
    host = host.flatten()
    counted = host != ignore_index
    if reduction == "mean" and not counted.any():
        raise ValueError(f"The loss has no target to average over: all {host.size} are ignored ({ignore_index}).")
    _check_range(host[counted], shape[-1], "target")
    return host, counted


def _integers(values: Any, name: str) -> np.ndarray:
    host = to_numpy(getattr(values, "array", values))
    if host.dtype.kind not in "iu":
        raise TypeError(f"The {name} must be integers, not {host.dtype}.")
    return host


def _check_range(ids: np.ndarray, count: int, name: str) -> None:
    if ids.size and (ids.min() < 0 or ids.max() >= count):
        wrong = ids[(ids < 0) | (ids >= count)][0]
        raise ValueError(f"The {name} {wrong} is outside the vocabulary of {count}: use 0 to {count - 1}.")
