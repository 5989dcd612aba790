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
    "init_scaling": "r, 초기화, LoRA+ 때문에 다시 조정하지 않는다",
    "rank": "아주 작은 r로 충분하다",
    "which_matrices": "q와 v를 함께 쓰면 어느 하나만 쓸 때보다 낫다",
    "rivals": "LoRA는 풀 파인튜닝만큼 좋고 다른 방법보다 낫다",
    "latency": "병합한 LoRA는 느려지지 않는다",
    "budget": "고정된 가중치에는 기울기도 Adam 상태도 없다",
    "task_switching": "베이스 하나에 어댑터만 바꿔 끼운다",
    "low_data": "데이터가 적으면 LoRA가 풀 파인튜닝보다 낫다",
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

    def largest(beginning: str, world: str, sign: int, of: str = "q k v o") -> tuple[float, str]:
        return max((sign * mean(f"{beginning} {name}", world), name) for name in of.split())

    def yes(name: str) -> str:
        values = names[name, "exact"]["values"]
        return f"베이스 {len(values)}개 중 {sum(values):.0f}개에서 비트까지 같음"

    match row["id"]:
        case "zero_init":
            return f"로짓: {yes('bit-equal to the base at the start (1: yes)')}"
        case "alpha_learning_rate":
            worst = max(mean(f"identities, largest difference of ΔW, s = {s}", "exact") for s in (3, 4))
            return f"ΔW가 {worst:.0e}까지 같음"
        case "init_scaling":
            moved = mean("doublings of the best lr from r = 1 to 64, α/r", "text")
            return f"텍스트: r = 1에서 64까지 학습률이 2^{moved:+.1f}배"
        case "rank":
            on_text = mean("gap closed, r = 8", "text")
            return f"r = 8이 풀의 {mean('share of full fine-tuning, r = 8'):.3g} %, 텍스트는 {on_text:.0f} %"
        case "which_matrices":
            (best, name), (lead, leader) = largest("answered,", "strings", 1), largest("lead of q, v over", "text", -1)
            return f"q, v {mean('answered, q, v'):.0f} %, {name} {best:.0f} %; 텍스트는 {leader}가 {lead:.2f}비트 앞섬"
        case "rivals":
            prefix = "lead of lora q,v 4 over "
            rivals = [name.removeprefix(prefix) for name, world in names if world == "strings" and prefix in name]
            rival = max(mean(f"answered, {name}") for name in rivals)
            lora = mean("answered, lora q,v 4")
            lead = mean("lead of lora q,v 4 over the best rival", "text")
            said = f"{abs(lead):.2f}비트 {'앞섬' if lead > 0 else '뒤짐'}"
            return f"LoRA {lora:.0f} %, 다른 방법 {rival:.0f} %; 텍스트는 {said}"
        case "latency":
            middles = [m["quartiles"][1] for m in row["measurements"] if m["name"].startswith("LoRA merged over base")]
            return f"베이스 시간의 {min(middles):.3f}~{max(middles):.3f}배"
        case "budget":
            lora, full = (mean(f"Adam states, {method}", "exact") for method in ("lora", "full"))
            return f"Adam 상태 {readable(full)} 대신 {readable(lora)}"
        case "task_switching":
            return f"바꿔 끼운 뒤: {yes('comes back bit for bit (1: yes)')}"
        case "low_data":
            errors = [mean(f"excess error, {method}", "exact") for method in ("r = 2", "full")]
            gap = mean("lora q,v 8 minus full, mean")
            return f"심어 둔 문제 {errors[0]:.2f}, 풀 {errors[1]:.2f}; 문자열은 {gap:+.0f} %"
        case "intrinsic_dimension":
            share, total = mean("share of full fine-tuning, n = 4,096"), mean("trained parameters, full")
            return f"{total:,.0f}차원 중 4,096개로 풀의 {share:.3g} %"
        case "intrinsic_rank":
            kept = [mean("remains of full fine-tuning at rank 8", world) for world in ("strings", "text")]
            return f"랭크 8(64 중)에 {kept[0]:.0f} %, 텍스트는 {kept[1]:.0f} %가 남음"
        case "subspaces":
            phi = [mean("φ(1,1) of ΔW, r = 8 against r = 32", world) for world in ("strings", "text")]
            return f"맨 위 방향: 문자열 {phi[0]:.2f}, 텍스트 {phi[1]:.2f}"
        case "amplification":
            factors = [mean("factor ‖ΔW‖/‖UᵀWVᵀ‖, r = 4", world) for world in ("strings", "text")]
            return f"증폭: 문자열 {factors[0]:.0f}배, 텍스트 {factors[1]:.0f}배"
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
    """The eleven in reading order, each with its lines."""
    parts = []
    for number, name in enumerate(FILES, 1):
        lines = len((ROOT / "minilora" / f"{name}.py").read_text(encoding="utf-8").splitlines())
        parts.append(f"{number} [{name}.py](minilora/{name}.py) {lines}")
    return "\n".join(" · ".join(parts[start : start + 3]) + (" ·" if start < 9 else "") for start in (0, 3, 6, 9))


def filled(page: str) -> str:
    """The page with both parts as they should be."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for name, part in (("claims", table(page)), ("files", files())):
        text = re.sub(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda m: f"{m[1]}{part}\n{m[2]}", text, flags=re.S)  # noqa: B023
    return text


if __name__ == "__main__":
    for page in PAGES:
        (ROOT / page).write_text(filled(page), encoding="utf-8")
