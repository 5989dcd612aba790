"""`minilora demo`: LoRA learning a task, live."""

from __future__ import annotations

import argparse
from typing import Any

from ..console import say
from ..demo import demo

TEXT = "Watch LoRA teach a small model a new task, in a few seconds."
EXAMPLE = "minilora demo"


def options(sub: argparse.ArgumentParser) -> None:
    """None of its own."""


def run(options: Any) -> None:
    demo(say)
