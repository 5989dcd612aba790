"""Every refusal of the core, in a sentence: what was given, what is allowed, what to do.

The files that a reader reads first call these before they compute anything, and so keep to their formulas. Also here:
the guard of the tape: an array that a rule has kept must be the same when the rule is used.
"""

from __future__ import annotations

import difflib
import math
import sys
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .backend import to_numpy, xp

# ---- tensors -----------------------------------------------------------------------------------------


def check_numbers(data: Any, copy: bool = False) -> Any:
    """Real numbers of any kind as an array of the backend, Python's as float32; with `copy`, one that no one else
    holds. Raises `TypeError` for anything else."""
    if isinstance(data, Holder):
        raise TypeError("This is a Tensor already; use it as it is, or its detach().")
    array = data if isinstance(data, xp.ndarray) else np.asarray(data)
    if array.dtype.kind not in "fiub":
        what = "real numbers" if array.dtype.kind == "c" else "numbers: an array, or (nested) Python numbers"
        raise TypeError(f"A Tensor holds {what}, not {type(data).__name__} of dtype {array.dtype}.")
    if not isinstance(data, (np.ndarray, np.generic, xp.ndarray)):
        return xp.asarray(array.astype(np.float32))
    return xp.array(array) if copy else xp.asarray(array)


def host_index(index: Any) -> Any:
    """An index with its arrays on the CPU: there NumPy checks them, where a GPU would wrap what is outside."""
    if isinstance(index, tuple):
        return tuple(map(host_index, index))
    index = getattr(index, "array", index)
    return to_numpy(index) if isinstance(index, (list, np.ndarray, xp.ndarray)) else index


class Holder:
    """The part of a Tensor that computes nothing: the array it holds, its gradient, and who has read it."""

    __slots__ = ("_node", "_readers", "_requires_grad", "array", "grad")

    def _take(self, array: Any, requires_grad: bool) -> None:
        """Be a leaf that holds this very array."""
        self.array = array
        self.grad: Any = None
        self._node: Any = None  # how it was made
        self._readers = Readers()
        self._requires_grad = False
        self.requires_grad = requires_grad

    def keep(self) -> Callable[[], Any]:
        """What a rule keeps in place of the array: it gives the array of now. (One that stays packed makes it anew.)"""
        array = self.array
        return lambda: array

    @property
    def data(self) -> Any:
        """The array itself. Assigning needs the same shape and dtype; writing into it is allowed, before the forward
        pass or after the backward: one that you took before the forward pass and write into before `backward` would
        go unnoticed."""
        if self._readers:
            self._readers.hand_out(self.array)
        return self.array

    @data.setter
    def data(self, array: Any) -> None:
        if not isinstance(array, xp.ndarray):
            raise TypeError(f"The data takes an array like the one it replaces, not {type(array).__name__}.")
        if array.shape != self.array.shape or array.dtype != self.array.dtype:
            raise ValueError(
                f"The data has shape {self.array.shape} and dtype {self.array.dtype}; "
                f"it cannot be replaced by shape {array.shape} and dtype {array.dtype}."
            )
        if array is not self.array:
            self.array, self._readers = array, Readers()  # no graph has read this one

    @property
    def requires_grad(self) -> bool:
        """Whether `backward` computes a gradient for this tensor, or through it."""
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if value and self.array.dtype.kind != "f":
            raise TypeError(f"Only floats may require gradients; this tensor holds {self.array.dtype}.")
        if self._node is not None:
            raise ValueError("Setting requires_grad belongs to leaves; this tensor is a result: detach() it first.")
        self._requires_grad = bool(value)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> Any:
        return self.array.dtype

    @property
    def ndim(self) -> int:
        return self.array.ndim

    @property
    def size(self) -> int:
        return self.array.size

    def __len__(self) -> int:
        return len(self.array)

    def __repr__(self) -> str:
        grad = ", requires_grad=True" if self._requires_grad else ""
        return f"Tensor({to_numpy(self.array)}, dtype={self.dtype}{grad})"

    def item(self) -> float:
        """The one number of a tensor of size 1."""
        if self.size != 1:
            raise ValueError(f"item() needs exactly one number; this tensor has shape {self.shape}.")
        return self.array.item()

    def numpy(self) -> np.ndarray:
        """A NumPy copy, which later steps never change."""
        return to_numpy(self.array).copy()


