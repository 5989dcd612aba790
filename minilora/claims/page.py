"""report.html: the whole report as one file for a browser, figures inside, light and dark, no scripts."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from .. import __version__
from ..interop.files import read_bytes, write_text
from .claim import FAILS, HOLDS, MIXED, NOISE, UNDECIDED, WORLDS, Settings
from .report import (
    CELLS,
    Row,
    count_verdicts,
    how_made,
    in_words,
    measurement_cells,
    number,
    rule_words,
    terms,
    verdict_whole,
    verdict_words,
)

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #5b6570; --paper: #fff; --card: #f5f6f8; --line: #dcdfe4;
  --link: #0b5cad; --holds: #116329; --fails: #a8261b; --noise: #7a5200; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7eb; --soft: #a0a9b4; --paper: #14171a; --card: #1e2328; --line: #363d45;
    --link: #82b8f0; --holds: #73d28c; --fails: #ff9a8f; --noise: #e8bf5f; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 66rem; padding: 1.5rem 1rem 4rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
a { color: var(--link); }
.soft { color: var(--soft); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .45rem .6rem; border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); font-weight: 600; font-size: .85rem; }
tbody th { font-weight: 600; }
.verdict { white-space: nowrap; color: var(--soft); font-size: .9rem; }
.holds { color: var(--holds); } .fails { color: var(--fails); } .noise { color: var(--noise); }
details { background: var(--card); border: 1px solid var(--line); border-radius: 8px; margin: 0 0 .6rem; }
summary { cursor: pointer; padding: .65rem .9rem; font-weight: 600; }
summary span { font-weight: 400; color: var(--soft); }
.whole { padding: 0 .9rem .9rem; scroll-margin-top: 4rem; }
dl { margin: 0 0 1rem; } dt { color: var(--soft); font-size: .85rem; margin-top: .7rem; } dd { margin: 0; }
.figure { overflow-x: auto; background: #fff; border-radius: 6px; margin: 0 0 1rem; padding: .5rem; }
.figure img { display: block; width: 100%; min-width: 40rem; height: auto; }
.missing { border: 1px solid var(--fails); border-radius: 6px; padding: .5rem .8rem; }
.numbers td:nth-child(n+3), .numbers th:nth-child(n+3) { text-align: right; white-space: nowrap; }
.numbers td:last-child { white-space: normal; min-width: 9rem; }
.numbers { font-size: .9rem; }
@media (max-width: 40rem) {
  .claims thead, .numbers thead { display: none; }
  .claims tr, .numbers tr { display: block; padding: .6rem 0; border-bottom: 1px solid var(--line); }
  .claims th, .claims td, .numbers th, .numbers td { display: block; border: 0; padding: .1rem 0; }
  .claims td[data-label], .numbers td { display: inline-block; margin-right: .8rem; }
  .numbers td:empty { display: none; }
  .numbers td:last-child { min-width: 0; }
  td[data-label]:not(:empty)::before { content: attr(data-label) ": "; color: var(--soft); }
}
"""
_SIGNS = {
    HOLDS: ("holds", "✓"), MIXED: ("noise", "≠"), FAILS: ("fails", "✗"), NOISE: ("noise", "~"), UNDECIDED: ("", "?"),
}  # fmt: skip


def write_page(folder: Path, rows: Sequence[Row], settings: Settings, failed: Mapping[str, str]) -> None:
    """Write report.html into `folder`, with the figures that stand there; `failed`: those that do not, and why."""
    figures = {r["figure"]: read_bytes(folder / r["figure"], ValueError) for r in rows if r["figure"] not in failed}
    write_text(folder / "report.html", page(rows, settings, figures, failed))


def page(
    rows: Sequence[Row], settings: Settings, figures: Mapping[str, bytes], failed: Mapping[str, str] | None = None
) -> str:
    """The report as HTML that loads nothing. figures: file name -> PNG; failed: file name -> why it is missing."""
    header = "".join(f'<th scope="col">{escape(name)}</th>' for name in ("claim", "key number", *WORLDS))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>LoRA's claims, measured</title>
