"""What the tape of a forward pass keeps in memory: the arrays that the backward functions on it still hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..autograd import Array, Node, Tensor
from ..backend import xp
from ..checks import owner
from ..nn import Module


def saved_bytes(loss: Tensor, model: Module) -> int:
    """Bytes of the arrays that the graph below a loss keeps alive, each piece of memory once, parameters aside."""
    owners = {id(kept): kept for node in _nodes(loss) for array in _held(node) for kept in [owner(array)]}
    parameters = {id(owner(p.array)) for p in model.parameters()}
    return sum(kept.nbytes for key, kept in owners.items() if key not in parameters)


def _nodes(loss: Tensor) -> Iterator[Node]:
    """Every recorded operation below a loss, once."""
    stack: list[Any] = [loss._node]
    seen = set()
    while stack:
        node = stack.pop()
        if isinstance(node, Node) and node not in seen:
            seen.add(node)
            yield node
            stack.extend(parent for parent, _, _ in node.steps or ())


def _held(node: Node) -> Iterator[Array]:
    """The arrays in the closures of a node's rules, and of functions that these call: bare, in a Tensor, or in lists
    and tuples."""
    stack: list[Any] = [rule for _, _, rule in node.steps or ()]
    while stack:
        value = stack.pop()
        stack.extend(cell.cell_contents for cell in getattr(value, "__closure__", None) or ())
        if isinstance(value, xp.ndarray):
            yield value
        elif isinstance(value, Tensor):
            yield value.array
        elif isinstance(value, (list, tuple)):
            stack.extend(value)
