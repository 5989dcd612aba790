"""Grade what was handed in, one notebook after the other, whatever is wrong with some of them.

    python notebooks/course/grade.py FOLDER [NAME ...]

FOLDER was made by `make.py FOLDER --release`. Each FOLDER/submitted/STUDENT/NAME (only the assignments named, if any
are) is graded by nbgrader and gets feedback in FOLDER/feedback/STUDENT/NAME. At the end stands a table: who, points,
what went wrong. FOLDER/grades.csv has the points of all assignments so far, and nothing where nothing was handed in or
it could not be graded. Ends with 0 where all was graded, with 1 where something was not, with 2 without such a folder.

Grading runs the code of students: use an account, or a container, where it can do no harm.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
import shutil
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from make import SOURCES, grader, need_the_extra
from tqdm import tqdm

from minilora.interop.files import write_text

NAMES = [source.stem for source in SOURCES]


@dataclass
class Result:
    student: str
    assignment: str
    points: str  # "10 of 13", or "" where it could not be graded
    notes: list[str]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="made by make.py FOLDER --release")
    parser.add_argument("names", metavar="NAME", nargs="*", help="assignments (default: all that were handed in)")
    options = parser.parse_args()
    try:
        need_the_extra()
        handed_in = find(options.folder, options.names)
        api = grader(options.folder)
    except (OSError, ValueError) as error:
        print(f"grade.py: {error}", file=sys.stderr)
        return 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of nbgrader's own dependencies
        results = [grade(api, options.folder, place) for place in tqdm(handed_in, "grading", leave=False)]
        write_grades(api, options.folder)
    print_table(results)
    print(f"\nAll points are in {options.folder / 'grades.csv'}, feedback is in {options.folder / 'feedback'}.")
    return 0 if all(result.points for result in results) else 1


def find(folder: Path, names: list[str]) -> list[Path]:
    """What was handed in, FOLDER/submitted/STUDENT/NAME. Raises `ValueError` where there is nothing to grade."""
    if missing := [name for name in NAMES if not released(folder, name).is_file()]:
        raise ValueError(f"{released(folder, missing[0])} is not there: make it with make.py {folder} --release.")
    if unknown := [name for name in names if name not in NAMES]:
        raise ValueError(f"there is no assignment {unknown[0]}: name one or more of {', '.join(NAMES)}.")
    places = [place for place in sorted((folder / "submitted").glob("[!.]*/[!.]*")) if not names or place.name in names]
    if not places:
        raise ValueError(f"nothing was handed in: put it at {folder}/submitted/STUDENT/NAME/NAME.ipynb.")
    return places


def released(folder: Path, name: str) -> Path:
    return folder / "release" / name / f"{name}.ipynb"


def grade(api: Any, folder: Path, place: Path) -> Result:
    """Grade one hand-in. Whatever is wrong with it is said in the result."""
    student, name = place.parent.name, place.name
    result = Result(student, name, "", [])
    try:
        prepare(folder, place, result.notes)
        api.coursedir.submitted_directory = "checked"
        done = api.autograde(name, student)
        if not done["success"]:
            raise ValueError(f"nbgrader could not grade it: {reason(done)}")
        slow = (folder / "autograded" / student / name / f"{name}.ipynb").read_text(encoding="utf-8")
        if cells := slow.count('"ename": "CellTimeoutError"'):
            result.notes.append(f"{cells} of its cells took too long and were stopped")
        if not (done := api.generate_feedback(name, student))["success"]:
            result.notes.append(f"there is no feedback: {reason(done)}")
        with api.gradebook as gradebook:
            submission = gradebook.find_submission(name, student)
            result.points = f"{submission.score:g} of {submission.max_score:g}"
    except Exception as error:  # one hand-in, whatever is in it, stops no other
        result.notes.append(str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}")
        forget(api, name, student)
    return result


def prepare(folder: Path, place: Path, notes: list[str]) -> None:
    """Copy a hand-in to FOLDER/checked, mended so far that nbgrader can grade it; `notes` says what was mended.

    Raises `ValueError` where there is no notebook in it.
    """
    import nbformat

    student, name = place.parent.name, place.name
    if name not in NAMES or not place.is_dir():
        raise ValueError(f"{place} should be a folder with the name of an assignment: {', '.join(NAMES)}")
    found = sorted(path.name for path in place.glob("*.ipynb"))
    if not found:
        raise ValueError(f"there is no notebook in {place}")
    if f"{name}.ipynb" not in found:
        if len(found) > 1:
            raise ValueError(f"none of {', '.join(found)} is called {name}.ipynb")
        notes.append(f"{found[0]} was taken for {name}.ipynb")
    chosen = place / (f"{name}.ipynb" if f"{name}.ipynb" in found else found[0])
    try:
        notebook = nbformat.read(chosen, as_version=4)
    except Exception as error:  # what nbformat raises depends on what is wrong
        raise ValueError(f"{chosen.name} is no notebook that can be read ({type(error).__name__})") from error
    mend(notebook, nbformat.read(released(folder, name), as_version=4), notes)

    checked = folder / "checked" / student / name
    shutil.rmtree(checked, ignore_errors=True)
    shutil.copytree(place, checked, ignore=shutil.ignore_patterns("*.ipynb"))
    nbformat.write(notebook, checked / f"{name}.ipynb")


def mend(notebook: Any, release: Any, notes: list[str]) -> None:
    """Give a hand-in the marks of the student version: every marked cell once, those that are missing put back."""
    marked = {cell.metadata.nbgrader.grade_id: cell for cell in release.cells if "nbgrader" in cell.metadata}
    seen = set()
    for cell in reversed(notebook.cells):  # of copies the last one counts, as it does when the notebook runs
        marks = cell.metadata.pop("nbgrader", {})
        name = marks.get("grade_id") if isinstance(marks, dict) else None
        if name in seen:
            notes.append(f"the cell {name} stood there twice")
        elif name in marked:
            seen.add(name)
            cell.metadata.nbgrader = marked[name].metadata.nbgrader
            if marked[name].metadata.nbgrader.locked and cell.source.strip() != marked[name].source.strip():
                notes.append(f"the cell {name} was changed; the original was used")
    missing = [name for name, cell in marked.items() if name not in seen and cell.metadata.nbgrader.locked]
    if missing:
        notes.append(f"missing and put back: {', '.join(missing)}")
    for cell in map(marked.get, missing):  # definitions are needed before everything, tests after everything
        notebook.cells.insert(len(notebook.cells) if cell.metadata.nbgrader.grade else 0, cell)
    notebook.metadata.kernelspec = release.metadata.kernelspec
    notebook.nbformat_minor = max(notebook.nbformat_minor, release.nbformat_minor)


def reason(done: dict[str, Any]) -> str:
    """What nbgrader says went wrong, in a line."""
    errors = re.findall(r"\[ERROR\] (.+)", done.get("log", "")) or done.get("error", "").strip().splitlines()[-1:]
    return errors[0] if errors else "it does not say why"


def forget(api: Any, name: str, student: str) -> None:
    """Take the empty submission out of nbgrader's books that it made before it failed."""
    from nbgrader.api import MissingEntry

    with api.gradebook as gradebook:
        try:
            gradebook.remove_submission(name, student)
        except MissingEntry:
            return


def print_table(results: list[Result]) -> None:
    rows = [("student", "assignment", "points", "what went wrong")]
    rows += [(r.student, r.assignment, r.points or "none", "; ".join(r.notes)) for r in results]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        print("  ".join([*(word.ljust(width) for word, width in zip(row, widths, strict=False)), row[3]]).rstrip())


def write_grades(api: Any, folder: Path) -> None:
    """One line for each student, one column for each assignment; blank where nothing was graded."""
    from nbgrader.api import MissingEntry

    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["student", *NAMES])
    with api.gradebook as gradebook:
        for student in sorted({place.parent.name for place in find(folder, [])}):
            points = []
            for name in NAMES:
                try:
                    points.append(f"{gradebook.find_submission(name, student).score:g}")
                except MissingEntry:
                    points.append("")
            writer.writerow([student, *points])
    write_text(folder / "grades.csv", table.getvalue())


if __name__ == "__main__":
    sys.exit(main())
