"""The course: filled in as a student would, it gets every point; untouched, none; a mistake costs exactly its parts."""

import ast
import builtins
import contextlib
import copy
import csv
import html
import inspect
import io
import json
import re
import symtable
import sys
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from minilora.tools.course import expect_close, student_rng, yours

COURSE = Path(__file__).parents[2] / "notebooks" / "course"
sys.path[:0] = [str(COURSE.parent), str(COURSE)]

import grade
import make
from percent import parse

pytestmark = pytest.mark.numpy_only("nbgrader computes in processes of its own")

SOURCES = {path.stem: path for path in sorted((COURSE / "source").glob("*.py"))}
# what each part of each exercise is worth; the first names are those of the README's table
POINTS = {
    "hw1_gradients": {
        "matmul": {"dA": 1, "dB": 1},
        "broadcast": {"length_one": 1, "missing": 1},
        "layer_norm": {"rows": 2, "axes_and_eps": 1},
        "cross_entropy": {"gradient": 1, "ignored": 1, "large": 1},
    },
    "hw2_lora": {
        "one_matrix": {"h": 1, "dA": 1, "dB": 1},
        "predictions": {"answers": 1},
        "first_delta": {"value": 2},
        "lora_linear": {"start": 1, "output": 1, "gradients": 2},
        "merge": {"weight": 1, "drift": 1},
        "count": {"number": 1},
    },
    "hw3_alpha_and_rank": {
        "alpha": {"adam": 2, "adam_eps": 1, "sgd": 1},
        "planted": {"exact": 1, "noise": 2},
        "best": {"nearest": 1, "distance": 1},
    },
    "hw4_inside_and_beyond": {
        "phi": {"same_size": 1, "any_size": 1},
        "many": {"same": 1, "different": 2},
        "backend": {"numpy": 1, "device": 1},
    },
}
EXERCISES = [(assignment, exercise) for assignment, exercises in POINTS.items() for exercise in exercises]
# (exercise, what is wrong): the parts that it costs, then pairs of a piece of the solution and what stands in its place
WRONG = {
    ("matmul", "a forgotten transpose"): ("dB", ("A.swapaxes(-1, -2) @ G", "A @ G")),
    ("matmul", "a transpose of two dimensions only"): (
        "dA dB", ("B.swapaxes(-1, -2)", "B.T"), ("A.swapaxes(-1, -2)", "A.T"),
    ),
    ("matmul", "the right gradients in the wrong order"): (
        "dA dB",
        ("G @ B.swapaxes(-1, -2), A.swapaxes(-1, -2) @ G", "A.swapaxes(-1, -2) @ G, G @ B.swapaxes(-1, -2)"),
    ),
    ("broadcast", "only the first axis is summed"): (
        "length_one missing", ("g.sum(axis=axes, keepdims=True)", "g.sum(axis=0, keepdims=True)"),
    ),
    ("broadcast", "nothing is summed"): ("length_one missing", ("g.sum(axis=axes, keepdims=True).reshape(shape)", "g")),
    ("broadcast", "axes missing in front are forgotten"): ("missing", ("lead = g.ndim - len(shape)", "lead = 0")),
    ("layer_norm", "the term of the variance is missing"): (
        "rows axes_and_eps", (" - x_hat * (g * x_hat).mean(axis=-1, keepdims=True)", ""),
    ),
    ("layer_norm", "the ε of the call is forgotten"): ("axes_and_eps", ("=True) + eps", "=True) + 1e-5")),
    ("layer_norm", "axis 1 instead of the last"): ("axes_and_eps", ("axis=-1", "axis=1")),
    ("cross_entropy", "divided by all rows, ignored ones too"): ("ignored", ("counted.sum()", "len(targets)")),
    ("cross_entropy", "ignored rows have a gradient"): ("ignored", ("    d[~counted] = 0\n", "")),
    ("cross_entropy", "exp of large logits"): ("large", (" - logits.max(axis=-1, keepdims=True)", "")),
    ("cross_entropy", "the sum instead of the mean"): ("gradient ignored", (" / counted.sum()", "")),
    ("one_matrix", "α without /r"): ("h dA dB", ("alpha / len(A)", "alpha")),
    ("one_matrix", "h = W₀x + BA without its x"): ("h dA dB", ("s * B @ (A @ x)\n", "(s * B @ A).sum(axis=1)\n")),
    ("one_matrix", "one gradient is right"): ("dB", ("np.outer(g, A @ x)", "np.outer(A @ x, g)")),
    ("one_matrix", "the output is right"): ("dA dB", ("g = h - y", "g = y - h")),
    ("predictions", "B believed stuck"): ("answers", ("[True, False,", "[True, True,")),
    ("predictions", "both zero believed to learn"): ("answers", ("False, False, True]", "False, True, True]")),
    ("first_delta", "s instead of s²"): ("value", ("s**2", "s")),
    ("first_delta", "the wrong sign"): ("value", ("-eta", "eta")),
    ("lora_linear", "A and B both zero"): (
        "start", ("rng.normal(0, 1 / np.sqrt(in_features), (r, in_features))", "np.zeros((r, in_features))"),
    ),
    ("lora_linear", "α without /r"): ("output gradients", ("alpha / r", "alpha")),
    ("lora_linear", "the gradient of A forgets the scaling"): (
        "gradients", ("self.scaling * (g @ self.B).T @ x", "(g @ self.B).T @ x"),
    ),
    ("lora_linear", "only the start is right"): (
        "output gradients", ("x @ self.weight.T +", "x @ self.weight +"), ("self.scaling * g.T", "g.T"),
    ),
    ("merge", "+= and -= drift"): (
        "drift",
        ("self.weight = self.W0 + delta", "self.weight += delta; self.delta = delta.copy()"),
        ("self.weight = self.W0\n        ### END", "self.weight -= self.delta\n        ### END"),
    ),
    ("merge", "+ and - drift"): (
        "drift",
        ("self.weight = self.W0 + delta", "self.weight = self.weight + delta; self.delta = delta"),
        ("self.weight = self.W0\n        ### END", "self.weight = self.weight - self.delta\n        ### END"),
    ),
    ("count", "out counted twice"): ("number", ("out_features + in_features)", "2 * out_features)")),
    ("alpha", "the folk version: lr times c"): (
        "adam adam_eps sgd",
        ("lr * c**0.5, std * c**0.5, eps / c**0.5", "lr * c, std, eps"),
        ("lr * c, std * c**0.5, eps", "lr * c, std, eps"),
    ),
    ("alpha", "Adam's ε is left as it was"): ("adam_eps", ("eps / c**0.5", "eps")),
    ("alpha", "SGD's start is left as it was"): ("sgd", ("lr * c, std * c**0.5, eps", "lr * c, std, eps")),
    ("planted", "noise counted as rank"): ("noise", ("1e-3 * s[0]", "1e-11 * s[0]")),
    ("planted", "always two"): ("exact noise", ("int((s > 1e-3 * s[0]).sum())", "2")),
    ("best", "the smallest instead of the largest"): (
        "nearest", ("(U[:, :k] * s[:k]) @ Vh[:k]", "(U[:, len(s) - k:] * s[len(s) - k:]) @ Vh[len(s) - k:]"),
    ),
    ("best", "the distance is not squared"): ("distance", ("float((s[k:] ** 2).sum())", "(s[k:] ** 2).sum() ** 0.5")),
    ("phi", "divided by max(i, j)"): ("any_size", ("min(i, j)", "max(i, j)")),
    ("phi", "divided by i"): ("any_size", ("min(i, j)", "i")),
    ("many", "one adapter for all"): ("same different", ("A[which]", "A[which * 0]"), ("B[which]", "B[which * 0]")),
    ("many", "the first row's adapter for all"): (
        "different", ("A[which]", "A[which * 0 + which[0]]"), ("B[which]", "B[which * 0 + which[0]]"),
    ),
    ("backend", "np on an array of the device"): ("device", ("xp.tanh", "np.tanh")),
}  # fmt: skip
# What costs no thought. Each visible test must fail on each; `return x` and zeros for each argument x come on top.
LAZY = {
    "matmul": ["return A, B", "return G, G", "return B, A", "return 0 * A, 0 * B", "return G @ B, A @ G"],
    "broadcast": ["return np.zeros(shape)", "return np.ones(shape)", "return g[:1]", "return g[0]", "return g.sum()"],
    "layer_norm": ["return g - g.mean(axis=-1, keepdims=True)"],
    "cross_entropy": ["return logits - logits.max(axis=-1, keepdims=True)", "return 0 * logits + 1 / len(targets)"],
    "one_matrix": ["return W0 @ x, 0 * A, 0 * B", "return y, A, B", "return x, B, A", "return W0 @ x, A, B"],
    "predictions": [f"return [{answer}] * 5" for answer in ("True", "False", "None")] + ["return []"],
    "first_delta": ["return -eta * G", "return np.zeros((len(G), A0.shape[1]))"],
    "count": ["return 393216", "return 393_216.0", "return len(shapes) * r", "return 2048"],
    "alpha": ["return lr, std, eps", "return 0, 0, 0", "return 1, 1, 1", "return lr * alpha / new_alpha, std, eps"],
    "planted": [f"return {n}" for n in (1, 2, 3, 4, 12)] + ["return len(W0)", "return np.linalg.matrix_rank(W0)"],
    "best": ["return D, 0.0", "return np.zeros_like(D), 0.0", "return D[:k], k", "return np.eye(len(D)), 1.0"],
    "phi": ["return 1.0", "return 0.5", "return i / j", "return min(i, j) / max(i, j)"],
    "many": ["return X @ W0.T"],
    "backend": ["return xp.tanh(x)", "return 0.5 * x", "return x * 0"],
}  # fmt: skip
LAZY_CLASSES = {
    "lora_linear": [
        ["self.weight = weight; self.A = self.B = weight", "return x", "return x, g"],
        ["pass", "return x @ np.eye(x.shape[1])", "return None"],
        [
            "self.weight = weight; self.A = np.zeros((r, weight.shape[1])); self.B = np.zeros((len(weight), r))",
            "return x @ self.weight.T",
            "return np.zeros_like(self.A), np.zeros_like(self.B)",
        ],
    ],
    "merge": [["self.weight = W0", "pass", "pass"], ["self.weight = W0", "self.weight = delta", "pass"]],
}