def check_loss(tensor: Any) -> None:
    """Raise `ValueError` where `backward` cannot start."""
    if tensor.size != 1:
        raise ValueError(
            f"backward() starts from one number; this tensor has shape {tensor.shape}: "
            "reduce it first with .sum() or .mean()."
        )
    if not tensor.requires_grad:
        raise ValueError(
            "backward() found nothing that requires a gradient: pass requires_grad=True to a Tensor, "
            "and compute outside no_grad()."
        )


def steps_of(node: Any) -> Any:
    """What a node still has to pass on; nothing for a leaf. Raises `ValueError` where it was walked before."""
    steps = getattr(node, "steps", ())
    if steps is None:
        raise ValueError(
            "This graph was already walked by backward() and its arrays were freed: compute the loss "
            "again, or call backward(retain_graph=True) the first time."
        )
    return steps


def check_broadcast(wide: tuple[int, ...], narrow: tuple[int, ...]) -> None:
    """Raise `ValueError` where NumPy does not repeat an array of the second shape to get one of the first."""
    ends = zip(wide[::-1], narrow[::-1], strict=False)
    if len(narrow) > len(wide) or any(n not in (1, w) for w, n in ends):
        raise ValueError(
            f"A rule gave a gradient of shape {wide} for an input of shape {narrow}: it must have the shape of the "
            "input, or of what that is broadcast to."
        )


def check_exponent(exponent: Any) -> None:
    if not isinstance(exponent, (int, float, np.integer, np.floating)):
        raise TypeError(f"A tensor is raised to a Python number, not to {type(exponent).__name__}.")


def check_product(a: Any, b: Any) -> None:
    if a.ndim == 0 or b.ndim == 0:
        raise ValueError("@ needs at least one axis on both sides; use * to multiply by a number.")


def check_mean(tensor: Any) -> None:
    if tensor.size == 0:
        raise ValueError(f"The mean of no numbers is not defined; this tensor has shape {tensor.shape}.")


# ---- what a rule has kept ----------------------------------------------------------------------------
#
# Whoever takes `tensor.data` may write into it, and an array that a rule still needs would then give a gradient
# other than that of the loss computed. So `data` notes, for the nodes that read the array, what it held, and `backward`
# refuses to start where that has changed.


class Readers(list):
    """Weak references to the nodes whose rules may have kept an array."""

    __slots__ = ()

    def __reduce__(self) -> Any:
        return Readers, ()  # a copy of a tensor has its own

    def add(self, reader: weakref.ref[Any]) -> None:
        count = len(self)
        if count >= 16 and count & (count - 1) == 0:  # at each power of two, so that forgetting costs little
            self[:] = [r for r in self if _pending(r)]
        self.append(reader)

    def hand_out(self, array: Any) -> None:
        """Let every node that is still to be walked remember what the array, or all that it is a view of, holds now."""
        nodes = [node for reader in self if (node := _pending(reader))]
        if not nodes:
            return self.clear()
        array = owner(array)  # which other tensors may see through views of their own
        pair = None
        for node in nodes:
            if not any(known() is array for known, _ in node.handed_out):
                pair = pair or (weakref.ref(array), array.copy())
                node.handed_out.append(pair)


def owner(array: Any) -> Any:
    """The array whose memory this one is, or looks at."""
    while isinstance(array.base, xp.ndarray):
        array = array.base
    return array


def _pending(reader: weakref.ref[Any]) -> Any:
    """The node, if it is still to be walked."""
    node = reader()
    return None if node is None or node.steps is None else node


