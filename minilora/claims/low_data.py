"""Table 16: "LoRA's lead over full fine-tuning grows when there is little data", and what is forgotten meanwhile.

Planted: a linear map W₀ + D, D of rank 2, is learned from few noisy examples. Theory counts free directions:
r(2d - r) of rank r against d² of all, and the error of an estimate grows with them. Strings: a task from N examples.
Forgetting is what full fine-tuning is said to do more of; the paper does not claim it, so it is only measured.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend import to_numpy
from ..data import fixed
from ..optim import Adam, linear_schedule
from ..tasks import PRETRAINING, planted
from ..training import evaluate, evaluate_exact_match
from .adaptation import STEPS, adaptation, held_out, prepare, quality, rate
from .bases import adapt, load_base, seed_of, string_draw, text_draw
from .claim import (
    BITS,
    Claim,
    Configuration,
    Experiment,
    Measurement,
    Outcome,
    Result,
    Runs,
    Settings,
    at_least,
    deviation,
    mean,
    percent,
    select,
    worst,
)
from .figures import BLUE, GRAY, GREEN, ORANGE, band
from .planted import fit

D, RANK, EXAMPLES, NOISE_LEVEL = 32, 2, 64, 0.1  # the planted problem
RANKS = (2, 4, 8, 16, 32)
FEW = (16, 64, 256, 1024)
TASK, SMALL = "revupper", "lora q,v 8"
FORGETTING = ("full", SMALL, "lora all 16")
PAPER = {"100": (60.2, 63.8), "1k": (85.8, 85.6), "10k": (88.9, 89.2), "392k": (89.5, 91.7)}  # MNLI: full, LoRA


def configurations(settings: Settings) -> list[Configuration]:
    seeds = settings.bases
    few = FEW[::2] if settings.quick else FEW
    planted_seeds = 1 if settings.quick else 3 * settings.seeds
    return [
        *({"world": "planted", "seed": s, "r": r} for s in range(planted_seeds) for r in (*RANKS, "full")),
        *(adaptation("strings", s, TASK, m, examples=n) for s in seeds for n in few for m in ("full", SMALL)),
        *(
            {"base": ["text", s], "method": m, "lr": rate("text", m), "steps": STEPS["text"]}
            for s in seeds
            for m in (FORGETTING[:2] if settings.quick else FORGETTING)
        ),
        *(
            {"base": ["strings", s], "method": m, "lr": rate("strings", m), "steps": STEPS["strings"]}
            for s in seeds
            for m in ("full", SMALL)
        ),
    ]


def run(configuration: Configuration) -> Result:
    if configuration.get("world") == "planted":
        return _planted(configuration["seed"], configuration["r"])
    return _forgetting(configuration)


def _planted(seed: int, r: int | str) -> Result:
    """‖W - W*‖² beyond what is known, of a W learned from EXAMPLES noisy examples."""
    rng = np.random.default_rng(seed)
    W0, change = planted(D, (1.0,) * RANK, rng)
    x = rng.normal(size=(EXAMPLES, D))
    y = x @ (W0 + change).T + NOISE_LEVEL * rng.normal(size=(EXAMPLES, D))
    if r == "full":
        delta = np.linalg.lstsq(x, y - x @ W0.T, rcond=None)[0].T
    else:
        steps = 2000
        layer = fit(W0, x, y, int(r), lambda p: Adam(p, 0.02), steps, seed, linear_schedule(steps))
        delta = to_numpy(layer.delta_weight())
    return {"excess": float(((delta - change) ** 2).sum())}


def _forgetting(configuration: Configuration) -> Result:
    """What a base knew and what it learns, measured while it learns."""
    (world, base), method, steps = (configuration[name] for name in ("base", "method", "steps"))
    seed = seed_of(base)
    model, parameters = prepare(load_base(world, base), method, seed)
    optimizer = Adam(parameters, configuration["lr"])
    if world == "strings":
        known = fixed(string_draw(PRETRAINING, 256, held_out=True), 2)
        before = evaluate_exact_match(model, known)
        adapt(model, optimizer, string_draw((TASK,), 32), steps, seed, linear_schedule(steps))
        return {"before": before, "known": evaluate_exact_match(model, known)}
    english, code = (held_out(world, which)[:3] for which in ("english", "code"))
    result: Result = {"known": [BITS * evaluate(model, english)], "learned": [BITS * evaluate(model, code)]}

    def measure(done: int) -> None:
        if done % (steps // 8) == 0:
            result["known"].append(BITS * evaluate(model, english))
            result["learned"].append(BITS * evaluate(model, code))

    adapt(model, optimizer, text_draw("code", 16), steps, seed, linear_schedule(steps), measure)
    return result


# ---- what it came to ---------------------------------------------------------------------------------


def excess(runs: Runs, r: Any) -> list[float]:
    return [result["excess"] for _, result in select(runs, world="planted", r=r)]


def accuracy(runs: Runs, method: str, examples: int) -> list[float]:
    """Of each base on strings."""
    return quality(runs, "strings", method, (TASK,), "accuracy", examples=examples)


def examples_run(runs: Runs) -> list[int]:
    return sorted({c["examples"] for c, _ in runs if "examples" in c})


def english_at_equal_code(runs: Runs, method: str) -> list[float]:
    """Of each base, bits on English where a method's loss on code is the final one of LoRA on q, v."""
    values = []
    for c, result in select(runs, method=method, steps=STEPS["text"]):
        if "learned" in result:
            goal = select(runs, method=SMALL, base=c["base"], steps=STEPS["text"])[0][1]["learned"][-1]
            learned, known = np.array(result["learned"]), np.array(result["known"])
            order = np.argsort(learned)
            values.append(float(np.interp(goal, learned[order], known[order])))
    return values


