"""Step times of minilora beside PyTorch and PEFT, each in a process of its own, in alternating rounds.

    python benchmarks/step_time.py [--rounds 9] [--threads 1]

One process for all would hide what fresh memory costs one library behind the heap of another; rounds alternate so
that a machine that slows down slows all alike. Medians and quartiles over rounds of the median step; ratios are of
medians. Beside them the time of the bare matrix products of a full step, by NumPy into arrays made once.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

CONFIGURATIONS = {  # batch, time, d_model, layers; 4 heads, 96 symbols, float32
    "B64 T20 d64 L2": (64, 20, 64, 2),
    "B16 T64 d64 L2": (16, 64, 64, 2),
    "B32 T64 d128 L4": (32, 64, 128, 4),
}
WORKERS = ("minilora full", "torch full", "minilora lora", "peft lora", "products")
PAIRS = (("minilora full", "torch full"), ("minilora lora", "peft lora"), ("minilora full", "products"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="counted rounds, after one of warm-up (9)")
    parser.add_argument("--threads", type=int, default=1, help="BLAS threads of each library (1)")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        serve(*options.worker, options.threads)
        return
    for name in CONFIGURATIONS:
        measure(name, options.rounds, options.threads)


def measure(configuration: str, rounds: int, threads: int) -> None:
    """Run every worker on one configuration and print its table."""
    processes = {}
    for worker in WORKERS:
        command = [sys.executable, __file__, "--worker", worker, configuration, "--threads", str(threads)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(threads)
        )
        hello = json.loads(process.stdout.readline() or "{}")
        if "missing" in hello or not hello:
            print(f"{worker}: left out, {hello.get('missing', 'it did not start')}")
            process.wait()
        else:
            processes[worker] = process
            if configuration == next(iter(CONFIGURATIONS)):
                print(f"{worker:<14} {hello['about']}")
    times = {worker: [] for worker in processes}
    for number in range(rounds + 1):
        for worker, process in processes.items():
            process.stdin.write("go\n")
            process.stdin.flush()
            milliseconds = json.loads(process.stdout.readline())
            if number:
                times[worker].append(milliseconds)
    for process in processes.values():
        process.stdin.close()
        process.wait()
    print(f"\n{configuration}, {threads} thread{'s' * (threads > 1)}: ms a step, median (quartiles)")
    medians = {}
    for worker, values in times.items():
        low, medians[worker], high = quartiles(values)
        print(f"  {worker:<14} {medians[worker]:8.2f}  ({low:.2f} to {high:.2f})")
    for one, other in PAIRS:
        if one in medians and other in medians:
            print(f"  {one} / {other}: {medians[one] / medians[other]:.2f}")


def environment(threads: int) -> dict[str, str]:
    """For a process to be timed: as many threads for every library, and nothing that slows one of them down."""
    variables = {**os.environ, "MINILORA_TUNE": "0"}
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        variables[variable] = str(threads)
    for variable in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):  # where set, they pin NumPy to an older kernel
        variables.pop(variable, None)
    return variables


def quartiles(values: list[float]) -> tuple[float, float, float]:
    ordered = sorted(values)
    return tuple(ordered[round(q * (len(ordered) - 1))] for q in (0.25, 0.5, 0.75))


# ---- one library, in its own process -----------------------------------------------------------------


def serve(worker: str, configuration: str, threads: int) -> None:
    """Say hello, then time one round for every line read."""
    try:
        about, step = MAKERS[worker](*CONFIGURATIONS[configuration], threads)
    except ImportError as error:
        print(json.dumps({"missing": str(error)}), flush=True)
        return
    print(json.dumps({"about": about}), flush=True)
    for _ in sys.stdin:
        times = []
        until = time.perf_counter() + 0.5
        while len(times) < 5 or time.perf_counter() < until:
            start = time.perf_counter()
            step()
            times.append(1e3 * (time.perf_counter() - start))
        print(json.dumps(sorted(times)[len(times) // 2]), flush=True)


def data(B, T):
    import numpy as np

    rng = np.random.default_rng(0)
    return rng.integers(0, 96, (B, T)), rng.integers(0, 96, (B, T))


def make_minilora(B, T, D, L, threads, lora=False):
    import minilora as ml
    from minilora import functional as F
    from minilora.machine import blas_name, blas_threads

    model = ml.GPT(ml.GPTConfig(vocab_size=96, context_length=T, d_model=D, n_layers=L, n_heads=4))
    parameters = ml.add_lora(model, ml.LoRAConfig(r=4)) if lora else model.parameters()
    optimizer = ml.Adam(parameters, lr=1e-3)
    ids, targets = data(B, T)

    def step():
        loss = F.cross_entropy(model(ids), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return f"minilora {ml.__version__}, {blas_name()}, {blas_threads()} thread(s), {os.cpu_count()} cores", step


def make_torch(B, T, D, L, threads, lora=False):
    import torch

    sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "parity"))
    from torch_gpt import TorchGPT

    import minilora as ml

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = TorchGPT(ml.GPTConfig(vocab_size=96, context_length=T, d_model=D, n_layers=L, n_heads=4))
    about = f"torch {torch.__version__}, {torch.get_num_threads()} thread(s)"
    if lora:
        import peft

        model = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj", "v_proj"]))
        about += f", peft {peft.__version__}"
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    ids, targets = map(torch.from_numpy, data(B, T))

    def step():
        loss = torch.nn.functional.cross_entropy(model(ids).reshape(-1, 96), targets.reshape(-1))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return about, step


def make_products(B, T, D, L, threads):
    """The matrix products of one full step: each linear layer's three, and attention's six."""
    import numpy as np

    rng = np.random.default_rng(0)
    products = []

    def product(a, b):
        a, b = (rng.normal(size=shape).astype("float32") for shape in (a, b))
        products.append((a, b, np.matmul(a, b)))

    M, d = B * T, D // 4
    for i, o in [(D, D)] * 4 * L + [(D, 4 * D), (4 * D, D)] * L + [(D, 96)]:
        for a, b in (((M, i), (i, o)), ((M, o), (o, i)), ((o, M), (M, i))):
            product(a, b)
    for _ in range(L):
        for a, b in [((T, d), (d, T)), ((T, T), (T, d))] * 3:
            product((B, 4, *a), (B, 4, *b))

    def step():
        for a, b, out in products:
            np.matmul(a, b, out=out)

    return f"numpy {np.__version__}, {len(products)} products", step


MAKERS = {
    "minilora full": make_minilora,
    "minilora lora": lambda *a: make_minilora(*a, lora=True),
    "torch full": make_torch,
    "peft lora": lambda *a: make_torch(*a, lora=True),
    "products": make_products,
}


if __name__ == "__main__":
    main()