def check_unchanged(nodes: Iterable[Any]) -> None:
    """Raise `ValueError` where an array that one of these operations read has been written into since."""
    seen = {id(pair): pair for node in nodes for pair in getattr(node, "handed_out", ())}
    for reference, copy in seen.values():
        array = reference()
        if array is not None and not to_numpy(xp.array_equal(array, copy, equal_nan=True)):
            raise ValueError(
                f"The data of a tensor of shape {array.shape} was changed in place between the forward pass and "
                "backward(), so the gradient would be that of neither: change it before or after, or assign a new "
                "array (tensor.data = ...), which leaves the one of this graph alone."
            )


# ---- operations --------------------------------------------------------------------------------------


def check_probability(p: float) -> None:
    if not 0 <= p < 1:
        raise ValueError(f"The dropout probability must be at least 0 and less than 1, not {p}.")


def check_linear(x: Any, weight: Any) -> None:
    if weight.ndim != 2 or x.ndim == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"linear() needs x (..., in) and weight (out, in); these are {x.shape} and {weight.shape}.")


def check_layer_norm(x: Any, weight: Any, bias: Any) -> None:
    D = x.shape[-1] if x.ndim else 0
    if weight.shape != (D,) or bias.shape != (D,):
        raise ValueError(
            f"layer_norm() needs x (..., D), weight (D,) and bias (D,); "
            f"these are {x.shape}, {weight.shape} and {bias.shape}."
        )


def check_rms_norm(x: Any, weight: Any) -> None:
    if weight.shape != x.shape[-1:] or x.ndim == 0:
        raise ValueError(f"rms_norm of {x.shape} needs a weight of shape {x.shape[-1:]}, not {weight.shape}.")


def check_rotary(x: Any) -> None:
    if x.ndim < 2 or x.shape[-1] % 2:
        raise ValueError(f"rotary takes (..., T, d) with d even, since it turns pairs; this has shape {x.shape}.")


def check_same_shape(what: str, a: Any, b: Any) -> None:
    if a.shape != b.shape:
        raise ValueError(f"{what} takes two arrays of one shape, not {a.shape} and {b.shape}.")


def check_attention(q: Any, k: Any, v: Any) -> None:
    if q.ndim != 4 or k.shape != v.shape or k.shape[:2] + k.shape[3:] != q.shape[:2] + q.shape[3:]:
        raise ValueError(
            f"causal_attention() needs q (B, H, T, D/H) and k, v (B, H, S, D/H); "
            f"these are {q.shape}, {k.shape} and {v.shape}."
        )
    T, S = q.shape[2], k.shape[2]
    if S < T:
        raise ValueError(f"Each of the {T} queries needs a key at its own position; there are only {S} keys.")


def check_ids(ids: Any, count: int) -> np.ndarray:
    """The ids on the CPU, in an array that nobody else writes into: a GPU would wrap those outside silently."""
    host = _integers(ids, "ids")
    check_range(host, count, "id")
    return host.copy()


def check_targets(targets: Any, shape: tuple[int, ...], ignore_index: int, reduction: str) -> tuple[np.ndarray, Any]:
    """The targets (N,) of logits of that shape, on the CPU, and which of them count (N,)."""
    if reduction not in ("mean", "sum"):
        raise ValueError(f'reduction must be "mean" or "sum", not {reduction!r}.')
    host = _integers(targets, "targets")
    if host.shape != shape[:-1]:
        raise ValueError(f"Targets of shape {host.shape} do not fit logits of shape {shape}.")
    host = host.flatten()
    counted = host != ignore_index
    if reduction == "mean" and not counted.any():
        raise ValueError(f"The loss has no target to average over: all {host.size} are ignored ({ignore_index}).")
    check_range(host[counted], shape[-1], "target")
    return host, counted


def _integers(values: Any, name: str) -> np.ndarray:
    host = to_numpy(getattr(values, "array", values))
    if host.dtype.kind not in "iu":
        raise TypeError(f"The {name} must be integers, not {host.dtype}.")
    return host


