"""The command line, `minilora`: its console, its refusals, and the table of commands."""

from __future__ import annotations

import argparse
import difflib
import io
import os
import sys
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import NoReturn

import numpy as np

from .. import __version__
from ..backend import backend_name, use_backend
from ..machine import tune_machine
from .commands import adapt, budget, demo, generate, info, merge, pretrain, reproduce, show, tasks
from .console import check_text, program
from .options import check_numbers

COMMANDS = (demo, tasks, reproduce, show, pretrain, adapt, generate, merge, budget, info)
BROKEN_PIPE = 141  # as a shell counts a program that SIGPIPE ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 2 for a refusal, 130 after Ctrl-C, 141 where the reader of the
    output has gone (`| head -1`)."""
    _open_console()
    try:
        return _run(sys.argv[1:] if arguments is None else list(arguments))
    except BrokenPipeError:
        return BROKEN_PIPE
    finally:
        _close_console()


def _run(arguments: list[str]) -> int:
    name = "minilora"
    try:
        check_text(arguments)
        parser = _parser()
        if not arguments:
            parser.print_help()
            return 0
        _check_command(arguments[0])
        given, unknown = parser.parse_known_args(arguments)
        if unknown:
            given.refuse(f"unrecognized arguments: {' '.join(unknown)}")
        name = f"minilora {given.name}"
        tune_machine()
        _choose_backend(given.backend)
        check_numbers(vars(given))
        # Apple's BLAS raises flags for products that are finite; what is not finite is looked for where it matters.
        with np.errstate(all="ignore"), _plain_warnings(name):
            given.command.run(given.command.Options.of(vars(given)))
    except (ValueError, Warning) as error:  # a warning only where Python was told to raise them
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except MemoryError:
        print(f"{name}: there is not enough memory for that: make the model, the batch or r smaller.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{name}: stopped.", file=sys.stderr)
        return 130
    return 0


def _check_command(name: str) -> None:
    """Raise `ValueError` for a command that does not exist, with the name that was perhaps meant."""
    names = [_name_of(command) for command in COMMANDS]
    if not name.startswith("-") and name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        meant = f"; did you mean {near[0]}?" if near else "."
        raise ValueError(f"There is no command {name!r}{meant} There are: {', '.join(names)}.")


def _name_of(command: ModuleType) -> str:
    return command.__name__.rsplit(".", 1)[-1]


def _open_console() -> None:
    """A character that the console cannot show becomes "?", and a stream that was closed swallows what is said."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper) and stream.errors != "backslashreplace":
            stream.reconfigure(errors="replace")


def _close_console() -> None:
    """Where output can no longer be written, drop it: Python would try again as it exits, and complain."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def _plain_warnings(name: str) -> Iterator[None]:
    """Warnings as sentences, without the place in the source that gave them."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"{name}: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


def _choose_backend(name: str | None) -> None:
    """What --backend says, also for the processes that this one starts; else MINILORA_BACKEND decides."""
    if name is not None:
        use_backend(name)
        os.environ["MINILORA_BACKEND"] = name
    backend_name()  # a backend that is not there is refused before any work


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """What argparse says, and where something is missing, a line that has it all."""
        super().error(f"{message}\n{self.epilog}" if "required" in message else message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="minilora",
        description="LoRA down to the last gradient: pretrain, adapt, and check the paper's claims.",
        epilog=f"start here:\n  {program()} demo\n  {program()} COMMAND --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-V", "--version", action="version", version=f"minilora {__version__}")
    commands = parser.add_subparsers(title="commands", dest="name", required=True, metavar="COMMAND")
    for command in COMMANDS:
        sub = commands.add_parser(
            _name_of(command),
            help=command.TEXT,
            description=textwrap.fill(command.TEXT, 80),
            epilog=f"example:\n  {program()}{command.EXAMPLE.removeprefix('minilora')}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(command=command, refuse=sub.error)  # in the words of that command's usage
        sub.add_argument("--backend", metavar="NAME", help='what computes: "numpy", or "cupy" on a GPU (numpy)')
        command.options(sub)
    return parser
