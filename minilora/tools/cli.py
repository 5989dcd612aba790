"""The command line, `minilora`: demo, tasks, reproduce, show, pretrain, adapt, generate, merge, budget, info."""

from __future__ import annotations

import argparse
import io
import math
import os
import platform
import re
import sys
import textwrap
import time
import warnings
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..backend import backend_name, device_count, use_backend
from ..budget import PRESETS
from ..claims import CLAIMS, find, tuning
from ..claims.bases import load_base, string_draw
from ..claims.claim import BITS, Settings
from ..claims.report import Row, count_verdicts, read_report
from ..data import PRINTABLE, Batch, TextCodec, Vocabulary, fixed, seeded, split, windows
from ..fast import is_textbook
from ..generate import generate, generate_text
from ..gpt import GPT, GPTConfig
from ..interop.checkpoint import load_checkpoint, load_model, read_notes, save_checkpoint
from ..interop.files import check_output, digest
from ..interop.gpt2 import Tokenizer, load_gpt2
from ..interop.peft import CONFIG, WEIGHTS, load_adapter, save_adapter
from ..interop.store import cache_folder
from ..lora import LoRAConfig, add_lora, lora_layers, lora_state_dict, merge_and_unload, remove_lora, shared_adapter
from ..machine import blas_name, blas_threads, tune_machine
from ..optim import Adam, AdamW, Optimizer, cosine_schedule, linear_schedule
from ..tasks import LETTERS, LONGEST, SHORTEST, TASKS, WIDTH, check_task
from ..texts import english_text, read_text, replace_unknown
from ..training import batch_loss, evaluate, evaluate_exact_match, log_interval, train
from .budget import budget_text
from .console import columns, line, program, step_bar
from .demo import answer, demo, tasks_text
from .device_report import device_report
from .reproduce import reproduce, tune
from .screen import claim_line, claim_list, claim_whole, column_for, console, duration, find_row, head
from .sweep import available_cores

CHECKPOINT_EVERY = 100  # steps
BROKEN_PIPE = 141  # as a shell counts a program that SIGPIPE ended
# What adapt takes where nothing is said. For GPT-2 the paper's settings (Table 11), on shorter sequences.
_ADAPT: dict[str, Any] = {"lr": 1e-2, "batch": 32}
_ADAPT_GPT2: dict[str, Any] = {"lr": 2e-4, "batch": 8}
_LORA: dict[str, Any] = {"r": 8, "alpha": None, "targets": "q_proj,v_proj", "dropout": 0.0}
_LORA_GPT2: dict[str, Any] = {**_LORA, "r": 4, "alpha": 32.0}
_CONTEXT = 64  # positions that pretrain gives a base of text
# How much of a held-out text adapt shows, and how much it lets the model add.
_SAMPLE = {"character": (32, 60), "token": (8, 16)}
_QUESTION = f"[0-9][{LETTERS}]{{{SHORTEST},{LONGEST}}}>"  # as a string task is asked
_REPORT, _QUICK = Path("figures"), Path("quick")  # a first look takes the place of no report