# ---- the cells, as a student sees them and as nbgrader runs them --------------------------------------

STUB = re.compile(r"^( *)# YOUR CODE HERE\n *raise NotImplementedError\(\)$", flags=re.MULTILINE)
SOLUTION = re.compile(r"^( *)### BEGIN SOLUTION\n(.*?)\n *### END SOLUTION$", flags=re.MULTILINE | re.DOTALL)
HIDDEN = re.compile(r"^### BEGIN HIDDEN TESTS\n(.*?)^### END HIDDEN TESTS$", flags=re.MULTILINE | re.DOTALL)


@cache
def cells_of(assignment):
    """[(kind, words, source)] of the code cells; kind is "" for plain code."""
    parsed = [cell for cell in parse(SOURCES[assignment].read_text(encoding="utf-8")) if cell.kind == "code"]
    return [(*((cell.note.split() or [""])[0:1]), cell.note.split()[1:], cell.source) for cell in parsed]


def solution(exercise):
    return next(
        source for a in POINTS for kind, words, source in cells_of(a) if (kind, words[:1]) == ("solution", [exercise])
    )


def stubbed(source):
    return SOLUTION.sub(r"\1# YOUR CODE HERE\n\1raise NotImplementedError()", source)


def fill(released, bodies):
    """A released cell with one body, indented or not, in the place of each `raise NotImplementedError()`."""
    bodies = iter(bodies)
    filled = STUB.sub(lambda stub: indented(next(bodies), stub[1]), released)
    assert next(bodies, None) is None and "NotImplementedError" not in filled
    return filled


