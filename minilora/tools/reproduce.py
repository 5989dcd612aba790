"""`minilora reproduce`: pretrain the bases, run what the claims ask for, keep every finished run, write the report."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .. import __version__
from ..claims import adaptation, experiment, experiment_of, find, tuning
from ..claims.bases import SHIPPED, base_configuration, computed_by, follow, pretrained, text_digest
from ..claims.claim import Claim, Configuration, Result, Runs, Settings
from ..claims.figures import check_figures
from ..claims.page import write_page
from ..claims.report import Row, draw_figures, make_row, report_files, write_report
from ..claims.store import check_keeping, keep_result, kept_result, key
from ..interop.files import check_output
from .screen import duration
from .sweep import WorkerDiedError, check_address, dask_workers, process_pool, sweep, tell

_GUESS_AFTER = 3  # seconds; before that, how long the rest takes is anyone's guess
Job = tuple[str, Configuration]  # the name of an experiment, and what to run


def reproduce(
    names: list[str],
    settings: Settings,
    folder: Path,
    workers: int,
    *,
    scheduler: str | None = None,
    fresh: bool = False,
    decided: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """Run the claims named (all where none is), write claims.json, claims.md, figures and report.html, return the rows.

    Runs that finished before are read, unless `fresh`. `scheduler` is the address of a Dask scheduler whose workers
    run them in place of `workers` processes here; what measures time always runs here, alone. `decided(row)` is
    called as soon as the last run of a claim is done, at once for a claim whose runs all finished before; if it fails,
    the report is made all the same, and then its error is raised.
    Raises `ValueError` for an unknown claim, fewer than one seed or worker, a scheduler that does not answer, a folder
    or a cache that cannot be written, or where no figure can be drawn: before anything runs; and at the end for a
    figure that failed, which report.html names too.
    """
    claims = find(names)
    if settings.seeds < 1:
        raise ValueError(f"--seeds must be at least 1, not {settings.seeds}.")
    for path in report_files(folder, claims):
        check_output(path)
    jobs = {claim.id: [(experiment_of(claim, c), c) for c in claim.configurations(settings)] for claim in claims}
    asked = {job_name(job): claim for claim in reversed(jobs) for job in jobs[claim]}  # by which claim first
    everything = [job for of_claim in jobs.values() for job in of_claim]
    results: dict[str, dict[str, Any]] = {}
    waiting = {claim.id: {job_name(job) for job in jobs[claim.id]} for claim in claims}
    runs: dict[str, Runs] = {}
    rows: dict[str, Row] = {}
    unsaid: list[Exception] = []

    def conclude(claim: Claim) -> None:
        mine = [(job[1], results[job_name(job)]) for job in jobs[claim.id]]
        runs[claim.id] = [(c, kept["result"]) for c, kept in mine]
        rows[claim.id] = make_row(claim, runs[claim.id], settings, sum(kept["seconds"] for _, kept in mine))
        if not unsaid:
            try:
                with tqdm.external_write_mode():  # a bar makes way for the line, and comes back below it
                    decided(rows[claim.id])
            except (OSError, ValueError) as error:  # such as a closed pipe; the runs continue
                unsaid.append(error)

    def finished(name: str, kept: dict[str, Any]) -> None:
        results[name] = kept
        for claim in claims:
            waiting[claim.id].discard(name)
            if not waiting[claim.id] and claim.id not in rows:
                conclude(claim)

    run_jobs(everything, workers, scheduler, fresh, check_figures, lambda job: asked[job_name(job)], finished)
    in_order = [rows[claim.id] for claim in claims]
    write_report(folder, in_order, settings)
    form = "{desc} {percentage:3.0f}% |{bar}|"
    drawing = tqdm(claims, "drawing figures", leave=False, disable=None, bar_format=form)
    failed = draw_figures(folder, drawing, runs)
    write_page(folder, in_order, settings, failed)
    if unsaid:
        raise unsaid[0]
    if failed:
        without = ", ".join(f"{name} ({why})" for name, why in failed.items())
        raise ValueError(f"The table is in {folder}, but without {without}.")
    return in_order


def tune(workers: int, *, scheduler: str | None = None, fresh: bool = False) -> Path:
    """Choose every method's learning rate anew, and write the file that the claims read; returns its place."""
    check_output(tuning.rates_file())
    runs: list[tuple[Configuration, Result]] = []
    while more := tuning.beyond(runs):
        results = run_jobs([(adaptation.NAME, c) for c in more], workers, scheduler, fresh)
        runs += [(c, results[job_name((adaptation.NAME, c))]["result"]) for c in more]
    return tuning.write_rates(runs)


