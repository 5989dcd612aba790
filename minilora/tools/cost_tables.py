"""What `minilora budget` prints: one model's costs by formula, and the paper's figures beside their arithmetic."""

from __future__ import annotations

import textwrap
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
from ..claims.paper_figures import (
    AGREES,
    DIFFERS,
    EXACT,
    NOT_DERIVABLE,
    OUTCOMES,
    PaperFigure,
    paper_figures,
    read_printed,
)
from .console import program
from .models import base_of

_WIDTH = 80  # columns of a terminal that is never wider
_SHORT = {EXACT: "exact", AGREES: "agrees", DIFFERS: "differs", NOT_DERIVABLE: "not stated"}
_RIVAL = 16  # vectors of a prompt or prefix, and width of adapters, for comparison


def budget_text(
    preset_name: str | None = None,
    base: str | None = None,
    r: int = 4,
    targets: Sequence[str] = ("q_proj", "v_proj"),
    batch: int = 1,
    time: int | None = None,
    paper: bool = False,
    full: bool = False,
) -> str:
    """The tables of one model, of the paper's figures, or of both, ready to print.

    preset_name: one of `budget.PRESETS`; base: "strings", "text" or a file of `minilora pretrain`. time: positions,
    the whole context unless given. full: below each of the
    paper's figures its formula and a note. Bytes are decimal: 1 MB is 1,000,000 bytes. Raises `ValueError` for an
    unknown name, both or neither model (unless `paper`), or settings that the model cannot have.
    """
    if preset_name is not None and base is not None:
        raise ValueError("Give one model: --preset or --base, not both.")
    parts = []
    if preset_name is not None or base is not None:
        shape = preset(str(preset_name)) if base is None else replace(shape_of(base_of(base)[0]), name=base)
        parts.append(_model_text(shape, r, targets, batch, shape.context if time is None else time))
    if paper:
        parts.append(_paper_text(paper_figures(), full))
    if not parts:
        raise ValueError("Say whose budget to print: --preset NAME, --base FILE, or --paper.")
    return "\n\n".join(parts)


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


def _paper_text(figures: Sequence[PaperFigure], full: bool) -> str:
    counts = ", ".join(f"{outcome}: {sum(f.outcome == outcome for f in figures)}" for outcome in OUTCOMES)
    cut_off = sum(f.cut_off for f in figures)
    lines = textwrap.wrap(
        f"The paper's {len(figures)} counts and sizes, beside the arithmetic that it states. {counts}. Of those that "
        f"differ, {cut_off} do because digits were cut off instead of rounded.",
        _WIDTH,
    )
    rows = [("where", "what", "printed", "computed", "outcome")]
    rows += [(f.where, f"{f.what} {f.setting}".strip(), f.printed, _in_its_unit(f), _in_short(f)) for f in figures]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    widths[1] = min(widths[1], _WIDTH - sum(widths) + widths[1] - 8)
    lines.append("")
    for figure, row in zip((None, *figures), rows, strict=True):
        what = row[1] if len(row[1]) <= widths[1] else row[1][: widths[1] - 3] + "..."
        lines.append(
            f"{row[0]:<{widths[0]}}  {what:<{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]:>{widths[3]}}  {row[4]}"
        )
        if full and figure is not None:
            note = f" ({figure.note})" if figure.note else ""
            indent = " " * 4
            lines += textwrap.wrap(
                _arithmetic(figure) + note, _WIDTH, initial_indent=indent, subsequent_indent=indent * 2
            )
    if not full:
        lines += ["", f"The formula of each, and notes: {program()} budget --paper --full"]
    return "\n".join(lines)


def _in_short(figure: PaperFigure) -> str:
    return "cut off" if figure.cut_off else _SHORT[figure.outcome]


def _in_its_unit(figure: PaperFigure) -> str:
    """The computed value in the unit of the printed one, with two more decimals; or exactly, where it is that."""
    if figure.computed is None:
        return "-"
    if figure.outcome == EXACT:
        return figure.printed
    digits = figure.printed.rstrip("MGTB%× ")
    unit = figure.printed[len(digits) :]
    decimals = len(digits.partition(".")[2]) + 2
    return f"{float(figure.computed / read_printed(f'1{unit}')[0]):,.{decimals}f}{unit}"


def _arithmetic(figure: PaperFigure) -> str:
    if figure.computed is None:
        return f"not stated: {figure.formula}"
    return f"{figure.formula} = {_number(float(figure.computed))}" + (", digits cut off" if figure.cut_off else "")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
