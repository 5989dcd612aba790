"""Sampling: greedy, by temperature, among the top k, and the cache of keys and values."""

import numpy as np
import pytest
from helpers import ids, lora_gpt, snapshot, tiny_gpt
from hypothesis import given
from hypothesis import strategies as st

import minilora as ml
from minilora.backend import asarray
from minilora.baselines import PromptTuned, add_adapters, add_prefix
from minilora.gpt import Cache


def certain(*choices, vocab_size=7):
    """A model whose logits are the same everywhere: tokens of `choices` are likely, in that order."""
    model = tiny_gpt(vocab_size=vocab_size, d_model=2, n_heads=1, n_layers=1)
    model.ln_f.weight.data[...] = 0
    model.ln_f.bias.data[...] = asarray([1, 0])
    model.lm_head.weight.data[...] = -50
    for rank, token in enumerate(choices):
        model.lm_head.weight.data[token, 0] = -rank
    return model


def step_by_step(model, prompt, count):
    """Greedy decoding written out."""
    sequence = list(prompt)
    for _ in range(count):
        with ml.no_grad():
            logits = model([sequence[-model.config.context_length :]]).numpy()[0, -1]
        sequence.append(int(logits.argmax()))
    return sequence


@given(seed=st.integers(0, 50), prompt=st.lists(st.integers(0, 6), min_size=1, max_size=9))
def test_greedy_is_the_likeliest_token_each_time_within_and_beyond_the_context(seed, prompt):
    model = tiny_gpt(seed)
    expected = step_by_step(model, prompt, 10)
    greedy = ml.generate(model, prompt, 10, temperature=0)
    assert greedy.dtype == np.int64 and greedy.tolist() == expected
    assert ml.generate(model, prompt, 10, top_k=1, temperature=3.0, seed=seed).tolist() == expected


