"""Table 16: "LoRA's lead over full fine-tuning grows when there is little data", and what is forgotten meanwhile.

Planted: a linear map W₀ + D, D of rank 2, is learned from few noisy examples. Theory counts free directions:
r(2d - r) of rank r against d² of all, and the error of an estimate grows with them. Strings: a task from N examples.
Forgetting is what full fine-tuning is said to do more of; the paper does not claim it, so it is only measured.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from ..backend import to_numpy
from ..bases import string_sampler
from ..data import fixed
from ..optim import Adam, linear_schedule
from ..tasks import PRETRAINING
from ..texts import BITS
from ..training import evaluate, evaluate_exact_match
from .adaptation import STEPS, adaptation, held_out, quality, rate, steps_of
from .bases import adapt, pretrained, seed_of, text_sampler
from .claim import Claim, Configuration, Experiment, Part, Result, Runs, Settings
from .figures import BLUE, GRAY, GREEN, ORANGE, band, panels, ticks
from .measures import deviation, each, mean, of, percent, select
from .methods import FULL, LoRA, Method, named
from .planted import fit, planted
from .rules import at_least

D, RANK, EXAMPLES, NOISE_LEVEL = 32, 2, 64, 0.1  # the planted problem
RANKS: tuple[int, ...] = (2, 4, 8, 16, 32)
FEW: tuple[int, ...] = (16, 64, 256, 1024)
TASK, SMALL = "revupper", LoRA("q,v", 8)
BOTH = (FULL, SMALL)
FORGETTING = (*BOTH, LoRA("all", 16))
PAPER = {"100": (60.2, 63.8), "1k": (85.8, 85.6), "10k": (88.9, 89.2), "392k": (89.5, 91.7)}  # MNLI: full, LoRA


def configurations(settings: Settings) -> list[Configuration]:
    seeds, steps, few, ranks, planted_seeds = settings.bases, steps_of("strings", settings), FEW, RANKS, 3
    forgetting = [("text", m) for m in FORGETTING] + [("strings", m) for m in BOTH]
    if settings.quick:
        few, ranks, planted_seeds, forgetting = FEW[1:2], RANKS[::2], 1, []
    return [
        *(
            {"world": "planted", "seed": s, "r": r}
            for s in range(planted_seeds * settings.seeds)
            for r in (*ranks, "full")
        ),
        *(adaptation("strings", s, TASK, m, examples=n, steps=steps) for s in seeds for n in few for m in BOTH),
        *(
            {"base": [world, s], "method": m.name, "lr": rate(world, m), "steps": STEPS[world]}
            for world in ("text", "strings")
            for s in seeds
            for where, m in forgetting
            if where == world
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
    model, parameters = named(method).prepare(pretrained(world, base), seed)
    optimizer = Adam(parameters, configuration["lr"])
    if world == "strings":
        known = fixed(string_sampler(PRETRAINING, 256, held_out=True), 2)
        before = evaluate_exact_match(model, known)
        adapt(model, optimizer, string_sampler((TASK,), 32), steps, seed, linear_schedule(steps))
        return {"before": before, "known": evaluate_exact_match(model, known)}
    english, code = (held_out(world, which)[:3] for which in ("english", "code"))
    result: Result = {"known": [BITS * evaluate(model, english)], "learned": [BITS * evaluate(model, code)]}

    def measure(done: int) -> None:
        if done % (steps // 8) == 0:
            result["known"].append(BITS * evaluate(model, english))
            result["learned"].append(BITS * evaluate(model, code))

    adapt(model, optimizer, text_sampler("code", 16), steps, seed, linear_schedule(steps), measure)
    return result


# ---- what it came to ---------------------------------------------------------------------------------


def excess(runs: Runs, r: Any) -> list[float]:
    return [result["excess"] for _, result in select(runs, world="planted", r=r)]


def accuracy(runs: Runs, method: Method, examples: int) -> list[float]:
    """Of each base on strings."""
    return quality(runs, "strings", method, (TASK,), "accuracy", examples=examples)


def examples_run(runs: Runs) -> list[int]:
    return sorted({c["examples"] for c, _ in runs if "examples" in c})


def english_at_equal_code(runs: Runs, method: Method) -> list[float]:
    """Of each base, bits on English where a method's loss on code is the final one of LoRA on q, v."""
    values = []
    for c, result in select(runs, method=method.name, steps=STEPS["text"]):
        if "learned" in result:
            goal = select(runs, method=SMALL.name, base=c["base"], steps=STEPS["text"])[0][1]["learned"][-1]
            learned, known = np.array(result["learned"]), np.array(result["known"])
            order = np.argsort(learned)
            values.append(float(np.interp(goal, learned[order], known[order])))
    return values


def excess_saved(runs: Runs) -> list[float]:
    """Of each planted problem, the error of all minus that of the small rank."""
    return each(operator.sub, excess(runs, "full"), excess(runs, RANK))


def gap(runs: Runs, n: int) -> list[float]:
    """Of each base, how much more LoRA answers than full fine-tuning after n examples, as a share of 1."""
    return each(operator.sub, accuracy(runs, SMALL, n), accuracy(runs, FULL, n))


def mean_gap(runs: Runs) -> list[float]:
    """Of each base, over the numbers of examples."""
    return each(lambda *gaps: mean(gaps), *(gap(runs, n) for n in examples_run(runs)))


def still_known(runs: Runs, method: Method) -> list[float]:
    """Of each base on strings, the share of its old tasks that it answers afterwards."""
    return [r["known"] for _, r in select(runs, method=method.name) if isinstance(r.get("known"), float)]


