"""Runs side by side, and the cache they share."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import minilora as ml
from minilora.claims import store
from minilora.tools.sweep import process_pool, sweep, tell


def square(x):
    return x * x


def threads_here(_):
    from minilora.machine import blas_threads

    return blas_threads()


def fail_on_two(x):
    if x == 2:
        raise ValueError("two is refused")
    return x


def make(configuration):
    with open(configuration["log"], "a") as log:
        log.write("made\n")
    return ml.GPT(ml.GPTConfig(5, 4, 8, 1, 2), seed=configuration["seed"])


def ask(configuration):
    return store.cached_model(configuration, lambda: make(configuration)).state_dict()["lm_head.weight"]


def test_results_come_in_the_order_of_the_configurations(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    with process_pool(2) as pool:
        seen = []
        assert sweep(square, range(9), pool, lambda place, result: seen.append((place, result))) == [
            x * x for x in range(9)
        ]
        assert sorted(seen) == [(x, x * x) for x in range(9)]
        assert set(sweep(threads_here, [0, 1], pool)) == {1}
        with pytest.raises(ValueError, match="two is refused"):
            sweep(fail_on_two, range(5), pool)
    assert os.environ["OMP_NUM_THREADS"] == "7"
    with ThreadPoolExecutor(2) as pool:
        assert sweep(square, [3], pool) == [9]


def test_two_processes_that_want_one_base_make_it_once(tmp_path, monkeypatch):
    monkeypatch.setenv("MINILORA_CACHE", str(tmp_path / "cache"))
    configuration = {"seed": 3, "log": str(tmp_path / "log")}
    with process_pool(2) as pool:
        first, second = sweep(ask, [configuration] * 2, pool)
    np.testing.assert_array_equal(first, second)
    assert (tmp_path / "log").read_text() == "made\n"
    ask({**configuration, "seed": 4})
    assert (tmp_path / "log").read_text() == "made\nmade\n"


def test_a_damaged_base_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("MINILORA_CACHE", str(tmp_path / "cache"))
    configuration = {"seed": 3, "log": str(tmp_path / "log")}
    before = ask(configuration)
    (path,) = (tmp_path / "cache" / "bases").glob("*.npz")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.warns(UserWarning, match="made again"):
        np.testing.assert_array_equal(ask(configuration), before)
    assert (tmp_path / "log").read_text() == "made\nmade\n"


def no_writing(monkeypatch):
    """What a folder that may only be read answers; a test that runs as root could write into any."""

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    for module, name in ((store, "FileLock"), (os, "open"), (os, "replace"), (os, "mkdir")):
        monkeypatch.setattr(module, name, refuse)


def test_a_cache_that_others_wrote_is_read_without_writing(tmp_path, monkeypatch):
    """A class shares one: what is there is used, and what is not is asked for in a sentence."""
    monkeypatch.setenv("MINILORA_CACHE", str(tmp_path / "cache"))
    configuration = {"seed": 3, "log": str(tmp_path / "log")}
    before = ask(configuration)
    store.keep_result({"run": 1}, {"loss": 0.5})
    for lock in (tmp_path / "cache").rglob("*.lock"):
        lock.unlink()
    files = sorted((tmp_path / "cache").rglob("*"))
    no_writing(monkeypatch)
    np.testing.assert_array_equal(ask(configuration), before)
    assert store.kept_result({"run": 1}) == {"loss": 0.5} and store.kept_result({"run": 2}) is None
    store.check_keeping([])
    with pytest.raises(ValueError, match=r"cannot be written \(.*Permission denied.*set MINILORA_CACHE"):
        ask({**configuration, "seed": 4})
    with pytest.raises(ValueError, match=r"Results cannot be kept: .*Permission denied. MINILORA_CACHE may name"):
        store.check_keeping([{"run": 2}])
    assert sorted((tmp_path / "cache").rglob("*")) == files


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write into any folder")
def test_a_read_only_folder_is_such_a_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MINILORA_CACHE", str(tmp_path / "cache"))
    configuration = {"seed": 3, "log": str(tmp_path / "log")}
    before = ask(configuration)
    (tmp_path / "cache" / "bases").chmod(0o555)
    np.testing.assert_array_equal(ask(configuration), before)
    with pytest.raises(ValueError, match="set MINILORA_CACHE"):
        ask({**configuration, "seed": 4})


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    class Lock:
        def __init__(self, path):
            pass

        def acquire(self):
            raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setenv("MINILORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "FileLock", Lock)
    with pytest.raises(ValueError, match=r"does not appear to support flock\): set MINILORA_CACHE"):
        ask({"seed": 3, "log": str(tmp_path / "log")})


def test_a_base_of_another_configuration_under_a_cached_name_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("MINILORA_CACHE", str(tmp_path / "cache"))
    configuration, bases = {"seed": 3, "log": str(tmp_path / "log")}, tmp_path / "cache" / "bases"
    right = ask(configuration)
    (path,) = bases.glob("*.npz")
    ask({**configuration, "seed": 4})
    (other,) = set(bases.glob("*.npz")) - {path}
    path.write_bytes(other.read_bytes())
    with pytest.warns(UserWarning, match=r"made again: .* holds a base of another configuration"):
        np.testing.assert_array_equal(ask(configuration), right)
    ml.save_checkpoint(path, ml.GPT(ml.GPTConfig(5, 4, 8, 1, 2), seed=9))  # of no configuration at all
    with pytest.warns(UserWarning, match="another configuration"):
        np.testing.assert_array_equal(ask(configuration), right)
    np.testing.assert_array_equal(ask(configuration), right)
    assert (tmp_path / "log").read_text().count("made") == 4


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINILORA_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ValueError, match="set MINILORA_CACHE"):
        ask({"seed": 0, "log": str(tmp_path / "log")})


def tell_and_wait(path):
    """Told the parent 5 of 10, goes on once the file is there."""
    tell(5, 10, 0.25)
    while not os.path.exists(path):
        time.sleep(0.01)
    tell(0, 0, 0.0)


def test_the_parent_sees_how_far_its_workers_are(tmp_path):
    with process_pool(2) as pool:
        assert pool.progress() == []
        futures = [pool.submit(tell_and_wait, str(tmp_path / "go")) for _ in range(2)]
        while pool.progress() != [(5, 10, 0.25)] * 2:
            assert not any(future.done() for future in futures)
            time.sleep(0.01)
        (tmp_path / "go").touch()
        for future in futures:
            future.result()
        assert pool.progress() == []
    tell(1, 2, 3.0)  # outside of a worker nothing happens
