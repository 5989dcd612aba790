"""Llama beside GPT: what its positions and heads mean, and that everything of the house works on it."""

import numpy as np
import pytest

import minilora as ml
from minilora import functional as F
from minilora.backend import asarray, to_numpy
from minilora.baselines import PromptTuned, add_adapters, add_prefix, bitfit, last_block
from minilora.budget import shape_of
from minilora.gpt import Cache
from minilora.llama import repeat_heads, rms_norm, rotary, swiglu
from minilora.lora import lora_layers

SIZES = {
    "vocab_size": 11,
    "context_length": 16,
    "d_model": 12,
    "n_layers": 2,
    "n_heads": 3,
    "n_kv_heads": 1,
    "d_ff": 8,
}


def tiny(dtype="float64", **sizes):
    """With weights large enough for attention and SwiGLU to matter."""
    model = ml.Llama(ml.LlamaConfig(**{**SIZES, **sizes}), seed=0, dtype=dtype)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data *= 20
    return model


def ids_of(rng, *shape):
    return rng.integers(0, SIZES["vocab_size"], shape)


def with_lora(model, rng, targets=("q_proj", "v_proj", "gate_proj", "down_proj")):
    parameters = ml.add_lora(model, ml.LoRAConfig(r=1, alpha=2, target_modules=targets))
    for layer in lora_layers(model).values():
        layer.lora_B.data[:] = asarray(rng.normal(0, 0.3, layer.lora_B.shape), dtype=layer.lora_B.dtype)
    return parameters


def test_rms_norm_has_a_mean_square_of_one_before_scale(rng):
    x, w = rng.normal(size=(3, 8)), rng.normal(size=8)
    y = rms_norm(ml.Tensor(x), ml.Tensor(w), 0.0).numpy() / w
    np.testing.assert_allclose((y**2).mean(axis=-1), 1, rtol=1e-12)
    np.testing.assert_allclose(y, x / np.sqrt((x**2).mean(axis=-1, keepdims=True)), rtol=1e-12)


def test_swiglu_is_a_over_one_plus_exp_minus_a_times_b(rng):
    a, b = rng.normal(size=(2, 5)) * 3
    np.testing.assert_allclose(swiglu(ml.Tensor(a), ml.Tensor(b)).numpy(), a / (1 + np.exp(-a)) * b, rtol=1e-12)


def test_swiglu_overflows_nowhere():
    with np.errstate(all="raise"):
        y = swiglu(ml.Tensor(np.array([-1e4, 1e4])), ml.Tensor(np.ones(2))).numpy()
    assert y.tolist() == [0, 1e4]


def test_turned_queries_and_keys_meet_by_the_difference_of_their_positions(rng):
    q, k = rng.normal(size=(2, 1, 6))

    def product(t, s):
        return (rotary(ml.Tensor(q), t).numpy() * rotary(ml.Tensor(k), s).numpy()).sum()

    assert product(5, 2) == pytest.approx(product(13, 10), rel=1e-12)
    assert product(5, 2) != pytest.approx(product(5, 3), rel=1e-3)
    np.testing.assert_array_equal(rotary(ml.Tensor(q), 0).numpy(), q)  # position 0 is not turned


def test_rotary_turns_pairs_of_the_two_halves_by_powers_of_the_base():
    x = np.array([[1.0, 0, 0, 0], [0, 1.0, 0, 0]])
    y = rotary(ml.Tensor(x), 3, 100.0).numpy()
    np.testing.assert_allclose(y[0], [np.cos(3), 0, np.sin(3), 0], atol=1e-15)
    np.testing.assert_allclose(y[1], [0, np.cos(0.4), 0, np.sin(0.4)], atol=1e-15)  # position 4 · 100^(-2/4)


def test_every_head_of_keys_serves_its_group_of_neighbours(rng):
    x = rng.normal(size=(1, 2, 3, 4))
    y = repeat_heads(ml.Tensor(x), 2).numpy()
    np.testing.assert_array_equal(y[:, [0, 1]], x[:, [0, 0]])
    np.testing.assert_array_equal(y[:, [2, 3]], x[:, [1, 1]])


