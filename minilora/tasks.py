"""Tasks whose right answer is known: functions of strings.

A string example is one line, `tag + s + ">" + f(s) + newline`, with s of 4 to 8 letters a to p. The model
reads all of it and is scored on f(s) and the newline only.
"""

from collections.abc import Callable, Sequence

import numpy as np

from .data import PRINTABLE, Batch

LETTERS = "abcdefghijklmnop"
SHORTEST, LONGEST = 4, 8
WIDTH = 2 * LONGEST + 4  # positions the model reads: tag, s, ">", f(s), and newlines up to here
IGNORED = -100  # the target that `cross_entropy` does not count


def _swap_pairs(s: str) -> str:
    return "".join(s[i : i + 2][::-1] for i in range(0, len(s), 2))


def _shift(s: str, by: int) -> str:
    return "".join(LETTERS[(LETTERS.index(c) + by) % len(LETTERS)] for c in s)


# name -> (tag, function); a base is pretrained on PRETRAINING and adapted to one of the others
TASKS: dict[str, tuple[str, Callable[[str], str]]] = {
    "copy": ("0", lambda s: s),
    "reverse": ("1", lambda s: s[::-1]),
    "upper": ("2", str.upper),
    "sort": ("3", lambda s: "".join(sorted(s))),
    "next": ("4", lambda s: _shift(s, 1)),
    "alternate": ("5", lambda s: "".join(c.upper() if i % 2 else c for i, c in enumerate(s))),
    "rotate": ("6", lambda s: s[1:] + s[0]),
    "pairs": ("7", _swap_pairs),
    "revupper": ("8", lambda s: s[::-1].upper()),
    "prev": ("9", lambda s: _shift(s, -1)),
}
PRETRAINING = ("copy", "reverse", "upper", "sort", "next", "alternate", "rotate")
ADAPTATION = ("pairs", "revupper", "prev")


def check_task(name: str) -> None:
    """Raise `ValueError` for a task that does not exist."""
    if name not in TASKS:
        raise ValueError(f"There is no string task {name!r}; there are: {', '.join(TASKS)}.")


def question(name: str, s: str) -> tuple[str, str]:
    """What a model reads when a task asks for f(s), and the right answer: "8badge>" and "EGDAB"."""
    tag, f = TASKS[name]
    return f"{tag}{s}>", f(s)


def string_batch(names: Sequence[str], B: int, rng: np.random.Generator, held_out: bool = False) -> Batch:
    """ids (B, WIDTH) and targets (B, WIDTH) of examples of the tasks named, in equal shares on average.

    A tenth of all strings is held out: with `held_out` only those are drawn, otherwise none of them.
    """
    for name in names:
        check_task(name)
    strings = _strings(B, rng, held_out)
    lines = []
    for s, choice in zip(strings, rng.integers(len(names), size=B).tolist(), strict=True):
        lines.append("".join(question(names[choice], s)).ljust(WIDTH + 1, "\n"))
    answers = np.array([len(s) for s in strings])
    rows = PRINTABLE.encode("".join(lines)).reshape(B, WIDTH + 1)
    targets = rows[:, 1:].copy()
    place = np.arange(WIDTH)
    first = answers[:, None] + 1  # where ">" is read and the first answer letter is to be predicted
    targets[(place < first) | (place > first + answers[:, None])] = IGNORED
    return rows[:, :-1], targets


def _strings(B: int, rng: np.random.Generator, held_out: bool) -> list[str]:
    found: list[str] = []
    while len(found) < B:
        letters = rng.integers(len(LETTERS), size=(2 * B, LONGEST))
        lengths = rng.integers(SHORTEST, LONGEST + 1, size=2 * B)
        # By a rule, not a list: every run agrees on which strings are held out.
        inside = np.arange(LONGEST) < lengths[:, None]
        checksum = (letters * inside * np.arange(1, LONGEST + 1)).sum(axis=1) % 10
        rows = np.flatnonzero((checksum == 0) == held_out)
        # eight strings of one letter, seen as one of eight
        words = np.array(list(LETTERS))[letters[rows]].view(f"U{LONGEST}").ravel()
        found += [word[:length] for word, length in zip(words.tolist(), lengths[rows].tolist(), strict=True)]
    return found[:B]


def exact_match(logits: np.ndarray, targets: np.ndarray) -> float:
    """Share of the examples whose every counted target is the likeliest token: logits (B, T, V), targets (B, T). It is
    the share that greedy decoding answers exactly: up to its first mistake it reads the same tokens."""
    right = (logits.argmax(axis=-1) == targets) | (targets == IGNORED)
    return float(right.all(axis=1).mean())
