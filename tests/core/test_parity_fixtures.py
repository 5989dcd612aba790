"""What PyTorch and PEFT computed once (tests/parity/make_fixtures.py), equalled without them."""

from pathlib import Path

import numpy as np
import pytest
from cases import ALPHA, SIZES, R, lora_steps, model_and_batch

import minilora as ml
from minilora import functional as F
from minilora.backend import asarray, to_numpy

FIXTURES = Path(__file__).parents[1] / "fixtures" / "parity.npz"


@pytest.fixture(scope="module")
def stored():
    with np.load(FIXTURES, allow_pickle=False) as file:
        return dict(file)


@pytest.mark.parametrize("size", SIZES)
def test_logits_loss_and_every_gradient(stored, size):
    model, ids, targets = model_and_batch(size)
    logits = model(ids)
    loss = F.cross_entropy(logits, targets)
    loss.backward()
    np.testing.assert_allclose(logits.numpy(), stored[f"{size}/logits"], rtol=0, atol=1e-10)
    assert loss.item() == pytest.approx(float(stored[f"{size}/loss"]), abs=1e-12)
    largest = max(np.abs(to_numpy(p.grad)).max() for p in model.parameters())
    for name, p in model.named_parameters():
        np.testing.assert_allclose(
            to_numpy(p.grad), stored[f"{size}/grad/{name}"], rtol=0, atol=1e-10 * largest, err_msg=name
        )


def test_fifty_adam_steps_of_lora(stored):
    model, ids, targets = model_and_batch("small")
    trainable = ml.add_lora(model, ml.LoRAConfig(R, ALPHA))
    adapter = {name: p for name, p in model.named_parameters() if "lora_" in name}
    for name, p in adapter.items():
        p.data[...] = asarray(stored[f"path/start/{name}"])
    losses = lora_steps(model, trainable, ids, targets)
    np.testing.assert_allclose(losses, stored["path/losses"], rtol=0, atol=1e-8)
    for name, p in adapter.items():
        np.testing.assert_allclose(p.numpy(), stored[f"path/end/{name}"], rtol=0, atol=1e-8, err_msg=name)
    assert losses[-1] < 0.7 * losses[0]
