"""Where the time of `minilora reproduce` goes: by experiment over all runs, then by function within two.

    python benchmarks/profile_reproduce.py [--quick]

Reads how long each run took from the cache that `minilora reproduce` (with the same `--quick`) left behind, and runs
anything that is not there. Then it runs one adaptation on strings and one on text again under cProfile.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
from collections import Counter

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as in the workers, before NumPy is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")

from minilora.claims import CLAIMS, adaptation, experiment_of
from minilora.claims.claim import Settings
from minilora.tools.reproduce import Job, job_name, run_jobs
from minilora.tools.sweep import available_cores

FUNCTIONS = 14


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="of the quick run")
    options = parser.parse_args()
    by_experiment(Settings(seeds=1 if options.quick else 3, quick=options.quick))
    for world, task in (("strings", "revupper"), ("text", "code")):
        by_function(world, task)


def by_experiment(settings: Settings) -> None:
    jobs: list[Job] = [(experiment_of(claim, c), c) for claim in CLAIMS for c in claim.configurations(settings)]
    results = run_jobs(jobs, available_cores())
    seconds: Counter[str] = Counter()
    runs: Counter[str] = Counter()
    for name, (experiment, configuration) in {job_name(job): job for job in jobs}.items():
        label = f"{experiment}, {configuration['base'][0]}" if "base" in configuration else experiment
        seconds[label] += results[name]["seconds"]
        runs[label] += 1
    total = sum(seconds.values())
    print(f"{len(results)} runs, {total:.0f} s of one core, bases aside")
    for label, spent in seconds.most_common():
        print(f"  {spent:6.1f} s  {100 * spent / total:4.1f} %  {runs[label]:4} runs  {label}")


def by_function(world: str, task: str) -> None:
    configuration = adaptation.adaptation(world, 0, task, "lora q,v 4")
    adaptation.run({**configuration, "steps": 5})  # warm: what is read once is read
    profile = cProfile.Profile()
    profile.runcall(adaptation.run, configuration)
    stats = pstats.Stats(profile)
    total = stats.total_tt  # type: ignore[attr-defined]
    print(
        f"\n{world}, {configuration['steps']} steps of LoRA on q and v: {total:.1f} s under the profiler; own time of"
    )
    rows = sorted(stats.stats.items(), key=lambda item: -item[1][2])[:FUNCTIONS]  # type: ignore[attr-defined]
    for (file, _, function), (_, calls, own, _, _) in rows:
        print(f"  {100 * own / total:4.1f} %  {calls:7} calls  {os.path.basename(file)} {function}")


if __name__ == "__main__":
    main()