def test_the_gradients_of_a_whole_llama_with_lora(rng):
    model, ids = tiny(n_heads=2), ids_of(rng, 2, 5)
    parameters = with_lora(model, rng)
    ml.gradcheck(lambda *_: F.cross_entropy(model(ids[:, :-1]), ids[:, 1:]), *parameters)


@pytest.mark.parametrize("tied", [False, True])
def test_the_gradients_of_all_its_own_weights(rng, tied):
    model, ids = tiny(n_layers=1, tied_head=tied), ids_of(rng, 1, 4)
    assert ("lm_head.weight" in dict(model.named_parameters())) != tied
    ml.gradcheck(lambda *_: F.cross_entropy(model(ids[:, :-1]), ids[:, 1:]), *model.parameters())


def test_the_textbook_and_the_kernels_train_alike(rng):
    losses = {}
    for name in ("kernels", "textbook"):
        model, ids = tiny(), np.random.default_rng(1).integers(0, 11, (4, 9))
        optimizer = ml.Adam(with_lora(model, np.random.default_rng(2)), 1e-2)

        def loss(_, model=model, ids=ids):
            return F.cross_entropy(model(ids[:, :-1]), ids[:, 1:])

        if name == "textbook":
            with ml.textbook():
                losses[name] = ml.train(model, optimizer, loss, 20)["loss"]
        else:
            losses[name] = ml.train(model, optimizer, loss, 20)["loss"]
    np.testing.assert_allclose(losses["kernels"], losses["textbook"], rtol=1e-10)
    assert losses["kernels"][-1] < losses["kernels"][0]


def test_no_position_sees_a_later_one(rng):
    model, ids = tiny(), ids_of(rng, 1, 8)
    other = ids.copy()
    other[:, 5:] = (other[:, 5:] + 1) % 11
    np.testing.assert_array_equal(model(ids).numpy()[:, :5], model(other).numpy()[:, :5])


def test_reading_on_from_a_cache_gives_the_logits_of_reading_at_once(rng):
    model, ids = tiny(), ids_of(rng, 2, 9)
    cache = Cache(model)
    with ml.no_grad():
        parts = [model(part, cache).numpy() for part in np.split(ids, [4, 5, 7], axis=1)]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), model(ids).numpy(), rtol=1e-10, atol=1e-12)


def test_generating_is_the_same_with_a_cache_and_without_and_goes_on_past_the_context(rng):
    model, prompt = tiny(), ids_of(rng, 3)
    longer = ml.generate(model, prompt, 20, temperature=0)
    rows = prompt.tolist()
    for _ in range(20):
        rows.append(int(model(np.array([rows[-16:]])).numpy()[0, -1].argmax()))
    assert longer.tolist() == rows


def test_lora_starts_as_the_base_merges_and_leaves_it_bit_for_bit(rng):
    model, ids = tiny("float32"), ids_of(rng, 2, 6)
    before = model(ids).numpy()
    ml.add_lora(model, ml.LoRAConfig(r=2))
    np.testing.assert_array_equal(model(ids).numpy(), before)
    for layer in lora_layers(model).values():
        layer.lora_B.data[:] = 0.1
    adapted = model(ids).numpy()
    assert not np.array_equal(adapted, before)
    ml.merge_lora(model)
    np.testing.assert_allclose(model(ids).numpy(), adapted, rtol=1e-4, atol=1e-4)
    ml.unmerge_lora(model)
    ml.remove_lora(model)
    np.testing.assert_array_equal(model(ids).numpy(), before)


@pytest.mark.parametrize("tied", [False, True])
def test_a_checkpoint_rebuilds_the_model_with_its_lora(rng, tmp_path, tied):
    model, ids = tiny("float32", tied_head=tied), ids_of(rng, 2, 6)
    with_lora(model, rng)
    ml.save_checkpoint(tmp_path / "a.npz", model, step=3)
    other = ml.load_model(tmp_path / "a.npz")
    assert isinstance(other, ml.Llama)
    assert other.config == model.config
    np.testing.assert_array_equal(other(ids).numpy(), model(ids).numpy())


