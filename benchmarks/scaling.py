"""How time and memory of a training step grow with each size of the model, the batch and LoRA.

    python benchmarks/scaling.py [--out figures]

Around one middle size, each size is varied alone; a power law is fitted to the measured points, and to what theory
counts there: multiplications of the matrix products for time, bytes of weights, gradients, Adam's states and saved
activations for memory. So both exponents are of the same range, in which a lower-order term may still weigh. Each point
runs in a process of its own, one thread. Memory is the growth of the process's peak after its imports; both leave out
what the library itself takes. Writes scaling.md and scaling.png. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from step_time import environment, processor, resident

MIDDLE = {"d_model": 128, "layers": 4, "T": 64, "B": 16, "r": 4, "vocabulary": 256}
RANGES: dict[str, tuple[int, ...]] = {
    "d_model": (64, 128, 256, 512),
    "layers": (1, 2, 4, 8),
    "T": (32, 64, 128, 256, 512),
    "B": (4, 8, 16, 32, 64),
    "r": (1, 4, 16, 64),
    "vocabulary": (64, 256, 1024, 4096),
}
METHODS = ("full", "LoRA")
STEPS = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder of the table and the figure")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(**json.loads(options.worker))))
        return
    from minilora.claims.figures import check_figures
    from minilora.interop.files import check_output, write_text

    check_figures()
    for name in ("scaling.md", "scaling.png"):
        check_output(options.out / name)
    points: dict[str, dict[str, list[dict[str, float]]]] = {}
    for name, values in RANGES.items():
        for method in METHODS:
            if name != "r" or method == "LoRA":
                points.setdefault(name, {})[method] = [run(method, {**MIDDLE, name: value}) for value in values]
        print(f"{name}: measured", file=sys.stderr)
    text = table(points)
    print(text)
    write_text(options.out / "scaling.md", text)
    draw(options.out / "scaling.png", points)


def run(method: str, sizes: dict[str, int]) -> dict[str, float]:
    command = [sys.executable, __file__, "--worker", json.dumps({"method": method, "sizes": sizes})]
    return json.loads(subprocess.run(command, env=environment(1), check=True, capture_output=True, text=True).stdout)


def measure(method: str, sizes: dict[str, int]) -> dict[str, float]:
    """Median ms of a step, MB of peak memory and of saved activations; and what theory counts of each."""
    import minilora as ml
    from minilora import functional as F
    from minilora.budget import full_budget, lora_budget, shape_of
    from minilora.claims.tape import saved_bytes

    D, L, T, B, r, V = (sizes[name] for name in MIDDLE)
    before = resident("VmRSS")
    model = ml.GPT(ml.GPTConfig(vocab_size=V, context_length=T, d_model=D, n_layers=L, n_heads=4))
    parameters = ml.add_lora(model, ml.LoRAConfig(r)) if method == "LoRA" else model.parameters()
    optimizer = ml.Adam(parameters, lr=1e-3)
    ids, targets = np.random.default_rng(0).integers(0, V, (2, B, T))
    times = []
    for _ in range(STEPS + 1):
        start = time.perf_counter()
        loss = F.cross_entropy(model(ids), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(1e3 * (time.perf_counter() - start))
    peak = None if before is None else (resident("VmHWM") - before) / 1e6
    activations = saved_bytes(F.cross_entropy(model(ids), targets), model) / 1e6
    shape, q_and_v = shape_of(model), ("q_proj", "v_proj")
    budget = lora_budget(shape, r, q_and_v, B, T) if method == "LoRA" else full_budget(shape, B, T)
    return {
        "time": sorted(times[1:])[STEPS // 2],
        "memory": peak,
        "activations": activations,
        "time in theory": multiplications(method, D, L, T, B, r, V),
        "memory in theory": budget.memory / 1e6,
        "activations in theory": budget.activations / 1e6,
    }


def multiplications(method: str, D: int, L: int, T: int, B: int, r: int, V: int) -> float:
    """Of all matrix products of a step, in millions. A linear layer has three of the same size: forward, dx and dW;
    attention has six, of which the causal mask leaves about half. LoRA has no dW of a frozen matrix, no gradient below
    the first adapted projection, and for each target r (in + out) a row, three times."""
    rows = B * T
    linear, head, attention = 12 * D * D * L * rows, V * D * rows, 6 * B * T * T * D * L / 2
    if method == "full":
        return (3 * (linear + head) + attention) / 1e6
    below = 3 * D * D * rows  # dx of q, k and v of the first block
    return (2 * (linear + head) - below + attention + 3 * 2 * 2 * D * r * L * rows) / 1e6


# ---- what it came to ---------------------------------------------------------------------------------


def exponent(sizes: tuple[int, ...], values: list[float]) -> float:
    """The slope of a straight line through the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def column(points: list[dict[str, float]], what: str) -> list[float]:
    return [point[what] for point in points]