def indented(body, indent):
    return body if body.startswith(" ") else "\n".join(indent + line for line in body.splitlines())


def answers(exercise, replacements=()):
    """The bodies of a solution, some pieces replaced."""
    source = solution(exercise)
    for right, wrong in replacements:
        assert right in source, f"{exercise}: {right!r} is no part of the solution any more"
        source = source.replace(right, wrong)
    return [body for _, body in SOLUTION.findall(source)]


def outcome(assignment, exercise=None, *, bodies=None, visible_only=False, student="kim", after=None):
    """{(exercise, part): None or the error} of the tests, each run on its own after all that is no test.

    `bodies` are the answers to `exercise` (default: the right ones), and only its tests run; without it, all of them.
    `after` is called with the names once they are all defined.
    """
    names = {"__name__": "notebook"}
    for kind, words, source in cells_of(assignment):
        if kind == "solution":
            right = bodies if words == [exercise] and bodies is not None else answers(words[0])
            source = fill(stubbed(source), right)
        if kind != "test":
            exec(compile(source.replace('STUDENT = "student"', f"STUDENT = {student!r}"), assignment, "exec"), names)
    if after is not None:
        after(names)
    found = {}
    for kind, words, source in cells_of(assignment):
        if kind == "test" and exercise in (None, words[0]):
            if visible_only:
                source = HIDDEN.sub("", source)
            try:
                exec(compile(source, f"{words[0]} {words[1]}", "exec"), dict(names))
                found[words[0], words[1]] = None
            except Exception as error:
                found[words[0], words[1]] = error
    return found


