"""Code in documents, as somebody would paste it."""

import contextlib
import io
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def blocks(language, page="README.md"):
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def run_as_pasted(code, prints):
    """Run a block; each `print(...)  # comment` must print the comment, up to a colon."""
    expected = re.findall(r"^print\(.*\)  # (.*)$", code, flags=re.MULTILINE)
    assert len(expected) == prints
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    lines = printed.getvalue().splitlines()
    for line, comment in zip(lines, expected, strict=True):
        assert comment == line or comment.startswith(line + ":"), f"printed {line!r}, the comment says {comment!r}"
