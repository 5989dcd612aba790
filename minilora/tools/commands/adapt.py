"""`minilora adapt`: LoRA on a base."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...interop.files import digest
from ...interop.peft import CONFIG, WEIGHTS, load_adapter, save_adapter
from ...lora import LoRAConfig, adapted, add_lora, linear_sizes, lora_state_dict, remove_lora
from ...optim import Adam, linear_schedule
from ...texts import read_text
from ..console import columns, line, say
from ..learning import Data, check_outputs, same_file, train_with_bar
from ..models import known, model_of
from ..options import (
    CommonOptions,
    DataOptions,
    ModelOptions,
    TrainingOptions,
    base_option,
    data_options,
    four_bit_option,
    names_of,
    refuse_given,
    replace_option,
    tasks_of,
    training_options,
)

# What adapt uses where no option is given. For GPT-2 the paper's settings (Table 11), on shorter sequences; for a Llama
# the better of two rates for SmolLM2 on 40 steps of Python's source.
ADAPT: dict[str, Any] = {"lr": 1e-2, "batch": 32}
LORA: dict[str, Any] = {"r": 8, "alpha": None, "targets": "q_proj,v_proj", "dropout": 0.0}
ADAPT_OTHERS: dict[str, dict[str, Any]] = {"GPT-2": {"lr": 2e-4, "batch": 8}, "LLM": {"lr": 2e-3, "batch": 2}}
LORA_OTHERS: dict[str, dict[str, Any]] = {"GPT-2": {**LORA, "r": 4, "alpha": 32.0}, "LLM": {**LORA, "alpha": 16.0}}
LONGEST = 128  # positions, of a base that reads many more

TEXT = "Train LoRA on a base and save the adapter in PEFT's layout."
EXAMPLE = "minilora adapt --base strings --task revupper --r 8 --out adapter"


@dataclass(frozen=True)
class LoRAOptions(DataOptions):
    """An adapter to continue, or the settings of a new one."""

    adapter: Path | None
    r: int | None
    alpha: float | None
    targets: str | None
    dropout: float | None


@dataclass(frozen=True)
class Options(TrainingOptions, LoRAOptions, ModelOptions):
    @classmethod
    def of(cls, given: Mapping[str, Any]) -> CommonOptions:
        """What was not said is the base's: others have defaults of their own, and an adapter brings its settings."""
        kind = "GPT-2" if given["gpt2"] else "LLM" if given["llm"] else "base"
        defaults = {**ADAPT_OTHERS.get(kind, ADAPT), **({} if given["adapter"] else LORA_OTHERS.get(kind, LORA))}
        return super().of({**given, **{name: value for name, value in defaults.items() if given[name] is None}})


def options(sub: argparse.ArgumentParser) -> None:
    base_option(sub, gpt2=True, llm=True)
    four_bit_option(sub)
    data_options(sub, "what to learn")
    sub.add_argument(
        "--adapter", type=Path, help="continue from this adapter's folder, with its r, α, targets and dropout"
    )
    ranks, alphas = (
        "".join(f"; {kind}: {own[name]:g}" for kind, own in LORA_OTHERS.items() if own[name] != LORA[name])
        for name in ("r", "alpha")
    )
    sub.add_argument("--r", type=int, help=f"rank ({LORA['r']}{ranks})")
    sub.add_argument("--alpha", type=float, help=f"α; ΔW is scaled by α/r (α = r{alphas})")
    sub.add_argument(
        "--targets", help=f'modules to adapt, comma between, or "all", the head excepted ({LORA["targets"]})'
    )
    sub.add_argument("--dropout", type=float, help=f"on x before A, in training ({LORA['dropout']:g})")
    sub.add_argument("--context", type=int, help=f"positions of a sequence, with text (the base's; others: {LONGEST})")
    replace_option(sub)
    sub.add_argument("--out", type=Path, required=True, help="the adapter's folder")
    training_options(sub, lr=ADAPT["lr"], steps=300, batch=ADAPT["batch"], others=ADAPT_OTHERS)


def run(options: Options) -> None:
    if options.task is None and options.text is None:
        raise ValueError("Say what to learn: --task NAME or --text FILE.")
    checkpoint = options.out / "checkpoint.npz"
    check_outputs(options, options.out / CONFIG, options.out / WEIGHTS, checkpoint)
    tasks = tasks_of(options)
    if tasks:
        refuse_given(options, ("replace",), "is of text: string tasks have no other characters.")
    if options.adapter:
        refuse_given(options, tuple(LORA), "is what the adapter has: omit it, or omit --adapter.")
    targets = names_of("targets", options.targets) if options.targets is not None else ()
    model, vocabulary = model_of(options)
    text = known(options, read_text(options.text), vocabulary) if options.text else None
    longest = model.config.context_length
    default = longest if options.base else min(LONGEST, longest)
    context = default if options.context is None else options.context
    if context > longest:
        raise ValueError(f"--context must be 1 to {longest}, what the base reads, not {context}.")
    data = Data(options, vocabulary, context, tasks, text)
    made_of = {"data": data.digest}
    if options.adapter:
        load_adapter(model, options.adapter)
        # An adapter that is its own --out may have been replaced by the save after which a run was stopped.
        own = same_file(options.adapter, options.out)
        made_of["adapter"] = "its --out" if own else digest({}, lora_state_dict(model))
        before, said = data.measure(model), data.said(model)
        config = adapted(model)[1].config
        remove_lora(model)  # and put on again, so that --seed decides the dropout as it does without --adapter
    else:
        before, said = data.measure(model), data.said(model)
        assert options.r is not None and options.dropout is not None
        if targets == ("all",):
            targets = tuple(sorted({name.rpartition(".")[2] for name in linear_sizes(model)} - {"lm_head"}))
        config = LoRAConfig(options.r, options.alpha, targets, options.dropout)
    parameters = add_lora(model, config, seed=options.seed)
    if options.adapter:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # which the first loading has said
            load_adapter(model, options.adapter)
    optimizer = Adam(parameters, options.lr)
    schedule = linear_schedule(options.steps)
    train_with_bar(options, model, optimizer, data, schedule, checkpoint, made_of, clip=None)
    replaced = " in place of the adapter that was there" if (options.out / WEIGHTS).exists() else ""
    save_adapter(model, options.out)
    checkpoint.unlink(missing_ok=True)
    trained = sum(p.size for p in parameters)
    base = model.num_parameters() - trained
    scaling = config.scaling.replace("alpha", "α").replace("sqrt(r)", "√r")
    say(f"LoRA of rank {config.r} on {', '.join(config.target_modules)}, scaling {scaling} = {config.scale:g}:")
    say(f"{trained:,} numbers trained, {100 * trained / base:.2f} % of the base's {base:,}.\n")
    for cells in columns(data.sample(said, data.said(model))):
        say(line(cells))
    say(f"\nheld out, before: {before}\nheld out, after:  {data.measure(model)}\nSaved in {options.out}{replaced}.")