def passed(found):
    return {key for key, error in found.items() if error is None}


# ---- what students see -------------------------------------------------------------------------------


@pytest.mark.parametrize("assignment", SOURCES)
def test_the_parts_and_their_points_are_those_of_the_table(assignment):
    found = {}
    for kind, words, source in cells_of(assignment):
        assert kind in ("", "given", "solution", "test")
        if kind == "test":
            found.setdefault(words[0], {})[words[1]] = int(words[2])
            assert HIDDEN.search(source) and "student_rng(STUDENT" in HIDDEN.sub("", source)
    assert found == POINTS[assignment]
    assert [words[0] for kind, words, _ in cells_of(assignment) if kind == "solution"] == list(POINTS[assignment])


def test_the_headings_and_the_page_say_the_points_that_the_tests_give():
    page = (COURSE / "README.md").read_text(encoding="utf-8")
    rows = {int(n): int(p) for n, p in re.findall(r"\| (\d+) [^|]+ \| (\d+) \|", page)}
    said = {}
    for path in SOURCES.values():
        text = path.read_text(encoding="utf-8")
        for number, points, body in re.findall(
            r"^# ## (\d+)\.[^\n]*\((\d+) points?\)$(.*?)(?=^# ## |\Z)", text, re.M | re.S
        ):
            said[int(number)] = int(points)
            assert int(points) == sum(int(p) for p in re.findall(r"^# %% test \w+ \w+ (\d+)$", body, re.M))
    assert said == rows and list(said) == list(range(1, 16)) and f"| **{sum(said.values())}** |" in page


@pytest.mark.parametrize("assignment", SOURCES)
def test_what_is_released_has_every_name_and_signature_that_the_solution_has(assignment):
    def signatures(source):
        found = []
        for node in ast.parse(source).body:
            inside = node.body if isinstance(node, ast.ClassDef) else []
            for one in [node, *inside]:
                if isinstance(one, ast.FunctionDef):
                    found.append((getattr(node, "name", ""), one.name, ast.dump(one.args)))
                elif isinstance(one, ast.Assign | ast.AnnAssign):
                    found.append(ast.dump(one))
        return found

    for kind, words, source in cells_of(assignment):
        if kind == "solution":
            assert signatures(stubbed(source)) == signatures(source) != [], words
            assert len(STUB.findall(stubbed(source))) == len(SOLUTION.findall(source)) >= 1
        else:
            assert "SOLUTION" not in source


def global_names(source):
    """(names that a cell uses without defining them, names that it defines at its top level)."""
    top = symtable.symtable(source, "cell", "exec")
    defined = {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported()}
    used, tables = set(), [top]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        for symbol in table.get_symbols():
            if symbol.is_referenced() and (table is top or symbol.is_global()):
                used.add(symbol.get_name())
    return used - defined, defined


@pytest.mark.parametrize("assignment", SOURCES)
def test_a_test_uses_only_names_of_its_own_and_those_that_students_see_defined(assignment):
    seen = set(dir(builtins))
    for kind, words, source in cells_of(assignment):
        if kind == "test":
            for text in (HIDDEN.sub("", source), source):
                assert not global_names(text)[0] - seen, words
        else:
            shown = stubbed(source)
            assert not global_names(shown)[0] - seen, words
            seen |= global_names(shown)[1]


@pytest.mark.parametrize("assignment", SOURCES)
def test_what_is_given_only_defines_and_every_failing_assertion_says_something(assignment):
    for kind, words, source in cells_of(assignment):
        if kind == "given":
            assert all(isinstance(node, ast.FunctionDef) for node in ast.parse(source).body), words
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Assert) and node.msg is None:
                assert "ml.check_gradient(" in ast.unparse(node.test), ast.unparse(node)  # it raises by itself


def test_there_are_fifteen_exercises_and_every_one_has_its_mistakes_and_a_half_right_answer():
    assert len(re.findall(r"^# ## \d+\.", "".join(p.read_text(encoding="utf-8") for p in SOURCES.values()), re.M)) == 15
    assert {exercise for exercise, _ in WRONG} == {exercise for _, exercise in EXERCISES}
    for assignment, exercise in EXERCISES:
        parts = set(POINTS[assignment][exercise])
        costs = [set(cost.split()) for (e, _), (cost, *_) in WRONG.items() if e == exercise]
        assert all(cost <= parts for cost in costs)
        assert len(parts) == 1 or any(cost < parts for cost in costs)


