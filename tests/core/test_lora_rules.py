"""LoRA's rules: seeds, exact identities, what mistakes leave behind."""

import numpy as np
import pytest
from helpers import ALL_TARGETS, ids, lora_gpt, loss, randomize_lora, snapshot, tiny_gpt
from hypothesis import given
from hypothesis import strategies as st

import minilora as ml
from minilora import functional as F
from minilora.backend import to_numpy
from minilora.lora import lora_layers


def logits(model):
    with ml.no_grad():
        return model(ids(model)).numpy()


@given(
    r=st.integers(1, 4),
    alpha=st.sampled_from([None, 1, 5, 0.5]),
    targets=st.sets(st.sampled_from([*ALL_TARGETS, "lm_head"]), min_size=1),
    scaling=st.sampled_from(["alpha/r", "alpha/sqrt(r)"]),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_every_adapter_merges_unmerges_and_comes_off(r, alpha, targets, scaling, dtype):
    model = tiny_gpt(dtype=dtype)
    base, plain = logits(model), snapshot(model)
    ml.add_lora(model, ml.LoRAConfig(r, alpha, tuple(sorted(targets)), scaling=scaling))
    assert np.array_equal(logits(model), base)
    randomize_lora(model)
    adapted, state = logits(model), snapshot(model)
    assert not np.array_equal(adapted, base)
    ml.merge_lora(model)
    rounding = 100 * np.finfo(dtype).eps * np.abs(adapted).max()
    np.testing.assert_allclose(logits(model), adapted, rtol=0, atol=rounding)
    assert snapshot(model) == state
    with ml.lora_disabled(model):
        assert np.array_equal(logits(model), base)
    ml.unmerge_lora(model)
    assert np.array_equal(logits(model), adapted) and snapshot(model) == state
    ml.remove_lora(model)
    assert np.array_equal(logits(model), base) and snapshot(model) == plain


@pytest.mark.parametrize("merge_first", [False, True])
def test_unloading_gives_the_merged_logits_exactly_and_a_plain_model_that_trains(merge_first):
    model = lora_gpt()
    names = [name for name, _ in tiny_gpt().named_parameters()]
    ml.merge_lora(model)
    merged = logits(model)
    if not merge_first:
        ml.unmerge_lora(model)
    expected = {
        name: to_numpy(layer.weight.data + layer.scaling * (layer.lora_B.data @ layer.lora_A.data))
        for name, layer in lora_layers(model).items()
    }
    ml.merge_and_unload(model)
    assert np.array_equal(logits(model), merged)
    assert [name for name, _ in model.named_parameters()] == names
    for name, weight in expected.items():
        assert np.array_equal(dict(model.named_parameters())[f"{name}.weight"].numpy(), weight)
    loss(model).backward()
    assert all(p.requires_grad and p.grad is not None for p in model.parameters())
    ml.add_lora(model, ml.LoRAConfig(2))  # and can be adapted again


def test_unloading_copies_and_leaves_no_weight_shared_with_the_base_it_came_from():
    model = lora_gpt()
    weight = model.blocks[0].attn.q_proj.weight
    before = weight.numpy()
    ml.merge_and_unload(model)
    model.blocks[0].attn.q_proj.weight.data += 1
    assert np.array_equal(weight.numpy(), before)


@pytest.mark.parametrize("take_off", [ml.remove_lora, ml.merge_and_unload])
def test_what_was_frozen_before_is_frozen_after_and_nothing_else(take_off):
    model = tiny_gpt()
    model.blocks[0].attn.q_proj.weight.requires_grad = model.ln_f.bias.requires_grad = False
    ml.add_lora(model, ml.LoRAConfig(2))
    take_off(model)
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ["blocks.0.attn.q_proj.weight", "ln_f.bias"]


@pytest.mark.parametrize("unload", [False, True])
def test_a_layer_that_cannot_be_merged_leaves_everything_as_it_was(unload):
    model = lora_gpt()
    model.blocks[1].attn.v_proj.lora_B.data[0, 0] = np.nan
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"ΔW of blocks\.1\.attn\.v_proj is not finite"):
        (ml.merge_and_unload if unload else ml.merge_lora)(model)
    assert snapshot(model) == before
    assert all(layer.merged_weight is None and not layer.adapter.merged for layer in lora_layers(model).values())


def test_a_tied_head_can_be_adapted_and_merged_but_not_unloaded():
    model = lora_gpt(("lm_head",), tied_head=True)
    base = model.token_embedding.weight.numpy()
    adapted, before = logits(model), snapshot(model)
    with pytest.raises(ValueError, match="token_embedding and lm_head share"):
        ml.merge_and_unload(model)
    assert snapshot(model) == before and lora_layers(model)
    ml.merge_lora(model)
    np.testing.assert_allclose(logits(model), adapted, rtol=1e-4, atol=1e-5)
    assert np.array_equal(model.token_embedding.weight.numpy(), base)  # what the embedding reads is not merged


