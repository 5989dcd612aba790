"""Sampling from a model: greedy, by temperature, among the top k. B prompts · n tokens so far · V vocabulary."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import checks
from .autograd import no_grad
from .backend import to_numpy
from .gpt import GPT, Cache
from .nn import evaluating


def generate(
    model: GPT,
    ids: Any,
    new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
    stop: int | Sequence[int] = (),
) -> np.ndarray:
    """The ids (n,) followed by up to `new_tokens` more; or every row of ids (B, n) by its own.

    `temperature` divides the logits; 0 is greedy, the likeliest token each time. `top_k` keeps only the k likeliest.
    `stop` is an id, or several: a row ends with the first of them to be chosen, repeated up to the end of the
    longest row. One prompt draws from `default_rng(seed)`, row i of a batch from `default_rng([seed, i])`.

    Each token is computed alone, thanks to a cache of keys and values; once the context is full, the model reads its
    last `context_length` tokens anew for each. The model is read in evaluation mode. Raises `ValueError` for settings
    out of range, an empty prompt, or logits that are not finite.
    """
    prompt, stops = checks.check_prompt(ids), checks.check_stop(stop)
    rows = np.atleast_2d(prompt)
    seeds = [seed] if prompt.ndim == 1 else [[seed, row] for row in range(len(rows))]
    longer = continue_rows(model, rows, new_tokens, temperature, top_k, seeds, lambda rows: np.isin(rows[:, -1], stops))
    return longer if prompt.ndim == 2 else longer[0]


def continue_rows(
    model: GPT,
    rows: np.ndarray,
    new_tokens: int,
    temperature: float,
    top_k: int | None,
    seeds: Sequence[Any],
    ended: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """(B, n) -> (B, n + up to new_tokens); `ended(rows)` (B,) says which rows are complete."""
    checks.check_sampling(new_tokens, temperature, top_k)
    generators = [np.random.default_rng(seed) for seed in seeds]
    done = np.zeros(len(rows), dtype=bool)
    cache = Cache(model) if isinstance(model, GPT) else None  # a wrapper, such as prompt tuning, has none
    with no_grad(), evaluating():
        for _ in range(new_tokens):
            if cache is not None and rows.shape[1] <= model.reads:
                logits = model(rows[:, cache.length :], cache)  # (B, new, V)
            else:  # every token has moved to another position
                logits = model(rows[:, -model.reads :])
            last = to_numpy(logits.array)[:, -1].astype(np.float64)  # (B, V)
            tokens = rows[:, -1].copy()
            for row in np.flatnonzero(~done):
                tokens[row] = _choose(last[row], generators[row], temperature, top_k)
            rows = np.concatenate([rows, tokens[:, None]], axis=1)
            done |= ended(rows)
            if done.all():
                break
    return rows


def _choose(logits: np.ndarray, rng: np.random.Generator, temperature: float, top_k: int | None) -> int:
    top = checks.check_largest(logits.max())
    if temperature == 0:
        return int(logits.argmax())
    if top_k is not None and top_k < logits.size:
        logits = np.where(logits >= np.partition(logits, -top_k)[-top_k], logits, -np.inf)
    with np.errstate(over="ignore"):  # a tiny temperature leaves only the likeliest
        weights = np.exp((logits - top) / temperature)
    return int(rng.choice(logits.size, p=weights / weights.sum()))