# ---- what answers are worth, without nbgrader ---------------------------------------------------------


@pytest.mark.parametrize("assignment", SOURCES)
@pytest.mark.parametrize("student", ["kim", "박지원", "2026-0417", *(f"student {n}" for n in range(20))])
def test_the_right_answers_pass_for_any_student(assignment, student):
    assert not [error for error in outcome(assignment, student=student).values() if error]


@pytest.mark.parametrize("assignment", SOURCES)
@pytest.mark.parametrize("student", ["student", "Student ", "", "  "])
def test_right_answers_without_a_name_are_refused_in_a_sentence(assignment, student):
    errors = outcome(assignment, student=student).values()
    assert len(errors) == sum(len(parts) for parts in POINTS[assignment].values())
    assert all(isinstance(error, ValueError) and "put your name or number" in str(error) for error in errors)


@pytest.mark.parametrize("mistake", list(WRONG), ids=": ".join)
def test_a_usual_mistake_costs_its_parts_and_no_others(mistake):
    exercise, (cost, *replacements) = mistake[0], WRONG[mistake]
    assignment = next(a for a, e in EXERCISES if e == exercise)
    with np.errstate(all="ignore"):
        found = outcome(assignment, exercise, bodies=answers(exercise, replacements))
    assert passed(found) == {(exercise, part) for part in POINTS[assignment][exercise]} - {
        (exercise, part) for part in cost.split()
    }


def lazy_answers(exercise):
    """Bodies for each function of an exercise that nobody has thought about."""
    if exercise in LAZY_CLASSES:
        return LAZY_CLASSES[exercise]
    arguments = [a.arg for a in ast.parse(solution(exercise)).body[0].args.args]
    one = [f"return {what}" for a in arguments for what in (a, f"0 * {a}", f"({a}, {a})", f"({a}, {a}, {a})")]
    one += ["pass", "return 0", "return 1", "return True", "return 0, 0, 0", "return np.eye(2)"]
    return [[body] for body in one + LAZY[exercise]]


@pytest.mark.parametrize(("assignment", "exercise"), EXERCISES)
def test_no_visible_test_passes_on_an_answer_that_costs_no_thought(assignment, exercise):
    for bodies in lazy_answers(exercise):
        with np.errstate(all="ignore"):
            found = outcome(assignment, exercise, bodies=bodies, visible_only=True)
        assert not passed(found), bodies


WRITES = [
    (assignment, exercise, name)
    for assignment, exercise in EXERCISES
    for node in ast.parse(solution(exercise)).body
    for name in (
        [f"{node.name}.{method.name}" for method in node.body] if isinstance(node, ast.ClassDef) else [node.name]
    )
    if name not in ("predictions", "same_run", "Mergeable.unmerge")  # they are given no array
]
# the parts that see what is given, where not all do
SEEING = {"LoRALinear.__call__": {"output"}, "LoRALinear.gradients": {"gradients"}, "gelu": {"numpy"}}


@pytest.mark.parametrize(("assignment", "exercise", "name"), WRITES)
def test_a_right_answer_that_then_writes_into_what_it_was_given_is_told_so(assignment, exercise, name):
    def spoil(names):
        owner, attribute = names, name
        if "." in name:
            owner, attribute = names[name.split(".")[0]], name.split(".")[1]
        right = owner[attribute] if isinstance(owner, dict) else getattr(owner, attribute)

        def writing(*arguments):
            result = copy.deepcopy(right(*arguments))
            for argument in arguments:
                if isinstance(argument, np.ndarray):
                    argument[...] = 0
                elif isinstance(argument, list):
                    argument.clear()
            return result

        writing.__name__ = right.__name__
        if isinstance(owner, dict):
            owner[attribute] = writing
        else:
            setattr(owner, attribute, writing)

    found = outcome(assignment, exercise, after=spoil)
    for (_, part), error in found.items():
        if part in SEEING.get(name, POINTS[assignment][exercise]):
            assert error is not None and re.search("changed its input|merged weight", str(error)), (part, error)
        else:
            assert error is None


