"""Text as numbers: a vocabulary of characters, a fixed held-out split, seeded batches.

Letters: B batch · T time.
"""

from __future__ import annotations

import importlib
import sysconfig
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

Batch = tuple[np.ndarray, np.ndarray]  # ids (B, T) and targets (B, T)


class TextCodec(Protocol):
    """What turns text into ids and back: a `Vocabulary`, or GPT-2's tokenizer."""

    def __len__(self) -> int: ...

    def encode(self, text: str) -> np.ndarray: ...

    def decode(self, ids: np.ndarray) -> str: ...


class Vocabulary:
    """Characters, each with an id: its place in `characters`. Raises `ValueError` for none or repeated ones."""

    def __init__(self, characters: str) -> None:
        if not characters or len(set(characters)) != len(characters):
            raise ValueError("A vocabulary needs at least one character, and each only once.")
        self.characters = characters
        self._ids = {character: i for i, character in enumerate(characters)}

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> np.ndarray:
        """(len(text),) ids. Raises `ValueError` naming the first character that is not in the vocabulary."""
        try:
            return np.fromiter(map(self._ids.__getitem__, text), dtype=np.int64, count=len(text))
        except KeyError as error:
            place = text.index(error.args[0])
            raise ValueError(
                f"The character {error.args[0]!r} (position {place}) is not among the {len(self)} that the model "
                "knows: remove it, replace it (--replace, or data.replace_unknown), or pretrain a base on text that "
                "has it."
            ) from None

    def decode(self, ids: np.ndarray) -> str:
        """The text of a row of ids. Raises `ValueError` for one that is no character's."""
        row = np.asarray(ids).ravel().tolist()
        for i in row:
            if not 0 <= i < len(self):
                raise ValueError(f"The id {i} is outside the vocabulary of {len(self)}: use 0 to {len(self) - 1}.")
        return "".join(self.characters[i] for i in row)


PRINTABLE = Vocabulary("\n" + "".join(map(chr, range(32, 127))))  # 96 characters: newline and ASCII

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
    """The text with every character that the vocabulary has not replaced, and how many those were.

    What looks like known characters becomes those: curly quotes straight ones, dashes "-", "é" "e", "…" three dots.
    Accents and marks of their own that cannot be seen alone go; what is like nothing becomes "?".
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


# ---- text --------------------------------------------------------------------------------------------


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
    """Source code of the standard library of the Python that runs: code, for adapting a model of English.

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
    except (OSError, ValueError) as error:  # the latter for what can be no file's name
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


# ---- batches -----------------------------------------------------------------------------------------


def split(ids: np.ndarray, context_length: int, block: int = 4096, every: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """(training ids, held-out ids): every tenth block is held out, and never trained on.

    A short text is cut into smaller blocks. Raises `ValueError` where no held-out block could fill one
    context and its next character.
    """
    block = min(block, len(ids) // every)
    if block <= context_length:
        raise ValueError(
            f"The text has {len(ids)} tokens; a context of {context_length} needs at least "
            f"{every * (context_length + 1)}, since every {every}th block is held out: "
            "use a longer text or a shorter context."
        )
    held_out = np.arange(len(ids)) // block % every == every - 1
    return ids[~held_out], ids[held_out]


def windows(ids: np.ndarray, B: int, T: int, rng: np.random.Generator) -> Batch:
    """B random stretches of T characters (B, T), and the character that follows each (B, T)."""
    starts = rng.integers(0, len(ids) - T, B)
    stretches = ids[starts[:, None] + np.arange(T + 1)]  # (B, T + 1)
    return stretches[:, :-1], stretches[:, 1:]


def seeded(draw: Callable[[np.random.Generator], Batch], seed: int) -> Callable[[int], Batch]:
    """step -> batch, each step with a generator of its own: a resumed run needs no sampler state."""
    return lambda step: draw(np.random.default_rng([seed, step]))


def fixed(draw: Callable[[np.random.Generator], Batch], count: int, seed: int = 2**31) -> list[Batch]:
    """The same `count` batches every time, for evaluation."""
    return [draw(np.random.default_rng([seed, i])) for i in range(count)]
