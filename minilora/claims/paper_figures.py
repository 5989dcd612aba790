"""The paper's own counts of parameters and sizes, each compared with the arithmetic that the paper states for it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from ..budget import (
    ATTENTION,
    PRESETS,
    ModelShape,
    adapter_count,
    bitfit_count,
    block_count,
    full_count,
    lora_count,
    prefix_layer_count,
    prompt_count,
    readable,
)

EXACT, AGREES, DIFFERS = "exact", "agrees as printed", "differs from the stated formula"
NOT_DERIVABLE = "not derivable"
OUTCOMES = (EXACT, AGREES, DIFFERS, NOT_DERIVABLE)
_UNITS: dict[str, int | Fraction] = {
    "": 1,
    "M": 10**6,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "%": Fraction(1, 100),
    "×": 1,
}


def read_printed(text: str) -> tuple[Fraction, Fraction]:
    """The value of a printed figure, and what its last digit counts: "4.7M" is 4,700,000 in steps of 100,000.

    The zeros at the end of a whole number only fill its place, so "350 GB" is in steps of 10 GB; "2/3" is in steps of
    1/3. Raises `ValueError` for a text that is no such figure.
    """
    found = re.fullmatch(r"([\d,]+)(?:\.(\d+)|/(\d+))? ?(\D*)", text)
    if not found or found[4] not in _UNITS:
        raise ValueError(f"The figure {text!r} is no number with one of the units {', '.join(u for u in _UNITS if u)}.")
    whole, decimals, below, unit = found.groups()
    whole = whole.replace(",", "")
    if below:
        step = Fraction(1, int(below))
    elif decimals:
        whole, step = whole + decimals, Fraction(1, 10 ** len(decimals))
    else:
        step = Fraction(10 ** (len(whole) - len(whole.rstrip("0"))))
        whole = whole.rstrip("0")
    return int(whole) * step * _UNITS[unit], step * _UNITS[unit]


@dataclass(frozen=True)
class PaperFigure:
    """A figure that the paper prints, and what its formula gives.

    formula: the arithmetic, with numbers; where the paper does not say enough for one, what is missing. computed: its
    result, a count or bytes or a ratio, or None. setting: which row of a table it is.
    """

    where: str
    what: str
    printed: str
    formula: str
    computed: Fraction | int | None
    note: str = ""
    setting: str = ""

    @property
    def outcome(self) -> str:
        """One of `OUTCOMES`: equal; equal once rounded to the printed digits; neither; or there is no formula."""
        if self.computed is None:
            return NOT_DERIVABLE
        value, step = read_printed(self.printed)
        if self.computed == value:
            return EXACT
        return AGREES if abs(self.computed - value) <= step / 2 else DIFFERS

    @property
    def cut_off(self) -> bool:
        """Whether it differs only because digits were cut off instead of rounded, as 18.87M printed as 18.8M."""
        if self.computed is None or self.outcome != DIFFERS:
            return False
        value, step = read_printed(self.printed)
        return self.computed // step * step == value


def paper_figures() -> list[PaperFigure]:
    """Every parameter count and memory figure of the paper's text and tables, in its order."""
    return [*_text_figures(), *_table_figures(), *_gpt3_figures()]


_GPT3 = PRESETS["gpt3-175b"]
_GPT3_PRINTED = 175_255_800_000  # Table 4's count of all parameters


