"""The report on a terminal: a line a claim while `minilora reproduce` runs, and one claim whole for `minilora show`."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from ..claims.claim import FAILS, HOLDS, NOISE, UNDECIDED, WORLDS, Settings
from ..claims.report import CELLS, Row, measurement_cells, quick_words, terms, verdict_whole, verdict_words
from .console import paint

_SIGNS = {HOLDS: "✓", FAILS: "✗", NOISE: "~", UNDECIDED: "?", "": "·", "cut": "…"}
_LETTERS = {HOLDS: "y", FAILS: "n", NOISE: "~", UNDECIDED: "?", "": ".", "cut": "..."}
_COLOURS = {HOLDS: "green", FAILS: "red"}
_NARROWEST = 40  # columns; a terminal of fewer breaks the lines itself
_MARKS = 7  # columns: a mark and a space for each world, and one more space


def console() -> tuple[int, dict[str, str]]:
    """The columns of the terminal, 80 where there is none, and the signs that standard output can show."""
    return max(shutil.get_terminal_size().columns, _NARROWEST), signs(sys.stdout.encoding)


def signs(encoding: str | None) -> dict[str, str]:
    """What stands for a verdict, for none (""), and for what was cut off ("cut"); letters where there are no signs."""
    try:
        "".join(_SIGNS.values()).encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return _LETTERS
    return _SIGNS


def head(column: int, settings: Settings, shown: dict[str, str]) -> str:
    """Two lines that say what the marks and columns below are; a quick run has one more, on what it decides."""
    used = [(HOLDS, "holds"), (FAILS, "does not hold"), (NOISE, "within noise"), ("", "not judged")]
    if settings.quick:
        used[2] = (UNDECIDED, "not decided")
    marks = "  ".join(f"{shown[verdict]} {words}" for verdict, words in used)
    names = f"{'s t e  on (s)trings, (t)ext, (e)xact':<{_MARKS + column}}  key number"
    return "\n".join([*([quick_words(settings)] if settings.quick else []), marks, names])


def column_for(shorts: Sequence[str], columns: int) -> int:
    """How wide the claims' short forms may be, on a terminal of so many columns: at most half of what there is."""
    return min(max(map(len, shorts)), (columns - _MARKS) // 2)


def claim_line(row: Row, column: int, columns: int, shown: dict[str, str]) -> str:
    """A mark for each world, the short form and the key number, in one line of at most `columns`."""
    short = cut(row["short"], column, shown["cut"])
    return f"{_marks(row, shown)}  {short:<{column}}  {cut(row['key'], columns - _MARKS - column - 2, shown['cut'])}"


def _marks(row: Row, shown: dict[str, str]) -> str:
    """A mark for each world."""
    marks = []
    for world in WORLDS:
        verdict = row["verdicts"].get(world, "")
        marks.append(paint(shown[verdict], _COLOURS[verdict]) if verdict in _COLOURS else shown[verdict])
    return " ".join(marks)


def claim_list(rows: Sequence[Row], settings: Settings, folder: Path, shown: dict[str, str]) -> str:
    """Which report this is, and a line a claim: its marks, the name that `minilora show` takes, and its short form."""
    width = max(len(row["id"]) for row in rows)
    what = f"The report in {folder}: {_how(settings)}."
    legend = head(0, settings, shown).splitlines()[-2]
    names = f"{'s t e':<{_MARKS}}{'name':<{width}}  claim, on (s)trings, (t)ext, (e)xact"
    lines = [f"{_marks(row, shown)}  {row['id']:<{width}}  {row['short']}" for row in rows]
    return "\n".join([what, legend, names, *lines])


def _how(settings: Settings) -> str:
    """ "full, 3 bases"."""
    return f"{'quick' if settings.quick else 'full'}, {settings.seeds} base{'s' * (settings.seeds > 1)}"


def cut(text: str, most: int, sign: str) -> str:
    """The text if it has at most so many characters, else its beginning and the sign."""
    return text if len(text) <= most else text[: max(most - len(sign), 0)].rstrip() + sign


def duration(seconds: float) -> str:
    """In the words of everyday life: "45 s", "12 min 5 s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def find_row(rows: Sequence[Row], name: str) -> Row:
    """The row of that claim. `ValueError` for one that the report does not have."""
    for row in rows:
        if row["id"] == name:
            return row
    raise ValueError(f"The report has no claim {name!r}; it has: {', '.join(row['id'] for row in rows)}.")


def claim_whole(row: Row, settings: Settings, folder: Path, columns: int, shown: dict[str, str]) -> str:
    """All that the report in `folder` says of a claim, in lines of at most `columns`."""
    parts = textwrap.wrap(f"{row['statement']} ({row['where']})", columns)
    parts.append("")
    for label, text in (
        ("key number", row["key"]),
        ("verdict", verdict_whole(row)),
    ):
        parts += _labelled(label, text, columns)
    for world in WORLDS:
        parts.append(f"{world:>10}  {shown[row['verdicts'].get(world, '')]} {verdict_words(row, world)}")
    for label, text in (
        ("paper", row["paper"]),
        ("rule", f"{'in the full run, ' if settings.quick else ''}{row['rule']}"),
        ("measured", row["measured"]),
        ("", row["spread"]),
        ("figure", str(folder / row["figure"])),
        ("run", f"{_how(settings)} (of {folder / 'claims.json'})"),
    ):
        parts += _labelled(label, text, columns)
    for number, explained in enumerate(terms(row)):
        parts += _labelled("" if number else "terms", explained, columns)
    if row["measurements"]:
        parts += ["", *_numbers(row, columns, shown)]
        if settings.seeds > 1 or any(m["world"] == "time" for m in row["measurements"]):
            said = "interval: the mean lies in it nine times in ten (Student's t); of a clock, quartiles and median"
            parts += ["", *textwrap.wrap(said, columns)]
    return "\n".join(parts)


def _labelled(label: str, text: str, columns: int) -> list[str]:
    whole = text.replace(" %", "\u00a0%")  # a number and its unit stay on one line
    lines = textwrap.wrap(
        whole, columns, initial_indent=f"{label:>10}  ", subsequent_indent=" " * 12, break_on_hyphens=False
    )
    return [line.replace("\u00a0", " ") for line in lines]


def _numbers(row: Row, columns: int, shown: dict[str, str]) -> list[str]:
    """The measurements as a table, with the mark of what the rule asks of one; a long name takes several lines."""
    cells = [[f"  {CELLS[0]}", *CELLS[1:]]]
    for m in row["measurements"]:
        name, *others = measurement_cells(m)
        mark = shown[m["verdict"]] if m["verdict"] else " "
        cells.append([f"{mark} {name}", *others])
    widths = [max(len(line[place]) for line in cells) for place in range(5)]
    widths[0] = max(min(widths[0], columns - sum(widths[1:]) - 8), 10)
    lines = []
    for name, world, mean, interval, n in cells:
        first, *more = textwrap.wrap(name, widths[0], subsequent_indent="  ")
        right = f"{mean:>{widths[2]}}  {interval:>{widths[3]}}  {n:>{widths[4]}}"
        lines.append(f"{first:<{widths[0]}}  {world:<{widths[1]}}  {right}")
        lines += more
    return lines
