"""A stand-in for CuPy that needs no GPU: NumPy inside, and from outside only what CuPy has and what is safe there.

A device array is refused to everything that would move it silently (`np.f(x)`, `float(x)`, `if x:`), host arrays are
refused to every operation, and what a GPU does without a word raises here: an id out of range, a place written twice.
Names and signatures come from a manifest made from the real CuPy by `make_manifest.py`. Transfers are counted.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from minilora.backend import use_array_library

MANIFEST: dict[str, Any] = json.loads(Path(__file__).with_name("cupy_manifest.json").read_text(encoding="utf-8"))

FROM_HOST = ("array", "asarray", "ascontiguousarray", "asanyarray")  # explicit: these alone may read a host array
HOST_ANSWERS = ("may_share_memory", "shares_memory", "can_cast", "issubdtype", "isscalar", "iscomplexobj", "isrealobj")
WAITING = ("nonzero", "flatnonzero", "argwhere", "unique", "bincount", "extract")  # their size is data
# What CuPy has, and the library must not use: draws belong to the CPU; these sums come in an order that varies.
NOT_HERE = {
    "random": "random numbers are drawn by NumPy on the CPU, so that both libraries start from the same ones",
    "bincount": "its sums are atomic on a GPU, so their order varies: sort on the CPU and use add.reduceat",
    "asnumpy": "use backend.to_numpy, which NumPy's arrays pass too",
}


def that_numpy_has(found: dict[str, Any]) -> dict[str, Any]:
    """A manifest without what another NumPy had and this one has no more (2.5 dropped `row_stack`)."""

    def of(module: Any, names: Any) -> Any:
        if isinstance(names, dict):
            return {name: value for name, value in names.items() if hasattr(module, name)}
        return [name for name in names if hasattr(module, name)]

    array = found["ndarray"]
    return {
        **found,
        **{part: of(np, found[part]) for part in ("functions", "ufuncs", "ufunc_methods", "constants")},
        "modules": {name: of(getattr(np, name), found["modules"][name]) for name in found["modules"]},
        "ndarray": {
            "attributes": of(np.ndarray, array["attributes"]),
            "methods": {"get": array["methods"]["get"], **of(np.ndarray, array["methods"])},
        },
    }


class Unsafe(TypeError):
    """Something that CuPy refuses, or does silently and at a price."""


class Counts:
    """How often something crossed between the CPU and the device, and how often the CPU waited."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.to_device = self.to_host = self.waits = 0


counts = Counts()


def signature(parameters: list[list[Any]] | None) -> inspect.Signature:
    """Of the manifest's [name, kind, has a default] for each parameter; of null, which takes anything."""
    kinds = inspect._ParameterKind
    if parameters is None:
        parameters = [["args", "VAR_POSITIONAL", False], ["kwargs", "VAR_KEYWORD", False]]
    return inspect.Signature(
        [
            inspect.Parameter(name, kinds[kind], default=None if optional else inspect.Parameter.empty)
            for name, kind, optional in parameters
        ]
    )


def signatures(table: dict[str, Any]) -> dict[str, inspect.Signature]:
    return {name: signature(parameters) for name, parameters in table.items()}


METHODS = signatures(MANIFEST["ndarray"]["methods"])
FUNCTIONS = signatures(MANIFEST["functions"])
MODULES = {module: signatures(table) for module, table in MANIFEST["modules"].items()}
UFUNC = signature(
    [["args", "VAR_POSITIONAL", False], *([name, "KEYWORD_ONLY", True] for name in MANIFEST["ufunc_arguments"])]
)
UFUNC_METHODS = signatures(MANIFEST["ufunc_method_signatures"])


def bind(name: str, allowed: inspect.Signature, args: Any, kwargs: dict[str, Any]) -> None:
    """Raise where CuPy's function or method of that name does not take these arguments."""
    try:
        allowed.bind(*args, **kwargs)
    except TypeError as error:
        raise Unsafe(f"CuPy's {name}: {error}.") from None


# ---- arrays ------------------------------------------------------------------------------------------