def _text_figures() -> list[PaperFigure]:
    N, r4 = _GPT3_PRINTED, lora_count(_GPT3, 4, ("q_proj", "v_proj"))
    GB, MB = 10**9, 10**6
    float16 = "at 2 bytes a number"
    return [
        PaperFigure("abstract", "GPT-3 fewer parameters", "10,000×", f"{N:,}/{r4:,}", Fraction(N, r4), "r = 4 on q, v"),
        PaperFigure("abstract", "GPT-3 less memory", "3×", "1,200/350", Fraction(1200, 350), "of the printed sizes"),
        PaperFigure(
            "§4.2",
            "VRAM saved, up to",
            "2/3",
            f"1 - ({N:,} + 3·{r4:,})/(3·{N:,})",
            1 - Fraction(N + 3 * r4, 3 * N),
            "weights and Adam's m and v, GPT-3 with r = 4 on q, v; with the gradients it is 3/4",
        ),
        PaperFigure(
            "§4.2",
            "GPT-3 FT memory",
            "1.2 TB",
            "the precision of gradients and states, and what else is counted",
            None,
            f"{float16}, weights, m and v take {readable(6 * N)}, with the gradients {readable(8 * N)}",
        ),
        PaperFigure(
            "§4.2",
            "GPT-3 LoRA memory",
            "350 GB",
            f"2·({N:,} + 4·{r4:,})",
            2 * (N + 4 * r4),
            f"{float16}: weights, and of A and B also gradients, m and v; without activations",
        ),
        PaperFigure("§4.2", "GPT-3 checkpoint", "350 GB", f"2·{N:,}", 2 * N, float16),
        PaperFigure(
            "§4.2", "GPT-3 LoRA checkpoint", "35 MB", f"2·{r4:,}", 2 * r4, f"{float16}; in 2²⁰ bytes {r4 / 2**19:.1f}"
        ),
        PaperFigure("§4.2", "GPT-3 smaller checkpoint", "10,000×", "350,000/35", 10_000, "of the printed sizes"),
        PaperFigure(
            "§4.2",
            "GPT-3 faster training",
            "25 %",
            "1 - 32.5/43.1",
            1 - Fraction("32.5") / Fraction("43.1"),
            "time a token, from the printed tokens/s",
        ),
        PaperFigure(
            "footnote 4",
            "100 tasks with LoRA",
            "354 GB",
            f"350·{GB:,} + 100·35·{MB:,}",
            350 * GB + 100 * 35 * MB,
            "of the printed sizes",
        ),
        PaperFigure(
            "footnote 4", "100 tasks with FT", "35 TB", f"100·350·{GB:,}", 100 * 350 * GB, "of the printed sizes"
        ),
    ]


def _table_figures() -> list[PaperFigure]:
    base, large, xxl = (PRESETS[name] for name in ("roberta-base", "roberta-large", "deberta-xxl"))
    M, L = PRESETS["gpt2-medium"], PRESETS["gpt2-large"]
    glue, e2e = "Table 2", "Table 3"
    d = M.d_model
    houlsby, lin = (2, 0), (1, 1)
    return [
        _unstated_width("Table 1", "GPT-2 M AdapterL and AdapterH", "0.5M", M, lin),
        _unstated_width("Table 1", "GPT-2 M AdapterL and AdapterH", "11M", M, lin),
        _unstated_size(glue, "RoB-base FT", "125.0M", base),
        PaperFigure(glue, "RoB-base BitFit", "0.1M", _bitfit(base), bitfit_count(base)),
        PaperFigure(glue, "RoB-base AdapterD", "0.3M", "the width, and which layers keep an adapter", None),
        PaperFigure(glue, "RoB-base AdapterD", "0.9M", "the width, and which layers keep an adapter", None),
        _lora(glue, "RoB-base LoRA", "0.3M", base, 2, 8),
        _unstated_size(glue, "RoB-large FT", "355.0M", large),
        _lora(glue, "RoB-large LoRA", "0.8M", large, 2, 8),
        _adapter(glue, "RoB-large AdapterP", "3.0M", large, 64, 1),
        _adapter(glue, "RoB-large AdapterP", "0.8M", large, 16, 1),
        _adapter(glue, "RoB-large AdapterH", "6.0M", large, 64, 2),
        _adapter(glue, "RoB-large AdapterH", "0.8M", large, 8, 2),
        _unstated_size(glue, "DeBERTa FT", "1500M", xxl),
        _lora(glue, "DeBERTa LoRA", "4.7M", xxl, 2, 8, f"Table 10's r = 8; r = 16 gives {_qv(xxl, 16):,}"),
        _unstated_size(e2e, "GPT-2 M FT", "354.92M", M),
        _unstated_width(e2e, "GPT-2 M AdapterL", "0.37M", M, lin),
        _unstated_width(e2e, "GPT-2 M AdapterL", "11.09M", M, lin),
        _unstated_width(e2e, "GPT-2 M AdapterH", "11.09M", M, houlsby),
        PaperFigure(
            e2e, "GPT-2 M FTTop2", "25.19M", f"2·(12·{d:,}·{d:,} + 13·{d:,})", 2 * block_count(M), "two whole blocks"
        ),
        _unstated_length(e2e, "GPT-2 M PreLayer", "0.35M", M),
        _lora(e2e, "GPT-2 M LoRA", "0.35M", M, 2, 4),
        _unstated_size(e2e, "GPT-2 L FT", "774.03M", L),
        _unstated_width(e2e, "GPT-2 L AdapterL", "0.88M", L, lin),
        _unstated_width(e2e, "GPT-2 L AdapterL", "23.00M", L, lin),
        _unstated_length(e2e, "GPT-2 L PreLayer", "0.77M", L),
        _lora(e2e, "GPT-2 L LoRA", "0.77M", L, 2, 4),
    ]


