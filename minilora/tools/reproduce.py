"""`minilora reproduce`: pretrain the bases, run the claims side by side, write the report."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..claims import find
from ..claims.bases import load_base
from ..claims.claim import Claim, Configuration, Result, Runs, Settings
from ..claims.report import Row, make_row, write_report
from .sweep import process_pool, sweep


def reproduce(names: list[str], settings: Settings, folder: Path, workers: int) -> list[Row]:
    """Run the claims named (all where none is), write figures, claims.json and claims.md, return the rows.

    Raises `ValueError` for an unknown claim, fewer than one seed or worker, or a folder that cannot be
    written: before anything runs.
    """
    claims = find(names)
    if settings.seeds < 1:
        raise ValueError(f"--seeds must be at least 1, not {settings.seeds}.")
    if workers < 1:
        raise ValueError(f"--workers must be at least 1, not {workers}.")
    check_folder(folder)

    jobs = [(claim.id, c) for claim in claims for c in claim.configurations(settings)]
    bases = sorted({tuple(c["base"]) for _, c in jobs if "base" in c})
    with process_pool(min(workers, len(jobs))) as executor:
        with _bar("pretraining bases", bases) as bar:
            sweep(_prepare_base, bases, executor, lambda place, result: bar.update())
        with _bar("running claims", jobs) as bar:

            def show(place: int, result: Any) -> None:
                bar.set_postfix_str(jobs[place][0])
                bar.update()

            results = sweep(_timed_run, jobs, executor, show)

    runs: dict[str, Runs] = {}
    rows = []
    for claim in claims:
        mine = [(c, result) for (name, c), result in zip(jobs, results, strict=True) if name == claim.id]
        runs[claim.id] = [(c, result) for c, (result, _) in mine]
        rows.append(make_row(claim, runs[claim.id], settings, sum(seconds for _, (_, seconds) in mine)))
    write_report(folder, claims, runs, rows, settings)
    return rows


def check_folder(folder: Path) -> None:
    """Raise `ValueError` where files could not be written into `folder`; it is not made yet."""
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise ValueError(f"The folder {folder} cannot be written: {error.strerror or error}.") from error


def _bar(description: str, items: Sequence[Any]) -> Any:
    return tqdm(total=len(items), desc=description, unit="run", disable=None)


def _prepare_base(base: tuple[str, int]) -> None:
    load_base(*base)


def _timed_run(job: tuple[str, Configuration]) -> tuple[Result, float]:
    name, configuration = job
    claim: Claim = find([name])[0]
    start = time.perf_counter()
    return claim.run(configuration), time.perf_counter() - start
