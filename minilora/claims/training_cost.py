"""§4.2: LoRA needs no gradients and no Adam states for what is frozen; "a 25% speedup during training on GPT-3".

On the tiny model everything is measured and compared with the formulas of `minilora.budget`, which then speak for
GPT-3. Bytes are counted by array, not by process: the arrays come from blocks that are kept and used again, so that
neither the process's size nor `tracemalloc` says which of them are needed. For activations that means the arrays
which the backward functions on the tape still hold. The multiply-adds of a step are counted beside the clock: a token
and a matrix of N by N cost full fine-tuning 3N² and LoRA 2N² + 6Nr, since ∂L/∂W₀ is never computed.

What the paper's own tables come to by its formulas is on a page of its own: `minilora budget --paper`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .. import functional as F
from ..autograd import Tensor
from ..budget import PRESETS, Budget, full_budget, lora_budget, readable
from ..gpt import GPT, GPTConfig
from ..interop.checkpoint import save_checkpoint
from ..interop.peft import save_adapter
from ..lora import LoRAConfig, add_lora
from ..optim import Adam
from .claim import Claim, Configuration, Experiment, Part, Result, Runs, Settings
from .figures import BLUE, GRAY, GREEN, ORANGE, SKY, finding, panels
from .measures import median_interval, of, quartiles_of, select
from .planted import Student
from .products import counted
from .rules import always_equal, median_at_most
from .stopwatch import repeats_for, seconds_of
from .tape import saved_bytes

R, TARGETS = 4, ("q_proj", "v_proj")
N = 64  # the side of the matrix whose products are counted
METHODS = ("full", "lora")
BATCH, TIME = 32, 20  # tokens of the memory run, as the string tasks are learned
# batch, time, d_model, layers
STEPS: tuple[tuple[int, int, int, int], ...] = ((64, 20, 64, 2), (16, 64, 64, 2), (32, 64, 128, 4))
ROUNDS = 15
FILE_SLACK = 4096  # bytes of headers and settings in an adapter's files
ACTIVATIONS_WITHIN = 0.02  # of the formula, which leaves out indices and what is one number a row
PAPER_TIME = 32.5 / 43.1  # of a LoRA step, from the tokens/s of §4.2's footnote
PAPER_MEMORY = (1.2e12, 350e9)  # bytes


def configurations(settings: Settings) -> list[Configuration]:
    sizes, rounds = (STEPS[:2], ROUNDS // 3) if settings.quick else (STEPS, ROUNDS)
    return [
        {"measure": "bytes", "batch": BATCH, "time": TIME},
        {"measure": "products", "sizes": [list(size) for size in sizes], "matrix": [N, R]},
        *(
            {"measure": "time", "batch": B, "time": T, "d_model": D, "layers": L, "rounds": rounds}
            for B, T, D, L in sizes
        ),
    ]


def run(configuration: Configuration) -> Result:
    """Of full fine-tuning and of LoRA: the bytes, or the milliseconds of a step in every round."""
    if configuration["measure"] == "products":
        return _products(configuration["sizes"], *configuration["matrix"])
    B, T = configuration["batch"], configuration["time"]
    ids, targets = np.random.default_rng(0).integers(0, PRESETS["tiny"].vocab, (2, B, T))
    if configuration["measure"] == "bytes":
        return {method: _bytes(method, ids, targets) for method in ("full", "lora")}
    return _milliseconds(configuration, ids, targets)


def _model(method: str, context: int, d_model: int, layers: int) -> tuple[GPT, Adam]:
    tiny = PRESETS["tiny"]
    model = GPT(GPTConfig(tiny.vocab, context, d_model, layers, tiny.n_heads), seed=0)
    parameters = add_lora(model, LoRAConfig(R, target_modules=TARGETS)) if method == "lora" else model.parameters()
    return model, Adam(parameters, 1e-3)


# ---- bytes -------------------------------------------------------------------------------------------


def _bytes(method: str, ids: np.ndarray, targets: np.ndarray) -> dict[str, int]:
    tiny = PRESETS["tiny"]
    model, optimizer = _model(method, tiny.context, tiny.d_model, tiny.n_layers)
    loss = F.cross_entropy(model(ids), targets)
    activations = saved_bytes(loss, model)
    loss.backward()
    optimizer.step()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if method == "lora":
            save_adapter(model, folder)
        else:
            save_checkpoint(folder / "model.npz", model)
        file = sum(path.stat().st_size for path in folder.iterdir())
    return {
        "trainable": model.num_parameters(trainable_only=True),
        "weights": sum(p.data.nbytes for p in model.parameters()),
        "gradients": sum(p.grad.nbytes for p in model.parameters() if p.grad is not None),
        "adam": sum(array.nbytes for arrays in optimizer.state.values() for array in arrays),
        "activations": activations,
        "file": file,
    }


# ---- products ----------------------------------------------------------------------------------------


def _products(sizes: list[list[int]], n: int, r: int) -> Result:
    """Multiply-adds of a step: of one token through one N by N matrix, and of each size's whole model, a batch of 2."""
    result: Result = {"matrix": {}, "step": []}
    rng = np.random.default_rng(0)
    for method in METHODS:
        student = Student(np.zeros((n, n)))
        if method == "lora":
            add_lora(student, LoRAConfig(r, target_modules=("layer",)))
        with counted() as count:
            student(Tensor(np.ones((1, n)), requires_grad=True))  # as inside a model, where x needs a gradient too
        result["matrix"][method] = count.forward + count.backward
    for _, T, D, L in sizes:
        ids, targets = rng.integers(0, PRESETS["tiny"].vocab, (2, 2, T))
        step = {}
        for method in METHODS:
            model, _ = _model(method, T, D, L)
            with counted() as count:
                F.cross_entropy(model(ids), targets)
            step[method] = count.forward + count.backward
        result["step"].append(step)
    return result


