"""§5, Figure 2, Tables 2 to 4: LoRA against full fine-tuning and the methods before it, at their numbers of parameters.

The last block alone (the paper's FT-Top) tells "low rank helps" from "few parameters help". Every method has its own
learning rate, tuned where no report looks. Rivals that start slowly get a second, longer run.
"""

from __future__ import annotations

import math
from typing import Any

from .adaptation import EXPERIMENT, STEPS, adaptation, quality
from .claim import (
    Claim,
    Configuration,
    Measurement,
    Outcome,
    Runs,
    Settings,
    at_least,
    deviation,
    mean,
    percent,
    worst,
)
from .figures import BLUE, GRAY, GREEN, ORANGE, PURPLE, RED, SKY, point

TASK = "revupper"
LORA = "lora q,v 4"
LONG = 1000  # steps
RIVALS = ("last-block", "bitfit", "prompt 8", "prefix 2", "prefix 8", "adapter-h 4", "adapter-h 16", "adapter-l 16")
LORAS = ("lora q,v 1", LORA, "lora q,v 16")
LONGER = (LORA, "last-block", "bitfit", "prefix 8", "adapter-h 4")
ON_TEXT = ("last-block", "bitfit", "prompt 8", "prefix 8", "adapter-h 4", "adapter-h 16", "adapter-l 16")
LORAS_ON_TEXT = ("lora q,v 1", LORA, "lora q,v 64", "lora all 16")


def configurations(settings: Settings) -> list[Configuration]:
    seeds = settings.bases
    longer = () if settings.quick else LONGER
    on_text = ON_TEXT[::3] if settings.quick else ON_TEXT
    return [
        *(adaptation("strings", s, TASK, method) for s in seeds for method in (*RIVALS, *LORAS, "full")),
        *(adaptation("strings", s, TASK, method, steps=LONG) for s in seeds for method in longer),
        *(adaptation("text", s, "code", method) for s in seeds for method in (*on_text, *LORAS_ON_TEXT, "full")),
    ]


def accuracy(runs: Runs, method: str, steps: int | None = None) -> list[float]:
    """Of each base on strings."""
    return quality(runs, "strings", method, (TASK,), "accuracy", steps)


def bits(runs: Runs, method: str) -> list[float]:
    """Of each base on code; none where a quick run leaves the method out."""
    return quality(runs, "text", method, ("code",), "bits")


def parameters(runs: Runs, world: str, method: str) -> float:
    """How many numbers a method trains."""
    return quality(runs, world, method, (TASK, "code"), "trainable")[0]


def share_of_full(runs: Runs) -> list[float]:
    """Of each base on strings, what LoRA answers as a share of full fine-tuning's."""
    return [a / b if b else math.nan for a, b in zip(accuracy(runs, LORA), accuracy(runs, "full"), strict=True)]


def lead(runs: Runs, rival: str) -> list[float]:
    """Of each base on strings, how much more LoRA answers than a rival, as a share of 1."""
    return [a - b for a, b in zip(accuracy(runs, LORA), accuracy(runs, rival), strict=True)]


def measurements(runs: Runs) -> list[Measurement]:
    on_strings, on_text = (*RIVALS, *LORAS, "full"), (*ON_TEXT, *LORAS_ON_TEXT, "full")
    return [
        *(percent(f"answered, {m}", "strings", accuracy(runs, m)) for m in on_strings),
        percent(f"share of full fine-tuning, {LORA}", "strings", share_of_full(runs)),
        *(percent(f"lead of {LORA} over {m}", "strings", lead(runs, m)) for m in RIVALS),
        *(
            percent(f"answered after {LONG:,} steps, {m}", "strings", a)
            for m in LONGER
            if (a := accuracy(runs, m, LONG))
        ),
        *(Measurement(f"loss, {m}", "text", b, "bits") for m in on_text if (b := bits(runs, m))),
    ]


def conclude(runs: Runs) -> Outcome:
    lora, full = accuracy(runs, LORA), accuracy(runs, "full")
    shown = ", ".join(f"{m} {100 * mean(accuracy(runs, m)):.0f}" for m in ("full", LORA, *RIVALS))
    longer = ", ".join(f"{m} {100 * mean(a):.0f}" for m in LONGER if (a := accuracy(runs, m, LONG)))
    on_text = sorted((mean(b), m) for m in (*ON_TEXT, LORA) if (b := bits(runs, m)))
    verdict = worst([at_least(share_of_full(runs), 0.95), *(at_least(lead(runs, m), 0) for m in RIVALS)])
    best = max(mean(accuracy(runs, m)) for m in RIVALS)
    return Outcome(
        f"strings after {STEPS['strings']} steps (%): {shown}"
        + (f"; after {LONG:,}: {longer}" if longer else "")
        + f"; text: best of the small ones {on_text[0][1]} ({on_text[0][0]:.2f} bits), "
        f"{LORA} {next(b for b, m in on_text if m == LORA):.2f}",
        f"{LORA} ±{100 * deviation(lora):.0f} %; largest of a rival "
        f"±{100 * max(deviation(accuracy(runs, m)) for m in RIVALS):.0f} %",
        verdict,
        key=f"LoRA {100 * mean(lora):.0f} %, full {100 * mean(full):.0f} %, rival {100 * best:.0f} %",
        verdicts={"strings": verdict},  # no rule for text
        measurements=measurements(runs),
    )