def _gpt3_figures() -> list[PaperFigure]:
    D, layers = _GPT3.d_model, _GPT3.n_layers
    both, sweep = "Tables 4, 15", "Table 15"
    bitfit = PaperFigure(
        "Table 4", "GPT-3 BitFit", "14.2M", _bitfit(_GPT3), bitfit_count(_GPT3), f"12·L·D would be {12 * layers * D:,}"
    )
    prompts = [
        PaperFigure(where, "GPT-3 PreEmbed", printed, f"({P} + 8)·{D:,}", prompt_count(_GPT3, P + 8), setting=f"{P}+8")
        for where, P, printed in ((sweep, 32, "0.4M"), (both, 256, "3.2M"), (sweep, 512, "6.4M"))
    ]
    prefixes = [
        PaperFigure(
            both if (p, i) == (8, 8) else sweep,
            "GPT-3 PreLayer",
            printed,
            f"{layers}·{D:,}·({p} + {i})",
            prefix_layer_count(_GPT3, p + i),
            setting=f"{p}+{i}",
        )
        for p, i, printed in ((2, 2, "5.1M"), (8, 0, "10.1M"), (8, 8, "20.2M"), (32, 4, "44.1M"), (64, 0, "76.1M"))
    ]
    adapters = [
        _adapter(both if m in (1, 8) else sweep, "GPT-3 AdapterH", printed, _GPT3, m, 2)
        for m, printed in ((1, "7.1M"), (4, "21.2M"), (8, "40.1M"), (16, "77.9M"), (64, "304.4M"))
    ]
    lora = [
        _lora(where, "GPT-3 LoRA", printed, _GPT3, len(which.split(",")), r, setting=f"{which} r {r}")
        for where, which, r, printed in (
            (both, "v", 2, "4.7M"),
            (both, "q,v", 1, "4.7M"),
            (sweep, "q,v", 2, "9.4M"),
            (sweep, "q,k,v,o", 1, "9.4M"),
            (sweep, "q,v", 4, "18.8M"),
            (sweep, "q,k,v,o", 2, "18.8M"),
            (both, "q,v", 8, "37.7M"),
            (sweep, "q,k,v,o", 4, "37.7M"),
            (sweep, "q,v", 64, "301.9M"),
            (sweep, "q,k,v,o", 64, "603.8M"),
        )
    ]
    elsewhere = [
        _lora("Table 5", "GPT-3 LoRA, every column of Table 5", "18M", _GPT3, 2, 4, setting="q,v r 4"),
        _lora("App. D.4", "GPT-3 LoRA in App. D.4", "37.7M", _GPT3, 4, 2, setting="q,k,v,o r 2"),
    ]
    with_prompt = [
        PaperFigure(
            sweep,
            "GPT-3 LoRA+PE",
            printed,
            f"2·{layers}·2·{D:,}·{r} + 12·{D:,}",
            _qv(_GPT3, r) + 12 * D,
            setting=f"q,v r {r}",
        )
        for r, printed in ((8, "37.8M"), (32, "151.1M"), (64, "302.1M"))
    ]
    with_prefix = PaperFigure(
        sweep,
        "GPT-3 LoRA+PL",
        "52.8M",
        f"2·{layers}·2·{D:,}·8 + {layers}·12·{D:,}",
        _qv(_GPT3, 8) + prefix_layer_count(_GPT3, 12),
        setting="q,v r 8",
    )
    full = _unstated_size("Table 4", "GPT-3 FT", "175,255.8M", _GPT3)
    return [full, bitfit, *prompts, *prefixes, *adapters, *lora, *elsewhere, *with_prompt, with_prefix]


