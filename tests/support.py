"""Small models and batches that several test files use."""

import numpy as np
import pytest

import minilora as ml

SMALL = ml.GPTConfig(vocab_size=11, context_length=8, d_model=16, n_layers=2, n_heads=4)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def batch(rng):
    """ids and targets (2, 7) for a SMALL model, some targets ignored."""
    ids, targets = rng.integers(0, 11, (2, 7)), rng.integers(0, 11, (2, 7))
    targets[0, :3] = -100
    return ids, targets


@pytest.fixture
def small():
    """small(dtype) -> a GPT whose weights are wide enough for every gradient to count."""

    def make(dtype="float32", **changes):
        config = ml.GPTConfig(**{**SMALL.__dict__, **changes})
        model = ml.GPT(config, seed=1, dtype=dtype)
        noise = np.random.default_rng(2)
        for p in model.parameters():
            p.data += noise.normal(0, 0.3, p.shape).astype(dtype)
        return model

    return make


def randomize(model, seed=3, std=0.3):
    """Give every lora_A and lora_B Gaussian entries; returns the parameters."""
    noise, parameters = np.random.default_rng(seed), []
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.data[...] = noise.normal(0, std, p.shape)
            parameters.append(p)
    return parameters
