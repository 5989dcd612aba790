"""A decoder-only transformer in the style of GPT-2: pre-LN blocks, learned positions, biased projections.

Letters: B batch · T time · D `d_model` · H heads · V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from . import checks
from . import functional as F
from .autograd import Tensor
from .nn import Embedding, LayerNorm, Linear, Module, Rng


@dataclass(frozen=True)
class GPTConfig:
    """The sizes of a GPT. Raises `TypeError` or `ValueError` for impossible sizes."""

    vocab_size: int
    context_length: int
    d_model: int
    n_layers: int
    n_heads: int
    tied_head: bool = False  # the head's weight is the token embedding's

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context_length", "d_model", "n_layers", "n_heads"):
            value = checks.check_int(name, getattr(self, name), low=1)
            object.__setattr__(self, name, value)  # a NumPy integer could not be saved
        checks.check_heads(self.d_model, self.n_heads, self.tied_head)


class Attention(Module):
    """Causal self-attention with separate query, key, value and output projections, (D, D) each."""

    def __init__(self, config: GPTConfig, rng: Rng, dtype: Any) -> None:
        D = config.d_model
        self.n_heads = config.n_heads
        four = [Linear(D, D, rng=rng, dtype=dtype) for _ in range(4)]
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = four

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:  # the past: keys and values so far, see the end
        q, k, v = self.split(self.q_proj(x)), self.split(self.k_proj(x)), self.split(self.v_proj(x))
        if past is not None:
            k, v = past.extend(k, v)
        y = F.causal_attention(q, k, v).transpose(0, 2, 1, 3).reshape(*x.shape)  # (B, H, T, D/H) -> (B, T, D)
        return self.o_proj(y)

    def split(self, y: Tensor) -> Tensor:
        """Into heads: (B, T, D) -> (B, H, T, D/H)."""
        B, T, D = y.shape
        return y.reshape(B, T, self.n_heads, D // self.n_heads).transpose(0, 2, 1, 3)


class MLP(Module):
    """D -> 4D -> D with GELU between."""

    def __init__(self, config: GPTConfig, rng: Rng, dtype: Any) -> None:
        D = config.d_model
        self.fc_in = Linear(D, 4 * D, rng=rng, dtype=dtype)
        self.fc_out = Linear(4 * D, D, rng=rng, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc_out(F.gelu(self.fc_in(x)))


class Block(Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: GPTConfig, rng: Rng, dtype: Any) -> None:
        self.ln_1 = LayerNorm(config.d_model, dtype=dtype)
        self.attn = Attention(config, rng, dtype)
        self.ln_2 = LayerNorm(config.d_model, dtype=dtype)
        self.mlp = MLP(config, rng, dtype)

    def forward(self, x: Tensor, *past: Past) -> Tensor:
        x = x + self.attn(self.ln_1(x), *past)
        return x + self.mlp(self.ln_2(x))


class GPT(Module):
    """`model(ids)` -> logits (B, T, V) for integer ids (B, T), T at most `context_length`; `model(ids, cache)` reads
    on after the tokens that are in the cache.

    Weights start as N(0, 0.02²), biases as 0, LayerNorm as 1 and 0; a model starts in training mode. With `seed=None`
    every weight matrix is zero, for a model about to be loaded.
    """

    def __init__(self, config: GPTConfig, seed: int | None = 0, dtype: str = "float32") -> None:
        checks.check_dtype(dtype)
        rng = None if seed is None else np.random.default_rng(seed)
        self.config = config
        self.reads = config.context_length  # tokens that fit; a prefix (baselines.py) takes some of the context
        D = config.d_model
        self.token_embedding = Embedding(config.vocab_size, D, rng=rng, dtype=dtype)
        self.position_embedding = Embedding(config.context_length, D, rng=rng, dtype=dtype)
        self.blocks = [Block(config, rng, dtype) for _ in range(config.n_layers)]
        self.ln_f = LayerNorm(D, dtype=dtype)
        self.lm_head = Linear(D, config.vocab_size, bias=False, rng=None if config.tied_head else rng, dtype=dtype)
        if config.tied_head:
            self.lm_head.weight = self.token_embedding.weight

    def forward(self, ids: Any, cache: Cache | None = None) -> Tensor:
        """Raises `TypeError` for ids that are not integers, `ValueError` for a wrong shape or an unknown id."""
        if cache is None:
            return self.read(self.embed(ids))
        x = self.embed(ids, start=cache.length)
        logits = self.read(x, cache.blocks)
        cache.length += x.shape[1]
        return logits

    def embed(self, ids: Any, start: int = 0) -> Tensor:
        """Token and position together, from position `start` on: ids (B, T) -> (B, T, D)."""
        ids = checks.check_sequence(ids, start, self.config.context_length)
        positions = self.position_embedding.weight[start : start + ids.shape[1]]
        return self.token_embedding(ids) + positions  # (B, T, D) + (T, D) -> (B, T, D)

    def read(self, x: Tensor, pasts: list[Past] | None = None) -> Tensor:
        """All blocks, then the head: (B, T, D) -> logits (B, T, V). `pasts` are what each block remembers."""
        for number, block in enumerate(self.blocks):
            x = block(x) if pasts is None else block(x, pasts[number])
        return self.lm_head(self.ln_f(x))  # (B, T, D) -> (B, T, V)


# ---- reading on from a cache -----------------------------------------------------------------------------


class Past:
    """The keys and values of one attention for the positions read so far, (B, H, S, D/H) each."""

    pair: tuple[Tensor, Tensor] | None = None
    length = 0  # S

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add those of T more positions: (B, H, T, D/H) -> (B, H, S + T, D/H).

        Raises `ValueError` where they want gradients: the cache outlives the graph of a call.
        """
        checks.check_frozen(k, v)
        if self.pair is not None:
            k, v = (F.concatenate([old, new], axis=2) for old, new in zip(self.pair, (k, v), strict=True))
        self.pair, self.length = (k, v), k.shape[2]
        return k, v


class Cache:
    """What a model remembers of the `length` positions it has read, so that reading on costs only the new ones."""

    def __init__(self, model: GPT) -> None:
        self.length, self.blocks = 0, [Past() for _ in model.blocks]
