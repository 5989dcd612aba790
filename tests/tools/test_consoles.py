"""The command line on consoles that show less than UTF-8, that are closed, and under Ctrl-C at its worst moment.

A console that cannot show a character is simulated by PYTHONIOENCODING: cp1252 is what Python finds behind a pipe on
Windows, ascii the least there is.
"""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from minilora.tools.cli import main
from minilora.tools.commands import reproduce

pytestmark = pytest.mark.numpy_only("the command line runs in processes of its own")

COMMANDS = ("demo", "tasks", "reproduce", "show", "pretrain", "adapt", "generate", "merge", "budget", "info")
SMALL = ["--task", "upper", "--steps", "2", "--batch", "2"]
ADAPT = ["adapt", "--base", "base.npz", *SMALL, "--r", "2", "--out", "made"]
# what stands in these columns: the command, and what it says where every character can be shown
SAYS = {
    "pretrain": (
        ["pretrain", *SMALL, "--d-model", "16", "--layers", "1", "--heads", "2", "--out", "x.npz"],
        "held out",
    ),
    "adapt": (ADAPT, "on q_proj, v_proj, scaling α/r = 1"),
    "merge": (["merge", "--base", "base.npz", "--adapter", "adapter", "--out", "x.npz"], "6,704 parameters, ΔW inside"),
    "generate": (["generate", "--base", "text.npz", "--prompt", "日本é", "--length", "0"], "日本é"),
    "budget": (["budget", "--preset", "gpt3-175b", "--paper", "--full"], "2·96·2·12,288·4"),
    "info": (["info"], "backend"),
    "tasks": (["tasks"], "8badge>   EGDAB"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("consoles")
    (folder / "text.txt").write_text("日本é " * 200, encoding="utf-8")
    tiny = ["--steps", "1", "--batch", "2", "--d-model", "16", "--layers", "1", "--heads", "2"]
    base, adapter = str(folder / "base.npz"), str(folder / "adapter")
    assert main(["pretrain", "--task", "copy", *tiny, "--out", base]) == 0
    assert (
        main(
            ["pretrain", "--text", str(folder / "text.txt"), *tiny, "--context", "8", "--out", str(folder / "text.npz")]
        )
        == 0
    )
    assert main(["adapt", "--base", base, *SMALL, "--r", "2", "--out", adapter]) == 0
    return folder


def run(folder, *arguments, environment=None, program=("-m", "minilora"), **settings):
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **settings}
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON") or k == "PYTHONPATH"}
    environment = {**clean, "MINILORA_CACHE": str(folder / "cache"), **(environment or {})}
    return subprocess.run([sys.executable, *program, *arguments], cwd=folder, env=environment, timeout=120, **settings)


# ---- characters --------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_shown_with_what_the_console_has(made, command, encoding):
    done = run(made, command, "--help", environment={"PYTHONIOENCODING": encoding})
    assert (done.returncode, done.stderr) == (0, b"")
    example = done.stdout.decode(encoding).replace("\r\n", "\n").split("\nexample:\n  ")[1]
    assert example.removeprefix("python -m ").startswith(f"minilora {command}")  # as it was called


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
@pytest.mark.parametrize("command", SAYS)
def test_every_command_says_what_it_did(made, command, encoding):
    arguments, said = SAYS[command]
    done = run(made, *arguments, environment={"PYTHONIOENCODING": encoding})
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
    assert said.encode(encoding, "replace") in done.stdout


def test_a_progress_bar_degrades_too(made):
    """It is shown where the console is a terminal; here it is made to be."""
    code = (
        "import sys; from minilora.tools.cli import main\n"
        "sys.stderr.isatty = lambda: True\n"
        "raise SystemExit(main(sys.argv[1:]))"
    )
    done = run(made, *ADAPT, program=("-c", code), environment={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and b"2/2" in done.stderr and b"scaling ?/r" in done.stdout


def test_the_report_is_printed_with_what_the_console_has(monkeypatch, tmp_path):
    console = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", console)
    row = {"id": "rank", "short": "ΔW", "key": "≥ α", "verdict": "holds", "verdicts": {"text": "holds"}}
    monkeypatch.setattr(reproduce, "reproduce", lambda *_, decided, **__: decided(row))
    assert main(["reproduce", "--out", str(tmp_path)]) == 0
    said = console.buffer.getvalue().decode("cp1252")
    assert ". y .  ?W" in said and "? ?" in said and "y holds  n does not hold  ~ within noise  . not judged" in said


# ---- streams that are closed -------------------------------------------------------------------------


def closed_pipe():
    """The writing end of a pipe that nobody reads, as after `| head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@pytest.mark.parametrize("command", SAYS)
def test_a_reader_that_has_gone_is_no_traceback_and_costs_no_work(made, command):
    for path in made.glob("made/*"):
        path.unlink()
    writing = closed_pipe()
    done = run(made, *SAYS[command][0], stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")
    assert command != "adapt" or sorted(path.name for path in made.glob("made/*")) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_a_reader_of_both_streams_that_has_gone_is_no_error_of_pythons(made):
    writing = closed_pipe()
    assert (
        run(made, "generate", "--base", "nothing.npz", "--prompt", "a", stdout=writing, stderr=writing).returncode
        == 141
    )
    done = run(made, "--help", stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(os.name == "nt", reason="Windows starts no process without these")
@pytest.mark.parametrize("streams", [(1,), (2,), (1, 2), (0, 1, 2)], ids=str)
def test_streams_that_were_closed_swallow_what_is_said(made, streams):
    def close():
        for stream in streams:
            os.close(stream)

    done = run(made, *ADAPT, preexec_fn=close)
    assert (done.returncode, done.stderr) == (0, b"")
    assert run(made, "adapt", "--base", "nothing.npz", *SMALL, "--out", "n", preexec_fn=close).returncode == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_output_that_cannot_be_written_is_an_error_in_a_sentence(made):
    with open("/dev/full", "w") as full:
        done = run(made, "info", stdout=full)
    assert done.returncode == 2
    assert done.stderr.decode().splitlines() == [
        "minilora info: The output cannot be written: No space left on device."
    ]


# ---- Ctrl-C while importing --------------------------------------------------------------------------

INTERRUPTED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
class Finder:
    def find_spec(self, name, *_):
        if name == {name!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
"""
SCRIPT = "import sys\nfrom minilora.tools.cli import main\nsys.exit(main())\n"  # as pip makes it


@pytest.mark.skipif(os.name == "nt", reason="a signal cannot be sent to oneself there")
@pytest.mark.parametrize(
    "name", ["numpy", "numpy.random", "minilora.lora", "minilora.tools.cli", "safetensors", "tqdm"]
)
@pytest.mark.parametrize("how", ["-m", "script"])
def test_ctrl_c_while_importing_leaves_no_traceback(made, tmp_path, name, how):
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTED.format(name=name))
    (tmp_path / "minilora").write_text(SCRIPT)
    root = str(Path(__file__).parents[2])
    environment = {"PYTHONPATH": os.pathsep.join([str(tmp_path), root])}
    program = ("-m", "minilora") if how == "-m" else (str(tmp_path / "minilora"),)
    done = run(made, "info", program=program, environment=environment)
    assert done.returncode in (130, -signal.SIGINT)  # a shell says 130 for both
    assert b"Traceback" not in done.stderr and done.stdout == b""


def test_a_program_that_imports_minilora_keeps_its_own_answer_to_ctrl_c(made):
    code = (
        "import sys; before = sys.excepthook; import minilora; assert sys.excepthook is before; raise KeyboardInterrupt"
    )
    done = run(made, program=("-c", code))
    assert b"Traceback" in done.stderr and b"AssertionError" not in done.stderr


# ---- bytes that are no text --------------------------------------------------------------------------

BYTES = "caf\udce9"  # what Python makes of the bytes b"caf\xe9"


@pytest.mark.parametrize(
    "arguments",
    [
        ["pretrain", "--text", BYTES, "--out", "x"],
        ["pretrain", "--task", BYTES, "--out", "x"],
        ["pretrain", "--task", "copy", "--out", BYTES],
        ["adapt", "--base", BYTES, "--task", "copy", "--out", "x"],
        ["adapt", "--gpt2", BYTES, "--task", "copy", "--out", "x"],
        ["adapt", "--base", "strings", "--adapter", BYTES, "--task", "copy", "--out", "x"],
        ["generate", "--base", "strings", "--prompt", BYTES],
        ["generate", "--gpt2", BYTES, "--prompt", "a"],
        ["merge", "--base", "strings", "--adapter", BYTES, "--out", "x"],
        ["reproduce", "--claim", BYTES],
        ["reproduce", "--out", BYTES],
        ["reproduce", "--scheduler", BYTES],
        ["budget", "--preset", BYTES],
        ["info", "--backend", BYTES],
        [BYTES],
        [f"--{BYTES}"],
    ],
    ids=lambda arguments: " ".join(arguments).encode("ascii", "replace").decode(),
)
def test_bytes_that_are_no_text_are_refused_in_a_sentence(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "caf\\udce9' holds bytes that are no" in error
    assert os.listdir() == []


@pytest.mark.skipif(os.name == "nt", reason="arguments are text there")
def test_bytes_that_are_no_text_in_a_real_process(made):
    done = run(made, "generate", "--base", "base.npz", "--prompt", b"caf\xe9")
    assert (
        done.returncode == 2 and b"holds bytes that are no utf-8 text" in done.stderr and done.stderr.count(b"\n") == 1
    )
