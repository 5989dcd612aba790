"""Write what the front pages say of the report and of the eleven files: `python docs/front.py`, after either changed.

Between the marks <!-- claims --> and <!-- files --> of README.md and README.ko.md stand the table of
figures/claims.json and the files' line counts; a test holds them together.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from minilora.budget import readable

ROOT = Path(__file__).parent.parent
PAGES = {
    "README.md": "claim | key number | strings | text | exact",
    "README.ko.md": "주장 | 핵심 숫자 | 문자열 | 텍스트 | 정확",
}
FILES = (
    "autograd", "functional", "gradient_check", "nn", "gpt", "optim", "lora", "data", "tasks", "training", "generate",
)  # fmt: skip
KOREAN = {
    "zero_init": "B = 0이면 베이스 그대로 시작한다",
    "alpha_learning_rate": "A₀를 맞추면 α는 학습률이다",
    "invariance": "네 설정 가운데 둘은 자유롭다",
    "rank_scaling": "Adam에는 α/r, SGD에는 α/√r이 맞다",
    "init_scaling": "r이 바뀌어도 학습률은 그대로다",
    "rank": "아주 작은 r로 충분하다",
    "which_matrices": "q와 v를 함께 쓰면 어느 하나만 쓸 때보다 낫다",
    "full_quality": "LoRA는 풀 파인튜닝만큼 좋다",
    "rivals": "LoRA는 같은 크기의 다른 방법보다 낫다",
    "latency": "병합한 LoRA는 느려지지 않는다",
    "budget": "고정된 가중치에는 기울기도 Adam 상태도 없다",
    "task_switching": "베이스 하나에 어댑터만 바꿔 끼운다",
    "low_data": "데이터가 적으면 LoRA가 풀 파인튜닝보다 낫다",
    "forgetting": "LoRA는 덜 배우고 덜 잊는다",
    "intrinsic_dimension": "무작위 방향 몇 개면 적응할 수 있다",
    "intrinsic_rank": "풀 파인튜닝의 ΔW도 랭크가 낮다",
    "subspaces": "작은 r과 큰 r은 맨 위 방향이 같다",
    "amplification": "ΔW는 W가 강조하지 않는 방향을 키운다",
}


def korean_key(row: dict[str, Any]) -> str:
    """The key number of a claim's row in Korean, from its measurements."""
    names = {(m["name"], m["world"]): m for m in row["measurements"]}

    def mean(name: str, world: str = "strings") -> float:
        return names[name, world]["value"]

    def least(beginning: str, world: str) -> tuple[float, str]:
        """The smallest mean of the judged ones that begin so, and whose it is."""
        found = [m for (name, of), m in names.items() if of == world and name.startswith(beginning) and m["rule"]]
        return min((m["value"], m["name"].removeprefix(beginning).strip()) for m in found)

    def yes(name: str) -> str:
        values = names[name, "exact"]["values"]
        return f"베이스 {len(values)}개 중 {sum(values):.0f}개에서 비트까지 같음"

    match row["id"]:
        case "zero_init":
            return f"로짓: {yes('bit-equal to the base at the start (1: yes)')}"
        case "alpha_learning_rate":
            worst = max(mean(f"identity, largest difference of ΔW, c = {c}", "exact") for c in (3, 4))
            return f"ΔW가 {worst:.0e}까지 같음"
        case "invariance":
            others = mean("largest difference of ΔW, other p and q", "exact")
            return f"ΔW: 2의 거듭제곱이면 비트까지, 아니면 {others:.0e}까지 같음"
        case "rank_scaling":
            powers = [mean(f"power of r, {name}", "exact") for name in ("Adam, α/r", "SGD, α/√r")]
            return f"r의 지수: Adam {powers[0]:+.2f}, SGD {powers[1]:+.2f}"
        case "init_scaling":
            moved = mean("doublings of the best rate from r = 1 to 64, α/r")
            ratios = [mean(f"best rate over full fine-tuning's, r = {r}") for r in (1, 8, 64)]
            return f"r = 1에서 64까지 2^{moved:+.1f}배; 풀의 {min(ratios):.0f}~{max(ratios):.0f}배"
        case "rank":
            reached = mean("gain of r = 64 that r = 4 reaches, short", "text")
            return f"r = 4: {mean('r = 4 behind r = 64, short'):+.3f}비트; 텍스트는 이득의 {reached:.0f} %"
        case "which_matrices":
            (ahead, name), (on_text, other) = (least("lead of q, v over", world) for world in ("strings", "text"))
            return f"q, v가 {name}보다 {ahead:+.2f}비트; 텍스트는 {other}보다 {on_text:+.3f}비트"
        case "full_quality":
            share = mean("share of full fine-tuning's gain, short, LoRA on q, v, r = 4", "text")
            behind = mean("bits more than full fine-tuning, short, LoRA on q, v, r = 4")
            return f"문자열 {behind:+.3f}비트; 텍스트는 이득의 {share:.0f} %"
        case "rivals":
            leads = [least("lead of LoRA, short, over", world)[0] for world in ("strings", "text")]
            return f"가장 가까운 방법보다 {leads[0]:+.2f}비트, 텍스트 {leads[1]:+.2f}비트"
        case "latency":
            middles = [m["quartiles"][1] for m in row["measurements"] if m["name"].startswith("LoRA merged over base")]
            return f"베이스 시간의 {min(middles):.3f}~{max(middles):.3f}배, 곱셈 수는 같음"
        case "budget":
            lora, full = (mean(f"Adam states, {method}", "exact") for method in ("lora", "full"))
            return f"Adam 상태 {readable(full)} 대신 {readable(lora)}"
        case "task_switching":
            return f"바꿔 끼운 뒤: {yes('comes back bit for bit (1: yes)')}"
        case "low_data":
            errors = [mean(f"excess error, {name}", "exact") for name in ("r = 2", "stopped at the best moment")]
            odds = mean("lead of LoRA in doublings of the odds, mean")
            return f"심어 둔 문제 {errors[0]:.2f}, 풀 {errors[1]:.2f}; 문자열 승산 2^{odds:+.1f}배"
        case "forgetting":
            saved = mean("English that LoRA forgets less, at 90 % of its most code", "text")
            return f"같은 만큼 배웠을 때 LoRA가 {abs(saved):.2f}비트 {'덜' if saved > 0 else '더'} 잊음"
        case "intrinsic_dimension":
            name = "4,096 random directions"
            share = mean(f"share of full fine-tuning's gain, {name}", "text")
            return (
                f"114,944 중 4,096: {mean(f'bits more than full fine-tuning, {name}'):+.3f}비트; 텍스트 {share:.0f} %"
            )
        case "intrinsic_rank":
            kept = mean("gain kept at rank 8", "text")
            return f"랭크 8: {mean('bits lost at rank 8'):+.3f}비트; 텍스트는 {kept:.0f} %가 남음"
        case "subspaces":
            phi = [mean("φ(1,1) of ΔW, r = 8 against 32", world) for world in ("strings", "text")]
            return f"맨 위 방향: 문자열 {phi[0]:.2f}, 텍스트 {phi[1]:.2f} (무작위 0.02)"
        case "amplification":
            over = [mean("W along ΔW's directions over random, r = 4, at equal loss", w) for w in ("strings", "text")]
            return f"무작위 방향의 {over[0]:.2f}배, 텍스트 {over[1]:.2f}배"
    raise ValueError(f"There is no Korean key number for the claim {row['id']!r}: write one here.")


