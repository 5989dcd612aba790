"""Make an nbgrader course out of the solved sources.

    python notebooks/course/make.py FOLDER [--release]

Writes FOLDER/nbgrader_config.py and FOLDER/source/NAME/NAME.ipynb, one assignment for each file of
notebooks/course/source; with --release also FOLDER/release/NAME/NAME.ipynb, the student version, by nbgrader itself.
FOLDER must be new or empty. `grade.py` grades what is handed in.

A cell's note says what it is to nbgrader: `# %% given NAME` is code that students read and cannot change,
`# %% solution NAME` what they fill in, `# %% test NAME PART POINTS` a test of one part of it, with its own points.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from percent import Cell, parse  # noqa: E402

SOURCES = sorted((HERE / "source").glob("*.py"))
WORDS = {"given": 1, "solution": 1, "test": 3}
CONFIG = """\
c = get_config()
c.CourseDirectory.course_id = "minilora"
c.Execute.timeout = 30  # seconds a cell may take; then it has failed, and the next one runs
# Errors are one sentence, without the lines around them, and feedback shows no hidden test.
c.Execute.extra_arguments = ["--InteractiveShell.xmode=Minimal", "--IPKernelApp.log_level=40"]
c.GenerateFeedback.preprocessors = [
    "nbgrader.preprocessors.GetGrades",
    "nbgrader.preprocessors.ClearHiddenTests",
    "nbconvert.preprocessors.CSSHTMLHeaderPreprocessor",
]
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a new or empty folder")
    parser.add_argument("--release", action="store_true", help="also make the student version, by nbgrader")
    options = parser.parse_args()
    folder = options.folder
    try:
        need_the_extra()
        make(folder)
        print(f"Made {len(SOURCES)} assignments, solved, in {folder / 'source'}.")
        if options.release:
            release(folder)
            print(f"Made their student versions in {folder / 'release'}.")
            print(f"Next: give those out, put what comes back at {folder}/submitted/STUDENT/NAME/NAME.ipynb,")
            print(f"and grade it with `python {Path(sys.argv[0]).with_name('grade.py')} {folder}`.")
        else:
            print("Next: change what you like there; `nbgrader generate_assignment NAME`, run in that folder, makes a")
            print("student version. (With --release they are made at once.)")
    except (OSError, ValueError) as error:
        print(f"make.py: {error}", file=sys.stderr)
        return 2
    return 0


def need_the_extra() -> None:
    """Raises `ValueError` where nbformat or nbgrader is missing."""
    try:
        import nbformat  # noqa: F401
        import nbgrader  # noqa: F401
    except ImportError as error:
        raise ValueError(f'the course needs {error.name}, which is missing: pip install -e ".[course]".') from error


def make(folder: Path) -> None:
    """Write the course. Raises `ValueError` where the folder holds anything."""
    import nbformat

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not an empty folder: name a new one, so that nothing is overwritten.")
    for source in SOURCES:
        place = folder / "source" / source.stem
        place.mkdir(parents=True)
        nbformat.write(notebook(source), place / f"{source.stem}.ipynb")
    (folder / "nbgrader_config.py").write_text(CONFIG, encoding="utf-8")


def notebook(source: Path) -> Any:
    """The solved assignment with nbgrader's marks."""
    import nbformat

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
    if len(words) != WORDS.get(kind):
        raise ValueError(
            f"A cell of an assignment is `given NAME`, `solution NAME` or `test NAME PART POINTS`, not {cell.note!r}."
        )
    test = kind == "test"
    marks = {
        "schema_version": 3,
        "grade_id": "_".join((*words[:2], kind)),
        "grade": test,
        "solution": kind == "solution",
        "locked": kind != "solution",
        "task": False,
    }
    return {**marks, "points": int(words[2])} if test else marks


def release(folder: Path) -> None:
    """Let nbgrader make the student version. Raises `ValueError` where it fails."""
    api = grader(folder)
    for source in SOURCES:
        done = api.generate_assignment(source.stem, force=True, create=True)  # it does not raise
        if not done["success"]:
            raise ValueError(f"nbgrader could not release {source.stem}: {done.get('error') or done.get('log')}")


def grader(folder: Path) -> Any:
    """nbgrader's interface to the course in this folder, with the folder's own settings."""
    from nbgrader.apps import NbGraderAPI
    from traitlets.config import PyFileConfigLoader

    # It starts `alembic` by name, which is not found where the environment is used without being activated.
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    config = PyFileConfigLoader("nbgrader_config.py", path=str(folder)).load_config()
    config.CourseDirectory.root = str(folder.absolute())
    return NbGraderAPI(config=config)


if __name__ == "__main__":
    sys.exit(main())
