"""The command line as a user meets it: what it makes, what it refuses, what an interruption leaves."""

import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import minilora as ml
from minilora.tools import cli, console, learning, models
from minilora.tools.cli import main
from minilora.tools.commands import generate

TINY = ["--d-model", "16", "--layers", "1", "--heads", "2", "--batch", "4"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINILORA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def base():
    assert main(["pretrain", "--task", "copy", "--steps", "3", *TINY, "--out", "base.npz"]) == 0
    return "base.npz"


def adapt(base, *more):
    return main(
        ["adapt", "--base", base, "--task", "upper", "--r", "2", "--steps", "3", "--batch", "4", "--out", "a", *more]
    )


def test_pretrain_adapt_generate_merge(base, capsys):
    assert adapt(base, "--lr", "0.1") == 0
    assert sorted(os.listdir("a")) == ["adapter_config.json", "adapter_model.safetensors"]
    assert (
        "LoRA of rank 2 on q_proj, v_proj, scaling α/r = 1:\n128 numbers trained, 1.91 % of the base's 6,704.\n"
    ) in capsys.readouterr().out
    assert main(["merge", "--base", base, "--adapter", "a", "--out", "merged.npz"]) == 0
    capsys.readouterr()
    prompt = ["--prompt", "2abcd>", "--temperature", "0", "--length", "9"]
    said = []
    for model in (["--base", base, "--adapter", "a"], ["--base", "merged.npz"], ["--base", base]):
        assert main(["generate", *model, *prompt]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] and said[0].startswith("2abcd>")


def test_generating_ends_where_an_answer_does_or_where_told(base, capsys, monkeypatch):
    """A base of string tasks ends with the line, merged too; --stop names another end, or none."""
    asked = []
    monkeypatch.setattr(generate, "generate_text", lambda *_, **settings: asked.append(settings["stop"]) or "")
    assert adapt(base) == 0 and main(["merge", "--base", base, "--adapter", "a", "--out", "m.npz"]) == 0
    with open("text.txt", "w") as file:
        file.write("some plain text. " * 200)
    assert main(["pretrain", "--text", "text.txt", "--context", "16", "--steps", "1", *TINY, "--out", "t.npz"]) == 0
    for name in (base, "m.npz", "t.npz"):
        for stop in ([], ["--stop", "ab"], ["--stop", r"\n\n"], ["--stop", ""]):
            assert main(["generate", "--base", name, "--prompt", "2ab>", *stop]) == 0
    chosen = ["ab", "\n\n", None]
    assert asked == ["\n", *chosen, "\n", *chosen, None, *chosen]


def test_an_answer_is_printed_without_what_ends_it(base, capsys):
    prompt = ["generate", "--base", base, "--prompt", "2abcd>", "--temperature", "0"]
    assert main([*prompt, "--length", "30", "--stop", ""]) == 0
    whole = capsys.readouterr().out[:-1]
    end = whole[len("2abcd>") + 2]
    assert main([*prompt, "--length", "30", "--stop", end]) == 0
    assert capsys.readouterr().out == whole[: whole.index(end, len("2abcd>"))] + "\n"


def test_a_users_own_text_with_characters_of_its_own(capsys):
    with open("text.txt", "w", encoding="utf-8") as file:
        file.write("Grüße aus Köln. " * 200)
    options = ["--text", "text.txt", "--context", "16", "--steps", "3", *TINY]
    assert main(["pretrain", *options, "--out", "base.npz"]) == 0
    assert main(["generate", "--base", "base.npz", "--prompt", "Grüß", "--length", "3"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("Grüß")
    assert main(["adapt", "--base", "base.npz", "--text", "text.txt", "--steps", "2", "--r", "1", "--out", "a"]) == 0


def test_info_and_help_show_what_they_should(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    for word in ("minilora", "Python", "NumPy", "BLAS", "thread", "backend", "cache"):
        assert word in out
    for command in (
        "demo", "tasks", "reproduce", "show", "pretrain", "adapt", "generate", "merge", "budget", "info",
    ):  # fmt: skip
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        out = capsys.readouterr().out
        assert stop.value.code == 0 and f"example:\n  minilora {command}" in out
        wide = [line for line in out.splitlines() if len(line) > 80 and not line.startswith("  minilora ")]
        assert not wide, wide


def test_minilora_alone_shows_its_help_and_where_to_start(capsys):
    assert main([]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("usage: minilora") and "minilora demo" in said.out and said.err == ""


def test_the_example_of_info_runs_for_everyone():
    example = next(
        sub.epilog.splitlines()[-1].split()[1:]
        for action in cli._parser()._actions
        for name, sub in (action.choices or {}).items()
        if name == "info"
    )
    assert main(example) == 0


# ---- samples -----------------------------------------------------------------------------------------


def test_adapt_shows_three_held_out_answers_before_and_after(base, capsys):
    capsys.readouterr()
    assert adapt(base, "--lr", "0.1") == 0
    said = capsys.readouterr().out
    rows = [line.split() for line in said.splitlines() if re.match(r"  2[a-p]{4,8}> ", line)]
    assert len(rows) == 3 and all(right == asked[1:-1].upper() for asked, right, *_ in rows)
    held_out = learning.fixed(learning.string_sampler(("upper",), 256, held_out=True), 2)[0][0]
    assert [asked[:-1] for asked, *_ in rows] == [ml.data.PRINTABLE.decode(ids).split(">")[0] for ids in held_out[:3]]
    assert "held out, before: " in said and "\nheld out, after:  " in said
    assert max(map(len, said.splitlines())) <= 80


def test_what_adapt_shows_is_what_the_models_say(capsys):
    options = ["--task", "revupper,prev", "--steps", "2", "--batch", "2", "--lr", "0.1", "--out", "a"]
    assert main(["adapt", "--base", "strings", *options]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if re.match(r"  [89][a-p]{4,8}> ", line)]
    assert len(rows) == 3
    for asked, _, before, after in rows:
        for answer, adapter in ((before, []), (after, ["--adapter", "a"])):
            prompt = ["--base", "strings", "--prompt", asked, "--temperature", "0", "--length", "9"]
            assert main(["generate", *prompt, *adapter]) == 0
            assert capsys.readouterr().out == f"{asked}{answer}\n"


def test_adapt_on_text_shows_how_a_held_out_text_goes_on(capsys):
    with open("text.txt", "w", encoding="utf-8") as file:
        file.write("one\ttwo \x1b[31m three\n" * 200)
    assert main(["pretrain", "--text", "text.txt", "--context", "16", "--steps", "1", *TINY, "--out", "t.npz"]) == 0
    capsys.readouterr()
    assert main(["adapt", "--base", "t.npz", "--text", "text.txt", "--steps", "2", "--r", "1", "--out", "a"]) == 0
    said = capsys.readouterr().out
    labels = [line.split()[0] for line in said.splitlines() if line.startswith("  ")]
    assert labels == ["held", "before", "after"]
    assert "\x1b" not in said and "\t" not in said  # control characters are spelled, not obeyed
    assert max(map(len, said.splitlines())) <= 80


# ---- prompts from standard input ---------------------------------------------------------------------


class Typed(io.StringIO):
    def __init__(self, text, terminal=False):
        super().__init__(text)
        self.terminal = terminal

    def isatty(self):
        return self.terminal


GENERATE = ["generate", "--base", "strings", "--temperature", "0"]


def test_generate_without_a_prompt_reads_one_a_line(capsys, monkeypatch):
    loads = []
    original = models.load_base
    monkeypatch.setattr(models, "load_base", lambda name: loads.append(name) or original(name))
    monkeypatch.setattr("sys.stdin", Typed("0badge>\n\n2badge>\n1badge>"))
    assert main(GENERATE) == 0
    said = capsys.readouterr()
    assert said.out == "0badge>badge\n2badge>BADGE\n1badge>egdab\n" and said.err == ""
    assert loads == ["strings"]


def test_a_bad_prompt_costs_a_sentence_and_the_next_is_read(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", Typed("0é>\n0b\udcff>\n2badge>\n"))
    assert main(GENERATE) == 2
    said = capsys.readouterr()
    assert said.out == "2badge>BADGE\n"
    first, second, last = said.err.splitlines()  # and no word on what the base has seen, of what it cannot read
    assert "'é' (position 1)" in first and "--replace" in first
    assert "'0b\\udcff>' holds bytes that are no" in second
    assert last == "minilora generate: 2 prompts were refused, as said above."


def test_several_prompts_are_all_answered_and_one_that_is_no_task_is_told_so(capsys):
    assert main([*GENERATE, "--prompt", "0badge>", "--prompt", "2badge>"]) == 0
    said = capsys.readouterr()
    assert said.out == "0badge>badge\n2badge>BADGE\n" and said.err == ""
    for prompt in ("hello", "0bad>", "0BADGE>", "0badge", "0zebra>"):
        assert main([*GENERATE, "--prompt", prompt]) == 0
        said = capsys.readouterr()
        assert said.out.startswith(prompt)
        assert said.err == (
            "minilora generate: this base knows lines such as 3badge>: a digit, 4 to 8 letters\n"
            "from a to p, and >. `minilora tasks` lists what it was taught.\n"
        )


def test_an_unknown_option_is_refused_with_its_command_s_usage(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["adapt", "--base", "strings", "--task", "prev", "--out", "a", "--rnak", "3"])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith("usage: minilora adapt") and "arguments: --rnak 3" in said


def test_an_adapter_that_takes_another_s_place_says_so(base, capsys):
    capsys.readouterr()
    for place in ("", " in place of the adapter that was there"):
        assert adapt(base) == 0
        assert capsys.readouterr().out.endswith(f"Saved in a{place}.\n")


def test_info_counts_what_the_cache_holds(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("MINILORA_CACHE", str(tmp_path))
    for name, size in (("bases/1.npz", 600_000), ("bases/1.lock", 0), ("runs/1.json", 10), ("runs/2.json", 10)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * size)
    assert main(["info"]) == 0
    assert f"cache      {tmp_path}: 1 base and 2 results, 0.6 MB\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "called, found, said",
    [
        ("/venv/bin/minilora", "/venv/bin/minilora", "minilora"),
        (".venv/bin/minilora", None, ".venv/bin/minilora"),
        ("minilora.exe", None, "minilora.exe"),
        ("/site/minilora/__main__.py", None, "python -m minilora"),
        ("/site/minilora/__main__.py", "/venv/bin/minilora", "minilora"),
        ("/site/pytest/__main__.py", None, "minilora"),
    ],
)
def test_hints_name_the_program_as_it_can_be_called(called, found, said, monkeypatch):
    monkeypatch.setattr("sys.argv", [called])
    monkeypatch.setattr("shutil.which", lambda name: found)
    assert console.program() == str(Path(said))


def test_somebody_who_types_gets_a_sign_and_may_be_wrong(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", Typed("", terminal=True))
    monkeypatch.setattr("sys.stdout", type("Terminal", (io.StringIO,), {"isatty": lambda self: True})())
    lines, signs = iter(["0é>", "", "2badge>"]), []

    def typed(sign):
        signs.append(sign)
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", typed)
    assert main(GENERATE) == 0
    assert signs == ["> "] * 4 and "2badge>BADGE\n" in sys.stdout.getvalue()


def test_a_standard_input_that_cannot_be_read_is_a_sentence(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    assert main(GENERATE) == 2 and "There is no standard input" in capsys.readouterr().err


@pytest.mark.numpy_only("the command line runs in a process of its own")
def test_prompts_in_a_pipe_whatever_their_bytes():
    done = subprocess.run(
        [sys.executable, "-m", "minilora", *GENERATE], input=b"2badge>\r\n2caf\xe9>\n0badge>\n", capture_output=True
    )
    assert done.returncode == 2 and done.stdout.split() == [b"2badge>BADGE", b"0badge>badge"]
    assert b"Traceback" not in done.stderr and done.stderr.count(b"\n") == 2


# ---- characters that the base does not know ----------------------------------------------------------


def test_what_a_base_does_not_know_is_replaced_where_that_is_asked_for(capsys):
    with open("curly.txt", "w", encoding="utf-8") as file:
        file.write("“It’s naïve…” " * 200)
    with open("straight.txt", "w", encoding="utf-8") as file:
        file.write('"It\'s naive..." ' * 200)
    command = ["adapt", "--base", "text", "--steps", "1", "--batch", "2", "--context", "16", "--r", "1"]
    assert main([*command, "--text", "curly.txt", "--out", "a"]) == 2
    assert "--replace" in capsys.readouterr().err and not os.path.exists("a")
    assert main([*command, "--text", "curly.txt", "--out", "a", "--replace"]) == 0
    said = capsys.readouterr()
    assert "minilora adapt: 1,000 characters that the base does not know were replaced." in said.err
    assert main([*command, "--text", "straight.txt", "--out", "b", "--replace"]) == 0
    again = capsys.readouterr()
    assert again.err == "" and again.out == said.out.replace("Saved in a.", "Saved in b.")
    assert main(["generate", "--base", "text", "--prompt", "naïve", "--length", "0", "--replace"]) == 0
    said = capsys.readouterr()
    assert said.out == "naive\n" and "1 character that the base does not know was replaced." in said.err


def test_replacing_changes_nothing_that_resume_compares(capsys, monkeypatch):
    with open("text.txt", "w") as file:
        file.write("to be or not to be " * 100)
    command = ["adapt", "--base", "text", "--text", "text.txt", "--steps", "5", "--batch", "2", "--context", "16"]
    command += ["--r", "1", "--out", "a"]
    monkeypatch.setattr(learning, "CHECKPOINT_EVERY", 2)
    with monkeypatch.context() as patch:
        patch.setattr(learning, "batch_loss", _Stop(3))
        assert main(command) == 130
    assert main([*command, "--replace", "--resume"]) == 0


@pytest.mark.parametrize("given", [[], ["--base", "strings"], ["--out", "x"]], ids=str)
def test_what_is_missing_comes_with_a_line_that_has_it_all(given, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["adapt", *given])
    said = capsys.readouterr().err
    assert "required" in said and said.splitlines()[-1].endswith(
        "adapt --base strings --task revupper --r 8 --out adapter"
    )


@pytest.mark.parametrize(("name", "meant"), [("adpt", "; did you mean adapt?"), ("xyz", ".")])
def test_a_command_that_does_not_exist_is_refused_with_the_one_perhaps_meant(name, meant, capsys):
    assert main([name, "--base", "strings"]) == 2
    assert capsys.readouterr().err.startswith(f"minilora: There is no command {name!r}{meant} There are: demo, tasks,")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrain", "--text", "missing.txt"], "cannot be read"),
        (["pretrain", "--text", "empty.txt"], "is empty"),
        (["pretrain", "--text", "binary.txt"], "not UTF-8|binary"),
        (["pretrain", "--text", "short.txt"], "needs at least 650"),
        (["pretrain", "--task", "copi"], "no string task 'copi'"),
        (["pretrain", "--task", "copy", "--steps", "0"], "--steps must be at least 1"),
        (["pretrain", "--task", "copy", "--batch", "0"], "--batch must be at least 1"),
        (["pretrain", "--task", "copy", "--d-model", "15"], "not divisible by"),
        (["adapt", "--base", "base.npz"], "--task NAME or --text FILE"),
        (["adapt", "--base", "base.npz", "--text", "short.txt"], "not among the 96|needs at least"),
        (["adapt", "--base", "base.npz", "--task", "upper", "--r", "0"], "at least 1, not 0"),
        (["adapt", "--base", "base.npz", "--task", "upper", "--r", "99"], r"at most min\(out, in\) = 16"),
        (["adapt", "--base", "base.npz", "--task", "upper", "--alpha", "0"], "above 0"),
        (["adapt", "--base", "base.npz", "--task", "upper", "--alpha", "nan"], "finite"),
        (["adapt", "--base", "base.npz", "--task", "upper", "--dropout", "1"], "less than 1"),
        (["adapt", "--base", "base.npz", "--task", "upper", "--lr", "nan"], "finite number"),
        (["adapt", "--base", "base.npz", "--task", "upper", "--targets", "q_pro"], "did you mean 'q_proj'"),
        (["adapt", "--base", "nowhere.npz", "--task", "upper"], "cannot be read"),
        (["generate", "--base", "english"], '"strings" or "text", which come with minilora'),
        (["budget", "--base", "english"], '"strings" or "text", which come with minilora'),
        (["adapt", "--base", "short.txt", "--task", "upper"], "no checkpoint at all"),
        (["adapt", "--base", "base.npz", "--task", "upper", "--out", "short.txt/x"], "cannot be written"),
        (["merge", "--base", "base.npz", "--adapter", "nowhere"], "cannot be read"),
        (["generate", "--base", "base.npz", "--prompt", "é"], "not among the 96"),
        (["generate", "--base", "base.npz", "--prompt", ""], "at least one token"),
        (["generate", "--base", "base.npz", "--prompt", "a", "--temperature", "-1"], "temperature must be"),
        (["reproduce", "--claim", "ranks"], "there are: zero_init"),
        (["reproduce", "--seeds", "0"], "at least 1, not 0"),
        (["reproduce", "--workers", "0"], "at least 1, not 0"),
        (["reproduce", "--out", "short.txt/x"], "cannot be written"),
        (["reproduce", "--scheduler", "localhost"], "must be an address such as tcp://127.0.0.1:8786"),
        (["budget"], "--preset NAME, --base FILE"),
        (["budget", "--preset", "gpt4"], "there are: tiny, gpt2"),
        (["budget", "--preset", "gpt2", "--base", "base.npz"], "not both"),
        (["budget", "--preset", "gpt2", "--r", "0"], "not 0"),
        (["budget", "--preset", "gpt2", "--targets", "q_pro"], "no target 'q_pro'"),
        (["budget", "--preset", "gpt2", "--time", "1025"], "not 1025"),
    ],
)  # fmt: skip
def test_refusals_exit_with_2_and_write_nothing(base, arguments, message, capsys):
    open("empty.txt", "w").close()
    with open("binary.txt", "wb") as file:
        file.write(bytes(range(256)))
    with open("short.txt", "w") as file:
        file.write("too short")
    before = sorted(os.listdir("."))
    if arguments[0] in ("pretrain", "adapt", "merge") and "--out" not in arguments:
        arguments = [*arguments, "--out", "new"]
    capsys.readouterr()
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"minilora {arguments[0]}: ") and "\n" not in error and "Traceback" not in error
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(error)
    assert sorted(os.listdir(".")) == before


def test_budget_of_a_preset_and_of_a_base(base, capsys):
    assert main(["budget", "--preset", "gpt3-175b", "--r", "4", "--targets", "q_proj,v_proj", "--paper"]) == 0
    out = capsys.readouterr().out
    assert "18,874,368" in out and "37.7 MB" in out and "not derivable" in out
    assert main(["budget", "--base", base, "--r", "2"]) == 0
    assert "128" in capsys.readouterr().out  # 2 (16 + 16) for q and v of one layer


def test_divergence_names_the_step(base, capsys, monkeypatch):
    original = learning.batch_loss
    monkeypatch.setattr(
        learning, "batch_loss", lambda *a: lambda step: original(*a)(step) * (float("inf") if step == 2 else 1)
    )
    assert adapt(base) == 2
    assert "the loss became inf at step 2" in capsys.readouterr().err
    assert not os.path.exists("a")


class _Stop:
    """batch_loss that is interrupted, as by Ctrl-C, at one step."""

    def __init__(self, step):
        self.step, self.original = step, learning.batch_loss

    def __call__(self, model, batches):
        def loss(step):
            if step == self.step:
                raise KeyboardInterrupt
            return self.original(model, batches)(step)

        return loss


def test_an_interrupted_run_goes_on_to_the_same_bytes(base, capsys, monkeypatch):
    monkeypatch.setattr(learning, "CHECKPOINT_EVERY", 4)
    options = ["--steps", "10", "--dropout", "0.3", "--lr", "0.05"]
    assert adapt(base, *options) == 0
    with open("a/adapter_model.safetensors", "rb") as file:
        unbroken = file.read()
    os.remove("a/adapter_model.safetensors")
    with monkeypatch.context() as patch:
        patch.setattr(learning, "batch_loss", _Stop(7))
        assert adapt(base, *options) == 130
    assert "--resume continues" in capsys.readouterr().err
    assert os.path.exists("a/checkpoint.npz")
    assert adapt(base, *options, "--resume") == 0
    with open("a/adapter_model.safetensors", "rb") as file:
        assert file.read() == unbroken
    assert not os.path.exists("a/checkpoint.npz")


def test_resume_without_a_checkpoint_starts_at_step_0(base, capsys):
    """A run may have been killed before its first one."""
    assert adapt(base, "--out", "b") == 0
    assert adapt(base, "--resume") == 0
    assert "There is no checkpoint at a/checkpoint.npz: training starts at step 0" in capsys.readouterr().err
    for name in os.listdir("a"):
        with open(f"a/{name}", "rb") as one, open(f"b/{name}", "rb") as other:
            assert one.read() == other.read()


@pytest.mark.parametrize(
    ("option", "said"),
    [(["--lr", "0.1"], "--lr 0.01, not 0.1"), (["--steps", "12"], "--steps 10, not 12"), (["--seed", "1"], "--seed 0")],
    ids=lambda value: value[0],
)
def test_resuming_with_other_options_is_refused(base, capsys, monkeypatch, option, said):
    monkeypatch.setattr(learning, "CHECKPOINT_EVERY", 4)
    with monkeypatch.context() as patch:
        patch.setattr(learning, "batch_loss", _Stop(7))
        assert adapt(base, "--steps", "10") == 130
    with open("a/checkpoint.npz", "rb") as file:
        before = file.read()
    assert adapt(base, "--steps", "10", *option, "--resume") == 2
    assert f"is of a run with {said}" in capsys.readouterr().err
    with open("a/checkpoint.npz", "rb") as file:
        assert file.read() == before


def test_a_checkpoint_of_adapt_holds_no_base_and_goes_back_to_its_own(base, capsys, monkeypatch):
    monkeypatch.setattr(learning, "CHECKPOINT_EVERY", 4)
    with monkeypatch.context() as patch:
        patch.setattr(learning, "batch_loss", _Stop(7))
        assert adapt(base, "--steps", "10") == 130
    with np.load("a/checkpoint.npz") as file:
        assert {name.rsplit(".", 1)[-1] for name in file.files if name.startswith("model/")} == {"lora_A", "lora_B"}
    assert main(["pretrain", "--task", "copy", "--steps", "4", *TINY, "--out", base]) == 0  # another base, same name
    assert adapt(base, "--steps", "10", "--resume") == 2
    assert "saved beside another base" in capsys.readouterr().err


def test_ctrl_c_in_a_real_process(tmp_path):
    command = [
        sys.executable,
        "-m",
        "minilora",
        "pretrain",
        "--task",
        "copy",
        "--steps",
        "100000",
        *TINY,
        "--out",
        "b.npz",
    ]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    checkpoint = tmp_path / "b.npz.checkpoint.npz"
    deadline = time.monotonic() + 60
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in error and "stopped" in error
    model = ml.load_model(checkpoint)
    assert all(np.isfinite(array).all() for array in model.state_dict().values())
    assert not (tmp_path / "b.npz").exists()
