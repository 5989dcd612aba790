"""What is installed: typed, silent under `-W error`, and checked with the lowest versions that are allowed."""

import os
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

import minilora as ml

ROOT = Path(__file__).parents[2]
RUN = (ROOT / ".ci" / "run").read_text(encoding="utf-8")

pytestmark = pytest.mark.numpy_only("about files and processes of their own")


def test_the_package_says_that_it_is_typed():
    assert (files("minilora") / "py.typed").is_file()
    assert "grep minilora/py.typed" in RUN  # in the wheel, too


def test_every_requirement_has_a_lower_bound_and_ci_installs_those():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lists = project.split("dependencies = [")[1].split("[project.scripts]")[0]
    needed = [n for n in re.findall(r"^[^#\n]*", lists, re.M) for n in re.findall(r'"([^"]+)"', n)]
    assert len(needed) > 20
    assert all(re.fullmatch(r"minilora\[[\w,]+\]|[\w-]+>=[\d.]+", requirement) for requirement in needed), needed
    assert "--resolution lowest-direct" in RUN


def test_the_workflow_runs_what_ci_runs_on_the_oldest_python_that_is_allowed_and_on_the_newest():
    yaml = pytest.importorskip("yaml", reason="PyYAML comes with the extra `sweep`")
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))["jobs"]
    oldest = re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))[1]
    assert jobs["everything"]["strategy"]["matrix"]["python"] == [oldest, "3.x"]
    assert jobs["everything"]["steps"][-1] == {"run": "bash .ci/run"}
    assert jobs["tests"]["strategy"]["matrix"]["system"] == ["macos-latest", "windows-latest"]


def test_the_page_for_contributors_names_what_there_is():
    page, make = ((ROOT / name).read_text(encoding="utf-8") for name in ("CONTRIBUTING.md", "Makefile"))
    targets = re.findall(r"^(\w+):", make, re.M)
    assert re.findall(r"^make (\w+) ", page, re.M) == targets and f".PHONY: {' '.join(targets)}\n" in make
    order = re.findall(r"`(\w+)`", page.split("in this order")[1].split("They hold")[0])
    assert len(order) == 11 and all((ROOT / "minilora" / f"{name}.py").exists() for name in order)
    for path in re.findall(r"`([\w/]+\.py)`", page):
        assert any((ROOT / folder / path).exists() for folder in ("", "minilora")), path
    assert "types_or: [python, markdown]" in (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")


def test_the_citation_and_the_changelog_are_of_this_version():
    citation, changes = ((ROOT / name).read_text(encoding="utf-8") for name in ("CITATION.cff", "CHANGELOG.md"))
    assert f"\nversion: {ml.__version__}\n" in citation and f"\n## {ml.__version__}" in changes


def test_commands_run_where_every_warning_is_an_error(tmp_path):
    """In processes of their own: what the packages that they load do at import counts."""
    (tmp_path / "text.txt").write_text("a rose is a rose is a rose\n" * 200)
    environment = {**os.environ, "MINILORA_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    for command in (
        "info",
        "demo",
        "tasks",
        "budget --preset gpt2",
        "pretrain --text text.txt --steps 2 --layers 1 --context 16 --out base",
        "adapt --base base --text text.txt --steps 2 --r 1 --out adapter",
        "generate --base base --adapter adapter --prompt rose",
        "merge --base base --adapter adapter --out merged",
        "reproduce --help",
    ):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "minilora", *command.split()],
            cwd=tmp_path, env=environment, capture_output=True, text=True, encoding="utf-8",
        )  # fmt: skip
        assert done.returncode == 0 and "Warning" not in done.stderr, (command, done.stderr)
