"""`minilora reproduce`: the paper's claims, measured."""

from __future__ import annotations

import argparse
import time
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...backend import backend_name, device_count
from ...claims import CLAIMS, find
from ...claims.claim import Settings
from ...claims.report import Row, count_verdicts
from ..console import program, say
from ..options import CommonOptions, refuse_given
from ..reproduce import reproduce, tune
from ..screen import claim_line, column_for, console, duration, head
from ..sweep import available_cores

REPORT, QUICK, SOME = Path("figures"), Path("quick"), Path("some")  # a first look, or some claims, replace no report

TEXT = "Run the paper's claims; print a line for each as it is decided; write a page, figures and numbers."
EXAMPLE = "minilora reproduce --quick --claim zero_init rank --out two"


@dataclass(frozen=True)
class Options(CommonOptions):
    quick: bool
    long: bool
    claim: list[str]
    seeds: int | None
    out: Path | None
    workers: int | None
    scheduler: str | None
    fresh: bool
    open: bool
    tune: bool


def options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--quick", action="store_true", help="a first look: one base, short runs, only equalities decided")
    sub.add_argument("--long", action="store_true", help="with the trainings that take 1,000 steps and more")
    names = ", ".join(claim.id for claim in CLAIMS)
    sub.add_argument(
        "--claim", nargs="+", action="extend", default=[], metavar="NAME", help=f"only these claims: {names}"
    )
    sub.add_argument("--seeds", type=int, default=None, help="bases behind every stochastic number (3; quick: 1)")
    sub.add_argument("--out", type=Path, help=f"folder for the report ({REPORT}; quick: {QUICK}; some claims: {SOME})")
    sub.add_argument("--workers", type=int, help="processes (one a core; with cupy, one a GPU)")
    sub.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="run on the workers of this Dask scheduler, such as tcp://127.0.0.1:8786 (Dask asks for no password: use "
        "a network you trust)",
    )
    sub.add_argument("--fresh", action="store_true", help="run everything again, whatever finished before")
    sub.add_argument("--open", action="store_true", help="open report.html in the browser at the end")
    sub.add_argument(
        "--tune",
        action="store_true",
        help="instead of the claims: choose each method's learning rate anew, on two bases of their own",
    )


def run(options: Options) -> None:
    if options.tune:
        of_report = ("claim", "seeds", "quick", "long", "out", "open")
        refuse_given(options, of_report, "is of a report, which --tune does not make.")
    if options.quick:
        refuse_given(options, ("long",), "is of a full run; --quick makes short ones.")
    if options.scheduler is not None:
        refuse_given(options, ("workers",), "is of processes here; with --scheduler, Dask's workers run.")
    seeds = options.seeds if options.seeds is not None else 1 if options.quick else 3
    workers = options.workers
    if workers is None:
        workers = available_cores() if backend_name() == "numpy" else device_count()
    start = time.perf_counter()
    how: dict[str, Any] = {"scheduler": options.scheduler, "fresh": options.fresh}
    if options.tune:
        path = tune(workers, **how)
        say(f"{time.perf_counter() - start:.0f} s. The learning rates are in {path}.")
        return
    folder = options.out or (SOME if options.claim else QUICK if options.quick else REPORT)
    settings = Settings(seeds, options.quick, options.long)
    columns, signs = console()
    claims = find(options.claim)
    column = column_for([claim.short for claim in claims], columns)
    rows: list[Row] = []

    def decided(row: Row) -> None:
        if not rows:
            say(head(column, settings, signs))
        rows.append(row)
        say(claim_line(row, column, columns, signs))

    reproduce(options.claim, settings, folder, workers, decided=decided, **how)
    page = folder / "report.html"
    say(f"\n{count_verdicts(rows)}. {duration(time.perf_counter() - start)}.")
    out = "" if folder == REPORT else f" --out {folder}"
    say(f"The report: {page}\nOne claim here: {program()} show {claims[0].id}{out}")
    if options.open and not webbrowser.open(page.resolve().as_uri()):
        raise ValueError(f"No browser could be started: open {page} yourself.")
