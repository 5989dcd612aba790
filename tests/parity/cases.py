"""The models, batches and settings on which minilora and PyTorch are compared."""

import numpy as np

import minilora as ml
from minilora.backend import asarray

SIZES = {
    "small": ml.GPTConfig(vocab_size=11, context_length=8, d_model=16, n_layers=2, n_heads=4),
    "tied": ml.GPTConfig(vocab_size=13, context_length=6, d_model=12, n_layers=1, n_heads=3, tied_head=True),
    "long": ml.GPTConfig(vocab_size=17, context_length=40, d_model=24, n_layers=2, n_heads=2),
}
R, ALPHA, STEPS, LR = 2, 6.0, 50, 1e-2


def model_and_batch(size):
    """A float64 GPT with wide weights; ids and targets (3, context), some targets ignored."""
    config = SIZES[size]
    model = ml.GPT(config, seed=1, dtype="float64")
    rng = np.random.default_rng(2)
    for p in model.parameters():
        p.data += asarray(rng.normal(0, 0.2, p.shape))
    ids, targets = rng.integers(0, config.vocab_size, (2, 3, config.context_length))
    targets[0, :3] = -100
    return model, ids, targets


def random_adapter(model, scaling="alpha/r"):
    """LoRA on q and v with random A and B; returns the trainable parameters."""
    trainable = ml.add_lora(model, ml.LoRAConfig(R, ALPHA, scaling=scaling), seed=3)
    rng = np.random.default_rng(4)
    for p in trainable:
        p.data[...] = asarray(rng.normal(0, 0.3, p.shape))
    return trainable


def lora_steps(model, trainable, ids, targets):
    """The losses of STEPS Adam steps of LoRA."""
    optimizer = ml.Adam(trainable, lr=LR)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = ml.functional.cross_entropy(model(ids), targets)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    return losses
