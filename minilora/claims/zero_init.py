"""§4.1: "a random Gaussian initialization for A and zero for B, so ΔW = BA is zero at the beginning of training".

What that start does, to the last bit: the adapted model is the base; A has no gradient at first and B has;
were both zero nothing would ever move; were both Gaussian the base would be damaged. And what the first
step does: full fine-tuning by SGD adds -η ΣG to W, LoRA's first step adds -η s² G A₀ᵀA₀. Starts that keep the base
differ too: after a hundred steps they are compared on what was learned (Hayou et al. 2024 expect A zero to be slower).
"""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

from .. import functional as F
from ..autograd import no_grad
from ..backend import asarray, to_numpy
from ..bases import held_out_strings, string_sampler
from ..data import fixed
from ..gpt import GPT
from ..lora import LoRAConfig, add_lora, lora_layers, merge_lora
from ..optim import SGD, Adam, linear_schedule
from ..tasks import PRETRAINING
from ..texts import BITS
from ..training import evaluate
from .bases import adapt, pretrained, seeds
from .claim import FAILS, Claim, Configuration, Experiment, Part, Result, Runs, Settings
from .figures import BLUE, GRAY, GREEN, ORANGE, PURPLE, band, dots, finding, label_lines, panels
from .measures import each, mean, of, relative
from .rules import always_above, always_equal, always_true, always_within, at_least

TASK = "revupper"
R, ALPHA, STEPS, LR = 4, 8.0, 100, 1e-2
STARTS = ("A Gaussian, B zero", "A Kaiming, B zero", "A zero, B Gaussian", "both zero", "both Gaussian")


def configurations(settings: Settings) -> list[Configuration]:
    return [
        {"base": ["strings", base], "start": start, **seeds(base)}
        for base in settings.bases
        for start in (*STARTS, "first steps")
    ]


def run(configuration: Configuration) -> Result:
    model, start = pretrained(*configuration["base"]), configuration["start"]
    seed, data_seed = configuration["adapter_seed"], configuration["data_seed"]
    return _first_steps(model, seed, data_seed) if start == "first steps" else _start(model, start, seed, data_seed)


def _start(model: GPT, start: str, seed: int, data_seed: int) -> Result:
    """The model at step 0, its gradients over the first steps, and whether it learns."""
    batches = held_out_strings(TASK)
    ids, targets = batches[0]
    with no_grad():
        base = model(ids).numpy()
        base64 = _double(model)(ids).numpy()
    known = fixed(string_sampler(PRETRAINING, 256, held_out=True), 2)  # what the base can do
    base_loss = evaluate(model, known)
    result: Result = {}
    double = _double(model)
    for m, reference, name in ((double, base64, "float64"), (model, base, "float32")):
        add_lora(m, LoRAConfig(R, ALPHA), seed=seed)
        _set_start(m, start, seed)
        with no_grad():
            unmerged = m(ids).numpy()
        result[f"equal_{name}"] = bool(np.array_equal(unmerged, reference))
    merge_lora(double)
    with no_grad():
        result["equal_merged"] = bool(np.array_equal(double(ids).numpy(), base64))
        result["largest_change"] = float(np.abs(model(ids).numpy() - base).max())
    result["bits_at_start"] = BITS * (evaluate(model, known) - base_loss)

    parameters = [p for layer in lora_layers(model).values() for p in (layer.lora_A, layer.lora_B)]
    gradients = []
    optimizer = Adam(parameters, LR)

    def gradient_norms() -> list[float]:
        """Of all A together, and of all B."""
        optimizer.zero_grad()
        F.cross_entropy(model(ids), targets).backward()
        return [
            math.sqrt(sum(float((to_numpy(p.grad) ** 2).sum()) for p in parameters[part::2] if p.grad is not None))
            for part in (0, 1)
        ]

    for _ in range(4):
        gradients.append(gradient_norms())
        optimizer.step()
    result["gradient_norms"] = gradients
    _set_start(model, start, seed)
    optimizer = Adam(parameters, LR)
    result["loss"] = adapt(model, optimizer, string_sampler((TASK,), 32), STEPS, data_seed, linear_schedule(STEPS))
    result["bits_at_end"] = BITS * evaluate(model, batches)
    result["largest_parameter"] = float(max(np.abs(p.numpy()).max() for p in parameters))
    return result


