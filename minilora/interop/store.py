"""What is kept between runs, in the user's cache folder, each thing under a key of all that made it: pretrained bases,
and the results of finished runs."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from ..gpt import GPT
from .checkpoint import CheckpointError, load_model, save_checkpoint
from .files import digest, write_text


def cache_folder() -> Path:
    """MINILORA_CACHE, or the place this system keeps caches in."""
    return Path(os.environ.get("MINILORA_CACHE") or user_cache_path("minilora"))


def key(configuration: dict[str, Any]) -> str:
    """A short name for a configuration: equal for equal ones, and for no others."""
    text = json.dumps(configuration, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cached_model(configuration: dict[str, Any], make: Callable[[], GPT]) -> GPT:
    """The model that `make` makes for this configuration, made once and then read from the cache.

    A lock lets one process make it while others wait; a damaged file is made again, with a warning.
    Raises `ValueError` where the cache folder cannot be written.
    """
    folder = cache_folder() / "bases"
    path = folder / f"{key(configuration)}.npz"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_suffix(".lock"))
        lock.acquire()
    except (OSError, Timeout) as error:
        raise ValueError(
            f"The cache folder {folder} cannot be written ({error}): set MINILORA_CACHE to one that can."
        ) from error
    try:
        if path.exists():
            try:
                return load_model(path)
            except CheckpointError as error:
                warnings.warn(f"A cached base is made again: {error}", stacklevel=2)
        save_checkpoint(path, make(), notes={"configuration": configuration})
        return load_model(path)  # what was just made and what a later run reads are the same
    finally:
        lock.release()


# ---- results of finished runs ------------------------------------------------------------------------


def keep_result(made_of: dict[str, Any], result: dict[str, Any]) -> None:
    """Write the result of a finished run, of which `made_of` says everything that decided it.

    Raises `ValueError` where the cache folder cannot be written.
    """
    content = {"made_of": made_of, "result": result}
    write_text(_result_path(made_of), json.dumps({**content, "digest": digest(content, {})}, allow_nan=False))


def kept_result(made_of: dict[str, Any]) -> dict[str, Any] | None:
    """The result of a run that finished before, or None.

    A file that is cut short, or was changed by hand, counts as none, with a warning.
    """
    path = _result_path(made_of)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        saved = content.pop("digest")
        if saved == digest(content, {}) and content["made_of"] == json.loads(json.dumps(made_of)):
            return content["result"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        pass  # cut short, or not one of ours
    warnings.warn(f"The result in {path} is damaged or was edited: that run is made again.", stacklevel=2)
    return None


def _result_path(made_of: dict[str, Any]) -> Path:
    return cache_folder() / "runs" / f"{key(made_of)}.json"
