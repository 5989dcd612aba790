"""Options: numbers out of range, options that would be ignored, what --resume compares, --adapter to go on from."""

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import gpt2_folder

import minilora as ml
from minilora.lora import lora_layers, shared_adapter
from minilora.tools import cli, learning, models, options
from minilora.tools import reproduce as tools
from minilora.tools.cli import main
from minilora.tools.commands import pretrain, reproduce

TINY = ["--steps", "2", "--batch", "2", "--d-model", "16", "--layers", "1", "--heads", "2"]
# each command with all that it requires; so it would run, were it not for what a test adds
COMPLETE = {
    "reproduce": ["reproduce", "--out", "report"],
    "pretrain": ["pretrain", "--text", "text.txt", *TINY, "--context", "8", "--out", "new.npz"],
    "adapt": [
        "adapt",
        "--base",
        "base.npz",
        "--text",
        "text.txt",
        "--steps",
        "2",
        "--batch",
        "2",
        "--r",
        "1",
        "--out",
        "new",
    ],
    "generate": ["generate", "--base", "base.npz", "--prompt", "a", "--length", "2"],
    "merge": ["merge", "--base", "base.npz", "--adapter", "adapter", "--out", "new.npz"],
    "budget": ["budget", "--preset", "tiny", "--r", "1"],
    "info": ["info"],
}


@pytest.fixture(autouse=True)
def made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINILORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(reproduce, "reproduce", lambda *_, **__: None)
    Path("text.txt").write_text("to be or not to be " * 100)
    assert main(["pretrain", "--task", "copy", *TINY, "--out", "base.npz"]) == 0


def refused(arguments, capsys):
    """The one sentence, or argparse's usage and one sentence, that a command is refused with."""
    capsys.readouterr()
    before = sorted(os.listdir())
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = stop.code
    said = capsys.readouterr()
    assert status == 2 and said.out == "" and "Traceback" not in said.err and sorted(os.listdir()) == before
    usage, _, sentence = said.err.strip().rpartition("\n")
    assert usage == "" or "usage: " in usage
    return sentence


# ---- numbers -----------------------------------------------------------------------------------------


