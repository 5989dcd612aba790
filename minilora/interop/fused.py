"""An adapter on q, k and v apart, and the same adapter on GPT-2's one `c_attn`, as PEFT stores it.

Those of q, k, v that have LoRA become one block adapter. For q and v of rank r:

    A = [A_q; A_v]  (2r, D)        B = [[B_q, 0], [0, 0], [0, B_v]]  (3D, 2r)        B A = [B_q A_q; 0; B_v A_v]

A file has one rank, so what stands beside `c_attn` is padded with zeros. The block form computes the same in PEFT;
training it further there is another matter, since PEFT would move the zeros too and so mix q with v.

loralib's `MergedLinear`, and PEFT's up to 0.2, store the same without the zeros: with enable_lora = [True, False, True]
A as above and B = [B_q; B_v] (2D, r).

Letters: D `d_model` · r rank of minilora's adapter · R rank in the file.
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterator
from dataclasses import replace

import numpy as np

from ..checks import target_matches
from ..gpt import GPT
from ..lora import LoRAConfig, linear_sizes, matching_linears
from .gpt2 import FUSED

State = dict[str, np.ndarray]  # "<module>.lora_A" (r, in) and "<module>.lora_B" (out, r) for each adapted module


def fuse(model: GPT, config: LoRAConfig, state: State) -> tuple[LoRAConfig, State]:
    """minilora's adapter -> that of a file: modules by GPT-2's names, one rank R, and α = s R."""
    layout, adapted = _layout(model), _modules(state)
    R = config.r * max(sum(part in adapted for part in parts) for parts in layout.values())
    fused: State = {}
    for module, (out_features, in_features) in fused_sizes(model).items():
        blocks = list(_blocks(layout[module], adapted, config.r, out_features))
        if blocks:
            dtype = state[f"{adapted[0]}.lora_A"].dtype
            A = fused[f"{module}.lora_A"] = np.zeros((R, in_features), dtype)
            B = fused[f"{module}.lora_B"] = np.zeros((out_features, R), dtype)
            for part, rows, block in blocks:
                A[block], B[rows, block] = state[f"{part}.lora_A"], state[f"{part}.lora_B"]
    targets = shortest_targets(_modules(fused), list(layout))
    return replace(config, r=R, alpha=config.scale * R, target_modules=targets, scaling="alpha/r"), fused


def unfuse(model: GPT, config: LoRAConfig, state: State, saved: LoRAConfig | None) -> tuple[LoRAConfig, State]:
    """The adapter of a file, whose shapes fit, -> minilora's: `saved`, where the file says what it was made from.

    A foreign file in block form gives what its blocks hold. In an ordinary one, one A reads for q, k and v together:
    each gets a copy of A and its own rows of B.
    """
    if saved is not None:
        return saved, _split(model, state, matching_linears(model, saved.target_modules), saved.r)
    for count in (1, 2, 3):
        for heads in itertools.combinations(FUSED["attn.c_attn"], count):
            found = _as_blocks(model, config, state, heads)
            if found is not None:
                return found
    own: State = {}
    layout = _layout(model)
    for module in _modules(state):
        parts = layout[module]
        for part, rows in zip(parts, np.split(state[f"{module}.lora_B"], len(parts)), strict=True):
            own[f"{part}.lora_A"], own[f"{part}.lora_B"] = state[f"{module}.lora_A"], rows
    return replace(config, target_modules=_own_targets(model, own)), own


def ungroup(
    model: GPT, config: LoRAConfig, state: State, enable: object
) -> tuple[LoRAConfig, LoRAConfig | None, State]:
    """The adapter of a file with `enable_lora`, with each B whole: its settings, those of minilora's adapter that it
    is block by block (None if it is not), and its arrays. Raises `ValueError` for shapes that do not fit.
    """
    if not isinstance(enable, list) or not all(isinstance(part, bool) for part in enable) or not any(enable):
        raise ValueError(f"its enable_lora is {enable!r}, not a list of true and false.")
    layout, sizes = _layout(model), fused_sizes(model)
    parts = sum(enable)
    R = config.r * parts
    whole: State = {}
    own: list[str] | None = []
    for module in _modules(state):
        A, B = state.get(f"{module}.lora_A"), state.get(f"{module}.lora_B")
        if A is None or B is None or module not in sizes:
            raise ValueError(f"it has no lora_A and lora_B of {module}, or this model no such module.")
        out_features, in_features = sizes[module]
        height = out_features // len(enable)
        if B.ndim == 3 and B.shape[2] == 1:  # PEFT's is the kernel of a convolution
            B = B[:, :, 0]
        groups = R // B.shape[1] if B.ndim == 2 and B.shape[1] else 0
        fits = groups and A.shape == (R, in_features) and B.shape == (height * parts, R / groups)
        if not fits or out_features % len(enable) or len(B) % groups:
            raise ValueError(
                f"{module} has lora_A {A.shape} and lora_B {B.shape}, which is no adapter of r {config.r} with "
                f"enable_lora = {enable} on a matrix of {sizes[module]}."
            )
        rows = np.flatnonzero(np.repeat(enable, height))
        whole[f"{module}.lora_A"] = A
        wide = whole[f"{module}.lora_B"] = np.zeros((out_features, R), B.dtype)
        for block, place, share in zip(*(np.split(a, groups) for a in (B, rows, np.arange(R))), strict=True):
            wide[np.ix_(place, share)] = block
        if own is not None and groups == parts and len(enable) == len(layout[module]):
            own += itertools.compress(layout[module], enable)
        else:
            own = None
    wide_config = replace(config, r=R, alpha=config.scale * R, scaling="alpha/r")
    targets = own and shortest_targets(own, list(linear_sizes(model)))
    return wide_config, replace(config, target_modules=targets) if targets else None, whole


def _as_blocks(model: GPT, config: LoRAConfig, state: State, heads: tuple[str, ...]) -> tuple[LoRAConfig, State] | None:
    """The adapter on these of q, k, v, if it is one: if its blocks, put together again, give the file."""
    layout, modules = _layout(model), _modules(state)
    r, rest = divmod(config.r, len(heads))
    if rest or not any(state[f"{module}.lora_B"].any() for module in modules if len(layout[module]) > 1):
        return None  # a B of zeros would be of every form
    parts = [part for module in modules for part in layout[module] if len(layout[module]) == 1 or part.endswith(heads)]
    own = _split(model, state, parts, r)
    own_config = replace(config, target_modules=_own_targets(model, own))
    if r < config.r:
        own_config = replace(own_config, r=r, alpha=config.scale * r, scaling="alpha/r")
    again = fuse(model, own_config, own)[1]
    same = again.keys() == state.keys() and all(np.array_equal(again[name], state[name]) for name in state)
    return (own_config, own) if same else None


def _split(model: GPT, state: State, adapted: list[str], r: int) -> State:
    """The blocks of rank r that belong to these modules: the inverse of `fuse`."""
    own: State = {}
    layout = _layout(model)
    for module in _modules(state):
        A, B = state[f"{module}.lora_A"], state[f"{module}.lora_B"]
        for part, rows, block in _blocks(layout[module], adapted, r, len(B)):
            own[f"{part}.lora_A"], own[f"{part}.lora_B"] = A[block], B[rows, block]
    return own


def _blocks(parts: tuple[str, ...], adapted: Container[str], r: int, out: int) -> Iterator[tuple[str, slice, slice]]:
    """Each adapted part of a fused module of `out` rows, with its rows of B and its share of the rank."""
    height, number = out // len(parts), 0
    for place, part in enumerate(parts):
        if part in adapted:
            yield part, slice(place * height, (place + 1) * height), slice(number * r, (number + 1) * r)
            number += 1


# ---- names -------------------------------------------------------------------------------------------


def _layout(model: GPT) -> dict[str, tuple[str, ...]]:
    """GPT-2's module -> minilora's that it holds, one below the other."""
    layout = {
        f"transformer.h.{i}.{theirs}": tuple(f"blocks.{i}.{part}" for part in parts)
        for i in range(model.config.n_layers)
        for theirs, parts in FUSED.items()
    }
    return {**layout, "lm_head": ("lm_head",)}


def fused_sizes(model: GPT) -> dict[str, tuple[int, int]]:
    """GPT-2's module -> (out, in)."""
    own = linear_sizes(model)
    return {module: (sum(own[part][0] for part in parts), own[parts[0]][1]) for module, parts in _layout(model).items()}


def _modules(state: State) -> list[str]:
    return list(dict.fromkeys(name.rsplit(".", 1)[0] for name in state))


def _own_targets(model: GPT, own: State) -> tuple[str, ...]:
    return shortest_targets(_modules(own), list(linear_sizes(model)))


def shortest_targets(adapted: list[str], modules: list[str]) -> tuple[str, ...]:
    """For each adapted module the shortest end of its name that means no module but adapted ones: "attn.c_proj"."""
    targets = []
    for name in adapted:
        parts = name.split(".")
        starts = [start for start, part in enumerate(parts) if not part.isdecimal()]
        ends = (".".join(parts[start:]) for start in reversed(starts))
        targets.append(
            next(end for end in ends if all(other in adapted for other in modules if target_matches(other, end)))
        )
    return tuple(dict.fromkeys(targets))
