"""LoRA: exact at the start, exact when merged and unmerged, and particular about mistakes."""

import numpy as np
import pytest
from helpers import randomize

import minilora as ml
from minilora import functional as F
from minilora.backend import to_numpy
from minilora.fast.products import matmul
from minilora.lora import lora_layers

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "fc_in", "fc_out")


def logits(model, batch):
    with ml.no_grad():
        return model(batch[0]).numpy()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_adapted_model_starts_as_the_base_merged_or_not(small, batch, dtype):
    model = small(dtype)
    base = logits(model, batch)
    ml.add_lora(model, ml.LoRAConfig(2, alpha=7, target_modules=ALL, dropout=0.5))
    assert np.array_equal(logits(model, batch), base)  # dropout is active here, and B = 0 hides it
    ml.merge_lora(model)
    assert np.array_equal(logits(model, batch), base)


def test_at_step_zero_A_has_no_gradient_and_B_has(small, batch):
    model = small()
    ml.add_lora(model, ml.LoRAConfig(2))
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    for layer in lora_layers(model).values():
        assert not to_numpy(layer.lora_A.grad).any() and np.abs(to_numpy(layer.lora_B.grad)).max() > 0
        assert layer.weight.grad is None and layer.bias.grad is None
    assert model.token_embedding.weight.grad is None


def test_merging_is_the_same_function_and_unmerging_the_same_bits(small, batch):
    model = small("float64")
    parameters = ml.add_lora(model, ml.LoRAConfig(2, alpha=3, target_modules=ALL))
    randomize(model)
    weights = {name: layer.weight.data.tobytes() for name, layer in lora_layers(model).items()}
    state = model.state_dict()
    before = logits(model, batch)
    for _ in range(100):
        ml.merge_lora(model)
        np.testing.assert_allclose(logits(model, batch), before, rtol=0, atol=1e-11)
        merged_state = model.state_dict()
        ml.unmerge_lora(model)
    np.testing.assert_array_equal(logits(model, batch), before)
    assert {name: layer.weight.data.tobytes() for name, layer in lora_layers(model).items()} == weights
    assert merged_state.keys() == state.keys()
    assert all(np.array_equal(merged_state[name], state[name]) for name in state)
    assert all(p.requires_grad for p in parameters)


def test_merging_is_all_layers_or_none(small, batch):
    model = small()
    ml.add_lora(model, ml.LoRAConfig(2))
    randomize(model)
    model.blocks[1].attn.v_proj.lora_B.data[0, 0] = np.nan
    with pytest.raises(ValueError, match=r"Nothing was merged: ΔW of blocks.1.attn.v_proj is not finite"):
        ml.merge_lora(model)
    assert all(layer.merged_weight is None for layer in lora_layers(model).values())
    with pytest.raises(ValueError, match="not merged"):
        ml.unmerge_lora(model)


def test_what_a_merged_model_refuses(small, batch):
    model = small()
    ml.add_lora(model, ml.LoRAConfig(2))
    randomize(model)
    ml.merge_lora(model)
    with pytest.raises(ValueError, match="unmerge_lora"):
        F.cross_entropy(model(batch[0]), batch[1]).backward()
    with pytest.raises(ValueError, match="unmerge_lora"):
        model.load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match="merged already"):
        ml.merge_lora(model)
    assert all(p.grad is None for p in model.parameters())


def test_a_merged_layer_is_one_product(small, batch, monkeypatch):
    """No more operations than the base's: counted, not timed."""
    counted = []
    for name in ("minilora.fast.layers", "minilora.fast.lora"):
        monkeypatch.setattr(f"{name}.matmul", lambda a, b: counted.append(a.shape) or matmul(a, b))
    model = small()
    logits(model, batch)
    base = list(counted)
    ml.add_lora(model, ml.LoRAConfig(2))
    counted.clear()
    logits(model, batch)
    assert len(counted) == len(base) + 2 * 4  # two thin products more in each of four layers
    ml.merge_lora(model)
    counted.clear()
    logits(model, batch)
    assert counted == base


