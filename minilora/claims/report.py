"""From finished runs to rows, and to what a report is in files: claims.json, claims.md, report.html and the figures."""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache, partial
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from .. import __version__
from ..interop.files import read_json, write_atomically, write_text
from ..interop.store import keep_result, kept_result
from .claim import FAILS, HOLDS, ILLUSTRATION, NOISE, WORLDS, Claim, Runs, Settings
from .figures import save_figure

Row = dict[str, Any]
SCHEMA = 3  # of claims.json, which docs/report.md describes; the first had words only, the second no rules of parts
# What every row holds, and every measurement of it, as JSON gives it back
_ROW: dict[str, Any] = {
    **dict.fromkeys(("id", "short", "statement", "where", "paper", "measured", "spread", "rule"), str),
    **dict.fromkeys(("verdict", "key", "figure"), str),
    "verdicts": dict,
    "measurements": list,
    "seconds": (int, float),
}
_MEASUREMENT: dict[str, Any] = {
    **dict.fromkeys(("name", "world", "unit"), str),
    "value": (int, float),
    "interval": (list, type(None)),
    "deviation": (int, float, type(None)),
    "n": int,
    "values": list,
    **dict.fromkeys(("rule", "verdict"), (str, type(None))),
}
# A verdict as the narrow columns of a table say it; of a world that is missing, NOT_JUDGED
VERDICT_WORDS = {HOLDS: "holds", FAILS: "does not hold", NOISE: "within noise", ILLUSTRATION: "not decided"}
NOT_JUDGED = "not judged"


def make_row(claim: Claim, runs: Runs, settings: Settings, seconds: float) -> Row:
    """One claim's row, as in claims.json. A quick run decides only exact claims."""
    outcome = claim.conclude(runs)

    def decided(verdict: str | None) -> str | None:
        return verdict if verdict is None or claim.exact or not settings.quick else ILLUSTRATION

    return {
        "id": claim.id,
        "short": claim.short,
        "statement": claim.statement,
        "where": claim.where,
        "paper": claim.paper,
        "measured": outcome.measured,
        "spread": outcome.spread if settings.seeds > 1 else "one base: no spread",
        "rule": claim.rule,
        "verdict": decided(outcome.verdict),
        "key": outcome.key,
        "verdicts": {world: decided(verdict) for world, verdict in outcome.verdicts.items()},
        "measurements": [{**m.as_json(), "verdict": decided(m.verdict)} for m in outcome.measurements],
        "seconds": round(seconds, 1),
        "figure": f"{claim.id}.png",
    }


def report_files(folder: Path, claims: Sequence[Claim]) -> list[Path]:
    """Everything that a report of these claims writes: the table three times, and a figure each."""
    tables = [folder / name for name in ("claims.json", "claims.md", "report.html")]
    return [*tables, *(folder / f"{claim.id}.png" for claim in claims)]


def write_report(folder: Path, rows: list[Row], settings: Settings) -> None:
    """Write claims.json and claims.md into `folder`. Raises `ValueError` where they cannot be written."""
    settings_said = {"seeds": settings.seeds, "quick": settings.quick}
    report = {"schema": SCHEMA, "minilora": __version__, **settings_said, "claims": rows}
    write_text(folder / "claims.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    write_text(folder / "claims.md", markdown(rows, settings))


def read_rows(folder: Path) -> list[Row]:
    """The rows of the claims.json in `folder`.

    Raises `ValueError` where there is none, or where it was made by a minilora that wrote other rows.
    """
    path = folder / "claims.json"
    if not path.exists():
        raise ValueError(f"There is no report in {folder}: make one with minilora reproduce --out {folder}.")
    report = read_json(path, ValueError)
    if report.get("schema") != SCHEMA or not _fits(report, {"claims": list}) or not all(map(_is_row, report["claims"])):
        raise ValueError(
            f"{path} is no report of this version of minilora: make it anew with minilora reproduce --out {folder}."
        )
    rows: list[Row] = report["claims"]
    return rows


def _is_row(row: Any) -> bool:
    return (
        _fits(row, _ROW)
        and all(isinstance(verdict, str) for verdict in row["verdicts"].values())
        and all(_fits(measurement, _MEASUREMENT) for measurement in row["measurements"])
    )


def _fits(value: Any, kinds: dict[str, Any]) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(name, ...), kind) for name, kind in kinds.items())


def draw_figures(folder: Path, claims: Sequence[Claim], runs: dict[str, Runs]) -> dict[str, str]:
    """Write every claim's figure into `folder`; returns those that failed, each with why. One stops no other.

    One that the same code drew from the same runs before is kept, as runs are: drawing all takes seconds.
    """
    failed = {}
    for claim in claims:
        name, made_of = f"{claim.id}.png", {"figure": claim.id, "runs": _digest(runs[claim.id]), **_drawn_by()}
        try:
            if kept := kept_result(made_of):
                write_atomically(folder / name, partial(_write_bytes, base64.b64decode(kept["png"])))
                continue
            save_figure(folder / name, partial(claim.draw, runs[claim.id]))
        except Exception as error:  # a drawing may fail in any way
            failed[name] = str(error).rstrip(".") or type(error).__name__
            continue
        with suppress(ValueError):  # it is only drawn again
            keep_result(made_of, {"png": base64.b64encode((folder / name).read_bytes()).decode()})
    return failed


