"""`minilora tasks`: the string tasks."""

from __future__ import annotations

import argparse

from ..console import say
from ..demo import tasks_text
from ..options import CommonOptions

TEXT = "The ten string tasks, each with an example, and how to teach one."
EXAMPLE = "minilora tasks"


Options = CommonOptions


def options(sub: argparse.ArgumentParser) -> None:
    """None of its own."""


def run(options: Options) -> None:
    say(tasks_text())
