"""The short form of `tests/stress/test_kill_*.py`, and the one moment that a random kill seldom meets: a crash between
the two files of an adapter."""

import json

import pytest
from helpers import adapter_state, lora_gpt, tiny_gpt
from kills import KINDS, kill_saves, kill_training

import minilora as ml
from minilora.interop import peft
from minilora.tools.cli import main


@pytest.mark.parametrize("name", KINDS)
def test_a_few_kills_leave_the_old_or_the_new_file(tmp_path, name):
    assert set(kill_saves(name, tmp_path, kills=4)) <= {0, 1}


def test_adapt_killed_twice_ends_as_if_it_had_not_been(tmp_path):
    base = str(tmp_path / "base.npz")
    tiny = ["--d-model", "16", "--layers", "1", "--heads", "2", "--batch", "4"]
    assert main(["pretrain", "--task", "copy", "--steps", "3", *tiny, "--out", base]) == 0
    command = [
        "adapt",
        "--base",
        base,
        "--task",
        "upper",
        "--dropout",
        "0.3",
        "--steps",
        "1000",
        "--batch",
        "4",
        "--out",
    ]
    assert main([*command, str(tmp_path / "a")]) == 0
    kill_training([*command, str(tmp_path / "b")], tmp_path / "b" / "checkpoint.npz", kills=2)
    for path in (tmp_path / "a").iterdir():
        assert (tmp_path / "b" / path.name).read_bytes() == path.read_bytes()


# ---- between the two files ---------------------------------------------------------------------------

OLD, NEW, NEWER = ({"alpha": 3}, {"alpha": 8, "r": 4, "dropout": 0.5}, {"alpha": 1, "targets": ("fc_in",)})


def loaded(folder):
    model = tiny_gpt()
    ml.load_adapter(model, folder)
    return adapter_state(model)


def crash(monkeypatch, step):
    """Make the next save stop before the weights ("write_atomically") or before the settings ("write_text")."""

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(peft, step, stop)


def test_a_crash_between_the_two_files_leaves_the_new_adapter(tmp_path, monkeypatch):
    ml.save_adapter(lora_gpt(**OLD), tmp_path)
    for settings in (NEW, NEWER, OLD, NEW):  # each over what the crash before it left
        with monkeypatch.context() as patch:
            crash(patch, "write_text")
            with pytest.raises(KeyboardInterrupt):
                ml.save_adapter(lora_gpt(**settings), tmp_path)
        assert json.loads((tmp_path / peft.CONFIG).read_text())["lora_alpha"] == OLD["alpha"]
        assert loaded(tmp_path) == adapter_state(lora_gpt(**settings))
    ml.save_adapter(lora_gpt(**NEWER), tmp_path)
    assert loaded(tmp_path) == adapter_state(lora_gpt(**NEWER))


def test_a_crash_before_the_weights_leaves_the_old_adapter(tmp_path, monkeypatch):
    ml.save_adapter(lora_gpt(**OLD), tmp_path)
    crash(monkeypatch, "write_atomically")
    with pytest.raises(KeyboardInterrupt):
        ml.save_adapter(lora_gpt(**NEW), tmp_path)
    assert loaded(tmp_path) == adapter_state(lora_gpt(**OLD))


def test_settings_that_were_edited_are_no_interrupted_save(tmp_path):
    for settings in (OLD, NEW):
        ml.save_adapter(lora_gpt(**settings), tmp_path)
    fields = json.loads((tmp_path / peft.CONFIG).read_text())
    (tmp_path / peft.CONFIG).write_text(json.dumps({**fields, "lora_alpha": 5}))
    with pytest.raises(peft.AdapterError, match="was edited"):
        loaded(tmp_path)