def test_seeds_reproduce_and_differ():
    model = tiny_gpt()
    draws = [ml.generate(model, [1], 30, seed=seed).tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_frequencies_follow_the_softmax_at_every_temperature():
    """Logits 0 and -1: the likelier token has probability 1/(1 + exp(-1/temperature))."""
    model = certain(3, 5)
    for temperature in (0.5, 1.0, 4.0):
        drawn = ml.generate(model, [0], 1000, temperature=temperature, top_k=2, seed=1)[1:]
        assert set(drawn) == {3, 5}
        assert (drawn == 3).mean() == pytest.approx(1 / (1 + np.exp(-1 / temperature)), abs=0.05)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_top_k_leaves_the_k_likeliest(k):
    drawn = ml.generate(certain(4, 0, 2), [1], 100, temperature=10.0, top_k=k, seed=0)[1:]
    assert set(drawn) == set([4, 0, 2][:k])


@pytest.mark.parametrize("k", [7, 100])
def test_top_k_of_all_leaves_all(k):
    model = tiny_gpt()
    assert ml.generate(model, [1], 20, top_k=k, seed=0).tolist() == ml.generate(model, [1], 20, seed=0).tolist()


def test_a_temperature_near_zero_does_not_overflow():
    assert ml.generate(tiny_gpt(), [1], 5, temperature=1e-6).tolist() == step_by_step(tiny_gpt(), [1], 5)


def test_sampling_ignores_dropout_and_changes_neither_mode_nor_parameters():
    model = lora_gpt(dropout=0.5)
    before, state = snapshot(model), str(model.blocks[0].attn.q_proj.adapter.rng.bit_generator.state)
    first = ml.generate(model, [1], 8, temperature=0).tolist()
    assert first == ml.generate(model.eval(), [1], 8, temperature=0).tolist()
    assert not model.training and model.train().training
    assert snapshot(model) == before and str(model.blocks[0].attn.q_proj.adapter.rng.bit_generator.state) == state
    ml.merge_lora(model)
    assert ml.generate(model, [1], 8, temperature=0).tolist() == first


def test_no_new_tokens_is_the_prompt():
    assert ml.generate(tiny_gpt(), np.array([3, 1]), 0).tolist() == [3, 1]


def test_text_goes_in_and_comes_out():
    vocabulary = ml.Vocabulary("abcdefg")
    text = ml.generate_text(tiny_gpt(), vocabulary, "bad", 9, seed=2)
    assert text.startswith("bad") and len(text) == 12 and set(text) <= set("abcdefg")
    assert vocabulary.encode(text).tolist() == ml.generate(tiny_gpt(), [1, 0, 3], 9, seed=2).tolist()
    with pytest.raises(ValueError, match=r"The character 'z' \(position 1\) is not among the 7"):
        ml.generate_text(tiny_gpt(), vocabulary, "az", 3)


@pytest.mark.parametrize(
    ("prompt", "settings", "error", "message"),
    [
        ([], {}, ValueError, "a prompt of at least one token"),
        ([1.5], {}, TypeError, "ids must be integers, not float64"),
        ([7], {}, ValueError, "id 7 is outside the vocabulary of 7"),
        ([-1], {}, ValueError, "id -1 is outside"),
        ([1], {"new_tokens": -1}, ValueError, "new_tokens must be at least 0"),
        ([1], {"temperature": -0.1}, ValueError, "temperature must be a finite number"),
        ([1], {"temperature": float("nan")}, ValueError, "temperature must be a finite number"),
        ([1], {"temperature": float("inf")}, ValueError, "temperature must be a finite number"),
        ([1], {"top_k": 0}, ValueError, "top_k must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused_and_the_mode_stays(prompt, settings, error, message):
    model = tiny_gpt()
    with pytest.raises(error, match=message):
        ml.generate(model, prompt, **{"new_tokens": 2, **settings})
    assert model.training


# ---- the cache of keys and values ----------------------------------------------------------------------


def adapted(kind):
    model = lora_gpt(dtype="float64") if kind in ("lora", "merged") else tiny_gpt(dtype="float64")
    if kind == "merged":
        ml.merge_lora(model)
    elif kind == "prefix":
        add_prefix(model, 2)
    elif kind == "adapters":
        for parameter in add_adapters(model, 2):
            parameter.data += 0.1
    return model


@given(kind=st.sampled_from(["plain", "lora", "merged", "prefix", "adapters"]), cuts=st.sets(st.integers(1, 3)))
def test_reading_in_pieces_from_a_cache_gives_the_logits_of_reading_at_once(kind, cuts):
    model, tokens = adapted(kind), ids(tiny_gpt(), B=3, T=4)
    model.eval()
    with ml.no_grad():
        whole, cache = model(tokens).numpy(), Cache(model)
        pieces = [model(piece, cache).numpy() for piece in np.split(tokens, sorted(cuts), axis=1)]
    assert cache.length == 4
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, rtol=0, atol=1e-14)


def test_a_sampled_token_costs_one_position():
    model, read = tiny_gpt(), []
    embed = model.embed
    model.embed = lambda tokens, start=0: read.append((start, np.shape(tokens)[1])) or embed(tokens, start)
    ml.generate(model, [1, 2, 3], 5)
    assert read == [(0, 3), (3, 1), (4, 1), (5, 1), (0, 6)]  # the last one reads a full context anew


def test_a_cache_is_for_reading_without_gradients_and_within_the_context():
    model = tiny_gpt()
    with pytest.raises(ValueError, match="within no_grad"):
        model([[1, 2]], Cache(model))
    with ml.no_grad():
        cache = Cache(model)
        model([[1, 2, 3, 4]], cache)
        with pytest.raises(ValueError, match="7 positions; the context holds at most 6"):
            model([[1, 2, 3]], cache)
        assert cache.length == 4 and model([[1, 2]], cache).shape == (1, 2, 7)


def test_a_model_that_reads_a_prompt_first_generates_without_a_cache():
    tuned = PromptTuned(tiny_gpt(), 2)
    assert ml.generate(tuned, [1], 3).shape == (4,)