_LOOKS = {
    "full": (GRAY, "s"), "last-block": (RED, "D"), "bitfit": (ORANGE, "v"), "prompt": (PURPLE, "P"),
    "prefix": (PURPLE, "X"), "adapter-h": (GREEN, "^"), "adapter-l": (SKY, "<"), "lora": (BLUE, "o"),
}  # fmt: skip
_NAMES = {  # with the paper's WikiSQL accuracy on GPT-3, where it has one
    "full": "full (paper, WikiSQL: 73.8)",
    "last-block": "last block",
    "bitfit": "BitFit (71.3)",
    "prompt": "prompt (63.1)",
    "prefix": "prefix (70.1)",
    "adapter-h": "adapters, Houlsby (71.9)",
    "adapter-l": "adapters, Lin",
    "lora": "LoRA (73.4)",
}


def draw(runs: Runs, figure: Any) -> None:
    figure.set_size_inches(12.5, 5.0)
    panels = figure.subplots(1, 2)
    contents = (
        ("strings", "accuracy", 100, (*RIVALS, *LORAS, "full")),
        ("text", "bits", 1, (*ON_TEXT, *LORAS_ON_TEXT, "full")),
    )
    for ax, (world, measure, unit, methods) in zip(panels, contents, strict=True):
        labelled = set()
        for method in methods:
            if world == "text" and not bits(runs, method):
                continue
            kind = method.split()[0]
            color, marker = _LOOKS[kind]
            values = [unit * v for v in quality(runs, world, method, (TASK, "code"), measure)]
            label = None if kind in labelled else _NAMES[kind]
            labelled.add(kind)
            aside = {"prompt": 0.9, "prefix": 1.1}.get(kind, 1.0)  # LoRA has the same counts
            point(ax, aside * parameters(runs, world, method), values, color, marker, label)
        ax.set(xscale="log", xlabel="trained parameters")
    strings, text = panels
    for method in LONGER:
        if longer := accuracy(runs, method, LONG):
            x, (color, marker) = parameters(runs, "strings", method), _LOOKS[method.split()[0]]
            x *= 1.1 if method.startswith("prefix") else 1.0
            y = 100 * mean(longer)
            strings.plot([x], [y], marker, color=color, markerfacecolor="none")
            strings.plot([x, x], [100 * mean(accuracy(runs, method)), y], ":", color=color, linewidth=1)
    strings.plot([], [], "o", color=GRAY, markerfacecolor="none", label=f"hollow: after {LONG:,} steps")
    strings.set(ylabel="answered exactly (%), range over bases", ylim=(-4, 104))
    best = max(RIVALS, key=lambda m: mean(accuracy(runs, m)))
    strings.set_title(
        f"Strings: LoRA q,v r = 4 {100 * mean(accuracy(runs, LORA)):.0f} %, "
        f"best rival {best} {100 * mean(accuracy(runs, best)):.0f} %"
    )
    figure.legend(*strings.get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=9)
    text.set(ylabel="held-out code (bits/character)")
    loss, lead = min((mean(b), m) for m in (*ON_TEXT, *LORAS_ON_TEXT) if (b := bits(runs, m)))
    text.set_title(f"Text: full {mean(bits(runs, 'full')):.2f} bits, best of the others {lead}: {loss:.2f}")


CLAIM = Claim(
    id="rivals",
    short="LoRA matches full, beats its rivals",
    statement="LoRA is as good as full fine-tuning and better than the methods before it",
    where="§5, Figure 2, Tables 2–4",
    paper="GPT-2 M, E2E BLEU: full 68.2, last two blocks 68.1, adapters 66.3–68.9, prefix 69.7, LoRA 70.4 at 0.35M; "
    "GPT-3, WikiSQL: full 73.8, BitFit 71.3, prefix 63.1 and 70.1, adapters 71.9, LoRA 73.4",
    rule=(
        f"holds if on strings, after {STEPS['strings']} steps, LoRA on q, v at r = 4 reaches 0.95 of full "
        "fine-tuning's accuracy, and answers at least as much as every rival, each by two standard errors (of the "
        "paired differences) over bases; text and longer runs are shown beside it"
    ),
    exact=False,
    configurations=configurations,
    experiment=EXPERIMENT,
    conclude=conclude,
    draw=draw,
)
