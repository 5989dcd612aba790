"""GPT-2 of 124M parameters with random weights: loading, a LoRA step, 50 sampled tokens, beside transformers and PEFT.

    python benchmarks/gpt2.py [--threads 1]

Each library in a process of its own, from the same folder in Hugging Face's layout, made here. Memory is the growth of
the process's peak while loading, over the file's size; transformers only maps the file, and reads it when it computes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from step_time import environment

ROUNDS, T, TOKENS = 7, 128, 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="threads of each library (1)")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        name, folder = options.worker
        work = make_folder if name == "folder" else LIBRARIES[name]
        print(json.dumps(work(Path(folder), options.threads)))
        return
    with tempfile.TemporaryDirectory() as folder:
        # in a process of its own too: what this one once held would count as held by those it starts
        subprocess.run([sys.executable, __file__, "--worker", "folder", folder], check=True, stdout=subprocess.DEVNULL)
        size = (Path(folder) / "model.safetensors").stat().st_size
        print(f"{options.threads} thread(s), a file of {size / 1e6:.0f} MB; B 1, T {T}; medians of {ROUNDS} steps")
        for name in LIBRARIES:
            command = [sys.executable, __file__, "--worker", name, folder, "--threads", str(options.threads)]
            done = subprocess.run(command, env=environment(options.threads), capture_output=True, text=True)
            if done.returncode:
                print(f"{name}: left out, {done.stderr.strip().splitlines()[-1]}")
                continue
            r = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{name:<13} {r['parameters']:,} parameters, {r['trainable']:,} of them trained: loads in "
                f"{r['load']:.2f} s and {r['peak'] / size:.2f} × the file; LoRA step {1e3 * r['step']:.0f} ms; "
                f"{TOKENS} sampled tokens {r['tokens']:.2f} s ({1e3 * r['tokens'] / TOKENS:.0f} ms each)"
            )


def make_folder(folder: Path, threads: int) -> None:
    """`config.json` and `model.safetensors` of GPT-2 small, weights N(0, 0.02²)."""
    import numpy as np
    from safetensors.numpy import save_file

    from minilora import GPTConfig
    from minilora.interop.gpt2 import stored_tensors

    config = GPTConfig(vocab_size=50257, context_length=1024, d_model=768, n_layers=12, n_heads=12, tied_head=True)
    rng = np.random.default_rng(0)
    tensors = {
        f"transformer.{name}": 0.02 * rng.standard_normal(shape, dtype=np.float32)
        for name, shape, _ in stored_tensors(config)
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    sizes = {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}
    (folder / "config.json").write_text(
        json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "tie_word_embeddings": True, **sizes})
    )


def peak() -> int:
    """Bytes, the most this process ever held."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def timed(run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def ids():
    import numpy as np

    row = np.random.default_rng(1).integers(0, 50257, (1, T + 1))
    return row[:, :-1], row[:, 1:]


def with_minilora(folder: Path, threads: int) -> dict:
    import minilora as ml

    load_gpt2 = ml.load_gpt2  # its file is read here
    before, start = peak(), time.perf_counter()
    model = load_gpt2(folder)
    result = {"load": time.perf_counter() - start, "peak": peak() - before, "parameters": model.num_parameters()}
    generated = timed(lambda: ml.generate(model, [50256], TOKENS, temperature=0.8, top_k=40))
    optimizer = ml.Adam(ml.add_lora(model, ml.LoRAConfig(r=4, alpha=32)), lr=2e-4)
    x, y = ids()

    def step():
        optimizer.zero_grad()
        loss = ml.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()

    step()
    times = [timed(step) for _ in range(ROUNDS)]
    return {**result, "trainable": model.num_parameters(True), "step": median(times), "tokens": generated}


def with_transformers(folder: Path, threads: int) -> dict:
    import peft
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(threads)
    before, start = peak(), time.perf_counter()
    model = transformers.GPT2LMHeadModel.from_pretrained(folder)
    parameters = sum(p.numel() for p in model.parameters())
    result = {"load": time.perf_counter() - start, "peak": peak() - before, "parameters": parameters}
    model.eval()
    prompt = torch.tensor([[50256]])
    settings = {"do_sample": True, "temperature": 0.8, "top_k": 40, "pad_token_id": 50256, "use_cache": True}
    generated = timed(lambda: model.generate(prompt, min_new_tokens=TOKENS, max_new_tokens=TOKENS, **settings))
    config = peft.LoraConfig(r=4, lora_alpha=32, target_modules=["c_attn"], fan_in_fan_out=True)
    model = peft.get_peft_model(model, config)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=2e-4)
    x, y = map(torch.from_numpy, ids())

    def step():
        optimizer.zero_grad()
        logits = model(x, use_cache=False).logits
        torch.nn.functional.cross_entropy(logits[0], y[0]).backward()
        optimizer.step()

    step()
    times = [timed(step) for _ in range(ROUNDS)]
    return {**result, "trainable": sum(p.numel() for p in trained), "step": median(times), "tokens": generated}


LIBRARIES = {"minilora": with_minilora, "transformers": with_transformers}


if __name__ == "__main__":
    main()
