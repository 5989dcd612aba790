"""Ctrl-C in the first second of a command, as it imports, ends it without a traceback: `main`, which answers it later,
is not there yet. To be imported first. Where a program imports minilora, this changes nothing."""

from __future__ import annotations

import os
import sys
from types import TracebackType


def is_command() -> bool:
    """Whether this process is the command line's or one of its workers."""
    program = (getattr(sys, "argv", None) or [""])[0]
    if program == "-m":  # the package is imported before Python knows its __main__
        return "minilora" in sys.orig_argv
    folder, name = os.path.split(program)
    if name == "__main__.py":
        return os.path.basename(folder) == "minilora"
    return os.path.splitext(name)[0] in ("minilora", "minilora-script")  # minilora.exe and its script on Windows


def _hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)


if is_command():
    sys.excepthook = _hook
