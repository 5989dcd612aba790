"""What pretrain and adapt have in common: the data they learn from, and training with a bar and checkpoints."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..bases import string_sampler
from ..data import PRINTABLE, Batch, Vocabulary, fixed, seeded, split, windows
from ..generate import generate
from ..gpt import GPT
from ..interop.checkpoint import load_checkpoint, read_notes, save_checkpoint
from ..interop.files import check_output, digest
from ..optim import Optimizer
from ..tasks import WIDTH
from ..texts import BITS, TextCodec
from ..training import batch_loss, evaluate, evaluate_exact_match, log_interval, train
from .console import step_bar
from .demo import answer
from .options import CHECKPOINT_EVERY, DataOptions, TrainingOptions

# How much of a held-out text adapt shows, and how much it lets the model add.
SAMPLE = {"character": (32, 60), "token": (8, 16)}


class Data:
    """Training batches and held-out batches of string tasks, or of a text; `digest` is of that text's ids."""

    def __init__(
        self, options: TrainingOptions, vocabulary: TextCodec, context: int, tasks: tuple[str, ...], text: str | None
    ) -> None:
        self.tasks, self.vocabulary = tasks, vocabulary
        self.unit = "character" if isinstance(vocabulary, Vocabulary) else "token"
        B = options.batch
        self.held_out: list[Batch]
        self.digest: str | None = None
        if tasks:
            if context < WIDTH or getattr(vocabulary, "characters", None) != PRINTABLE.characters:
                raise ValueError(
                    f"String tasks need a base with {WIDTH} positions or more and the {len(PRINTABLE)} printable "
                    f"characters; this one has {context} positions and {len(vocabulary)} {self.unit}s."
                )
            self.batches = seeded(string_sampler(tasks, B), options.seed)
            self.held_out = fixed(string_sampler(tasks, 256, held_out=True), 2)
        else:
            assert text is not None
            ids = vocabulary.encode(text)
            self.digest = digest({}, {"ids": ids})
            training, rest = split(ids, context)
            self.batches = seeded(lambda rng: windows(training, B, context, rng), options.seed)
            rows = 32 if self.unit == "character" else B  # the logits of one row of GPT-2 take 26 MB
            self.held_out = fixed(lambda rng: windows(rest, rows, context, rng), 4)

    def said(self, model: GPT) -> list[str]:
        """The likeliest answers to three held-out questions, or how the model continues a held-out text."""
        if self.tasks:
            return [answer(model, asked) for asked, _ in self._questions()]
        longer = generate(model, self._start(), SAMPLE[self.unit][1], temperature=0)
        return [shown(self.vocabulary.decode(longer[len(self._start()) :]))]

    def sample(self, before: list[str], after: list[str]) -> list[tuple[str, ...]]:
        """Rows of a table: what was said (`said`) before training, and after it."""
        if self.tasks:
            rows = zip(self._questions(), before, after, strict=True)
            return [("held out", "right", "before", "after"), *((*pair, *rest) for pair, *rest in rows)]
        start = shown(self.vocabulary.decode(self._start()))
        return [("held out", start), ("before", *before), ("after", *after)]

    def _questions(self) -> list[tuple[str, str]]:
        """Three held-out questions of string tasks, and the right answers."""
        rows = [PRINTABLE.decode(ids).rstrip("\n") for ids in self.held_out[0][0][:3]]
        return [(f"{asked}>", right) for asked, right in (row.split(">") for row in rows)]

    def _start(self) -> np.ndarray:
        """(n,) ids of the start of a held-out window."""
        return self.held_out[0][0][0, : SAMPLE[self.unit][0]]

    def measure(self, model: GPT) -> str:
        """Quality on held-out batches, in words."""
        bits = BITS * evaluate(model, self.held_out)
        if self.tasks:
            return f"{100 * evaluate_exact_match(model, self.held_out):.1f} % exact, {bits:.3f} bits/character"
        return f"{bits:.3f} bits/{self.unit}"


def shown(text: str) -> str:
    """On one line, with "\\n" for a newline, and not longer than a console is wide."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return shown if len(shown) <= 64 else f"{shown[:61]}..."


def train_with_bar(
    options: TrainingOptions,
    model: GPT,
    optimizer: Optimizer,
    data: Data,
    schedule: Callable[[int], float],
    checkpoint: Path,
    made_of: dict[str, str | None],
    clip: float | None,
) -> None:
    """Train with a bar, keeping a checkpoint from which `--resume` continues bit for bit.

    `made_of`: digests of what the options name and a checkpoint does not hold.
    """
    start = 0
    if options.resume and checkpoint.exists():
        check_same_run(options, made_of, checkpoint)
        start = load_checkpoint(checkpoint, model, optimizer)
    elif options.resume:  # killed before the first one, perhaps
        print(f"There is no checkpoint at {checkpoint}: training starts at step 0.", file=sys.stderr)
    notes = {"run": settings_of(options), "made_of": made_of}
    with step_bar(options.steps, start) as bar:

        def callback(done: int, loss: float) -> None:
            if done % CHECKPOINT_EVERY == 0 and done < options.steps:
                save_checkpoint(checkpoint, model, optimizer, done, frozen=False, notes=notes)
            bar.set_description_str(f"loss {loss:.3f}", refresh=False)
            bar.update(done - bar.n)

        try:
            train(
                model,
                optimizer,
                batch_loss(model, data.batches),
                options.steps,
                start=start,
                schedule=schedule,
                clip=clip,
                callback=callback,
                log_every=min(CHECKPOINT_EVERY, log_interval()),  # a fetch at every checkpoint
            )
        except KeyboardInterrupt:
            if checkpoint.exists():
                print(f"\nStopped. {checkpoint} is intact: the same command with --resume continues.", file=sys.stderr)
            raise


def settings_of(options: TrainingOptions) -> dict[str, Any]:
    """The options that decide what training computes; but no file names, since what the files hold decides."""
    left_out = ("out", "resume", "backend", "text", "replace", "base", "gpt2", "llm", "adapter")
    return {k: v if isinstance(v, (int, float)) else str(v) for k, v in vars(options).items() if k not in left_out}


def check_same_run(options: TrainingOptions, made_of: dict[str, str | None], checkpoint: Path) -> None:
    """Raise `ValueError` where a checkpoint is from a run with other options or files: going on would mix the two."""
    notes, own = read_notes(checkpoint), settings_of(options)
    saved = notes.get("run", {})
    for name, value in own.items():
        if saved.get(name, value) != value:
            raise ValueError(
                f"{checkpoint} is of a run with --{name.replace('_', '-')} {saved[name]}, not {value}: "
                "resume with the options it was started with, or omit --resume."
            )
    for name, what in (("data", "learned from another text"), ("adapter", "started from another adapter")):
        if notes.get("made_of", {}).get(name, made_of.get(name)) != made_of.get(name):
            raise ValueError(
                f"{checkpoint} is of a run that {what}: resume with what it was started with, or omit --resume."
            )


def check_outputs(options: DataOptions, *paths: Path) -> None:
    """Raise `ValueError` where one of these files cannot be written, or is the text to learn from."""
    for path in paths:
        check_output(path)
        if options.text and same_file(options.text, path):
            raise ValueError(f"{path} is the text to learn from: name another file with --out.")


def same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # one is not there
        return False
