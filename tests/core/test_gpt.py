"""The transformer and its modules."""

import numpy as np
import pytest

import minilora as ml

NAMES = [
    "token_embedding.weight",
    "position_embedding.weight",
    *(
        f"blocks.0.{part}.{kind}"
        for part in (
            "ln_1", "attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.o_proj", "ln_2", "mlp.fc_in", "mlp.fc_out",
        )
        for kind in ("weight", "bias")
    ),
    "ln_f.weight",
    "ln_f.bias",
    "lm_head.weight",
]  # fmt: skip


def one_block(**changes):
    return ml.GPT(
        ml.GPTConfig(
            **{**{"vocab_size": 11, "context_length": 8, "d_model": 16, "n_layers": 1, "n_heads": 4}, **changes}
        )
    )


def test_names_and_shapes_are_the_documented_ones():
    parameters = dict(one_block().named_parameters())
    assert list(parameters) == NAMES
    assert parameters["token_embedding.weight"].shape == (11, 16)
    assert parameters["position_embedding.weight"].shape == (8, 16)
    assert parameters["blocks.0.mlp.fc_in.weight"].shape == (64, 16)
    assert parameters["blocks.0.mlp.fc_out.weight"].shape == (16, 64)
    assert parameters["lm_head.weight"].shape == (11, 16)


def test_the_size_of_the_string_model():
    assert ml.GPT(ml.GPTConfig(96, 20, 64, 2, 4)).num_parameters() == 113_664


def test_the_start():
    model = ml.GPT(ml.GPTConfig(96, 20, 64, 2, 4), seed=3)
    state = model.state_dict()
    assert model.training
    for name, array in state.items():
        if name.endswith("bias"):
            assert not array.any()
        elif ".ln_" in f".{name}":
            assert (array == 1).all()
        else:
            assert array.std() == pytest.approx(0.02, rel=0.1)
    again, double = ml.GPT(model.config, seed=3), ml.GPT(model.config, seed=3, dtype="float64")
    for name, array in again.state_dict().items():
        np.testing.assert_array_equal(array, state[name])
        np.testing.assert_array_equal(double.state_dict()[name].astype("float32"), array)


def test_a_tied_head_is_one_parameter():
    model = one_block(tied_head=True)
    assert model.lm_head.weight is model.token_embedding.weight
    assert "lm_head.weight" not in model.state_dict()
    assert model.num_parameters() == one_block().num_parameters() - 11 * 16


def test_a_position_sees_only_the_past(small, rng):
    model = small("float64")
    ids = rng.integers(0, 11, (1, 8))
    before = model(ids).numpy()
    ids[0, 5] = (ids[0, 5] + 1) % 11
    after = model(ids).numpy()
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert np.abs(before[:, 5:] - after[:, 5:]).min(axis=-1).min() > 0


def test_loading_is_strict_and_all_or_none(small):
    model, other = small(), small()
    before = model.state_dict()
    state = {name: array + 1 for name, array in before.items()}
    for wrong, message in [
        ({k: v for k, v in state.items() if k != "ln_f.bias"}, "it lacks ln_f.bias"),
        ({**state, "extra": np.ones(1)}, "it does not know extra"),
        ({**state, "ln_f.bias": np.ones(3)}, r"ln_f.bias has shape \(16,\)"),
        ({**state, "lm_head.weight": np.ones((11, 16), int)}, "holds floats"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.load_state_dict(wrong)
        for name, array in model.state_dict().items():
            np.testing.assert_array_equal(array, before[name])
    other.load_state_dict(state)
    for name, array in other.state_dict().items():
        np.testing.assert_array_equal(array, state[name])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"d_model": 15}, ValueError, "15 is not divisible by 4"),
        ({"n_layers": 0}, ValueError, "at least 1"),
        ({"vocab_size": 2.5}, TypeError, "whole number"),
        ({"n_heads": True}, TypeError, "whole number"),
        ({"tied_head": "yes"}, TypeError, "True or False"),
    ],
)
def test_sizes_that_cannot_be(changes, error, message):
    with pytest.raises(error, match=message):
        one_block(**changes)


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (np.full((1, 3), 11), ValueError, "id 11 is outside the vocabulary of 11"),
        (np.full((1, 3), -1), ValueError, "id -1 is outside"),
        (np.ones((1, 3)), TypeError, "must be integers"),
        (np.ones((1, 9), int), ValueError, "9 positions; the context holds at most 8"),
        (np.ones(3, int), ValueError, r"shape \(B, T\)"),
        (np.ones((1, 0), int), ValueError, "at least 1"),
    ],
)
def test_ids_that_cannot_be(ids, error, message):
    with pytest.raises(error, match=message):
        one_block()(ids)


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        (np.full((1, 3), 11), ValueError, "target 11 is outside"),
        (np.full((1, 3), -1), ValueError, "target -1 is outside"),
        (np.full((1, 3), -100), ValueError, "all 3 are ignored"),
        (np.ones((1, 3)), TypeError, "must be integers"),
        (np.ones((1, 2), int), ValueError, "do not fit"),
    ],
)
def test_targets_that_cannot_be(targets, error, message):
    logits = one_block()(np.ones((1, 3), int))
    with pytest.raises(error, match=message):
        ml.functional.cross_entropy(logits, targets)