def test_a_checkpoint_of_a_gpt_does_not_load_into_a_llama(tmp_path):
    gpt = ml.GPT(ml.GPTConfig(11, 16, 12, 1, 3))
    ml.save_checkpoint(tmp_path / "gpt.npz", gpt)
    with pytest.raises(ValueError, match="holds no llama"):
        ml.load_checkpoint(tmp_path / "gpt.npz", tiny("float32"))


def test_an_adapter_has_the_names_that_peft_gives_a_llama(rng, tmp_path):
    from safetensors.numpy import load_file

    model, ids = tiny("float32"), ids_of(rng, 2, 6)
    with_lora(model, rng, ("q_proj",))
    ml.save_adapter(model, tmp_path / "adapter")
    names = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in names
    other = tiny("float32")
    ml.load_adapter(other, tmp_path / "adapter")
    np.testing.assert_array_equal(other(ids).numpy(), model(ids).numpy())


def test_the_last_block_and_a_prompt_train_on_it(rng):
    ids = ids_of(rng, 2, 6)
    model = tiny()
    names = {name for name, p in model.named_parameters() if any(p is trained for trained in last_block(model))}
    assert names
    assert all(name.startswith("model.layers.1.") for name in names)
    prompted = PromptTuned(tiny(), 3)
    logits = prompted(ids)
    assert logits.shape == (2, 6, 11)
    F.cross_entropy(logits, ids).backward()
    assert np.abs(to_numpy(prompted.prompt.grad)).max() > 0


@pytest.mark.parametrize("style", ["houlsby", "lin"])
def test_adapters_go_between_its_layers_and_start_without_effect(rng, style):
    model, ids = tiny(), ids_of(rng, 2, 6)
    before = model(ids).numpy()
    added = add_adapters(model, 3, style)
    np.testing.assert_array_equal(model(ids).numpy(), before)
    assert len(added) == {"houlsby": 16, "lin": 12}[style]
    ml.gradcheck(lambda *_: F.cross_entropy(model(ids[:, :-1]), ids[:, 1:]), *added[-4:])
    with ml.no_grad():
        cached = model(ids, Cache(model)).numpy()
    np.testing.assert_allclose(cached, before, rtol=1e-10, atol=1e-12)


def test_bitfit_is_refused_where_there_is_no_bias():
    with pytest.raises(ValueError, match="no bias"):
        bitfit(tiny())


@pytest.mark.parametrize("call", [lambda m: add_prefix(m, 2), shape_of], ids=("prefix", "budget"))
def test_what_knows_only_a_gpt_s_blocks_says_so_and_changes_nothing(rng, call):
    model, ids = tiny(), ids_of(rng, 1, 4)
    before = model(ids).numpy()
    with pytest.raises(ValueError, match=r"a (GPT's|Llama)"):
        call(model)
    np.testing.assert_array_equal(model(ids).numpy(), before)
    assert all(p.requires_grad for p in model.parameters()) and model.reads == 16


@pytest.mark.parametrize(
    ("sizes", "error", "said"),
    [
        ({"n_kv_heads": 2}, ValueError, "3 is not divisible by 2"),
        ({"d_model": 9}, ValueError, "must be even"),
        ({"d_ff": 0}, ValueError, "at least 1"),
        ({"eps": 0.0}, ValueError, "above 0"),
        ({"eps": None}, TypeError, "eps must be a number"),
        ({"rope_base": float("nan")}, ValueError, "finite"),
        ({"tied_head": 1}, TypeError, "True or False"),
    ],
)
def test_impossible_sizes_are_refused(sizes, error, said):
    with pytest.raises(error, match=said):
        ml.LlamaConfig(**{**SIZES, **sizes})


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: rotary(ml.Tensor(np.ones((2, 3)))), "d even"),
        (lambda: rms_norm(ml.Tensor(np.ones((2, 3))), ml.Tensor(np.ones(2))), "shape"),
        (lambda: swiglu(ml.Tensor(np.ones(3)), ml.Tensor(np.ones(2))), "one shape"),
        (lambda: tiny()(np.zeros((1, 17), int)), "17 positions"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()
