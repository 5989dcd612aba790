"""`minilora info`: what this machine and this installation are."""

from __future__ import annotations

import argparse
import os
import platform

import numpy as np

from ... import __version__
from ...backend import backend_name
from ...claims.store import cache_folder
from ...fast import is_textbook
from ...interop.llama import INSTALL, find_smollm2
from ...machine import blas_name, blas_threads
from ..console import say
from ..device_report import device_report
from ..options import CommonOptions
from ..sweep import available_cores

TEXT = (
    "Versions, BLAS and its threads, the backend, the cache; with --backend cupy, a report on the GPU: gradients, "
    "training against the CPU's, times."
)
EXAMPLE = "minilora info"


Options = CommonOptions


def options(sub: argparse.ArgumentParser) -> None:
    """None of its own."""


def run(options: Options) -> None:
    if options.backend not in (None, "numpy"):
        say(device_report())
        return
    folder = cache_folder()
    kept = [[path for path in folder.glob(files) if path.is_file()] for files in ("bases/*.npz", "runs/*.json")]
    size = sum(path.stat().st_size for paths in kept for path in paths) / 1e6
    counts = " and ".join(
        f"{len(n)} {what}{'s' * (len(n) != 1)}" for n, what in zip(kept, ("base", "result"), strict=True)
    )
    try:
        llm = f"smollm2, {find_smollm2().stat().st_size / 1e6:.0f} MB"
    except ValueError:
        llm = f"smollm2 is not there ({INSTALL})"
    rows = (
        ("minilora", __version__),
        ("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("NumPy", np.__version__),
        ("BLAS", f"{blas_name()}, {blas_threads()} thread{'s' * (blas_threads() != 1)}"),
        ("cores", available_cores()),
        ("backend", backend_name()),
        ("operations", "textbook (MINILORA_TEXTBOOK)" if is_textbook() else "kernels"),
        ("cache", f"{folder}: {counts}, {size:.1f} MB"),
        ("--llm", llm),
        ("tuning", "off (MINILORA_TUNE=0)" if os.environ.get("MINILORA_TUNE") == "0" else "on"),
    )
    say("\n".join(f"{name:<10} {value}" for name, value in rows))
