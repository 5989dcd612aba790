"""What can be seen of a module without running it: every use of `xp`, and what becomes of the arrays it makes.

    python tests/strict/static.py            # all of minilora/; exit 1 with what was found

Names and arguments are held against CuPy's manifest. Within a function, values that come from `xp`, from `.data` or
`.grad`, or from the backend's own helpers live on the device; what makes them host values is `to_numpy`, `.item()`,
`.get()`, `.tolist()` and what describes an array (`.shape`, `.dtype`, ...). A device value must not meet `np.f(...)`, a
condition, `float`, `range` and the like, nor a host array an index of it.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parents[1]))
from strict.library import FROM_HOST, FUNCTIONS, MANIFEST, METHODS, MODULES, NOT_HERE, UFUNC, UFUNC_METHODS, signature

LIBRARY = Path(__file__).parents[2] / "minilora"

DESCRIBES = {"shape", "dtype", "ndim", "size", "nbytes", "itemsize", "flags", "strides", "base", "device"}
TO_HOST = {"item", "tolist", "len", "isinstance", "id", "type", "hasattr", "getattr"}
TO_HOST_ARRAY = {"to_numpy", "numpy", "get"}
DRAWS = {"normal", "integers", "random", "uniform", "choice", "permutation"}  # of a Generator
NUMBERS = {"prod", "float32", "float64", "sqrt", "errstate", "dtype", "broadcast_shapes"}  # of np: no arrays here
MAKES_DEVICE = {"asarray", "empty", "matmul", "matmul_over_rows", "sum_rows", "gaussian"}
HOLDS_DEVICE = {"data", "grad", "_data"}
MAKES_WAIT = {"float", "int", "bool", "complex", "range", "sum", "max", "min", "any", "all", "list", "sorted", "round"}
OF_TENSORS = {"backward", "detach", "requires_grad"}  # then it was no bare array
# Where a value lives: a host array is more than what may be a number, and several is a list or tuple of device arrays.
HOST, HOST_ARRAY, DEVICE, SEVERAL, UNKNOWN = "host", "host array", "device", "several", "unknown"
KNOWN = {*METHODS, *MANIFEST["ndarray"]["attributes"], *OF_TENSORS, *HOLDS_DEVICE, "get"}


def problems(source: str, name: str = "<source>") -> list[str]:
    """A sentence for each line that would fail on a GPU, wait for it, or differ there."""
    checker = _Checker(name)
    checker.visit(ast.parse(source))
    return checker.found


class _Checker(ast.NodeVisitor):
    def __init__(self, name: str) -> None:
        self.name, self.found = name, []
        self.places: list[dict[str, str]] = [{}]  # of each scope, where the value of a name lives

    def say(self, node: ast.AST, text: str) -> None:
        line = f"{self.name}:{node.lineno}: {text}"
        if line not in self.found:
            self.found.append(line)

    # -- where a value lives

    def place(self, node: ast.AST) -> str:
        if isinstance(node, ast.Name):
            for scope in reversed(self.places):
                if node.id in scope:
                    return scope[node.id]
            return UNKNOWN
        if isinstance(node, ast.Attribute):
            if node.attr in DESCRIBES:
                return HOST
            if _module(node) is not None:
                return UNKNOWN
            if node.attr in HOLDS_DEVICE:
                return HOST if self.place(node.value) in (HOST, HOST_ARRAY) else DEVICE
            return self.place(node.value) if node.attr in ("T", "mT", "real") else UNKNOWN
        if isinstance(node, ast.Call):
            return self.place_of_call(node)
        if isinstance(node, ast.BinOp):
            return self.together(node.left, node.right)
        if isinstance(node, ast.Compare):
            if any(isinstance(op, (ast.Is, ast.IsNot, ast.In, ast.NotIn)) for op in node.ops):
                return HOST
            return self.together(node.left, *node.comparators)
        if isinstance(node, ast.UnaryOp):
            return HOST if isinstance(node.op, ast.Not) else self.place(node.operand)
        if isinstance(node, (ast.Subscript, ast.Starred)):
            place = self.place(node.value)  # a part of a host array may be a number
            return {SEVERAL: DEVICE, HOST_ARRAY: HOST}.get(place, place)
        if isinstance(node, ast.IfExp):
            return self.together(node.body, node.orelse)
        if isinstance(node, (ast.ListComp, ast.GeneratorExp)):
            return SEVERAL if self.place(node.elt) == DEVICE else UNKNOWN
        if isinstance(node, (ast.Tuple, ast.List)):
            return SEVERAL if self.together(*node.elts) == DEVICE else UNKNOWN
        if isinstance(node, (ast.Constant, ast.JoinedStr)):
            return HOST
        return UNKNOWN

    def together(self, *nodes: ast.AST) -> str:
        places = [self.place(node) for node in nodes]
        if DEVICE in places or SEVERAL in places:
            return DEVICE
        return next((place for place in (UNKNOWN, HOST_ARRAY) if place in places), HOST)

    def place_of_call(self, node: ast.Call) -> str:
        module, name = _module(node.func), _last(node.func)
        if module == "np":
            return HOST if name in NUMBERS else HOST_ARRAY
        if module == "xp":
            return HOST if name in ("may_share_memory", "shares_memory", "result_type", "ndarray") else DEVICE
        if name in TO_HOST:
            return HOST
        if name in TO_HOST_ARRAY or (name in DRAWS and isinstance(node.func, ast.Attribute)):
            return HOST_ARRAY
        if isinstance(node.func, ast.Name):
            return DEVICE if name in MAKES_DEVICE else UNKNOWN
        if isinstance(node.func, ast.Attribute) and self.place(node.func.value) == DEVICE:
            return DEVICE
        return UNKNOWN

    # -- scopes and assignments

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        scope = {}
        for argument in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]:
            kind = ast.unparse(argument.annotation) if argument.annotation else ""
            scope[argument.arg] = DEVICE if kind.split(" |")[0] == "Array" else UNKNOWN
        self.places.append(scope)
        for statement in node.body:
            self.visit(statement)
            if "library() is not np" in ast.unparse(statement) and isinstance(statement, ast.If):
                break  # what follows is NumPy's alone
        self.places.pop()

    visit_AsyncFunctionDef = visit_FunctionDef  # type: ignore[assignment]

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self.places.append({argument.arg: UNKNOWN for argument in node.args.args})
        self.visit(node.body)
        self.places.pop()

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        for target in node.targets:
            self.assign(target, node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)
            self.assign(node.target, node.value)

    def assign(self, target: ast.AST, value: ast.AST) -> None:
        if isinstance(target, ast.Name):
            self.places[-1][target.id] = self.place(value)
        elif isinstance(target, (ast.Tuple, ast.List)):
            written_out = isinstance(value, (ast.Tuple, ast.List)) and len(value.elts) == len(target.elts)
            for number, one in enumerate(target.elts):
                if written_out:
                    self.assign(one, value.elts[number])
                else:
                    self.unpack(one, value)
        elif isinstance(target, ast.Subscript):
            self.visit(target)
            if self.place(target.value) == DEVICE and self.of_the_host(value):
                self.say(target, "a host array is written into a device array: move it with asarray() first")

    def of_the_host(self, value: ast.AST) -> bool:
        """A host array, or numbers written out as a list or tuple, which CuPy refuses in these places too."""
        return self.place(value) == HOST_ARRAY or isinstance(value, (ast.List, ast.Tuple))

    def unpack(self, target: ast.AST, value: ast.AST) -> None:
        """Give a name one part of a value."""
        if isinstance(target, ast.Name):
            self.places[-1][target.id] = DEVICE if self.place(value) in (DEVICE, SEVERAL) else UNKNOWN

    # -- what must not be

    def visit_Call(self, node: ast.Call) -> None:
        module, name = _module(node.func), _last(node.func)
        arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
        if module == "np":
            for argument in arguments:
                if self.place(argument) in (DEVICE, SEVERAL):
                    self.say(node, f"np.{name}() of a device array: use xp.{name}(), or to_numpy() first")
        elif module == "xp":
            self.check_library(node)
        elif isinstance(node.func, ast.Name) and name in MAKES_WAIT:
            if any(self.waits(name, argument) for argument in node.args[:1]):
                self.say(node, f"{name}() of a device array makes the CPU wait: use .item() or to_numpy()")
        elif module == "math" and any(self.place(argument) == DEVICE for argument in arguments):
            self.say(node, f"math.{name}() of a device array: use xp")
        elif isinstance(node.func, ast.Attribute) and self.place(node.func.value) == DEVICE:
            self.check_arguments(node, node.func.attr, METHODS.get(node.func.attr))
        self.generic_visit(node)

    def waits(self, name: str, argument: ast.AST) -> bool:
        """Of several arrays sum() launches additions and list() nothing; max() and its like compare, and wait."""
        place = self.place(argument)
        return place == DEVICE or (place == SEVERAL and name in ("max", "min", "any", "all", "sorted"))

    def check_library(self, node: ast.Call) -> None:
        path = _path(node.func)
        self.check_arguments(node, ".".join(path[1:]), _signature(path[1:]))
        if path[-1] not in FROM_HOST:
            for argument in [*node.args, *(k.value for k in node.keywords if k.arg not in ("axis", "shape", "dtype"))]:
                if self.place(argument) == HOST_ARRAY or (
                    path[1] in MANIFEST["ufuncs"] and isinstance(argument, ast.List)
                ):
                    self.say(node, f"a host array goes into {'.'.join(path)}: move it with asarray() first")

    def check_arguments(self, node: ast.Call, name: str, allowed: inspect.Signature | None) -> None:
        """Of a call of something CuPy has; that it has it is for visit_Attribute to say."""
        if allowed is None or any(isinstance(argument, ast.Starred) for argument in node.args):
            return
        try:
            allowed.bind(*node.args, **{keyword.arg: None for keyword in node.keywords if keyword.arg is not None})
        except TypeError as error:
            self.say(node, f"CuPy's {name}: {error}")

    def visit_Attribute(self, node: ast.Attribute) -> None:
        path = _path(node)
        if len(path) > 1 and path[0] == "xp":
            if path[1] in NOT_HERE:
                self.say(node, f"{'.'.join(path)}: {NOT_HERE[path[1]]}")
            elif path[-1] == "at":
                self.say(node, f"{'.'.join(path)}: its sums are atomic on a GPU, so their order varies")
            elif _signature(path[1:]) is None and path[1] not in ("__dict__", "ndarray") and path[1:] not in _MODULES:
                self.say(node, f"CuPy {MANIFEST['cupy']} has no {'.'.join(path[1:])}")
        elif self.place(node.value) == DEVICE and node.attr not in KNOWN and not node.attr.startswith("_"):
            self.say(node, f"CuPy's arrays have no {node.attr}")
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if self.place(node.value) == DEVICE:
            for part in node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]:
                if self.place(part) == HOST_ARRAY or isinstance(part, ast.List):
                    self.say(node, "a host array as an index of a device array: move it with asarray() first")
                if isinstance(part, ast.Slice):
                    for bound in (part.lower, part.upper, part.step):
                        if bound is not None and self.place(bound) == DEVICE:
                            self.say(node, "the bound of a slice lives on the device, so the CPU waits for it")
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        for one, other in ((node.left, node.right), (node.right, node.left)):
            if self.place(one) == DEVICE and self.place(other) == HOST_ARRAY:
                self.say(node, "a host array meets a device array: move it with asarray() first")
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if self.place(node.target) == DEVICE and self.of_the_host(node.value):
            self.say(node, "a host array meets a device array: move it with asarray() first")
        self.generic_visit(node)

    def condition(self, node: ast.AST, test: ast.AST) -> None:
        if self.place(test) == DEVICE:
            self.say(node, "the truth value of a device array makes the CPU wait: use .item()")

    def visit_If(self, node: ast.If) -> None:
        self.condition(node, node.test)
        self.generic_visit(node)

    visit_While = visit_IfExp = visit_Assert = visit_If  # type: ignore[assignment]

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        for value in node.values:
            self.condition(node, value)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not):
            self.condition(node, node.operand)
        self.generic_visit(node)

    def visit_For(self, node: ast.For) -> None:
        if self.place(node.iter) == DEVICE:
            self.say(node, "a loop over a device array launches a kernel for each row")
        if self.place(node.iter) == SEVERAL:
            self.unpack(node.target, node.iter)
        self.generic_visit(node)

    def visit_FormattedValue(self, node: ast.FormattedValue) -> None:
        if self.place(node.value) == DEVICE:
            self.say(node, "a device array in a text makes the CPU wait: use .item() or to_numpy()")
        self.generic_visit(node)


def _path(node: ast.AST) -> list[str]:
    """["xp", "add", "reduceat"] of xp.add.reduceat; [] of what does not begin with a name."""
    path: list[str] = []
    while isinstance(node, ast.Attribute):
        path.append(node.attr)
        node = node.value
    return [node.id, *reversed(path)] if isinstance(node, ast.Name) else []


def _module(node: ast.AST) -> str | None:
    path = _path(node)
    return path[0] if path and path[0] in ("np", "xp", "math") else None


def _last(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


_MODULES = [[name] for name in MODULES]


def _signature(path: list[str]) -> inspect.Signature | None:
    """CuPy's for a name below xp; None where there is no such name."""
    first, *more = path
    if more:
        if first in MODULES:
            return MODULES[first].get(more[0])
        return UFUNC_METHODS[more[0]] if more[0] in MANIFEST["ufunc_methods"].get(first, ()) else None
    if first in MANIFEST["ufuncs"]:
        return UFUNC
    return signature(None) if first in MANIFEST["constants"] else FUNCTIONS.get(first)


def library_problems() -> Iterator[str]:
    """Of every module of minilora."""
    for path in sorted(LIBRARY.rglob("*.py")):
        yield from problems(path.read_text(encoding="utf-8"), str(path.relative_to(LIBRARY.parent)))


if __name__ == "__main__":
    found = list(library_problems())
    print("\n".join(found) or f"Nothing found: every use of xp is one of CuPy {MANIFEST['cupy']}.")
    sys.exit(bool(found))