def run_jobs(
    jobs: Sequence[Job],
    workers: int,
    scheduler: str | None = None,
    fresh: bool = False,
    check: Callable[[], None] = lambda: None,
    label: Callable[[Job], str] = lambda job: job[0],
    finished: Callable[[str, dict[str, Any]], None] = lambda name, kept: None,
) -> dict[str, dict[str, Any]]:
    """Name of each job -> {"result", "seconds"}: what was kept, and the rest run now and kept as it finishes.

    Jobs asked for twice run once. Those that measure time run last, one by one, with nothing else running. Where any is
    left to run, `check()` may refuse first. `label` is what the progress bar says of a job. `finished(name, kept)` is
    called at once for each that was kept, and for each other when it has finished. Raises `ValueError` where runs are
    left whose results could not be kept, and `WorkerDiedError`, once the rest has finished, where a worker died twice.
    """
    if workers < 1:
        raise ValueError(f"--workers must be at least 1, not {workers}.")
    if scheduler is not None:
        check_address(scheduler)
    unique = {job_name(job): job for job in jobs}
    results = {} if fresh else {name: kept for name, job in unique.items() if (kept := kept_result(_made_of(job)))}
    left = {name: job for name, job in unique.items() if name not in results}
    if left:
        check()
    else:
        print(f"All {len(unique)} runs finished before; --fresh would make them again.", file=sys.stderr)
    for name, kept in results.items():
        finished(name, kept)
    if not left:
        return results
    together = [job for job in left.values() if not experiment(job[0]).alone]
    alone = [job for job in left.values() if experiment(job[0]).alone]
    check_keeping([_made_of(job) for job in left.values()])
    if results:
        print(f"{len(results)} of {len(unique)} runs finished before; {len(left)} are left.", file=sys.stderr)

    def keep(job: Job, kept: dict[str, Any]) -> None:
        keep_result(_made_of(job), kept)
        results[job_name(job)] = kept
        finished(job_name(job), kept)

    bases = sorted({tuple(job[1]["base"]) for job in left.values() if "base" in job[1]})
    bases = [base for base in bases if base[1] != SHIPPED]
    lost: list[str] = []
    with _workers(min(workers, max(len(together), len(bases), 1)), scheduler) as executor:
        if bases:
            _sweep("pretraining bases", _prepare_base, bases, executor, lambda base, _: None, lambda base: str(base))
        if together:
            lost += _sweep("running claims", timed_run, together, executor, keep, label)
    if alone:
        with process_pool(1) as executor:
            lost += _sweep("measuring time", timed_run, alone, executor, keep, label)
    if lost:
        raise WorkerDiedError(lost)
    return results


def timed_run(job: Job) -> dict[str, Any]:
    """{"result", "seconds"} of one job, on whatever process or machine this is."""
    name, configuration = job
    start = time.perf_counter()
    with _worker():
        result: Result = experiment(name).run(configuration)
    return {"result": result, "seconds": time.perf_counter() - start}


def _made_of(job: Job) -> dict[str, Any]:
    """Everything that decides the result of a job: its base too, whose recipe may change, and the text it learns."""
    name, configuration = job
    made_of = {"experiment": name, "version": experiment(name).version, "configuration": configuration}
    base = configuration.get("base")
    code = text_digest("code") if base and base[0] == "text" else None
    return {
        **made_of,
        **computed_by(),
        "minilora": __version__,
        "base": base and base_configuration(*base),
        "code": code,
    }


def job_name(job: Job) -> str:
    """What names a job among others: its experiment and a key of its configuration."""
    return f"{job[0]} {key(job[1])}"


def _workers(count: int, scheduler: str | None) -> AbstractContextManager[Executor]:
    return process_pool(count) if scheduler is None else dask_workers(scheduler)


def _sweep(
    title: str,
    fn: Callable[[Any], Any],
    jobs: Sequence[Any],
    executor: Executor,
    finished: Callable[[Any, Any], None],
    label: Callable[[Any], str],
) -> list[str]:
    """Run the jobs with a bar, `finished(job, result)` after each; returns those whose worker died twice, in words.

    The bar moves with the steps within runs, where the executor knows of them: a base takes a minute.
    """
    often = 0.3 if sys.stderr.isatty() else 30  # seconds; in a log, few lines
    progress: Callable[[], list[tuple[int, int, float]]] = getattr(executor, "progress", list)
    done, last, over = 0, "", threading.Event()
    form = "{desc} {percentage:3.0f}% |{bar}| {elapsed}{postfix}"
    how: dict[str, Any] = {"bar_format": form, "smoothing": 0, "mininterval": often, "leave": often > 1}
    with tqdm(total=len(jobs), desc=title, **how) as bar:

        def move() -> None:
            running = progress()
            # A run that has ended leaves the running ones a moment before it counts as done.
            bar.n = max(bar.n, min(done + sum(step / steps for step, steps, _ in running), len(jobs)))
            elapsed = bar.format_dict["elapsed"]
            early = elapsed < _GUESS_AFTER or not bar.n
            left = "" if early else f"{duration(elapsed * (len(jobs) / bar.n - 1))} left"
            losses = ", ".join(f"{loss:.2f}" for _, _, loss in running)
            said = losses and f"loss{'es' * (len(running) > 1)} {losses}"
            bar.set_postfix_str(", ".join(filter(None, (left, last, said))))

        def keep_moving() -> None:
            while not over.wait(often):
                move()

        def show(place: int, result: Any) -> None:
            nonlocal done, last
            finished(jobs[place], result)
            done, last = done + 1, label(jobs[place])

        mover = threading.Thread(target=keep_moving, daemon=True)
        mover.start()
        try:
            sweep(fn, jobs, executor, show)
        except WorkerDiedError as error:
            return [str(jobs[place]) for place in error.places]
        finally:
            over.set()
            mover.join()
            move()
    return []


@contextmanager
def _worker() -> Iterator[None]:
    """Within this context the parent of this worker sees how far a training is, and NumPy does not warn, as in the
    command line's main()."""
    follow(tell)
    try:
        with np.errstate(all="ignore"):
            yield
    finally:
        tell(0, 0, 0.0)


def _prepare_base(base: tuple[str, int]) -> None:
    with _worker():
        pretrained(*base)