# ---- formulas in numbers -----------------------------------------------------------------------------


def _qv(shape: ModelShape, r: int) -> int:
    return lora_count(shape, r, ("q_proj", "v_proj"))


def _lora(
    where: str, what: str, printed: str, shape: ModelShape, matrices: int, r: int, note: str = "", setting: str = ""
) -> PaperFigure:
    """2·L_LoRA·D·r, with so many matrices in every layer."""
    formula = f"2·{shape.n_layers}·{matrices}·{shape.d_model:,}·{r}"
    return PaperFigure(where, what, printed, formula, lora_count(shape, r, ATTENTION[:matrices]), note, setting)


def _bitfit(shape: ModelShape) -> str:
    return f"11·{shape.n_layers}·{shape.d_model:,} + {shape.d_model:,}"


def _adapter(where: str, what: str, printed: str, shape: ModelShape, m: int, adapters: int) -> PaperFigure:
    """Without the LayerNorms: which of them train is said for AdapterL alone."""
    D, layers = shape.d_model, shape.n_layers
    with_norms = adapter_count(shape, m, adapters, norms=adapters)
    return PaperFigure(
        where,
        what,
        printed,
        f"{adapters * layers}·(2·{D:,}·{m} + {m} + {D:,})",
        adapter_count(shape, m, adapters),
        f"with 2·L_LN·D for {adapters * layers} LayerNorms {with_norms:,}",
        setting=f"width {m}",
    )


def _unstated_size(where: str, what: str, printed: str, shape: ModelShape) -> PaperFigure:
    note = f"with the published sizes, and no head for the task, {full_count(shape):,}"
    return PaperFigure(where, what, printed, "the vocabulary, the positions and the head", None, note)


def _unstated_width(where: str, what: str, printed: str, shape: ModelShape, style: tuple[int, int]) -> PaperFigure:
    note = _fit(
        "AdapterL width" if style == (1, 1) else "AdapterH width", printed, lambda m: adapter_count(shape, m, *style)
    )
    return PaperFigure(where, what, printed, "the adapters' width", None, note)


def _unstated_length(where: str, what: str, printed: str, shape: ModelShape) -> PaperFigure:
    note = _fit("prefix length", printed, lambda P: prefix_layer_count(shape, P))
    return PaperFigure(where, what, printed, "the prefix's length", None, note)


def _fit(name: str, printed: str, count: Callable[[int], int]) -> str:
    """The smallest setting with which the formula would give the printed figure, in words."""
    value, step = read_printed(printed)
    setting = 1
    while count(setting) < value - step / 2:
        setting += 1
    if count(setting) <= value + step / 2:
        return f"{name} {setting} would give {count(setting):,}"
    return f"no {name} gives it: {setting - 1} gives {count(setting - 1):,} and {setting} {count(setting):,}"
