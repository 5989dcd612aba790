"""`minilora reproduce`, killed at ten random moments and run again: nothing that finished is lost, the report is equal.

    python -m pytest -m stress tests/stress

Takes some minutes: two bases are pretrained, twice.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.stress

# one claim of each kind, none of which measures time, so that all of the report but its seconds must be equal
COMMAND = [sys.executable, "-m", "minilora", "reproduce", "--quick", "--workers", "2"]
COMMAND += ["--claim", "zero_init", "rank", "intrinsic_rank", "subspaces"]


def report(folder):
    rows = json.loads((folder / "claims.json").read_text(encoding="utf-8"))
    for row in rows["claims"]:
        del row["seconds"]
    return rows


def test_ten_kills_lose_nothing_and_change_nothing(tmp_path):
    def environment(name):
        return {**os.environ, "MINILORA_CACHE": str(tmp_path / name)}

    def kept():
        return {path.name: path.read_bytes() for path in (tmp_path / "killed" / "runs").glob("*.json")}

    subprocess.run([*COMMAND, "--out", tmp_path / "a"], env=environment("unbroken"), check=True)
    rng, before = random.Random(0), {}
    for kill in range(10):
        process = subprocess.Popen(
            [*COMMAND, "--out", tmp_path / "b"], env=environment("killed"), start_new_session=True
        )
        if kill < 2:  # while the bases are pretrained
            time.sleep(rng.uniform(3, 20))
        else:  # after some runs of its own have finished
            while len(kept()) == len(before) and process.poll() is None:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 1.5))
        assert process.poll() is None, f"the run ended before kill {kill}"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        after = kept()
        assert before.items() <= after.items(), "a finished run was lost or changed"
        before = after
    subprocess.run([*COMMAND, "--out", tmp_path / "b"], env=environment("killed"), check=True)
    assert report(tmp_path / "a") == report(tmp_path / "b")
    for figure in (tmp_path / "a").glob("*.png"):
        assert figure.read_bytes() == (tmp_path / "b" / figure.name).read_bytes()
