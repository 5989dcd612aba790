"""Finished runs are kept, once each; what is damaged is made again; what dies or is interrupted loses nothing else."""

import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from made_up_report import report_rows

from minilora import claims
from minilora.claims import bases, store, tuning
from minilora.claims.adaptation import setting
from minilora.claims.claim import Experiment, Settings
from minilora.claims.methods import FULL, LoRA
from minilora.interop import files
from minilora.tools import reproduce as tools
from minilora.tools.cli import main
from minilora.tools.sweep import WorkerDiedError, process_pool, sweep
from minilora.training import log_interval

PLANTED = [("rank", {"world": "planted", "seed": 0, "r": r}) for r in (1, 2, 3, 4)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MINILORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def counted(monkeypatch):
    """An experiment that notes its runs, in this process; its configurations are {"x": number}."""
    ran = []

    def run(configuration):
        ran.append(configuration["x"])
        if configuration["x"] == 13:
            raise ValueError("13 is refused")
        return {"double": 2 * configuration["x"]}

    def at_once(count, scheduler):
        return ThreadPoolExecutor(1)

    monkeypatch.setitem(claims.SHARED, "counted", Experiment(run))
    monkeypatch.setattr(tools, "_workers", at_once)
    monkeypatch.setattr(tools, "process_pool", lambda count: at_once(count, None))
    return ran


def jobs(*numbers):
    return [("counted", {"x": x}) for x in numbers]


def doubles(results):
    return [kept["result"]["double"] for kept in results.values()]


# ---- what is kept ------------------------------------------------------------------------------------


def test_a_run_that_finished_is_read_and_not_made_again(counted, capsys):
    assert doubles(tools.run_jobs(jobs(1, 2, 1), 1)) == [2, 4]
    assert doubles(tools.run_jobs(jobs(1, 2, 3), 1)) == [2, 4, 6]
    assert counted == [1, 2, 3]
    assert "2 of 3 runs finished before; 1 are left." in capsys.readouterr().err
    assert doubles(tools.run_jobs(jobs(1), 1, fresh=True)) == [2]
    assert counted == [1, 2, 3, 1]


def test_where_results_cannot_be_kept_is_found_out_before_the_runs(counted, cache, tmp_path, monkeypatch):
    tools.run_jobs(jobs(1), 1)
    (path,) = (cache / "runs").glob("*.json")
    path.unlink()
    path.mkdir()
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(ValueError, match=r"cannot be kept: .* is a folder"):
        tools.run_jobs(jobs(1), 1)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINILORA_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ValueError, match=r"cannot be kept: .*Not a directory. MINILORA_CACHE may name another folder"):
        tools.run_jobs(jobs(2), 1)
    assert counted == [1]


def test_another_version_of_an_experiment_is_another_run(counted, monkeypatch):
    tools.run_jobs(jobs(1), 1)
    monkeypatch.setitem(claims.SHARED, "counted", Experiment(claims.SHARED["counted"].run, version=2))
    tools.run_jobs(jobs(1), 1)
    assert counted == [1, 1]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: text.replace('"double": 2', '"double": 3'),
        lambda text: text.replace('"x": 1', '"x": 2'),
        lambda text: "\x00" * len(text),
        lambda text: "[" * 100_000,
        lambda text: '{"digest":' * 100_000,
        lambda text: text.replace('{"double"', '{"deep": ' + "[" * 5000 + "]" * 5000 + ', "double"'),
    ],
)
def test_a_result_cut_short_or_edited_by_hand_is_made_again_with_a_warning(counted, cache, damage):
    tools.run_jobs(jobs(1), 1)
    (path,) = (cache / "runs").glob("*.json")
    path.write_text(damage(path.read_text()))
    with pytest.warns(UserWarning, match="damaged or was edited"):
        assert doubles(tools.run_jobs(jobs(1), 1)) == [2]
    assert counted == [1, 1]
    assert doubles(tools.run_jobs(jobs(1), 1)) == [2] and counted == [1, 1]


def test_what_finished_before_an_error_is_kept(counted):
    with pytest.raises(ValueError, match="13 is refused"):
        tools.run_jobs(jobs(1, 13, 2), 1)
    tools.run_jobs(jobs(1), 1)
    assert counted.count(1) == 1


