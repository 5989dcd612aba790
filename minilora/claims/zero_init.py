"""§4.1: "We use a random Gaussian initialization for A and zero for B, so ΔW = BA is zero at the beginning."

What that start does, to the last bit: the adapted model is the base; A has no gradient at first and B has;
were both zero nothing would ever move; were both Gaussian the base would be damaged. And what the first
step does: full fine-tuning by SGD adds -η ΣG to W, LoRA's first step adds -η s² G A₀ᵀA₀.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import functional as F
from ..autograd import no_grad
from ..backend import asarray, to_numpy
from ..data import fixed
from ..gpt import GPT
from ..lora import LoRAConfig, add_lora, lora_layers, merge_lora
from ..optim import SGD, Adam, linear_schedule
from ..tasks import PRETRAINING
from ..training import evaluate
from .bases import adapt, held_out_strings, load_base, seed_of, string_draw
from .claim import (
    BITS,
    FAILS,
    HOLDS,
    Claim,
    Configuration,
    Experiment,
    Measurement,
    Outcome,
    Result,
    Runs,
    Settings,
    deviation,
    mean,
)
from .figures import BLUE, GRAY, ORANGE, PURPLE, band

TASK = "revupper"
R, ALPHA, STEPS, LR = 4, 8.0, 100, 1e-2
STARTS = ("A Gaussian, B zero", "A zero, B Gaussian", "both zero", "both Gaussian")


def configurations(settings: Settings) -> list[Configuration]:
    return [{"base": ["strings", seed], "start": start} for seed in settings.bases for start in STARTS] + [
        {"base": ["strings", seed], "start": "first steps"} for seed in settings.bases
    ]


def run(configuration: Configuration) -> Result:
    world, base = configuration["base"]
    if configuration["start"] == "first steps":
        return _first_steps(load_base(world, base), seed_of(base))
    return _start(load_base(world, base), configuration["start"], seed_of(base))


def _start(model: GPT, start: str, seed: int) -> Result:
    """The model at step 0, its gradients over the first steps, and whether it learns."""
    batches = held_out_strings(TASK)
    ids, targets = batches[0]
    with no_grad():
        base = model(ids).numpy()
        base64 = _double(model)(ids).numpy()
    known = fixed(string_draw(PRETRAINING, 256, held_out=True), 2)  # what the base can do
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
    result["loss"] = adapt(model, optimizer, string_draw((TASK,), 32), STEPS, seed, linear_schedule(STEPS))
    result["largest_parameter"] = float(max(np.abs(p.numpy()).max() for p in parameters))
    return result


def _set_start(model: GPT, start: str, seed: int) -> None:
    rng = np.random.default_rng(seed + 1)
    for layer in lora_layers(model).values():
        for name, parameter in (("A", layer.lora_A), ("B", layer.lora_B)):
            wide = rng.normal(0, 1 / np.sqrt(layer.weight.shape[1]), parameter.shape)
            gaussian = start == "both Gaussian" or f"{name} Gaussian" in start
            parameter.data[...] = asarray(wide) if gaussian else 0


def _double(model: GPT) -> GPT:
    """The same weights in float64."""
    double = GPT(model.config, seed=None, dtype="float64")
    double.load_state_dict(model.state_dict())
    return double


def _first_steps(model: GPT, seed: int) -> Result:
    """In float64: ΔW of full SGD against -η ΣG, and of LoRA's first SGD step against -η s² G A₀ᵀA₀."""
    model, eta, steps = _double(model), 1e-2, 5
    draw = string_draw((TASK,), 32)
    ids, targets = draw(np.random.default_rng(seed))
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
        "full_error": _relative(full, -eta * sum(gradients)),
        "lora_error": _relative(first, -eta * s**2 * gradients[0] @ A0.T @ A0),
    }


def _relative(a: Any, b: Any) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