MARKS = {"holds": "✓", "does not hold at this scale": "✗", "within noise": "~"}


def table(page: str) -> str:
    """One line a claim, in the page's language."""
    rows = json.loads((ROOT / "figures" / "claims.json").read_text(encoding="utf-8"))["claims"]
    lines = [f"| {PAGES[page]} |", "|---|---|:-:|:-:|:-:|"]
    for row in rows:
        marks = [MARKS.get(row["verdicts"].get(world), "") for world in ("strings", "text", "exact")]
        said = (KOREAN[row["id"]], korean_key(row)) if ".ko" in page else (row["short"], row["key"])
        lines.append(f"| {' | '.join((*said, *marks))} |")
    return "\n".join(lines)


def files() -> str:
    """The eleven in reading order, three a row, each with its lines."""
    parts = []
    for number, name in enumerate(FILES, 1):
        lines = len((ROOT / "minilora" / f"{name}.py").read_text(encoding="utf-8").splitlines())
        parts.append(f"{number} [{name}.py](minilora/{name}.py) {lines}")
    return " ·\n".join(" · ".join(parts[i : i + 3]) for i in range(0, len(parts), 3))


def filled(page: str) -> str:
    """The page with both parts as they should be."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for name, part in (("claims", table(page)), ("files", files())):
        text = re.sub(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda m: f"{m[1]}{part}\n{m[2]}", text, flags=re.S)  # noqa: B023
    return text


if __name__ == "__main__":
    for page in PAGES:
        (ROOT / page).write_text(filled(page), encoding="utf-8")
