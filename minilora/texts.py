"""Texts: English, Python's source or a file to learn from; what a base does not know replaced; a prompt continued."""

from __future__ import annotations

import importlib
import math
import sysconfig
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Protocol

import numpy as np

from . import checks
from .data import PRINTABLE, Vocabulary
from .generate import continue_rows
from .gpt import GPT

BITS = 1 / math.log(2)  # of one nat


def english_text() -> str:
    """The language reference that ships with CPython, `pydoc_data.topics`: 0.5 million characters of English."""
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise ValueError(
            "This Python comes without its language reference (pydoc_data.topics), the English that a base is "
            "pretrained on: use another Python, or --text FILE."
        ) from error
    return _printable("\n".join(topics[name] for name in sorted(topics)))


# Large, stable modules of different kinds; all are plain Python in every CPython since 3.10.
_SOURCES = ("argparse", "ast", "datetime", "decimal", "difflib", "inspect", "pickle", "statistics", "tarfile", "typing")


def python_source() -> str:
    """Source code of the running Python's standard library: code, for adapting a model of English.

    Raises `ValueError` where this Python comes without it.
    """
    folder = Path(sysconfig.get_paths()["stdlib"])
    names = {name: folder / f"{name}.py" for name in _SOURCES}
    names["datetime"] = folder / ("_pydatetime.py" if (folder / "_pydatetime.py").exists() else "datetime.py")
    names["decimal"] = folder / "_pydecimal.py"
    try:
        return _printable("\n".join(path.read_text(encoding="utf-8") for path in names.values()))
    except OSError as error:
        raise ValueError(
            f"{error.filename} cannot be read ({error.strerror or error}): this Python comes without the sources of "
            "its standard library, which the claims adapt a model to. Use a Python that has them."
        ) from error


def read_text(path: str | Path) -> str:
    """A UTF-8 text file. Raises `ValueError` where it is missing, unreadable, empty or not text."""
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # the latter for what cannot be a file name
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"The text file {path} cannot be read: {reason}.") from None
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"The file {path} is not UTF-8 text (byte {error.start} does not decode): convert it to UTF-8 first."
        ) from None
    if "\0" in text:
        raise ValueError(f"The file {path} holds zero bytes, so it is binary rather than text.")
    if not text.strip():
        raise ValueError(f"The text file {path} is empty: training needs some text.")
    return text


def _printable(text: str) -> str:
    """Tabs as four spaces, and "?" for each of the few characters outside the 96."""
    known = set(PRINTABLE.characters)
    return "".join(c if c in known else "?" for c in text.expandtabs(4))


# ---- characters that a base does not know -------------------------------------------------------------

# What looks like a character that Unicode's own decomposition (NFKD: é is e and an accent, … three dots) does not take
# apart. A tab is four spaces here, as in the texts that the bases are pretrained on.
_LIKENESS = {
    **dict.fromkeys("‘’‚‛′‹›´", "'"),
    **dict.fromkeys("“”„‟″«»", '"'),
    **dict.fromkeys("‐‒–—―−", "-"),
    **dict.fromkeys("\r\v\f\x85\u2028\u2029", "\n"),
    **{"\t": "    ", "⁄": "/", "×": "x", "•": "*", "·": ".", "ß": "ss", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE"},
    **{"ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "đ": "d", "Đ": "D", "ı": "i"},
}


def replace_unknown(text: str, vocabulary: Vocabulary) -> tuple[str, int]:
    """The text with every character missing from the vocabulary replaced, and how many those were.

    What looks like known characters becomes those: curly quotes straight ones, dashes "-", "é" "e", "…" three dots.
    Accents and other combining marks are dropped; what resembles no known character becomes "?".
    """
    known, counts = set(vocabulary.characters), Counter(text)
    likeness: dict[str, str] = {}
    for character in counts.keys() - known:
        parts = unicodedata.normalize("NFKD", _LIKENESS.get(character, character))
        seen = [part for part in parts if unicodedata.category(part) not in ("Mn", "Me", "Cf")]
        like = "".join(_LIKENESS.get(part, part) for part in seen)
        likeness[character] = like if known.issuperset(like) else "?"
    return text.translate({ord(c): like for c, like in likeness.items()}), sum(
        counts[character] for character in likeness
    )


# ---- prompts -----------------------------------------------------------------------------------------


class TextCodec(Protocol):
    """What turns text into ids and back: a `Vocabulary`, or GPT-2's tokenizer."""

    def __len__(self) -> int: ...

    def encode(self, text: str) -> np.ndarray: ...

    def decode(self, ids: np.ndarray) -> str: ...


def generate_text(
    model: GPT,
    vocabulary: TextCodec,
    prompt: str,
    new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
    stop: str | None = None,
) -> str:
    """The prompt and what the model says next: up to `new_tokens` tokens, or until the text `stop`, or the end token
    of the vocabulary, where it has one (`vocabulary.end`); neither is part of what is returned.

    Other settings as in `generate`. Raises `ValueError` for an empty `stop` too.
    """
    checks.check_stop_text(stop)
    prompt_ids = checks.check_prompt(vocabulary.encode(prompt))
    n, end_id = len(prompt_ids), getattr(vocabulary, "end", None)

    def ended(rows: np.ndarray) -> np.ndarray:
        said = stop is not None and stop in vocabulary.decode(rows[0, n:])
        return np.array([said or rows[0, -1] == end_id])

    (row,) = continue_rows(model, prompt_ids[None], new_tokens, temperature, top_k, [seed], ended)
    text = vocabulary.decode(row[:-1] if len(row) > n and row[-1] == end_id else row)
    end = -1 if stop is None else text.find(stop, len(vocabulary.decode(row[:n])))
    return text if end < 0 else text[:end]