def test_removing_gives_the_base_back(small, batch):
    for merged in (False, True):
        model = small()
        model.ln_f.bias.requires_grad = False  # frozen before LoRA, and after
        base, names = logits(model, batch), [name for name, _ in model.named_parameters()]
        ml.add_lora(model, ml.LoRAConfig(2))
        randomize(model)
        if merged:
            ml.merge_lora(model)
        ml.remove_lora(model)
        assert np.array_equal(logits(model, batch), base)
        assert [name for name, _ in model.named_parameters()] == names
        assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["ln_f.bias"]


def test_merge_and_unload_is_a_plain_model_with_the_merged_answers(small, batch):
    model = small()
    ml.add_lora(model, ml.LoRAConfig(2))
    randomize(model)
    ml.merge_lora(model)
    merged = logits(model, batch)
    ml.merge_and_unload(model)
    assert np.array_equal(logits(model, batch), merged) and not lora_layers(model)
    assert all(p.requires_grad for p in model.parameters())
    tied = small(tied_head=True)
    ml.add_lora(tied, ml.LoRAConfig(2, target_modules=("lm_head",)))
    with pytest.raises(ValueError, match="token_embedding and lm_head share"):
        ml.merge_and_unload(tied)
    assert lora_layers(tied)


def test_the_base_answers_while_lora_is_disabled(small, batch):
    model = small()
    base = logits(model, batch)
    ml.add_lora(model, ml.LoRAConfig(2))
    randomize(model)
    for _ in range(2):
        with ml.lora_disabled(model):
            assert np.array_equal(logits(model, batch), base)
        assert not np.array_equal(logits(model, batch), base)
        if not next(iter(lora_layers(model).values())).adapter.merged:
            ml.merge_lora(model)


def test_dropout_is_on_the_lora_path_in_training_only(small, batch):
    model = small("float64")
    base = logits(model, batch)
    ml.add_lora(model, ml.LoRAConfig(2, dropout=0.5))
    randomize(model)
    assert not np.array_equal(logits(model, batch), logits(model, batch))
    model.eval()
    assert np.array_equal(logits(model, batch), logits(model, batch))
    layer, x = model.blocks[0].attn.q_proj, ml.Tensor(np.random.default_rng(0).normal(size=(50, 16)))
    layer.train()
    lora_part = layer(x).numpy() - F.linear(x, layer.weight, layer.bias).numpy()
    layer.eval()
    assert np.abs(lora_part - (layer(x).numpy() - F.linear(x, layer.weight, layer.bias).numpy())).max() > 0.1
    layer.lora_B.data[...] = 0
    layer.train()
    np.testing.assert_array_equal(layer(x).numpy(), F.linear(x, layer.weight, layer.bias).numpy())
    with ml.lora_disabled(model):
        assert np.array_equal(logits(model, batch), base)


@pytest.mark.parametrize("r", [1, 2, 8])
@pytest.mark.parametrize(("scaling", "root"), [("alpha/r", 1), ("alpha/sqrt(r)", 2)])
def test_scaling(small, r, scaling, root):
    model = small("float64")
    ml.add_lora(model, ml.LoRAConfig(r, alpha=6, scaling=scaling))
    randomize(model)
    layer = model.blocks[1].attn.v_proj
    s = 6 / r ** (1 / root)
    assert layer.scaling == pytest.approx(s)
    delta = to_numpy(layer.delta_weight())
    np.testing.assert_allclose(delta, s * layer.lora_B.numpy() @ layer.lora_A.numpy())
    x = np.random.default_rng(0).normal(size=(3, 16))
    expected = x @ (layer.weight.numpy() + delta).T + layer.bias.numpy()
    np.testing.assert_allclose(layer(ml.Tensor(x)).numpy(), expected, atol=1e-12)


