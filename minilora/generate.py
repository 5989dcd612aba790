"""Sampling from a model: greedy, by temperature, among the top k."""

from __future__ import annotations

from typing import Any

import numpy as np

from .autograd import no_grad
from .backend import to_numpy
from .data import Vocabulary
from .gpt import GPT


def generate(
    model: GPT, ids: Any, new_tokens: int, *, temperature: float = 1.0, top_k: int | None = None, seed: int = 0
) -> np.ndarray:
    """The ids (n,) followed by `new_tokens` more: (n + new_tokens,).

    `temperature` divides the logits; 0 is greedy, the likeliest token each time. `top_k` keeps only the
    k likeliest. Once the context is full, the model reads its last `context_length` tokens. The model is
    read in evaluation mode. Raises `ValueError` for settings out of range or an empty prompt.
    """
    prompt = np.asarray(ids).ravel()
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
            for _ in range(new_tokens):
                recent = np.array([sequence[-model.config.context_length :]])  # (1, T)
                logits = to_numpy(model(recent).data)[0, -1].astype(np.float64)  # (V,)
                sequence.append(_choose(logits, temperature, top_k, rng))
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


def generate_text(model: GPT, vocabulary: Vocabulary, prompt: str, new_characters: int, **settings: Any) -> str:
    """The prompt and what the model says next; settings as in `generate`."""
    return vocabulary.decode(generate(model, vocabulary.encode(prompt), new_characters, **settings))
