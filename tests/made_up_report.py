"""A report of made-up rows: the committed run's words, with short forms, key numbers, verdicts and measurements."""

from minilora.claims.claim import FAILS, HOLDS, NOISE, Measurement, Part, over_worlds
from minilora.claims.rules import at_least

KEYS = {
    "zero_init": ("B = 0 starts at the base", "logits bit-equal, in float32 and float64"),
    "alpha_learning_rate": (
        "Tuning α is tuning the learning rate",
        "same ΔW to 9e-16 for s = 3, bit-equal for s = 4",
    ),
    "init_scaling": ("α/r spares retuning when r changes", "best rate moves by 2^+0.1 from r = 1 to 64"),
    "rank": ("A very small r is enough", "r = 8 answers 99 % of full's"),
    "which_matrices": ("q and v together beat any one matrix", "q, v 98 %, best single matrix v 68 %"),
    "rivals": ("LoRA is as good as full fine-tuning", "98 % of full's; best rival adapter-h 16 with 56 %"),
    "latency": ("Merged, LoRA adds no latency", "merged 0.997 of the base's time, adapters 1.07 <&>"),
    "budget": (
        "No gradients, no Adam states for frozen weights",
        "2,048 of 114,944 train; a step takes 0.74 of full's",
    ),
    "task_switching": ("One base serves many tasks", "a swap reads 18 kB in 0.3 ms"),
    "low_data": ("With little data LoRA beats full fine-tuning", "256 examples: -8 points"),
    "intrinsic_dimension": ("Few random directions are enough", "d₉₀ ≤ 4,096 of 114,944"),
    "intrinsic_rank": ("Full fine-tuning's change has a low rank", "cut to rank 8: 98 % remains"),
    "subspaces": ("Small and large r find the same directions", "φ(1, 1) = 0.52 on strings, 0.45 on text"),
    "amplification": ("ΔW amplifies what W does not emphasize", "factor 17 at r = 4, 2.6 at r = 32"),
}


def report_rows():
    """A row for each claim, as in claims.json."""
    rows = []
    for place, (name, (short, key)) in enumerate(KEYS.items()):
        exact = {"exact": HOLDS} if place % 3 == 0 else {}
        other = {} if place in (0, 8) else {"strings": (HOLDS, NOISE)[name in ("low_data", "subspaces")]}
        text = {"text": (FAILS, HOLDS, NOISE)[place % 3]} if place % 2 else {}
        share = Part(f"share of full fine-tuning at r = {8 + place}", "strings", len, "%", rule=at_least(0.95))
        gap = Part("gap closed on text by the largest rank that any of the runs here was given", "text", len, "%")
        measurements = [
            Measurement(share, (99.1, 98.7, 99.25), HOLDS),
            Measurement(gap, (0.25,), None),
            Measurement(Part("file of a task", "exact", len, "bytes"), (471_234.0,), None),
            Measurement(Part("a step", "time", len, "ms"), (12.5, 13.25, 12.75), None),
        ]
        rows.append(
            {
                "id": name,
                "short": short,
                "statement": f"The statement of {name}: W₀ + ΔW < W₀ & more, in the words of whoever measured it here",
                "where": f"§{place}, Table {place}",
                "paper": f'what the paper reports of {name}, "73.4 at r = 1 | 73.8 at r = 8" ' + "and more words " * 4,
                "measured": f"what was measured for {name}: " + "r = 8 99 %, full 100 %; " * 8,
                "spread": f"closest call: share on strings, 0.1 to {place} % (n = 3)",
                "rule": f"holds if the rule of {name} " + "is fulfilled by the interval over bases " * 3,
                "verdict": over_worlds([*other.values(), *text.values(), *exact.values()]),
                "key": key,
                "verdicts": {**other, **text, **exact},
                "measurements": [m.as_json() for m in measurements],
                "seconds": 12.5,
                "figure": f"{name}.png",
            }
        )
    return rows
