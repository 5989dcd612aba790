"""From finished runs to rows, and to what a report is in files: claims.json, claims.md, report.html and the figures."""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from .. import __version__
from ..interop.files import read_json, write_atomically, write_text
from .claim import FAILS, HOLDS, MIXED, NOISE, UNDECIDED, WORLDS, Claim, Measurement, Runs, Settings
from .figures import save_figure
from .measures import interval, margin, mean
from .store import keep_result, kept_result

Row = dict[str, Any]
SCHEMA = 4  # of claims.json, which docs/report.md describes
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
VERDICTS = (HOLDS, MIXED, FAILS, NOISE, UNDECIDED)
NOT_JUDGED = "not judged"  # of a world that is missing among a claim's verdicts


def make_row(claim: Claim, runs: Runs, settings: Settings, seconds: float) -> Row:
    """One claim's row, as in claims.json."""
    outcome = claim.conclude(runs, settings.quick)
    return {
        "id": claim.id,
        "short": claim.short,
        "statement": claim.statement,
        "where": claim.where,
        "paper": claim.paper,
        "measured": outcome.measured,
        "spread": closest_call(outcome.measurements),
        "rule": claim.rule,
        "verdict": outcome.verdict,
        "key": outcome.key,
        "verdicts": outcome.verdicts,
        "measurements": [m.as_json() for m in outcome.measurements],
        "seconds": round(seconds, 1),
        "figure": f"{claim.id}.png",
    }


def closest_call(measurements: Sequence[Measurement]) -> str:
    """Of the judged numbers that scatter over bases, the one whose interval is nearest to what is asked of it."""
    judged = [m for m in measurements if m.part.rule and m.part.rule.margin and len(m.values) > 1]
    if not judged:
        return "no number that scatters over bases is judged"

    def room(m: Measurement) -> float:
        scale = 100 if m.part.unit == "%" else 1
        assert m.part.rule is not None
        return abs(mean(m.values) - scale * m.part.rule.limit) / (margin(m.values) or 1e-300)

    m = min(judged, key=room)
    low, high = interval(m.values)
    where = f" on {m.part.world}" if m.part.world in ("strings", "text") else ""
    return f"closest call: {m.part.name}{where}, {number(low)} to {number(high, m.part.unit)} (n = {len(m.values)})"


def report_files(folder: Path, claims: Sequence[Claim]) -> list[Path]:
    """Everything that a report of these claims writes: the table three times, and a figure each."""
    tables = [folder / name for name in ("claims.json", "claims.md", "report.html")]
    return [*tables, *(folder / f"{claim.id}.png" for claim in claims)]


def write_report(folder: Path, rows: list[Row], settings: Settings) -> None:
    """Write claims.json and claims.md into `folder`. Raises `ValueError` where they cannot be written."""
    settings_said = {"seeds": settings.seeds, "quick": settings.quick, "long": settings.long}
    report = {"schema": SCHEMA, "minilora": __version__, **settings_said, "claims": rows}
    write_text(folder / "claims.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    write_text(folder / "claims.md", markdown(rows, settings))


def read_report(folder: Path) -> tuple[list[Row], Settings]:
    """The rows of the claims.json in `folder`, and what they were run with.

    Raises `ValueError` where there is none, or where it was made by a minilora that wrote other rows.
    """
    path = folder / "claims.json"
    if not path.exists():
        raise ValueError(f"There is no report in {folder}: make one with minilora reproduce --out {folder}.")
    report = read_json(path, ValueError)
    kinds = {"claims": list, "seeds": int, "quick": bool, "long": bool}
    if report.get("schema") != SCHEMA or not _fits(report, kinds) or not all(map(_is_row, report["claims"])):
        raise ValueError(
            f"{path} is no report of this version of minilora: make it anew with minilora reproduce --out {folder}."
        )
    return report["claims"], Settings(report["seeds"], report["quick"], report["long"])


def _is_row(row: Any) -> bool:
    return (
        _fits(row, _ROW)
        and all(verdict in VERDICTS for verdict in (row["verdict"], *row["verdicts"].values()))
        and all(_fits(m, _MEASUREMENT) and m["verdict"] in (None, *VERDICTS) for m in row["measurements"])
    )


def _fits(value: Any, kinds: dict[str, Any]) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(name, ...), kind) for name, kind in kinds.items())


def draw_figures(folder: Path, claims: Iterable[Claim], runs: dict[str, Runs]) -> dict[str, str]:
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
    """A verdict in two or three words, as the narrow columns of a table say it."""
    return "does not hold" if verdict == FAILS else verdict


# What a reader may not know, by what gives it away in a claim's words: term -> (sign of it, meaning).
TERMS = {
    "ΔW": ("ΔW", "what adapting adds to a weight matrix; with LoRA s·BA"),
    "planted": ("planted", "a problem made so that its best answer is known"),
    "Eckart–Young floor": ("Eckart–Young", "the least error that a matrix of rank r can leave"),
    "gain": (" gain", "the bits of loss that training takes off the base's; full fine-tuning's is the whole"),
    "odds": ("odds", "right answers for each wrong one; a doubling of them is 1"),
    "φ(i, j)": (
        "φ(",
        "what the top i and top j directions of two matrices share: 0 nothing, 1 all they can (§7.2)",
    ),
    "d₉₀": ("d₉₀", "the fewest random directions in which training reaches 90 % of full fine-tuning"),
}


