"""The command line, `minilora`: reproduce, pretrain, adapt, generate, merge, budget, info."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..backend import backend_name, device_count, use_backend
from ..budget import PRESETS
from ..claims import CLAIMS
from ..claims.bases import load_base, string_draw
from ..claims.claim import BITS, Settings
from ..claims.report import table
from ..data import PRINTABLE, Batch, TextCodec, Vocabulary, english_text, fixed, read_text, seeded, split, windows
from ..generate import generate_text
from ..gpt import GPT, GPTConfig
from ..interop.checkpoint import load_checkpoint, load_model, read_notes, save_checkpoint
from ..interop.gpt2 import Tokenizer, load_gpt2
from ..interop.peft import load_adapter, save_adapter
from ..interop.store import cache_folder
from ..lora import LoRAConfig, add_lora, merge_and_unload
from ..machine import blas_name, blas_threads, tune_machine
from ..optim import Adam, AdamW, Optimizer, cosine_schedule, linear_schedule
from ..tasks import TASKS, WIDTH, check_task
from ..training import batch_loss, evaluate, evaluate_exact_match, log_interval, train
from .budget import budget_text
from .device_report import device_report
from .reproduce import check_folder, reproduce, tune
from .sweep import available_cores

CHECKPOINT_EVERY = 100  # steps
# What adapt takes where nothing is said. For GPT-2 the paper's settings (Table 11), on shorter sequences.
_ADAPT: dict[str, Any] = {"r": 8, "lr": 1e-2, "batch": 32}
_ADAPT_GPT2: dict[str, Any] = {"r": 4, "alpha": 32.0, "lr": 2e-4, "batch": 8}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 2 for a refusal, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    tune_machine()
    try:
        _choose_backend(options.backend)
        options.command(options)
    except ValueError as error:
        print(f"minilora {options.name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nminilora {options.name}: stopped.", file=sys.stderr)
        return 130
    return 0


def _choose_backend(name: str | None) -> None:
    """What --backend says, also for the processes that this one starts; else MINILORA_BACKEND decides."""
    if name is not None:
        use_backend(name)
        os.environ["MINILORA_BACKEND"] = name
    backend_name()  # a backend that is not there is refused before any work


# ---- what can be said --------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="minilora", description="LoRA down to the last gradient: pretrain, adapt, and check the paper's claims."
    )
    parser.add_argument("--version", action="version", version=f"minilora {__version__}")
    commands = parser.add_subparsers(dest="name", required=True, metavar="command")

    def command(name: str, run: Callable[[Any], None], text: str, example: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(command=run)
        sub.add_argument("--backend", metavar="NAME", help='what computes: "numpy", or "cupy" on a GPU (numpy)')
        return sub

    sub = command(
        "reproduce",
        _reproduce,
        "Run the paper's claims; write figures, claims.json and claims.md; print the table.",
        "minilora reproduce --quick --claim zero_init rank",
    )
    sub.add_argument("--quick", action="store_true", help="one base and fewer runs: a first look, no verdicts")
    names = ", ".join(claim.id for claim in CLAIMS)
    sub.add_argument(
        "--claim", nargs="+", action="extend", default=[], metavar="NAME", help=f"only these claims: {names}"
    )
    sub.add_argument("--seeds", type=int, default=None, help="bases behind every stochastic number (3; quick: 1)")
    sub.add_argument("--out", type=Path, default=Path("figures"), help="folder for the report (figures)")
    sub.add_argument("--workers", type=int, help="processes (one a core; with cupy, one a GPU)")
    sub.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="run on the workers of this Dask scheduler, such as tcp://127.0.0.1:8786 (Dask asks for no password: use "
        "a network you trust)",
    )
    sub.add_argument("--fresh", action="store_true", help="run everything again, whatever finished before")
    sub.add_argument(
        "--tune",
        action="store_true",
        help="instead of the claims: choose each method's learning rate anew, on a base of its own",
    )

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
    sub.add_argument("--context", type=int, default=64, help=f"positions (64; string tasks: {WIDTH})")
    _training_options(sub, lr=4e-3, steps=2000, batch=16)

    sub = command(
        "adapt",
        _adapt,
        "Train LoRA on a base and save the adapter in PEFT's layout.",
        "minilora adapt --base strings --task revupper --r 8 --out adapter",
    )
    _base_option(sub, gpt2=True)
    _data_options(sub, "what to learn")
    sub.add_argument("--r", type=int, help=f"rank ({_ADAPT['r']}; GPT-2: {_ADAPT_GPT2['r']})")
    sub.add_argument("--alpha", type=float, help=f"α; ΔW is scaled by α/r (α = r; GPT-2: {_ADAPT_GPT2['alpha']:g})")
    sub.add_argument("--targets", default="q_proj,v_proj", help="modules to adapt, comma between (q_proj,v_proj)")
    sub.add_argument("--dropout", type=float, default=0.0, help="on x before A, in training (0)")
    sub.add_argument("--context", type=int, help="positions of a sequence of text (the base's; GPT-2: 128)")
    sub.add_argument("--out", type=Path, required=True, help="the adapter's folder")
    _training_options(sub, lr=_ADAPT["lr"], steps=300, batch=_ADAPT["batch"], gpt2=_ADAPT_GPT2)

    sub = command(
        "generate",
        _generate,
        "Let a base, with an adapter or without, go on from a prompt.",
        "minilora generate --base strings --adapter adapter --prompt '8badge>' --temperature 0 --length 6",
    )
    _base_option(sub, gpt2=True)
    sub.add_argument("--adapter", type=Path, help="an adapter's folder")
    sub.add_argument("--prompt", required=True, help="the text to go on from")
    sub.add_argument("--length", type=int, default=200, help="characters, or tokens of GPT-2, to add (200)")
    sub.add_argument("--temperature", type=float, default=0.8, help="0 is greedy (0.8)")
    sub.add_argument("--top-k", type=int, default=None, help="choose among the k likeliest")
    sub.add_argument("--seed", type=int, default=0)

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
    sub.add_argument("--r", type=int, default=4, help="rank (4)")
    sub.add_argument("--targets", default="q_proj,v_proj", help="modules to adapt, comma between (q_proj,v_proj)")
    sub.add_argument("--batch", type=int, default=1, help="sequences a step, for the activations (1)")
    sub.add_argument("--time", type=int, default=None, help="positions of each (the whole context)")
    sub.add_argument("--paper", action="store_true", help="the paper's own figures, each beside its arithmetic")

    command(
        "info",
        _info,
        "Versions, BLAS and its threads, the backend, the cache; with --backend cupy, a report on the GPU: gradients, "
        "training against the CPU's, times.",
        "minilora info --backend cupy",
    )
    return parser


def _base_option(sub: argparse.ArgumentParser, gpt2: bool = False) -> None:
    group = sub.add_mutually_exclusive_group(required=True)
    group.add_argument("--base", help='"strings" or "text" (made once, then cached), or a file of pretrain')
    if gpt2:
        group.add_argument(
            "--gpt2", type=Path, metavar="FOLDER", help="a GPT-2 as Hugging Face's transformers saves it"
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
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument(
        "--resume", action="store_true", help=f"go on from the checkpoint kept every {CHECKPOINT_EVERY} steps"
    )


# ---- commands ----------------------------------------------------------------------------------------


def _reproduce(options: Any) -> None:
    seeds = options.seeds if options.seeds is not None else 1 if options.quick else 3
    workers = options.workers
    if workers is None:
        workers = available_cores() if backend_name() == "numpy" else device_count()
    start = time.perf_counter()
    how: dict[str, Any] = {"scheduler": options.scheduler, "fresh": options.fresh}
    if options.tune:
        path = tune(workers, **how)
        print(f"{time.perf_counter() - start:.0f} s. The learning rates are in {path}.")
        return
    rows = reproduce(options.claim, Settings(seeds, options.quick), options.out, workers, **how)
    print(table(rows))
    print(f"\n{time.perf_counter() - start:.0f} s. Figures, claims.json and claims.md are in {options.out}.")


def _pretrain(options: Any) -> None:
    check_folder(options.out.parent)
    tasks = _tasks(options.task)
    if tasks:
        vocabulary, context = PRINTABLE, WIDTH
        data = _Data(options, vocabulary, context, tasks, None)
    else:
        text = read_text(options.text) if options.text else english_text()
        vocabulary = PRINTABLE
        if set(text) - set(vocabulary.characters):
            vocabulary = Vocabulary("".join(sorted(set(text) | set(vocabulary.characters))))
        context = options.context
        data = _Data(options, vocabulary, context, (), text)
    config = GPTConfig(len(vocabulary), context, options.d_model, options.layers, options.heads)
    model = GPT(config, seed=options.seed)
    optimizer = AdamW(model.parameters(), options.lr, betas=(0.9, 0.99))
    schedule = cosine_schedule(options.steps, warmup=0.05, final=0.1)
    checkpoint = options.out.with_name(options.out.name + ".checkpoint.npz")
    _train(options, model, optimizer, data, schedule, checkpoint, clip=1.0)
    save_checkpoint(options.out, model, step=options.steps, notes={"vocabulary": vocabulary.characters})
    checkpoint.unlink(missing_ok=True)
    print(f"{model.num_parameters():,} parameters; held out: {data.measure(model)}. Saved in {options.out}.")


def _adapt(options: Any) -> None:
    if not options.task and not options.text:
        raise ValueError("Say what to learn: --task NAME or --text FILE.")
    check_folder(options.out)
    tasks = _tasks(options.task)
    for name, value in (_ADAPT_GPT2 if options.gpt2 else _ADAPT).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    model, vocabulary = _model(options)
    targets = tuple(name for name in options.targets.split(",") if name)
    text = read_text(options.text) if options.text else None
    longest = model.config.context_length
    default = min(128, longest) if options.gpt2 else longest
    context = default if options.context is None else options.context
    if not 1 <= context <= longest:
        raise ValueError(f"--context must be 1 to {longest}, what the base reads, not {context}.")
    data = _Data(options, vocabulary, context, tasks, text)
    before = data.measure(model)
    config = LoRAConfig(options.r, options.alpha, targets, options.dropout)
    parameters = add_lora(model, config, seed=options.seed)
    optimizer = Adam(parameters, options.lr)
    checkpoint = options.out / "checkpoint.npz"
    schedule = linear_schedule(options.steps)
    _train(options, model, optimizer, data, schedule, checkpoint, clip=None)
    save_adapter(model, options.out)
    checkpoint.unlink(missing_ok=True)
    trainable, total = model.num_parameters(trainable_only=True), model.num_parameters()
    share = 100 * trainable / total
    print(f"{trainable:,} of {total:,} parameters trained ({share:.2f} %), scaling α/r = {config.scale:g}.")
    print(f"held out, before: {before}; after: {data.measure(model)}. Saved in {options.out}.")


def _generate(options: Any) -> None:
    model, vocabulary = _model(options)
    if options.adapter:
        load_adapter(model, options.adapter)
    settings = {"temperature": options.temperature, "top_k": options.top_k, "seed": options.seed}
    print(generate_text(model, vocabulary, options.prompt, options.length, **settings))


def _merge(options: Any) -> None:
    check_folder(options.out.parent)
    model, vocabulary = _base(options.base)
    load_adapter(model, options.adapter)
    merge_and_unload(model)
    save_checkpoint(options.out, model, notes={"vocabulary": vocabulary.characters})
    print(f"Saved in {options.out}: {model.num_parameters():,} parameters, ΔW inside.")


def _budget(options: Any) -> None:
    targets = tuple(target for target in options.targets.split(",") if target)
    o = options
    print(budget_text(o.preset, o.base, o.r, targets, o.batch, o.time, o.paper))


def _info(options: Any) -> None:
    if options.backend not in (None, "numpy"):
        print(device_report())
        return
    folder = cache_folder()
    bases = list((folder / "bases").glob("*.npz")) if folder.exists() else []
    size = sum(path.stat().st_size for path in bases) / 1e6
    for name, value in (
        ("minilora", __version__),
        ("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("NumPy", np.__version__),
        ("BLAS", f"{blas_name()}, {blas_threads()} thread{'s' * (blas_threads() != 1)}"),
        ("cores", available_cores()),
        ("backend", backend_name()),
        ("cache", f"{folder}: {len(bases)} base{'s' * (len(bases) != 1)}, {size:.1f} MB"),
        ("tuning", "off (MINILORA_TUNE=0)" if os.environ.get("MINILORA_TUNE") == "0" else "on"),
    ):
        print(f"{name:<9} {value}")


# ---- what commands share -----------------------------------------------------------------------------


def _tasks(given: str | None) -> tuple[str, ...]:
    names = tuple(name for name in (given or "").split(",") if name)
    for name in names:
        check_task(name)
    return names


def _model(options: Any) -> tuple[GPT, TextCodec]:
    """The base that --base or --gpt2 names, and how its text becomes ids."""
    if options.gpt2:
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
        return load_base(name, 0), PRINTABLE
    model = load_model(name)
    return model, Vocabulary(read_notes(name).get("vocabulary", PRINTABLE.characters))


class _Data:
    """Training batches and held-out batches of string tasks, or of a text."""

    def __init__(
        self, options: Any, vocabulary: TextCodec, context: int, tasks: tuple[str, ...], text: str | None
    ) -> None:
        if options.batch < 1:
            raise ValueError(f"--batch must be at least 1, not {options.batch}.")
        if options.steps < 1:
            raise ValueError(f"--steps must be at least 1, not {options.steps}.")
        self.tasks = tasks
        self.unit = "character" if isinstance(vocabulary, Vocabulary) else "token"
        B = options.batch
        self.held_out: list[Batch]
        if tasks:
            if context < WIDTH or getattr(vocabulary, "characters", None) != PRINTABLE.characters:
                raise ValueError(
                    f"String tasks need a base with {WIDTH} positions or more and the {len(PRINTABLE)} printable "
                    f"characters; this one has {context} positions and {len(vocabulary)} {self.unit}s."
                )
            self.batches = seeded(string_draw(tasks, B), options.seed)
            self.held_out = fixed(string_draw(tasks, 256, held_out=True), 2)
            self.tokens = B * WIDTH
        else:
            assert text is not None
            training, rest = split(vocabulary.encode(text), context)
            self.batches = seeded(lambda rng: windows(training, B, context, rng), options.seed)
            rows = 32 if self.unit == "character" else B  # the logits of one row of GPT-2 take 26 MB
            self.held_out = fixed(lambda rng: windows(rest, rows, context, rng), 4)
            self.tokens = B * context

    def measure(self, model: GPT) -> str:
        """Quality on held-out batches, in words."""
        bits = BITS * evaluate(model, self.held_out)
        if self.tasks:
            return f"{100 * evaluate_exact_match(model, self.held_out):.1f} % exact, {bits:.3f} bits/character"
        return f"{bits:.3f} bits/{self.unit}"


def _train(
    options: Any,
    model: GPT,
    optimizer: Optimizer,
    data: _Data,
    schedule: Callable[[int], float],
    checkpoint: Path,
    clip: float | None,
) -> None:
    """Train with a bar, keeping a checkpoint from which `--resume` goes on bit for bit."""
    from tqdm import tqdm

    start = 0
    if options.resume and checkpoint.exists():
        _check_same_run(options, checkpoint)
        start = load_checkpoint(checkpoint, model, optimizer)
    elif options.resume:  # killed before the first one, perhaps
        print(f"There is no checkpoint at {checkpoint}: training starts at step 0.", file=sys.stderr)
    with tqdm(total=options.steps, initial=start, unit="step", disable=None) as bar:
        began = time.perf_counter()

        def callback(done: int, loss: float) -> None:
            if done % CHECKPOINT_EVERY == 0 and done < options.steps:
                save_checkpoint(checkpoint, model, optimizer, done, frozen=False, notes={"run": _run(options)})
            rate = (done - start) * data.tokens / (time.perf_counter() - began)
            bar.set_postfix_str(f"loss {loss:.3f}, {rate:,.0f} tokens/s", refresh=False)
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
                print(f"\nStopped. {checkpoint} is intact: the same command with --resume goes on.", file=sys.stderr)
            raise


def _run(options: Any) -> dict[str, Any]:
    """The options that decide what training computes."""
    harmless = ("command", "out", "resume", "backend")
    return {k: v if isinstance(v, (int, float)) else str(v) for k, v in vars(options).items() if k not in harmless}


def _check_same_run(options: Any, checkpoint: Path) -> None:
    """Raise `ValueError` where a checkpoint is of a run with other options: going on would be neither run."""
    saved, own = read_notes(checkpoint).get("run", {}), _run(options)
    for name, value in own.items():
        if saved.get(name, value) != value:
            raise ValueError(
                f"{checkpoint} is of a run with --{name.replace('_', '-')} {saved[name]}, not {value}: "
                "resume with the options it was started with, or leave --resume away."
            )
