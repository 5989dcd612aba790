"""The same runs on a Dask cluster of processes as on this machine's own, and what is said where there is none."""

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from minilora.tools import reproduce as tools
from minilora.tools.cli import main
from minilora.tools.sweep import WorkerDiedError, dask_workers, sweep

pytest.importorskip("distributed", reason="Dask is in the extras sweep and dev")

JOBS = [("rank", {"world": "planted", "seed": s, "r": r}) for s in (0, 1) for r in (1, 4)]


@contextmanager
def cluster(folder):
    """`dask scheduler` and two `dask worker` processes over loopback; gives the scheduler's address."""
    file = folder / "scheduler.json"

    def dask(kind, *options):
        command = [sys.executable, "-m", "dask", kind, "--host", "127.0.0.1", "--scheduler-file", file, *options]
        environment = {**os.environ, "PYTHONPATH": os.path.dirname(__file__)}  # where the workers find `_die`
        return subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    processes = [dask("scheduler", "--port", "0", "--no-dashboard")]
    try:
        deadline = time.monotonic() + 60
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        processes += [dask("worker", "--nworkers", "1", "--nthreads", "1", "--no-dashboard") for _ in range(2)]
        yield json.loads(file.read_text())["address"]
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait(timeout=30)


def test_a_cluster_gives_the_results_of_the_process_pool(tmp_path, monkeypatch):
    results = []
    with cluster(tmp_path) as address:
        for name, scheduler in (("pool", None), ("cluster", address)):
            monkeypatch.setenv("MINILORA_CACHE", str(tmp_path / name))
            results.append(tools.run_jobs(JOBS, 2, scheduler))
            assert len(list((tmp_path / name / "runs").glob("*.json"))) == len(JOBS)
        with dask_workers(address) as executor, pytest.raises(WorkerDiedError, match=r"died twice.*-1"):
            sweep(_die, [1, -1], executor)
    first, second = ({name: kept["result"] for name, kept in of.items()} for of in results)
    assert first == second and len(first) == len(JOBS)


def _die(x):
    if x < 0:
        os._exit(1)
    return x


def test_a_scheduler_that_does_not_answer_is_an_error_within_ten_seconds(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINILORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    refused = {
        "tcp://127.0.0.1:9": "No Dask scheduler answers at tcp://127.0.0.1:9",
        "127.0.0.1": "must be an address such as",
        "tcp://127.0.0.1:99999": "must be an address such as",
    }
    for address, said in refused.items():
        start = time.monotonic()
        assert main(["reproduce", "--claim", "zero_init", "--scheduler", address]) == 2
        assert time.monotonic() - start < 10
        error = capsys.readouterr().err
        assert said in error and "Traceback" not in error