<link rel="icon" href="data:,">
<style>{_STYLE}</style>
</head>
<body>
<h1>LoRA's claims, measured</h1>
<p>{escape(count_verdicts(rows))}. <span class="soft">{escape(how_made(settings))}</span></p>
<p class="soft">A claim of the paper (Hu et al. 2021) is tested on string tasks, on text, and, where there is something
exact to compare with, against that. Each verdict follows from a rule that was written down before this run, after
earlier ones of like recipes, and is about models of this size.</p>
<table class="claims">
<thead><tr>{header}</tr></thead>
<tbody>
{"".join(map(_line, rows))}</tbody>
</table>
<h2>Each claim whole</h2>
{"".join(_whole(row, settings, figures.get(row["figure"]), (failed or {}).get(row["figure"], "")) for row in rows)}
<p class="soft">Made by minilora {escape(__version__)}: <code>minilora reproduce</code>. The same numbers for a program
are in claims.json, beside this file.</p>
</body>
</html>
"""


def _line(row: Row) -> str:
    cells = "".join(f'<td data-label="{world}">{_verdict(row, world)}</td>' for world in WORLDS)
    name = f'<th scope="row"><a href="#{escape(row["id"])}">{escape(row["short"])}</a></th>'
    return f"<tr>{name}<td>{escape(row['key'])}</td>{cells}</tr>\n"


def _verdict(row: Row, world: str) -> str:
    return _mark(row["verdicts"].get(world, ""), verdict_words(row, world))


def _mark(verdict: str, words: str) -> str:
    kind, sign = _SIGNS.get(verdict, ("", "·"))
    return f'<span class="verdict {kind}">{sign} {escape(words)}</span>'


def _whole(row: Row, settings: Settings, figure: bytes | None, why: str) -> str:
    verdicts = ", ".join(f"{world}&nbsp;{_verdict(row, world)}" for world in WORLDS)
    said_of_row: tuple[tuple[str, str], ...] = (
        ("Verdict", f"{escape(verdict_whole(row))} ({verdicts})"),
        ("Key number", escape(row["key"])),
        (f"The paper, {row['where']}", escape(row["paper"])),
        (rule_words(settings), escape(row["rule"])),
        ("Measured", escape(f"{row['measured']}; {row['spread']}")),
    )
    if explained := terms(row):
        said_of_row += (("Terms", "<br>".join(map(escape, explained))),)
    words = "".join(f"<dt>{escape(term)}</dt><dd>{said}</dd>\n" for term, said in said_of_row)
    return f"""<details>
<summary>{escape(row["short"])} <span>{escape(row["key"])}</span></summary>
<div class="whole" id="{escape(row["id"])}">
<p>{escape(row["statement"])}.</p>
{_figure(row, figure, why)}
<dl>
{words}</dl>
{_numbers(row)}</div>
</details>
"""


def _figure(row: Row, figure: bytes | None, why: str) -> str:
    if figure is None:
        return f'<p class="missing">{escape(row["figure"])} could not be drawn: {escape(why)}.</p>'
    source = f"data:image/png;base64,{base64.b64encode(figure).decode()}"
    return f'<div class="figure"><img src="{source}" alt="Figure: {escape(row["statement"])}"></div>'


def _numbers(row: Row) -> str:
    """Every measurement, with the value of each base."""
    if not row["measurements"]:
        return ""
    names = (*CELLS, "each")
    header = "".join(f'<th scope="col">{name}</th>' for name in names)
    lines = []
    for m in row["measurements"]:
        each = " ".join(number(value) for value in m["values"]) if m["n"] > 1 else ""
        first, *rest = (*measurement_cells(m), each)
        cells = (f'<td data-label="{n}">{escape(cell)}</td>' for n, cell in zip(names[1:], rest, strict=True))
        asked = f" {_mark(m['verdict'], in_words(m['verdict']))}" if m["verdict"] else ""
        lines.append(f'<tr><th scope="row">{escape(first)}{asked}</th>{"".join(cells)}</tr>\n')
    return f'<table class="numbers">\n<thead><tr>{header}</tr></thead>\n<tbody>\n{"".join(lines)}</tbody>\n</table>\n'
