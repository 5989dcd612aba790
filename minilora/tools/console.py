"""What several commands show on a console: a bar of steps, columns, and colours where there are any."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_CODES = {"bold": 1, "green": 32, "red": 31}


def step_bar(steps: int, start: int = 0, leave: bool = True) -> Any:
    """A bar on stderr of training's steps, the loss (`set_description_str`) and the time left; only on a terminal."""
    from tqdm import tqdm

    layout = "{n_fmt}/{total_fmt} |{bar}| {desc}, {remaining} left"
    return tqdm(desc="loss ?", total=steps, initial=start, leave=leave, disable=None, bar_format=layout)


def program() -> str:
    """How this program is called from here: "minilora", or as it was called where no such command is found."""
    called = Path(sys.argv[0])
    if shutil.which("minilora") is None:
        if called.stem == "minilora":
            return str(called)
        if called.parts[-2:] == ("minilora", "__main__.py"):
            return "python -m minilora"
    return "minilora"


def columns(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """The cells of each row, filled up to the width of their column; the last column stays as it is."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    widths[-1] = 0
    return [[f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)] for row in rows]


def line(cells: Sequence[str]) -> str:
    """A row of a table as it is printed: indented, the cells three spaces apart."""
    return ("  " + "   ".join(cells)).rstrip()


def paint(text: str, how: str) -> str:
    """The text "bold", "green" or "red" where standard output is a terminal with colours, else as it is."""
    return f"\x1b[{_CODES[how]}m{text}\x1b[0m" if _has_colours() else text


def _has_colours() -> bool:
    if os.environ.get("NO_COLOR") or not sys.stdout.isatty():  # as no-color.org asks
        return False
    if os.name == "nt":
        return "WT_SESSION" in os.environ  # the old console shows the codes themselves
    return os.environ.get("TERM", "dumb") != "dumb"


def say(text: str) -> None:
    """Print now, and say so where it cannot be printed: Python would only at its end, too late for an exit status."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ValueError(f"The output cannot be written: {error.strerror or error}.") from error


def is_conversation() -> bool:
    """Whether somebody types here and reads the answers."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def check_text(arguments: list[str], what: str = "argument") -> None:
    """Raise `ValueError` for one that is not text, such as bytes of another encoding."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"The {what} {argument!r} holds bytes that are no {sys.getfilesystemencoding()} text: "
                "write it in that encoding; a file of such a name needs another one."
            ) from error
