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
KOREAN = {
    "zero_init": "B = 0이면 베이스 그대로 시작한다",
    "alpha_learning_rate": "A₀를 맞추면 α는 학습률이다",
    "init_scaling": "r, 초기화, LoRA+ 때문에 다시 조정하지 않는다",
    "rank": "아주 작은 r로 충분하다",
    "which_matrices": "q와 v를 함께 쓰는 것이 하나보다 낫다",
    "rivals": "LoRA는 풀 파인튜닝만큼 좋고 이전 방법보다 낫다",
    "latency": "병합한 LoRA는 지연이 없고, 어댑터는 있다",
    "budget": "고정된 가중치에는 기울기도 Adam 상태도 없다",
    "task_switching": "베이스 하나에 어댑터를 바꿔 끼운다",
    "low_data": "데이터가 적으면 LoRA가 풀 파인튜닝보다 낫다",
    "intrinsic_dimension": "무작위 방향 몇 개면 적응할 수 있다",
    "intrinsic_rank": "풀 파인튜닝이 바꾸는 것은 랭크가 낮다",
    "subspaces": "작은 r과 큰 r은 맨 위 방향이 같다",
    "amplification": "ΔW는 W가 강조하지 않는 방향을 키운다",
}
MARKS = {"holds": "✓", "does not hold at this scale": "✗", "within noise": "~"}


def table(head: str, shorts: dict[str, str]) -> str:
    """One line a claim, under its short form or another language's."""
    rows = json.loads((ROOT / "figures" / "claims.json").read_text(encoding="utf-8"))["claims"]
    lines = [f"| {head} |", "|---|---|:-:|:-:|:-:|"]
    for row in rows:
        marks = [MARKS.get(row["verdicts"].get(world), "") for world in ("strings", "text", "exact")]
        lines.append(f"| {shorts.get(row['id'], row['short'])} | {row['key']} | {' | '.join(marks)} |")
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
    for name, part in (("claims", table(PAGES[page], KOREAN if ".ko" in page else {})), ("files", files())):
        text = re.sub(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda m: f"{m[1]}{part}\n{m[2]}", text, flags=re.S)  # noqa: B023
    return text


if __name__ == "__main__":
    for page in PAGES:
        (ROOT / page).write_text(filled(page), encoding="utf-8")