# The least and the most of every whole number that can be said, whatever the command.
_SIZE, _COUNT = 10**6, 10**9
_WHOLE: dict[str, tuple[int, int]] = {
    "seeds": (1, tuning.BASE),  # that base is for tuning
    **dict.fromkeys(("d_model", "layers", "heads", "context", "batch", "time", "r"), (1, _SIZE)),
    **dict.fromkeys(("steps", "workers", "top_k"), (1, _COUNT)),
    "length": (0, _COUNT),
    "seed": (0, 2**63 - 1),
}
# What every other number must be, and in words.
_NUMBERS: dict[str, tuple[Callable[[float], bool], str]] = {
    "lr": (lambda x: 0 <= x < math.inf, "a finite number, at least 0"),
    "alpha": (lambda x: 0 < x < math.inf, "a finite number above 0"),
    "dropout": (lambda x: 0 <= x < 1, "a number, at least 0 and less than 1"),
    "temperature": (lambda x: 0 <= x < math.inf, "a finite number, at least 0 (greedy)"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 2 for a refusal, 130 after Ctrl-C, 141 where whoever read the output
    has gone (`| head -1`)."""
    _open_console()
    try:
        return _run(sys.argv[1:] if arguments is None else list(arguments))
    except BrokenPipeError:
        return BROKEN_PIPE
    finally:
        _close_console()


def _run(arguments: list[str]) -> int:
    name = "minilora"
    try:
        _check_text(arguments)
        parser = _parser()
        if not arguments:
            parser.print_help()
            return 0
        options, unknown = parser.parse_known_args(arguments)
        if unknown:
            options.refuse(f"unrecognized arguments: {' '.join(unknown)}")
        name = f"minilora {options.name}"
        tune_machine()
        _choose_backend(options.backend)
        _check_numbers(options)
        # Apple's BLAS raises flags for products that are finite; what is not finite is looked for where it matters.
        with np.errstate(all="ignore"), _plain_warnings(name):
            options.command(options)
    except (ValueError, Warning) as error:  # a warning only where Python was told to raise them
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except MemoryError:
        print(f"{name}: there is not enough memory for that: make the model, the batch or r smaller.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{name}: stopped.", file=sys.stderr)
        return 130
    return 0


# ---- the console -------------------------------------------------------------------------------------


def _open_console() -> None:
    """A character that the console cannot show becomes "?", and a stream that was closed swallows what is said."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper) and stream.errors != "backslashreplace":
            stream.reconfigure(errors="replace")


def _close_console() -> None:
    """Where what was said cannot be written any more, drop it: Python would try once more at its end, and complain."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def _plain_warnings(name: str) -> Iterator[None]:
    """Warnings as sentences, without the place in the source that gave them."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"{name}: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


def _say(text: str) -> None:
    """Print now, and say so where it cannot be printed: Python itself would at its end, too late for an exit status."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ValueError(f"The output cannot be written: {error.strerror or error}.") from error


def _choose_backend(name: str | None) -> None:
    """What --backend says, also for the processes that this one starts; else MINILORA_BACKEND decides."""
    if name is not None:
        use_backend(name)
        os.environ["MINILORA_BACKEND"] = name
    backend_name()  # a backend that is not there is refused before any work


def _check_text(arguments: list[str], what: str = "argument") -> None:
    """Raise `ValueError` for one that is no text, such as bytes of another encoding."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"The {what} {argument!r} holds bytes that are no {sys.getfilesystemencoding()} text: "
                "write it in that encoding; a file of such a name needs another one."
            ) from error


def _check_numbers(options: Any) -> None:
    """Raise `ValueError` for a number out of range, in the words of the command line."""
    for name, value in vars(options).items():
        option = f"--{name.replace('_', '-')}"
        if name in _WHOLE and value is not None:
            least, most = _WHOLE[name]
            if value < least:
                raise ValueError(f"{option} must be at least {least}, not {value}.")
            if value > most:
                raise ValueError(f"{option} must be at most {most:,}, not {value}.")
        elif name in _NUMBERS and value is not None:
            fits, words = _NUMBERS[name]
            if not fits(value):
                raise ValueError(f"{option} must be {words}, not {value}.")


def _refuse_given(options: Any, names: Sequence[str], why: str) -> None:
    """Raise `ValueError` for the first of these options that was given: it would be ignored."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value is not False and value != []:
            raise ValueError(f"--{name} {why}")


# ---- what can be said --------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="minilora",
        description="LoRA down to the last gradient: pretrain, adapt, and check the paper's claims.",
        epilog="start here:\n  minilora demo\n  minilora COMMAND --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-V", "--version", action="version", version=f"minilora {__version__}")
    commands = parser.add_subparsers(title="commands", dest="name", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[Any], None], text: str, example: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=text,
            description=textwrap.fill(text, 80),
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(command=run, refuse=sub.error)  # in the words of that command's usage
        sub.add_argument("--backend", metavar="NAME", help='what computes: "numpy", or "cupy" on a GPU (numpy)')
        return sub

    command(
        "demo",
        lambda options: demo(_say),
        "Watch LoRA teach a small model a new task, in a few seconds.",
        "minilora demo",
    )
    command(
        "tasks",
        lambda options: _say(tasks_text()),
        "The ten string tasks, each with an example, and how to teach one.",
        "minilora tasks",
    )

    sub = command(
        "reproduce",
        _reproduce,
        "Run the paper's claims; print a line for each as it is decided; write a page, figures and numbers.",
        "minilora reproduce --quick --claim zero_init rank",
    )
    sub.add_argument("--quick", action="store_true", help="a first look: one base, short runs, only equalities decided")
    names = ", ".join(claim.id for claim in CLAIMS)
    sub.add_argument(
        "--claim", nargs="+", action="extend", default=[], metavar="NAME", help=f"only these claims: {names}"
    )
    sub.add_argument("--seeds", type=int, default=None, help="bases behind every stochastic number (3; quick: 1)")
    sub.add_argument("--out", type=Path, help=f"folder for the report ({_REPORT}; quick: {_QUICK})")
    sub.add_argument("--workers", type=int, help="processes (one a core; with cupy, one a GPU)")
    sub.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="run on the workers of this Dask scheduler, such as tcp://127.0.0.1:8786 (Dask asks for no password: use "
        "a network you trust)",
    )
    sub.add_argument("--fresh", action="store_true", help="run everything again, whatever finished before")
    sub.add_argument("--open", action="store_true", help="open report.html in the browser at the end")
    sub.add_argument(
        "--tune",
        action="store_true",
        help="instead of the claims: choose each method's learning rate anew, on a base of its own",
    )

    sub = command(
        "show",
        _show,
        "One claim whole, from the report of reproduce: what the paper says, the rule, every number, the verdicts.",
        "minilora show rank",
    )
    names = ", ".join(claim.id for claim in CLAIMS)
    sub.add_argument("claim", metavar="NAME", nargs="?", help=f"the claim (without: a list): {names}")
    sub.add_argument("--out", type=Path, default=_REPORT, help=f"folder of the report ({_REPORT})")

    sub = command(
        "pretrain",
        _pretrain,
        "Pretrain a small GPT on English, on your text, or on string tasks, and save it.",
        "minilora pretrain --text book.txt --steps 3000 --out base.npz",
    )
    _data_options(sub, "what to learn (the Python language reference if neither is given)")
    sub.add_argument("--out", type=Path, required=True, help="the base to write, .npz")
    sub.add_argument("--d-model", type=int, default=64)
    sub.add_argument("--layers", type=int, default=2)
    sub.add_argument("--heads", type=int, default=4)
    sub.add_argument("--context", type=int, help=f"positions, with text ({_CONTEXT}; string tasks have {WIDTH})")
    _training_options(sub, lr=4e-3, steps=2000, batch=16)

    sub = command(
        "adapt",
        _adapt,
        "Train LoRA on a base and save the adapter in PEFT's layout.",
        "minilora adapt --base strings --task revupper --r 8 --out adapter",
    )
    _base_option(sub, gpt2=True)
    _data_options(sub, "what to learn")
    sub.add_argument(
        "--adapter", type=Path, help="continue from this adapter's folder, with its r, α, targets and dropout"
    )
    sub.add_argument("--r", type=int, help=f"rank ({_LORA['r']}; GPT-2: {_LORA_GPT2['r']})")
    sub.add_argument("--alpha", type=float, help=f"α; ΔW is scaled by α/r (α = r; GPT-2: {_LORA_GPT2['alpha']:g})")
    sub.add_argument("--targets", help=f"modules to adapt, comma between ({_LORA['targets']})")
    sub.add_argument("--dropout", type=float, help=f"on x before A, in training ({_LORA['dropout']:g})")
    sub.add_argument("--context", type=int, help="positions of a sequence, with text (the base's; GPT-2: 128)")
    _replace_option(sub)
    sub.add_argument("--out", type=Path, required=True, help="the adapter's folder")
    _training_options(sub, lr=_ADAPT["lr"], steps=300, batch=_ADAPT["batch"], gpt2=_ADAPT_GPT2)

    sub = command(
        "generate",
        _generate,
        "Let a base, with or without an adapter, continue a prompt.",
        "minilora generate --base strings --adapter adapter --prompt '8badge>' --temperature 0",
    )
    _base_option(sub, gpt2=True)
    sub.add_argument("--adapter", type=Path, help="an adapter's folder")
    sub.add_argument(
        "--prompt",
        action="append",
        help="the text to continue; may be given again (every line of standard input, one after the other)",
    )
    _replace_option(sub)
    sub.add_argument("--length", type=int, default=200, help="characters, or tokens of GPT-2, to add (200)")
    sub.add_argument(
        "--temperature", type=float, default=0.8, help="0 is greedy: --top-k and --seed change nothing then (0.8)"
    )
    sub.add_argument("--top-k", type=int, default=None, help="choose among the k likeliest")
    sub.add_argument("--seed", type=int, default=0, help="of the choices (0)")
    sub.add_argument(
        "--stop",
        metavar="TEXT",
        help=r"end before this text, \n for a newline (string tasks: \n; GPT-2: its end token; '' for nothing)",
    )

    sub = command(
        "merge",
        _merge,
        "Put an adapter's ΔW into a base's weights and save the plain model.",
        "minilora merge --base strings --adapter adapter --out merged.npz",
    )
    _base_option(sub)
    sub.add_argument("--adapter", type=Path, required=True, help="the adapter's folder")
    sub.add_argument("--out", type=Path, required=True, help="the model to write, .npz")

    sub = command(
        "budget",
        _budget,
        "What adapting a model costs: trainable parameters, and the bytes of all that training keeps; no training.",
        "minilora budget --preset gpt3-175b --r 4 --targets q_proj,v_proj",
    )
    sub.add_argument("--preset", help=f"a model by its sizes: {', '.join(PRESETS)}")
    sub.add_argument("--base", help='or "strings", "text", or a file of pretrain')
    sub.add_argument("--r", type=int, help="rank (4)")
    sub.add_argument("--targets", help="modules to adapt, comma between (q_proj,v_proj)")
    sub.add_argument("--batch", type=int, help="sequences a step, for the activations (1)")
    sub.add_argument("--time", type=int, help="positions of each (the whole context)")
    sub.add_argument("--paper", action="store_true", help="the paper's own figures, each beside its arithmetic")
    sub.add_argument("--full", action="store_true", help="with --paper: the formula and a note below each figure")

    command(
        "info",
        _info,
        "Versions, BLAS and its threads, the backend, the cache; with --backend cupy, a report on the GPU: gradients, "
        "training against the CPU's, times.",
        "minilora info",
    )
    return parser


def _base_option(sub: argparse.ArgumentParser, gpt2: bool = False) -> None:
    group = sub.add_mutually_exclusive_group(required=True)
    group.add_argument("--base", help='"strings" or "text", which come with minilora, or a file of pretrain')
    if gpt2:
        group.add_argument(
            "--gpt2", type=Path, metavar="FOLDER", help="a GPT-2 as Hugging Face's transformers saves it"
        )


def _replace_option(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--replace",
        action="store_true",
        help='replace characters that the base does not know: curly quotes by straight ones, é by e, others by "?"',
    )


def _data_options(sub: argparse.ArgumentParser, text: str) -> None:
    group = sub.add_mutually_exclusive_group()
    group.add_argument("--task", help=f"string tasks, comma between: {', '.join(TASKS)}; {text}")
    group.add_argument("--text", type=Path, help="a UTF-8 text file")


def _training_options(
    sub: argparse.ArgumentParser, lr: float, steps: int, batch: int, gpt2: dict[str, Any] | None = None
) -> None:
    """`gpt2` holds other defaults for that base; which ones stand is known once the base is."""
    sub.add_argument("--steps", type=int, default=steps, help=f"({steps})")
    for name, kind, value, text in (("lr", float, lr, "learning rate"), ("batch", int, batch, "sequences a step")):
        also = f"; GPT-2: {gpt2[name]:g}" if gpt2 else ""
        sub.add_argument(f"--{name}", type=kind, default=None if gpt2 else value, help=f"{text} ({value:g}{also})")
    sub.add_argument("--seed", type=int, default=0, help="of the start and of the batches (0)")
    sub.add_argument(
        "--resume", action="store_true", help=f"continue from the checkpoint saved every {CHECKPOINT_EVERY} steps"
    )


# ---- commands ----------------------------------------------------------------------------------------


def _reproduce(options: Any) -> None:
    if options.tune:
        of_report = ("claim", "seeds", "quick", "out", "open")
        _refuse_given(options, of_report, "is of a report, which --tune does not make.")
    if options.scheduler is not None:
        _refuse_given(options, ("workers",), "is of processes here; with --scheduler, Dask's workers run.")
    seeds = options.seeds if options.seeds is not None else 1 if options.quick else 3
    workers = options.workers
    if workers is None:
        workers = available_cores() if backend_name() == "numpy" else device_count()
    start = time.perf_counter()
    how: dict[str, Any] = {"scheduler": options.scheduler, "fresh": options.fresh}
    if options.tune:
        path = tune(workers, **how)
        _say(f"{time.perf_counter() - start:.0f} s. The learning rates are in {path}.")
        return
    folder, settings = options.out or (_QUICK if options.quick else _REPORT), Settings(seeds, options.quick)
    columns, signs = console()
    claims = find(options.claim)
    column = column_for([claim.short for claim in claims], columns)
    rows: list[Row] = []

    def decided(row: Row) -> None:
        if not rows:
            _say(head(column, settings, signs))
        rows.append(row)
        _say(claim_line(row, column, columns, signs))

    reproduce(options.claim, settings, folder, workers, decided=decided, **how)
    page = folder / "report.html"
    _say(f"\n{count_verdicts(rows)}. {duration(time.perf_counter() - start)}.")
    out = "" if folder == _REPORT else f" --out {folder}"
    _say(f"The report: {page}\nOne claim here: {program()} show {claims[0].id}{out}")
    if options.open and not webbrowser.open(page.resolve().as_uri()):
        raise ValueError(f"No browser could be started: open {page} yourself.")


def _show(options: Any) -> None:
    rows, settings = read_report(options.out)
    columns, signs = console()
    if options.claim is not None:
        _say(claim_whole(find_row(rows, options.claim), settings, options.out, columns, signs))
    else:
        out = "" if options.out == _REPORT else f" --out {options.out}"
        _say(f"{claim_list(rows, signs)}\n\nOne of them whole: {program()} show {rows[0]['id']}{out}")


def _pretrain(options: Any) -> None:
    _check_outputs(options, options.out)  # so that it has a name
    checkpoint = options.out.with_name(options.out.name + ".checkpoint.npz")
    _check_outputs(options, checkpoint)
    tasks = _tasks(options)
    if tasks:
        vocabulary, context = PRINTABLE, WIDTH
        data = _Data(options, vocabulary, context, tasks, None)
    else:
        text = read_text(options.text) if options.text else english_text()
        vocabulary = PRINTABLE
        if set(text) - set(vocabulary.characters):
            vocabulary = Vocabulary("".join(sorted(set(text) | set(vocabulary.characters))))
        context = options.context = _CONTEXT if options.context is None else options.context
        data = _Data(options, vocabulary, context, (), text)
    config = GPTConfig(len(vocabulary), context, options.d_model, options.layers, options.heads)
    model = GPT(config, seed=options.seed)
    optimizer = AdamW(model.parameters(), options.lr, betas=(0.9, 0.99))
    schedule = cosine_schedule(options.steps, warmup=0.05, final=0.1)
    _train(options, model, optimizer, data, schedule, checkpoint, {"data": data.digest}, clip=1.0)
    notes = {"vocabulary": vocabulary.characters, "stop": "\n" if tasks else None}
    save_checkpoint(options.out, model, step=options.steps, notes=notes)
    checkpoint.unlink(missing_ok=True)
    _say(f"{model.num_parameters():,} parameters; held out: {data.measure(model)}. Saved in {options.out}.")


def _adapt(options: Any) -> None:
    if options.task is None and options.text is None:
        raise ValueError("Say what to learn: --task NAME or --text FILE.")
    checkpoint = options.out / "checkpoint.npz"
    _check_outputs(options, options.out / CONFIG, options.out / WEIGHTS, checkpoint)
    tasks = _tasks(options)
    if tasks:
        _refuse_given(options, ("replace",), "is of text: string tasks have no other characters.")
    if options.adapter:
        _refuse_given(options, tuple(_LORA), "is what the adapter has: omit it, or omit --adapter.")
    else:
        _set_defaults(options, _LORA_GPT2 if options.gpt2 else _LORA)
    _set_defaults(options, _ADAPT_GPT2 if options.gpt2 else _ADAPT)
    targets = () if options.adapter else _names("targets", options.targets)
    model, vocabulary = _model(options)
    text = _known(options, read_text(options.text), vocabulary) if options.text else None
    longest = model.config.context_length
    default = min(128, longest) if options.gpt2 else longest
    context = default if options.context is None else options.context
    if context > longest:
        raise ValueError(f"--context must be 1 to {longest}, what the base reads, not {context}.")
    data = _Data(options, vocabulary, context, tasks, text)
    made_of = {"data": data.digest}
    if options.adapter:
        load_adapter(model, options.adapter)
        # An adapter that is its own --out may have been replaced by the save after which a run was stopped.
        own = _same_file(options.adapter, options.out)
        made_of["adapter"] = "its --out" if own else digest({}, lora_state_dict(model))
        before, said = data.measure(model), data.said(model)
        config = shared_adapter(lora_layers(model)).config
        remove_lora(model)  # and put on again, so that --seed decides the dropout as it does without --adapter
    else:
        before, said = data.measure(model), data.said(model)
        config = LoRAConfig(options.r, options.alpha, targets, options.dropout)
    parameters = add_lora(model, config, seed=options.seed)
    if options.adapter:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # which the first loading has said
            load_adapter(model, options.adapter)
    optimizer = Adam(parameters, options.lr)
    schedule = linear_schedule(options.steps)
    _train(options, model, optimizer, data, schedule, checkpoint, made_of, clip=None)
    replaced = " in the place of the adapter that was there" if (options.out / WEIGHTS).exists() else ""
    save_adapter(model, options.out)
    checkpoint.unlink(missing_ok=True)
    trained = sum(p.size for p in parameters)
    base = model.num_parameters() - trained
    scaling = config.scaling.replace("alpha", "α").replace("sqrt(r)", "√r")
    _say(f"LoRA of rank {config.r} on {', '.join(config.target_modules)}, scaling {scaling} = {config.scale:g}:")
    _say(f"{trained:,} numbers trained, {100 * trained / base:.2f} % of the base's {base:,}.\n")
    for cells in columns(data.sample(said, data.said(model))):
        _say(line(cells))
    _say(f"\nheld out, before: {before}\nheld out, after:  {data.measure(model)}\nSaved in {options.out}{replaced}.")


def _generate(options: Any) -> None:
    model, vocabulary = _model(options)
    if options.adapter:
        load_adapter(model, options.adapter)
    stop = _stop(options) if options.stop is None else options.stop.replace("\\n", "\n")
    settings = {"temperature": options.temperature, "top_k": options.top_k, "seed": options.seed, "stop": stop or None}

    def go_on(prompt: str) -> None:
        _say(generate_text(model, vocabulary, _known(options, prompt, vocabulary), options.length, **settings))
        if options.base == "strings" and not re.match(_QUESTION, prompt):
            print(
                f"minilora generate: the base has only seen lines such as 3badge>: a digit, {SHORTEST} to {LONGEST} "
                f"letters from a to {LETTERS[-1]}, and >.",
                file=sys.stderr,
                flush=True,
            )

    if options.prompt is None:
        _for_each_line(go_on)
    for prompt in options.prompt or ():
        go_on(prompt)


def _merge(options: Any) -> None:
    check_output(options.out)
    model, vocabulary = _base(options.base)
    load_adapter(model, options.adapter)
    merge_and_unload(model)
    save_checkpoint(options.out, model, notes={"vocabulary": vocabulary.characters, "stop": _stop(options)})
    _say(f"Saved in {options.out}: {model.num_parameters():,} parameters, ΔW inside.")


def _budget(options: Any) -> None:
    settings = {name: value for name in ("r", "batch", "time") if (value := getattr(options, name)) is not None}
    if options.targets is not None:
        settings["targets"] = _names("targets", options.targets)
    if options.preset is None and options.base is None:
        _refuse_given(options, tuple(settings), "is of a model: say which, with --preset or --base.")
    if not options.paper:
        _refuse_given(options, ("full",), "is of the paper's figures: say --paper too.")
    _say(budget_text(options.preset, options.base, paper=options.paper, full=options.full, **settings))


def _info(options: Any) -> None:
    if options.backend not in (None, "numpy"):
        _say(device_report())
        return
    folder = cache_folder()
    kept = [[path for path in folder.glob(files) if path.is_file()] for files in ("bases/*.npz", "runs/*.json")]
    size = sum(path.stat().st_size for paths in kept for path in paths) / 1e6
    counts = " and ".join(
        f"{len(n)} {what}{'s' * (len(n) != 1)}" for n, what in zip(kept, ("base", "result"), strict=True)
    )
    rows = (
        ("minilora", __version__),
        ("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("NumPy", np.__version__),
        ("BLAS", f"{blas_name()}, {blas_threads()} thread{'s' * (blas_threads() != 1)}"),
        ("cores", available_cores()),
        ("backend", backend_name()),
        ("operations", "textbook (MINILORA_TEXTBOOK)" if is_textbook() else "kernels"),
        ("cache", f"{folder}: {counts}, {size:.1f} MB"),
        ("tuning", "off (MINILORA_TUNE=0)" if os.environ.get("MINILORA_TUNE") == "0" else "on"),
    )
    _say("\n".join(f"{name:<10} {value}" for name, value in rows))


def _for_each_line(do: Callable[[str], None]) -> None:
    """Do it with every line of standard input; one that is refused costs a sentence, not the others.

    Raises `ValueError` at the end where one of a file or a pipe was refused.
    """
    refused = 0
    for text in _lines():
        try:
            _check_text([text], "prompt")
            do(text)
        except ValueError as error:
            print(f"minilora generate: {error}", file=sys.stderr, flush=True)
            refused += 1
    if refused and not _is_conversation():
        raise ValueError(f"{refused} prompt{'s were' if refused > 1 else ' was'} refused, as said above.")


def _lines() -> Iterator[str]:
    """The lines of standard input that are not empty; on a terminal, with a sign where one may be typed."""
    if sys.stdin is None:
        raise ValueError("There is no standard input to read prompts from: give one with --prompt.")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # bytes that are no text cost their own line only
    sign = "> " if _is_conversation() else ""
    if sign:
        with suppress(ImportError):
            import readline  # noqa: F401  (arrow keys, and earlier lines)
        _say(f"Type a prompt and press Enter; {'Ctrl-Z and Enter' if os.name == 'nt' else 'Ctrl-D'} ends.")
    while True:
        try:
            text = input(sign).removesuffix("\r")
        except EOFError:
            break
        except OSError as error:
            raise ValueError(f"Standard input cannot be read: {error.strerror or error}.") from error
        if text:
            yield text
    if sign:
        _say("")


def _is_conversation() -> bool:
    """Whether somebody types here and reads the answers."""
    return sys.stdin.isatty() and sys.stdout.isatty()


# ---- what commands share -----------------------------------------------------------------------------


def _names(option: str, given: str) -> tuple[str, ...]:
    """The names in a list with commas. Raises `ValueError` where one is empty."""
    names = tuple(given.split(","))
    if not all(names):
        raise ValueError(f"--{option} must be one name or more, with a comma between two, not {given!r}.")
    return names


def _tasks(options: Any) -> tuple[str, ...]:
    """The string tasks that --task names; none without it."""
    if options.task is None:
        return ()
    names = _names("task", options.task)
    for name in names:
        check_task(name)
    _refuse_given(options, ("context",), f"is of text: string tasks have {WIDTH} positions.")
    return names


def _set_defaults(options: Any, defaults: dict[str, Any]) -> None:
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)


def _check_outputs(options: Any, *paths: Path) -> None:
    """Raise `ValueError` where one of these files cannot be written, or is the text to learn from."""
    for path in paths:
        check_output(path)
        if options.text and _same_file(options.text, path):
            raise ValueError(f"{path} is the text to learn from: name another file with --out.")


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # one is not there
        return False


def _model(options: Any) -> tuple[GPT, TextCodec]:
    """The base that --base or --gpt2 names, and how its text becomes ids."""
    if options.gpt2:
        _refuse_given(options, ("replace",), "is of a base of characters: GPT-2's tokenizer reads every text.")
        tokenizer = Tokenizer(options.gpt2)  # first, since it is quick to say what is missing
        model = load_gpt2(options.gpt2)
        if len(tokenizer) > model.config.vocab_size:
            raise ValueError(
                f"The tokenizer in {options.gpt2} has {len(tokenizer)} tokens and the model knows "
                f"{model.config.vocab_size}: they do not belong together."
            )
        return model, tokenizer
    return _base(options.base)


def _base(name: str) -> tuple[GPT, Vocabulary]:
    """A recipe's base from the cache, made now if need be, or a file of `minilora pretrain`."""
    if name in ("strings", "text"):
        return load_base(name), PRINTABLE
    model = load_model(name)
    return model, Vocabulary(read_notes(name).get("vocabulary", PRINTABLE.characters))


def _known(options: Any, text: str, vocabulary: TextCodec) -> str:
    """The text; with --replace as the base can read it, and how many characters that took is said."""
    if not options.replace:
        return text
    assert isinstance(vocabulary, Vocabulary)
    text, count = replace_unknown(text, vocabulary)
    if count:
        plural = "s that the base does not know were" if count > 1 else " that the base does not know was"
        print(f"minilora {options.name}: {count:,} character{plural} replaced.", file=sys.stderr, flush=True)
    return text


def _stop(options: Any) -> str | None:
    """Where an answer of the base ends: string tasks end with their line."""
    if getattr(options, "gpt2", None):
        return None  # its tokenizer knows
    if options.base in ("strings", "text"):
        return "\n" if options.base == "strings" else None
    return read_notes(options.base).get("stop")


class _Data:
    """Training batches and held-out batches of string tasks, or of a text; `digest` is of that text's ids."""

    def __init__(
        self, options: Any, vocabulary: TextCodec, context: int, tasks: tuple[str, ...], text: str | None
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
            self.batches = seeded(string_draw(tasks, B), options.seed)
            self.held_out = fixed(string_draw(tasks, 256, held_out=True), 2)
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
        longer = generate(model, self._start(), _SAMPLE[self.unit][1], temperature=0)
        return [_shown(self.vocabulary.decode(longer[len(self._start()) :]))]

    def sample(self, before: list[str], after: list[str]) -> list[tuple[str, ...]]:
        """Rows of a table: what was said (`said`) before training, and after it."""
        if self.tasks:
            rows = zip(self._questions(), before, after, strict=True)
            return [("held out", "right", "before", "after"), *((*pair, *rest) for pair, *rest in rows)]
        start = _shown(self.vocabulary.decode(self._start()))
        return [("held out", start), ("before", *before), ("after", *after)]

    def _questions(self) -> list[tuple[str, str]]:
        """Three held-out questions of string tasks, and the right answers."""
        rows = [PRINTABLE.decode(ids).rstrip("\n") for ids in self.held_out[0][0][:3]]
        return [(f"{asked}>", right) for asked, right in (row.split(">") for row in rows)]

    def _start(self) -> np.ndarray:
        """(n,) ids of the start of a held-out window."""
        return self.held_out[0][0][0, : _SAMPLE[self.unit][0]]

    def measure(self, model: GPT) -> str:
        """Quality on held-out batches, in words."""
        bits = BITS * evaluate(model, self.held_out)
        if self.tasks:
            return f"{100 * evaluate_exact_match(model, self.held_out):.1f} % exact, {bits:.3f} bits/character"
        return f"{bits:.3f} bits/{self.unit}"


def _shown(text: str) -> str:
    """On one line, with "\\n" for a newline, and not longer than a console is wide."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return shown if len(shown) <= 64 else f"{shown[:61]}..."


def _train(
    options: Any,
    model: GPT,
    optimizer: Optimizer,
    data: _Data,
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
        _check_same_run(options, made_of, checkpoint)
        start = load_checkpoint(checkpoint, model, optimizer)
    elif options.resume:  # killed before the first one, perhaps
        print(f"There is no checkpoint at {checkpoint}: training starts at step 0.", file=sys.stderr)
    notes = {"run": _settings(options), "made_of": made_of}
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


def _settings(options: Any) -> dict[str, Any]:
    """The options that decide what training computes; of files not the names, since what they hold decides."""
    left_out = ("command", "refuse", "out", "resume", "backend", "text", "replace", "base", "gpt2", "adapter")
    return {k: v if isinstance(v, (int, float)) else str(v) for k, v in vars(options).items() if k not in left_out}


def _check_same_run(options: Any, made_of: dict[str, str | None], checkpoint: Path) -> None:
    """Raise `ValueError` where a checkpoint is of a run of other options or files: going on would be neither run."""
    notes, own = read_notes(checkpoint), _settings(options)
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
