"""`minilora demo` and `minilora tasks`: measured, the same every time, and fit for a small console."""

import io
import os
import re
import subprocess
import sys

import numpy as np
import pytest

import minilora as ml
from minilora.bases import load_base, string_sampler
from minilora.claims import adaptation
from minilora.data import PRINTABLE, seeded
from minilora.tasks import ADAPTATION, PRETRAINING, TASKS, question, string_batch
from minilora.tools import console, demo
from minilora.tools.cli import main


@pytest.fixture
def short(monkeypatch):
    """The demo in thirty steps, which is enough for some strings and not for all."""
    monkeypatch.setitem(demo.STEPS, "strings", 30)
    monkeypatch.setattr(adaptation, "_tuned", lambda setting, method: 0.03125)


def said(capsys):
    assert main(["demo"]) == 0
    return capsys.readouterr().out


class Terminal:
    """Standard output as a terminal has it; whatever is printed is kept."""

    encoding = "utf-8"

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return True


def test_the_demo_says_the_same_every_time_in_ascii_and_80_columns(short, capsys):
    first = said(capsys)
    assert said(capsys) == first
    assert first.isascii() and "\x1b" not in first and max(map(len, first.splitlines())) <= 80


def test_the_demo_s_numbers_are_those_of_the_run(short, capsys):
    text = said(capsys)
    rows = [line.split() for line in text.splitlines() if re.match(r" +\d+ +\d+\.\d\d ", line)]
    assert [int(row[0]) for row in rows] == [0, 10, 20, 30]
    model = load_base("strings")
    size = model.num_parameters()
    parameters = ml.add_lora(model, ml.LoRAConfig(4, alpha=8))
    rate = demo.rate("strings", "lora q,v 4")
    batches = seeded(string_sampler(("revupper",), 32), 0)
    ml.train(model, ml.Adam(parameters, rate), ml.batch_loss(model, batches), 30, schedule=ml.linear_schedule(30))
    share = demo.evaluate_exact_match(model, demo.held_out_strings("revupper"))
    assert 0 < share < 1 and rows[-1][3] == f"{100 * share:.1f}" and f"-> {100 * share:.1f} % right" in text
    loss = demo.evaluate(model, demo.held_out_strings("revupper"))
    assert rows[-1][1] == f"{loss:.2f}" and rows[-1][2] == demo.answer(model, "8badge>")
    trained = sum(p.size for p in parameters)
    assert f"{trained:,} numbers beside {size:,} frozen ones: {100 * trained / size:.1f} %" in text
    assert "the same as before, bit for bit" in text and "512 of 512 answers stay the same" in text
    for word in demo.HELD_OUT:
        asked, right = question("revupper", word)
        assert text.split(f"  {asked} ")[1].split("\n")[0].split() == [
            right,
            demo.answer(load_base("strings"), asked),
            demo.answer(model, asked),
        ]


def test_the_demo_would_say_that_the_base_changed_or_that_merging_did(short, capsys, monkeypatch):
    def spoil(model):
        model.blocks[0].attn.q_proj.weight.data[...] = 0
        ml.merge_lora(model)

    def train(model, *arguments, **settings):
        ml.train(model, *arguments, **settings)
        model.token_embedding.weight.data[0] += 1

    with monkeypatch.context() as patch:
        patch.setattr(demo, "merge_lora", spoil)
        assert "512 of 512" not in said(capsys)
    monkeypatch.setattr(demo, "train", train)
    assert "the base   CHANGED" in said(capsys)


def test_the_words_of_the_demo_are_held_out_and_its_example_is_never_drawn():
    rng = np.random.default_rng(0)

    def held_out(word):
        total = sum("abcdefghijklmnop".index(letter) * place for place, letter in enumerate(word, 1))
        return total % 10 == 0

    drawn = [PRINTABLE.decode(row).split(">")[0][1:] for row in string_batch(["copy"], 500, rng, held_out=True)[0]]
    assert all(map(held_out, drawn)) and all(map(held_out, demo.HELD_OUT))  # the first says that the rule is right
    batches = seeded(string_sampler((demo.TASK,), demo.BATCH), 0)
    read = "".join(PRINTABLE.decode(batches(step)[0].ravel()) for step in range(demo.STEPS["strings"]))
    assert f"8{demo.EXAMPLE}>" not in read


