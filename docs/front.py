"""Write what the front pages say of the report and of the eleven files: `python docs/front.py`, after either changed.

Between the marks <!-- claims --> and <!-- files --> of README.md and README.ko.md stand the table of
figures/claims.json and the files' line counts; a test holds them together.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = {
    "README.md": "claim | key number | strings | text | exact",
    "README.ko.md": "주장 | 핵심 숫자 | 문자열 | 글 | 정확",
}
FILES = (
    "autograd", "functional", "gradient_check", "nn", "gpt", "data", "tasks", "optim", "training", "generate", "lora",
)  # fmt: skip
MARKS = {"holds": "✓", "does not hold at this scale": "✗", "within noise": "~"}


def table(head: str) -> str:
    """One line a claim."""
    rows = json.loads((ROOT / "figures" / "claims.json").read_text(encoding="utf-8"))["claims"]
    lines = [f"| {head} |", "|---|---|:-:|:-:|:-:|"]
    for row in rows:
        marks = [MARKS.get(row["verdicts"].get(world), "") for world in ("strings", "text", "exact")]
        lines.append(f"| {row['short']} | {row['key']} | {' | '.join(marks)} |")
    return "\n".join(lines)


def files() -> str:
    """The eleven in reading order, each with its lines."""
    parts = []
    for number, name in enumerate(FILES, 1):
        lines = len((ROOT / "minilora" / f"{name}.py").read_text(encoding="utf-8").splitlines())
        parts.append(f"{number} [{name}.py](minilora/{name}.py) {lines}")
    return "\n".join(" · ".join(parts[start : start + 3]) + (" ·" if start < 9 else "") for start in (0, 3, 6, 9))


def filled(page: str) -> str:
    """The page with both parts as they should be."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for name, part in (("claims", table(PAGES[page])), ("files", files())):
        text = re.sub(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda m: f"{m[1]}{part}\n{m[2]}", text, flags=re.S)  # noqa: B023
    return text


if __name__ == "__main__":
    for page in PAGES:
        (ROOT / page).write_text(filled(page), encoding="utf-8")
