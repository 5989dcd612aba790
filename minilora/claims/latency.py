"""§3, §4.1, Table 1: a merged LoRA has "no additional inference latency"; adapters and prefixes cost.

Counted: the products of a forward pass; merged, LoRA's are the base's. Timed: one model in rounds, until the interval
of the ratio is narrower than what is asked or the time is up. The base runs twice in each round, since two equal things
differ too when timed; noise can only leave a verdict open. And what a prefix takes from the context, in two parts: what
is lost because less is read, by reading LoRA's own model with the context as much shorter, without any training; and
the rest, which is what a prefix costs in training: it is hard to train, and its windows have fewer characters to learn.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np

from ..autograd import no_grad
from ..gpt import GPT, GPTConfig
from ..lora import LoRAConfig, add_lora, merge_lora
from ..nn import Module
from .adaptation import adaptation, quality
from .claim import Claim, Configuration, Experiment, Part, Result, Runs, Settings
from .figures import BLUE, GRAY, GREEN, ORANGE, PURPLE, SKY, band, finding, label_lines, panels
from .measures import each, mean, median_interval, of, quartiles_of, select
from .methods import Adapter, LoRA, Method, Prefix
from .products import counted
from .rules import always_equal, median_at_least, median_at_most
from .stopwatch import repeats_for, seconds_of

SHAPES = ((8, 128), (4, 64), (1, 32))  # batch x time, the paper's divided by 4
MERGED, HOULSBY = "LoRA merged", "adapters (Houlsby)"
VARIANTS = (MERGED, "LoRA unmerged", "adapters (Lin)", HOULSBY, "prefix of 8")
SIZES: dict[str, Any] = {"d_model": 128, "n_layers": 4, "n_heads": 4}
FEWEST, SECONDS = 20, 10.0  # rounds at least; seconds at most
NARROW = 0.01  # how narrow the merged model's interval has to become
TOLERANCE = 1.02
PREFIXES = (8, 16, 32, 48)
REFERENCE = LoRA("q,v", 4)


def configurations(settings: Settings) -> list[Configuration]:
    shapes = SHAPES[1:] if settings.quick else SHAPES
    seconds = SECONDS / 10 if settings.quick else SECONDS
    timed = [{"batch": B, "time": T, "seconds": seconds} for B, T in shapes]
    if settings.quick:
        return [{"count": [4, 64]}, *timed]
    shortened = {"shortened": list(PREFIXES)}
    return [
        {"count": [4, 64]},
        *timed,
        *(adaptation("text", s, "code", REFERENCE, **shortened) for s in settings.bases),
        *(adaptation("text", s, "code", Prefix(P)) for s in settings.bases for P in PREFIXES),
    ]


def run(configuration: Configuration) -> Result:
    """The products of a forward pass; or milliseconds, for each variant those of all rounds."""
    B, T = configuration.get("count") or (configuration["batch"], configuration["time"])
    ids = np.random.default_rng(0).integers(0, 96, (B, T))
    models = _models(max(T for _, T in SHAPES) + PREFIXES[0])
    if "count" in configuration:
        return {name: _count(model, ids) for name, model in models.items()}
    return {"milliseconds": _time(models, ids, configuration["seconds"])}


def _models(context: int) -> dict[str, Module]:
    def model() -> GPT:
        return GPT(GPTConfig(vocab_size=96, context_length=context, **SIZES), seed=0)

    def lora(merged: bool) -> GPT:
        adapted = model()
        add_lora(adapted, LoRAConfig(4))
        if merged:
            merge_lora(adapted)
        return adapted

    return {
        "base": model(),
        "base again": model(),
        MERGED: lora(True),
        "LoRA unmerged": lora(False),
        "adapters (Lin)": Adapter("l", 16).prepare(model(), 0)[0],
        HOULSBY: Adapter("h", 16).prepare(model(), 0)[0],
        "prefix of 8": Prefix(PREFIXES[0]).prepare(model(), 0)[0],
    }


def _count(model: Module, ids: np.ndarray) -> dict[str, int]:
    with no_grad(), counted() as count:
        model.eval()(ids)
    return {"products": count.products, "multiply_adds": count.forward}


def _time(models: dict[str, Module], ids: np.ndarray, seconds: float) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in models}
    rng, start = np.random.default_rng(0), time.perf_counter()
    with no_grad():
        repeats = repeats_for(lambda: models["base"].eval()(ids), 0.004)  # 4 ms or more are well timed
        while len(times["base"]) < FEWEST or (time.perf_counter() < start + seconds and not _narrow(times)):
            for name in rng.permutation(list(models)).tolist():  # each leaves a trace in the next one's time
                times[name].append(1e3 * seconds_of(partial(models[name].eval(), ids), repeats))
    return times


def _narrow(times: dict[str, list[float]]) -> bool:
    low, high = median_interval(_over_base(times, MERGED))
    return high - low <= NARROW


def _over_base(times: dict[str, list[float]], variant: str) -> list[float]:
    """A variant's time in each round, over the base's; not over a mean of two, which is more often delayed than one."""
    return (np.array(times[variant]) / np.array(times["base"])).tolist()


# ---- what it came to ---------------------------------------------------------------------------------


def ratios(runs: Runs, B: int, T: int, variant: str) -> list[float]:
    """Of each round."""
    found = select(runs, batch=B, time=T)
    return _over_base(found[0][1]["milliseconds"], variant) if found else []


def shapes_run(runs: Runs) -> list[tuple[int, int]]:
    return [shape for shape in SHAPES if ratios(runs, *shape, MERGED)]


def more(runs: Runs, variant: str, what: str) -> list[float]:
    """How many more products, or multiply-adds, than the base: a number, or a share of the base's."""
    of_model = next((r for c, r in runs if "count" in c), None)
    if of_model is None:
        return []
    extra = of_model[variant][what] - of_model["base"][what]
    return [extra if what == "products" else extra / of_model["base"][what]]


