"""What is kept between runs, in the user's cache folder, each thing under a key of all that made it: pretrained bases,
and the results of finished runs."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from ..gpt import GPT
from ..interop.checkpoint import CheckpointError, load_model, read_notes, save_checkpoint
from ..interop.files import check_output, digest, output_place, parse_json, write_text


def cache_folder() -> Path:
    """MINILORA_CACHE, or the place this system keeps caches in."""
    return Path(os.environ.get("MINILORA_CACHE") or user_cache_path("minilora"))


def key(configuration: dict[str, Any]) -> str:
    """A short name for a configuration: equal for equal ones, and for no others."""
    text = json.dumps(configuration, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cached_model(configuration: dict[str, Any], make: Callable[[], GPT]) -> GPT:
    """The model that `make` makes for this configuration, made once and then read from the cache.

    Where it is there, reading is all that is done: the cache may be one that only others can write. A lock lets one
    process make it while others wait; a file that is damaged, or of another configuration, is made again, with a
    warning. Raises `ValueError` where one must be made and the cache folder cannot be written.
    """
    folder = cache_folder() / "bases"
    path = folder / f"{key(configuration)}.npz"
    model, problem = _cached(path, configuration)
    if model is not None:
        return model
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_suffix(".lock"))
        lock.acquire()
    except (OSError, Timeout, NotImplementedError) as error:  # the last where the file system has no locks
        raise ValueError(
            f"The cache folder {folder} cannot be written ({error}): set MINILORA_CACHE to one that can."
        ) from error
    try:
        model, problem = _cached(path, configuration)  # another process may have made it meanwhile
        if model is not None:
            return model
        check_output(path)
        if problem:
            warnings.warn(f"A cached base is made again: {problem}", stacklevel=2)
        save_checkpoint(path, make(), notes={"configuration": configuration})
        return load_model(path)  # what was just made and what a later run reads are the same
    finally:
        lock.release()


def _cached(path: Path, configuration: dict[str, Any]) -> tuple[GPT | None, str]:
    """The model in a file of the cache; or None, and in words what is wrong with the file if there is one."""
    try:
        if not path.exists():
            return None, ""
        if read_notes(path).get("configuration") == json.loads(json.dumps(configuration)):
            return load_model(path), ""
    except (CheckpointError, OSError) as error:
        return None, str(error)
    return None, f"{path} holds a base of another configuration."


# ---- results of finished runs ------------------------------------------------------------------------


def keep_result(made_of: dict[str, Any], result: dict[str, Any]) -> None:
    """Write the result of a finished run, of which `made_of` says everything that decided it.

    Raises `ValueError` where the cache folder cannot be written.
    """
    content = {"made_of": made_of, "result": result}
    write_text(_result_path(made_of), json.dumps({**content, "digest": digest(content, {})}, allow_nan=False))


def check_keeping(runs: Sequence[dict[str, Any]]) -> None:
    """Raise `ValueError` where the results of these runs, by their `made_of`, could not be kept: to ask before."""
    try:
        for made_of in runs:
            output_place(_result_path(made_of))
        if runs:
            check_output(_result_path(runs[0]))
    except ValueError as error:
        raise ValueError(f"Results cannot be kept: {error} MINILORA_CACHE may name another folder.") from error


def kept_result(made_of: dict[str, Any]) -> dict[str, Any] | None:
    """The result of a run that finished before, or None.

    A file that is cut short, or was changed by hand, counts as none, with a warning.
    """
    path = _result_path(made_of)
    try:
        content = parse_json(path.read_bytes(), path, ValueError)
        saved = content.pop("digest")
        if saved == digest(content, {}) and content["made_of"] == json.loads(json.dumps(made_of)):
            return content["result"]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError):
        pass  # cut short, or not one of ours
    warnings.warn(f"The result in {path} is damaged or was edited: that run is made again.", stacklevel=2)
    return None


def _result_path(made_of: dict[str, Any]) -> Path:
    return cache_folder() / "runs" / f"{key(made_of)}.json"
