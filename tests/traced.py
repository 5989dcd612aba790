"""Trains a tiny model under a tracer and prints its losses, bit by bit: `python traced.py WHEN HOW [locals]`.

WHEN: never; import (of minilora alone); later (training alone); always; thread (the main thread while another trains).
HOW: settrace or setprofile. With `locals` the tracer reads every function's f_locals, as a debugger does when it stops.
"""

import inspect
import sys
import threading


def tracer(look):
    def trace(frame, event, argument):
        if look and frame.f_code.co_flags & inspect.CO_OPTIMIZED:  # at module level, 3.12 then breaks comprehensions
            dict(frame.f_locals)
        return trace

    return trace


def losses():
    import numpy as np

    import minilora as ml

    model = ml.GPT(ml.GPTConfig(11, 32, 64, 2, 4), seed=1)
    trained = ml.add_lora(model, ml.LoRAConfig(4, dropout=0.1))

    def draw(step):
        return np.random.default_rng(step).integers(0, 11, (2, 4, 32))

    return ml.train(model, ml.AdamW(trained, 1e-2), ml.batch_loss(model, draw), 5, clip=1.0)["loss"]


def main(when="never", how="settrace", look=None):
    start, trace = getattr(sys, how), tracer(look == "locals")
    found = []
    if when in ("import", "always", "thread"):
        start(trace)
    import minilora  # noqa: F401

    if when == "import":
        start(None)
    if when == "later":
        start(trace)
    if when == "thread":
        worker = threading.Thread(target=lambda: found.extend(losses()))
        worker.start()
        worker.join()
    else:
        found = losses()
    start(None)
    print([loss.hex() for loss in found])


if __name__ == "__main__":
    main(*sys.argv[1:])
