"""Sampling from a model: greedy, by temperature, among the top k."""

from __future__ import annotations

from typing import Any

import numpy as np

from .autograd import no_grad
from .backend import to_numpy
from .data import TextCodec
from .gpt import GPT, Cache


def generate(
    model: GPT, ids: Any, new_tokens: int, *, temperature: float = 1.0, top_k: int | None = None, seed: int = 0
) -> np.ndarray:
    """The ids (n,) followed by `new_tokens` more: (n + new_tokens,).

    `temperature` divides the logits; 0 is greedy, the likeliest token each time. `top_k` keeps only the k likeliest.
    A token costs one position, thanks to a cache of keys and values; once the context is full, the model reads its
    last `context_length` tokens anew for each. The model is read in evaluation mode. Raises `ValueError` for settings
    out of range or an empty prompt.
    """
    prompt = to_numpy(ids).ravel()
    if prompt.size == 0:
        raise ValueError("Generating needs a prompt of at least one token.")
    if prompt.dtype.kind not in "iu":
        raise TypeError(f"The prompt's ids must be integers, not {prompt.dtype}.")
    sequence = prompt.tolist()
    if new_tokens < 0:
        raise ValueError(f"new_tokens must be at least 0, not {new_tokens}.")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be a finite number, at least 0 (greedy), not {temperature}.")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, not {top_k}.")
    rng = np.random.default_rng(seed)
    was_training = model.training
    model.eval()
    try:
        with no_grad():
            cache = Cache(model) if isinstance(model, GPT) else None  # what wraps a model has none
            for _ in range(new_tokens):
                if cache is not None and len(sequence) <= model.config.context_length:
                    logits = model(np.array([sequence[cache.length :]]), cache)  # (1, new)
                else:  # every token has moved to another position: nothing remembered is of use
                    logits = model(np.array([sequence[-model.config.context_length :]]))
                sequence.append(_choose(to_numpy(logits.data)[0, -1].astype(np.float64), temperature, top_k, rng))
    finally:
        model.train(was_training)
    return np.array(sequence, dtype=np.int64)


def _choose(logits: np.ndarray, temperature: float, top_k: int | None, rng: np.random.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    if top_k is not None and top_k < logits.size:
        logits = np.where(logits >= np.partition(logits, -top_k)[-top_k], logits, -np.inf)
    weights = np.exp((logits - logits.max()) / temperature)
    return int(rng.choice(logits.size, p=weights / weights.sum()))


def generate_text(model: GPT, vocabulary: TextCodec, prompt: str, new_tokens: int, **settings: Any) -> str:
    """The prompt and what the model says next; settings as in `generate`."""
    return vocabulary.decode(generate(model, vocabulary.encode(prompt), new_tokens, **settings))
