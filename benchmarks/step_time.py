"""Step times and peak memory of minilora, with and without kernels, beside PyTorch, PEFT, JAX and HIPS autograd.

    python benchmarks/step_time.py [--rounds 7] [--out figures]     # nine minutes
    python benchmarks/step_time.py --redraw                         # the table and the figure anew, from step_time.json

Each library runs in a process of its own (in one for all, what fresh memory costs one library hides behind the heap
of another), and rounds alternate, so that a machine that slows down slows all alike. First with one thread each, pinned
to one core; then with all cores. Beside them stand the bare matrix products of a full step, by NumPy into arrays made
once. Medians and quartiles over rounds, each the median of its steps; ratios are of medians, their quartiles over
rounds. Memory is the growth of a process's peak from after its imports over three steps. Writes step_time.json, with
the time of every round, and from it step_time.md and step_time.png. Libraries that are not installed are left out, and
named (extra `bench`). Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from libraries import MAKERS

CONFIGURATIONS = {  # batch, time, d_model, layers; 4 heads, 96 symbols, float32
    "B64 T20 d64 L2": (64, 20, 64, 2),
    "B16 T64 d64 L2": (16, 64, 64, 2),
    "B32 T64 d128 L4": (32, 64, 128, 4),
    "B8 T128 d320 L8": (8, 128, 320, 8),
}
LARGEST = "B8 T128 d320 L8"
RATIOS = {  # of the first to the second; the bars this project set itself, by configuration
    ("minilora full", "PyTorch full"): (0.65, 0.70, 0.65, 0.60),
    ("minilora full", "torch.compile full"): (0.75, 0.75, 0.75, 0.75),
    ("minilora full", "JAX jit full"): (0.85, 0.85, 0.45, None),
    ("minilora full", "HIPS autograd full"): (0.33, 0.33, 0.33, 0.33),
    ("minilora full", "products"): (2.5, 2.5, 1.7, None),
    ("minilora LoRA", "PEFT LoRA"): (0.62, 0.67, 0.62, 0.62),
    ("minilora LoRA", "minilora full"): (0.80, 0.80, 0.80, 0.80),
    ("textbook full", "minilora full"): (None,) * 4,
    ("textbook LoRA", "minilora LoRA"): (None,) * 4,
    ("minilora forward", "PyTorch forward"): (None,) * 4,
    ("minilora merged forward", "minilora forward"): (None,) * 4,
    ("minilora forward again", "minilora forward"): (None,) * 4,
}
ALL_CORES = {
    ("minilora full", "PyTorch full"): (1.0,) * 4,
    ("minilora LoRA", "PEFT LoRA"): (1.0,) * 4,
}
MEMORY = {
    ("minilora full", "PyTorch full"): 1.1,
    ("minilora LoRA", "PEFT LoRA"): 1.0,
    ("minilora LoRA", "minilora full"): 0.65,
}
IMPORTS = {"PyTorch": "torch", "torch.compile": "torch", "PEFT": "peft", "JAX": "jax.numpy"}

Times = dict[str, dict[str, list[float]]]  # configuration -> worker -> ms of each round


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="counted rounds, after one of warm-up (7)")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder of the table and the figure")
    parser.add_argument("--redraw", action="store_true", help="measure nothing; read what was measured last")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        serve(*options.worker[:2], int(options.worker[2]))
        return
    from minilora.claims.figures import check_figures
    from minilora.interop.files import check_output, write_text

    check_figures()
    for name in ("step_time.json", "step_time.md", "step_time.png"):
        check_output(options.out / name)
    measured = options.out / "step_time.json"
    if not options.redraw:
        write_text(measured, json.dumps(run(options.rounds)) + "\n")
    found = json.loads(measured.read_text(encoding="utf-8"))
    text = table(found)
    print(text)
    write_text(options.out / "step_time.md", text)
    draw(options.out / "step_time.png", found["one"])


def run(rounds: int) -> dict[str, Any]:
    """What was measured, and on what."""
    about: dict[str, str] = {}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    one = {name: measure(name, list(MAKERS), rounds, 1, about) for name in CONFIGURATIONS}
    together = [worker for pair in ALL_CORES for worker in pair]
    everything = {name: measure(name, together, rounds, cores, {}) for name in CONFIGURATIONS}
    memory = {worker: peak for worker in dict.fromkeys(w for pair in MEMORY for w in pair) if (peak := peak_of(worker))}
    measured = {"about": about, "one": one, "everything": everything, "memory": memory}
    return {"processor": processor(), "cores": cores, **measured}


# ---- rounds ------------------------------------------------------------------------------------------


def measure(configuration: str, workers: list[str], rounds: int, threads: int, about: dict[str, str]):
    """Milliseconds of every round of every worker that starts; what each is goes into `about`."""
    times: dict[str, list[float]] = {}
    with started(configuration, workers, threads) as processes:
        for worker, process in processes.items():
            hello = json.loads(process.stdout.readline() or "{}")
            if "about" in hello:
                times[worker] = []
            about[worker] = hello.get("about") or f"left out: {hello.get('missing', 'it did not start')}"
        for number in range(rounds + 1):
            for worker in times:
                processes[worker].stdin.write("go\n")
                processes[worker].stdin.flush()
                milliseconds = json.loads(processes[worker].stdout.readline())
                if number:
                    times[worker].append(milliseconds)
        print(f"{configuration}, {threads} thread(s): measured", file=sys.stderr)
    return times


@contextmanager
def started(configuration: str, workers: list[str], threads: int) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """A process for each worker, ended at the end."""
    processes = {
        worker: subprocess.Popen(
            [sys.executable, __file__, "--worker", worker, configuration, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment(threads),
        )
        for worker in workers
    }
    try:
        yield processes
    finally:
        for process in processes.values():
            process.stdin.close()
            process.wait()


def environment(threads: int) -> dict[str, str]:
    """For a process to be timed: as many threads for every library, and nothing that slows one of them down."""
    variables = {**os.environ, "MINILORA_TUNE": "0"}
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        variables[variable] = str(threads)
    for variable in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):  # where set, they pin NumPy to an older kernel
        variables.pop(variable, None)
    return variables


def serve(worker: str, configuration: str, threads: int) -> None:
    """In a worker's process: say hello, then time one round for every line "go", or answer "memory"."""
    if threads == 1 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # whatever threads a library starts share one core
    try:
        import_module("minilora")
        if module := IMPORTS.get(worker.split()[0]):
            import_module(module)
        before = resident("VmRSS")
        about, step = MAKERS[worker](*CONFIGURATIONS[configuration], threads)
        if before is not None:
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        step()
    except Exception as error:  # not installed, or no compiler: the others go on
        print(json.dumps({"missing": f"{type(error).__name__}: {str(error).splitlines()[0]}"}), flush=True)
        return
    print(json.dumps({"about": about}), flush=True)
    for line in sys.stdin:
        if line.strip() == "memory":
            step()
            step()
            print(json.dumps(None if before is None else resident("VmHWM") - before), flush=True)
            continue
        times = []
        until = time.perf_counter() + 0.5
        while len(times) < 3 or time.perf_counter() < until:
            start = time.perf_counter()
            step()
            times.append(1e3 * (time.perf_counter() - start))
        print(json.dumps(sorted(times)[len(times) // 2]), flush=True)


def resident(field: str) -> int | None:
    """Bytes of this process in memory, now (VmRSS) or at most so far (VmHWM); None where the system does not say."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    return 1024 * int(next(line for line in status.read_text().splitlines() if line.startswith(field)).split()[1])


def peak_of(worker: str) -> int | None:
    """Bytes by which a worker's process grows at the most, at the largest configuration."""
    with started(LARGEST, [worker], 1) as processes:
        process = processes[worker]
        if "about" not in json.loads(process.stdout.readline() or "{}"):
            return None
        process.stdin.write("memory\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())


# ---- what it came to ---------------------------------------------------------------------------------


def quartiles(values: list[float]) -> tuple[float, float, float]:
    ordered = sorted(values)
    return tuple(ordered[round(q * (len(ordered) - 1))] for q in (0.25, 0.5, 0.75))


def ratio(times: dict[str, list[float]], one: str, other: str) -> tuple[float, float, float] | None:
    """Quartile, ratio of the medians, quartile; None where one of them did not run."""
    if one not in times or other not in times:
        return None
    low, _, high = quartiles([a / b for a, b in zip(times[one], times[other], strict=True)])
    return low, quartiles(times[one])[1] / quartiles(times[other])[1], high


def table(found: dict[str, Any]) -> str:
    one, everything, memory, about, cores = (found[n] for n in ("one", "everything", "memory", "about", "cores"))
    lines = [f"# Step times\n\nMade by `python benchmarks/step_time.py` on {found['processor']}, {cores} cores.\n"]
    lines += [f"- {worker}: {what}" for worker, what in about.items()]
    lines += ["", "## One thread each, ms, median (quartiles)\n", *grid(one, list(MAKERS))]
    lines += ["", "## Ratios, one thread each; in brackets the bar, where one was set\n", *ratios(one, RATIOS)]
    lines += ["\nMerged against base in one process, which is finer: the claim `latency` of `minilora reproduce`."]
    lines += [
        "",
        f"## All {cores} cores each, ms, median (quartiles)\n",
        *grid(everything, list(next(iter(everything.values())))),
    ]
    lines += ["", *ratios(everything, ALL_CORES)]
    lines += ["", f"## Peak memory of three steps at {LARGEST}, MB over the process after its imports\n"]
    lines += ["| | MB |", "|---|---|", *(f"| {worker} | {peak / 1e6:.0f} |" for worker, peak in memory.items()), ""]
    for (a, b), bar in MEMORY.items():
        if a in memory and b in memory:
            lines.append(f"- {a} / {b}: {memory[a] / memory[b]:.2f} [{bar}]")
    return "\n".join(lines) + "\n"


def grid(times: Times, workers: list[str]) -> list[str]:
    def cell(values: list[float] | None) -> str:
        if not values:
            return ""
        low, middle, high = quartiles(values)
        return f"{middle:.1f} ({low:.1f} to {high:.1f})" if middle < 1000 else f"{middle:.0f} ({low:.0f} to {high:.0f})"

    rows = [f"| {worker} | " + " | ".join(cell(times[c].get(worker)) for c in times) + " |" for worker in workers]
    return [f"| | {' | '.join(times)} |", "|---|" + "---|" * len(times), *rows]


def ratios(times: Times, pairs: dict[tuple[str, str], tuple[float | None, ...]]) -> list[str]:
    def cell(found: tuple[float, float, float] | None, bar: float | None) -> str:
        if found is None:
            return ""
        low, middle, high = found
        return f"{middle:.2f} ({low:.2f} to {high:.2f})" + ("" if bar is None else f" [{bar}]")

    rows = [
        f"| {a} / {b} | "
        + " | ".join(cell(ratio(times[c], a, b), bar) for c, bar in zip(times, bars, strict=True))
        + " |"
        for (a, b), bars in pairs.items()
    ]
    return [f"| | {' | '.join(times)} |", "|---|" + "---|" * len(times), *rows]


def processor() -> str:
    """What the system calls it."""
    path = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in path.read_text().splitlines() if line.startswith("model name")]
        if path.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def draw(path: Path, times: Times) -> None:
    from minilora.claims.figures import BLUE, GRAY, GREEN, ORANGE, PURPLE, RED, SKY, save_figure

    groups = {
        "full step": (
            "minilora full",
            "PyTorch full",
            "torch.compile full",
            "JAX jit full",
            "HIPS autograd full",
            "products",
        ),
        "LoRA step": ("minilora LoRA", "PEFT LoRA"),
        "forward": ("minilora forward", "minilora merged forward", "PyTorch forward"),
    }
    colors = dict(
        zip(
            MAKERS,
            (BLUE, ORANGE, RED, GREEN, PURPLE, GRAY, BLUE, ORANGE, BLUE, SKY, SKY, ORANGE, BLUE, BLUE, BLUE),
            strict=True,
        )
    )

    def fill(figure) -> None:
        for ax, (title, workers) in zip(figure.subplots(1, 3, width_ratios=(6, 3, 3)), groups.items(), strict=True):
            for number, worker in enumerate(workers):
                own = worker.removesuffix(title.split()[0]).strip() or worker
                for place, name in enumerate(times):
                    if found := ratio(times[name], worker, workers[0]):
                        low, middle, high = found
                        x = place + (number - (len(workers) - 1) / 2) * 0.8 / len(workers)
                        ax.bar(x, middle, 0.75 / len(workers), color=colors[worker], label=None if place else own)
                        # of rounds: it may leave the ratio of medians out
                        ax.vlines(x, low, high, color="black", linewidth=1)
            ax.axhline(1, color="black", linewidth=0.8)
            ax.set_xticks(range(len(times)), [name.replace(" ", "\n", 3) for name in times], fontsize=8)
            ax.set_title(title[0].upper() + title[1:])
            ax.grid(axis="x", visible=False)
            if title == "full step":
                ax.set_yscale("log")
                ax.set_yticks([0.5, 1, 2, 4, 8], ["½", "1", "2", "4", "8"])
                ax.minorticks_off()
                ax.set_ylabel("time over minilora's (median, quartiles)")
            ax.set_ylim(top=12 if title == "full step" else 1.6)
            ax.legend(fontsize=8, ncols=2, loc="upper left")

    save_figure(path, fill, 13, 4)


if __name__ == "__main__":
    main()