def check_range(ids: np.ndarray, count: int, name: str) -> None:
    """Raise `ValueError` for the first that is no id of a vocabulary of `count`."""
    if ids.size and (ids.min() < 0 or ids.max() >= count):
        wrong = ids[(ids < 0) | (ids >= count)][0]
        raise ValueError(f"The {name} {wrong} is outside the vocabulary of {count}: use 0 to {count - 1}.")


# ---- modules -----------------------------------------------------------------------------------------


def check_weights(state: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raise `ValueError` unless names and shapes of the weights are exactly those of a module's parameters."""
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or extra:
        raise ValueError(
            "The weights do not belong to this model: "
            + "; ".join(
                f"{what} {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")
                for what, names in (("it lacks", missing), ("it does not know", extra))
                if names
            )
            + "."
        )
    for name, parameter in own.items():
        given = to_numpy(state[name])
        if given.shape != parameter.shape:
            raise ValueError(f"{name} has shape {parameter.shape}; the weights given have {given.shape}.")
        if given.dtype.kind != "f":
            raise ValueError(f"{name} holds floats; the weights given are of kind {given.dtype.kind!r}.")


# ---- a model's sizes and what it reads ---------------------------------------------------------------


def check_int(name: str, value: Any, low: int) -> int:
    """The number as Python's. Raises `TypeError` or `ValueError`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be a whole number, not {value!r}.")
    if value < low:
        raise ValueError(f"{name} must be at least {low}, not {value}.")
    return int(value)


def check_dtype(dtype: Any) -> None:
    if str(dtype) not in ("float32", "float64"):
        raise ValueError(f'dtype must be "float32" or "float64", not {dtype!r}.')


def check_heads(d_model: int, n_heads: int, tied_head: Any) -> None:
    if not isinstance(tied_head, bool):
        raise TypeError(f"tied_head must be True or False, not {tied_head!r}.")
    if d_model % n_heads:
        raise ValueError(
            f"d_model must be divisible by n_heads, so that every head gets as many dimensions; "
            f"{d_model} is not divisible by {n_heads}."
        )


def check_grouped_heads(d_model: int, n_heads: int, n_kv_heads: int) -> None:
    if n_heads % n_kv_heads:
        raise ValueError(
            "n_heads must be divisible by n_kv_heads, so that every key serves as many queries; "
            f"{n_heads} is not divisible by {n_kv_heads}."
        )
    if d_model // n_heads % 2:
        raise ValueError(
            f"d_model/n_heads must be even, since rotary positions turn pairs; {d_model}/{n_heads} is odd."
        )


def check_sequence(ids: Any, start: int, limit: int) -> np.ndarray:
    """The ids (B, T) on the CPU. Raises `ValueError` where they do not fit into the context from `start` on."""
    ids = to_numpy(getattr(ids, "array", ids))
    if ids.ndim != 2 or ids.size == 0:
        raise ValueError(f"The model reads ids of shape (B, T), both at least 1; these have shape {ids.shape}.")
    end = start + ids.shape[1]
    if end > limit:
        raise ValueError(f"The sequence has {end} positions; the context holds at most {limit}: shorten it.")
    return ids


def check_frozen(*tensors: Any) -> None:
    """Raise `ValueError` for keys and values that want gradients, which a cache would not pass on."""
    if any(tensor.requires_grad for tensor in tensors):
        raise ValueError("Reading on from a cache computes no gradients: do it within no_grad().")


def check_prompt(ids: Any) -> np.ndarray:
    """A prompt (n,), or a batch of them (B, n), as a copy."""
    prompt = to_numpy(getattr(ids, "array", ids))
    if prompt.ndim not in (1, 2):
        raise ValueError(f"Generating reads ids of shape (n,), or a batch of them (B, n), not {prompt.shape}.")
    if prompt.size == 0:
        raise ValueError("Generating needs a prompt of at least one token.")
    if prompt.dtype.kind not in "iu":
        raise TypeError(f"The prompt's ids must be integers, not {prompt.dtype}.")
    return prompt.astype(np.int64)


def check_sampling(new_tokens: int, temperature: float, top_k: int | None) -> None:
    if new_tokens < 0:
        raise ValueError(f"new_tokens must be at least 0, not {new_tokens}.")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be a finite number, at least 0 (greedy), not {temperature}.")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, not {top_k}.")


def check_stop(stop: Any) -> list[Any]:
    """Ids that end a text, as a list."""
    stops = [stop] if isinstance(stop, (int, np.integer)) else list(stop)
    if not all(isinstance(token, (int, np.integer)) for token in stops):
        raise TypeError(f"stop takes ids, not {stop!r}; generate_text takes a text.")
    return stops


def check_stop_text(stop: str | None) -> None:
    if stop == "":
        raise ValueError("stop must be a text of at least one character, or None.")


def check_largest(logit: float) -> float:
    if not np.isfinite(logit):  # a single -inf just says "never this token"
        raise ValueError(
            f"No token can be chosen, since the model's largest logit is {logit}: its weights or its adapter are not "
            "finite, as after training that diverged."
        )
    return logit


# ---- optimizers --------------------------------------------------------------------------------------


def check_any_gradient(params: Iterable[Any]) -> None:
    if all(p.grad is None for p in params):
        raise ValueError(
            "No parameter of this optimizer has a gradient: call backward() first; if you did, the optimizer "
            "was made for other parameters, before add_lora or for another model."
        )


def check_schedule(steps: int, warmup: float, final: float) -> None:
    if steps < 1 or not 0 <= warmup < 1 or not 0 <= final <= 1:
        raise ValueError(
            f"A schedule needs steps >= 1, 0 <= warmup < 1 and 0 <= final <= 1, not {steps}, {warmup} and {final}."
        )


def check_clipping(params: Iterable[Any], max_norm: float) -> list[Any]:
    """The gradients there are. Raises `ValueError` where there is none, or for a norm not above 0."""
    if not max_norm > 0:
        raise ValueError(f"max_norm must be above 0, not {max_norm}.")
    gradients = [p.grad for p in params if p.grad is not None]
    if not gradients:
        raise ValueError("There is no gradient to clip: call backward() first, and clip what it reaches.")
    return gradients


# ---- LoRA --------------------------------------------------------------------------------------------


def check_lora(config: Mapping[str, Any], inits: Sequence[str], scalings: Sequence[str]) -> dict[str, Any]:
    """The fields of a `LoRAConfig`, with Python's numbers, which can be saved. Raises `TypeError` or `ValueError`."""
    plain = {name: value.item() if isinstance(value, np.number) else value for name, value in config.items()}
    check_int("The rank r", plain["r"], low=1)
    for name in ("alpha", "init_std"):
        check_positive(name, plain[name])
    check_share("dropout", plain["dropout"])
    check_choice("init", plain["init"], inits)
    check_choice("scaling", plain["scaling"], scalings)
    if plain["init"] != "gaussian" and plain["init_std"] is not None:
        raise ValueError(f"init_std belongs to init='gaussian'; {plain['init']!r} has a spread of its own.")
    return {**plain, "target_modules": check_target_names(plain["target_modules"])}


