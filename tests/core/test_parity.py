"""Live comparison with PyTorch, PEFT and loralib, where they are installed (extra `parity`)."""

import warnings

import numpy as np
import pytest
from helpers import ALL_TARGETS, randomize

import minilora as ml
from minilora import functional as F
from minilora.backend import asarray, to_numpy
from minilora.lora import lora_layers

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[parity]'")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what other libraries warn about while they are imported
    peft = pytest.importorskip("peft", reason="PEFT is not installed: pip install -e '.[parity]'")

from cases import ALPHA, LR, SIZES, STEPS, R, lora_steps, model_and_batch, random_adapter
from torch_gpt import from_minilora, loss_of

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


def with_peft(model, scaling="alpha/r"):
    """PEFT's twin of a minilora model: its base, and its adapter if it has one."""
    rslora = scaling == "alpha/sqrt(r)"
    config = peft.LoraConfig(r=R, lora_alpha=ALPHA, target_modules=["q_proj", "v_proj"], use_rslora=rslora)
    adapter = {name: p.numpy() for name, p in model.named_parameters() if "lora_" in name}
    plain = ml.GPT(model.config, seed=None, dtype="float64")
    plain.load_state_dict({name: a for name, a in model.state_dict().items() if "lora_" not in name})
    twin = peft.get_peft_model(from_minilora(plain), config).double()
    own = {minilora_name(name): p for name, p in twin.named_parameters()}
    with torch.no_grad():
        for name, array in adapter.items():
            own[name].copy_(torch.from_numpy(array))
    return twin, own


def minilora_name(name):
    return name.removeprefix("base_model.model.").replace(".default.weight", "").replace(".base_layer", "")


@pytest.mark.parametrize("size", SIZES)
def test_logits_loss_and_every_gradient(size):
    model, ids, targets = model_and_batch(size)
    twin = from_minilora(model)
    logits = model(ids)
    loss = F.cross_entropy(logits, targets)
    loss.backward()
    reference = loss_of(twin, ids, targets)
    reference.backward()
    largest = max(np.abs(to_numpy(p.grad)).max() for p in model.parameters())
    np.testing.assert_allclose(logits.numpy(), twin(torch.from_numpy(ids)).detach().numpy(), rtol=0, atol=1e-10)
    assert loss.item() == pytest.approx(reference.item(), abs=1e-12)
    gradients = {name: p.grad.numpy() for name, p in twin.named_parameters()}
    assert gradients.keys() == dict(model.named_parameters()).keys()
    for name, p in model.named_parameters():
        np.testing.assert_allclose(to_numpy(p.grad), gradients[name], rtol=0, atol=1e-10 * largest, err_msg=name)


@pytest.mark.parametrize("scaling", ["alpha/r", "alpha/sqrt(r)"])
def test_lora_gradients_are_pefts(scaling):
    model, ids, targets = model_and_batch("small")
    trainable = random_adapter(model, scaling)
    twin, own = with_peft(model, scaling)
    loss = F.cross_entropy(model(ids), targets)
    loss.backward()
    reference = loss_of(twin, ids, targets)
    reference.backward()
    assert loss.item() == pytest.approx(reference.item(), abs=1e-12)
    largest = max(np.abs(to_numpy(p.grad)).max() for p in trainable)
    compared = 0
    for name, p in model.named_parameters():
        if "lora_" in name:
            np.testing.assert_allclose(
                to_numpy(p.grad), own[name].grad.numpy(), rtol=0, atol=1e-10 * largest, err_msg=name
            )
            compared += 1
    assert compared == len(trainable) == 8


