"""Processes killed while they save or train, and what they leave. Run as a script, this is the process to be killed:

python tests/stress/kills.py adapter|checkpoint PATH
"""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from helpers import adapter_state, optimizer_state, randomize_lora, tiny_gpt

import minilora as ml
from minilora.backend import asarray, backend_name


def environment():
    """Of the process to be killed, which computes with what this run computes with: files are compared bit for bit."""
    library = {"MINILORA_BACKEND": "cupy"} if backend_name() == "cupy" else {}
    return {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", **library}


def model_of(state):
    """State 0 or 1: other values, another rank and another α, so that both files of an adapter differ."""
    model = tiny_gpt(d_model=256)
    ml.add_lora(model, ml.LoRAConfig(64 >> state, alpha=3 + state, dropout=0.1 * state))
    randomize_lora(model, seed=state)
    return model


def optimizer_of(model, state):
    optimizer = ml.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1 + state)
    for number, array in enumerate(optimizer.state["m"]):
        array[...] = asarray(np.random.default_rng([state, number]).random(array.shape))
    return optimizer


class Adapter:
    @staticmethod
    def saver(path, state):
        """A function that saves, with all that can be made beforehand made."""
        model = model_of(state)
        return lambda: ml.save_adapter(model, path)

    @staticmethod
    def loaded(path):
        """Which of the two states stands there, whole, down to the bit; None for neither."""
        model = tiny_gpt(d_model=256)
        ml.load_adapter(model, path)
        for state in (0, 1):
            if adapter_state(model) == adapter_state(model_of(state)):
                return state
        return None


class Checkpoint:
    @staticmethod
    def saver(path, state):
        model = model_of(state)
        optimizer = optimizer_of(model, state)
        return lambda: ml.save_checkpoint(path / "c.npz", model, optimizer, step=state)

    @staticmethod
    def loaded(path):
        model = ml.load_model(path / "c.npz")
        optimizer = optimizer_of(model, 7)
        state = ml.load_checkpoint(path / "c.npz", model, optimizer)
        saved = model_of(state)
        same = adapter_state(model) == adapter_state(saved)
        return state if same and optimizer_state(optimizer) == optimizer_state(optimizer_of(saved, state)) else None


KINDS = {"adapter": Adapter, "checkpoint": Checkpoint}


def kill_saves(name, folder, kills, seed=0):
    """Kill a process that saves the two states in turn, `kills` times; returns which state each kill left."""
    rng, kind, left = random.Random(seed), KINDS[name], []
    kind.saver(folder, 0)()
    for _ in range(kills):
        command = [sys.executable, __file__, name, str(folder)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment())
        assert process.stdout.readline() == b"saving\n"
        time.sleep(rng.uniform(0, 0.06))
        process.kill()
        process.wait()
        process.stdout.close()
        left.append(kind.loaded(folder))
    return left


def kill_training(command, checkpoint, kills, seed=0):
    """Run a command of `minilora`, killed at `kills` random moments and resumed each time; returns how often it was.

    Every third kill comes at once, perhaps before there is a checkpoint; the others soon after a new one.
    """
    rng = random.Random(seed)
    command = [sys.executable, "-m", "minilora", *command, "--resume"]
    quiet = {"env": environment(), "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}

    def age():
        return checkpoint.stat().st_mtime_ns if checkpoint.exists() else None

    for kill in range(kills):
        before, process = age(), subprocess.Popen(command, **quiet)
        while kill % 3 and age() == before and process.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.3 if kill % 3 else 1.5))
        process.kill()
        if process.wait() == 0:
            return kill
    subprocess.run(command, check=True, **quiet)
    return kills


def main():
    name, folder = sys.argv[1:]
    savers = [KINDS[name].saver(Path(folder), state) for state in (0, 1)]
    print("saving", flush=True)
    while True:
        for save in savers:
            save()


if __name__ == "__main__":
    main()