PARTS = (
    *(Part(f"excess error, r = {r}", "exact", of(excess, r)) for r in RANKS),
    Part("excess error, full", "exact", of(excess, "full")),
    Part(
        f"excess error, full minus r = {RANK}",
        "exact",
        excess_saved,
        rule=at_least(0),
        what=f"planted, the excess error of full least squares minus that at r = {RANK}",
    ),
    *(Part(f"answered from {n} examples, {m}", "strings", of(accuracy, m, n), "%") for n in FEW for m in BOTH),
    *(Part(f"{SMALL} minus full, {n} examples", "strings", of(gap, n), "%") for n in FEW),
    Part(
        f"{SMALL} minus full, mean",
        "strings",
        mean_gap,
        "%",
        rule=at_least(0),
        what=f"what LoRA on q, v at r = 8 answers minus full fine-tuning's, in the mean over "
        f"{', '.join(map(str, FEW))} examples,",
    ),
    *(Part(f"old tasks answered afterwards, {m}", "strings", of(still_known, m), "%") for m in BOTH),
    *(
        Part(f"loss on English at equal loss on code, {m}", "text", of(english_at_equal_code, m), "bits")
        for m in FORGETTING
    ),
)


def key(runs: Runs) -> str:
    small, full = mean(excess(runs, RANK)), mean(excess(runs, "full"))
    return f"planted {small:.2f}, full {full:.2f}; strings {100 * mean(mean_gap(runs)):+.0f} %"


def measured(runs: Runs) -> str:
    few = examples_run(runs)
    said = (
        f"planted, {EXAMPLES} examples: excess error r = {RANK} {mean(excess(runs, RANK)):.3f}, full "
        f"{mean(excess(runs, 'full')):.3f}; strings, {SMALL} minus full at "
        f"{', '.join(map(str, few))} examples: {', '.join(f'{100 * mean(gap(runs, n)):+.0f}' for n in few)} %"
    )
    if forgotten := {m: mean(values) for m in FORGETTING if (values := english_at_equal_code(runs, m))}:
        kept = [f"{m} {percent(still_known(runs, m))}" for m in BOTH]
        said += (
            f"; forgetting, not claimed: English at equal code loss "
            f"{', '.join(f'{m} {v:.2f}' for m, v in forgotten.items())} bits; old string tasks afterwards: "
            f"{', '.join(kept)} % (adapter off: exactly as before)"
        )
    return said


def spread(runs: Runs) -> str:
    return (
        f"planted r = {RANK} ±{deviation(excess(runs, RANK)):.3f}, full ±{deviation(excess(runs, 'full')):.3f}; "
        f"strings, mean difference ±{100 * deviation(mean_gap(runs)):.0f} %"
    )


def draw(runs: Runs, figure: Any) -> None:
    forgetting = english_at_equal_code(runs, SMALL)
    left, middle, *right = panels(figure, 3, 12.5, 4.2) if forgetting else panels(figure, 2, 8.6, 4.2)
    planted_ranks = [r for r in RANKS if excess(runs, r)]
    band(left, planted_ranks, np.array([excess(runs, r) for r in planted_ranks]).T, BLUE, "LoRA", marker="o")
    full = mean(excess(runs, "full"))
    left.axhline(full, color=GRAY, linestyle="--", label="full, least squares")
    ranks = np.linspace(1, D, 100)
    left.plot(ranks, full * ranks * (2 * D - ranks) / D**2, ":", color=ORANGE, label="full × r(2d − r)/d²")
    left.set(xscale="log", yscale="log", xlabel="rank r (planted: 2)", ylabel="excess error ‖W − W*‖²")
    ticks(left, RANKS, (0.03, 0.1, 0.3))
    left.set_title(f"Planted: r = {RANK} errs {full / mean(excess(runs, RANK)):.0f} times less")
    few = examples_run(runs)
    for method, color, name in ((FULL, GRAY, "full"), (SMALL, BLUE, "LoRA q,v r = 8")):
        band(middle, few, 100 * np.array([accuracy(runs, method, n) for n in few]).T, color, name, marker="o")
    middle.set(xscale="log", xlabel="examples", ylabel="answered exactly (%)", ylim=(-4, 104))
    ticks(middle, few)
    middle.set_title(f"Strings: LoRA {100 * mean([v for n in few for v in gap(runs, n)]):+.0f} points against full")
    for ax in right:
        _draw_forgetting(runs, ax)
    for ax in (left, middle, *right):
        ax.legend(loc="upper left" if ax is not left else "lower right", fontsize=8)


def _draw_forgetting(runs: Runs, right: Any) -> None:
    first = next(c["base"][1] for c, _ in runs if "base" in c)
    for method, color in zip(FORGETTING, (GRAY, BLUE, GREEN), strict=True):
        for c, result in select(runs, method=method.name):
            if "learned" in result:
                label = method.name if c["base"][1] == first else None
                right.plot(result["learned"], result["known"], ".-", color=color, linewidth=1, label=label)
    right.invert_xaxis()
    right.set(xlabel="held-out code (bits/character), learning →", ylabel="held-out English (bits/character)")
    lost = ", ".join(f"{m.kind} {mean(english_at_equal_code(runs, m)):.2f}" for m in FORGETTING[:2])
    right.set_title(f"At equal code: {lost.replace('lora', 'LoRA')} bits")


CLAIM = Claim(
    id="low_data",
    short="With little data LoRA beats full",
    statement="With little data LoRA does better than full fine-tuning",
    where="App. F.3, Table 16",
    paper="MNLI, full and LoRA: " + ", ".join(f"{n} examples {a} and {b}" for n, (a, b) in PAPER.items()),
    configurations=configurations,
    experiment=Experiment(run, version=2),
    parts=PARTS,
    key=key,
    measured=measured,
    spread=spread,
    draw=draw,
)