@pytest.mark.slow
@pytest.mark.numpy_only("the command line runs in a process of its own")
def test_the_real_demo_learns_its_task(tmp_path):
    """In a process of its own, on a console that shows ASCII only, in a folder that stays empty."""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "MINILORA_CACHE": str(tmp_path / "cache")}
    (tmp_path / "here").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "minilora", "demo"], cwd=tmp_path / "here", env=environment, capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"") and not any((tmp_path / "here").iterdir())
    assert not (tmp_path / "cache").exists()
    text = done.stdout.decode("ascii")
    before, after = map(float, re.search(r"([\d.]+) % -> ([\d.]+) % right", text).groups())
    assert before < 1 and after > 97
    assert text.count(" right   ") >= 6  # what the base knows
    assert "wrong: EGDAB" in text and re.search(r"8income> +EMOCNI +(?!EMOCNI)\S+ +EMOCNI\n", text)


# ---- colours -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [
        ({"TERM": "xterm"}, True),
        ({"TERM": "xterm", "NO_COLOR": ""}, True),  # as no-color.org says: set and not empty
        ({"TERM": "xterm", "NO_COLOR": "1"}, False),
        ({"TERM": "dumb"}, False),
        ({}, False),
    ],
    ids=str,
)
@pytest.mark.skipif(sys.platform == "win32", reason="Windows says otherwise what a console can do")
def test_colours_are_for_terminals_that_have_them_and_who_wants_them(environment, coloured, monkeypatch):
    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdout", Terminal())
    assert (console.paint("x", "green") == "\x1b[32mx\x1b[0m") == coloured
    assert coloured or console.paint("x", "green") == "x"


def test_without_its_colours_the_demo_says_the_same(short, capsys, monkeypatch):
    plain = said(capsys)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("WT_SESSION", "1")
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    assert main(["demo"]) == 0
    assert "\x1b[" in terminal.text
    text = re.sub(r"\x1b\[\d+m", "", terminal.text)
    assert [line.rstrip() for line in text.splitlines()] == [line.rstrip() for line in plain.splitlines()]


# ---- tasks -------------------------------------------------------------------------------------------


def test_tasks_lists_every_task_with_its_example_and_what_the_base_knows(capsys):
    assert main(["tasks"]) == 0
    text = capsys.readouterr().out
    assert text.isascii() and max(map(len, text.splitlines())) <= 80
    known, new = text.split("are new to it")
    rows = {line.split()[0]: line.split()[1:3] for line in text.splitlines() if re.match(r"  \w+ +\dbadge>", line)}
    assert list(rows) == list(TASKS)
    for name, (asked, right) in rows.items():
        assert (asked, right) == question(name, "badge")
        assert (f"  {name} " in known) == (demo.answer(load_base("strings"), asked) == right)
        assert (f"  {name} " in new) != (f"  {name} " in known)


def test_every_task_has_its_meaning_in_words():
    assert demo.MEANINGS.keys() == TASKS.keys() and sorted(PRETRAINING + ADAPTATION) == sorted(TASKS)
    assert question("revupper", "badge") == ("8badge>", "EGDAB")


def test_the_commands_that_tasks_names_run(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    main(["tasks"])
    commands = [line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.startswith("  minilora ")]
    assert [command[0] for command in commands] == ["generate", "adapt", "generate"]
    for command in commands:
        if command[0] == "adapt":
            command += ["--steps", "2", "--batch", "2"]
        monkeypatch.setattr("sys.stdin", io.StringIO("8badge>\n"))
        assert main(command) == 0