def test_the_seed_decides_a_and_the_dropout():
    def made(seed):
        model = lora_gpt(dropout=0.5, randomize=False)
        ml.remove_lora(model)
        ml.add_lora(model, ml.LoRAConfig(2, dropout=0.5), seed=seed)
        randomize_lora(model)
        return ml.lora_state_dict(model), logits(model), logits(model)

    (state, first, second), again, other = made(1), made(1), made(2)
    assert all(np.array_equal(state[name], again[0][name]) for name in state)
    assert np.array_equal(first, again[1]) and np.array_equal(second, again[2]) and not np.array_equal(first, second)
    assert not any(np.array_equal(state[name], other[0][name]) for name in state if name.endswith("lora_A"))


def test_layers_start_from_different_numbers():
    starts = [layer.lora_A.numpy() for layer in lora_layers(lora_gpt(("q_proj", "v_proj"))).values()]
    assert len({a.tobytes() for a in starts}) == 4


@pytest.mark.parametrize("r", [1, 2, 8])
@pytest.mark.parametrize(
    ("scaling", "scale"), [("alpha/r", lambda r: 12 / r), ("alpha/sqrt(r)", lambda r: 12 / r**0.5)]
)
def test_the_output_is_scaled_by_alpha_over_r(r, scaling, scale):
    """h - W₀x is s·BAx, with α other than r."""
    model = lora_gpt(("q_proj",), r, 12, dtype="float64", scaling=scaling)
    layer = model.blocks[0].attn.q_proj
    x = np.random.default_rng(0).normal(size=(4, 8))
    change = layer(ml.Tensor(x)).numpy() - (x @ layer.weight.numpy().T + layer.bias.numpy())
    A, B = layer.lora_A.numpy(), layer.lora_B.numpy()
    np.testing.assert_allclose(change, scale(r) * x @ A.T @ B.T, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(to_numpy(layer.delta_weight()), scale(r) * B @ A, rtol=1e-12)


def test_four_times_alpha_is_four_times_the_change_to_the_bit():
    """Powers of two are exact in floating point."""
    one, four = (lora_gpt(alpha=alpha).blocks[0].mlp.fc_in for alpha in (2, 8))
    assert np.array_equal(to_numpy(four.delta_weight()), 4 * to_numpy(one.delta_weight()))


def test_after_one_step_a_moves_too_in_every_layer():
    model = lora_gpt(randomize=False)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = ml.Adam(trainable, lr=0.01)
    for step in range(2):
        model.zero_grad()
        loss(model, step).backward()
        for name, layer in lora_layers(model).items():
            assert to_numpy(layer.lora_B.grad).any(), name
            assert to_numpy(layer.lora_A.grad).any() == (step > 0), name
        frozen = [p for p in model.parameters() if not p.requires_grad]
        assert frozen and all(p.grad is None for p in frozen)
        optimizer.step()


def test_adapters_in_the_first_layer_alone_get_a_gradient_through_the_frozen_rest():
    model = lora_gpt(("blocks.0.attn.q_proj",))
    loss(model).backward()
    layer = model.blocks[0].attn.q_proj
    assert to_numpy(layer.lora_A.grad).any() and to_numpy(layer.lora_B.grad).any()


def test_training_changes_the_adapter_and_not_one_bit_of_the_base():
    model = lora_gpt(dropout=0.1)
    before = snapshot(model)
    optimizer = ml.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    ml.train(model, optimizer, lambda step: loss(model, step), 5)
    changed = {name for name, value in snapshot(model).items() if value != before[name]}
    assert changed == {name for name in before if "lora_" in name}


@pytest.mark.parametrize("training", [True, False])
def test_dropout_touches_only_the_input_of_a_and_only_in_training(training):
    """One vector at a time: the base part is exact, and the rest is A on a scaled and thinned x."""
    model = lora_gpt(("fc_in",), dtype="float64", dropout=0.5)
    layer = model.train(training).blocks[0].mlp.fc_in
    x = np.random.default_rng(0).normal(size=(200, 8))
    change = layer(ml.Tensor(x)).numpy() - F.linear(ml.Tensor(x), layer.weight, layer.bias).numpy()
    layer.adapter.rng.bit_generator.state = np.random.default_rng(4).bit_generator.state
    again = layer(ml.Tensor(x)).numpy()
    drawn = np.random.default_rng(4).random(x.shape, dtype=np.float32)
    keep = (drawn >= 0.5) / 0.5 if training else np.ones_like(x)
    delta = to_numpy(layer.delta_weight())
    expected = F.linear(ml.Tensor(x), layer.weight, layer.bias).numpy() + (x * keep) @ delta.T
    np.testing.assert_allclose(again, expected, atol=1e-12)
    assert np.allclose(change, x @ delta.T) is not training


def test_dropout_with_b_zero_is_a_no_op_and_has_no_effect_when_merged():
    model = lora_gpt(dropout=0.9, randomize=False)
    assert np.array_equal(logits(model), logits(tiny_gpt()))
    randomize_lora(model)
    ml.merge_lora(model)
    assert np.array_equal(logits(model.train()), logits(model.eval()))


def test_one_wrong_target_beside_a_right_one_leaves_the_model_untouched():
    model = tiny_gpt()
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"'proj' matches no Linear.*did you mean .*_proj'.*q_proj, v_proj"):
        ml.add_lora(model, ml.LoRAConfig(2, target_modules=("q_proj", "proj")))
    with pytest.raises(ValueError, match=r"at most min\(out, in\) = 7 for lm_head, not 8"):
        ml.add_lora(model, ml.LoRAConfig(8, target_modules=("q_proj", "lm_head")))
    assert snapshot(model) == before and not lora_layers(model)
    assert len(ml.add_lora(model, ml.LoRAConfig(2))) == 8


