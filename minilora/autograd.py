"""Reverse-mode automatic differentiation: a Tensor remembers how it was made, and `backward` walks back.

An operation hands `record` its result and, beside every input, a rule: from g, the gradient of the loss with respect to
the result, to the gradient with respect to that input. A rule is a function, and keeps the arrays that it names. The
tape keeps a rule only where its input wants a gradient: for a frozen weight W neither gᵀx is computed nor x kept. That
is where LoRA saves time and memory. (g W, which goes on to x, costs what it did; A's rule may keep the same x.)

Operations read `tensor.array`, and do not write into it; `tensor.data` is for everybody else, who may.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar, cast

import numpy as np

from . import checks
from .backend import asarray, multiplies, xp

Array = Any  # numpy.ndarray, or cupy.ndarray on a GPU
Rule = Callable[[Array], Array]


class _Thread(threading.local):
    recording, textbook, evaluating = True, False, False


thread = _Thread()

# ---- where kernels come in ---------------------------------------------------------------------------

FASTER: dict[str, Callable[..., Any]] = {}  # name of an operation -> a quicker way to the same numbers
_Operation = TypeVar("_Operation", bound=Callable[..., Any])


def operation(plain: _Operation) -> _Operation:
    """The function below, or its kernel where there is one; within `textbook()` always the function."""
    name = plain.__qualname__

    @wraps(plain)
    def run(*inputs: Any, **settings: Any) -> Any:
        return (plain if thread.textbook else FASTER.get(name, plain))(*inputs, **settings)

    return cast(_Operation, multiplies(run))


# ---- the tape ----------------------------------------------------------------------------------------


@contextmanager
def no_grad() -> Iterator[None]:
    """Within this context nothing is recorded, in this thread: for evaluation and sampling."""
    before, thread.recording = thread.recording, False
    try:
        yield
    finally:
        thread.recording = before


class Node:
    """One recorded operation. Its `steps` are (parent, its shape, its rule) for each input that wants a gradient, and
    None once walked; a parent is the Node that made the input, or a leaf Tensor."""

    __slots__ = ("__weakref__", "handed_out", "steps")

    def __init__(self, steps: list[tuple[Node | Tensor, tuple[int, ...], Rule]]) -> None:
        self.steps: list[tuple[Node | Tensor, tuple[int, ...], Rule]] | None = steps
        # Of the arrays it read, those that somebody took by `.data` since, each beside a copy: `walk` compares them.
        self.handed_out: list[tuple[weakref.ref[Array], Array]] = []  # filled by checks.Readers


def record(data: Array, *inputs: tuple[Tensor, Rule], view: bool = False) -> Tensor:
    """The result of an operation as a Tensor, with its node where some input wants a gradient. `view`: it shares
    the memory of its only input. A rule returns a new array, or g, or a view of g; never one that it has kept."""
    out = Tensor.__new__(Tensor)
    out.array = data if isinstance(data, xp.ndarray) else xp.asarray(data)  # NumPy makes 0-d results scalars
    out.grad = out._node = None
    out._readers = inputs[0][0]._readers if view else checks.Readers()
    steps = [(x._node or x, x.array.shape, rule) for x, rule in inputs if x._requires_grad] if thread.recording else []
    out._requires_grad = bool(steps)
    if steps:
        out._node = Node(steps)
        reader = weakref.ref(out._node)
        for x, _ in inputs:
            x._readers.add(reader)
        if not view:
            out._readers.add(reader)  # a rule may have kept the result as well: exp, say
    return out


@operation
def walk(root: Node | Tensor, g: Array, retain_graph: bool) -> None:
    """Pass g back from `root`, each node when all of its gradient has arrived; add it up in the leaves."""
    arrived: dict[Node | Tensor, Array] = {root: g}
    nodes = children_first(root)
    checks.check_unchanged(nodes)  # first, so that a refusal leaves the graph as it is
    leaves = [node for node in nodes if isinstance(node, Tensor)]
    for node in nodes:
        if isinstance(node, Node):
            g = arrived.pop(node)
            for parent, shape, rule in node.steps or ():
                part = unbroadcast(rule(g), shape)
                arrived[parent] = arrived[parent] + part if parent in arrived else part
            if not retain_graph:
                node.steps, node.handed_out = None, []
    for leaf in leaves:  # last, so that nothing has changed where a rule raises
        g = arrived.pop(leaf)
        if leaf.grad is None:
            leaf.grad = xp.array(g, dtype=leaf.dtype)  # a copy: no two tensors share a gradient
        else:
            leaf.grad += g


def children_first(root: Node | Tensor) -> list[Node | Tensor]:
    """Every node below `root`, each after all that were made from it: children are counted first, then a node is taken
    when it waits for none. No recursion: a chain may be any length."""
    waiting: dict[Node | Tensor, int] = {root: 0}  # how many children have not yet come
    order, ready, stack = [], [root], [root]
    while stack:
        for parent, _, _ in checks.steps_of(stack.pop()):
            if parent not in waiting:
                waiting[parent] = 0
                stack.append(parent)
            waiting[parent] += 1
    while ready:
        order.append(ready.pop())
        for parent, _, _ in checks.steps_of(order[-1]):
            waiting[parent] -= 1
            if waiting[parent] == 0:
                ready.append(parent)
    return order


def unbroadcast(g: Array, shape: tuple[int, ...]) -> Array:
    """Sum a gradient over the axes along which NumPy repeated an input of `shape`: the only place that knows of it."""
    if g.shape == shape:
        return g
    checks.check_broadcast(g.shape, shape)
    lead = g.ndim - len(shape)
    axes = tuple(range(lead)) + tuple(lead + i for i, n in enumerate(shape) if n == 1 and g.shape[lead + i] != 1)
    return xp.sum(g, axis=axes, keepdims=True).reshape(shape)


# ---- the tensor --------------------------------------------------------------------------------------


class Tensor(checks.Holder):
    """An array and, with `requires_grad`, the gradient that `backward` leaves in `.grad`.

    `data` is an array, of which the Tensor takes a copy in the same dtype, or Python numbers, which become float32.
    Only floats may require gradients. `.grad` is None or an array like `.data`; it adds up over calls of `backward`.
    Raises `TypeError` for data that is not real numbers. What it holds, and computes nothing, is in `checks.Holder`.
    """

    __slots__ = ()
    __array_ufunc__ = None  # lets `numpy_array * tensor` reach our __rmul__

    def __init__(self, data: Any, requires_grad: bool = False) -> None:
        self._take(checks.check_numbers(data, copy=True), requires_grad)

    def backward(self, retain_graph: bool = False) -> None:
        """Add d(self)/d(leaf) to the `.grad` of every leaf that requires it, and free the graph on the way, unless
        `retain_graph`. Raises `ValueError`, and changes no `.grad`, where this is not one number, nothing requires a
        gradient, or the graph was walked before."""
        checks.check_loss(self)
        walk(self._node or self, xp.ones_like(self.array), retain_graph)

    # -- arithmetic; the other operators follow from these four

    @operation
    def __add__(self, other: Any) -> Tensor:
        a, b = self, as_tensor(other, self)
        return record(a.array + b.array, (a, lambda g: g), (b, lambda g: g))

    @operation
    def __mul__(self, other: Any) -> Tensor:
        a, b = self, as_tensor(other, self)
        x, y = a.array, b.array
        return record(x * y, (a, lambda g: g * y), (b, lambda g: g * x))

    def __pow__(self, exponent: float) -> Tensor:
        """d(xᵖ)/dx = p xᵖ⁻¹; for p = 0 it is 0, at x = 0 too."""
        checks.check_exponent(exponent)
        x, p = self.array, exponent.item() if isinstance(exponent, np.number) else exponent
        return record(x**p, (self, lambda g: g * (p * x ** (p - 1)) if p else xp.zeros_like(x)))

    @operation
    def __matmul__(self, other: Any) -> Tensor:
        """`(..., n, k) @ (..., k, m) -> (..., n, m)`, leading axes broadcast; dA = G Bᵀ, dB = Aᵀ G. 1-D as in NumPy."""
        a, b = self, as_tensor(other, self)
        checks.check_product(a, b)
        if a.ndim == 1:  # as a row; then drop that axis again
            y = a.reshape(1, -1) @ b
            return y.reshape(y.shape[:-1] if b.ndim == 1 else (*y.shape[:-2], y.shape[-1]))
        if b.ndim == 1:  # a column
            y = a @ b.reshape(-1, 1)
            return y.reshape(y.shape[:-1])
        x, y = a.array, b.array
        return record(x @ y, (a, lambda g: g @ y.swapaxes(-1, -2)), (b, lambda g: x.swapaxes(-1, -2) @ g))

    def __neg__(self) -> Tensor:
        return self * -1

    def __sub__(self, other: Any) -> Tensor:  # self - other
        return self + -as_tensor(other, self)

    def __truediv__(self, other: Any) -> Tensor:  # self / other
        return self * as_tensor(other, self) ** -1

    __radd__, __rmul__ = __add__, __mul__

    def __rsub__(self, other: Any) -> Tensor:  # other - self
        return as_tensor(other, self) - self

    def __rtruediv__(self, other: Any) -> Tensor:  # other / self
        return as_tensor(other, self) / self

    def __rmatmul__(self, other: Any) -> Tensor:  # other @ self
        return as_tensor(other, self) @ self

    def sum(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        shape, back = self.shape, _with_axes(self.shape, axis)
        y = self.array.sum(axis=axis, keepdims=keepdims)
        return record(y, (self, lambda g: xp.broadcast_to(g.reshape(back), shape)))

    def mean(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        total = self.sum(axis, keepdims)
        checks.check_mean(self)
        return total * (total.size / self.size)

    def max(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """The largest entries; equal ones share the gradient evenly."""
        x, back = self.array, _with_axes(self.shape, axis)
        top = x.max(axis=axis, keepdims=keepdims)

        def rule(g: Array) -> Array:
            winners = x == top.reshape(back)
            return xp.where(winners, g.reshape(back) / winners.sum(axis=axis, keepdims=True), 0).astype(x.dtype)

        return record(top, (self, rule))

    def reshape(self, *shape: Any) -> Tensor:
        old = self.shape
        return record(self.array.reshape(*shape), (self, lambda g: g.reshape(old)), view=True)

    def transpose(self, *axes: Any) -> Tensor:
        """The axes in the given order, or reversed where none is given."""
        order = axes[0] if len(axes) == 1 and isinstance(axes[0], (tuple, list)) else axes
        y = self.array.transpose(order) if order else self.array.T  # refuses axes that are not there
        place = [axis % self.ndim for axis in order] or [*range(self.ndim)][::-1]
        back = [place.index(axis) for axis in range(self.ndim)]
        return record(y, (self, lambda g: g.transpose(back)), view=True)

    @operation
    def __getitem__(self, index: Any) -> Tensor:
        """Slices, integers, integer arrays and masks, as in NumPy. An entry taken twice gets both gradients."""
        shape, dtype = self.shape, self.dtype
        numbers = np.arange(self.size).reshape(shape)
        taken = numbers[checks.host_index(index)]  # refuses what is outside

        def rule(g: Array) -> Array:
            order = np.argsort(taken, axis=None, kind="stable")  # equal ones side by side, to be summed
            entries, starts = np.unique(taken.reshape(-1)[order], return_index=True)
            dx = xp.zeros(int(np.prod(shape)), dtype)
            dx[asarray(entries)] = xp.add.reduceat(g.reshape(-1)[asarray(order)], asarray(starts))
            return dx.reshape(shape)

        return record(self.array.reshape(-1)[asarray(taken)], (self, rule))

    def detach(self) -> Tensor:
        """A leaf that needs no gradient and holds the same array."""
        leaf = Tensor.__new__(Tensor)
        leaf._take(self.array, requires_grad=False)
        leaf._readers = self._readers
        return leaf


def as_tensor(value: Any, like: Tensor | None = None) -> Tensor:
    """A Tensor as it is, an array as a Tensor, a number (or a 0-d array) as a Tensor of `like`'s dtype."""
    if isinstance(value, Tensor):
        return value
    number = isinstance(value, (int, float)) or getattr(value, "ndim", 1) == 0
    if number and like is not None and like.dtype.kind == "f":
        return Tensor(checks.check_numbers(value if hasattr(value, "dtype") else np.asarray(value)).astype(like.dtype))
    return Tensor(value)


def _with_axes(shape: tuple[int, ...], axis: Any) -> tuple[int, ...]:
    """The shape with length 1 where a reduction over `axis` removes an axis."""
    axes = range(len(shape)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    gone = {a % len(shape) for a in axes} if shape else ()
    return tuple(1 if i in gone else n for i, n in enumerate(shape))