def check_positive(name: str, value: Any, required: bool = False) -> None:
    """None is allowed, unless `required`. Raises `TypeError` or `ValueError`."""
    if value is None and not required:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, not {value!r}.")
    if not 0 < value <= sys.float_info.max:  # an int may be larger than any float
        raise ValueError(f"{name} must be finite and above 0, not {value}.")


def check_share(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, not {value!r}.")
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be at least 0 and less than 1, not {value}.")


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}.")


def check_target_names(targets: Any) -> tuple[str, ...]:
    """The targets as a tuple. Raises `TypeError` or `ValueError`."""
    if isinstance(targets, str):
        raise TypeError(f"target_modules is a tuple of names; write ({targets!r},).")
    names = tuple(targets)
    if not names or not all(isinstance(t, str) and t for t in names):
        raise ValueError(f"target_modules must name at least one module, each by a string, not {names!r}.")
    return names


def check_rank(r: int, sizes: Mapping[str, tuple[int, int]], names: Iterable[str]) -> None:
    for name in names:
        if r > min(sizes[name]):
            raise ValueError(f"The rank r must be at most min(out, in) = {min(sizes[name])} for {name}, not {r}.")


def check_plain(layers: Mapping[str, Any]) -> None:
    if layers:
        raise ValueError("This model has LoRA already: call remove_lora(model) or merge_and_unload(model) first.")