def _set_start(model: GPT, start: str, seed: int) -> None:
    rng = np.random.default_rng(seed + 1)
    for layer in lora_layers(model).values():
        for name, parameter in (("A", layer.lora_A), ("B", layer.lora_B)):
            width = 1 / np.sqrt(layer.weight.shape[1])
            if start == "both Gaussian" or f"{name} Gaussian" in start:
                parameter.data[...] = asarray(rng.normal(0, width, parameter.shape))
            elif f"{name} Kaiming" in start:  # as PEFT's default: uniform, of a third of the variance
                parameter.data[...] = asarray(rng.uniform(-width, width, parameter.shape))
            else:
                parameter.data[...] = 0


def _double(model: GPT) -> GPT:
    """The same weights in float64."""
    double = GPT(model.config, seed=None, dtype="float64")
    double.load_state_dict(model.state_dict())
    return double


def _first_steps(model: GPT, seed: int, data_seed: int) -> Result:
    """In float64: ΔW of full SGD against -η ΣG, and of LoRA's first SGD step against -η s² G A₀ᵀA₀."""
    model, eta, steps = _double(model), 1e-2, 5
    sample = string_sampler((TASK,), 32)
    ids, targets = sample(np.random.default_rng(data_seed))
    name = "blocks.1.attn.q_proj"
    weight = dict(model.named_modules())[name].weight  # type: ignore[attr-defined]
    start = model.state_dict()

    gradients: list[Any] = []
    optimizer = SGD(model.parameters(), eta)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(ids), targets).backward()
        gradients.append(to_numpy(weight.grad).copy())
        optimizer.step()
    full = weight.numpy() - start[f"{name}.weight"]
    model.load_state_dict(start)

    parameters = add_lora(model, LoRAConfig(R, ALPHA), seed=seed)
    layer = lora_layers(model)[name]
    A0, s = layer.lora_A.numpy(), layer.scaling
    F.cross_entropy(model(ids), targets).backward()
    SGD(parameters, eta).step()
    first = to_numpy(layer.delta_weight())
    return {
        "full_error": relative(full, -eta * sum(gradients)),
        "lora_error": relative(first, -eta * s**2 * gradients[0] @ A0.T @ A0),
    }


# ---- what it came to ---------------------------------------------------------------------------------


def of_start(runs: Runs, start: str) -> list[Result]:
    """Of each base."""
    return [r for c, r in runs if c["start"] == start]


def bit_equal(runs: Runs) -> list[float]:
    """Of each base, 1 where the model with B = 0 is the base in float32, in float64 and merged."""
    names = ("equal_float32", "equal_float64", "equal_merged")
    return [float(all(r[name] for name in names)) for r in of_start(runs, STARTS[0])]


def gradient_norms(runs: Runs, step: int, factor: str) -> list[float]:
    """Of each base with B = 0, that of all A together, or of all B, before that step."""
    return [r["gradient_norms"][step]["AB".index(factor)] for r in of_start(runs, STARTS[0])]


def formula_errors(runs: Runs) -> list[float]:
    """Of each base, the larger error of the two first-step formulas."""
    return [max(r["full_error"], r["lora_error"]) for r in of_start(runs, "first steps")]


def result_of(runs: Runs, start: str, name: str) -> list[float]:
    return [r[name] for r in of_start(runs, start)]


def behind(runs: Runs, start: str) -> list[float]:
    """Of each base, how many bits more that start loses at the end than A Gaussian, B zero."""
    return each(operator.sub, result_of(runs, start, "bits_at_end"), result_of(runs, STARTS[0], "bits_at_end"))