def table(points: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    middle = ", ".join(f"{name} {value}" for name, value in MIDDLE.items())
    lines = [
        f"# How a training step grows\n\nMade by `python benchmarks/scaling.py` on {processor()}, one thread. Around "
        f"{middle}; LoRA on q and v. Exponents fitted over the range shown, in brackets those of what theory counts.\n",
        "| size | range | time, full | time, LoRA | memory, full | memory, LoRA | activations, LoRA over full |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, values in RANGES.items():
        cells = []
        for what in ("time", "memory"):
            for method in METHODS:
                of = points[name].get(method)
                if of is None or of[0][what] is None:
                    cells.append("")
                    continue
                found, counted = (exponent(values, column(of, w)) for w in (what, f"{what} in theory"))
                cells.append(f"{found:.2f} [{counted:.2f}]")
        saved = ""
        if len(points[name]) == 2:
            of = zip(*(column(points[name][m], "activations") for m in ("LoRA", "full")), strict=True)
            shares = [a / b for a, b in of]
            saved = f"{shares[0]:.2f} to {shares[-1]:.2f}"
        lines.append(f"| {name} | {values[0]} to {values[-1]} | {' | '.join(cells)} | {saved} |")
    return "\n".join(lines) + "\n"


def draw(path: Path, points: dict[str, dict[str, list[dict[str, float]]]]) -> None:
    """LoRA's time and memory, each size as a line over how many times its middle it is; all else is in the table."""
    from minilora.claims.figures import (
        BLUE,
        GRAY,
        GREEN,
        ORANGE,
        PURPLE,
        SKY,
        finding,
        label_lines,
        panels,
        save_figure,
    )

    colors = dict(zip(RANGES, (BLUE, GREEN, ORANGE, PURPLE, GRAY, SKY), strict=True))

    def fill(figure: Any) -> None:
        growth = {name: exponent(values, column(points[name]["LoRA"], "time")) for name, values in RANGES.items()}
        finding(
            figure,
            f"A LoRA step's time grows as d_model to the {growth['d_model']:.1f}, T to the {growth['T']:.1f}, "
            f"layers and B to the {growth['layers']:.1f}; hardly with r",
        )
        for ax, what, title in zip(
            panels(figure, 2, 4.0),
            ("time", "memory"),
            ("ms a step; dotted: what theory counts", "peak memory (MB)"),
            strict=True,
        ):
            labels = []
            for name, values in RANGES.items():
                measured = column(points[name]["LoRA"], what)
                counted = np.array(column(points[name]["LoRA"], f"{what} in theory"))
                times = np.array(values) / MIDDLE[name]
                ax.plot(times, measured, "o-", color=colors[name], markersize=4)
                ax.plot(times, counted * np.exp(np.mean(np.log(measured) - np.log(counted))), ":", color=colors[name])
                labels.append((float(times[-1]), measured[-1], name, colors[name]))
            ax.set(xscale="log", yscale="log", title=title, xlabel="times the middle size")
            ax.set_xlim(0.2, 60)
            ax.set_xticks([0.25, 1, 4, 16], ["1/4", "1", "4", "16"])
            ax.minorticks_off()
            label_lines(ax, labels)

    save_figure(path, fill)


if __name__ == "__main__":
    main()