def numeric_options():
    """(command, option, whether it is whole) of every number that the command line takes."""
    commands = next(a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    return [
        (command, action.option_strings[0], action.type is int)
        for command, parser in commands.items()
        for action in parser._actions
        if action.type in (int, float)
    ]


ZERO = {"--seed", "--length", "--dropout", "--temperature", "--lr"}  # where it is a number like any other
WHOLE = ["-1", "0", "nan", "inf", "1e400", "x", "1.5", "", str(10**30), "9" * 5000]
REAL = ["-1", "0", "nan", "inf", "-inf", "1e400", "x", ""]


def test_there_are_numbers_to_try_and_each_has_a_range():
    numbers = {option.removeprefix("--").replace("-", "_") for _, option, _ in numeric_options()}
    assert len(numeric_options()) >= 25
    assert numbers == options.WHOLE.keys() | options.NUMBERS.keys()


@pytest.mark.parametrize(("command", "option", "whole"), numeric_options(), ids=lambda value: str(value))
def test_a_number_out_of_range_is_refused_in_our_own_words(command, option, whole, capsys):
    for value in WHOLE if whole else REAL:
        if value == "0" and option in ZERO:
            continue
        sentence = refused([*COMPLETE[command], f"{option}={value}"], capsys)
        shown = re.escape(option)
        assert re.fullmatch(
            rf"minilora {command}: {shown} must be (at (least|most) [\d,]+|a (finite )?number.*), not .*\.|"
            rf"minilora {command}: error: argument {shown}: invalid (int|float) value: .*",
            sentence,
        ), sentence


@pytest.mark.parametrize(("command", "option", "whole"), numeric_options(), ids=lambda value: str(value))
def test_the_ends_of_a_range_are_no_traceback(command, option, whole, capsys):
    """They run, or are refused in a sentence. No huge sizes here: what memory there is decides those."""
    values = ["0" if option in ZERO else "1"]
    if option in ("--seed", "--top-k", "--r", "--heads", "--time", "--workers", "--seeds"):
        values.append(str(options.WHOLE[option[2:].replace("-", "_")][1]))
    if not whole:
        values += ["5e-324"] if option == "--dropout" else ["5e-324", "1.7e308"]
    for value in values:
        status = main([*COMPLETE[command], f"{option}={value}"])
        said = capsys.readouterr()
        assert status == 0 or (
            status == 2 and said.err.count("\n") == 1 and said.err.startswith(f"minilora {command}: ")
        )


def test_what_does_not_fit_into_memory_is_said_in_a_sentence(capsys, monkeypatch):
    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr(pretrain, "GPT", full)
    assert "not enough memory" in refused(COMPLETE["pretrain"], capsys)


# ---- options that would be ignored -------------------------------------------------------------------

TASK = ["--task", "copy", "--steps", "1", "--batch", "2"]
PRETRAIN = ["pretrain", "--d-model", "16", "--layers", "1", "--heads", "2", "--out", "new.npz"]
ADAPT = ["adapt", "--base", "base.npz", "--out", "new"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([*PRETRAIN, "--task", ","], "--task must be one name or more"),
        ([*PRETRAIN, "--task", ""], "--task must be one name or more"),
        ([*PRETRAIN, "--task", "copy,,upper"], "--task must be one name or more"),
        ([*ADAPT, "--task", ","], "--task must be one name or more"),
        ([*ADAPT, "--task", ""], "--task must be one name or more"),
        ([*ADAPT, *TASK, "--targets", ","], "--targets must be one name or more"),
        ([*ADAPT, *TASK, "--targets", "q_proj,"], "--targets must be one name or more"),
        ([*PRETRAIN, *TASK, "--context", "64"], "--context is of text: string tasks have 20 positions"),
        ([*ADAPT, *TASK, "--context", "20"], "--context is of text: string tasks have 20 positions"),
        ([*ADAPT, *TASK, "--replace"], "--replace is of text: string tasks have no other characters"),
        (["generate", "--gpt2", "x", "--prompt", "a", "--replace"], "--replace is of a base of characters"),
        (["budget", "--paper", "--r", "4"], "--r is of a model"),
        (["budget", "--paper", "--batch", "8"], "--batch is of a model"),
        (["budget", "--preset", "tiny", "--full"], "--full is of the paper's figures"),
        (["budget", "--paper", "--time", "8"], "--time is of a model"),
        (["budget", "--paper", "--targets", "q_proj"], "--targets is of a model"),
        (["budget", "--preset", "tiny", "--targets", ""], "--targets must be one name or more"),
        (["reproduce", "--tune", "--claim", "rank"], "--claim is of a report, which --tune does not make"),
        (["reproduce", "--tune", "--seeds", "3"], "--seeds is of a report"),
        (["reproduce", "--tune", "--quick"], "--quick is of a report"),
        (["reproduce", "--tune", "--open"], "--open is of a report"),
        (["reproduce", "--tune", "--out", "figures"], "--out is of a report"),
        (["reproduce", "--workers", "2", "--scheduler", "tcp://127.0.0.1:9"], "--workers is of processes here"),
        ([*ADAPT, *TASK, "--adapter", "a", "--r", "8"], "--r is what the adapter has"),
        ([*ADAPT, *TASK, "--adapter", "a", "--alpha", "8"], "--alpha is what the adapter has"),
        ([*ADAPT, *TASK, "--adapter", "a", "--targets", "q_proj"], "--targets is what the adapter has"),
        ([*ADAPT, *TASK, "--adapter", "a", "--dropout", "0"], "--dropout is what the adapter has"),
        ([*ADAPT, *TASK, "--adapter", "nowhere"], "cannot be read"),
    ],
)  # fmt: skip
def test_an_option_that_would_be_ignored_is_refused(arguments, said, capsys, monkeypatch):
    monkeypatch.setattr(reproduce, "tune", lambda *_, **__: pytest.fail("work began"))
    assert said in refused(arguments, capsys)


def test_the_paper_beside_a_model_takes_the_model_s_options(capsys):
    assert main(["budget", "--preset", "tiny", "--paper", "--r", "2", "--batch", "3", "--time", "4"]) == 0
    assert "LoRA r = 2 on q_proj, v_proj; Adam; 3 x 4 tokens a step" in capsys.readouterr().out


