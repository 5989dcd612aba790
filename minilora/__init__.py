"""minilora: LoRA (Hu et al. 2021) down to the last gradient, in plain NumPy."""

from .tools import ctrl_c  # noqa: F401, isort: skip  (first: importing NumPy takes its time)
from . import functional
from .autograd import Tensor, no_grad
from .backend import use_backend
from .data import Vocabulary
from .fast import textbook  # the guest comes in
from .generate import generate
from .gpt import GPT, GPTConfig
from .gradient_check import check_gradient, gradcheck
from .groups import decay_groups
from .llama import Llama, LlamaConfig
from .lora import (
    LoRAConfig,
    add_lora,
    lora_disabled,
    lora_state_dict,
    merge_and_unload,
    merge_lora,
    remove_lora,
    unmerge_lora,
)
from .machine import tune_machine
from .optim import SGD, Adam, AdamW, clip_grad_norm, cosine_schedule, linear_schedule
from .texts import generate_text
from .training import DivergedError, batch_loss, evaluate, train

__version__ = "0.1.0"

# Files are the last room a reader enters, and safetensors is imported only when one is touched.
_LATE = {
    "save_adapter": "interop.peft",
    "load_adapter": "interop.peft",
    "save_checkpoint": "interop.checkpoint",
    "load_checkpoint": "interop.checkpoint",
    "load_model": "interop.checkpoint",
    "load_gpt2": "interop.gpt2",
    "load_llama": "interop.llama",
    "save_llama": "interop.llama",
}


def __getattr__(name: str) -> object:
    if name in _LATE:
        from importlib import import_module

        return getattr(import_module(f".{_LATE[name]}", __name__), name)
    raise AttributeError(f"minilora has no {name!r}.")


__all__ = [
    "GPT",
    "SGD",
    "Adam",
    "AdamW",
    "DivergedError",
    "GPTConfig",
    "Llama",
    "LlamaConfig",
    "LoRAConfig",
    "Tensor",
    "Vocabulary",
    "add_lora",
    "batch_loss",
    "check_gradient",
    "clip_grad_norm",
    "cosine_schedule",
    "decay_groups",
    "evaluate",
    "functional",
    "generate",
    "generate_text",
    "gradcheck",
    "linear_schedule",
    "load_adapter",
    "load_checkpoint",
    "load_gpt2",
    "load_llama",
    "load_model",
    "lora_disabled",
    "lora_state_dict",
    "merge_and_unload",
    "merge_lora",
    "no_grad",
    "remove_lora",
    "save_adapter",
    "save_checkpoint",
    "save_llama",
    "textbook",
    "train",
    "tune_machine",
    "unmerge_lora",
    "use_backend",
]
