"""Notebooks as plain Python files: cells start at `# %%`, markdown cells are comments.

    # %% [markdown]
    # # A title
    # %% exact
    print(1 + 1)

What follows `# %%` of a code cell says how its printed numbers are to be compared when it runs again, perhaps on
another machine: `exact`, equal anywhere; `measured 20%`, each number within 20 % of the committed one (or within one
unit of its last printed digit); `illustration`, an example of text or time in which no number is claimed. A code cell
without any may print nothing, only draw.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

NUMBER = re.compile(r"(?<![\w.])[-+−]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?", re.IGNORECASE)


@dataclass(frozen=True)
class Cell:
    kind: str  # "markdown" or "code"
    note: str  # what follows `# %%`
    source: str


def parse(text: str) -> list[Cell]:
    """The cells of a percent file. Raises `ValueError` where it does not start with one."""
    before, *parts = re.split(r"^# %%(.*)\n", text, flags=re.MULTILINE)
    if before.strip():
        raise ValueError("A notebook's source starts with `# %%`.")
    cells = []
    for note, body in zip(parts[::2], parts[1::2], strict=True):
        note, body = note.strip(), body.strip("\n")
        if note.startswith("[markdown]"):
            lines = [line[2:] if line.startswith("# ") else line.lstrip("#") for line in body.splitlines()]
            cells.append(Cell("markdown", note.removeprefix("[markdown]").strip(), "\n".join(lines)))
        else:
            cells.append(Cell("code", note, body))
    return cells


def tolerance(note: str) -> float | None:
    """The relative tolerance that a note states; None where nothing is compared. Raises `ValueError` for any other."""
    if note in ("", "exact"):
        return 0.0
    if note == "illustration":
        return None
    if found := re.fullmatch(r"measured (\d+)%", note):
        return int(found[1]) / 100
    raise ValueError(f"A cell is exact, measured N% or an illustration, not {note!r}.")


def agrees(committed: str, now: str, note: str) -> bool:
    """Whether what a cell printed is what it printed before, as closely as its note asks."""
    allowed = tolerance(note)
    if allowed is None or committed == now:
        return True
    if note in ("", "exact") or _words(committed) != _words(now):
        return False
    pairs = zip(NUMBER.findall(committed), NUMBER.findall(now), strict=True)
    return all(_close(a, b, allowed) for a, b in pairs)


def _words(text: str) -> str:
    """A text without its numbers, nor the spaces that align them."""
    return re.sub(r"\s+", " ", NUMBER.sub("#", text))


def _close(committed: str, now: str, allowed: float) -> bool:
    a, b = (float(number.replace(",", "").replace("−", "-")) for number in (committed, now))
    mantissa, _, exponent = committed.lower().partition("e")
    unit = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))  # of the last digit printed
    return abs(a - b) <= allowed * max(abs(a), abs(b)) + 1.001 * unit