def test_a_full_disk_is_an_error_in_a_sentence_and_leaves_nothing_half_written(counted, cache, monkeypatch):
    tools.run_jobs(jobs(1), 1)
    before = sorted(cache.rglob("*"))
    with monkeypatch.context() as patch:

        def full(descriptor):
            raise OSError(28, "No space left on device")

        patch.setattr(files.os, "fsync", full)
        with pytest.raises(ValueError, match="cannot be written: No space left on device"):
            tools.run_jobs(jobs(2), 1)
    assert sorted(cache.rglob("*")) == before
    assert doubles(tools.run_jobs(jobs(1, 2), 1)) == [2, 4]


def test_what_measures_time_runs_last_with_nothing_beside_it(counted, monkeypatch):
    order = []
    monkeypatch.setitem(claims.SHARED, "timed", Experiment(lambda c: order.append("timed") or {}, alone=True))
    monkeypatch.setitem(claims.SHARED, "counted", Experiment(lambda c: order.append("counted") or {}))
    tools.run_jobs([("timed", {"x": 0}), *jobs(1, 2), ("timed", {"x": 1})], 1)
    assert order == ["counted", "counted", "timed", "timed"]


def test_a_result_depends_on_the_base_and_its_text():
    made_of = tools._made_of(("adaptation", {"base": ["text", 0], "task": "code"}))
    assert made_of["base"]["text"] and made_of["base"]["steps"] and made_of["minilora"]
    assert made_of["code"] != made_of["base"]["text"]
    assert tools._made_of(("rank", {"world": "planted", "seed": 0, "r": 1}))["base"] is None


# ---- a line as soon as a claim is decided -------------------------------------------------------------


@pytest.fixture
def three_claims(monkeypatch, counted):
    """Three claims of one, two and one runs, the first of which measures time; returns what happens, in order.

    The run of "one" waits for the line of "pair".
    """
    events = []

    def note(name):
        def run(configuration):
            deadline = time.monotonic() + 60
            while name == "one" and "told pair" not in events and time.monotonic() < deadline:
                time.sleep(0.01)
            events.append(f"run {name} {configuration['x']}")
            return {"x": configuration["x"]}

        return run

    runs = {"slow": [1], "pair": [1, 2], "one": [3]}
    made = []
    for name, numbers in runs.items():
        monkeypatch.setitem(claims.SHARED, name, Experiment(note(name), alone=name == "slow"))
        asked = [{"experiment": name, "x": x} for x in numbers]
        made.append(dataclasses.replace(claims.CLAIMS[0], id=name, configurations=lambda _, asked=asked: asked))
    monkeypatch.setattr(tools, "find", lambda names: made)
    monkeypatch.setattr(tools, "check_figures", lambda: None)
    monkeypatch.setattr(
        tools, "make_row", lambda claim, runs, *_: {**report_rows()[0], "id": claim.id, "figure": f"{claim.id}.png"}
    )
    monkeypatch.setattr(tools, "draw_figures", lambda *_: {f"{name}.png": "no matter" for name in runs})
    return events


def test_a_claim_is_told_as_soon_as_its_last_run_is_finished(three_claims, tmp_path):
    def told(fresh=False):
        three_claims.clear()
        with pytest.raises(ValueError, match=r"without slow\.png"):
            tools.reproduce(
                [], Settings(1), tmp_path, 1, fresh=fresh, decided=lambda row: three_claims.append(f"told {row['id']}")
            )
        return list(three_claims)

    first = told()
    assert first == [
        "run pair 1", "run pair 2", "told pair", "run one 3", "told one", "run slow 1", "told slow",
    ]  # fmt: skip
    assert told() == ["told slow", "told pair", "told one"]  # what finished before is told at once
    report = json.loads((tmp_path / "claims.json").read_text(encoding="utf-8"))
    assert report["schema"] == 4 and [row["id"] for row in report["claims"]] == ["slow", "pair", "one"]
    assert told(fresh=True) == first


