"""`minilora merge`: an adapter put into its base."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from ...data import Vocabulary
from ...interop.checkpoint import save_checkpoint
from ...interop.files import check_output
from ...interop.llama import LlamaTokenizer, save_llama
from ...interop.peft import load_adapter
from ...llama import Llama
from ...lora import merge_and_unload
from ..console import say
from ..models import model_of, stop_of
from ..options import ModelOptions, base_option

TEXT = "Put an adapter's ΔW into a base's weights and save the plain model."
EXAMPLE = "minilora merge --base strings --adapter adapter --out merged.npz"


@dataclass(frozen=True)
class Options(ModelOptions):
    adapter: Path
    out: Path


def options(sub: argparse.ArgumentParser) -> None:
    base_option(sub, llm=True)
    sub.set_defaults(gpt2=None, four_bit=False, replace=False)
    sub.add_argument("--adapter", type=Path, required=True, help="the adapter's folder")
    sub.add_argument(
        "--out", type=Path, required=True, help="the model to write, .npz; of an --llm a folder, as transformers has it"
    )


def run(options: Options) -> None:
    check_output(options.out / "config.json" if options.llm else options.out)
    model, vocabulary = model_of(options)
    load_adapter(model, options.adapter)
    merge_and_unload(model)
    if isinstance(model, Llama):
        assert isinstance(vocabulary, LlamaTokenizer)
        save_llama(options.out, model, vocabulary)
    else:
        assert isinstance(vocabulary, Vocabulary)
        save_checkpoint(options.out, model, notes={"vocabulary": vocabulary.characters, "stop": stop_of(options.base)})
    say(f"Saved in {options.out}: {model.num_parameters():,} parameters, ΔW inside.")
