"""§4.1 and §1: "the updates to the weights also have a low 'intrinsic rank' during adaptation".

Full fine-tuning learns a task; then the change of every matrix in the blocks is replaced by its best rank-k part
(everything else stays as learned), and the model is examined again. What is kept says whether the task needs more; the
spectrum says how much of ‖ΔW‖² lies where, beside that of a Gaussian matrix of the same shape, of which 90 % lies in
about half of its values.
"""

from __future__ import annotations

import operator
from functools import lru_cache
from typing import Any

import numpy as np

from ..analysis import spectrum, truncate
from ..backend import asarray
from ..nn import Linear
from ..texts import BITS
from ..training import evaluate, evaluate_exact_match
from .adaptation import TASKS, adaptation, held_out, learn, steps_of, worlds_run
from .bases import pretrained
from .claim import Claim, Configuration, Experiment, Part, Result, Runs, Settings
from .figures import BLUE, GRAY, ORANGE, band, finding, panels, ticks
from .measures import each, mean, of, percent
from .methods import FULL
from .rules import NEAR, NEAR_IN_WORDS, at_least, at_most

CUTS = (0, 1, 2, 4, 8, 16, 32, 64)
SMALL = 8  # the k that the verdict asks about


def configurations(settings: Settings) -> list[Configuration]:
    return [
        {**adaptation(world, s, task, FULL, steps=steps_of(world, settings)), "experiment": "intrinsic_rank"}
        for s in settings.bases
        for world, task in TASKS.items()
        if world == "strings" or not settings.quick
    ]


def run(configuration: Configuration) -> Result:
    """Bits with every ΔW cut to rank k, for each k, and on strings the share answered; the part of ‖ΔW‖² in the first k
    singular values, the mean over matrices, and of Gaussian matrices of the same shapes."""
    (world, seed), task = configuration["base"], configuration["task"]
    base = pretrained(world, seed)
    model, _ = learn(configuration)
    names = [n for n, m in model.named_modules() if isinstance(m, Linear) and n.startswith("blocks")]
    starts, modules = dict(base.named_modules()), dict(model.named_modules())
    changes = {n: modules[n].weight.numpy() - starts[n].weight.numpy() for n in names}  # type: ignore[attr-defined]
    batches = held_out(world, task)
    result: Result = {"bits": [], "answered": []}
    for k in CUTS:
        for n in names:
            modules[n].weight.data[...] = starts[n].weight.data + asarray(truncate(changes[n], k))  # type: ignore[attr-defined]
        result["bits"].append(BITS * evaluate(model, batches))
        if world == "strings":
            result["answered"].append(evaluate_exact_match(model, batches))
    result["energy"] = np.mean([_energy(change) for change in changes.values()], axis=0).tolist()
    result["random"] = np.mean([_of_gaussian(change.shape) for change in changes.values()], axis=0).tolist()
    return result


def _energy(change: np.ndarray) -> np.ndarray:
    """The part of the squared norm in the first k singular values, for each k."""
    squares = spectrum(change) ** 2
    return np.cumsum(squares) / squares.sum()


@lru_cache
def _of_gaussian(shape: tuple[int, int]) -> np.ndarray:
    """The mean over ten draws."""
    rng = np.random.default_rng(0)
    return np.mean([_energy(rng.normal(size=shape)) for _ in range(10)], axis=0)


# ---- what it came to ---------------------------------------------------------------------------------


def results(runs: Runs, world: str) -> list[Result]:
    """Of each base."""
    return [r for c, r in runs if c["base"][0] == world]


def lost(runs: Runs, world: str, k: int) -> list[float]:
    """Of each base, how many bits more than uncut."""
    return [r["bits"][CUTS.index(k)] - r["bits"][-1] for r in results(runs, world)]


def kept(runs: Runs, world: str, k: int) -> list[float]:
    """Of each base, the share of what the matrices' changes gain in bits that remains."""
    return [(r["bits"][0] - r["bits"][CUTS.index(k)]) / (r["bits"][0] - r["bits"][-1]) for r in results(runs, world)]


def answered(runs: Runs, k: int) -> list[float]:
    """Of each base on strings, of what the whole ΔW answers."""
    return [r["answered"][CUTS.index(k)] / r["answered"][-1] for r in results(runs, "strings")]


def energy(runs: Runs, world: str, which: str, k: int = SMALL) -> list[float]:
    """Of each base, the part of ‖ΔW‖², or of a "random" matrix's, in the first k values."""
    return [r[which][k - 1] for r in results(runs, world)]