def at_end(runs: Runs, method: Method) -> list[float]:
    """Of each base, bits on the last 16 characters of its windows of code."""
    extra: dict[str, Any] = {"shortened": list(PREFIXES)} if method == REFERENCE else {}
    return quality(runs, "text", method, "bits_at_end", **extra)


def less_read(runs: Runs, P: int) -> list[float]:
    """Of each base, how many bits LoRA's model loses there if it reads P characters less."""
    return [r["bits_at_end_shortened"][PREFIXES.index(P)] - r["bits_at_end"] for c, r in runs if "shortened" in c]


def hard_to_train(runs: Runs, P: int) -> list[float]:
    """Of each base, how many bits a prefix of P loses there beyond that."""
    prefix, lora = at_end(runs, Prefix(P)), at_end(runs, REFERENCE)
    return each(lambda own, reference, lost: own - reference - lost, prefix, lora, less_read(runs, P))


PARTS = (
    Part(
        "multiply-adds more than the base, LoRA merged",
        "exact",
        of(more, MERGED, "multiply_adds"),
        "%",
        rule=always_equal(0),
        what="the multiply-adds of merged LoRA's forward pass beyond the base's, counted,",
    ),
    *(Part(f"products more than the base, {variant}", "exact", of(more, variant, "products")) for variant in VARIANTS),
    *(Part(f"multiply-adds more than the base, {v}", "exact", of(more, v, "multiply_adds"), "%") for v in VARIANTS[1:]),
    *(
        Part(
            f"{variant} over base, {B} x {T}",
            "time",
            of(ratios, B, T, variant),
            rule=rule,
            what=f"{variant}'s time over the base's, at each shape,",
        )
        for B, T in SHAPES
        for variant, rule in (
            ("base again", None),
            (MERGED, median_at_most(TOLERANCE)),
            ("LoRA unmerged", None),
            ("adapters (Lin)", None),
            (HOULSBY, median_at_least(1)),
            ("prefix of 8", None),
        )
    ),
    Part("loss at the end, LoRA on q, v, r = 4", "text", of(at_end, REFERENCE), "bits"),
    *(Part(f"lost by reading {P} characters less", "text", of(less_read, P), "bits") for P in PREFIXES),
    *(Part(f"lost beyond that, prefix of {P}", "text", of(hard_to_train, P), "bits") for P in PREFIXES),
)


