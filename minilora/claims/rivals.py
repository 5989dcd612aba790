"""§5, Figure 2, Tables 2 to 4: LoRA against full fine-tuning and the methods before it, at their numbers of parameters.

The last block alone (the paper's FT-Top) tells "low rank helps" from "few parameters help". Every method has its own
learning rate, tuned where no report looks. Rivals that start slowly get a second, longer run.
"""

from __future__ import annotations

import operator
from typing import Any

from .adaptation import EXPERIMENT, STEPS, adaptation, quality, steps_of, trained_for
from .claim import Claim, Configuration, Part, Runs, Settings
from .figures import BLUE, GRAY, GREEN, ORANGE, PURPLE, RED, SKY, panels, point
from .measures import deviation, each, mean, of, percent, share
from .methods import BITFIT, FULL, LAST_BLOCK, Adapter, LoRA, Method, Prefix, Prompt
from .rules import at_least

TASK = "revupper"
LORA = LoRA("q,v", 4)
LONG = 1000  # steps
_ADAPTERS = (Adapter("h", 4), Adapter("h", 16), Adapter("l", 16))
RIVALS = (LAST_BLOCK, BITFIT, Prompt(8), Prefix(2), Prefix(8), *_ADAPTERS)
LORAS = (LoRA("q,v", 1), LORA, LoRA("q,v", 16))
LONGER = (LORA, LAST_BLOCK, BITFIT, Prefix(8), Adapter("h", 4))
ON_TEXT = (LAST_BLOCK, BITFIT, Prompt(8), Prefix(8), *_ADAPTERS)
LORAS_ON_TEXT = (LoRA("q,v", 1), LORA, LoRA("q,v", 64), LoRA("all", 16))
# The methods of each world, in the order of its parts and its drawing
METHODS = {"strings": (*RIVALS, *LORAS, FULL), "text": (*ON_TEXT, *LORAS_ON_TEXT, FULL)}


def configurations(settings: Settings) -> list[Configuration]:
    seeds = settings.bases
    if settings.quick:
        steps = steps_of("strings", settings)
        few = (LAST_BLOCK, BITFIT, Adapter("h", 16), LORA, FULL)
        return [adaptation("strings", s, TASK, method, steps=steps) for s in seeds for method in few]
    return [
        *(adaptation("strings", s, TASK, method) for s in seeds for method in METHODS["strings"]),
        *(adaptation("strings", s, TASK, method, steps=LONG) for s in seeds for method in LONGER),
        *(adaptation("text", s, "code", method) for s in seeds for method in METHODS["text"]),
    ]


def accuracy(runs: Runs, method: Method, steps: int | None = None) -> list[float]:
    """Of each base on strings."""
    return quality(runs, "strings", method, (TASK,), "accuracy", steps)


def bits(runs: Runs, method: Method) -> list[float]:
    """Of each base on code."""
    return quality(runs, "text", method, ("code",), "bits")


def parameters(runs: Runs, world: str, method: Method) -> float:
    """How many numbers a method trains."""
    return quality(runs, world, method, (TASK, "code"), "trainable")[0]


def share_of_full(runs: Runs) -> list[float]:
    """Of each base on strings, what LoRA answers as a share of full fine-tuning's."""
    return each(share, accuracy(runs, LORA), accuracy(runs, FULL))


def lead(runs: Runs, rival: Method) -> list[float]:
    """Of each base on strings, how much more LoRA answers than a rival, as a share of 1."""
    return each(operator.sub, accuracy(runs, LORA), accuracy(runs, rival))


def lead_on_text(runs: Runs) -> list[float]:
    """Of every base, in bits, over the rival with the lowest mean loss; negative where that is ahead."""
    found = [b for m in ON_TEXT if (b := bits(runs, m))]
    return each(lambda rival, lora: rival - lora, min(found, key=mean), bits(runs, LORA)) if found else []


PARTS = (
    *(Part(f"answered, {m}", "strings", of(accuracy, m), "%") for m in METHODS["strings"]),
    Part(
        f"share of full fine-tuning, {LORA}",
        "strings",
        share_of_full,
        "%",
        rule=at_least(0.95),
        what=f"what LoRA on q, v at r = 4 answers after {STEPS['strings']} steps, as a share of full fine-tuning's,",
    ),
    *(
        Part(f"lead of {LORA} over {m}", "strings", of(lead, m), "%", rule=at_least(0), what="its lead over each rival")
        for m in RIVALS
    ),
    *(Part(f"answered after {LONG:,} steps, {m}", "strings", of(accuracy, m, LONG), "%") for m in LONGER),
    *(Part(f"loss, {m}", "text", of(bits, m), "bits") for m in METHODS["text"]),
    Part(f"lead of {LORA} over the best rival", "text", lead_on_text, "bits"),
)


def rivals_run(runs: Runs) -> list[Method]:
    return [m for m in RIVALS if accuracy(runs, m)]