def above_random(runs: Runs, world: str) -> list[float]:
    return each(operator.sub, energy(runs, world, "energy"), energy(runs, world, "random"))


PARTS = (
    Part(
        f"bits lost at rank {SMALL}",
        "strings",
        of(lost, "strings", SMALL),
        "bits",
        rule=at_most(NEAR),
        what=f"what full fine-tuning loses if every ΔW is cut to rank {SMALL} of 64, a character {NEAR_IN_WORDS},",
    ),
    Part(
        f"gain kept at rank {SMALL}",
        "text",
        of(kept, "text", SMALL),
        "%",
        rule=at_least(0.9),
        what=f"the share of the matrices' gain in bits that rank {SMALL} keeps",
    ),
    *(
        Part(
            f"part of ‖ΔW‖² in {SMALL} values, above a Gaussian's",
            world,
            of(above_random, world),
            "%",
            rule=at_least(0),
            what=f"the part of ‖ΔW‖² in the first {SMALL} of 64 values, minus a Gaussian matrix's,",
        )
        for world in TASKS
    ),
    *(Part(f"part of ‖ΔW‖² in {SMALL} values", world, of(energy, world, "energy"), "%") for world in TASKS),
    *(Part(f"part of a Gaussian's in {SMALL} values", world, of(energy, world, "random"), "%") for world in TASKS),
    *(Part(f"gain kept, cut to rank {k}", world, of(kept, world, k), "%") for world in TASKS for k in CUTS),
    *(Part(f"answers kept, cut to rank {k}", "strings", of(answered, k), "%") for k in CUTS),
)


def key(runs: Runs) -> str:
    said = f"rank {SMALL}: {mean(lost(runs, 'strings', SMALL)):+.3f} bits"
    return said + (f"; text keeps {percent(on_text)} %" if (on_text := kept(runs, "text", SMALL)) else "")


def measured(runs: Runs) -> str:
    said = []
    for world in worlds_run(runs):
        shown = ", ".join(f"{k}: {100 * mean(kept(runs, world, k)):.1f}" for k in CUTS[1:-2])
        own, random = (percent(energy(runs, world, which)) for which in ("energy", "random"))
        said.append(
            f"{world}, gain kept at rank k (%) {shown}; {SMALL} values hold {own} % of ‖ΔW‖² (Gaussian: {random} %)"
        )
    return "; ".join(said)


def draw(runs: Runs, figure: Any) -> None:
    left, right = panels(figure, 2, 3.7)
    ks, spectra, cuts = np.arange(1, 65), [], []
    for world, color in zip(worlds_run(runs), (BLUE, ORANGE), strict=False):
        middle = band(left, ks, 100 * np.array([r["energy"] for r in results(runs, world)]), color)
        spectra.append((8.0, float(middle[7]), world, color))
        shares = 100 * np.array([kept(runs, world, k) for k in CUTS]).T
        middle = band(right, range(len(CUTS)), shares, color, marker="o")
        cuts.append((CUTS.index(2), float(middle[CUTS.index(2)]), world, color))
    random = 100 * np.array(results(runs, "strings")[0]["random"])
    left.plot(ks, random, ":", color=GRAY)
    spectra.append((8.0, float(random[7]), "Gaussian", GRAY))
    left.set(xscale="log", xlabel="first k singular values", ylabel="part of ‖ΔW‖² (%)", title="spectrum")
    ticks(left, CUTS[1:])
    right.set_xticks(range(len(CUTS)), [str(k) for k in CUTS])
    right.set(
        xlabel="rank k that every ΔW is cut to", ylabel="gain kept (%)", ylim=(-8, 108), title="what the cut keeps"
    )
    keeps = " and ".join(f"{percent(kept(runs, world, SMALL))} % on {world}" for world in worlds_run(runs))
    finding(figure, f"Cut to rank {SMALL} of 64, full fine-tuning keeps {keeps}", len(results(runs, "strings")))
    for ax, labels in ((left, spectra), (right, cuts)):
        for x, y, words, color in labels:
            ax.annotate(words, (x, y), xytext=(6, -12), textcoords="offset points", color=color, fontsize=9)
    right.axhline(100, color=GRAY, linewidth=1, linestyle=":")


CLAIM = Claim(
    id="intrinsic_rank",
    short="Full fine-tuning: low-rank ΔW",
    statement="What full fine-tuning changes has a low rank",
    where="§1, §4.1",
    paper="a hypothesis: updates have a low intrinsic rank; r = 1 to 8 suffices for GPT-3",
    configurations=configurations,
    experiment=Experiment(run, version=3),
    parts=PARTS,
    key=key,
    measured=measured,
    draw=draw,
)