def conclude(runs: Runs) -> Outcome:
    by_start = {start: [r for c, r in runs if c["start"] == start] for start in (*STARTS, "first steps")}
    zero_b, stuck, both = by_start[STARTS[0]], by_start["both zero"], by_start["both Gaussian"]
    first = by_start["first steps"]
    checks = {
        "logits equal": all(map(_starts_as_base, zero_b)),
        "dA = 0, dB > 0": all(r["gradient_norms"][0][0] == 0 and r["gradient_norms"][0][1] > 0 for r in zero_b),
        "dA > 0 next": all(r["gradient_norms"][1][0] > 0 for r in zero_b),
        "both zero stuck": all(r["largest_parameter"] == 0 for r in stuck),
        "both Gaussian not neutral": all(r["largest_change"] > 0.01 for r in both),
        "first steps": all(r["full_error"] < 1e-9 and r["lora_error"] < 1e-9 for r in first),
    }
    failed = [name for name, ok in checks.items() if not ok]
    verdict = FAILS if failed else HOLDS
    change, bits = [r["largest_change"] for r in both], [r["bits_at_start"] for r in both]
    error = max(_formula_errors(first))
    exact = "logits bit-equal to the base's; ∂L/∂A = 0 and ∂L/∂B ≠ 0 exactly; both zero: stuck"
    return Outcome(
        f"{'failed: ' + ', '.join(failed) if failed else exact}; both Gaussian: logits move by {mean(change):.1f}, "
        f"{mean(bits):+.2f} bits on the base's own tasks; first-step formulas to {error:.0e}",
        f"both Gaussian: ±{deviation(bits):.2f} bits",
        verdict,
        key=f"{sum(_starts_as_base(r) for r in zero_b)} of {len(zero_b)} bases start bit-equal",
        verdicts={"exact": verdict},  # also what both Gaussian do: any base would show it
        measurements=[
            Measurement("bit-equal to the base at the start (1: yes)", "exact", [_starts_as_base(r) for r in zero_b]),
            Measurement("‖∂L/∂A‖ at step 0", "exact", [r["gradient_norms"][0][0] for r in zero_b]),
            Measurement("‖∂L/∂B‖ at step 0", "exact", [r["gradient_norms"][0][1] for r in zero_b]),
            Measurement("largest parameter at the end, both zero", "exact", [r["largest_parameter"] for r in stuck]),
            Measurement("first-step formulas, relative error", "exact", _formula_errors(first)),
            Measurement("largest change of a logit, both Gaussian", "strings", change),
            Measurement("change on the base's own tasks, both Gaussian", "strings", bits, "bits"),
        ],
    )


def _starts_as_base(result: Result) -> bool:
    return result["equal_float32"] and result["equal_float64"] and result["equal_merged"]


def _formula_errors(results: list[Result]) -> list[float]:
    """Of each base, the larger error of the two."""
    return [max(r["full_error"], r["lora_error"]) for r in results]


def draw(runs: Runs, figure: Any) -> None:
    left, right = figure.subplots(1, 2)
    colors = dict(zip(STARTS, (BLUE, PURPLE, GRAY, ORANGE), strict=True))
    for start in STARTS:
        losses = np.array([r["loss"] for c, r in runs if c["start"] == start]) * BITS
        band(left, np.arange(1, losses.shape[1] + 1), losses, colors[start], start)
    left.set(xlabel="step", ylabel="loss on the answer (bits/character)", yscale="log")
    stuck = all(r["largest_parameter"] == 0 for c, r in runs if c["start"] == "both zero")
    left.set_title(f"One factor zero learns; both zero {'never moves' if stuck else 'moves'}")
    left.legend()
    norms = np.array([r["gradient_norms"] for c, r in runs if c["start"] == STARTS[0]])  # (seeds, steps, 2)
    for part, (name, color) in enumerate((("‖∂L/∂A‖", ORANGE), ("‖∂L/∂B‖", BLUE))):
        right.plot(range(norms.shape[1]), norms[:, :, part].T, "o-", color=color, alpha=0.6)
        right.plot([], [], "o-", color=color, label=name)
    right.set(xlabel="step", ylabel="gradient norm", xticks=range(norms.shape[1]), ylim=(0, None))
    only_b = bool((norms[:, 0, 0] == 0).all() and (norms[:, 0, 1] > 0).all())
    right.set_title("At step 0 only B has a gradient; A follows" if only_b else "At step 0 A has a gradient too")
    right.legend()


CLAIM = Claim(
    id="zero_init",
    short="B = 0 starts exactly as the base",
    statement="With B = 0 the adapted model starts as the base, exactly, and still learns",
    where="§4.1",
    paper="ΔW = BA is zero at the beginning of training",
    rule=(
        "holds if, on every base: logits are bit-equal in float32 and float64, merged too; ∂L/∂A = 0 and "
        "∂L/∂B ≠ 0 at step 0; A = B = 0 has not moved after 100 steps; both Gaussian moves a logit by more than "
        "0.01; and ΔW after SGD is -ηΣG (full) and -ηs²GA₀ᵀA₀ (LoRA's first step) to 1e-9"
    ),
    exact=True,
    configurations=configurations,
    experiment=Experiment(run, version=2),
    conclude=conclude,
    draw=draw,
)