def test_fifty_adam_steps_follow_peft():
    model, ids, targets = model_and_batch("small")
    trainable = ml.add_lora(model, ml.LoRAConfig(R, ALPHA), seed=3)
    twin, own = with_peft(model)
    optimizer = torch.optim.Adam([p for p in twin.parameters() if p.requires_grad], lr=LR)
    reference = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(twin, ids, targets)
        reference.append(loss.item())
        loss.backward()
        optimizer.step()
    np.testing.assert_allclose(lora_steps(model, trainable, ids, targets), reference, rtol=0, atol=1e-8)
    for name, p in model.named_parameters():
        if "lora_" in name:
            np.testing.assert_allclose(p.numpy(), own[name].detach().numpy(), rtol=0, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("joins", [2, 51, 2001])
@pytest.mark.parametrize("kind", ["Adam", "AdamW"])
def test_a_parameter_that_joins_late_follows_pytorch(kind, joins, rng):
    """PyTorch counts each parameter's own steps; five steps together, one without the first, then together again."""
    start = [rng.normal(size=(3, 2)) for _ in range(2)]
    ours = [ml.nn.Parameter(array.copy()) for array in start]
    theirs = [torch.nn.Parameter(torch.from_numpy(array.copy())) for array in start]
    optimizer, reference = getattr(ml, kind)(ours, lr=LR), getattr(torch.optim, kind)(theirs, lr=LR)
    for step in range(1, joins + 8):
        present = [step != joins + 5, step >= joins]
        for p, q, here in zip(ours, theirs, present, strict=True):
            g = rng.normal(size=(3, 2))
            p.grad, q.grad = (asarray(g), torch.from_numpy(g)) if here else (None, None)
        optimizer.step()
        reference.step()
        if step >= joins:
            for p, q in zip(ours, theirs, strict=True):
                np.testing.assert_allclose(p.numpy(), q.detach().numpy(), rtol=0, atol=1e-12)
    counts = [int(reference.state[q]["step"]) for q in theirs]
    assert optimizer.steps == counts == [joins + 6, 8]


@pytest.mark.parametrize("joins", [2, 51, 2001])
def test_an_adapter_whose_second_layer_joins_late_follows_peft(joins):
    """The first layer's A and B train alone; then the second's join, and five steps later the losses still agree."""
    model, ids, targets = model_and_batch("small")
    trainable = ml.add_lora(model, ml.LoRAConfig(R, ALPHA), seed=3)
    twin, own = with_peft(model)
    names = [name for name, p in model.named_parameters() if "lora_" in name]
    ours, theirs = dict(model.named_parameters()), [own[name] for name in names]
    optimizer, reference = ml.Adam(trainable, lr=LR), torch.optim.Adam(theirs, lr=LR)
    rng = np.random.default_rng(5)
    for step in range(1, joins + 6):
        if step < joins - 1:  # any gradient will do for the way there, so that two thousand steps take a second
            for name in names:
                g = rng.normal(size=ours[name].shape)
                early = "blocks.0." in name
                ours[name].grad, own[name].grad = (asarray(g), torch.from_numpy(g)) if early else (None, None)
        else:
            optimizer.zero_grad()
            reference.zero_grad()
            loss, expected = F.cross_entropy(model(ids), targets), loss_of(twin, ids, targets)
            assert loss.item() == pytest.approx(expected.item(), abs=1e-8)
            loss.backward()
            expected.backward()
            if step < joins:
                for name in names:
                    if "blocks.1." in name:
                        ours[name].grad = own[name].grad = None
        optimizer.step()
        reference.step()
    for name in names:
        np.testing.assert_allclose(ours[name].numpy(), own[name].detach().numpy(), rtol=0, atol=1e-8, err_msg=name)


def test_adamw_and_clipping_follow_pytorch(rng):
    start, gradients = rng.normal(size=(3, 4)), rng.normal(size=(20, 3, 4))
    p, q = ml.nn.Parameter(start.copy()), torch.nn.Parameter(torch.from_numpy(start.copy()))
    ours, theirs = ml.AdamW([p], lr=0.1, weight_decay=0.3), torch.optim.AdamW([q], lr=0.1, weight_decay=0.3)
    for g in gradients:
        p.grad, q.grad = asarray(g.copy()), torch.from_numpy(g.copy())
        norm = ml.clip_grad_norm([p], 2.0)
        assert norm.item() == pytest.approx(torch.nn.utils.clip_grad_norm_([q], 2.0).item(), rel=1e-12)
        ours.step()
        theirs.step()
    np.testing.assert_allclose(p.numpy(), q.detach().numpy(), rtol=0, atol=1e-6)  # PyTorch clips with + 1e-6


@pytest.mark.parametrize("scaling", ["alpha/r", "alpha/sqrt(r)"])
def test_adapters_go_to_peft_and_back(tmp_path, scaling):
    model, ids, _ = model_and_batch("small")
    plain = from_minilora(model)
    random_adapter(model, scaling)
    logits = model(ids).numpy()
    ml.save_adapter(model, tmp_path / "ours")
    loaded = peft.PeftModel.from_pretrained(plain, str(tmp_path / "ours")).double()
    np.testing.assert_allclose(loaded(torch.from_numpy(ids)).detach().numpy(), logits, rtol=0, atol=1e-10)

    twin, _ = with_peft(model, scaling)
    twin.save_pretrained(str(tmp_path / "theirs"))
    base, _, _ = model_and_batch("small")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fields that a newer PEFT has added
        ml.load_adapter(base, tmp_path / "theirs")
    np.testing.assert_allclose(base(ids).numpy(), logits, rtol=0, atol=1e-10)
    layer = next(iter(lora_layers(base).values()))
    assert layer.scaling == pytest.approx(next(iter(lora_layers(model).values())).scaling)


@pytest.mark.parametrize("size", ["small", "tied"])
@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), (*ALL_TARGETS, "lm_head"), ("blocks.0.mlp.fc_in",)], ids=str)
def test_an_adapter_that_peft_saved_again_loads_here_again(tmp_path, size, targets):
    model, ids, _ = model_and_batch(size)
    plain = from_minilora(model)
    ml.add_lora(model, ml.LoRAConfig(R, ALPHA, targets))
    randomize(model)
    ml.save_adapter(model, tmp_path / "a")
    peft.PeftModel.from_pretrained(plain, str(tmp_path / "a")).double().save_pretrained(str(tmp_path / "b"))
    again, _, _ = model_and_batch(size)
    ml.load_adapter(again, tmp_path / "b")
    assert np.array_equal(again(ids).numpy(), model(ids).numpy())


