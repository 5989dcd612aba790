"""Training killed at random moments and resumed: the same weights, bit for bit, as the unbroken run.

python -m pytest -m stress tests/stress
"""

import numpy as np
import pytest
from kills import kill_training

from minilora.tools.cli import main

pytestmark = pytest.mark.stress


def test_adapt_killed_ten_times_ends_as_if_it_had_not_been(tmp_path):
    base = str(tmp_path / "base.npz")
    assert main(["pretrain", "--task", "copy", "--steps", "50", "--out", base]) == 0
    command = ["adapt", "--base", base, "--task", "upper", "--dropout", "0.3", "--batch", "8"]
    command += ["--steps", "3500", "--out"]
    assert main([*command, str(tmp_path / "a")]) == 0
    assert kill_training([*command, str(tmp_path / "b")], tmp_path / "b" / "checkpoint.npz", kills=10) == 10
    assert sorted(path.name for path in (tmp_path / "b").glob("[!.]*")) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    for path in (tmp_path / "a").iterdir():
        assert (tmp_path / "b" / path.name).read_bytes() == path.read_bytes()


def test_pretrain_killed_ten_times_ends_as_if_it_had_not_been(tmp_path):
    command = ["pretrain", "--task", "copy,upper", "--batch", "8", "--steps", "3500", "--out"]
    assert main([*command, str(tmp_path / "a.npz")]) == 0
    assert kill_training([*command, str(tmp_path / "b.npz")], tmp_path / "b.npz.checkpoint.npz", kills=10) == 10
    with np.load(tmp_path / "a.npz") as a, np.load(tmp_path / "b.npz") as b:
        assert a.files == b.files
        for name in a.files:
            assert a[name].tobytes() == b[name].tobytes(), name