PARTS = (
    Part(
        "bit-equal to the base at the start (1: yes)",
        "exact",
        bit_equal,
        rule=always_true(),
        what="logits are bit-equal to the base's, in float32, in float64 and merged,",
    ),
    Part("‖∂L/∂A‖ at step 0", "exact", of(gradient_norms, 0, "A"), rule=always_equal(0)),
    Part("‖∂L/∂B‖ at step 0", "exact", of(gradient_norms, 0, "B"), rule=always_above(0)),
    Part("‖∂L/∂A‖ at step 1", "exact", of(gradient_norms, 1, "A"), rule=always_above(0)),
    Part(
        "largest parameter at the end, both zero",
        "exact",
        of(result_of, "both zero", "largest_parameter"),
        rule=always_equal(0),
        what=f"the largest parameter after {STEPS} steps from both zero",
    ),
    Part(
        "first-step formulas, relative error",
        "exact",
        formula_errors,
        rule=always_within(1e-9),
        what="the error of ΔW = -ηΣG (full, SGD) and of ΔW = -ηs²GA₀ᵀA₀ (LoRA's first step)",
    ),
    Part(
        "largest change of a logit, both Gaussian",
        "exact",
        of(result_of, "both Gaussian", "largest_change"),
        rule=always_above(0.01),
        what="the largest change of a logit, both Gaussian,",
    ),
    Part(
        "change on the base's own tasks, both Gaussian",
        "strings",
        of(result_of, "both Gaussian", "bits_at_start"),
        "bits",
        rule=at_least(0.1),
        what="what the base's own tasks lose at the start, both Gaussian,",
    ),
    *(
        Part(f"loss after {STEPS} steps, {start}", "strings", of(result_of, start, "bits_at_end"), "bits")
        for start in STARTS
    ),
    *(
        Part(f"loss after {STEPS} steps, {start}, minus {STARTS[0]}", "strings", of(behind, start), "bits")
        for start in STARTS[1:3]
    ),
)


def key(runs: Runs) -> str:
    equal = bit_equal(runs)
    return f"logits bit-equal on {sum(equal):.0f} of {len(equal)} bases"


def measured(runs: Runs) -> str:
    failed = [p.name for p in PARTS if p.world == "exact" and p.measured(runs).verdict == FAILS]
    exact = "logits bit-equal to the base's; ∂L/∂A = 0 and ∂L/∂B ≠ 0 exactly; both zero: stuck"
    change, bits = (result_of(runs, "both Gaussian", name) for name in ("largest_change", "bits_at_start"))
    later = ", ".join(f"{start} {mean(behind(runs, start)):+.2f}" for start in STARTS[1:3])
    return (
        f"{'failed: ' + ', '.join(failed) if failed else exact}; both Gaussian: logits move by {mean(change):.1f}, "
        f"{mean(bits):+.2f} bits on the base's own tasks; first-step formulas to {max(formula_errors(runs)):.0e}; "
        f"after {STEPS} steps, bits against {STARTS[0]}: {later}"
    )


def draw(runs: Runs, figure: Any) -> None:
    left, right = panels(figure, 2, 3.7, (1, 1))
    colors = dict(zip(STARTS, (BLUE, GREEN, PURPLE, GRAY, ORANGE), strict=True))
    labels = []
    for start in STARTS:
        losses = np.array([r["loss"] for r in of_start(runs, start)]) * BITS
        smooth = losses.reshape(len(losses), -1, 5).mean(axis=2)  # of five steps each
        middle = band(left, np.arange(3, losses.shape[1], 5), smooth, colors[start])
        words = start.replace(", B zero", "").replace("A zero, ", "")
        labels.append((float(losses.shape[1]), float(middle[-1]), words, colors[start]))
    left.set(xlabel="step", ylabel="bits/character of the answer", yscale="log", xlim=(0, 165), xticks=(0, 50, 100))
    left.set_title("learning a new task")
    harms = [result_of(runs, start, "bits_at_start") for start in STARTS]
    dots(right, [start.replace(", ", ",\n") for start in STARTS], harms, [colors[start] for start in STARTS])
    right.set(xlabel="bits lost at step 0", title="the base's own tasks")
    stuck = all(r["largest_parameter"] == 0 for r in of_start(runs, "both zero"))
    said = "One factor zero: the base, and it learns. Both zero: stuck. Neither: harm."
    finding(
        figure, said if stuck and mean(harms[-1]) > 0 else "The starts do not do what is said of them", len(harms[0])
    )
    label_lines(left, labels)


CLAIM = Claim(
    id="zero_init",
    short="B = 0 starts exactly as the base",
    statement="With B = 0 the adapted model starts as the base, exactly, and still learns",
    where="§4.1",
    paper='"ΔW = BA is zero at the beginning of training"',
    configurations=configurations,
    experiment=Experiment(run, version=3),
    parts=PARTS,
    key=key,
    measured=measured,
    draw=draw,
)
