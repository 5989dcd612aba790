"""The course: solved, it gets every point; untouched, none; each usual mistake costs exactly its own exercise."""

import copy
import importlib.util
import json
import logging
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from minilora.tools.course import expect_close, student_rng

COURSE = Path(__file__).parent.parent / "notebooks" / "course"
sys.path.insert(0, str(COURSE.parent))

from percent import parse

pytestmark = pytest.mark.numpy_only("nbgrader computes in processes of its own")

SOURCES = {path.stem: path for path in sorted((COURSE / "source").glob("*.py"))}
POINTS = {
    "hw1_gradients": {"matmul": 2, "broadcast": 2, "layer_norm": 3, "cross_entropy": 3},
    "hw2_lora": {"one_matrix": 3, "why_it_learns": 3, "lora_linear": 4, "merge": 2, "count": 1},
    "hw3_alpha_and_rank": {"alpha": 4, "planted": 3, "best": 2},
    "hw4_inside_and_beyond": {"phi": 2, "many": 3, "backend": 2},
}
# (assignment, exercise, what is wrong): pairs of a piece of the solution and what stands in its place
WRONG = {
    ("hw1_gradients", "matmul", "a forgotten transpose"): [("A.swapaxes(-1, -2) @ G", "A @ G")],
    ("hw1_gradients", "broadcast", "only the first axis is summed"): [
        ("g.sum(axis=axes, keepdims=True).reshape(shape)", "g.sum(axis=0, keepdims=True).reshape(shape)"),
    ],
    ("hw1_gradients", "broadcast", "nothing is summed"): [("g.sum(axis=axes, keepdims=True).reshape(shape)", "g")],
    ("hw1_gradients", "layer_norm", "the term of the variance is missing"): [
        (" - x_hat * (g * x_hat).mean(axis=-1, keepdims=True)", ""),
    ],
    ("hw1_gradients", "cross_entropy", "divided by all rows, ignored ones too"): [("counted.sum()", "len(targets)")],
    ("hw1_gradients", "cross_entropy", "ignored rows have a gradient"): [("    d[~counted] = 0\n", "")],
    ("hw1_gradients", "cross_entropy", "not divided by the count"): [(" / counted.sum()", "")],
    ("hw2_lora", "one_matrix", "α without /r"): [("alpha / len(A)", "alpha")],
    ("hw2_lora", "one_matrix", "h = W₀x + BA without its x"): [("s * B @ (A @ x)\n", "(s * B @ A).sum(axis=1)\n")],
    ("hw2_lora", "why_it_learns", "B believed stuck"): [
        ('"dL/dB is exactly zero at step 0": False', '"dL/dB is exactly zero at step 0": True'),
    ],
    ("hw2_lora", "why_it_learns", "s instead of s²"): [("s**2", "s")],
    ("hw2_lora", "lora_linear", "A and B both zero"): [
        ("rng.normal(0, 1 / np.sqrt(in_features), (r, in_features))", "np.zeros((r, in_features))"),
    ],
    ("hw2_lora", "lora_linear", "α without /r"): [("alpha / r", "alpha")],
    ("hw2_lora", "lora_linear", "the gradient of A forgets the scaling"): [
        ("self.scaling * (g @ self.B).T @ x", "(g @ self.B).T @ x"),
    ],
    ("hw2_lora", "merge", "+= and -= drift"): [
        ("self.weight = self.W0 + delta", "self.weight += delta; self.delta = delta"),
        ("self.weight = self.W0\n        ### END", "self.weight -= self.delta\n        ### END"),
    ],
    ("hw2_lora", "count", "out counted twice"): [("out_features + in_features)", "2 * out_features)")],
    ("hw3_alpha_and_rank", "alpha", "the folk version: lr times c"): [
        ("lr * c**0.5, std * c**0.5, eps / c**0.5", "lr * c, std, eps"),
    ],
    ("hw3_alpha_and_rank", "alpha", "the start is left as it was"): [("lr * c, std * c**0.5, eps", "lr * c, std, eps")],
    ("hw3_alpha_and_rank", "planted", "noise counted as rank"): [("1e-3 * s[0]", "0")],
    ("hw3_alpha_and_rank", "planted", "always two"): [("int((s > 1e-3 * s[0]).sum())", "2")],
    ("hw3_alpha_and_rank", "best", "the smallest instead of the largest"): [
        ("(U[:, :k] * s[:k]) @ Vh[:k]", "(U[:, len(s) - k:] * s[len(s) - k:]) @ Vh[len(s) - k:]"),
    ],
    ("hw4_inside_and_beyond", "phi", "divided by max(i, j)"): [("min(i, j)", "max(i, j)")],
    ("hw4_inside_and_beyond", "many", "one adapter for all"): [
        ("A[which]", "A[which * 0]"),
        ("B[which]", "B[which * 0]"),
    ],
    ("hw4_inside_and_beyond", "backend", "np on an array of the device"): [("xp.tanh", "np.tanh")],
}  # fmt: skip


