"""`minilora generate`: what a model says."""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...interop.llama import LlamaTokenizer
from ...interop.peft import load_adapter
from ...lora import lora_disabled
from ...tasks import LETTERS, LONGEST, SHORTEST
from ...texts import generate_text
from ..console import check_text, is_conversation, program, say
from ..models import known, model_of, stop_of
from ..options import ModelOptions, base_option, four_bit_option, replace_option

QUESTION = f"[0-9][{LETTERS}]{{{SHORTEST},{LONGEST}}}>"  # as a string task is asked

TEXT = "Let a base, with or without an adapter, continue a prompt."
EXAMPLE = "minilora generate --base strings --adapter adapter --prompt '8badge>' --temperature 0"


@dataclass(frozen=True)
class Options(ModelOptions):
    adapter: Path | None
    prompt: list[str] | None
    length: int
    temperature: float
    top_k: int | None
    seed: int
    stop: str | None
    chat: bool


def options(sub: argparse.ArgumentParser) -> None:
    base_option(sub, gpt2=True, llm=True)
    four_bit_option(sub)
    sub.add_argument("--adapter", type=Path, help="an adapter's folder")
    sub.add_argument(
        "--prompt",
        action="append",
        help="the text to continue; may be given again (every line of standard input, one after the other)",
    )
    sub.add_argument(
        "--chat",
        action="store_true",
        help="talk to an --llm that was taught to answer: prompts are messages, one after the other in one "
        "conversation; with --adapter the base answers too, in a conversation of its own",
    )
    replace_option(sub)
    sub.add_argument("--length", type=int, default=200, help="characters, or tokens of GPT-2 or an LLM, to add (200)")
    sub.add_argument(
        "--temperature", type=float, default=0.8, help="0 is greedy: --top-k and --seed change nothing then (0.8)"
    )
    sub.add_argument("--top-k", type=int, default=None, help="choose among the k likeliest")
    sub.add_argument("--seed", type=int, default=0, help="of the choices (0)")
    sub.add_argument(
        "--stop",
        metavar="TEXT",
        help=r"end before this text, \n for a newline (string tasks: \n; others: their end token; '' for nothing)",
    )


def run(options: Options) -> None:
    if options.chat and not options.llm:
        raise ValueError("--chat is for a model that was taught to answer: name one with --llm, such as smollm2.")
    histories: dict[str, list[dict[str, str]]] = {"base": [], "adapter": []} if options.adapter else {"model": []}
    model, vocabulary = model_of(options)
    if options.adapter:
        load_adapter(model, options.adapter)
    stop = stop_of(options.base) if options.stop is None else options.stop.replace("\\n", "\n")
    settings: dict[str, Any] = {
        "temperature": options.temperature,
        "top_k": options.top_k,
        "seed": options.seed,
        "stop": stop or None,
    }

    def chat(message: str) -> None:
        """Each has a conversation of its own: an answer of the adapter's would put words in the base's mouth."""
        assert isinstance(vocabulary, LlamaTokenizer)
        for speaker, history in histories.items():
            history.append({"role": "user", "content": message})
            prompt = vocabulary.chat(history)
            with lora_disabled(model) if speaker == "base" else nullcontext():
                answer = generate_text(model, vocabulary, prompt, options.length, **settings)[len(prompt) :].strip()
            history.append({"role": "assistant", "content": answer})
            say(f"{speaker + ':':<9}{answer}" if options.adapter else answer)

    def go_on(prompt: str) -> None:
        text = known(options, prompt, vocabulary)
        if options.base == "strings" and not re.match(QUESTION, text) and len(vocabulary.encode(text)):
            print(
                f"minilora generate: this base knows lines such as 3badge>: a digit, {SHORTEST} to {LONGEST} letters\n"
                f"from a to {LETTERS[-1]}, and >. `{program()} tasks` lists what it was taught.",
                file=sys.stderr,
                flush=True,
            )
        say(generate_text(model, vocabulary, text, options.length, **settings))

    reply = chat if options.chat else go_on
    if options.prompt is None:
        _for_each_line(reply)
    for prompt in options.prompt or ():
        reply(prompt)


def _for_each_line(do: Callable[[str], None]) -> None:
    """Do it for every line of standard input; a line that is refused gets a sentence, and the others continue.

    Raises `ValueError` at the end where one of a file or a pipe was refused.
    """
    refused = 0
    for text in _lines():
        try:
            check_text([text], "prompt")
            do(text)
        except ValueError as error:
            print(f"minilora generate: {error}", file=sys.stderr, flush=True)
            refused += 1
    if refused and not is_conversation():
        raise ValueError(f"{refused} prompt{'s were' if refused > 1 else ' was'} refused, as said above.")


def _lines() -> Iterator[str]:
    """The lines of standard input that are not empty; on a terminal, with a sign where one may be typed."""
    if sys.stdin is None:
        raise ValueError("There is no standard input to read prompts from: give one with --prompt.")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # bytes that are not text cost their own line only
    sign = "> " if is_conversation() else ""
    if sign:
        with suppress(ImportError):
            import readline  # noqa: F401  (arrow keys, and earlier lines)
        say(f"Type a prompt and press Enter; {'Ctrl-Z and Enter' if os.name == 'nt' else 'Ctrl-D'} ends.")
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
        say("")
