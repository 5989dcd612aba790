"""Llama (Touvron et al. 2023): RMSNorm, rotary positions, grouped-query attention and SwiGLU, where GPT has LayerNorm,
learned positions, as many keys as queries, and GELU. No biases. Modules have Hugging Face's names, so adapters fit.

Letters: B batch · T time · D `d_model` · H heads · K heads of keys and values · d = D/H · F `d_ff` · V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from . import checks
from . import functional as F
from .autograd import Array, Tensor, as_tensor, operation, record
from .backend import asarray, xp
from .gpt import GPT, Past
from .nn import Embedding, Linear, Module, Parameter, Rng

# ---- the operations that GPT has not -----------------------------------------------------------------


@operation
def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    """y = x̂ w with x̂ = x/√(mean(x²) + ε), over the last axis (Zhang & Sennrich 2019, eq. 4); weight (D,).

    dx = (h - x̂ mean(h x̂))/√(mean(x²) + ε) with h = g w: but for ε, a stretch of x changes no x̂. dw = Σ g x̂ over all
    rows. Raises `ValueError` where the shapes do not fit.
    """
    x = as_tensor(x)
    checks.check_rms_norm(x, weight)
    a, w = x.array, weight.array
    r_rms = 1 / xp.sqrt((a**2).mean(axis=-1, keepdims=True) + eps)
    x_hat = a * r_rms

    def dx(g: Array) -> Array:
        h = g * w
        return (h - x_hat * (h * x_hat).mean(axis=-1, keepdims=True)) * r_rms

    return record(x_hat * w, (x, dx), (weight, lambda g: g * x_hat))


def rotary(x: Tensor, start: int = 0, base: float = 10_000.0) -> Tensor:
    """Turn the pair (x_i, x_{i+d/2}) at position t by the angle t · base^(-2i/d); a gradient is turned back.

    A turned q times a turned k depends on their positions by the difference alone (Su et al. 2021, §3.2.2; pairs of
    one half and the other are Llama's). x (..., T, d) at positions start, start + 1, ... Raises `ValueError` for odd d.
    """
    x = as_tensor(x)
    checks.check_rotary(x)
    T, d = x.shape[-2:]
    angles = np.arange(start, start + T)[:, None] * base ** (-np.arange(0, d, 2) / d)  # (T, d/2)
    cos, sin = asarray(np.cos(angles), dtype=x.dtype), asarray(np.sin(angles), dtype=x.dtype)

    def turn(v: Array, sin: Array) -> Array:
        a, b = v[..., : d // 2], v[..., d // 2 :]
        return xp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    return record(turn(x.array, sin), (x, lambda g: turn(g, -sin)))


@operation
def swiglu(a: Tensor, b: Tensor) -> Tensor:
    """y = a σ(a) b with σ(a) = 1/(1 + exp(-a)) (Shazeer 2020, eq. 5); da = g b σ(1 + a(1 - σ)) and db = g a σ.

    a and b have one shape; raises `ValueError` where they have two.
    """
    a, b = as_tensor(a), as_tensor(b)
    checks.check_same_shape("swiglu", a, b)
    x, y = a.array, b.array
    s = 0.5 * (1 + xp.tanh(0.5 * x))  # σ, without the exp that overflows
    return record(x * s * y, (a, lambda g: g * y * s * (1 + x * (1 - s))), (b, lambda g: g * x * s))


def repeat_heads(x: Tensor, n: int) -> Tensor:
    """Every head n times, side by side: (B, K, S, d) -> (B, K n, S, d). The gradients of its copies add up."""
    B, K, S, d = x.shape
    return record(xp.repeat(x.array, n, axis=1), (x, lambda g: g.reshape(B, K, n, S, d).sum(axis=2)))


# ---- the model ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LlamaConfig:
    """The sizes of a Llama. Raises `TypeError` or `ValueError` for impossible sizes.

    n_kv_heads: heads of keys and values, each for n_heads/n_kv_heads heads of queries. d_ff: the width within the MLP.
    rope_base: of the rotary positions' angles. eps: RMSNorm's ε. tied_head: the head's weight is the embedding's.
    """

    vocab_size: int
    context_length: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_ff: int
    rope_base: float = 10_000.0
    eps: float = 1e-5
    tied_head: bool = False

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context_length", "d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff"):
            value = checks.check_int(name, getattr(self, name), low=1)
            object.__setattr__(self, name, value)  # a NumPy integer could not be saved
        for name in ("rope_base", "eps"):
            checks.check_positive(name, getattr(self, name), required=True)
            object.__setattr__(self, name, float(getattr(self, name)))
        checks.check_heads(self.d_model, self.n_heads, self.tied_head)
        checks.check_grouped_heads(self.d_model, self.n_heads, self.n_kv_heads)


class RMSNorm(Module):
    """Scale the last axis to a mean square of 1, then by weight (D,)."""

    def __init__(self, d: int, *, eps: float = 1e-5, dtype: Any = "float32") -> None:
        self.weight = Parameter(xp.ones(d, dtype=dtype))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class Attention(Module):
    """Causal self-attention with H heads of queries and K of keys and values: H/K heads of queries look at each head of
    keys (Ainslie et al. 2023). What the cache keeps is K/H as large."""

    def __init__(self, config: LlamaConfig, rng: Rng, dtype: Any) -> None:
        D, self.d = config.d_model, config.d_model // config.n_heads
        self.base, self.group = config.rope_base, config.n_heads // config.n_kv_heads
        kv = config.n_kv_heads * self.d
        self.q_proj = Linear(D, D, bias=False, rng=rng, dtype=dtype)
        self.k_proj = Linear(D, kv, bias=False, rng=rng, dtype=dtype)
        self.v_proj = Linear(D, kv, bias=False, rng=rng, dtype=dtype)
        self.o_proj = Linear(D, D, bias=False, rng=rng, dtype=dtype)

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        start = 0 if past is None else past.length
        q, k, v = self.split(self.q_proj(x)), self.split(self.k_proj(x)), self.split(self.v_proj(x))
        q, k = rotary(q, start, self.base), rotary(k, start, self.base)
        if past is not None:
            k, v = past.extend(k, v)
        k, v = repeat_heads(k, self.group), repeat_heads(v, self.group)  # (B, K, S, d) -> (B, H, S, d)
        y = F.causal_attention(q, k, v).transpose(0, 2, 1, 3).reshape(*x.shape)  # (B, H, T, d) -> (B, T, D)
        return self.o_proj(y)

    def split(self, y: Tensor) -> Tensor:
        """Into heads: (B, T, H d) -> (B, H, T, d), or K of them."""
        B, T, _ = y.shape
        return y.reshape(B, T, -1, self.d).transpose(0, 2, 1, 3)


class MLP(Module):
    """D -> F -> D: down(silu(gate(x)) · up(x))."""

    def __init__(self, config: LlamaConfig, rng: Rng, dtype: Any) -> None:
        D = config.d_model
        self.gate_proj = Linear(D, config.d_ff, bias=False, rng=rng, dtype=dtype)
        self.up_proj = Linear(D, config.d_ff, bias=False, rng=rng, dtype=dtype)
        self.down_proj = Linear(config.d_ff, D, bias=False, rng=rng, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


class Block(Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: LlamaConfig, rng: Rng, dtype: Any) -> None:
        self.input_layernorm = RMSNorm(config.d_model, eps=config.eps, dtype=dtype)
        self.self_attn = Attention(config, rng, dtype)
        self.post_attention_layernorm = RMSNorm(config.d_model, eps=config.eps, dtype=dtype)
        self.mlp = MLP(config, rng, dtype)

    def forward(self, x: Tensor, *past: Past) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), *past)
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(Module):
    """All but the head; a module of its own for its name alone ("model.layers.0")."""

    def __init__(self, config: LlamaConfig, rng: Rng, dtype: Any) -> None:
        self.embed_tokens = Embedding(config.vocab_size, config.d_model, rng=rng, dtype=dtype)
        self.layers = [Block(config, rng, dtype) for _ in range(config.n_layers)]
        self.norm = RMSNorm(config.d_model, eps=config.eps, dtype=dtype)


class Llama(GPT):
    """`model(ids)` -> logits (B, T, V), read as a GPT reads, with or without a cache; positions are angles here, so no
    array holds them.

    Weights start as N(0, 0.02²), norms as 1. With `seed=None` every weight matrix is zero, for a model about to be
    loaded.
    """

    def __init__(self, config: LlamaConfig, seed: int | None = 0, dtype: str = "float32") -> None:
        checks.check_dtype(dtype)
        rng = None if seed is None else np.random.default_rng(seed)
        self.config: Any = config
        self.reads = config.context_length
        self.model = body = Body(config, rng, dtype)
        names: dict[str, Any] = {"token_embedding": body.embed_tokens, "blocks": body.layers, "ln_f": body.norm}
        vars(self).update(names)  # GPT's, of the same parts
        D, V = config.d_model, config.vocab_size
        self.lm_head = Linear(D, V, bias=False, rng=None if config.tied_head else rng, dtype=dtype)
        if config.tied_head:
            self.lm_head.weight = body.embed_tokens.weight

    def embed(self, ids: Any, start: int = 0) -> Tensor:
        """ids (B, T) -> (B, T, D). Raises `ValueError` where they do not fit into the context from `start` on."""
        return self.token_embedding(checks.check_sequence(ids, start, self.config.context_length))
