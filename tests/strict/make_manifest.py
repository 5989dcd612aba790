"""What the real CuPy has: names, signatures, attributes of arrays. Needs `cupy` beside minilora, and no GPU.

    pip install "cupy-cuda13x>=14.2,<14.3"
    python tests/strict/make_manifest.py        # writes cupy_manifest.json beside it
    python tests/strict/make_manifest.py --check  # exit 1 where the committed one differs

A signature is a list of [name, kind, has a default]; null where CuPy tells none.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cupy
import numpy as np

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parents[1]))
from strict.library import that_numpy_has

PATH = Path(__file__).with_name("cupy_manifest.json")
MODULES = ("linalg", "fft")
UFUNC_METHODS = ("reduce", "accumulate", "reduceat", "outer", "at")
# Which ufunc methods work is decided when they are called: add has all, multiply two, the others only outer
# (cupy/_core/_kernel.pyx). `at` is left out: its sums are atomic.
OF_UFUNC = {"add": ["reduce", "accumulate", "reduceat", "outer"], "multiply": ["reduce", "accumulate", "outer"]}


def parameters(thing: Callable) -> list[list[Any]] | None:
    """Of a function of Python; of one written in Cython, whose first line of documentation says it."""
    try:
        found = inspect.signature(thing)
    except (ValueError, TypeError):
        return from_documentation((thing.__doc__ or "").strip())
    return [[p.name, p.kind.name, p.default is not p.empty] for p in found.parameters.values() if p.name != "self"]


def from_documentation(text: str) -> list[list[Any]] | None:
    """From "_ndarray_base.take(self, indices, Py_ssize_t axis=None, *, out=None) -> ...\""""
    line = text.partition("\n")[0]
    if "(" not in line or ")" not in line:
        return None
    kind, result = "POSITIONAL_OR_KEYWORD", []
    for part in line[line.index("(") + 1 : line.rindex(")") if "->" not in line else line.index(") ->")].split(","):
        name, _, default = part.strip().partition("=")
        if name in ("self", ""):
            continue
        if name == "/":
            result = [[before, "POSITIONAL_ONLY", optional] for before, _, optional in result]
        elif name == "*":
            kind = "KEYWORD_ONLY"
        elif name.startswith("**"):
            result.append([name[2:], "VAR_KEYWORD", False])
        elif name.startswith("*"):
            result.append([name[1:], "VAR_POSITIONAL", False])
            kind = "KEYWORD_ONLY"
        else:
            result.append([name.split()[-1], kind, bool(default)])  # without the C type
    return result


def functions(module: Any, of_numpy: Any) -> dict[str, list[list[Any]] | None]:
    """Those that NumPy has too: the library may use no others."""
    return {
        name: parameters(getattr(module, name))
        for name in sorted(dir(module))
        if not name.startswith("_")
        and callable(getattr(module, name))
        and not isinstance(getattr(module, name), (type, cupy.ufunc))
        and callable(getattr(of_numpy, name, None))
    }


def manifest() -> dict[str, Any]:
    public = [name for name in sorted(dir(cupy)) if not name.startswith("_") and hasattr(np, name)]
    of_array = [name for name in dir(cupy.ndarray) if not name.startswith("_") and hasattr(np.ndarray, name)]
    methods = [name for name in of_array if callable(getattr(cupy.ndarray, name))]
    return {
        "cupy": cupy.__version__,
        "functions": functions(cupy, np),
        "ufuncs": [name for name in public if isinstance(getattr(cupy, name), cupy.ufunc)],
        "ufunc_arguments": [
            name
            for name, kind, _ in from_documentation(cupy.add.__doc__.replace("\\", "")) or []
            if kind != "POSITIONAL_ONLY"
        ],
        "ufunc_methods": {
            name: OF_UFUNC.get(name, ["outer"]) for name in public if isinstance(getattr(cupy, name), cupy.ufunc)
        },
        "ufunc_method_signatures": {name: parameters(getattr(cupy.ufunc, name)) for name in UFUNC_METHODS},
        "constants": [
            name for name in public if isinstance(getattr(cupy, name), (type, float, type(None))) and name != "ndarray"
        ],
        "modules": {name: functions(getattr(cupy, name), getattr(np, name)) for name in MODULES},
        "ndarray": {
            "attributes": [name for name in of_array if name not in methods],
            "methods": {
                "get": parameters(cupy.ndarray.get),
                **{name: parameters(getattr(cupy.ndarray, name)) for name in methods},
            },
        },
    }


if __name__ == "__main__":
    made = json.loads(json.dumps(manifest()))
    if "--check" in sys.argv:
        same = made == that_numpy_has(json.loads(PATH.read_text(encoding="utf-8")))
        sys.exit(0 if same else f"{PATH} is not what CuPy {cupy.__version__} has.")
    PATH.write_text(json.dumps(made, separators=(",", ":"), sort_keys=True) + "\n", encoding="utf-8")
