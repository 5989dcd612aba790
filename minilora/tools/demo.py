"""`minilora demo`: one base, one task that is new to it, LoRA learning it while you watch. And `minilora tasks`."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..autograd import no_grad
from ..backend import to_numpy
from ..bases import held_out_strings, load_base, string_sampler
from ..budget import readable
from ..claims.adaptation import STEPS, rate
from ..data import PRINTABLE, seeded
from ..gpt import GPT
from ..interop.peft import save_adapter
from ..lora import LoRAConfig, add_lora, lora_disabled, merge_lora
from ..nn import Parameter, evaluating
from ..optim import Adam, linear_schedule
from ..tasks import ADAPTATION, IGNORED, LONGEST, PRETRAINING, TASKS, question
from ..texts import generate_text
from ..training import batch_loss, evaluate, evaluate_exact_match, train
from .console import columns, line, paint, program, step_bar

TASK, R, BATCH = "revupper", 4, 32
SHOWN = (0, 10, 20, 40, 80, 160)  # after so many steps, and at the end, a row says how far it is
EXAMPLE = "badge"
# what each task does, in words
MEANINGS = {
    "copy": "the letters as they are",
    "reverse": "backwards",
    "upper": "in capitals",
    "sort": "in the order of the alphabet",
    "next": "each letter's next one; after p comes a",
    "alternate": "every second letter a capital",
    "rotate": "the first letter moves to the end",
    "pairs": "neighbours swap places",
    "revupper": "backwards and in capitals",
    "prev": "each letter's previous one; before a comes p",
}
HELD_OUT = ("bank", "dance", "income", "compile", "combined")  # words that no training ever draws


def answer(model: GPT, asked: str) -> str:
    """What the model says to a string task's question, such as "8badge>", up to the end of its line."""
    said = generate_text(model, PRINTABLE, asked, LONGEST + 1, temperature=0, stop="\n")
    return said[len(asked) :]


def tasks_text() -> str:
    """The ten string tasks, each with an example, and how one is asked and taught."""
    example = [(*question(name, EXAMPLE), MEANINGS[name]) for name in TASKS]
    rows = [(name, *cells) for name, cells in zip(TASKS, example, strict=True)]
    head, *table = columns([("task", "asked", "answer", "what it does"), *rows])
    lines = dict(zip(TASKS, map(line, table), strict=True))
    base = f"{program()} generate --base strings"
    return "\n".join(
        (
            "A string task is a line: the task's digit, 4 to 8 letters from a to p, > and the",
            f'answer. The base "strings" comes with minilora and knows {len(PRETRAINING)} of them:',
            "",
            line(head),
            *(lines[name] for name in PRETRAINING),
            "",
            f"{len(ADAPTATION)} are new to it, for LoRA to teach:",
            "",
            *(lines[name] for name in ADAPTATION),
            "",
            "Ask the base, teach it a task, ask again (what you type is read line by line):",
            "",
            f"  {base} --temperature 0",
            f"  {program()} adapt --base strings --task {TASK} --out adapter",
            f"  {base} --adapter adapter --temperature 0",
        )
    )


