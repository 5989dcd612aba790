"""Small models and batches that several test files use."""

import numpy as np

import minilora as ml
from minilora import functional as F
from minilora.lora import lora_layers

ALL_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "fc_in", "fc_out")


def tiny_config(**changes):
    return ml.GPTConfig(**{"vocab_size": 7, "context_length": 6, "d_model": 8, "n_layers": 2, "n_heads": 2, **changes})


def tiny_gpt(seed=0, dtype="float32", **changes):
    return ml.GPT(tiny_config(**changes), seed=seed, dtype=dtype)


def randomize_lora(model, seed=1):
    """Give every B normal numbers, as if the adapter had been trained."""
    rng = np.random.default_rng(seed)
    for layer in lora_layers(model).values():
        layer.lora_B.data[...] = rng.normal(0, 0.5, layer.lora_B.shape)


def randomize(model, seed=3, std=0.3):
    """Give every lora_A and lora_B Gaussian entries; returns the parameters."""
    noise, parameters = np.random.default_rng(seed), []
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.data[...] = noise.normal(0, std, p.shape)
            parameters.append(p)
    return parameters


def lora_gpt(targets=ALL_TARGETS, r=2, alpha=3, randomize=True, **changes):
    """A tiny GPT with LoRA whose B is no longer zero; further settings go to the LoRA config or to the model."""
    lora_settings = {k: changes.pop(k) for k in ("dropout", "init", "init_std", "scaling") if k in changes}
    model = tiny_gpt(**changes)
    ml.add_lora(model, ml.LoRAConfig(r, alpha, targets, **lora_settings), seed=3)
    if randomize:
        randomize_lora(model)
    return model


def ids(model, B=2, T=5, seed=0):
    return np.random.default_rng(seed).integers(0, model.config.vocab_size, (B, T))


def batches(model, B=2, T=5, seed=0):
    """step -> (ids, targets): random tokens, the same every time for the same step."""

    def batch(step):
        rows = np.random.default_rng([seed, step]).integers(0, model.config.vocab_size, (B, T + 1))
        return rows[:, :-1], rows[:, 1:]

    return batch


def loss(model, step=0, **sizes):
    tokens, targets = batches(model, **sizes)(step)
    return F.cross_entropy(model(tokens), targets)


def snapshot(model):
    """Name -> (bytes, shape, requires_grad) of each parameter, to compare a model with itself later."""
    return {name: (p.numpy().tobytes(), p.shape, p.requires_grad) for name, p in model.named_parameters()}
