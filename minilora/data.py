"""Text as numbers: a vocabulary of characters, a fixed held-out split, seeded batches. B batch · T time."""

from collections.abc import Callable

import numpy as np

from . import checks

Batch = tuple[np.ndarray, np.ndarray]  # ids (B, T) and targets (B, T)


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
            raise checks.unknown_character(error.args[0], text, len(self)) from None

    def decode(self, ids: np.ndarray) -> str:
        """The text of a row of ids. Raises `ValueError` for one that stands for no character."""
        row = np.asarray(ids).ravel()
        checks.check_range(row, len(self), "id")
        return "".join(self.characters[i] for i in row.tolist())


PRINTABLE = Vocabulary("\n" + "".join(map(chr, range(32, 127))))  # 96 characters: newline and ASCII


def split(ids: np.ndarray, context_length: int, chunk: int = 4096, every: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """(training ids, held-out ids): every tenth chunk (`every`) is held out, and never trained on.

    A short text is cut into smaller chunks. Raises `ValueError` where a chunk would not hold one
    context and the character after it.
    """
    chunk = min(chunk, len(ids) // every)
    checks.check_text(len(ids), context_length, chunk, every)
    held_out = np.arange(len(ids)) // chunk % every == every - 1
    return ids[~held_out], ids[held_out]


def windows(ids: np.ndarray, B: int, T: int, rng: np.random.Generator) -> Batch:
    """B random stretches of T characters (B, T), and the same stretches one character later (B, T)."""
    starts = rng.integers(0, len(ids) - T, B)
    stretches = ids[starts[:, None] + np.arange(T + 1)]  # (B, T + 1)
    return stretches[:, :-1], stretches[:, 1:]


def seeded(sample: Callable[[np.random.Generator], Batch], seed: int) -> Callable[[int], Batch]:
    """step -> batch, each step with a generator of its own: a resumed run needs no sampler state."""
    return lambda step: sample(np.random.default_rng([seed, step]))


def fixed(sample: Callable[[np.random.Generator], Batch], count: int, seed: int = 2**31) -> list[Batch]:
    """The same `count` batches every time, for evaluation."""
    return [sample(np.random.default_rng([seed, i])) for i in range(count)]
