"""`minilora tasks`: the string tasks."""

from __future__ import annotations

import argparse
from typing import Any

from ..console import say
from ..demo import tasks_text

TEXT = "The ten string tasks, each with an example, and how to teach one."
EXAMPLE = "minilora tasks"


def options(sub: argparse.ArgumentParser) -> None:
    """None of its own."""


def run(options: Any) -> None:
    say(tasks_text())
