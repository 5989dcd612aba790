"""The notebooks' sources and what builds them; that they execute and say what they said is `build.py --check`."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
sys.path.insert(0, str(NOTEBOOKS))

from percent import agrees, parse, tolerance

pytestmark = pytest.mark.numpy_only("notebooks compute in processes of their own")

SOURCES = sorted((NOTEBOOKS / "source").glob("*.py"))
README = (NOTEBOOKS / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_notebook_says_what_it_needs_and_takes_and_ends_with_an_exercise(source):
    cells = parse(source.read_text(encoding="utf-8"))
    number = int(source.stem[:2])
    assert cells[0].source.startswith(f"# {number}. ")
    assert re.search(r"\*Needs: .*no network.*Takes: ", cells[0].source, flags=re.DOTALL)
    assert "## Exercise" in cells[-1].source and "course/README.md" in cells[-1].source
    assert "**Asked often: " in source.read_text(encoding="utf-8") or number == 8
    text = "\n".join(cell.source for cell in cells if cell.kind == "markdown")
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (NOTEBOOKS / target).exists(), target


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_the_committed_notebook_is_made_from_its_source(source):
    committed = json.loads((NOTEBOOKS / f"{source.stem}.ipynb").read_text(encoding="utf-8"))["cells"]
    cells = parse(source.read_text(encoding="utf-8"))
    assert [("".join(c["source"]), c["metadata"].get("tags", [])) for c in committed] == [
        (c.source, [c.note] if c.note else []) for c in cells
    ]
    for cell in committed:
        if cell["cell_type"] == "code":
            assert not any(o["output_type"] == "error" or o.get("name") == "stderr" for o in cell["outputs"])


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_notebook_imports_only_what_the_smallest_set_up_has(source):
    tree = ast.parse(source.read_text(encoding="utf-8"))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    installed = {"numpy", "matplotlib", "minilora", "IPython", "ipywidgets", "safetensors", "committed", "progress"}
    assert imported <= installed | set(sys.stdlib_module_names)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_no_notebook_takes_a_number_out_of_a_sentence(source):
    assert not re.search(r"""\[["'](measured|spread|key|rule)["']\]""", source.read_text(encoding="utf-8"))


def test_every_question_of_the_table_leads_to_an_answer():
    rows = re.findall(r"^\| (\d+) \| (.+?) \| \[(\d+)\]\((\S+)\.ipynb\), \"(.+?)\" \|$", README, flags=re.MULTILINE)
    assert [int(row[0]) for row in rows] == list(range(1, len(rows) + 1)) and len(rows) >= 30
    for number, _, notebook, name, heading in rows:
        text = (NOTEBOOKS / "source" / f"{name}.py").read_text(encoding="utf-8")
        flat = re.sub(r"\s+", " ", re.sub(r"^# ?", "", text, flags=re.MULTILINE))
        assert int(notebook) == int(name[:2]) and heading in flat, f"question {number}: {heading!r} is not in {name}"


# ---- how numbers are compared ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("committed", "now", "note", "same"),
    [
        ("loss 0.50", "loss 0.50", "exact", True),
        ("loss 0.50", "loss 0.51", "exact", False),
        ("loss 0.50", "loss 0.51", "measured 0%", True),  # one unit of the last digit printed
        ("loss 0.50", "loss 0.55", "measured 10%", True),
        ("loss 0.50", "loss 0.60", "measured 10%", False),
        ("loss 0.50", "gain 0.50", "measured 10%", False),  # words count
        ("1,000 of 2,000", "1,050 of 2,000", "measured 10%", True),
        ("1e-3", "2e-3", "measured 10%", True),  # one unit again
        ("1.0e-3", "2.0e-3", "measured 10%", False),
        ("−5 %", "5 %", "measured 10%", False),
        ("a   5", "a  5", "measured 10%", True),  # spaces that align
        ("the cat", "a dog", "illustration", True),
    ],
)
def test_what_agrees(committed, now, note, same):
    assert agrees(committed, now, note) is same


# ---- the check ---------------------------------------------------------------------------------------


@pytest.fixture
def check(tmp_path):
    """Run `build.py --check` on a copy of notebooks 0 and 1: the exit code, and what it says."""
    pytest.importorskip("nbclient", reason="the extra `notebook` is not installed")
    pytest.importorskip("ipykernel", reason="the extra `notebook` is not installed")
    copy = tmp_path / "notebooks"
    (copy / "source").mkdir(parents=True)
    for name in ("build.py", "percent.py", "committed.py"):
        shutil.copy(NOTEBOOKS / name, copy)
    for name in ("00_start_here", "01_autograd_by_hand"):
        shutil.copy(NOTEBOOKS / f"{name}.ipynb", copy)
        shutil.copy(NOTEBOOKS / "source" / f"{name}.py", copy / "source")

    def run(**environment):
        done = subprocess.run(
            [sys.executable, str(copy / "build.py"), "--check"],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout

    run.folder = copy
    return run


@pytest.mark.slow
def test_the_check_is_green_on_what_is_committed_and_again(check):
    for _ in range(2):
        code, said = check()
        assert code == 0 and said.count("as committed") == 2, said


@pytest.mark.slow
def test_the_check_names_the_cell_whose_committed_number_was_changed(check):
    path = check.folder / "00_start_here.ipynb"
    text = path.read_text(encoding="utf-8")
    assert "150,994,944" in text
    path.write_text(text.replace("150,994,944", "150,994,943"), encoding="utf-8")
    code, said = check()
    assert code == 1 and "01_autograd_by_hand: as committed" in said
    assert re.search(r"00_start_here, cell 5 \(for d in .*committed .*943.*now .*944", said)


@pytest.mark.slow
def test_the_check_names_the_cell_that_a_changed_library_function_changes(check, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import minilora.optim\n"
        "right = minilora.optim.Adam._update\n"
        "def wrong(self, p, g, group, number):\n"
        "    right(self, p, 1.001 * g + 1e-4, group, number)\n"
        "minilora.optim.Adam._update = wrong\n"
    )
    code, said = check(PYTHONPATH=str(tmp_path))
    assert code == 1 and "00_start_here: as committed" in said
    assert re.search(r"01_autograd_by_hand, cell \d+ \(def adam", said)


def test_a_note_that_says_nothing_known_is_refused():
    with pytest.raises(ValueError, match="exact, measured N% or an illustration, not 'about'"):
        tolerance("about")
    with pytest.raises(ValueError, match="starts with `# %%`"):
        parse("import numpy\n# %%\n")
