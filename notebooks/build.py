"""Make the notebooks from their sources, or check that the committed ones still say what is true.

    python notebooks/build.py [NAME ...]            execute source/NAME.py, write NAME.ipynb
    python notebooks/build.py --check [NAME ...]    execute again, compare with what is committed, write nothing

Each notebook runs in a fresh kernel, as many side by side as there are cores, with one BLAS thread. `--check` ends with
1 and names every cell whose source is not the committed one, or whose printed words or numbers differ by more than the
cell allows (see percent.py). Pictures are drawn again but not compared: their bytes depend on the machine's fonts.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from percent import agrees, parse, tolerance

from minilora.interop.files import check_output, write_text
from minilora.tools.sweep import available_cores

HERE = Path(__file__).parent
SCREEN = 40  # lines of output a cell may print
CELL_LIMIT = 600  # seconds
_WIDGET = "application/vnd.jupyter.widget-view+json"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="such as 03_lora; all of them where none is given")
    parser.add_argument("--check", action="store_true", help="compare with the committed notebooks, write nothing")
    parser.add_argument("--workers", type=int, default=available_cores(), help="notebooks side by side (the cores)")
    options = parser.parse_args()
    names = options.names or sorted(path.stem for path in (HERE / "source").glob("*.py"))
    if unknown := [name for name in names if not (HERE / "source" / f"{name}.py").exists()]:
        parser.error(f"there is no notebook {', '.join(unknown)} in notebooks/source.")
    if not options.check:
        for name in names:
            check_output(HERE / f"{name}.ipynb")
    os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", PYDEVD_DISABLE_FILE_VALIDATION="1")
    faults = []
    with ProcessPoolExecutor(options.workers) as pool:
        for name, (made, seconds, error) in zip(names, pool.map(execute, names), strict=True):
            found = [error] if error else problems(made)
            if options.check and not error:
                found += differences(name, made)
            print(f"{name}: {'failed' if found else 'as committed' if options.check else 'made'}, {seconds:.0f} s")
            faults += [f"{name}, {fault}" for fault in found]
            if not found and not options.check:
                write_text(HERE / f"{name}.ipynb", nbformat.writes(made) + "\n")
    print("\n".join(faults))
    return 1 if faults else 0


def convert(name: str) -> Any:
    """The notebook of a source, not executed."""
    notebook = nbformat.v4.new_notebook()
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, part in enumerate(parse((HERE / "source" / f"{name}.py").read_text(encoding="utf-8"))):
        new = nbformat.v4.new_markdown_cell if part.kind == "markdown" else nbformat.v4.new_code_cell
        cell = new(part.source, id=f"{name}-{number}")
        if part.note:
            tolerance(part.note)
            cell.metadata["tags"] = [part.note]
        notebook.cells.append(cell)
    return notebook


def execute(name: str) -> tuple[Any, float, str]:
    """The executed notebook, its seconds, and in words what stopped it."""
    start = time.perf_counter()
    try:
        notebook = convert(name)
        resources = {"metadata": {"path": str(HERE)}}
        NotebookClient(notebook, timeout=CELL_LIMIT, resources=resources, record_timing=False).execute()
    except CellExecutionError as error:
        where = next(i for i, cell in enumerate(notebook.cells) if _failed(cell))
        last = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()[-1]
        return notebook, time.perf_counter() - start, f"{_named(notebook.cells[where], where)}: {last}"
    except ValueError as error:
        return None, time.perf_counter() - start, str(error)
    for cell in notebook.cells:
        if cell.cell_type == "code":  # a widget lives as long as its kernel
            cell.outputs = _joined([output for output in cell.outputs if _WIDGET not in output.get("data", {})])
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook, time.perf_counter() - start, ""


def _joined(outputs: list[Any]) -> list[Any]:
    """What is printed in a row as one output: where the kernel cuts it is chance."""
    found: list[Any] = []
    for output in outputs:
        if found and output.output_type == "stream" == found[-1].output_type and output.name == found[-1].name:
            found[-1].text += output.text
        else:
            found.append(output)
    return found


def problems(notebook: Any) -> list[str]:
    """What no notebook may have: output nobody says how to compare, warnings, more than a screen of text."""
    found = []
    for i, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        text = printed(cell)
        if text and not cell.metadata.get("tags"):
            found.append(f"{_named(cell, i)}: prints, and says neither exact nor measured N% nor illustration")
        if any(output.get("name") == "stderr" for output in cell.outputs):
            found.append(f"{_named(cell, i)}: prints to stderr: {text.strip().splitlines()[-1]}")
        if text.count("\n") > SCREEN:
            found.append(f"{_named(cell, i)}: prints {text.count(chr(10))} lines, more than a screen of {SCREEN}")
    return found


def differences(name: str, now: Any) -> list[str]:
    """The cells that are not as committed."""
    path = HERE / f"{name}.ipynb"
    if not path.exists():
        return ["the whole notebook: it was never built"]
    committed = nbformat.read(path, as_version=4)
    found = []
    for i, (old, new) in enumerate(zip(committed.cells, now.cells, strict=False)):
        if (old.cell_type, old.source, old.metadata) != (new.cell_type, new.source, new.metadata):
            found.append(f"{_named(new, i)}: its source is not the committed one")
        elif new.cell_type == "code" and not agrees(printed(old), printed(new), (*new.metadata.get("tags", ()), "")[0]):
            found.append(f"{_named(new, i)}: {_first_difference(printed(old), printed(new))}")
    if len(committed.cells) != len(now.cells):
        found.append(f"the whole notebook: {len(committed.cells)} cells are committed, its source has {len(now.cells)}")
    return found


def printed(cell: Any) -> str:
    """All text that a cell gives out; of a picture only the picture counts."""
    parts = []
    for output in cell.outputs:
        if output.output_type == "stream":
            parts.append(output.text)
        elif "image/png" not in output.get("data", {}):
            parts.append(output.get("data", {}).get("text/plain", ""))
    return "\n".join(parts)


def _failed(cell: Any) -> bool:
    return any(output.output_type == "error" for output in cell.get("outputs", []))


def _named(cell: Any, number: int) -> str:
    return f"cell {number} ({cell.source.splitlines()[0][:60] if cell.source else 'empty'})"


def _first_difference(committed: str, now: str) -> str:
    for old, new in zip(committed.splitlines(), now.splitlines(), strict=False):
        if old != new:
            return f"committed {old!r}, now {new!r}"
    return f"{len(committed.splitlines())} lines are committed, now {len(now.splitlines())}"


if __name__ == "__main__":
    sys.exit(main())