def test_starts(small):
    assert ml.LoRAConfig(4).scale == 1  # alpha = r where none is given
    draws = {}
    for name, config in {
        "gaussian": ml.LoRAConfig(16, target_modules=("fc_out",)),
        "given": ml.LoRAConfig(16, target_modules=("fc_out",), init_std=0.5),
        "kaiming": ml.LoRAConfig(16, target_modules=("fc_out",), init="kaiming"),
    }.items():
        model = small()
        ml.add_lora(model, config, seed=5)
        draws[name] = model.blocks[0].mlp.fc_out.lora_A.numpy()
        assert not model.blocks[0].mlp.fc_out.lora_B.numpy().any()
    assert draws["gaussian"].std() == pytest.approx(1 / 8, rel=0.1)  # in = 64
    assert draws["given"].std() == pytest.approx(0.5, rel=0.1)
    assert 0.11 < np.abs(draws["kaiming"]).max() <= 1 / 8
    again = small()
    ml.add_lora(again, ml.LoRAConfig(16, target_modules=("fc_out",)), seed=5)
    np.testing.assert_array_equal(again.blocks[0].mlp.fc_out.lora_A.numpy(), draws["gaussian"])


def test_the_number_of_parameters_is_the_papers(small):
    """§4.2: 2 × (adapted matrices) × d × r."""
    model = small()
    trainable = ml.add_lora(model, ml.LoRAConfig(4))
    assert sum(p.size for p in trainable) == model.num_parameters(trainable_only=True) == 2 * (2 * 2) * 16 * 4
    state = ml.lora_state_dict(model)
    assert list(state)[:2] == ["blocks.0.attn.q_proj.lora_A", "blocks.0.attn.q_proj.lora_B"] and len(state) == 8
    assert [name for name, p in model.named_parameters() if p.requires_grad] == list(state)


def test_targets_match_whole_names_or_their_ends(small):
    model = small()
    ml.add_lora(model, ml.LoRAConfig(2, target_modules=("blocks.0.attn.q_proj", "mlp.fc_in")))
    assert list(lora_layers(model)) == ["blocks.0.attn.q_proj", "blocks.0.mlp.fc_in", "blocks.1.mlp.fc_in"]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"r": 0}, ValueError, "at least 1, not 0"),
        ({"r": -1}, ValueError, "at least 1, not -1"),
        ({"r": 2.5}, TypeError, "whole number, not 2.5"),
        ({"r": True}, TypeError, "whole number"),
        ({"r": 17}, ValueError, r"at most min\(out, in\) = 16"),
        ({"alpha": 0}, ValueError, "above 0"),
        ({"alpha": -1.0}, ValueError, "above 0"),
        ({"alpha": float("nan")}, ValueError, "finite"),
        ({"alpha": float("inf")}, ValueError, "finite"),
        ({"alpha": "8"}, TypeError, "must be a number"),
        ({"dropout": 1.0}, ValueError, "less than 1"),
        ({"dropout": -0.1}, ValueError, "at least 0"),
        ({"dropout": float("nan")}, ValueError, "at least 0"),
        ({"init": "zero"}, ValueError, "gaussian, kaiming"),
        ({"init": "kaiming", "init_std": 0.1}, ValueError, "belongs to"),
        ({"scaling": "alpha"}, ValueError, "alpha/r"),
        ({"target_modules": "q_proj"}, TypeError, "tuple of names"),
        ({"target_modules": ()}, ValueError, "at least one"),
        ({"target_modules": ("q_pro",)}, ValueError, "did you mean 'q_proj'.*fc_in, fc_out, k_proj, lm_head"),
        ({"target_modules": ("proj",)}, ValueError, "'proj' matches no Linear"),
        ({"target_modules": ("q_proj", "wte")}, ValueError, "'wte' matches no Linear"),
        ({"target_modules": ("ln_1",)}, ValueError, "'ln_1' matches no Linear"),
    ],
)
def test_settings_that_cannot_be_change_nothing(small, settings, error, message):
    model = small()
    with pytest.raises(error, match=message):
        ml.add_lora(model, ml.LoRAConfig(**{"r": 2, **settings}))
    assert not lora_layers(model) and all(p.requires_grad for p in model.parameters())


def test_adding_twice_and_using_what_is_not_there(small):
    model = small()
    for use in (ml.merge_lora, ml.unmerge_lora, ml.remove_lora, ml.merge_and_unload, ml.lora_state_dict):
        with pytest.raises(ValueError, match="no LoRA"):
            use(model)
    ml.add_lora(model, ml.LoRAConfig(2))
    with pytest.raises(ValueError, match="has LoRA already"):
        ml.add_lora(model, ml.LoRAConfig(2))
