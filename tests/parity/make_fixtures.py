"""Write tests/fixtures/parity.npz with PyTorch and PEFT: what minilora must equal where they are not installed.

python tests/parity/make_fixtures.py
"""

import sys
from pathlib import Path

import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

from cases import ALPHA, LR, SIZES, STEPS, R, model_and_batch
from peft import LoraConfig, get_peft_model
from torch_gpt import from_minilora, loss_of


def main():
    arrays = {}
    for size in SIZES:
        model, ids, targets = model_and_batch(size)
        twin = from_minilora(model)
        loss = loss_of(twin, ids, targets)
        loss.backward()
        arrays[f"{size}/logits"] = twin(torch.from_numpy(ids)).detach().numpy()
        arrays[f"{size}/loss"] = loss.item()
        for name, p in twin.named_parameters():
            arrays[f"{size}/grad/{name}"] = p.grad.numpy().copy()

    model, ids, targets = model_and_batch("small")
    peft = get_peft_model(
        from_minilora(model), LoraConfig(r=R, lora_alpha=ALPHA, target_modules=["q_proj", "v_proj"], lora_dropout=0.0)
    ).double()
    rng = np.random.default_rng(5)
    lora = {n: p for n, p in peft.named_parameters() if "lora_" in n}
    with torch.no_grad():
        for name, p in lora.items():
            p.copy_(torch.from_numpy(rng.normal(0, 0.25, p.shape) if "lora_A" in name else np.zeros(p.shape)))
            arrays[f"path/start/{plain(name)}"] = p.numpy().copy()
    optimizer = torch.optim.Adam(lora.values(), lr=LR)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(peft, ids, targets)
        losses.append(loss.item())
        loss.backward()
        if step == 0:
            arrays.update({f"path/grad/{plain(name)}": p.grad.numpy().copy() for name, p in lora.items()})
        optimizer.step()
    arrays["path/losses"] = np.array(losses)
    arrays.update({f"path/end/{plain(name)}": p.detach().numpy() for name, p in lora.items()})
    path = Path(__file__).parent.parent / "fixtures" / "parity.npz"
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {len(arrays)} arrays, {path.stat().st_size:,} bytes, torch {torch.__version__}")


def plain(name):
    """PEFT's parameter name -> minilora's."""
    return name.removeprefix("base_model.model.").replace(".default.weight", "")


if __name__ == "__main__":
    main()