def check_adapted(models: int) -> None:
    """Raise `ValueError` unless the wrapped layers are of one model."""
    if models == 0:
        raise ValueError("This model has no LoRA: call add_lora(model, config) or load_adapter(model, folder) first.")
    if models > 1:
        raise ValueError(
            f"This holds {models} models that were adapted one by one: call the function with each of them."
        )


def check_merged(merged: bool, wanted: bool) -> None:
    if merged != wanted:
        raise ValueError("This model is not merged." if wanted else "This model is merged already.")


def refuse_backward(g: Any) -> Any:
    raise ValueError("A merged model cannot be trained: call unmerge_lora(model) first.")


def check_unmerged(merged: bool) -> None:
    if merged:
        raise ValueError("Weights cannot be loaded while LoRA is merged: call unmerge_lora(model) first.")


def check_finite(merged: Mapping[str, Any]) -> None:
    for name, weight in merged.items():
        if not xp.isfinite(weight).all().item():
            raise ValueError(f"Nothing was merged: ΔW of {name} is not finite, so its training diverged.")


def check_own(name: str, owners: Sequence[str]) -> None:
    if len(owners) > 1:
        raise ValueError(f"ΔW of {name} cannot go into its weight, which {' and '.join(owners)} share.")


def match_targets(linears: Sequence[str], targets: tuple[str, ...]) -> list[str]:
    """Those of the names that the targets mean. Raises `ValueError` for a target that means none, listing what there is
    and the nearest name."""
    for target in targets:
        if not any(target_matches(name, target) for name in linears):
            ends = sorted({name.rsplit(".", 1)[-1] for name in linears})
            near = difflib.get_close_matches(target, [*ends, *linears], n=1, cutoff=0.5)
            raise ValueError(
                f"The target {target!r} matches no Linear of this model"
                + (f"; did you mean {near[0]!r}?" if near else ".")
                + f" There are: {', '.join(ends) or 'none'} (whole names such as {linears[0]!r} work too)."
                if linears
                else f"The target {target!r} matches nothing: this model holds no Linear."
            )
    return [name for name in linears if any(target_matches(name, target) for target in targets)]


def target_matches(name: str, target: str) -> bool:
    """Whether a target means the module of that dotted name: all of it, or its end after a dot."""
    return name == target or name.endswith("." + target)


# ---- text and batches --------------------------------------------------------------------------------


def unknown_character(character: str, text: str, known: int) -> ValueError:
    return ValueError(
        f"The character {character!r} (position {text.index(character)}) is not among the {known} that the model "
        "knows: remove it, replace it (--replace, or texts.replace_unknown), or pretrain a base on text that has it."
    )


def check_text(tokens: int, context_length: int, chunk: int, every: int) -> None:
    """Raise `ValueError` where no chunk, of which one in `every` is held out, could fill a context."""
    if chunk <= context_length:
        raise ValueError(
            f"The text has {tokens} tokens; a context of {context_length} needs at least "
            f"{every * (context_length + 1)}, since every {every}th chunk is held out: "
            "use a longer text or a shorter context."
        )


# ---- training ----------------------------------------------------------------------------------------


def check_run(start: int, steps: int, log_every: int) -> None:
    if steps < 1 or not 0 <= start <= steps:
        raise ValueError(f"Training runs from step {start} to {steps}: it needs at least one step, and 0 <= start.")
    if log_every < 1:
        raise ValueError(f"log_every must be at least 1, not {log_every}.")


def check_batches(batches: Sequence[Any]) -> None:
    if not batches:
        raise ValueError("Evaluation needs at least one batch.")


def check_counted(count: int, ignored: int) -> None:
    if count == 0:
        raise ValueError(f"The evaluation has no target to average over: all are ignored ({ignored}).")
