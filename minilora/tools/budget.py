"""What `minilora budget` prints: one model's costs by formula, and the paper's figures beside their arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..budget import (
    ModelShape,
    adapter_count,
    bitfit_count,
    full_budget,
    full_count,
    lora_budget,
    prefix_count,
    prefix_layer_count,
    preset,
    prompt_count,
    readable,
    shape_of,
)
from ..claims.bases import base_configuration
from ..claims.paper_figures import OUTCOMES, PaperFigure, paper_figures
from ..data import PRINTABLE
from ..gpt import GPT, GPTConfig
from ..interop.checkpoint import load_model

_SIZES = ("context_length", "d_model", "n_layers", "n_heads")
_RIVAL = 16  # vectors of a prompt or prefix, and width of adapters, for comparison


def budget_text(
    preset_name: str | None = None,
    base: str | None = None,
    r: int = 4,
    targets: Sequence[str] = ("q_proj", "v_proj"),
    batch: int = 1,
    time: int | None = None,
    paper: bool = False,
) -> str:
    """The tables of one model, of the paper's figures, or of both, ready to print.

    preset_name: one of `budget.PRESETS`; base: "strings", "text" or a file of `minilora pretrain`. time: positions,
    the whole context unless given. Bytes are decimal: 1 MB is 1,000,000 bytes. Raises `ValueError` for an unknown
    name, both or neither model (unless `paper`), or settings that the model cannot have.
    """
    if preset_name is not None and base is not None:
        raise ValueError("Give one model: --preset or --base, not both.")
    parts = []
    if preset_name is not None or base is not None:
        shape = preset(preset_name) if preset_name is not None else _shape_of_base(str(base))
        parts.append(_model_text(shape, r, targets, batch, shape.context if time is None else time))
    if paper:
        parts.append(_paper_text(paper_figures()))
    if not parts:
        raise ValueError("Say whose budget to print: --preset NAME, --base FILE, or --paper.")
    return "\n\n".join(parts)


def _shape_of_base(name: str) -> ModelShape:
    """A recipe's base needs no pretraining to know its size."""
    if name in ("strings", "text"):
        recipe = base_configuration(name, 0)
        sizes = {size: recipe[size] for size in _SIZES}
        model = GPT(GPTConfig(vocab_size=len(PRINTABLE), **sizes), seed=None)
    else:
        model = load_model(name)
    return replace(shape_of(model), name=name)


def _model_text(shape: ModelShape, r: int, targets: Sequence[str], batch: int, time: int) -> str:
    lora, full = lora_budget(shape, r, targets, batch, time), full_budget(shape, batch, time)
    rows = [("", "full", "LoRA", "LoRA/full")]
    for name, label in (
        ("trainable", "parameters that train"),
        ("weights", "weights"),
        ("gradients", "gradients"),
        ("adam", "Adam's m and v"),
        ("activations", "activations kept"),
        ("memory", "together"),
        ("checkpoint", "file of a task"),
    ):
        in_full, in_lora = getattr(full, name), getattr(lora, name)
        say = "{:,}".format if name == "trainable" else readable
        rows.append((label, say(in_full), say(in_lora), f"{in_lora / in_full:.3g}"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    table = "\n".join(
        f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]:>{widths[3]}}" for row in rows
    )
    rivals = "; ".join(
        f"{name} {count:,}"
        for name, count in (
            ("BitFit:", bitfit_count(shape)),
            (f"prompt of {_RIVAL}:", prompt_count(shape, _RIVAL)),
            (f"prefix of {_RIVAL}:", prefix_count(shape, _RIVAL)),
            (f"AdapterH of {_RIVAL}:", adapter_count(shape, _RIVAL)),
            (f"AdapterL of {_RIVAL}:", adapter_count(shape, _RIVAL, 1, 1)),
        )
    )
    return (
        f"{shape.name}: {full_count(shape):,} parameters, d_model {shape.d_model:,}, {shape.n_layers} layers, "
        f"{shape.bytes_per_number} bytes a number\n"
        f"LoRA r = {r} on {', '.join(targets)}; Adam; {batch} x {time:,} tokens a step\n\n{table}\n\n"
        "Every number takes as many bytes as a weight. Activations are what minilora's own backward needs, without\n"
        "scratch space.\n"
        f"Other methods train:\n{rivals}\n"
        f"(the paper's formula counts a prefix of {_RIVAL} as {prefix_layer_count(shape, _RIVAL):,})."
    )


def _paper_text(figures: Sequence[PaperFigure]) -> str:
    counts = ", ".join(f"{outcome}: {sum(f.outcome == outcome for f in figures)}" for outcome in OUTCOMES)
    rows = [(f.where, f"{f.what} {f.setting}".strip(), f.printed, f.outcome) for f in figures]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [f"The paper's {len(figures)} counts and sizes. {counts}.", ""]
    for figure, row in zip(figures, rows, strict=True):
        cells = [f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join([*cells, _arithmetic(figure)]))
        if figure.note:
            lines.append(" " * (widths[0] + 4) + f"({figure.note})")
    return "\n".join(lines)


def _arithmetic(figure: PaperFigure) -> str:
    if figure.computed is None:
        return f"not stated: {figure.formula}"
    return f"{figure.formula} = {_number(float(figure.computed))}" + (", digits cut off" if figure.cut_off else "")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