def test_a_reader_who_has_gone_costs_no_report(three_claims, tmp_path):
    def gone(row):
        three_claims.append(f"told {row['id']}")
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        tools.reproduce([], Settings(1), tmp_path, 1, decided=gone)
    assert len([event for event in three_claims if event.startswith("run")]) == 4
    assert len([event for event in three_claims if event.startswith("told")]) == 1
    assert (tmp_path / "claims.json").exists() and (tmp_path / "report.html").exists()


def test_the_lines_do_not_stand_within_the_bar(three_claims, tmp_path, monkeypatch, capfd):
    def say(row):
        print(f"line of {row['id']}", flush=True)
        three_claims.append(f"told {row['id']}")

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with monkeypatch.context() as patch:
        patch.setattr(tools.sys, "stdout", sys.stderr)  # one terminal shows both
        with pytest.raises(ValueError, match=r"without slow\.png"):
            tools.reproduce([], Settings(1), tmp_path, 1, decided=say)
    shown = re.split(r"[\r\n]", capfd.readouterr().err)
    assert {"line of slow", "line of pair", "line of one"} < set(shown)


def test_reproduce_prints_the_head_once_the_lines_and_the_page_to_open(tmp_path, monkeypatch, capsys):
    from minilora.tools.commands import reproduce as command

    opened = []
    rows = [row for row in report_rows() if row["id"] in ("rank", "low_data")]
    monkeypatch.setattr(command, "reproduce", lambda *_, decided, **__: [decided(row) for row in rows])
    monkeypatch.setattr(command.webbrowser, "open", lambda address: opened.append(address) or len(opened) == 1)
    monkeypatch.setenv("COLUMNS", "80")
    command = ["reproduce", "--claim", "rank", "low_data", "--out", str(tmp_path), "--open"]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("✓ holds  ✗ does not hold") and lines[1].startswith("s t e  ")
    assert lines[2].startswith("✓ ✗ ✓  ") and lines[3].startswith("~ ✗ ✓  ") and lines[4] == ""
    assert lines[5].startswith("2 claims: 2 differ by world. ")
    assert lines[5].endswith(" s.")
    assert lines[6] == f"The report: {tmp_path / 'report.html'}"
    assert lines[7] == f"One claim here: minilora show rank --out {tmp_path}"
    assert opened == [(tmp_path / "report.html").as_uri()]
    assert main(command) == 2
    assert "No browser could be started: open" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "folder"), [([], "figures"), (["--quick"], "quick"), (["--claim", "rank"], "some")], ids=str
)
def test_a_first_look_or_some_claims_take_the_place_of_no_report(given, folder, monkeypatch, capsys):
    from minilora.tools.commands import reproduce as command

    folders = []
    monkeypatch.setattr(command, "reproduce", lambda _, __, out, *___, **____: folders.append(str(out)))
    assert main(["reproduce", *given]) == 0
    assert folders == [folder]


# ---- workers that die --------------------------------------------------------------------------------


def die_once(configuration):
    """End the process, without a word, the first time that a run is tried; always where told so."""
    x, folder = configuration
    tried = os.path.join(folder, str(x))
    if x < 0 or not os.path.exists(tried):
        open(tried, "w").close()
        if x in (3, -1):
            os._exit(1)
    return x


def test_a_run_whose_worker_died_is_tried_once_more(tmp_path):
    finished = []
    with process_pool(2) as pool:
        configurations = [(x, str(tmp_path)) for x in range(6)]
        assert sweep(die_once, configurations, pool, lambda place, result: finished.append(result)) == list(range(6))
    assert sorted(finished) == list(range(6))


def test_a_run_that_dies_twice_is_named_and_the_rest_finish(tmp_path):
    finished = []
    with process_pool(2) as pool, pytest.raises(WorkerDiedError, match=r"died twice.*\(-1, ") as error:
        sweep(die_once, [(x, str(tmp_path)) for x in (0, -1, 1, 2)], pool, lambda place, _: finished.append(place))
    assert sorted(finished) == [0, 2, 3] and error.value.places == [1]


