"""The documents: every public name is described, every link leads somewhere, and maths is what GitHub can show."""

import re
from pathlib import Path

import pytest

import minilora as ml

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "README.ko.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_every_public_name_is_in_the_list():
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert not [name for name in ml.__all__ if not re.search(rf"\b{name}\b", page)]
    named = set(re.findall(r"`ml\.(\w+)", page))
    assert not [name for name in named if not hasattr(ml, name)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(((?!http|#)[^)#]+)", text):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_maths_survives_markdown_which_github_renders_first(page):
    """Within code spans and fences nothing is Markdown; $...$ alone would lose its backslashes. Nor does GitHub show
    every command."""
    text = page.read_text(encoding="utf-8")
    maths = re.findall(r"```math\n(.*?)```", text, re.DOTALL) + re.findall(r"\$`([^`]+)`\$", text)
    rest = re.sub(r"```.*?```|\$`[^`]+`\$|`[^`\n]*`", "", text, flags=re.DOTALL)
    assert "$" not in rest, rest[max(0, rest.index("$") - 40) :][:80]
    for formula in maths:
        assert formula.count("{") == formula.count("}") and "\\," not in formula and "|" not in formula
        assert formula.count(r"\begin") == formula.count(r"\end")


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "README.ko.md"], ids=lambda page: page.name)
def test_the_front_page_is_short_and_its_commands_fit_830_pixels(page):
    text = page.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 130
    for language, block in re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL):
        assert language not in ("", "sh") or max(map(len, block.splitlines())) <= 88, block
