"""`minilora demo`: LoRA learning a task, live."""

from __future__ import annotations

import argparse

from ..console import say
from ..demo import demo
from ..options import CommonOptions

TEXT = "Watch LoRA teach a small model a new task, in a few seconds."
EXAMPLE = "minilora demo"


Options = CommonOptions


def options(sub: argparse.ArgumentParser) -> None:
    """None of its own."""


def run(options: Options) -> None:
    demo(say)