def demo(say: Callable[[str], None]) -> None:
    """Say, line by line, what a base can do, how LoRA teaches it a new task, and what that took.

    All numbers are measured now, and the same every time on one computer.
    """
    say(paint("LoRA, live: a small language model learns a new task on this computer.", "bold"))
    model = load_base("strings")
    size, before = model.num_parameters(), model.state_dict()
    strings = sum(len(ids) for ids, _ in held_out_strings(TASK))

    say(_title(1, f"The base: a GPT with {size:,} parameters, pretrained on {len(PRETRAINING)} tasks"))
    say("  The digit names the task; the answer follows the >.\n")
    known = [_examined(model, name) for name in (*PRETRAINING, TASK)]
    head, *rows, new = columns([("task", "asked", "it says", "", f"right, of {strings} unseen strings"), *known])
    for cells in (head, *rows):
        say(line(_marked(cells)))

    say(_title(2, f"A task it was never taught: {MEANINGS[TASK]}"))
    say(line(_marked(new)))

    parameters = add_lora(model, LoRAConfig(R, alpha=2 * R))
    trained = model.num_parameters(trainable_only=True)
    say(_title(3, f"LoRA: the base stays frozen; {trained:,} new numbers (rank {R}, on q and v) learn"))
    first, last = _learn(model, parameters, say)

    say(_title(4, "Words that no training showed it"))
    answers = [("asked", "right", "base", "base with LoRA")]
    for word in HELD_OUT:
        asked, right = question(TASK, word)
        with lora_disabled(model):
            alone = answer(model, asked)
        answers.append((asked, right, alone, answer(model, asked)))
    for (_, right, *_), cells in zip(answers, columns(answers), strict=True):
        say(line([*cells[:-1], _green(cells[-1], right)]))

    say(_title(5, "What it took"))
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(model, folder)
        files = sum(file.stat().st_size for file in Path(folder).iterdir())
    unmerged = _said(model)
    merge_lora(model)
    after = model.state_dict()
    untouched = all(np.array_equal(array, after[name]) for name, array in before.items())
    same = int((_said(model) == unmerged).all(axis=1).sum())
    facts = (
        ("trained", f"{trained:,} numbers beside {size:,} frozen ones: {100 * trained / size:.1f} %"),
        ("saved", f"an adapter of {readable(files)}; the base has {readable(sum(a.nbytes for a in before.values()))}"),
        ("the base", "the same as before, bit for bit" if untouched else "CHANGED"),
        ("merged", f"one product a layer again; {same} of {strings} answers stay the same"),
    )
    for cells in columns(facts):
        say(line(cells))
    say(paint(f"\n  {first:.1%} -> {last:.1%} right on strings that no training showed it.".replace("%", " %"), "bold"))
    say(
        f"\nNext   {program()} tasks               all ten tasks, and how to teach one"
        f"\n       {program()} reproduce --quick   the paper's claims, measured"
    )


def _learn(model: GPT, parameters: list[Parameter], say: Callable[[str], None]) -> tuple[float, float]:
    """Train with a bar, and say every few steps how far it is; returns the share answered exactly, before and after.

    Settings, steps and rate are those of the claims' "lora q,v 4".
    """
    asked, right = question(TASK, EXAMPLE)
    steps, held_out, shares = STEPS["strings"], held_out_strings(TASK), []
    say(line(("step", "loss ", f"{asked} ".ljust(LONGEST + 1), "right")))
    with step_bar(steps, leave=False) as bar:

        def show(done: int) -> None:
            shares.append(evaluate_exact_match(model, held_out))
            said = _green(answer(model, asked).ljust(LONGEST + 1), right)
            share = f"{_percent(shares[-1])} {'#' * round(30 * shares[-1])}"
            with bar.external_write_mode(file=sys.stdout):
                say(line((f"{done:4}", f"{evaluate(model, held_out):5.2f}", said, share)))

        def callback(done: int, loss: float) -> None:
            bar.set_description_str(f"loss {loss:.3f}", refresh=False)
            bar.update(done - bar.n)
            if done in SHOWN or done == steps:
                show(done)

        show(0)
        train(
            model,
            Adam(parameters, rate("strings", f"lora q,v {R}")),
            batch_loss(model, seeded(string_sampler((TASK,), BATCH), 0)),
            steps,
            schedule=linear_schedule(steps),
            callback=callback,
            log_every=1,
        )
    return shares[0], shares[-1]


def _examined(model: GPT, name: str) -> tuple[str, ...]:
    """A row: the task, the example, what the model says to it, whether that is right, and how often it is."""
    asked, right = question(name, EXAMPLE)
    said = answer(model, asked)
    verdict = "right" if said == right else f"wrong: {right}"
    return name, asked, said, verdict, _percent(evaluate_exact_match(model, held_out_strings(name)))


def _marked(cells: list[str]) -> list[str]:
    """A row with its verdict in colour."""
    verdict = cells[3]
    how = {"right": "green", "wrong": "red"}.get(verdict[:5])
    return cells if how is None else [*cells[:3], paint(verdict, how), *cells[4:]]


def _green(cell: str, right: str) -> str:
    return paint(cell, "green") if cell.strip() == right else cell


def _percent(share: float) -> str:
    return f"{100 * share:5.1f} %"


def _title(number: int, text: str) -> str:
    return "\n" + paint(f"{number}  {text}", "bold")


def _said(model: GPT) -> np.ndarray:
    """(512, T) likeliest token at each place of the answers to held-out strings, the other places ignored."""
    with no_grad(), evaluating():
        return np.concatenate(
            [
                np.where(targets == IGNORED, IGNORED, to_numpy(model(ids).array).argmax(axis=-1))
                for ids, targets in held_out_strings(TASK)
            ]
        )
