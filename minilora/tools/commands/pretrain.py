"""`minilora pretrain`: a base of one's own."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

from ...data import PRINTABLE, Vocabulary
from ...gpt import GPT, GPTConfig
from ...interop.checkpoint import save_checkpoint
from ...optim import AdamW, cosine_schedule
from ...tasks import WIDTH
from ...texts import english_text, read_text
from ..console import say
from ..learning import Data, check_outputs, train_with_bar
from ..options import DataOptions, TrainingOptions, data_options, tasks_of, training_options

CONTEXT = 64  # positions of a base of text

TEXT = "Pretrain a small GPT on English, on your text, or on string tasks, and save it."
EXAMPLE = "minilora pretrain --text book.txt --steps 3000 --out base.npz"


@dataclass(frozen=True)
class SizeOptions(DataOptions):
    d_model: int
    layers: int
    heads: int


@dataclass(frozen=True)
class Options(TrainingOptions, SizeOptions):
    """What to learn, how large the model is, how to train it."""


def options(sub: argparse.ArgumentParser) -> None:
    data_options(sub, "what to learn (the Python language reference if neither is given)")
    sub.add_argument("--out", type=Path, required=True, help="the base to write, .npz")
    sub.add_argument("--d-model", type=int, default=64)
    sub.add_argument("--layers", type=int, default=2)
    sub.add_argument("--heads", type=int, default=4)
    sub.add_argument("--context", type=int, help=f"positions, with text ({CONTEXT}; string tasks have {WIDTH})")
    training_options(sub, lr=4e-3, steps=2000, batch=16)


def run(options: Options) -> None:
    check_outputs(options, options.out)  # so that it has a name
    checkpoint = options.out.with_name(options.out.name + ".checkpoint.npz")
    check_outputs(options, checkpoint)
    tasks = tasks_of(options)
    if tasks:
        vocabulary, context = PRINTABLE, WIDTH
        data = Data(options, vocabulary, context, tasks, None)
    else:
        text = read_text(options.text) if options.text else english_text()
        vocabulary = PRINTABLE
        if set(text) - set(vocabulary.characters):
            vocabulary = Vocabulary("".join(sorted(set(text) | set(vocabulary.characters))))
        context = CONTEXT if options.context is None else options.context
        options = replace(options, context=context)
        data = Data(options, vocabulary, context, (), text)
    config = GPTConfig(len(vocabulary), context, options.d_model, options.layers, options.heads)
    model = GPT(config, seed=options.seed)
    optimizer = AdamW(model.parameters(), options.lr, betas=(0.9, 0.99))
    schedule = cosine_schedule(options.steps, warmup=0.05, final=0.1)
    train_with_bar(options, model, optimizer, data, schedule, checkpoint, {"data": data.digest}, clip=1.0)
    notes = {"vocabulary": vocabulary.characters, "stop": "\n" if tasks else None}
    save_checkpoint(options.out, model, step=options.steps, notes=notes)
    checkpoint.unlink(missing_ok=True)
    say(f"{model.num_parameters():,} parameters; held out: {data.measure(model)}. Saved in {options.out}.")
