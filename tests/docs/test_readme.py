"""What the README says is so: its commands, its numbers, its table."""

import importlib.util
import json
import re

import numpy as np
import pytest
from documents import ROOT, blocks, run_as_pasted

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.numpy_only("printed arrays look otherwise elsewhere")
def test_the_example_prints_what_its_comments_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_as_pasted(blocks("python")[0], prints=3)
    assert (tmp_path / "revupper" / "adapter_model.safetensors").exists()


def test_the_two_by_two_example():
    W0, A, B = np.array([[1.0, 2], [3, 4]]), np.array([[0.5, -0.5]]), np.zeros((2, 1))
    x, y, s, eta = np.array([1.0, 2]), np.array([6.0, 11]), 2.0, 0.5
    h = W0 @ x + s * B @ (A @ x)
    g = h - y
    assert h.tolist() == [5, 11] and g.tolist() == [-1, 0] and 0.5 * g @ g == 0.5 and (A @ x).tolist() == [-0.5]
    dB, dA = s * np.outer(g, A @ x), s * B.T @ np.outer(g, x)
    assert dB.tolist() == [[1], [0]] and not dA.any()
    B = B - eta * dB
    delta = s * B @ A
    assert B.tolist() == [[-0.5], [0]] and delta.tolist() == [[-0.5, 0.5], [0, 0]]
    np.testing.assert_allclose(delta, -eta * s**2 * np.outer(g, x) @ A.T @ A)
    h = (W0 + delta) @ x
    assert h.tolist() == [5.5, 11] and 0.5 * (h - y) @ (h - y) == 0.125
    for number in ("(5.5, 11)", "(-0.5, 0)", "L = 0.125"):
        assert number in README


def test_the_korean_readme_has_the_same_code_and_its_links_lead_somewhere():
    korean = (ROOT / "README.ko.md").read_text(encoding="utf-8")
    fences = r"```\w+\n.*?```"
    assert re.findall(fences, korean, flags=re.DOTALL) == re.findall(fences, README, flags=re.DOTALL)
    for target in re.findall(r"\]\(((?!http)[^)#]+)", korean):
        assert (ROOT / target).exists(), target
    for number in ("(5.5, 11)", "(-0.5, 0)", "L = 0.125"):
        assert number in korean


def test_ci_runs_the_readmes_test_command():
    (test_command,) = (block for block in blocks("sh") if "pytest" in block)
    assert test_command in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_the_front_pages_say_what_the_report_and_the_files_are(front):
    """To mend them: python docs/front.py."""
    for page in front.PAGES:
        assert (ROOT / page).read_text(encoding="utf-8") == front.filled(page), page
    report = json.loads((ROOT / "figures" / "claims.json").read_text(encoding="utf-8"))
    assert report["quick"] is False and report["seeds"] >= 3
    for row in report["claims"]:
        assert f"| {row['short']} | {row['key']} |" in README


def test_the_eleven_files_are_the_reading_order(front):
    assert len(front.FILES) == 11 and [name for name in ORDER if name in front.FILES] == list(front.FILES)


@pytest.fixture(scope="module")
def front():
    specification = importlib.util.spec_from_file_location("front", ROOT / "docs" / "front.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


ORDER = [
    "backend", "checks", "tree", "machine", "diagnosis", "autograd", "functional", "gradient_check", "nn", "gpt",
    "groups", "optim", "lora", "data", "tasks", "training", "generate", "texts",
]  # fmt: skip


@pytest.mark.parametrize("module", sorted((ROOT / "minilora").glob("*.py"), key=lambda p: p.name), ids=lambda p: p.name)
def test_imports_point_one_way(module):
    """Each core file needs only files that come before it in the reading order."""
    if module.stem not in ORDER:
        return
    source = module.read_text(encoding="utf-8")
    imported = re.findall(r"^\s*from \.(\w+) import", source, flags=re.MULTILINE)
    imported += re.findall(r"^from \. import (\w+)", source, flags=re.MULTILINE)
    for name in imported:
        assert ORDER.index(name) < ORDER.index(module.stem), f"{module.stem} imports {name}"
    if module.stem == "lora":
        assert "gpt" not in imported