def terms(row: Row) -> list[str]:
    """Of the words that a claim uses, those to explain, each with its meaning."""
    words = " ".join((row["statement"], row["key"], row["rule"], row["measured"]))
    return [f"{term}: {meaning}" for term, (sign, meaning) in TERMS.items() if sign in words]


def verdict_words(row: Row, world: str) -> str:
    """What came out in a world, in two or three words."""
    return in_words(row["verdicts"].get(world, NOT_JUDGED))


def verdict_whole(row: Row) -> str:
    """The verdict over all worlds; where they differ, each one's: "holds on strings, does not hold on text"."""
    if row["verdict"] != MIXED:
        return in_words(row["verdict"])
    said: dict[str, list[str]] = {}
    for world in WORLDS:
        if world in row["verdicts"]:
            where = "what is exact" if world == "exact" else world
            said.setdefault(verdict_words(row, world), []).append(where)
    return ", ".join(f"{words} on {' and '.join(worlds)}" for words, worlds in said.items())


def count_verdicts(rows: Sequence[Row]) -> str:
    """ "14 claims: 8 hold, 4 differ by world, 2 within noise"."""
    counts = Counter(row["verdict"] for row in rows)
    words = {
        HOLDS: ("holds", "hold"),
        MIXED: ("differs by world", "differ by world"),
        FAILS: ("does not hold at this scale", "do not hold at this scale"),
    }
    parts = [f"{n} {words.get(verdict, (verdict, verdict))[n > 1]}" for verdict in VERDICTS if (n := counts[verdict])]
    return f"{len(rows)} claim{'s' if len(rows) != 1 else ''}: {', '.join(parts)}"


def how_made(settings: Settings) -> str:
    """A sentence or two on what stands behind the numbers."""
    bases = f"{settings.seeds} base{'s' if settings.seeds > 1 else ''}"
    if settings.quick:
        return f"{quick_words(settings)} Hardly any run is on text; the rules are those of the full run."
    left = "" if settings.long else ", without the long trainings (--long)"
    return (
        f"A full run, {bases} behind every stochastic number{left}. An interval holds the mean nine times in ten "
        "(Student's t); of a clock it is the quartiles beside the median. LoRA has α = 2r wherever α is not said."
    )


def quick_words(settings: Settings) -> str:
    """What a quick run is worth, in a sentence."""
    bases = "one base" if settings.seeds == 1 else f"{settings.seeds} bases"
    return f"A first look: {bases}, short runs; equalities are decided, nothing else is."


def rule_words(settings: Settings) -> str:
    """What the rule is called: a quick run does not make the experiment that it is about."""
    return "Rule of the full run, written down before it" if settings.quick else "Rule, written down before the run"


def number(value: float, unit: str = "") -> str:
    """A measured value to three digits, or whole from a thousand on, with its unit."""
    if 999.5 <= abs(value) < 1e15 or value == round(value, 0):
        text = f"{value:,.0f}"
    else:
        text = f"{value:#.3g}".rstrip(".")
    return f"{text} {unit}".rstrip()


CELLS = ("number", "world", "mean", "interval", "n")


def measurement_cells(measurement: dict[str, Any]) -> tuple[str, str, str, str, str]:
    """Name, world, mean with its unit, its interval (nothing for a single value), and n; of a clock the median."""
    m, interval, value = measurement, measurement["interval"], measurement["value"]
    if m.get("quartiles") and m["n"] > 1:  # of a clock, whose mean a single slow round would move
        low, value, high = m["quartiles"]
        interval = [low, high]
    low_high = "" if interval is None else f"{number(interval[0])} to {number(interval[1])}"
    if interval and interval[0] == interval[1]:
        low_high = "all equal"
    return m["name"], m["world"], number(value, m["unit"]), low_high, str(m["n"])


def markdown(rows: Sequence[Row], settings: Settings) -> str:
    """The table with a line for each claim, and each claim whole below it, with its figure."""
    flag = " --quick" if settings.quick else f" --seeds {settings.seeds}{' --long' * settings.long}"
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
        lines += [f"## {r['statement']}", "", f"**{verdict_whole(r)}** ({r['where']}): {r['key']}.", ""]
        lines += [f"- The paper: {r['paper']}", f"- {rule_words(settings)}: {r['rule']}"]
        lines += [f"- Measured: {r['measured']}; {r['spread']}", ""]
        if r["measurements"]:
            cells = [(*measurement_cells(m), in_words(m["verdict"] or "")) for m in r["measurements"]]
            lines += _markdown_table((*CELLS, "verdict"), cells)
        lines += [f"![{r['statement']}]({r['figure']})", ""]
    return "\n".join(lines)


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return [lines[0], "|" + "---|" * len(header), *lines[1:], ""]