def _write_bytes(content: bytes, path: Path) -> None:
    path.write_bytes(content)


@lru_cache
def _drawn_by() -> dict[str, str]:
    """What decides a figure beside its runs: everything in this folder, and matplotlib."""
    sources = sorted((file.name, file.read_bytes()) for file in files(__package__).iterdir() if file.is_file())
    return {"code": hashlib.sha256(repr(sources).encode()).hexdigest(), "matplotlib": version("matplotlib")}


def _digest(runs: Runs) -> str:
    return hashlib.sha256(json.dumps(runs, sort_keys=True).encode()).hexdigest()


# ---- words -------------------------------------------------------------------------------------------


def in_words(verdict: str) -> str:
    """A verdict in two or three words."""
    return VERDICT_WORDS.get(verdict, verdict)


def verdict_words(row: Row, world: str) -> str:
    """What came out in a world, in two or three words."""
    return in_words(row["verdicts"].get(world, NOT_JUDGED))


def count_verdicts(rows: Sequence[Row]) -> str:
    """ "14 claims: 12 hold, 2 within noise", by each claim's own verdict."""
    counts = Counter(row["verdict"] for row in rows)
    words = {HOLDS: ("holds", "hold"), FAILS: ("does not hold at this scale", "do not hold at this scale")}
    parts = []
    for verdict in (HOLDS, FAILS, NOISE, ILLUSTRATION):
        if n := counts[verdict]:
            parts.append(f"{n} {words.get(verdict, (VERDICT_WORDS[verdict],) * 2)[n > 1]}")
            if verdict == HOLDS:
                parts[-1] += _but_not_on(rows)
    return f"{len(rows)} claim{'s' if len(rows) != 1 else ''}: {', '.join(parts)}"


def _but_not_on(rows: Sequence[Row]) -> str:
    """ " (3 of them not on text)" of the claims that hold by their own rule; nothing where they hold everywhere."""
    worlds = Counter(
        world
        for row in rows
        for world, verdict in row["verdicts"].items()
        if row["verdict"] == HOLDS and verdict == FAILS
    )
    said = ", ".join(f"{n} of them not on {world}" for world, n in worlds.items())
    return f" ({said})" if said else ""


def how_made(settings: Settings) -> str:
    """A sentence or two on what stands behind the numbers."""
    bases = f"{settings.seeds} base{'s' if settings.seeds > 1 else ''}"
    if settings.quick:
        decides = f"{bases} decide{'s' if settings.seeds == 1 else ''} nothing"
        return f"A quick run: {decides}, except where a claim is an equality. Take the numbers as a first look."
    return f"A full run, {bases} behind every stochastic number; ± is the sample standard deviation over them."


def number(value: float, unit: str = "") -> str:
    """A measured value to three digits, or whole from a thousand on, with its unit."""
    if 999.5 <= abs(value) < 1e15 or value == round(value, 0):
        text = f"{value:,.0f}"
    else:
        text = f"{value:#.3g}".rstrip(".")
    return f"{text} {unit}".rstrip()


def measurement_cells(measurement: dict[str, Any]) -> tuple[str, str, str, str, str]:
    """Name, world, mean with its unit, ± deviation (nothing for a single value), and n."""
    m, spread = measurement, measurement["deviation"]
    deviation = "" if spread is None else f"±{spread:.2g}" if spread < 100 else f"±{number(spread)}"
    return m["name"], m["world"], number(m["value"], m["unit"]), deviation, str(m["n"])


def markdown(rows: Sequence[Row], settings: Settings) -> str:
    """The table with a line for each claim, and each claim whole below it, with its figure."""
    flag = " --quick" if settings.quick else ""
    lines = [
        "# Claims, measured",
        "",
        f"minilora {__version__}. {how_made(settings)} Made by `minilora reproduce{flag}`.",
        "",
        *_markdown_table(
            ("claim", "key number", *WORLDS),
            [(r["short"], r["key"], *(verdict_words(r, world) for world in WORLDS)) for r in rows],
        ),
    ]
    for r in rows:
        lines += [f"## {r['statement']}", "", f"**{r['verdict']}** ({r['where']}): {r['key']}.", ""]
        lines += [f"- The paper: {r['paper']}", f"- Rule, fixed before the run: {r['rule']}"]
        lines += [f"- Measured: {r['measured']}", *([f"- Spread: {r['spread']}"] if settings.seeds > 1 else []), ""]
        if r["measurements"]:
            header = ("number", "world", "mean", "±", "n")
            lines += _markdown_table(header, [measurement_cells(m) for m in r["measurements"]])
        lines += [f"![{r['statement']}]({r['figure']})", ""]
    return "\n".join(lines)


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return [lines[0], "|" + "---|" * len(header), *lines[1:], ""]
