"""`minilora budget`: what adapting costs."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from ...budget import PRESETS
from ..console import say
from ..cost_tables import budget_text
from ..options import CommonOptions, names_of, refuse_given

TEXT = "What adapting a model costs: trainable parameters, and the bytes of all that training keeps; no training."
EXAMPLE = "minilora budget --preset gpt3-175b --r 4 --targets q_proj,v_proj"


@dataclass(frozen=True)
class Options(CommonOptions):
    preset: str | None
    base: str | None
    r: int | None
    targets: str | None
    batch: int | None
    time: int | None
    paper: bool
    full: bool


def options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--preset", help=f"a model by its sizes: {', '.join(PRESETS)}")
    sub.add_argument("--base", help='or "strings", "text", or a file of pretrain')
    sub.add_argument("--r", type=int, help="rank (4)")
    sub.add_argument("--targets", help="modules to adapt, comma between (q_proj,v_proj)")
    sub.add_argument("--batch", type=int, help="sequences a step, for the activations (1)")
    sub.add_argument("--time", type=int, help="positions of each (the whole context)")
    sub.add_argument("--paper", action="store_true", help="the paper's own figures, each beside its arithmetic")
    sub.add_argument("--full", action="store_true", help="with --paper: the formula and a note below each figure")


def run(options: Options) -> None:
    settings: dict[str, Any] = {
        name: value for name in ("r", "batch", "time") if (value := getattr(options, name)) is not None
    }
    if options.targets is not None:
        settings["targets"] = names_of("targets", options.targets)
    if options.preset is None and options.base is None:
        refuse_given(options, tuple(settings), "is of a model: say which, with --preset or --base.")
    if not options.paper:
        refuse_given(options, ("full",), "is of the paper's figures: say --paper too.")
    say(budget_text(options.preset, options.base, paper=options.paper, full=options.full, **settings))