# ---- time --------------------------------------------------------------------------------------------


def _milliseconds(configuration: Configuration, ids: np.ndarray, targets: np.ndarray) -> Result:
    steps = {method: _step(method, configuration, ids, targets) for method in ("full", "lora")}
    repeats = repeats_for(steps["full"], 0.03)  # 30 ms or more are well timed
    times: dict[str, list[float]] = {method: [] for method in steps}
    for number in range(configuration["rounds"] + 1):
        for method in list(steps)[:: -1 if number % 2 else 1]:  # neither is always first
            took = seconds_of(steps[method], repeats)
            if number:  # the first warms up
                times[method].append(1e3 * took)
    return times


def _step(method: str, configuration: Configuration, ids: np.ndarray, targets: np.ndarray) -> Callable[[], None]:
    model, optimizer = _model(method, configuration["time"], configuration["d_model"], configuration["layers"])

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(ids), targets).backward()
        optimizer.step()

    return step


# ---- what it came to ---------------------------------------------------------------------------------


def of_rounds(runs: Runs, size: tuple[int, int, int, int]) -> list[float]:
    """A LoRA step's time over a full one's, in each round."""
    B, T, D, L = size
    times = [times for _, times in select(runs, measure="time", batch=B, time=T, d_model=D, layers=L)]
    return (np.array(times[0]["lora"]) / np.array(times[0]["full"])).tolist() if times else []


def ratios(runs: Runs) -> dict[str, tuple[float, float, float]]:
    """Of each size: lower quartile, median, upper quartile of a LoRA step's time over a full one's in its round."""
    found = {}
    for size in STEPS:
        if rounds := of_rounds(runs, size):
            found[_size(size)] = quartiles_of(rounds)
    return found


def _size(size: tuple[int, int, int, int]) -> str:
    B, T, D, L = size
    return f"{B} x {T}, d {D}, {L} layers"


def _formulas(B: int, T: int, preset: str = "tiny") -> dict[str, Budget]:
    shape = PRESETS[preset]
    return {"full": full_budget(shape, B, T), "lora": lora_budget(shape, R, TARGETS, B, T)}


def _of_bytes(runs: Runs) -> tuple[dict[str, Budget], Result]:
    """What the formulas say of full fine-tuning and of LoRA, and what was measured."""
    configuration, measured = select(runs, measure="bytes")[0]
    return _formulas(configuration["batch"], configuration["time"]), measured


def misses(runs: Runs) -> list[str]:
    """What was not measured as the formulas say, in words."""
    formulas, measured = _of_bytes(runs)
    wrong = []
    for method, budget in formulas.items():
        found = measured[method]
        for name in ("trainable", "weights", "gradients", "adam"):
            if found[name] != getattr(budget, name):
                wrong.append(f"{name} of {method} {found[name]:,}, not {getattr(budget, name):,}")
        if activations_off(runs, method)[0] > ACTIVATIONS_WITHIN:
            wrong.append(f"activations of {method} {found['activations']:,}, not about {budget.activations:,}")
    file, numbers = measured["lora"]["file"], formulas["lora"].checkpoint
    if not numbers <= file <= numbers + FILE_SLACK:
        wrong.append(f"the adapter's files {file:,} bytes for {numbers:,} of numbers")
    return wrong


