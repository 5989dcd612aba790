"""Where results are written: looked at before any work, never anything but a file, and through links."""

import os
import socket
import stat
from pathlib import Path

import numpy as np
import pytest
from helpers import lora_gpt, tiny_gpt

import minilora as ml
from minilora.interop.files import check_output, write_atomically, write_text
from minilora.interop.peft import CONFIG, WEIGHTS
from minilora.tools import learning, models
from minilora.tools import reproduce as tools
from minilora.tools.cli import main
from minilora.tools.commands import adapt, merge

TINY = ["--steps", "2", "--batch", "2", "--d-model", "16", "--layers", "1", "--heads", "2"]
BASE = ["--base", "base.npz"]


@pytest.fixture(autouse=True)
def made(tmp_path, monkeypatch):
    """A base, an adapter and a text to work with, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINILORA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text("to be or not to be " * 100)
    assert main(["pretrain", "--task", "copy", *TINY, "--out", "base.npz"]) == 0
    assert main(["adapt", *BASE, "--task", "upper", "--steps", "2", "--batch", "2", "--out", "adapter"]) == 0
    (tmp_path / "here").mkdir()


PRETRAIN = ["pretrain", "--task", "copy", *TINY, "--out"]
ADAPT = ["adapt", *BASE, "--task", "upper", "--steps", "2", "--batch", "2", "--out"]
MERGE = ["merge", *BASE, "--adapter", "adapter", "--out"]
REPRODUCE = ["reproduce", "--claim", "rank", "--out"]
# a command, what follows --out, and each file that it writes
WRITES = [
    (PRETRAIN, "here/new.npz", "here/new.npz"),
    (PRETRAIN, "here/new.npz", "here/new.npz.checkpoint.npz"),
    (ADAPT, "here", f"here/{CONFIG}"),
    (ADAPT, "here", f"here/{WEIGHTS}"),
    (ADAPT, "here", "here/checkpoint.npz"),
    (MERGE, "here/new.npz", "here/new.npz"),
    (REPRODUCE, "here", "here/claims.json"),
    (REPRODUCE, "here", "here/claims.md"),
    (REPRODUCE, "here", "here/rank.png"),
]


def device(place):
    try:
        os.mknod(place, stat.S_IFCHR | 0o666, os.makedev(1, 3))  # as /dev/null is
    except (AttributeError, OSError):
        pytest.skip("no device can be made here")


def a_socket(place):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(place)


def loop(place):
    os.symlink(os.path.basename(place), place)


def link_to_a_pipe(place):
    os.mkfifo("pipe")
    os.symlink(os.path.abspath("pipe"), place)


OBSTACLES = {
    "folder": os.mkdir,
    "device": device,
    "pipe": os.mkfifo,
    "socket": a_socket,
    "loop of links": loop,
    "link to a pipe": link_to_a_pipe,
}


def identity(place):
    """What stands there, and whether it was written; when it was read (a link, to follow it) does not matter."""
    found = os.lstat(place)
    return found.st_ino, found.st_mode, found.st_mtime_ns


def no_work(monkeypatch):
    def began(*_, **__):
        raise AssertionError("work began")

    for module, name in (
        (learning, "train"),
        (models, "load_model"),
        (merge, "load_adapter"),
        (adapt, "load_adapter"),
        (tools, "_sweep"),
    ):
        monkeypatch.setattr(module, name, began)


def refused(command, capsys):
    capsys.readouterr()
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"minilora {command[0]}: ") and error.count("\n") == 1
    return error


@pytest.mark.parametrize("obstacle", OBSTACLES)
@pytest.mark.parametrize(("command", "out", "place"), WRITES, ids=[f"{w[0][0]} {w[2]}" for w in WRITES])
def test_what_is_no_file_is_refused_before_any_work_and_stays(command, out, place, obstacle, capsys, monkeypatch):
    OBSTACLES[obstacle](place)
    before = identity(place)
    no_work(monkeypatch)
    assert f"{place} cannot be written" in refused([*command, out], capsys)
    assert identity(place) == before and os.listdir("here") == [os.path.basename(place)]


@pytest.mark.parametrize("command", [PRETRAIN, ADAPT, MERGE, REPRODUCE], ids=lambda command: command[0])
@pytest.mark.parametrize("out", ["text.txt/x", "n" * 300, "/proc/minilora/x"])
def test_a_folder_that_cannot_be_written_is_refused_before_any_work(command, out, capsys, monkeypatch):
    if out.startswith("/proc") and not os.path.isdir("/proc"):
        pytest.skip("this system has no /proc")
    no_work(monkeypatch)
    before = sorted(os.listdir("."))
    assert "cannot be written" in refused([*command, out], capsys)
    assert sorted(os.listdir(".")) == before


@pytest.mark.parametrize("out", [".", "..", "/", "here", ""])
@pytest.mark.parametrize("command", [PRETRAIN, MERGE], ids=lambda command: command[0])
def test_a_folder_is_no_file_name(command, out, capsys, monkeypatch):
    no_work(monkeypatch)
    assert "since it is a folder: name a file" in refused([*command, out], capsys)


def test_dev_null_is_refused_and_stays(capsys, monkeypatch):
    """Nobody learns from a training whose result is dropped, and its checkpoint would stand in /dev."""
    if not os.path.exists("/dev/null"):
        pytest.skip("this system has no /dev/null")
    no_work(monkeypatch)
    assert "/dev/null cannot be written, since it is a device" in refused([*PRETRAIN, "/dev/null"], capsys)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_the_text_to_learn_from_is_not_overwritten(capsys):
    before = Path("text.txt").read_bytes()
    os.symlink("text.txt", "link.npz")
    for out in ("text.txt", "link.npz"):
        command = ["pretrain", "--text", "text.txt", "--context", "8", *TINY, "--out", out]
        assert f"{out} is the text to learn from" in refused(command, capsys)
    assert Path("text.txt").read_bytes() == before


def test_the_place_of_the_tuned_rates_is_looked_at_before_tuning(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(tools.tuning, "RATES_FILE", tmp_path / "here")
    no_work(monkeypatch)
    assert "here cannot be written" in refused(["reproduce", "--tune"], capsys)


# ---- links -------------------------------------------------------------------------------------------


def linked(kind):
    """A link at here/new.npz, and the file that a write to it replaces or makes."""
    os.mkdir("there")
    target = Path("there/target.npz")
    if kind == "chain":
        os.symlink("../there/second", "here/new.npz")
        os.symlink("target.npz", "there/second")
    else:
        os.symlink(os.path.join("..", target), "here/new.npz")
    if kind != "dangling":
        target.write_text("old")
    return target


@pytest.mark.parametrize("kind", ["link", "chain", "dangling"])
@pytest.mark.parametrize("command", [PRETRAIN, MERGE], ids=lambda command: command[0])
def test_a_link_stays_and_its_target_is_replaced(command, kind):
    target = linked(kind)
    assert main([*command, "here/new.npz"]) == 0
    assert os.path.islink("here/new.npz") and not target.is_symlink()
    assert ml.load_model(target).config == ml.load_model("here/new.npz").config
    assert os.listdir("here") == ["new.npz"]


def test_an_adapter_is_written_through_links_of_its_folder_and_of_its_files():
    os.mkdir("there")
    os.symlink("here", "adapters")
    os.symlink("../there/weights", f"here/{WEIGHTS}")
    assert main([*ADAPT, "adapters"]) == 0
    assert os.path.islink("adapters") and os.path.islink(f"here/{WEIGHTS}") and os.path.isfile("there/weights")
    ml.load_adapter(ml.load_model("base.npz"), "adapters")


def test_library_calls_follow_links_and_replace_no_pipe():
    model = lora_gpt()
    target = linked("link")
    ml.save_checkpoint("here/new.npz", model)
    assert os.path.islink("here/new.npz") and np.load(target).files
    os.mkfifo("pipe.npz")
    with pytest.raises(ValueError, match=r"pipe\.npz cannot be written, since it is a device, a pipe or a socket"):
        ml.save_checkpoint("pipe.npz", tiny_gpt())
    os.mkdir("folder")
    os.mkfifo(f"folder/{WEIGHTS}")
    with pytest.raises(ValueError, match="a pipe"):
        ml.save_adapter(model, "folder")
    assert all(stat.S_ISFIFO(os.stat(pipe).st_mode) for pipe in ("pipe.npz", f"folder/{WEIGHTS}"))
    with pytest.raises(ValueError, match="no file has such a name"):
        ml.save_checkpoint("zero\0byte", model)


# ---- the file itself ---------------------------------------------------------------------------------


def test_who_may_read_a_file_stays_as_it_was():
    write_text("new", "1")
    write_text("private", "1")
    os.chmod("private", 0o600)
    write_text("private", "2")
    assert Path("private").read_text() == "2" and stat.S_IMODE(os.stat("private").st_mode) == 0o600
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(os.stat("new").st_mode) == 0o666 & ~umask


def test_a_name_may_be_as_long_as_the_system_allows():
    for name in ("n" * 255, "ü" * 127):
        check_output(name)
        write_text(name, "whole")
        assert Path(name).read_text() == "whole"


def test_looking_leaves_nothing_behind_and_makes_no_folder():
    before = sorted(Path().rglob("*"))
    check_output("far/away/file")
    check_output("here/file")
    assert sorted(Path().rglob("*")) == before
    write_atomically("far/away/file", lambda temporary: temporary.write_text("x"))
    assert [path.name for path in Path("far/away").iterdir()] == ["file"]


# ---- a report ----------------------------------------------------------------------------------------


def test_figures_are_tried_before_the_runs(capsys, monkeypatch):
    no_work(monkeypatch)

    def broken():
        raise ValueError("Figures cannot be drawn here: matplotlib says 'no fonts'.")

    monkeypatch.setattr(tools, "check_figures", broken)
    assert "no fonts" in refused([*REPRODUCE, "here"], capsys)


@pytest.fixture
def report(monkeypatch):
    """`reproduce --claim rank low_data` with made-up rows instead of runs."""
    row = {
        "statement": "S",
        "where": "§1",
        "paper": "P",
        "measured": "M",
        "spread": "±0",
        "rule": "R",
        "verdict": "holds",
        "short": "S",
        "key": "K = 1",
        "verdicts": {"text": "holds"},
        "measurements": [],
    }

    def run_jobs(jobs, *rest):
        finished = rest[-1]
        for job in jobs:
            finished(tools.job_name(job), {"result": {}, "seconds": 1})

    monkeypatch.setattr(tools, "run_jobs", run_jobs)
    monkeypatch.setattr(
        tools, "make_row", lambda claim, *_: {"id": claim.id, **row, "figure": f"{claim.id}.png", "seconds": 1}
    )
    return lambda: main(["reproduce", "--claim", "rank", "low_data", "--out", "here"])


def test_the_table_does_not_wait_for_a_picture_that_fails(report, capsys, monkeypatch):
    from minilora.claims import report as of_report

    drawn = []

    def save(path, draw):
        assert os.path.exists("here/claims.md") and os.path.exists("here/claims.json")
        drawn.append(path.name)
        if path.name == "rank.png":
            raise RuntimeError("latex could not be found.")
        path.write_bytes(b"a picture")

    monkeypatch.setattr(of_report, "save_figure", save)
    capsys.readouterr()
    assert report() == 2
    said = capsys.readouterr()
    assert "· ✓ ·  S" in said.out and "K = 1" in said.out
    assert said.err.splitlines()[-1] == (
        "minilora reproduce: The table is in here, but without rank.png (latex could not be found)."
    )
    assert drawn == ["rank.png", "low_data.png"]
    page = Path("here/report.html").read_text(encoding="utf-8")
    assert "rank.png could not be drawn: latex could not be found." in page and "low_data.png could" not in page


def test_a_figure_is_drawn_again_only_where_its_runs_or_its_code_are_others(report, monkeypatch):
    from minilora.claims import report as of_report

    drawn = []

    def save(path, draw):
        drawn.append(path.name)
        path.write_bytes(b"a picture, no. %d" % len(drawn))

    monkeypatch.setattr(of_report, "save_figure", save)
    assert report() == 0 and drawn == ["rank.png", "low_data.png"]
    Path("here/rank.png").write_bytes(b"")
    assert report() == 0 and len(drawn) == 2
    assert Path("here/rank.png").read_bytes() == b"a picture, no. 1"
    assert Path("here/low_data.png").read_bytes() == b"a picture, no. 2"
    monkeypatch.setattr(of_report, "_drawn_by", lambda: {"code": "another"})
    assert report() == 0 and len(drawn) == 4
    monkeypatch.setattr(of_report, "_digest", lambda runs: "of other runs")
    assert report() == 0 and len(drawn) == 6
    for file in Path("cache/runs").iterdir():
        file.write_text("{}")
    with pytest.warns(UserWarning, match="damaged or was edited"):
        assert report() == 0 and len(drawn) == 8


def test_the_table_is_printed_even_if_it_cannot_be_written(report, capsys, monkeypatch):
    def full(*_):
        raise ValueError("claims.json cannot be written: No space left on device.")

    monkeypatch.setattr(tools, "write_report", full)
    assert report() == 2
    said = capsys.readouterr()
    assert "· ✓ ·  S" in said.out and "K = 1" in said.out and "No space left on device" in said.err