def test_two_targets_that_mean_the_same_layer_wrap_it_once():
    model = tiny_gpt()
    trainable = ml.add_lora(model, ml.LoRAConfig(2, target_modules=("q_proj", "attn.q_proj", "blocks.0.attn.q_proj")))
    assert list(lora_layers(model)) == ["blocks.0.attn.q_proj", "blocks.1.attn.q_proj"] and len(trainable) == 4


def test_an_exception_while_disabled_gives_the_adapter_back():
    model = lora_gpt()
    adapted = logits(model)
    with pytest.raises(KeyError), ml.lora_disabled(model):
        raise KeyError
    assert np.array_equal(logits(model), adapted)


def test_the_adapter_of_a_merged_model_is_in_its_states_and_w0_as_it_was():
    model = lora_gpt()
    state, adapter = model.state_dict(), ml.lora_state_dict(model)
    ml.merge_lora(model)
    for before, after in ((state, model.state_dict()), (adapter, ml.lora_state_dict(model))):
        assert before.keys() == after.keys() and all(np.array_equal(before[k], after[k]) for k in before)
    assert adapter.keys() == {name for name in state if "lora_" in name}
    adapter["blocks.0.attn.q_proj.lora_A"][...] = 7  # a copy
    assert not (model.blocks[0].attn.q_proj.lora_A.numpy() == 7).any()


def test_a_merged_model_answers_in_training_mode_and_refuses_backward_and_loading():
    model = lora_gpt()
    state = model.state_dict()
    ml.merge_lora(model)
    value = loss(model)
    with pytest.raises(ValueError, match=r"merged model cannot be trained: call unmerge_lora"):
        value.backward()
    with pytest.raises(ValueError, match="loaded while LoRA is merged: call unmerge_lora"):
        model.load_state_dict(state)
    assert all(p.grad is None for p in model.parameters())
    ml.unmerge_lora(model)
    loss(model).backward()
    model.load_state_dict(state)
    with pytest.raises(ValueError, match="not merged"):
        ml.unmerge_lora(model)


def test_gaussian_and_kaiming_have_the_spread_they_say():
    def start(n_in, **settings):
        model = tiny_gpt(d_model=n_in, n_layers=1)
        ml.add_lora(model, ml.LoRAConfig(n_in // 2, target_modules=("q_proj",), **settings), seed=1)
        return model.blocks[0].attn.q_proj.lora_A.numpy()

    assert start(64).std() == pytest.approx(1 / 8, rel=0.05)
    assert start(64, init_std=3.0).std() == pytest.approx(3.0, rel=0.05)
    kaiming = start(64, init="kaiming")
    assert np.abs(kaiming).max() <= 1 / 8 < 1.01 * np.abs(kaiming).max()
    assert kaiming.std() == pytest.approx(1 / 8 / np.sqrt(3), rel=0.05)
    assert abs(kaiming.mean()) < 0.005


@pytest.mark.parametrize("target", [*ALL_TARGETS, "lm_head"])
def test_the_number_of_trainable_parameters(target):
    """r(in + out) for each matrix: 2dr for each square one, so 2·L·d·r for one kind."""
    model = lora_gpt((target,), r=3)
    sizes = {"fc_in": 8 + 32, "fc_out": 32 + 8, "lm_head": 8 + 7}
    layers = 1 if target == "lm_head" else 2
    assert model.num_parameters(trainable_only=True) == layers * 3 * sizes.get(target, 2 * 8)
    assert model.num_parameters() == tiny_gpt().num_parameters() + model.num_parameters(trainable_only=True)