def activations_off(runs: Runs, method: str) -> list[float]:
    """How far a method's activations are from the formula's, as a share of these."""
    formulas, measured = _of_bytes(runs)
    return [abs(measured[method]["activations"] / formulas[method].activations - 1)]


def saved(runs: Runs) -> list[float]:
    """How much less LoRA's weights and Adam states take than full fine-tuning's, as a share of these."""
    full, lora = (_of_bytes(runs)[1][method] for method in METHODS)
    return [1 - (lora["weights"] + lora["adam"]) / (full["weights"] + full["adam"])]


def found(runs: Runs, method: str, *names: str) -> list[float]:
    """Bytes of these together, or a count, of the one model that every base has in common."""
    return [sum(_of_bytes(runs)[1][method][name] for name in names)]


def products_off(runs: Runs) -> list[float]:
    """By how many multiply-adds one token and matrix miss 3N² (full) and 2N² + 6Nr (LoRA), together."""
    counts = select(runs, measure="products")[0][1]["matrix"]
    return [abs(counts["full"] - 3 * N * N) + abs(counts["lora"] - (2 * N * N + 6 * N * R))]


def products_ratio(runs: Runs, size: tuple[int, int, int, int]) -> list[float]:
    """LoRA's multiply-adds of a step over full fine-tuning's."""
    configuration, result = select(runs, measure="products")[0]
    if list(size) not in configuration["sizes"]:
        return []
    step = result["step"][configuration["sizes"].index(list(size))]
    return [step["lora"] / step["full"]]


COUNTED = {
    "weights": ("weights",),
    "gradients": ("gradients",),
    "Adam states": ("adam",),
    "activations": ("activations",),
    "file": ("file",),
    "gradients and Adam states": ("gradients", "adam"),
}
PARTS = (
    Part(
        "numbers that are not as the formulas say",
        "exact",
        lambda runs: [len(misses(runs))],
        rule=always_equal(0),
        what="the number of misses of the formulas, for full fine-tuning and LoRA on the tiny model "
        "(trained parameters; bytes of weights, gradients and Adam states; the tape's arrays to 2 %; the adapter's "
        "files to 4 KiB)",
    ),
    *(Part(f"trained parameters, {m}", "exact", of(found, m, "trainable")) for m in METHODS),
    *(Part(f"{name}, {m}", "exact", of(found, m, *names), "bytes") for name, names in COUNTED.items() for m in METHODS),
    *(Part(f"activations off the formula, {m}", "exact", of(activations_off, m), "%") for m in METHODS),
    Part("weights and Adam states saved", "exact", saved, "%"),
    *(
        Part(
            f"LoRA step over a full one, {_size(size)}",
            "time",
            of(of_rounds, size),
            rule=median_at_most(1),
            what="a LoRA step's time over a full one's, at each size,",
        )
        for size in STEPS
    ),
    Part(
        "multiply-adds off 3N² and 2N² + 6Nr",
        "exact",
        products_off,
        rule=always_equal(0),
        what="the multiply-adds of a token and a matrix, counted, off 3N² (full) and 2N² + 6Nr (LoRA),",
    ),
    *(Part(f"LoRA's multiply-adds over full's, {_size(size)}", "exact", of(products_ratio, size)) for size in STEPS),
)


def key(runs: Runs) -> str:
    full, lora = (_of_bytes(runs)[1][method] for method in METHODS)
    return f"Adam states {_both(lora, full, 'adam')}"


def measured(runs: Runs) -> str:
    full, lora = (_of_bytes(runs)[1][method] for method in METHODS)
    wrong, steps = misses(runs), ratios(runs)
    counted_too = ", ".join(f"{products_ratio(runs, size)[0]:.2f}" for size in STEPS if products_ratio(runs, size))
    return (
        f"tiny model: {lora['trainable']:,} of {full['trainable']:,} parameters train; "
        + (f"not as the formulas say: {'; '.join(wrong)}; " if wrong else "bytes as the formulas say; ")
        + f"gradients and Adam states {_both(lora, full, 'gradients', 'adam')}, activations "
        f"{_both(lora, full, 'activations')}, file {_both(lora, full, 'file')}; a LoRA step takes "
        f"{', '.join(f'{m:.2f}' for _, m, _ in steps.values())} of a full one's time and {counted_too} of its "
        f"multiply-adds (GPT-3: {PAPER_TIME:.2f} of the time)"
    )


