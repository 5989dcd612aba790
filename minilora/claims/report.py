"""From finished runs to rows: claims.json, claims.md, the figures, and the table on the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .. import __version__
from ..interop.files import write_text
from .claim import ILLUSTRATION, Claim, Runs, Settings
from .figures import save_figure

Row = dict[str, Any]
SCHEMA = 2  # of claims.json, which docs/report.md describes; the first had words only


def make_row(claim: Claim, runs: Runs, settings: Settings, seconds: float) -> Row:
    """One claim's row, as in claims.json. A quick run decides only exact claims."""
    outcome = claim.conclude(runs)
    return {
        "id": claim.id,
        "short": claim.short,
        "statement": claim.statement,
        "where": claim.where,
        "paper": claim.paper,
        "measured": outcome.measured,
        "spread": outcome.spread if settings.seeds > 1 else "one base: no spread",
        "rule": claim.rule,
        "verdict": outcome.verdict if claim.exact or not settings.quick else ILLUSTRATION,
        "key": outcome.key,
        "verdicts": {
            world: verdict if claim.exact or not settings.quick else ILLUSTRATION
            for world, verdict in outcome.verdicts.items()
        },
        "measurements": [measurement.as_json() for measurement in outcome.measurements],
        "seconds": round(seconds, 1),
        "figure": f"{claim.id}.png",
    }


def report_files(folder: Path, claims: Sequence[Claim]) -> list[Path]:
    """Everything that a report of these claims writes: the table twice, and a figure each."""
    return [folder / "claims.json", folder / "claims.md", *(folder / f"{claim.id}.png" for claim in claims)]


def write_report(folder: Path, rows: list[Row], settings: Settings) -> None:
    """Write claims.json and claims.md into `folder`. Raises `ValueError` where they cannot be written."""
    settings_said = {"seeds": settings.seeds, "quick": settings.quick}
    report = {"schema": SCHEMA, "minilora": __version__, **settings_said, "claims": rows}
    write_text(folder / "claims.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    write_text(folder / "claims.md", markdown(rows, settings))


def draw_figures(folder: Path, claims: Sequence[Claim], runs: dict[str, Runs]) -> None:
    """Write every claim's figure into `folder`.

    One that fails stops no other: `ValueError` names them all at the end.
    """
    failed = []
    for claim in claims:
        try:
            save_figure(folder / f"{claim.id}.png", partial(claim.draw, runs[claim.id]))
        except Exception as error:  # a drawing may fail in any way
            failed.append(f"{claim.id}.png ({str(error).rstrip('.') or type(error).__name__})")
    if failed:
        raise ValueError(f"The table is in {folder}, but without {', '.join(failed)}.")


def markdown(rows: Sequence[Row], settings: Settings) -> str:
    """The table, the rules below it, and the figures."""
    kind, flag = ("a quick run", " --quick") if settings.quick else ("a full run", "")
    lines = [
        "# Claims, measured",
        "",
        f"minilora {__version__}, {kind}, {settings.seeds} base{'s' if settings.seeds > 1 else ''} behind every "
        f"stochastic number; ± is the sample standard deviation. Made by `minilora reproduce{flag}`.",
        "",
        "| claim | paper | measured | spread | verdict |",
        "|---|---|---|---|---|",
        *(
            f"| {r['statement']} ({r['where']}) | {r['paper']} | {r['measured']} | {r['spread']} | **{r['verdict']}** |"
            for r in rows
        ),
        "",
    ]
    for row in rows:
        lines += [f"## {row['statement']}", "", f"Rule, fixed before the run: {row['rule']}.", ""]
        lines += [f"![{row['statement']}]({row['figure']})", ""]
    return "\n".join(lines)


def table(rows: Sequence[Row], width: int = 100) -> str:
    """claim · paper · measured ± spread · verdict, for a terminal."""
    import textwrap

    parts = []
    for row in rows:
        parts.append(f"{row['statement']}  [{row['where']}]")
        for label, text in (("paper", row["paper"]), ("measured", row["measured"]), ("spread", row["spread"])):
            parts += textwrap.wrap(text, width, initial_indent=f"  {label:<9}", subsequent_indent=" " * 11)
        parts += [f"  verdict  {row['verdict'].upper()}", ""]
    return "\n".join(parts).rstrip()
