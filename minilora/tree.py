"""Modules within modules: found by dotted names, also in containers, and one put in another's place."""

from __future__ import annotations

from collections import ChainMap, UserDict, UserList, deque
from collections.abc import Iterable, Iterator
from types import MappingProxyType
from typing import Any


def join(prefix: str, name: str) -> str:
    """A dotted name."""
    return f"{prefix}.{name}" if prefix else name


def held(container: Any, kinds: tuple[type, ...], above: tuple[Any, ...] = ()) -> Iterator[tuple[str, Any]]:
    """(dotted name, parameter or module) of those in a dictionary, list or tuple, and in such containers within it.

    `kinds` are the classes to look for.
    """
    if any(container is outer for outer in above):  # it holds itself
        return
    for name, value in container.items() if isinstance(container, dict) else enumerate(container):
        if isinstance(value, kinds):
            found: Iterable[tuple[str, Any]] = [("", value)]
        elif isinstance(value, (dict, list, tuple)):
            found = held(value, kinds, (*above, container))
        else:
            check_container(name, value, kinds)
            continue
        for below, part in found:
            check_name(container, name)
            yield join(str(name), below) if below else str(name), part


def modules(root: Any, kinds: tuple[type, type]) -> Iterator[tuple[str, Any]]:
    """(dotted name, module) for `root`, whose name is "", and all below it; one that is shared comes once.

    `kinds` are the classes of parameters and of modules.
    """
    seen: set[int] = set()
    stack: list[tuple[str, Any]] = [("", root)]
    while stack:
        prefix, module = stack.pop()
        if id(module) not in seen:
            seen.add(id(module))
            yield prefix, module
            below = [(join(prefix, name), m) for name, m in held(vars(module), kinds) if isinstance(m, kinds[1])]
            stack += below[::-1]


def leaves(root: Any, kinds: tuple[type, type]) -> Iterator[tuple[str, Any]]:
    """(dotted name, parameter) of all below `root`, in a fixed order; one that is shared comes once, by its first
    name."""
    seen: set[int] = set()
    for prefix, module in modules(root, kinds):
        for name, value in held(vars(module), kinds):
            if isinstance(value, kinds[0]) and id(value) not in seen:
                seen.add(id(value))
                yield join(prefix, name), value


def replace(named: Iterable[tuple[str, Any]], old: Any, new: Any) -> None:
    """Put `new` wherever one of the named modules holds `old`, which may be in several places."""
    for _, module in list(named):
        for name, value in vars(module).items():
            vars(module)[name] = _with(value, old, new)


def _with(value: Any, old: Any, new: Any) -> Any:
    """`value` with `new` in place of `old`; lists and dictionaries stay the same objects, tuples are made anew."""
    if value is old:
        return new
    if isinstance(value, (list, dict)):
        for key, part in list(enumerate(value) if isinstance(value, list) else value.items()):
            value[key] = _with(part, old, new)
    elif isinstance(value, tuple) and any(found is old for _, found in held(value, (type(old),))):
        return tuple.__new__(type(value), [_with(part, old, new) for part in value])  # of the same kind, named or not
    return value


# ---- refusals ----------------------------------------------------------------------------------------

# What has no order, or cannot be changed in place: modules in one of these could not be named, or not be adapted.
_OTHERS = (set, frozenset, deque, ChainMap, UserDict, UserList, MappingProxyType)


def check_container(name: Any, value: Any, kinds: tuple[type, ...]) -> None:
    """Raise `TypeError` where parameters or modules (`kinds`) are kept in what cannot name them."""
    if isinstance(value, _OTHERS):
        parts = value.values() if hasattr(value, "values") else value
        if any(isinstance(part, kinds) for part in parts):
            raise TypeError(
                f"{name} keeps parameters or modules in a {type(value).__name__}, where they cannot be named or "
                "exchanged: use a list, a tuple or a dictionary."
            )


def check_name(container: Any, name: Any) -> None:
    """Raise `TypeError` for the key of a parameter or module in a dictionary that is not a name."""
    if isinstance(container, dict) and (not isinstance(name, str) or not name or "." in name):
        raise TypeError(
            f"The key {name!r} of a dictionary with parameters or modules is not a name: use text without dots."
        )