def _both(lora: Result, full: Result, *names: str) -> str:
    return f"{readable(sum(lora[n] for n in names))} instead of {readable(sum(full[n] for n in names))}"


# ---- drawing -----------------------------------------------------------------------------------------

_PARTS = (
    ("weights", "weights", BLUE),
    ("gradients", "gradients", GREEN),
    ("adam", "Adam's m and v", ORANGE),
    ("activations", "activations", SKY),
)


def draw(runs: Runs, figure: Any) -> None:
    left, right = panels(figure, 2, 4.2, (1.25, 1))
    share = _draw_memory(runs, left)
    _draw_steps(runs, right)
    medians = sorted(middle for _, middle, _ in ratios(runs).values())
    said = f"LoRA takes {100 * share:.0f} % of full fine-tuning's memory on GPT-3, and {medians[0]:.2f} to "
    finding(figure, f"{said}{medians[-1]:.2f} of a step's time here")


def _draw_memory(runs: Runs, axes: Any) -> float:
    """Returns LoRA's share of full fine-tuning's memory on GPT-3."""
    _, measured = select(runs, measure="bytes")[0]
    B, T = 1, 2048
    formulas = _formulas(B, T, "gpt3-175b")
    parts = {
        "tiny,\nmeasured": measured,
        "GPT-3,\nformula": {m: vars(b) for m, b in formulas.items()},
    }
    shares = []
    for group, sizes in enumerate(parts.values()):
        whole = sum(sizes["full"][name] for name, _, _ in _PARTS)
        for place, method in ((3 * group, "full"), (3 * group + 1, "lora")):
            bottom = 0.0
            for name, part, color in _PARTS:
                height = sizes[method][name] / whole
                first = part if place == 0 else None
                axes.bar(place, height, 0.85, bottom, color=color, label=first, edgecolor="white", linewidth=0.6)
                bottom += height
            _say(axes, place, bottom, method, readable(bottom * whole))
        shares.append(bottom)
    for place, method, size in ((6, "full", PAPER_MEMORY[0]), (7, "lora", PAPER_MEMORY[1])):
        axes.bar(place, size / PAPER_MEMORY[0], 0.85, color="none", edgecolor=GRAY, linewidth=1.4, hatch="//")
        _say(axes, place, size / PAPER_MEMORY[0], method, readable(size))
    axes.set_xticks([0.5, 3.5, 6.5], [*parts, "GPT-3, paper\n(no parts)"])
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="x", visible=False)
    axes.set(ylim=(0, 1.42), yticks=np.arange(0, 1.01, 0.25))
    axes.legend(fontsize=8.5, ncols=2, loc="upper left")
    axes.set_title("memory, as a share of full fine-tuning's")
    return shares[1]


def _say(axes: Any, place: float, height: float, method: str, size: str) -> None:
    name = "LoRA" if method == "lora" else "full"
    axes.text(place, height + 0.015, f"{name}\n{size}", ha="center", va="bottom", fontsize=8.5)


def _draw_steps(runs: Runs, axes: Any) -> None:
    sizes = [size for size in STEPS if of_rounds(runs, size)]
    for place, size in enumerate(sizes):
        rounds = of_rounds(runs, size)
        low, high = median_interval(rounds)
        axes.plot([low, high], [place, place], color=BLUE, linewidth=2)
        axes.plot([quartiles_of(rounds)[1]], [place], "o", color=BLUE)
        axes.plot(products_ratio(runs, size), [place - 0.2], "s", color=ORANGE, markersize=5)
    axes.axvline(1, color=GRAY, linewidth=1)
    axes.axvline(PAPER_TIME, color=GRAY, linestyle="--", linewidth=1)
    axes.set_yticks(range(len(sizes)), [_size(size).replace(", ", "\n", 1) for size in sizes])
    axes.set(xlim=(0.55, 1.1), ylim=(-0.6, len(sizes) - 0.2), xlabel="of a full step")
    axes.set_title("● time, ■ products; dashed: GPT-3")
    axes.grid(axis="y", visible=False)


CLAIM = Claim(
    id="budget",
    short="What is frozen needs no Adam",
    statement="LoRA needs no gradients and no Adam states for frozen weights, and its steps are faster",
    where="§4.2, §5.1, Tables 1-5 and 15",
    paper="GPT-3 with r = 4 on q, v: memory 1.2 TB → 350 GB, checkpoint 350 GB → 35 MB, 25 % faster",
    configurations=configurations,
    experiment=Experiment(run, version=2, alone=True),
    parts=PARTS,
    key=key,
    measured=measured,
    draw=draw,
)