def excess_saved(runs: Runs) -> list[float]:
    """Of each planted problem, the error of all minus that of the small rank."""
    return [b - a for a, b in zip(excess(runs, RANK), excess(runs, "full"), strict=True)]


def gaps(runs: Runs) -> dict[int, list[float]]:
    """Of each number of examples: of each base, how much more LoRA answers than full fine-tuning, as a share of 1."""
    return {
        n: [a - b for a, b in zip(accuracy(runs, SMALL, n), accuracy(runs, "full", n), strict=True)]
        for n in examples_run(runs)
    }


def mean_gap(runs: Runs) -> list[float]:
    """Of each base, over the numbers of examples."""
    return [mean(list(of_base)) for of_base in zip(*gaps(runs).values(), strict=True)]


def still_known(runs: Runs, method: str) -> list[float]:
    """Of each base on strings, the share of its old tasks that it answers afterwards."""
    return [r["known"] for _, r in select(runs, method=method) if isinstance(r.get("known"), float)]


def measurements(runs: Runs) -> list[Measurement]:
    return [
        *(Measurement(f"excess error, r = {r}", "exact", excess(runs, r)) for r in RANKS),
        Measurement("excess error, full", "exact", excess(runs, "full")),
        Measurement(f"excess error, full minus r = {RANK}", "exact", excess_saved(runs)),
        *(
            percent(f"answered from {n} examples, {m}", "strings", accuracy(runs, m, n))
            for n in examples_run(runs)
            for m in ("full", SMALL)
        ),
        *(percent(f"{SMALL} minus full, {n} examples", "strings", gap) for n, gap in gaps(runs).items()),
        percent(f"{SMALL} minus full, mean", "strings", mean_gap(runs)),
        *(percent(f"old tasks answered afterwards, {m}", "strings", still_known(runs, m)) for m in ("full", SMALL)),
        *(
            Measurement(f"loss on English at equal loss on code, {m}", "text", values, "bits")
            for m in FORGETTING
            if (values := english_at_equal_code(runs, m))
        ),
    ]