def test_zeros_written_into_an_input_do_not_pass_for_the_answer():
    """As they did where a test compared with the array that it had handed out."""
    found = outcome("hw1_gradients", "broadcast", bodies=["g[...] = 0\nreturn np.zeros(shape)"])
    assert "Your unbroadcast changed its input: argument 1" in str(found["broadcast", "length_one"])


def test_yours_hands_out_copies_and_gives_all_else_as_it_is():
    x, rng = np.arange(3.0), np.random.default_rng(0)
    assert yours(lambda a, generator, b=1: (a is not x, generator is rng), x, rng) == (True, True)
    assert yours(lambda a: a, x).tolist() == [0, 1, 2]
    with pytest.raises(AssertionError, match="Your fit changed its input: argument 2 "):
        yours(fit, 1, x)
    assert x.tolist() == [0, 1, 2]


def fit(_, x):
    x += 1


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


# ---- the two commands --------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs make.py or grade.py with arguments; gives its exit code, what it printed, and its errors."""

    def run(module, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, arguments)])
        return (module.main(), *capsys.readouterr())

    return run


@pytest.mark.parametrize("missing", ["nbformat", "nbgrader"])
@pytest.mark.parametrize("option", [[], ["--release"]], ids=str)
def test_without_the_extra_there_is_one_sentence_and_nothing_is_made(run, missing, option, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "nbformat", inspect)  # either may be installed, or not
    monkeypatch.setitem(sys.modules, "nbgrader", inspect)
    monkeypatch.setitem(sys.modules, missing, None)
    for module, arguments in ((make, option), (grade, [])):
        code, out, err = run(module, tmp_path / "course", *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert f"needs {missing}" in err and 'pip install -e ".[course]"' in err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_is_left_alone(run, tmp_path):
    pytest.importorskip("nbgrader", reason="the extra `course` is not installed")
    (tmp_path / "kept.txt").write_text("mine")
    code, _, err = run(make, tmp_path)
    assert code == 2 and "is not an empty folder" in err and list(tmp_path.iterdir()) == [tmp_path / "kept.txt"]


def test_make_says_what_it_made_and_what_comes_next(run, tmp_path):
    pytest.importorskip("nbgrader", reason="the extra `course` is not installed")
    code, out, _ = run(make, tmp_path / "course")
    assert code == 0 and f"Made 4 assignments, solved, in {tmp_path / 'course' / 'source'}." in out and "Next: " in out
    assert len(list((tmp_path / "course" / "source").glob("*/*.ipynb"))) == 4


@pytest.mark.parametrize(
    ("made", "names", "message"),
    [
        (False, [], "make it with make.py"),
        (True, [], "nothing was handed in: put it at"),
        (True, ["hw5"], "there is no assignment hw5: name one or more of hw1_gradients,"),
    ],
)
def test_there_must_be_something_to_grade(run, tmp_path, made, names, message):
    pytest.importorskip("nbgrader", reason="the extra `course` is not installed")
    for name in SOURCES if made else []:
        grade.released(tmp_path, name).parent.mkdir(parents=True)
        grade.released(tmp_path, name).write_text("{}")
    code, out, err = run(grade, tmp_path, *names)
    assert (code, out, err.count("\n")) == (2, "", 1) and message in err


# ---- with nbgrader -----------------------------------------------------------------------------------

BROKEN = "hw4_inside_and_beyond"  # the quickest
PACKED = max(sum(e == exercise for e, _ in WRONG) for _, exercise in EXERCISES)


def nth_mistakes(assignment, number):
    """{exercise: a mistake} with the n-th of each exercise that has as many."""
    found = {}
    for exercise in POINTS[assignment]:
        if len(mistakes := [mistake for mistake in WRONG if mistake[0] == exercise]) > number:
            found[exercise] = mistakes[number]
    return found


def filled(release, mistakes=None, student="kim"):
    """A student version filled in: with the right answers, but for some mistakes."""
    notebook = copy.deepcopy(release)
    for cell in notebook.cells:
        name = cell.metadata.get("nbgrader", {}).get("grade_id", "")
        cell.source = cell.source.replace('STUDENT = "student"', f"STUDENT = {student!r}")
        if name.endswith("_solution"):
            exercise = name.removesuffix("_solution")
            _, *replacements = WRONG[mistakes[exercise]] if exercise in (mistakes or {}) else [""]
            cell.source = fill(cell.source, answers(exercise, replacements))
    return notebook


def place_of(notebook, name):
    return next(i for i, c in enumerate(notebook.cells) if c.metadata.get("nbgrader", {}).get("grade_id") == name)


def broken_ones(release):
    """{student: (a hand-in that is broken somehow, its file name)}: everything else in it is right."""
    right = filled(release)
    twice, gone, changed, ended, endless, bare, unnamed = (copy.deepcopy(right) for _ in range(7))
    for name in ("phi_same_size_test", "phi_solution"):
        twice.cells.insert(place_of(twice, name) + 1, copy.deepcopy(twice.cells[place_of(twice, name)]))
    for name in ("phi_any_size_test", "backend_device_test"):
        del gone.cells[place_of(gone, name)]
    changed.cells[place_of(changed, "many_same_test")].source = "pass"
    changed.cells[place_of(changed, "many_solution")].source = "def batch_of_adapters(*arguments): pass"
    endless.cells[place_of(endless, "backend_solution")].source = "def gelu(xp, x):\n    while True:\n        pass"
    ended.cells[place_of(ended, "phi_solution")].source = "import os\nos._exit(1)"
    bare.metadata.clear()
    unnamed = filled(release, student="student")
    name = f"{BROKEN}.ipynb"
    written = {
        "twice": twice, "gone": gone, "changed": changed, "ended": ended, "endless": endless, "bare": bare,
        "unnamed": unnamed,
    }  # fmt: skip
    return {
        **{student: (json.dumps(notebook), name) for student, notebook in written.items()},
        "half": (json.dumps(right)[:-500], name),
        "other kind": ("[1, 2]", name),
        "renamed": (json.dumps(right), "hw4 (1).ipynb"),
        "nothing": ("kept a text instead", "notes.txt"),
    }


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """(folder, exit code, printed, scores) after grade.py has graded everyone; scores[assignment][student]."""
    pytest.importorskip("nbgrader", reason="the extra `course` is not installed")
    import nbformat

    folder = tmp_path_factory.mktemp("nbgrader") / "course"
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of nbgrader's own dependencies
        patch.setattr(sys, "argv", ["make.py", str(folder), "--release"])
        assert make.main() == 0
        config = folder / "nbgrader_config.py"
        config.write_text(config.read_text(encoding="utf-8").replace("timeout = 30", "timeout = 15"), encoding="utf-8")

        def hand_in(student, assignment, text, name=None):
            place = folder / "submitted" / student / assignment
            place.mkdir(parents=True)
            (place / (name or f"{assignment}.ipynb")).write_text(text, encoding="utf-8")

        for assignment in SOURCES:
            release = nbformat.read(grade.released(folder, assignment), as_version=4)
            hand_in("filled", assignment, json.dumps(filled(release)))
            hand_in("untouched", assignment, json.dumps(release))
            for number in range(PACKED):
                if mistakes := nth_mistakes(assignment, number):
                    hand_in(f"wrong{number}", assignment, json.dumps(filled(release, mistakes)))
            if assignment == BROKEN:
                for student, (text, name) in broken_ones(release).items():
                    hand_in(student, assignment, text, name)
        hand_in("misplaced", "hw4", "{}")
        printed = io.StringIO()
        patch.setattr(sys, "argv", ["grade.py", str(folder)])
        with contextlib.redirect_stdout(printed):
            code = grade.main()
        scores = {assignment: {} for assignment in SOURCES}
        with make.grader(folder).gradebook as gradebook:
            for assignment in SOURCES:
                for submission in gradebook.assignment_submissions(assignment):
                    grades = submission.notebooks[0].grades
                    scores[assignment][submission.student.id] = {g.name.removesuffix("_test"): g.score for g in grades}
    return folder, code, printed.getvalue(), scores


def points_of(assignment, lost=()):
    """{"exercise_part": points} of a hand-in that is right but for the parts that are lost."""
    return {
        f"{exercise}_{part}": 0 if (exercise, part) in lost else points
        for exercise, parts in POINTS[assignment].items()
        for part, points in parts.items()
    }


def lines_of(printed, student, assignment):
    """(points, what went wrong) in the table that grade.py prints."""
    row = next(r for r in printed.splitlines() if re.match(rf"{student} +{assignment}\b", r))
    points, *wrong = re.split(r"  +", row.removeprefix(student).strip())[1:]
    return points, " ".join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("assignment", SOURCES)
def test_the_student_version_filled_in_gets_full_marks_and_untouched_none(assignment, graded):
    _, _, printed, scores = graded
    total = sum(points_of(assignment).values())
    assert scores[assignment]["filled"] == points_of(assignment)
    assert lines_of(printed, "filled", assignment) == (f"{total} of {total}", "")
    assert scores[assignment]["untouched"] == dict.fromkeys(points_of(assignment), 0)
    assert lines_of(printed, "untouched", assignment) == (f"0 of {total}", "")


@pytest.mark.slow
@pytest.mark.parametrize("assignment", SOURCES)
@pytest.mark.parametrize("number", range(PACKED))
def test_a_half_right_hand_in_gets_the_points_of_its_parts(assignment, number, graded):
    scores = graded[3][assignment]
    lost = {
        (mistake[0], part)
        for mistake in nth_mistakes(assignment, number).values()
        for part in WRONG[mistake][0].split()
    }
    assert (scores[f"wrong{number}"] == points_of(assignment, lost)) if lost else f"wrong{number}" not in scores


@pytest.mark.slow
@pytest.mark.parametrize(
    ("student", "points", "wrong"),
    [
        ("twice", "7 of 7", "the cell phi_same_size_test stood there twice; the cell phi_solution stood there twice"),
        ("gone", "7 of 7", "missing and put back: phi_any_size_test, backend_device_test"),
        ("changed", "4 of 7", "the cell many_same_test was changed; the original was used"),
        ("endless", "5 of 7", "2 of its cells took too long and were stopped"),
        ("bare", "7 of 7", ""),
        ("unnamed", "0 of 7", ""),
        ("renamed", "7 of 7", "hw4 (1).ipynb was taken for hw4_inside_and_beyond.ipynb"),
        ("ended", "none", "nbgrader could not grade it: Kernel died while waiting for execute reply."),
        ("half", "none", "hw4_inside_and_beyond.ipynb is no notebook that can be read (NotJSONError)"),
        ("other kind", "none", "hw4_inside_and_beyond.ipynb is no notebook that can be read (AttributeError)"),
        ("nothing", "none", "there is no notebook in "),
    ],
)
def test_a_broken_hand_in_stops_no_other_and_is_graded_where_it_can_be(student, points, wrong, graded):
    _, code, printed, _ = graded
    assert code == 1
    found = lines_of(printed, student, BROKEN)
    assert found[0] == points and found[1].startswith(wrong) and bool(found[1]) == bool(wrong)


@pytest.mark.slow
def test_what_was_not_handed_in_or_not_graded_is_blank_among_the_grades(graded):
    folder, _, printed, _ = graded
    with (folder / "grades.csv").open(encoding="utf-8", newline="") as file:
        rows = {row.pop("student"): row for row in csv.DictReader(file)}
    totals = {assignment: str(sum(points_of(assignment).values())) for assignment in SOURCES}
    blank = dict.fromkeys(SOURCES, "")
    assert rows["filled"] == totals and rows["untouched"] == dict.fromkeys(SOURCES, "0")
    assert rows["renamed"] == {**blank, BROKEN: "7"} and rows["unnamed"] == {**blank, BROKEN: "0"}
    assert rows["ended"] == rows["half"] == rows["nothing"] == rows["misplaced"] == blank
    assert "should be a folder with the name of an assignment" in lines_of(printed, "misplaced", "hw4")[1]


@pytest.mark.slow
@pytest.mark.parametrize("assignment", SOURCES)
def test_no_solution_and_no_hidden_test_is_left_for_students_nor_in_their_feedback(assignment, graded):
    folder = graded[0]
    cells = json.loads(grade.released(folder, assignment).read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells]
    assert [s for s, cell in zip(sources, cells, strict=True) if cell["cell_type"] == "code"] == [
        HIDDEN.sub("", stubbed(source)).rstrip() for _, _, source in cells_of(assignment)
    ]
    hidden = "\n".join(part for *_, source in cells_of(assignment) for part in HIDDEN.findall(source))
    shown = "\n".join(sources)
    known = shown + "".join(solution(exercise) for exercise in POINTS[assignment])
    secrets = [line.strip() for line in hidden.splitlines() if len(line.strip()) > 20 and line.strip() not in known]
    assert len(secrets) > 10
    for student in ("filled", "untouched", "wrong0"):
        page = (folder / "feedback" / student / assignment / f"{assignment}.html").read_text(encoding="utf-8")
        text = html.unescape(re.sub(r"<[^>]+>", "", page))
        assert "rng = student_rng(STUDENT" in text and not [line for line in secrets if line in text]
    assert "Error: " in text  # and yet it says what was wrong