# ---- --resume ----------------------------------------------------------------------------------------


@pytest.fixture
def interrupted(monkeypatch):
    """interrupted(command) runs it to Ctrl-C at step 7, after the checkpoint of step 4."""

    def run(command):
        with monkeypatch.context() as patch:
            patch.setattr(learning, "CHECKPOINT_EVERY", 4)
            original = learning.batch_loss

            def stopping(model, batches):
                def loss(step):
                    if step == 7:
                        raise KeyboardInterrupt
                    return original(model, batches)(step)

                return loss

            patch.setattr(learning, "batch_loss", stopping)
            assert main(command) == 130

    return run


LEARN = ["--steps", "10", "--batch", "2", "--text"]


@pytest.mark.parametrize("command", [PRETRAIN, [*ADAPT, "--r", "1"]], ids=lambda command: command[0])
def test_resume_compares_what_the_text_says_and_not_its_name(command, interrupted, capsys):
    context = ["--context", "8"]
    interrupted([*command, *context, *LEARN, "text.txt"])
    Path("same.txt").write_bytes(Path("text.txt").read_bytes())
    text = Path("text.txt").read_text()
    Path("text.txt").write_text(text.replace("not", "now", 1))
    assert "is of a run that learned from another text" in refused(
        [*command, *context, *LEARN, "text.txt", "--resume"], capsys
    )
    assert main([*command, *context, *LEARN, "same.txt", "--resume"]) == 0
    out = Path(command[command.index("--out") + 1])
    resumed = out.read_bytes() if out.is_file() else (out / "adapter_model.safetensors").read_bytes()
    assert main([*command, *context, *LEARN, "same.txt"]) == 0
    assert resumed == (out.read_bytes() if out.is_file() else (out / "adapter_model.safetensors").read_bytes())


def test_resume_compares_what_the_base_holds_and_not_its_name(interrupted, capsys):
    interrupted([*ADAPT, "--r", "1", *LEARN, "text.txt"])
    os.rename("base.npz", "moved.npz")
    command = ["adapt", "--base", "moved.npz", "--out", "new", "--r", "1", *LEARN, "text.txt", "--resume"]
    assert main(["pretrain", "--task", "copy", *TINY, "--seed", "5", "--out", "base.npz"]) == 0
    assert "another base" in refused([*ADAPT, "--r", "1", *LEARN, "text.txt", "--resume"], capsys)
    assert main(command) == 0


def test_resume_compares_what_a_gpt2_folder_and_its_tokenizer_say(interrupted, capsys, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    gpt2_folder(tmp_path / "gpt2")
    text = Path("text.txt").read_text()
    letters = sorted(set(text))

    def save(order):
        model = tokenizers.models.WordLevel({letter: i for i, letter in enumerate(order)}, unk_token=letters[0])
        tokenizer = tokenizers.Tokenizer(model)
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("."), "isolated")
        tokenizer.save(str(tmp_path / "gpt2" / "tokenizer.json"))

    save(letters)
    command = ["adapt", "--gpt2", "gpt2", "--out", "new", "--context", "4", *LEARN, "text.txt"]
    interrupted(command)
    save(letters[::-1])
    assert "learned from another text" in refused([*command, "--resume"], capsys)
    save(letters)
    shutil.move("gpt2", "moved")
    assert main([*(part.replace("gpt2", "moved") if part == "gpt2" else part for part in command), "--resume"]) == 0


def test_a_checkpoint_of_an_earlier_minilora_which_kept_names_goes_on(interrupted):
    from minilora.interop import checkpoint

    interrupted([*ADAPT, "--r", "1", *LEARN, "text.txt"])
    header, _, _ = checkpoint._read("new/checkpoint.npz")
    notes = header["notes"]
    del notes["made_of"]
    notes["run"].update(text="text.txt", base="base.npz", gpt2="None")
    model = ml.load_model("base.npz")
    optimizer = ml.Adam(ml.add_lora(model, ml.LoRAConfig(1)), lr=1e-2)
    step = ml.load_checkpoint("new/checkpoint.npz", model, optimizer)
    ml.save_checkpoint("new/checkpoint.npz", model, optimizer, step, frozen=False, notes=notes)
    assert main([*ADAPT, "--r", "1", *LEARN, "text.txt", "--resume"]) == 0


