"""`minilora merge`: an adapter put into its base."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from ...interop.checkpoint import save_checkpoint
from ...interop.files import check_output
from ...interop.peft import load_adapter
from ...lora import merge_and_unload
from ..console import say
from ..models import base_of, stop_of
from ..options import CommonOptions, base_option

TEXT = "Put an adapter's ΔW into a base's weights and save the plain model."
EXAMPLE = "minilora merge --base strings --adapter adapter --out merged.npz"


@dataclass(frozen=True)
class Options(CommonOptions):
    base: str
    adapter: Path
    out: Path


def options(sub: argparse.ArgumentParser) -> None:
    base_option(sub)
    sub.add_argument("--adapter", type=Path, required=True, help="the adapter's folder")
    sub.add_argument("--out", type=Path, required=True, help="the model to write, .npz")


def run(options: Options) -> None:
    check_output(options.out)
    model, vocabulary = base_of(options.base)
    load_adapter(model, options.adapter)
    merge_and_unload(model)
    save_checkpoint(options.out, model, notes={"vocabulary": vocabulary.characters, "stop": stop_of(options.base)})
    say(f"Saved in {options.out}: {model.num_parameters():,} parameters, ΔW inside.")