def key(runs: Runs) -> str:
    lora, full = mean(accuracy(runs, LORA)), mean(accuracy(runs, FULL))
    best = max(mean(accuracy(runs, m)) for m in rivals_run(runs))
    if leads := lead_on_text(runs):
        said = f"{abs(mean(leads)):.2f} {'ahead' if mean(leads) > 0 else 'behind'}"
        return f"LoRA {100 * lora:.0f} %, rivals {100 * best:.0f}; text {said}"
    return f"LoRA {100 * lora:.0f} %, full {100 * full:.0f} %, best rival {100 * best:.0f} %"


def measured(runs: Runs) -> str:
    methods = (FULL, LORA, *rivals_run(runs))
    shown = ", ".join(f"{m} {percent(accuracy(runs, m))}" for m in methods)
    longer = ", ".join(f"{m} {percent(a)}" for m in LONGER if (a := accuracy(runs, m, LONG)))
    on_text = sorted((mean(b), m.name) for m in (*ON_TEXT, LORA) if (b := bits(runs, m)))
    said = f"strings after {trained_for(runs, 'strings')} steps (%): {shown}" + (
        f"; after {LONG:,}: {longer}" if longer else ""
    )
    if on_text:
        said += (
            f"; text: best of the small ones {on_text[0][1]} ({on_text[0][0]:.2f} bits), "
            f"{LORA} {next(b for b, m in on_text if m == LORA.name):.2f}"
        )
    return said


def spread(runs: Runs) -> str:
    return (
        f"{LORA} ±{100 * deviation(accuracy(runs, LORA)):.0f} %; largest of a rival "
        f"±{100 * max(deviation(accuracy(runs, m)) for m in rivals_run(runs)):.0f} %"
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
    text = bool(bits(runs, LORA))
    strings, *others = panels(figure, 2, 12.5, 5.0) if text else panels(figure, 1, 7.5, 5.0)
    for ax, world, measure, unit, methods in zip(
        (strings, *others),
        ("strings", "text"),
        ("accuracy", "bits"),
        (100, 1),
        (METHODS["strings"], METHODS["text"]),
        strict=False,
    ):
        labelled = set()
        for method in methods:
            values = [unit * v for v in quality(runs, world, method, (TASK, "code"), measure)]
            if not values:
                continue
            kind = method.kind
            color, marker = _LOOKS[kind]
            label = None if kind in labelled else _NAMES[kind]
            labelled.add(kind)
            aside = {"prompt": 0.9, "prefix": 1.1}.get(kind, 1.0)  # LoRA has the same counts
            point(ax, aside * parameters(runs, world, method), values, color, marker, label)
        ax.set(xscale="log", xlabel="trained parameters")
    for method in LONGER:
        if longer := accuracy(runs, method, LONG):
            x, (color, marker) = parameters(runs, "strings", method), _LOOKS[method.kind]
            x *= 1.1 if method.kind == "prefix" else 1.0
            y = 100 * mean(longer)
            strings.plot([x], [y], marker, color=color, markerfacecolor="none")
            strings.plot([x, x], [100 * mean(accuracy(runs, method)), y], ":", color=color, linewidth=1)
    if accuracy(runs, LORA, LONG):
        strings.plot([], [], "o", color=GRAY, markerfacecolor="none", label=f"hollow: after {LONG:,} steps")
    strings.set(ylabel="answered exactly (%), range over bases", ylim=(-4, 104))
    best = max(rivals_run(runs), key=lambda m: mean(accuracy(runs, m)))
    strings.set_title(
        f"Strings: LoRA q,v r = 4 {percent(accuracy(runs, LORA))} %, "
        f"best rival {best} {percent(accuracy(runs, best))} %"
    )
    figure.legend(*strings.get_legend_handles_labels(), loc="outside lower center", ncols=5 if text else 3, fontsize=9)
    for ax in others:
        ax.set(ylabel="held-out code (bits/character)")
        loss, lead = min((mean(b), m.name) for m in (*ON_TEXT, *LORAS_ON_TEXT) if (b := bits(runs, m)))
        ax.set_title(f"Text: full {mean(bits(runs, FULL)):.2f} bits, best of the others {lead}: {loss:.2f}")


CLAIM = Claim(
    id="rivals",
    short="LoRA matches full, beats rivals",
    statement="LoRA is as good as full fine-tuning and better than the methods before it",
    where="§5, Figure 2, Tables 2–4",
    paper="GPT-2 M, E2E BLEU: full 68.2, last two blocks 68.1, adapters 66.3–68.9, prefix 69.7, LoRA 70.4 at 0.35M; "
    "GPT-3, WikiSQL: full 73.8, BitFit 71.3, prefix 63.1 and 70.1, adapters 71.9, LoRA 73.4",
    configurations=configurations,
    experiment=EXPERIMENT,
    parts=PARTS,
    key=key,
    measured=measured,
    spread=spread,
    draw=draw,
)
