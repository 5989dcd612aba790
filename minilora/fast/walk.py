"""The walk back, with sums of gradients made in place, and what kernels with one backward need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..autograd import Array, Node, Rule, Tensor, children_first, unbroadcast
from ..backend import xp
from ..checks import check_unchanged
from .memory import empty

Backward = Callable[[Array], Sequence["Array | None"]]


def together(parents: Sequence[Tensor], backward: Backward) -> list[tuple[Tensor, Rule]]:
    """Every parent with its rule, for `record`, where one function gives all gradients at once.

    `backward(g)` returns an array, or None where the parent wants none, for each. It runs when the first rule is asked,
    and what it returned is kept until the last one has been.
    """
    wanted = [place for place, parent in enumerate(parents) if parent.requires_grad]
    waiting: dict[int, Array | None] = {}  # place -> its gradient

    def rule_of(place: int) -> Rule:
        def rule(g: Array) -> Array:
            if place == wanted[0]:  # rules are asked in order
                gradients = backward(g)
                waiting.update({i: gradients[i] for i in wanted})
            return waiting.pop(place)

        return rule

    return [(parent, rule_of(place)) for place, parent in enumerate(parents)]


def walk(root: Node | Tensor, g: Array, retain_graph: bool) -> None:
    """`autograd.walk`, adding in place where nobody else holds the array, without a copy at each leaf."""
    arrived: dict[Node | Tensor, Array] = {root: g}
    ours: set[Node | Tensor] = set()  # whose array nobody else holds, so that adding in place is safe
    leaves: list[Tensor] = []
    nodes = children_first(root)
    check_unchanged(nodes)
    for node in nodes:
        if isinstance(node, Tensor):
            leaves.append(node)
            continue
        g = arrived.pop(node)
        steps = node.steps or ()
        parts = [unbroadcast(rule(g), shape) for _, shape, rule in steps]
        for (parent, _, _), part in zip(steps, parts, strict=True):
            if parent not in arrived:
                arrived[parent] = part
                if not _shared(part, g, parts):
                    ours.add(parent)
            elif parent in ours:
                arrived[parent] += part
            else:
                arrived[parent] = elementwise(xp.add, arrived[parent], part)
                ours.add(parent)
        if not retain_graph:
            node.steps, node.handed_out = None, []
    for leaf in leaves:
        g = arrived.pop(leaf)
        if leaf.grad is not None:
            leaf.grad += g
        elif leaf in ours and g.dtype == leaf.dtype:
            leaf.grad = xp.asarray(g)
        else:
            leaf.grad = xp.array(g, dtype=leaf.dtype)


def _shared(part: Array, g: Array, parts: Sequence[Array]) -> bool:
    """Whether what a node took or gave looks at the memory of this gradient more than once."""
    if part is g or xp.may_share_memory(part, g):
        return True
    return len(parts) > 1 and sum(xp.may_share_memory(part, other) for other in parts) > 1


def elementwise(operation: Any, a: Array, b: Array) -> Array:
    """`operation(a, b)`, its result in a buffer used before where that pays."""
    if a.dtype != b.dtype or a.dtype.kind != "f":
        return operation(a, b)
    shape = a.shape if a.shape == b.shape else np.broadcast_shapes(a.shape, b.shape)
    return operation(a, b, out=empty(shape, a.dtype))
