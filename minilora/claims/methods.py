"""The methods that adapt a base: full fine-tuning, LoRA, and those that it is compared with.

The name of a method stands in configurations, in caches and in learning_rates.json: "lora q,v 4", "prefix 8", "full".
"""

from __future__ import annotations

from dataclasses import dataclass

from ..baselines import PromptTuned, RandomSubset, RandomSubspace, add_adapters, add_prefix, bitfit, last_block
from ..gpt import GPT
from ..lora import LoRAConfig, add_lora
from ..nn import Module, Parameter
from ..optim import Adam, Optimizer

_LETTERS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj", "in": "fc_in", "out": "fc_out"}


@dataclass(frozen=True)
class Method:
    """A kind of method and, where it has one, its size: a rank, a prefix's length, an adapter's width."""

    kind: str
    size: int = 0
    targets: str = ""  # of LoRA: "q,v", or "all"

    @property
    def name(self) -> str:
        return " ".join(str(said) for said in (self.kind, self.targets, self.size) if said)

    def __str__(self) -> str:
        return self.name

    @property
    def positions(self) -> int:
        """How many positions of the context it takes for itself."""
        return self.size if self.kind in ("prompt", "prefix") else 0

    def prepare(self, model: GPT, seed: int, init_std: float | None = None) -> tuple[Module, list[Parameter]]:
        """The model changed for it, and the parameters that get gradients."""
        if self.kind == "lora":
            letters = _LETTERS if self.targets == "all" else self.targets.split(",")
            modules = tuple(_LETTERS[letter] for letter in letters)
            config = LoRAConfig(self.size, alpha=2 * self.size, target_modules=modules, init_std=init_std)
            return model, add_lora(model, config, seed=seed)
        if self.kind == "prompt":
            tuned = PromptTuned(model, self.size, seed)
            return tuned, [tuned.prompt]
        if self.kind == "prefix":
            return model, add_prefix(model, self.size, seed)
        if self.kind in ("adapter-h", "adapter-l"):
            return model, add_adapters(model, self.size, "houlsby" if self.kind == "adapter-h" else "lin", seed)
        if self.kind == "bitfit":
            return model, bitfit(model)
        if self.kind == "last-block":
            return model, last_block(model)
        if self.kind in ("full", "subspace", "subset"):
            return model, model.parameters()
        raise ValueError(f"There is no method {self.name!r}.")

    def optimizer(self, parameters: list[Parameter], lr: float, seed: int) -> tuple[Optimizer, int]:
        """What trains these parameters, and how many numbers it moves."""
        if self.kind == "subspace":
            return RandomSubspace(parameters, self.size, lr, seed), self.size
        if self.kind == "subset":
            return RandomSubset(parameters, self.size, lr, seed), self.size
        return Adam(parameters, lr), sum(p.size for p in parameters)


def named(method: Method | str) -> Method:
    """The method, which may be given by its name."""
    kind, *settings = str(method).split()
    targets = settings.pop(0) if len(settings) > 1 else ""
    return Method(kind, int(settings[0]) if settings else 0, targets)


FULL, LAST_BLOCK, BITFIT = Method("full"), Method("last-block"), Method("bitfit")


def LoRA(targets: str, r: int) -> Method:
    """With α = 2r."""
    return Method("lora", r, targets)


def Prompt(length: int) -> Method:
    return Method("prompt", length)


def Prefix(length: int) -> Method:
    return Method("prefix", length)


def Adapter(style: str, width: int) -> Method:
    """Of the style "h", Houlsby's, or "l", Lin's."""
    return Method(f"adapter-{style}", width)


def Subspace(directions: int) -> Method:
    return Method("subspace", directions)


def Subset(weights: int) -> Method:
    return Method("subset", weights)