@pytest.fixture(scope="module")
def make():
    pytest.importorskip("nbformat", reason="the extra `course` is not installed")
    specification = importlib.util.spec_from_file_location("make_course", COURSE / "make.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


# ---- without nbgrader --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOURCES)
def test_every_exercise_has_a_solution_a_visible_and_a_hidden_test(name):
    cells = parse(SOURCES[name].read_text(encoding="utf-8"))
    solutions = [cell.note.split()[1] for cell in cells if cell.note.startswith("solution")]
    tests = {cell.note.split()[1]: cell for cell in cells if cell.note.startswith("test")}
    assert solutions == list(tests) == list(POINTS[name])
    for exercise, cell in tests.items():
        assert int(cell.note.split()[2]) == POINTS[name][exercise]
        visible, hidden = cell.source.split("### BEGIN HIDDEN TESTS")
        assert "expect_close(" in visible or "assert" in visible
        assert "expect_close(" in hidden or "assert" in hidden
        assert "student_rng(STUDENT" in cell.source or exercise == "count"


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("student", ["student", "박지원"])
def test_the_solved_version_passes_for_any_student(name, student):
    source = SOURCES[name].read_text(encoding="utf-8").replace('STUDENT = "student"', f"STUDENT = {student!r}")
    exec(compile(source, name, "exec"), {"__name__": name})


def test_there_are_fifteen_exercises_and_a_dozen_mistakes():
    assert sum(len(points) for points in POINTS.values()) == 15
    assert len(WRONG) >= 12 and {(a, e) for a, e, _ in WRONG} == {(a, e) for a in POINTS for e in POINTS[a]}


def test_students_get_numbers_of_their_own_and_always_the_same_ones():
    first, again, other, elsewhere = (
        student_rng(*who).normal(size=3) for who in (("a", "x"), ("a", "x"), ("b", "x"), ("a", "y"))
    )
    assert np.array_equal(first, again) and not np.array_equal(first, other) and not np.array_equal(first, elsewhere)


@pytest.mark.parametrize(
    ("actual", "message"),
    [
        ([1.0, 2.0], r"should have shape \(3,\); yours has \(2,\)"),
        ([1.0, 2.0, 4.0], r"at \(2,\) should be 3; yours is 4"),
        ([1.0, np.nan, 3.0], r"at \(1,\) should be 2; yours is nan"),
        (["a", "b", "c"], "should be numbers"),
    ],
)
def test_expect_close_says_what_is_wrong(actual, message):
    expect_close([1.0, 2.0, 3.0 + 1e-12], [1.0, 2.0, 3.0], "answer")
    with pytest.raises(AssertionError, match=message):
        expect_close(actual, [1.0, 2.0, 3.0], "answer")


def test_a_folder_that_holds_something_is_left_alone(make, tmp_path, capsys, monkeypatch):
    (tmp_path / "kept.txt").write_text("mine")
    monkeypatch.setattr(sys, "argv", ["make.py", str(tmp_path)])
    assert make.main() == 2
    assert "is not an empty folder" in capsys.readouterr().err and list(tmp_path.iterdir()) == [tmp_path / "kept.txt"]


# ---- with nbgrader -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def graded(make, tmp_path_factory):
    """(scores, release folder): scores[assignment][student][exercise] after nbgrader has graded everyone."""
    pytest.importorskip("nbgrader", reason="the extra `course` is not installed")
    import nbformat

    folder = tmp_path_factory.mktemp("nbgrader") / "course"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of nbgrader's own dependencies
        make.make(folder)
        make.release(folder)
        api = make.grader(folder)
        logging.getLogger("traitlets").setLevel(logging.CRITICAL)  # every failing cell, which is what we plant
        scores = {}
        for name in SOURCES:
            solved = nbformat.read(folder / "source" / name / f"{name}.ipynb", as_version=4)
            untouched = nbformat.read(folder / "release" / name / f"{name}.ipynb", as_version=4)
            students = {"solved": solved, "untouched": untouched}
            for number, (assignment, exercise, _) in enumerate(WRONG):
                if assignment == name:
                    students[f"wrong{number}"] = with_mistake(solved, exercise, list(WRONG.values())[number])
            scores[name] = {}
            for student, notebook in students.items():
                place = folder / "submitted" / student / name
                place.mkdir(parents=True)
                nbformat.write(notebook, place / f"{name}.ipynb")
                done = api.autograde(name, student, force=True, create=True)
                assert done["success"], done
                with api.gradebook as gradebook:
                    grades = gradebook.find_submission_notebook(name, name, student).grades
                    scores[name][student] = {g.name.removesuffix("_test"): g.score for g in grades}
    return scores, folder / "release"


def with_mistake(solved, exercise, replacements):
    notebook = copy.deepcopy(solved)
    cell = next(c for c in notebook.cells if c.metadata.get("nbgrader", {}).get("grade_id") == f"{exercise}_solution")
    for right, wrong in replacements:
        assert right in cell.source, f"{exercise}: {right!r} is no part of the solution any more"
        cell.source = cell.source.replace(right, wrong)
    return notebook


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_the_solved_version_gets_full_marks_and_the_untouched_one_none(name, graded):
    scores, _ = graded
    assert scores[name]["solved"] == POINTS[name]
    assert scores[name]["untouched"] == dict.fromkeys(POINTS[name], 0)


@pytest.mark.slow
@pytest.mark.parametrize("mistake", list(WRONG), ids=lambda mistake: f"{mistake[1]}: {mistake[2]}")
def test_a_usual_mistake_loses_the_points_of_its_exercise_and_no_others(mistake, graded):
    scores, _ = graded
    name, exercise, _ = mistake
    expected = {**POINTS[name], exercise: 0}
    assert scores[name][f"wrong{list(WRONG).index(mistake)}"] == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_no_solution_and_no_hidden_test_is_left_for_students(name, graded):
    _, release = graded
    cells = json.loads((release / name / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells)
    assert "SOLUTION" not in text and "HIDDEN" not in text
    assert text.count("raise NotImplementedError()") >= len(POINTS[name])
    source, marks = SOURCES[name].read_text(encoding="utf-8"), r"### BEGIN (?:SOLUTION|HIDDEN TESTS)\n(.*?)### END"
    secrets, shown = re.findall(marks, source, flags=re.DOTALL), re.sub(marks, "", source, flags=re.DOTALL)
    lines = [line.strip() for secret in secrets for line in secret.splitlines()]
    assert not [line for line in lines if len(line) > 20 and line not in shown and line in text]
