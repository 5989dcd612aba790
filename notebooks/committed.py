"""What the full run of `minilora reproduce` found on eight bases: the report that is committed in figures/."""

import json
import textwrap
from pathlib import Path

from minilora.claims.report import measurement_cells, verdict_whole

REPORT = Path(__file__).parent.parent / "figures" / "claims.json"


def claim(name):
    """The row of one claim. Raises `ValueError` for a name that the report does not have."""
    rows = {row["id"]: row for row in json.loads(REPORT.read_text(encoding="utf-8"))["claims"]}
    if name not in rows:
        raise ValueError(f"The report has no claim {name!r}; it has: {', '.join(rows)}.")
    return rows[name]


def numbers(name, *beginnings):
    """Print the numbers of a claim whose names begin so: mean, its 90 % interval, how many values."""
    for m in claim(name)["measurements"]:
        if m["name"].startswith(beginnings):
            what, world, mean, interval, n = measurement_cells(m)
            print(f"{what:<62} {world:<7} {mean:>12}  {interval:>18}  n = {n}")


def show(name, *fields):
    """Print the row, or some of its fields."""
    row = claim(name)
    row["verdict"] = verdict_whole(row)
    for field in fields or ("statement", "paper", "measured", "verdict"):
        print(textwrap.fill(f"{field + ':':<11}{row[field]}", 108, subsequent_indent=" " * 11))
