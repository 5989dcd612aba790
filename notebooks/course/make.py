"""Make an nbgrader course out of the solved sources.

    python notebooks/course/make.py FOLDER [--release]

Writes FOLDER/nbgrader_config.py and FOLDER/source/NAME/NAME.ipynb, one assignment for each file of
notebooks/course/source; with --release also FOLDER/release/NAME/NAME.ipynb, the student version, by nbgrader itself.
FOLDER must be new or empty.

A cell's note says what it is to nbgrader: `# %% solution NAME`, which students fill in, or `# %% test NAME POINTS`.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import nbformat

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from percent import Cell, parse  # noqa: E402

SOURCES = sorted((HERE / "source").glob("*.py"))
CONFIG = 'c = get_config()\nc.CourseDirectory.course_id = "minilora"\nc.ExecutePreprocessor.timeout = 120\n'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a new or empty folder")
    parser.add_argument("--release", action="store_true", help="also make the student version, which needs nbgrader")
    options = parser.parse_args()
    try:
        make(options.folder)
        if options.release:
            release(options.folder)
    except (OSError, ValueError) as error:
        print(f"make.py: {error}", file=sys.stderr)
        return 2
    return 0


def make(folder: Path) -> None:
    """Write the course. Raises `ValueError` where the folder holds anything."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not an empty folder: name a new one, so that nothing is overwritten.")
    for source in SOURCES:
        place = folder / "source" / source.stem
        place.mkdir(parents=True)
        nbformat.write(notebook(source), place / f"{source.stem}.ipynb")
    (folder / "nbgrader_config.py").write_text(CONFIG, encoding="utf-8")


def notebook(source: Path) -> Any:
    """The solved assignment with nbgrader's marks."""
    cells = []
    for number, cell in enumerate(parse(source.read_text(encoding="utf-8"))):
        new = nbformat.v4.new_markdown_cell if cell.kind == "markdown" else nbformat.v4.new_code_cell
        made = new(cell.source, id=f"{source.stem}-{number}")
        if marks := nbgrader_marks(cell):
            made.metadata["nbgrader"] = marks
        cells.append(made)
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return nbformat.v4.new_notebook(cells=cells, metadata=kernel)


def nbgrader_marks(cell: Cell) -> dict[str, Any] | None:
    """What nbgrader is told of a cell; None for text and plain code. Raises `ValueError` for an unknown note."""
    kind, *words = cell.note.split() or [""]
    if not kind:
        return None
    if kind not in ("solution", "test") or len(words) != (2 if kind == "test" else 1):
        raise ValueError(f"A cell of an assignment is `solution NAME` or `test NAME POINTS`, not {cell.note!r}.")
    test = kind == "test"
    marks = {
        "schema_version": 3,
        "grade_id": f"{words[0]}_{kind}",
        "grade": test,
        "solution": not test,
        "locked": test,
        "task": False,
    }
    return {**marks, "points": int(words[1])} if test else marks


def release(folder: Path) -> None:
    """Let nbgrader make the student version. Raises `ValueError` where nbgrader is missing or fails."""
    api = grader(folder)
    for source in SOURCES:
        done = api.generate_assignment(source.stem, force=True, create=True)  # it does not raise
        if not done["success"]:
            raise ValueError(f"nbgrader could not release {source.stem}: {done.get('error') or done.get('log')}")


def grader(folder: Path) -> Any:
    """nbgrader's interface to the course in this folder. Raises `ValueError` where nbgrader is missing."""
    try:
        from nbgrader.apps import NbGraderAPI
        from traitlets.config import Config
    except ImportError as error:
        raise ValueError('--release needs nbgrader: pip install -e ".[course]".') from error
    # It starts `alembic` by name, which is not found where the environment is used without being activated.
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    config = Config()
    config.CourseDirectory.root = str(folder.absolute())
    config.CourseDirectory.course_id = "minilora"
    return NbGraderAPI(config=config)


if __name__ == "__main__":
    sys.exit(main())