def test_reproduce_names_the_run_that_died_and_keeps_the_others(monkeypatch):
    real = tools.sweep

    def dying(fn, configurations, executor, callback):
        real(fn, configurations[1:], executor, lambda place, result: callback(place + 1, result))
        raise WorkerDiedError([configurations[0]], [0])

    monkeypatch.setattr(tools, "sweep", dying)
    with pytest.raises(WorkerDiedError, match=r"planted.*'r': 1"):
        tools.run_jobs(PLANTED, 1)
    monkeypatch.setattr(tools, "sweep", real)
    kept = [store.kept_result(tools._made_of(job)) for job in PLANTED]
    assert kept[0] is None and all(k["result"]["floor"] >= 0 for k in kept[1:])


# ---- the whole run, killed ---------------------------------------------------------------------------

KILLED = """
import json, sys
from minilora.tools.reproduce import run_jobs
if __name__ == "__main__":
    jobs = [("rank", {"world": "planted", "seed": s, "r": r}) for s in range(3) for r in (1, 2, 3, 4, 6, 8)]
    results = run_jobs(jobs, 2)
    print(json.dumps({name: kept["result"] for name, kept in results.items()}, sort_keys=True))
"""


def test_a_run_killed_at_any_moment_goes_on_where_it_was(tmp_path, cache):
    """The long form, on the command line and ten times, is in tests/stress."""
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    rng = np.random.default_rng(0)

    def kept():
        return {path.name: path.read_bytes() for path in (cache / "runs").glob("*.json")} if cache.exists() else {}

    before = {}
    for _ in range(3):
        process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, start_new_session=True)
        deadline = time.monotonic() + 60
        while len(kept()) == len(before) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.5))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        after = kept()
        assert before.items() <= after.items()  # nothing that finished is lost or changed
        before = after
    final = subprocess.run([sys.executable, script], stdout=subprocess.PIPE, check=True, timeout=120)
    os.rename(cache, tmp_path / "killed")
    unbroken = subprocess.run([sys.executable, script], stdout=subprocess.PIPE, check=True, timeout=120)
    assert json.loads(final.stdout) == json.loads(unbroken.stdout) and len(json.loads(final.stdout)) == 18


# ---- tuning ------------------------------------------------------------------------------------------


def searched(loss):
    """Every run that the search makes where a run's loss is `loss(configuration)`."""
    runs = []
    while more := tuning.beyond(runs):
        assert len(runs) < 5000 and not any(c in [made for made, _ in runs] for c in more[:1])
        runs += [(c, {"bits": loss(c), "accuracy": 1 / (1 + 2 ** loss(c))}) for c in more]
    return runs


def test_the_search_ends_with_the_best_rate_between_two_worse_ones_in_steps_of_root_two():
    runs = searched(lambda c: abs(math.log2(c["lr"]) + 4.6 + len(c["method"]) / 9 + 0.3 * (c["base"][1] == 101)))
    for (name, method), curve in tuning.curves(runs).items():
        best = tuning.best(curve)
        middle = 2 ** -(4.75 + len(method) / 9)  # of both bases
        assert abs(math.log2(best / middle)) <= 0.26, (name, method)
        assert {f"{best * 2**k:.6g}" for k in (-0.5, 0.5)} <= {f"{lr:.6g}" for lr in curve}


def test_a_search_that_finds_no_end_stops_and_the_file_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(tuning, "METHODS", {("strings", 300, None): (FULL, LoRA("q,v", 4))})
    monkeypatch.setattr(tuning, "RATES_FILE", tmp_path / "rates.json")
    runs = searched(lambda c: c["lr"] if c["method"] == "full" else abs(c["lr"] - 2**-6))
    tuning.write_rates(runs)
    written = json.loads((tmp_path / "rates.json").read_text())
    assert written["optimum_at_an_end_of_its_grid"] == ["strings 300: full"]
    assert written["rates"]["strings 300"]["lora q,v 4"] == 2**-6 and written["runs"] == len(runs)
    low, high = written["within_0.02_bits_of_the_best"]["strings 300: lora q,v 4"]
    assert low < 2**-6 < high