def conclude(runs: Runs) -> Outcome:
    small, full = excess(runs, RANK), excess(runs, "full")
    gap, of_base = gaps(runs), mean_gap(runs)
    verdicts = {"exact": at_least(excess_saved(runs), 0), "strings": at_least(of_base, 0)}  # no rule for text
    forgotten = {m: mean(values) for m in FORGETTING if (values := english_at_equal_code(runs, m))}
    kept = [f"{m} {100 * mean(still_known(runs, m)):.0f}" for m in ("full", SMALL)]
    return Outcome(
        f"planted, {EXAMPLES} examples: excess error r = {RANK} {mean(small):.3f}, full {mean(full):.3f} "
        f"({verdicts['exact']}); strings, {SMALL} minus full at {', '.join(map(str, gap))} examples: "
        f"{', '.join(f'{100 * mean(g):+.0f}' for g in gap.values())} % ({verdicts['strings']}); forgetting, not "
        f"claimed: English at equal code loss {', '.join(f'{m} {v:.2f}' for m, v in forgotten.items())} bits; old "
        f"string tasks afterwards: {', '.join(kept)} % (adapter off: exactly as before)",
        f"planted r = {RANK} ±{deviation(small):.3f}, full ±{deviation(full):.3f}; strings, mean difference "
        f"±{100 * deviation(of_base):.0f} %",
        worst(list(verdicts.values())),
        key=f"{mean(small):.2f} of error, not {mean(full):.2f}; strings {100 * mean(of_base):+.0f}",
        verdicts=verdicts,
        measurements=measurements(runs),
    )


def draw(runs: Runs, figure: Any) -> None:
    figure.set_size_inches(12.5, 4.2)
    left, middle, right = figure.subplots(1, 3)
    seeds = np.array([excess(runs, r) for r in RANKS]).T
    band(left, RANKS, seeds, BLUE, "LoRA", marker="o")
    full = mean(excess(runs, "full"))
    left.axhline(full, color=GRAY, linestyle="--", label="full, least squares")
    ranks = np.linspace(1, D, 100)
    left.plot(ranks, full * ranks * (2 * D - ranks) / D**2, ":", color=ORANGE, label="full × r(2d − r)/d²")
    left.set(xscale="log", yscale="log", xlabel="rank r (planted: 2)", ylabel="excess error ‖W − W*‖²")
    left.set_xticks(RANKS, [str(r) for r in RANKS])
    left.set_yticks([0.03, 0.1, 0.3], ["0.03", "0.1", "0.3"])
    left.minorticks_off()
    left.set_title(f"Planted: r = {RANK} errs {full / mean(excess(runs, RANK)):.0f} times less")
    few = examples_run(runs)
    for method, color, name in (("full", GRAY, "full"), (SMALL, BLUE, "LoRA q,v r = 8")):
        band(middle, few, 100 * np.array([accuracy(runs, method, n) for n in few]).T, color, name, marker="o")
    middle.set(xscale="log", xlabel="examples", ylabel="answered exactly (%)", ylim=(-4, 104))
    middle.set_xticks(few, [str(n) for n in few])
    middle.minorticks_off()
    gap = 100 * mean(
        [a - b for n in few for a, b in zip(accuracy(runs, SMALL, n), accuracy(runs, "full", n), strict=True)]
    )
    middle.set_title(f"Strings: LoRA {gap:+.0f} points against full")
    first = next(c["base"][1] for c, _ in runs if "base" in c)
    for method, color in zip(FORGETTING, (GRAY, BLUE, GREEN), strict=True):
        for c, result in select(runs, method=method):
            if "learned" in result:
                label = method if c["base"][1] == first else None
                right.plot(result["learned"], result["known"], ".-", color=color, linewidth=1, label=label)
    right.invert_xaxis()
    right.set(xlabel="held-out code (bits/character), learning →", ylabel="held-out English (bits/character)")
    lost = ", ".join(f"{m.split()[0]} {mean(english_at_equal_code(runs, m)):.2f}" for m in FORGETTING[:2])
    right.set_title(f"At equal code: {lost.replace('lora', 'LoRA')} bits")
    for ax in (left, middle, right):
        ax.legend(loc="upper left" if ax is not left else "lower right", fontsize=8)


CLAIM = Claim(
    id="low_data",
    short="With little data LoRA beats full",
    statement="With little data LoRA does better than full fine-tuning",
    where="App. F.3, Table 16",
    paper="MNLI, full and LoRA: " + ", ".join(f"{n} examples {a} and {b}" for n, (a, b) in PAPER.items()),
    rule=(
        f"holds if, by two standard errors of paired differences, the planted excess error at r = {RANK} is below full "
        "least squares', and on strings LoRA on q, v at r = 8 answers more than full fine-tuning in the mean over "
        f"{', '.join(map(str, FEW))} examples; forgetting is not claimed by the paper and only shown"
    ),
    exact=False,
    configurations=configurations,
    experiment=Experiment(run, version=2),
    conclude=conclude,
    draw=draw,
)
