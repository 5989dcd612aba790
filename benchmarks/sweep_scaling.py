"""How much faster a sweep finishes on several processes than on one: equal runs, both in one run of this script.

    python benchmarks/sweep_scaling.py [--workers 2] [--runs 24]

A run adapts a string base, pretrained first if the cache has none. Start-up of the processes counts.
"""

from __future__ import annotations

import argparse
import time

from minilora.claims.adaptation import NAME, adaptation
from minilora.claims.bases import pretrained
from minilora.tools.reproduce import timed_run
from minilora.tools.sweep import process_pool, sweep


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2, help="processes to compare with one (2)")
    parser.add_argument("--runs", type=int, default=24, help="equal runs (24)")
    options = parser.parse_args()
    pretrained("strings", 0)
    jobs = [(NAME, adaptation("strings", 0, "revupper", "lora q,v 4", seed=s)) for s in range(options.runs)]
    seconds = {}
    for workers in (1, options.workers):
        start = time.perf_counter()
        with process_pool(workers) as executor:
            sweep(timed_run, jobs, executor)
        seconds[workers] = time.perf_counter() - start
        print(f"{options.runs} runs on {workers} process{'es' * (workers > 1)}: {seconds[workers]:.1f} s")
    print(f"{seconds[1] / seconds[options.workers]:.2f} times as fast")


if __name__ == "__main__":
    main()