def test_tuning_looks_at_bases_and_batches_that_no_report_uses():
    tuned = [c for c, _ in searched(lambda c: (math.log2(c["lr"]) + 6) ** 2)]
    reported = [c for claim in claims.CLAIMS for s in (3, 50) for c in claim.configurations(Settings(s, long=True))]
    assert {c["base"][1] for c in tuned} == set(tuning.BASES)
    assert not any(c.get("base", [None, None])[1] in tuning.BASES for c in reported)
    assert all(c["evaluation_seed"] == tuning.EVALUATION_SEED for c in tuned)


def test_every_rate_that_a_claim_reads_was_tuned_at_its_own_length():
    """Asked of the claims' own configurations: none falls back on another length's."""
    tuned = {(setting(*of), method.name) for of, methods in tuning.METHODS.items() for method in methods}
    for claim in claims.CLAIMS:
        for c in claim.configurations(Settings(2, long=True)):
            if c.get("experiment") == "adaptation":
                assert (setting(c["base"][0], c["steps"], c.get("examples")), c["method"]) in tuned, (claim.id, c)


def test_tune_writes_the_file_that_the_claims_read(counted, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(
        claims.SHARED,
        "adaptation",
        Experiment(lambda c: {"bits": abs(c["lr"] - 2**-7), "accuracy": 0.5 - abs(c["lr"] - 2**-7) / 9}),
    )
    monkeypatch.setattr(tuning, "RATES_FILE", tmp_path / "rates.json")
    monkeypatch.setattr(tools, "_prepare_base", lambda base: None)
    assert main(["reproduce", "--tune", "--workers", "1"]) == 0
    written = json.loads((tmp_path / "rates.json").read_text())
    assert set(written["rates"]["text 400"].values()) == {2**-7} and "bases 100 and 101" in written["chosen_on"]
    assert str(tmp_path / "rates.json") in capsys.readouterr().out


def test_every_method_that_a_claim_uses_has_a_rate():
    from minilora.claims import adaptation

    for (world, steps, examples), methods in tuning.METHODS.items():
        assert all(adaptation.rate(world, method, steps, examples) > 0 for method in methods)
    assert adaptation.rate("strings", "bitfit", 20) == adaptation.rate("strings", "bitfit")  # a quick look's
    with pytest.raises(ValueError, match="No learning rate is known for 'lora q 3' on text 400: add it"):
        adaptation.rate("text", "lora q 3")
    with pytest.raises(ValueError, match="on text 5000: add it"):  # of no other length
        adaptation.rate("text", "full", 5000)


def test_the_bar_moves_with_the_steps_within_runs(capsys, monkeypatch):
    """Two of four runs have finished and two are half-way: three quarters, with the losses."""

    class Executor(ThreadPoolExecutor):
        def progress(self):
            return [(5, 10, 0.25), (50, 100, 1.5)] if len(finished) == 2 else []

    finished = []

    def run(number):
        while number > 1 and not seen.is_set():
            seen.wait(0.01)

    seen = threading.Event()
    drawn = tools.tqdm.set_postfix_str

    def draw(bar, text):
        if bar.n == 3:
            seen.set()
        drawn(bar, text)

    monkeypatch.setattr(tools.tqdm, "set_postfix_str", draw)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Executor(4) as executor:
        tools._sweep("running", run, range(4), executor, lambda job, _: finished.append(job), str)
    bar = capsys.readouterr().err
    assert "running  75% |" in bar and "losses 0.25, 1.50" in bar and "running 100% |" in bar
    assert " left" not in bar  # in the first seconds nobody knows


def test_a_base_that_is_made_and_a_run_tell_their_steps(monkeypatch):
    told = []
    monkeypatch.setattr(tools, "tell", lambda *step: told.append(step))
    monkeypatch.setitem(bases.WORLDS, "strings", {**bases.WORLDS["strings"], "steps": 3, "batch": 2})
    monkeypatch.setattr(tools, "pretrained", bases.pretrain)
    tools._prepare_base(("strings", 0))
    fetched = [(1, 3), (2, 3), (3, 3)] if log_interval() == 1 else [(3, 3)]  # a GPU's losses come together
    assert [step[:2] for step in told] == [*fetched, (0, 0)] and told[0][2] > 3
