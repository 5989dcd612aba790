"""Reverse-mode automatic differentiation: a Tensor remembers how it was made, and `backward` walks back.

Every operation returns a Tensor that holds its result and, where a gradient will be wanted, a node of
the graph: the nodes of its parents and one function, `backward`, which takes the gradient of the loss
with respect to the result and returns the gradients with respect to the parents, in their order. A
node holds arrays, never Tensors, and only those that its own backward needs.

Operations read `tensor.array`; `tensor.data` is for everybody else. Whoever takes `data` may write into it, and an
array that a graph still needs would then give another gradient than that of the loss computed: so `data` notes, for
the nodes that read the array, what it held, and `backward` refuses to go on where that has changed.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from .backend import asarray, empty, multiplies, to_numpy, xp

Array = Any  # numpy.ndarray, or cupy.ndarray on a GPU
Backward = Callable[[Array], tuple["Array | None", ...]]


# ---- the tape ----------------------------------------------------------------------------------------


class _Mode(threading.local):
    recording = True


_mode = _Mode()


@contextmanager
def no_grad() -> Iterator[None]:
    """Within this context nothing is recorded, in this thread: for evaluation and sampling."""
    before, _mode.recording = _mode.recording, False
    try:
        yield
    finally:
        _mode.recording = before


def needs_grad(*tensors: Tensor) -> bool:
    """Whether an operation on these tensors will be recorded, so that saving arrays for it pays."""
    if _mode.recording:
        for tensor in tensors:
            if tensor._requires_grad:
                return True
    return False


class Node:
    """One recorded operation. A parent is a Node, a leaf Tensor, or None where no gradient is needed."""

    __slots__ = ("__weakref__", "backward", "handed_out", "parents")

    def __init__(self, parents: tuple[Node | Tensor | None, ...], backward: Backward) -> None:
        self.parents = parents
        self.backward: Backward | None = backward
        # Arrays that somebody may write into, each beside a copy; memory that is gone was not needed for the backward.
        self.handed_out: list[tuple[weakref.ref[Array], Array]] = []


def _check_unchanged(nodes: Iterable[Node | Tensor]) -> None:
    """Raise `ValueError` where an array that one of these operations read was written into since."""
    seen = {id(pair): pair for node in nodes if isinstance(node, Node) for pair in node.handed_out}
    for reference, copy in seen.values():
        array = reference()
        if array is not None and not to_numpy(xp.array_equal(array, copy, equal_nan=True)):
            raise ValueError(
                f"The data of a tensor of shape {array.shape} was changed in place between the forward pass and "
                "backward(), so the gradient would be that of neither: change it before or after, or assign a new "
                "array (tensor.data = ...), which leaves the one of this graph alone."
            )


def record(data: Array, parents: Sequence[Tensor], backward: Backward, view: bool = False) -> Tensor:
    """The result of an operation as a Tensor, with its node where some parent wants a gradient.

    `backward(g)` returns one array, or None, for each parent. An array it returns is new, or `g`, or
    a view of `g`; never a saved one, and never the same one twice (except `g`). `view` says that the result looks at
    the memory of its only parent.
    """
    out = Tensor.__new__(Tensor)
    out.array = data if isinstance(data, xp.ndarray) else xp.asarray(data)  # NumPy makes 0-d results scalars
    out.grad = None
    out._requires_grad = needs_grad(*parents)
    out._node = None
    out._readers = parents[0]._readers if view else []
    if out._requires_grad:
        entries = tuple((p._node or p) if p._requires_grad else None for p in parents)
        out._node = Node(entries, backward)
        reader = weakref.ref(out._node)
        for tensor in parents if view else (out, *parents):  # a backward may have kept the result as well: exp, say
            count = len(tensor._readers)
            if count >= 16 and count & (count - 1) == 0:  # at each power of two, so that forgetting costs little
                tensor._readers[:] = [r for r in tensor._readers if _pending(r)]
            tensor._readers.append(reader)
    return out


def _pending(reader: weakref.ref[Node]) -> Node | None:
    """The node, if it is still to be walked."""
    node = reader()
    return None if node is None or node.backward is None else node


def _walk_order(root: Node | Tensor) -> list[Node | Tensor]:
    """Every node below `root`, each before its parents: so all of its gradient has arrived.

    Without recursion, so that a chain of any length works.
    """
    children: dict[Node | Tensor, int] = {root: 0}  # how many nodes still send a gradient here
    stack = [root]
    while stack:
        node = stack.pop()
        if isinstance(node, Tensor):
            continue
        if node.backward is None:
            raise ValueError(
                "This graph was already walked by backward() and its arrays were let go: compute the loss "
                "again, or call backward(retain_graph=True) the first time."
            )
        for parent in node.parents:
            if parent is not None:
                if parent not in children:
                    children[parent] = 0
                    stack.append(parent)
                children[parent] += 1
    order: list[Node | Tensor] = []
    ready = [root]
    while ready:
        node = ready.pop()
        order.append(node)
        if not isinstance(node, Tensor):
            for parent in node.parents:
                if parent is not None:
                    children[parent] -= 1
                    if children[parent] == 0:
                        ready.append(parent)
    return order


@multiplies
def _backward(root: Node | Tensor, seed: Array, retain_graph: bool) -> None:
    pending: dict[Node | Tensor, Array] = {root: seed}
    ours: set[Node | Tensor] = set()  # whose pending array nobody else holds, so that adding in place is safe
    leaves: list[Tensor] = []
    order = _walk_order(root)
    _check_unchanged(order)  # first, so that a refusal leaves the graph as it is
    for node in order:
        if isinstance(node, Tensor):
            leaves.append(node)
            continue
        g = pending.pop(node)
        assert node.backward is not None
        gradients = node.backward(g)
        for parent, gradient in zip(node.parents, gradients, strict=True):
            if parent is None:
                continue
            assert gradient is not None
            if parent not in pending:
                pending[parent] = gradient
                if not _shared(gradient, g, gradients):
                    ours.add(parent)
            elif parent in ours:
                pending[parent] += gradient
            else:
                pending[parent] = _elementwise(xp.add, pending[parent], gradient)
                ours.add(parent)
        if not retain_graph:
            node.backward, node.parents, node.handed_out = None, (), []
    # Leaves last: if a backward raises, no gradient has changed.
    for leaf in leaves:
        g = pending.pop(leaf)
        if leaf.grad is not None:
            leaf.grad += g
        elif leaf in ours and g.dtype == leaf.dtype:
            leaf.grad = xp.asarray(g)
        else:
            leaf.grad = xp.array(g, dtype=leaf.dtype)  # a copy: no two tensors share a gradient


def _shared(gradient: Array, g: Array, gradients: tuple[Array | None, ...]) -> bool:
    """Whether what a backward took or returned looks at the memory of this gradient more than once."""
    if gradient is g or xp.may_share_memory(gradient, g):
        return True
    looking = [other for other in gradients if other is not None]
    return len(looking) > 1 and sum(xp.may_share_memory(gradient, other) for other in looking) > 1


def unbroadcast(g: Array, shape: tuple[int, ...]) -> Array:
    """Undo broadcasting: sum the gradient over the axes along which a parent of `shape` was repeated."""
    if g.shape == shape:
        return g
    lead = g.ndim - len(shape)
    axes = tuple(range(lead)) + tuple(lead + i for i, n in enumerate(shape) if n == 1 and g.shape[lead + i] != 1)
    return xp.sum(g, axis=axes, keepdims=True).reshape(shape)


class Scatter:
    """Adds each of N rows to the place that its id names: rows (N, ...), ids (N,) -> (count, ...).

    The ids are sorted once, on the CPU, where they come from; then each run of equal ones is summed. That is four times
    as fast as `add.at`, always in the same order, and on a GPU nothing waits.
    """

    def __init__(self, ids: np.ndarray, count: int) -> None:
        order = np.argsort(ids, kind="stable")
        ids = ids[order]
        starts = np.flatnonzero(np.concatenate((np.ones(min(1, ids.size), dtype=bool), ids[1:] != ids[:-1])))
        self.order, self.starts, self.places = asarray(order), asarray(starts), asarray(ids[starts])
        self.count = count

    def __call__(self, rows: Array) -> Array:
        out = xp.zeros((self.count, *rows.shape[1:]), dtype=rows.dtype)
        if self.order.size:
            out[self.places] = xp.add.reduceat(rows[self.order], self.starts, axis=0)
        return out


# ---- the tensor --------------------------------------------------------------------------------------


class Tensor:
    """An array and, with `requires_grad`, the gradient that `backward` leaves in `.grad`.

    `data` is an array, of which the Tensor takes a copy in the same dtype, or Python numbers, which become float32.
    Only floats may require gradients. `.grad` is None or an array like `.data`; it adds up over calls of `backward`.
    Raises `TypeError` for data that is not real numbers.
    """

    __slots__ = ("_node", "_readers", "_requires_grad", "array", "grad")
    __array_ufunc__ = None  # lets `numpy_array * tensor` reach our __rmul__

    def __init__(self, data: Any, requires_grad: bool = False) -> None:
        self._take(as_array(data, copy=True), requires_grad)

    def _take(self, array: Array, requires_grad: bool) -> None:
        """Be a leaf that holds this very array."""
        self.array = array
        self.grad: Array | None = None
        self._node: Node | None = None
        self._readers: list[weakref.ref[Node]] = []  # nodes whose backward may have kept the array
        self._requires_grad = False
        self.requires_grad = requires_grad

    def __copy__(self) -> Tensor:
        """Of the same array, in the same place of the graph."""
        twin = Tensor.__new__(type(self))
        twin.__setstate__(self.__getstate__())
        twin._readers = self._readers
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("array", "_node", "_requires_grad", "grad")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
        self._readers = []

    # -- what it holds

    @property
    def data(self) -> Array:
        """The array itself. Assigning needs the same shape and dtype; writing into it is allowed, before the forward
        pass or after the backward: one that you took before the forward pass and write into before `backward` would
        go unnoticed."""
        if not self._readers:
            return self.array
        nodes = [node for reader in self._readers if (node := _pending(reader))]
        if not nodes:
            self._readers.clear()
            return self.array
        owner, pair = self.array, None
        while isinstance(owner.base, xp.ndarray):
            owner = owner.base  # of the memory, which other tensors may see through views of their own
        for node in nodes:
            if not any(known() is owner for known, _ in node.handed_out):
                pair = pair or (weakref.ref(owner), owner.copy())
                node.handed_out.append(pair)
        return self.array

    @data.setter
    def data(self, array: Array) -> None:
        if not isinstance(array, xp.ndarray):
            raise TypeError(f"The data takes an array like the one it replaces, not {type(array).__name__}.")
        if array.shape != self.array.shape or array.dtype != self.array.dtype:
            raise ValueError(
                f"The data has shape {self.array.shape} and dtype {self.array.dtype}; "
                f"it cannot be replaced by shape {array.shape} and dtype {array.dtype}."
            )
        if array is not self.array:
            self.array, self._readers = array, []  # no graph has read this one

    @property
    def requires_grad(self) -> bool:
        """Whether `backward` computes a gradient for this tensor, or through it."""
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if value and self.array.dtype.kind != "f":
            raise TypeError(f"Only floats may require gradients; this tensor holds {self.array.dtype}.")
        if self._node is not None:
            raise ValueError("Setting requires_grad belongs to leaves; this tensor is a result: detach() it first.")
        self._requires_grad = bool(value)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> Any:
        return self.array.dtype

    @property
    def ndim(self) -> int:
        return self.array.ndim

    @property
    def size(self) -> int:
        return self.array.size

    def __len__(self) -> int:
        return len(self.array)

    def __repr__(self) -> str:
        grad = ", requires_grad=True" if self._requires_grad else ""
        return f"Tensor({to_numpy(self.array)}, dtype={self.dtype}{grad})"

    def item(self) -> float:
        """The one number of a tensor of size 1."""
        if self.size != 1:
            raise ValueError(f"item() needs exactly one number; this tensor has shape {self.shape}.")
        return self.array.item()

    def numpy(self) -> np.ndarray:
        """A NumPy copy, which later steps never change."""
        return to_numpy(self.array).copy()

    def detach(self) -> Tensor:
        """A leaf that needs no gradient and holds the same array."""
        leaf = Tensor.__new__(Tensor)
        leaf._take(self.array, requires_grad=False)
        leaf._readers = self._readers
        return leaf

    def backward(self, retain_graph: bool = False) -> None:
        """Add d(self)/d(leaf) to the `.grad` of every leaf that requires it.

        The graph is let go while it is walked, unless `retain_graph`. Raises `ValueError` where this is
        not one number, where nothing requires a gradient, or where the graph was walked before; then
        no `.grad` has changed.
        """
        if self.size != 1:
            raise ValueError(
                f"backward() starts from one number; this tensor has shape {self.shape}: "
                "reduce it first with .sum() or .mean()."
            )
        if not self._requires_grad:
            raise ValueError(
                "backward() found nothing that requires a gradient: pass requires_grad=True to a Tensor, "
                "and compute outside no_grad()."
            )
        _backward(self._node or self, xp.ones_like(self.array), retain_graph)

    # -- arithmetic; the rest follows from these four

    def __add__(self, other: Any) -> Tensor:
        a, b = self, as_tensor(other, self)

        def backward(g: Array) -> tuple[Array, Array]:
            return unbroadcast(g, a_shape), unbroadcast(g, b_shape)

        a_shape, b_shape = a.shape, b.shape
        return record(_elementwise(xp.add, a.array, b.array), (a, b), backward)

    def __mul__(self, other: Any) -> Tensor:
        a, b = self, as_tensor(other, self)
        a_shape, b_shape = a.shape, b.shape
        saved_a = a.array if b.requires_grad else None
        saved_b = b.array if a.requires_grad else None

        def backward(g: Array) -> tuple[Array | None, Array | None]:
            da = None if saved_b is None else unbroadcast(_elementwise(xp.multiply, g, saved_b), a_shape)
            db = None if saved_a is None else unbroadcast(_elementwise(xp.multiply, g, saved_a), b_shape)
            return da, db

        return record(_elementwise(xp.multiply, a.array, b.array), (a, b), backward)

    def __pow__(self, exponent: float) -> Tensor:
        if not isinstance(exponent, (int, float, np.integer, np.floating)):
            raise TypeError(f"A tensor is raised to a Python number, not to {type(exponent).__name__}.")
        x, exponent = self.array, exponent.item() if isinstance(exponent, np.number) else exponent

        def backward(g: Array) -> tuple[Array]:
            # d(xᵖ)/dx = p xᵖ⁻¹; for p = 0 it is 0, at x = 0 too
            return (g * (exponent * x ** (exponent - 1)) if exponent != 0 else xp.zeros_like(x),)

        return record(x**exponent, (self,), backward)

    @multiplies
    def __matmul__(self, other: Any) -> Tensor:
        """`(..., n, k) @ (..., k, m) -> (..., n, m)`, leading axes broadcast; 1-D as in NumPy."""
        a, b = self, as_tensor(other, self)
        if a.ndim == 0 or b.ndim == 0:
            raise ValueError("@ needs at least one axis on both sides; use * to multiply by a number.")
        # 1-D operands become a row on the left, a column on the right, and lose that axis again.
        if a.ndim == 1:
            return (a.reshape(1, -1) @ b)._drop_axis(-2 if b.ndim > 1 else -1)
        if b.ndim == 1:
            return (a @ b.reshape(-1, 1))._drop_axis(-1)
        a_shape, b_shape = a.shape, b.shape
        saved_a = a.array if b.requires_grad else None
        saved_b = b.array if a.requires_grad else None

        def backward(g: Array) -> tuple[Array | None, Array | None]:
            # dA = G Bᵀ, dB = Aᵀ G
            da = None if saved_b is None else unbroadcast(g @ saved_b.swapaxes(-1, -2), a_shape)
            db = None if saved_a is None else unbroadcast(saved_a.swapaxes(-1, -2) @ g, b_shape)
            return da, db

        return record(a.array @ b.array, (a, b), backward)

    def __neg__(self) -> Tensor:
        return self * -1

    def __sub__(self, other: Any) -> Tensor:  # self - other
        return self + -as_tensor(other, self)

    def __truediv__(self, other: Any) -> Tensor:  # self / other
        return self * as_tensor(other, self) ** -1

    def __radd__(self, other: Any) -> Tensor:  # other + self
        return self + other

    def __rmul__(self, other: Any) -> Tensor:  # other * self
        return self * other

    def __rsub__(self, other: Any) -> Tensor:  # other - self
        return as_tensor(other, self) - self

    def __rtruediv__(self, other: Any) -> Tensor:  # other / self
        return as_tensor(other, self) / self

    def __rmatmul__(self, other: Any) -> Tensor:  # other @ self
        return as_tensor(other, self) @ self

    # -- reductions

    def sum(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Tensor:
        shape = self.shape

        def backward(g: Array) -> tuple[Array]:
            return (xp.broadcast_to(_restore_axes(g, shape, axis, keepdims), shape),)

        return record(self.array.sum(axis=axis, keepdims=keepdims), (self,), backward)

    def mean(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Tensor:
        total = self.sum(axis, keepdims)
        if self.size == 0:
            raise ValueError(f"The mean of no numbers is not defined; this tensor has shape {self.shape}.")
        return total * (total.size / self.size)

    def max(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Tensor:
        """The largest entries; equal ones share the gradient evenly."""
        x, shape = self.array, self.shape
        top = x.max(axis=axis, keepdims=keepdims)

        def backward(g: Array) -> tuple[Array]:
            winners = x == _restore_axes(top, shape, axis, keepdims)
            share = _restore_axes(g, shape, axis, keepdims) / winners.sum(axis=axis, keepdims=True)
            return (xp.where(winners, share, 0).astype(x.dtype),)

        return record(top, (self,), backward)

    # -- shape

    def reshape(self, *shape: Any) -> Tensor:
        old = self.shape

        def backward(g: Array) -> tuple[Array]:
            return (g.reshape(old),)

        return record(self.array.reshape(*shape), (self,), backward, view=True)

    def transpose(self, *axes: Any) -> Tensor:
        """The axes in the given order, or reversed where none is given."""
        if len(axes) == 1 and isinstance(axes[0], (tuple, list)):
            axes = tuple(axes[0])
        data = self.array.transpose(axes) if axes else self.array.T  # refuses axes that are not there
        order = tuple(axis % self.ndim for axis in axes) or tuple(reversed(range(self.ndim)))
        back = tuple(order.index(axis) for axis in range(self.ndim)) if self._requires_grad else ()

        def backward(g: Array) -> tuple[Array]:
            return (g.transpose(back),)

        return record(data, (self,), backward, view=True)

    def _drop_axis(self, axis: int) -> Tensor:
        axis %= self.ndim
        return self.reshape(self.shape[:axis] + self.shape[axis + 1 :])

    def __getitem__(self, index: Any) -> Tensor:
        """Slices, integers, integer arrays and masks, as in NumPy. An entry taken twice gets both gradients."""
        shape, dtype = self.shape, self.dtype
        index = tuple(map(_on_host, index)) if isinstance(index, tuple) else _on_host(index)
        positions = None if _is_basic(index) else np.arange(self.size).reshape(shape)[index]  # refuses what is outside

        def backward(g: Array) -> tuple[Array]:
            if positions is None:
                dx = xp.zeros(shape, dtype=dtype)
                dx[index] = g
                return (dx,)
            size = int(np.prod(shape))
            return (Scatter(positions.reshape(-1), size)(g.reshape(-1)).reshape(shape),)

        if positions is None:
            return record(self.array[index], (self,), backward, view=True)
        return record(self.array.reshape(-1)[asarray(positions)], (self,), backward)


def as_tensor(value: Any, like: Tensor | None = None) -> Tensor:
    """A Tensor as it is, an array as a Tensor, a number, also in a 0-d array, as a Tensor of the dtype of `like`."""
    if isinstance(value, Tensor):
        return value
    if like is not None and like.dtype.kind == "f":
        if isinstance(value, (int, float)):
            return Tensor(xp.asarray(value, dtype=like.dtype))
        if isinstance(value, (np.number, np.ndarray, xp.ndarray)) and value.ndim == 0:
            return Tensor(as_array(value).astype(like.dtype))
    return Tensor(value)


def as_array(data: Any, copy: bool = False) -> Array:
    """Real numbers of any kind as an array of the backend; with `copy`, one that nobody else holds."""
    if isinstance(data, Tensor):
        raise TypeError("This is a Tensor already; use it as it is, or its detach().")
    array = data if isinstance(data, xp.ndarray) else np.asarray(data)
    if array.dtype.kind not in "fiub":
        what = "real numbers" if array.dtype.kind == "c" else "numbers: an array, or (nested) Python numbers"
        raise TypeError(f"A Tensor holds {what}, not {type(data).__name__} of dtype {array.dtype}.")
    if not isinstance(data, (np.ndarray, np.generic, xp.ndarray)):
        return xp.asarray(array.astype(np.float32))
    return xp.array(array) if copy else xp.asarray(array)


def _elementwise(operation: Any, a: Array, b: Array) -> Array:
    """`operation(a, b)`, its result in a block used before where that pays."""
    if a.dtype != b.dtype or a.dtype.kind != "f":
        return operation(a, b)
    shape = a.shape if a.shape == b.shape else np.broadcast_shapes(a.shape, b.shape)
    return operation(a, b, out=empty(shape, a.dtype))


def _restore_axes(g: Array, shape: tuple[int, ...], axis: Any, keepdims: bool) -> Array:
    """Put back, with length 1, the axes that a reduction removed."""
    if keepdims:
        return g
    axes = range(len(shape)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    reduced = {a % len(shape) for a in axes}
    return g.reshape(tuple(1 if i in reduced else n for i, n in enumerate(shape)))


def _on_host(index: Any) -> Any:
    """Part of an index, its arrays on the CPU: there NumPy checks them, where a GPU would wrap what is outside."""
    if isinstance(index, Tensor):
        index = index.array
    return to_numpy(index) if isinstance(index, (list, np.ndarray, xp.ndarray)) else index


def _is_basic(index: Any) -> bool:
    """Whether an index can name no entry twice: integers, slices, None and ... only."""
    parts = index if isinstance(index, tuple) else (index,)
    return all(p is None or p is Ellipsis or isinstance(p, (int, np.integer, slice)) for p in parts)