def key(runs: Runs) -> str:
    merged = [quartiles_of(ratios(runs, *shape, MERGED))[1] for shape in shapes_run(runs)]
    return f"{min(merged):.3f} to {max(merged):.3f} of the base's time"


def measured(runs: Runs) -> str:
    shown = "; ".join(
        f"{B} x {T}: "
        + ", ".join(f"{v} {quartiles_of(ratios(runs, B, T, v))[1]:.3f}" for v in ("base again", *VARIANTS))
        for B, T in shapes_run(runs)
    )
    extra = ", ".join(f"{v} {more(runs, v, 'products')[0]:.0f}" for v in VARIANTS)
    said = f"products more than the base: {extra}; time over the base's, {shown}"
    if less_read(runs, PREFIXES[0]):
        read, trained = (", ".join(f"{mean(fn(runs, P)):+.2f}" for P in PREFIXES) for fn in (less_read, hard_to_train))
        said += f"; reading 8, 16, 32, 48 characters less costs {read} bits, prefixes of that length {trained} more"
    return said


def draw(runs: Runs, figure: Any) -> None:
    context = bool(less_read(runs, PREFIXES[0]))
    left, *others = panels(figure, 1 + context, 4.0, (1.35, 1) if context else None)
    shapes = shapes_run(runs)
    for number, (variant, color) in enumerate(
        zip(("base again", *VARIANTS), (GRAY, BLUE, SKY, GREEN, ORANGE, PURPLE), strict=True)
    ):
        for place, shape in enumerate(shapes):
            values = 100 * (np.array(ratios(runs, *shape, variant)) - 1)
            low, high = median_interval(values.tolist())
            row = -(number + 0.22 * (place - 1))
            left.plot([low, high], [row, row], color=color, linewidth=2)
            left.plot([float(np.median(values))], [row], "o^s"[place], color=color, markersize=4.5)
    left.axvline(0, color=GRAY, linewidth=1)
    left.set_yticks([-n for n in range(6)], ["base again", *VARIANTS])
    left.set(
        xlabel="forward pass, % over the base",
        title=", ".join(f"{'●▲■'[n]} {B} x {T}" for n, (B, T) in enumerate(shapes)),
    )
    left.grid(axis="y", visible=False)
    ends = []
    for right in others:
        lost = np.array([less_read(runs, P) for P in PREFIXES]).T
        whole = lost + np.array([hard_to_train(runs, P) for P in PREFIXES]).T
        for values, color, words in ((lost, BLUE, "LoRA, read\nshorter"), (whole, PURPLE, "prefix")):
            middle = band(right, PREFIXES, values, color, marker="o")
            ends.append((float(PREFIXES[-1]), float(middle[-1]), words, color))
        right.axhline(0, color=GRAY, linewidth=1)
        right.set(xlabel="positions taken, of 64", ylabel="bits/character lost", title="context", xlim=(4, 74))
        right.set_xticks(PREFIXES, [str(P) for P in PREFIXES])
    worst = max(abs(quartiles_of(ratios(runs, *shape, MERGED))[1] - 1) for shape in shapes)
    slowest = max(quartiles_of(ratios(runs, *shape, HOULSBY))[1] - 1 for shape in shapes)
    said = f"Merged, LoRA is within {100 * worst:.1f} % of the base; adapters cost up to {100 * slowest:.0f} %"
    finding(figure, said)
    for right in others:
        label_lines(right, ends, 22)


CLAIM = Claim(
    id="latency",
    short="Merged LoRA adds no latency",
    statement="Merged, LoRA adds no latency; adapters do",
    where="§3, §4.1, Table 1",
    paper="GPT-2 medium, over LoRA: AdapterL +2.2, +5.0, +20.7 %, AdapterH +3.0, +8.4, +30.3 %",
    configurations=configurations,
    experiment=Experiment(run, version=3, alone=True),
    parts=PARTS,
    key=key,
    measured=measured,
    draw=draw,
)