class StrictArray:
    """An array that lives elsewhere."""

    __array_ufunc__ = None  # np.add(x, 1) is refused, and NumPy's own operators leave theirs to ours

    def __init__(self, inside: np.ndarray) -> None:
        self._inside = inside

    # -- what would move it silently

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise Unsafe("Implicit conversion of a device array to NumPy: use to_numpy(x).")

    def __array_function__(self, function: Callable, *_: Any) -> Any:
        raise Unsafe(f"np.{function.__name__} on a device array: use xp.{function.__name__}.")

    def _implicit(self) -> Any:
        raise Unsafe("A device array as a Python number or truth value makes the CPU wait: use x.item(), or to_numpy.")

    __bool__ = __float__ = __int__ = __complex__ = __index__ = _implicit  # type: ignore[assignment]

    def __iter__(self) -> Any:
        raise Unsafe("A loop over a device array launches a kernel for each row: compute with the whole array.")

    def __contains__(self, _: Any) -> bool:
        raise Unsafe("`in` on a device array makes the CPU wait.")

    __hash__ = None  # type: ignore[assignment]

    # -- what crosses on purpose

    def get(self) -> np.ndarray:
        counts.to_host += 1
        return self._inside.copy()

    def item(self, *index: int) -> Any:
        counts.to_host += 1
        return self._inside.item(*index)

    def tolist(self) -> Any:
        counts.to_host += 1
        return self._inside.tolist()

    # -- the rest, as far as CuPy has it

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in MANIFEST["ndarray"]["attributes"]:
            return outside(getattr(self._inside, name))
        if name not in METHODS:
            raise AttributeError(f"CuPy's arrays have no {name!r}.")

        def method(*args: Any, **kwargs: Any) -> Any:
            bind(name, METHODS[name], args, kwargs)
            refuse_host((args, kwargs))
            return outside(getattr(self._inside, name)(*inside(args), **inside(kwargs)))

        return method

    def __len__(self) -> int:
        return len(self._inside)

    def __repr__(self) -> str:
        return f"StrictArray{self._inside.shape} of {self._inside.dtype}"

    def __getitem__(self, index: Any) -> StrictArray:
        return outside(self._inside[self._checked(index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        place = self._checked(index)
        refuse_host(value)
        refuse_list(value)
        if any(isinstance(part, np.ndarray) and part.dtype.kind in "iu" for part in as_tuple(place)):
            entries = np.arange(self._inside.size).reshape(self._inside.shape)[place]
            if np.unique(entries).size != entries.size:
                raise Unsafe("x[ids] = values with an id twice: which value stays is not defined on a GPU.")
        self._inside[place] = inside(value)

    def _checked(self, index: Any) -> Any:
        """The index for NumPy, which refuses one out of range where CuPy would wrap it."""
        for part in as_tuple(index):
            if isinstance(part, StrictArray):
                counts.waits += part._inside.dtype.kind == "b"
            elif not (part is None or part is Ellipsis or isinstance(part, (int, np.integer, slice))):
                raise Unsafe(f"An index of type {type(part).__name__} is moved silently: use asarray(index).")
            elif isinstance(part, slice) and any(
                isinstance(x, StrictArray) for x in (part.start, part.stop, part.step)
            ):
                raise Unsafe("A slice whose bounds live on the device makes the CPU wait.")
        return inside(index)


def _operators() -> None:
    both = ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor", "lshift", "rshift"]
    names = [*both, *("r" + name for name in both), "eq", "ne", "lt", "le", "gt", "ge"]

    def binary(name: str) -> Callable:
        def operator(self: StrictArray, other: Any) -> Any:
            refuse_host(other)
            if not isinstance(other, (StrictArray, int, float, np.generic)):
                return NotImplemented
            return outside(getattr(self._inside, name)(inside(other)))

        return operator

    def in_place(name: str) -> Callable:
        def operator(self: StrictArray, other: Any) -> StrictArray:
            refuse_host(other)
            refuse_list(other)
            getattr(self._inside, name)(inside(other))
            return self

        return operator

    def unary(name: str) -> Callable:
        return lambda self: outside(getattr(self._inside, name)())

    for name in names:
        setattr(StrictArray, f"__{name}__", binary(f"__{name}__"))
    for name in both:
        if name != "matmul":  # CuPy has none in place
            setattr(StrictArray, f"__i{name}__", in_place(f"__i{name}__"))
    for name in ("neg", "pos", "abs", "invert"):
        setattr(StrictArray, f"__{name}__", unary(f"__{name}__"))


_operators()


# ---- the library -------------------------------------------------------------------------------------


class StrictLibrary:
    """The module `cupy`, as far as its manifest goes."""

    ndarray = StrictArray

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in NOT_HERE:
            raise Unsafe(f"xp.{name}: {NOT_HERE[name]}.")
        if name in MANIFEST["constants"]:
            return getattr(np, name)
        if name in MANIFEST["ufuncs"]:
            return StrictUfunc(name)
        if name in FUNCTIONS:
            return function(name, FUNCTIONS[name], getattr(np, name))
        if name in MODULES:
            return StrictModule(name)
        raise AttributeError(f"CuPy {MANIFEST['cupy']} has no {name!r}.")


class StrictModule:
    """A part of CuPy such as `linalg`."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        known = MODULES[self._name]
        if name not in known:
            raise AttributeError(f"CuPy {MANIFEST['cupy']} has no {self._name}.{name}.")
        return function(f"{self._name}.{name}", known[name], getattr(getattr(np, self._name), name))


class StrictUfunc:
    """Takes `out`, `dtype` and `casting`, but no `where`; of the methods, those CuPy has for it."""

    def __init__(self, name: str) -> None:
        self._name, self._ufunc = name, getattr(np, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bind(self._name, UFUNC, args, kwargs)
        refuse_host((args, kwargs), numbers=True)
        return outside(self._ufunc(*inside(args), **inside(kwargs)))

    def __getattr__(self, name: str) -> Any:
        if name == "at":
            raise Unsafe(f"xp.{self._name}.at: its sums are atomic on a GPU, so their order varies: sort and reduceat.")
        if name not in MANIFEST["ufunc_methods"].get(self._name, ()):
            raise Unsafe(f"CuPy has no {self._name}.{name}.")
        return function(f"{self._name}.{name}", UFUNC_METHODS[name], getattr(self._ufunc, name))


def function(name: str, allowed: inspect.Signature, of_numpy: Callable) -> Callable:
    """A function of NumPy behind CuPy's signature."""

    def call(*args: Any, **kwargs: Any) -> Any:
        bind(name, allowed, args, kwargs)
        if name in FROM_HOST:
            if not isinstance(args[0], StrictArray):
                refuse_device_within(args[0])
                counts.to_device += 1
            if np.asarray(inside(args[0])).dtype.kind not in "fiubc":
                raise Unsafe("A device array holds numbers.")
        else:
            refuse_host((args, kwargs))
        counts.waits += name in WAITING
        result = of_numpy(*inside(args), **inside(kwargs))
        return result if name in HOST_ANSWERS else outside(result)

    return call


# ---- in and out --------------------------------------------------------------------------------------


def inside(value: Any) -> Any:
    """NumPy's arrays in the place of device arrays."""
    if isinstance(value, StrictArray):
        return value._inside
    if isinstance(value, (tuple, list)):
        return type(value)(map(inside, value))
    if isinstance(value, dict):
        return {name: inside(part) for name, part in value.items()}
    return value


def outside(value: Any) -> Any:
    """Device arrays in the place of NumPy's; also of 0-d results, which NumPy makes scalars."""
    if isinstance(value, (np.ndarray, np.generic, bool)):
        return StrictArray(np.asarray(value))
    if isinstance(value, (tuple, list)) and any(isinstance(part, np.ndarray) for part in value):
        return type(value)(map(outside, value))
    return value


def refuse_host(value: Any, numbers: bool = False) -> None:
    """Raise where an array of the host is among the arguments; with `numbers`, also for a list of numbers."""
    if isinstance(value, np.ndarray):
        raise Unsafe("A NumPy array in an operation on the device: move it with asarray(x) first.")
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        for part in value:
            if numbers and isinstance(part, list):
                raise Unsafe("A list of numbers in an operation on the device: move it with asarray(x) first.")
            refuse_host(part, numbers)


def refuse_list(value: Any) -> None:
    """Raise for a list or tuple as the value of `x[...] = ` and of `x += `, where CuPy takes arrays and numbers."""
    if isinstance(value, (tuple, list)):
        raise Unsafe("A list of numbers written into a device array: move it with asarray(x) first.")


def refuse_device_within(value: Any) -> None:
    """Raise for a list of device arrays, each of which asarray() would have to fetch and send again."""
    if isinstance(value, (tuple, list)):
        for part in value:
            if isinstance(part, StrictArray):
                raise Unsafe("asarray() of a list of device arrays: use xp.stack.")
            refuse_device_within(part)


def use_strict() -> None:
    """Compute on the stand-in from now on."""
    use_array_library(StrictLibrary(), "strict")


def as_tuple(index: Any) -> tuple:
    return index if isinstance(index, tuple) else (index,)