# ---- adapt --adapter ---------------------------------------------------------------------------------

OLD = ["adapt", "--base", "base.npz", "--task", "upper", "--steps", "3", "--batch", "2", "--lr", "0.1", "--out", "old"]
ON = ["adapt", "--base", "base.npz", "--adapter", "old", "--task", "upper", "--steps", "10", "--batch", "2"]


@pytest.fixture
def old():
    settings = ["--r", "2", "--alpha", "6", "--targets", "fc_in,o_proj", "--dropout", "0.25"]
    assert main([*OLD, *settings]) == 0


def adapter_of(folder):
    model = ml.load_model("base.npz")
    ml.load_adapter(model, folder)
    return shared_adapter(lora_layers(model)).config, ml.lora_state_dict(model)


def test_adapting_goes_on_from_an_adapter_with_its_settings(old, capsys):
    capsys.readouterr()
    assert main([*ON, "--lr", "0", "--out", "same"]) == 0
    said = capsys.readouterr().out
    config, weights = adapter_of("old")
    assert (config.r, config.alpha, config.target_modules, config.dropout) == (2, 6, ("fc_in", "o_proj"), 0.25)
    same, unchanged = adapter_of("same")
    assert same == config and "scaling α/r = 3" in said
    for name, array in weights.items():  # with no learning rate it stays as it was
        np.testing.assert_array_equal(unchanged[name], array)
    before, after = re.search(r"held out, before: (.*)\nheld out, after:  (.*)\nSaved", said).groups()
    assert before == after
    assert main([*ON, "--lr", "0.1", "--out", "on"]) == 0
    _, moved = adapter_of("on")
    assert all(not np.array_equal(moved[name], weights[name]) for name in weights)


def test_going_on_is_what_the_library_computes(old):
    assert main([*ON, "--lr", "0.1", "--seed", "3", "--out", "on"]) == 0
    model = ml.load_model("base.npz")
    config, _ = adapter_of("old")
    parameters = ml.add_lora(model, config, seed=3)
    ml.load_adapter(model, "old")
    loss = ml.batch_loss(model, learning.seeded(learning.string_sampler(("upper",), 2), 3))
    ml.train(model, ml.Adam(parameters, 0.1), loss, 10, schedule=ml.linear_schedule(10))
    for name, array in adapter_of("on")[1].items():
        np.testing.assert_array_equal(array, ml.lora_state_dict(model)[name])


@pytest.mark.parametrize("out", ["on", "old"])
def test_going_on_and_interrupted_ends_in_the_same_bytes(old, interrupted, out):
    shutil.copytree("old", "kept")
    assert main([*ON, "--lr", "0.1", "--out", "unbroken"]) == 0
    interrupted([*ON, "--lr", "0.1", "--out", out])
    for name in os.listdir("kept"):  # what was there is there until the end
        assert Path("old", name).read_bytes() == Path("kept", name).read_bytes()
    assert main([*ON, "--lr", "0.1", "--out", out, "--resume"]) == 0
    for name in os.listdir("unbroken"):
        assert Path(out, name).read_bytes() == Path("unbroken", name).read_bytes()
    assert sorted(os.listdir(out)) == sorted(os.listdir("unbroken"))


def test_a_run_stopped_after_its_save_resumes_to_the_same_adapter(old, interrupted, monkeypatch):
    """Old and new are one folder; the checkpoint is still there, and the old adapter no more."""
    command = [*ON, "--lr", "0.1", "--out", "old"]
    interrupted(command)
    shutil.copy("old/checkpoint.npz", "kept.npz")
    assert main([*command, "--resume"]) == 0
    done = Path("old/adapter_model.safetensors").read_bytes()
    shutil.copy("kept.npz", "old/checkpoint.npz")
    assert main([*command, "--resume"]) == 0
    assert Path("old/adapter_model.safetensors").read_bytes() == done