def test_loralib_linear_agrees_on_forward_backward_and_merge(rng):
    loralib = pytest.importorskip("loralib", reason="loralib is not installed: pip install -e '.[parity]'")

    class One(ml.nn.Module):
        def __init__(self):
            self.layer = ml.nn.Linear(5, 4, rng=np.random.default_rng(1), std=1.0, dtype="float64")

        def forward(self, x):
            return self.layer(x)

    model = One()
    ml.add_lora(model, ml.LoRAConfig(2, alpha=3, target_modules=("layer",)))
    layer = model.layer
    layer.lora_B.data[...] = asarray(rng.normal(size=(4, 2)))
    theirs = loralib.Linear(5, 4, r=2, lora_alpha=3).double()
    with torch.no_grad():
        for p, q in (
            (layer.weight, theirs.weight),
            (layer.bias, theirs.bias),
            (layer.lora_A, theirs.lora_A),
            (layer.lora_B, theirs.lora_B),
        ):
            q.copy_(torch.from_numpy(p.numpy()))
    x = rng.normal(size=(7, 5))
    weights = rng.normal(size=(7, 4))
    y, t = model(ml.Tensor(x)), theirs(torch.from_numpy(x))
    np.testing.assert_allclose(y.numpy(), t.detach().numpy(), atol=1e-12)
    (y * weights).sum().backward()
    (t * torch.from_numpy(weights)).sum().backward()
    np.testing.assert_allclose(to_numpy(layer.lora_A.grad), theirs.lora_A.grad.numpy(), atol=1e-12)
    np.testing.assert_allclose(to_numpy(layer.lora_B.grad), theirs.lora_B.grad.numpy(), atol=1e-12)
    theirs.eval()  # merges, in loralib
    ml.merge_lora(model)
    np.testing.assert_allclose(layer.merged_weight.numpy(), theirs.weight.detach().numpy(), atol=1e-12)