def test_resuming_from_another_adapter_is_refused(old, interrupted, capsys):
    command = [*ON, "--lr", "0.1", "--out", "on"]
    interrupted(command)
    assert (
        main([*OLD, "--seed", "9", "--r", "2", "--alpha", "6", "--targets", "fc_in,o_proj", "--dropout", "0.25"]) == 0
    )
    assert "started from another adapter" in refused([*command, "--resume"], capsys)
    without = [part for part in command if part not in ("--adapter", "old")]
    assert "with --r None, not 8" in refused([*without, "--resume"], capsys)


def test_going_on_from_a_gpt2_s_adapter(capsys, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    gpt2_folder(tmp_path / "gpt2")
    letters = sorted(set(Path("text.txt").read_text()))
    model = tokenizers.models.WordLevel({letter: i for i, letter in enumerate(letters)}, unk_token=letters[0])
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("."), "isolated")
    tokenizer.save(str(tmp_path / "gpt2" / "tokenizer.json"))
    learn = ["adapt", "--gpt2", "gpt2", "--text", "text.txt", "--context", "4", "--steps", "2", "--batch", "2"]
    assert main([*learn, "--r", "2", "--out", "old"]) == 0
    assert main([*learn, "--adapter", "old", "--out", "on"]) == 0
    assert "scaling α/r = 16" in capsys.readouterr().out


# ---- what -W error makes of warnings -----------------------------------------------------------------


@pytest.mark.numpy_only("it puts its own product in NumPy's place")
def test_warnings_of_a_product_that_is_finite_end_no_command(monkeypatch):
    """Simulated: Apple's Accelerate raises floating point flags in products whose result is right."""
    real = np.matmul

    def flagged(*args, **kwargs):
        np.float32(1) / np.float32(0)  # a RuntimeWarning, which the suite raises as an error
        return real(*args, **kwargs)

    with pytest.raises(RuntimeWarning, match="divide by zero"):
        flagged(np.ones((1, 1)), np.ones((1, 1)))
    monkeypatch.setattr(ml.backend.np, "matmul", flagged)
    monkeypatch.setitem(ml.backend.xp.__dict__, "matmul", flagged)
    assert main(COMPLETE["pretrain"]) == 0
    assert main(COMPLETE["adapt"]) == 0
    assert main(COMPLETE["generate"]) == 0
    assert tools.timed_run(("rank", {"world": "planted", "seed": 0, "r": 1}))["result"]


def test_a_warning_that_python_was_told_to_raise_is_a_sentence(capsys, monkeypatch):
    import warnings

    monkeypatch.setattr(models, "load_model", lambda name: warnings.warn("It is made again.", stacklevel=1))
    assert "It is made again." in refused(COMPLETE["generate"], capsys)


def test_a_warning_is_a_sentence_without_a_place_in_the_source(tmp_path):
    """And said once, though adapt --adapter reads the adapter twice. In a process of its own: pytest takes warnings."""
    base, other = tmp_path / "base.npz", tmp_path / "other.npz"
    for seed, path in enumerate((base, other)):
        model = ml.GPT(ml.GPTConfig(96, 20, 16, 1, 2), seed=seed)
        ml.save_checkpoint(path, model)
    ml.add_lora(model, ml.LoRAConfig(2))
    ml.save_adapter(model, tmp_path / "adapter")
    command = ["adapt", "--base", str(base), "--adapter", str(tmp_path / "adapter"), "--task", "upper", "--steps", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "minilora", *command, "--out", str(tmp_path / "new")], capture_output=True, text=True
    )
    said = [line for line in done.stderr.splitlines() if "another base" in line]
    assert done.returncode == 0 and len(said) == 1
    assert said[0].startswith("minilora adapt: The adapter in ") and ".py" not in done.stderr


def test_an_adapter_is_written_whole_or_not_at_all(tmp_path):
    """Where a folder stands in the place of the settings, the weights are not written either."""
    model = ml.GPT(ml.GPTConfig(96, 20, 16, 1, 2))
    ml.add_lora(model, ml.LoRAConfig(2))
    (tmp_path / "a" / "adapter_config.json").mkdir(parents=True)
    with pytest.raises(ValueError, match="is a folder"):
        ml.save_adapter(model, tmp_path / "a")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["adapter_config.json"]
