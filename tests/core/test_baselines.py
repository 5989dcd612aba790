"""The methods that LoRA is compared with: what they train, how they start, and their gradients."""

import numpy as np
import pytest
from helpers import ids, loss, tiny_gpt

import minilora as ml
from minilora import functional as F
from minilora.backend import asarray, to_numpy
from minilora.baselines import PromptTuned, RandomSubset, RandomSubspace, add_adapters, add_prefix, bitfit, last_block

L, D, P, M = 2, 8, 3, 2  # the tiny GPT's layers and width; a prefix and an adapter for it


def prompt(model):
    tuned = PromptTuned(model, P)
    return tuned, [tuned.prompt]


METHODS = {
    "last block": lambda m: (m, last_block(m)),
    "bitfit": lambda m: (m, bitfit(m)),
    "prompt": prompt,
    "prefix": lambda m: (m, add_prefix(m, P)),
    "houlsby": lambda m: (m, add_adapters(m, M)),
    "lin": lambda m: (m, add_adapters(m, M, "lin")),
}
COUNTS = {  # §5.1's formulas
    "last block": 12 * D * D + 13 * D,
    "bitfit": L * 11 * D + D,
    "prompt": P * D,
    "prefix": 2 * L * P * D,
    "houlsby": 2 * L * (2 * D * M + M + D),
    "lin": L * (2 * D * M + M + D) + 2 * L * D,
}


@pytest.mark.parametrize("name", METHODS)
def test_the_parameters_that_train_are_those_returned_and_as_many_as_the_formula_says(name):
    model, trainable = METHODS[name](tiny_gpt())
    assert sum(p.size for p in trainable) == COUNTS[name]
    assert [p for p in model.parameters() if p.requires_grad] == trainable


@pytest.mark.parametrize("name", METHODS)
def test_gradients_of_every_method(name):
    model = tiny_gpt(dtype="float64")
    noise = np.random.default_rng(5)
    for p in model.parameters():
        p.data += asarray(noise.normal(0, 0.3, p.shape))
    model, trainable = METHODS[name](model)
    for p in trainable:  # `up` starts as zero, which would hide the gradient of `down`
        p.data += asarray(noise.normal(0, 0.3, p.shape))
    tokens, targets = ids(model, T=3), ids(model, T=3, seed=1)
    assert ml.gradcheck(lambda *parameters: F.cross_entropy(model(tokens), targets), *trainable, tolerance=1e-6)


@pytest.mark.parametrize("name", ["last block", "bitfit", "houlsby", "lin"])
def test_what_adds_nothing_to_the_text_starts_as_the_base(name):
    base = tiny_gpt()
    model, _ = METHODS[name](tiny_gpt())
    np.testing.assert_array_equal(model(ids(base)).numpy(), base(ids(base)).numpy())


@pytest.mark.parametrize("name", METHODS)
def test_only_what_is_returned_changes_in_training(name):
    model, trainable = METHODS[name](tiny_gpt())
    before = {key: p.numpy() for key, p in model.named_parameters()}
    optimizer = ml.Adam(trainable, 1e-2)
    for _ in range(2):  # at the first step, `down` behind a zero `up` has no gradient
        optimizer.zero_grad()
        F.cross_entropy(model(ids(model, T=3)), ids(model, T=3, seed=1)).backward()
        optimizer.step()
    changed = {key for key, p in model.named_parameters() if not np.array_equal(before[key], p.numpy())}
    assert changed == {key for key, p in model.named_parameters() if any(p is t for t in trainable)}


def test_a_prefix_is_seen_by_every_token_and_is_not_one_of_them():
    base, tokens = tiny_gpt(), ids(tiny_gpt(), T=3)
    for model, trainable in (METHODS["prefix"](tiny_gpt()), METHODS["prompt"](tiny_gpt())):
        before = model(tokens).numpy()
        assert before.shape == base(tokens).shape
        trainable[0].data += asarray(np.arange(D), np.float32)
        assert (np.abs(model(tokens).numpy() - before).max(axis=-1) > 0).all()


def test_a_prefix_of_tokens_is_what_those_tokens_would_give_in_their_place():
    """A prefix starts as keys and values of P random tokens, so it equals reading them, but for positions."""
    model = tiny_gpt()
    model.position_embedding.weight.data[...] = 0
    chosen = np.random.default_rng(0).integers(0, 7, (1, P))
    tokens = ids(model, B=1, T=3)
    whole = model(np.concatenate([chosen, tokens], axis=1)).numpy()[:, P:]
    for name in ("prefix", "prompt"):
        tuned, _ = METHODS[name](model)
        np.testing.assert_allclose(tuned(tokens).numpy(), whole, atol=1e-6)
        model = tiny_gpt()
        model.position_embedding.weight.data[...] = 0


@pytest.mark.parametrize(
    "action, message",
    [
        (lambda m: PromptTuned(m, 0), "1 to 5 vectors, not 0"),
        (lambda m: add_prefix(m, 6), "1 to 5 vectors, not 6"),
        (lambda m: PromptTuned(m, 3)(ids(m, T=4)), "at most 3 fit"),
        (lambda m: add_prefix(m, 3) and m(ids(m, T=4)), "at most 3 fit"),
        (lambda m: add_adapters(m, 0), "at least 1, not 0"),
        (lambda m: add_adapters(m, 2, "pfeiffer"), "not 'pfeiffer'"),
    ],
)
def test_what_cannot_be_is_refused(action, message):
    with pytest.raises(ValueError, match=message):
        action(tiny_gpt())


def test_a_random_subspace_moves_within_itself_by_adam_on_its_own_coordinates():
    model, n = tiny_gpt(dtype="float64"), 7
    theta = [p.numpy() for p in model.parameters()]
    optimizer = RandomSubspace(model.parameters(), n, lr=1e-2)
    P = np.zeros((sum(t.size for t in theta), n))
    P[np.arange(len(P)), np.concatenate([to_numpy(c) for c in optimizer.columns])] = np.concatenate(
        [to_numpy(s) for s in optimizer.signs]
    )
    z = ml.Tensor(np.zeros(n), requires_grad=True)
    adam = ml.Adam([z], 1e-2)
    for step in range(3):
        optimizer.zero_grad()
        loss(model, step).backward()
        z.grad = asarray(P.T @ np.concatenate([to_numpy(p.grad).ravel() for p in model.parameters()]))
        optimizer.step()
        adam.step()
        moved = np.concatenate([(p.numpy() - t).ravel() for p, t in zip(model.parameters(), theta, strict=True)])
        np.testing.assert_allclose(moved, P @ z.numpy(), atol=1e-12)
    assert 0 < np.abs(moved).max()


def test_a_random_subset_moves_its_weights_and_no_other():
    model = tiny_gpt()
    before = model.state_dict()
    optimizer = RandomSubset(model.parameters(), 50, lr=1e-2, seed=1)
    for step in range(3):
        optimizer.zero_grad()
        loss(model, step).backward()
        optimizer.step()
    moved = {name: np.flatnonzero(value != before[name]) for name, value in model.state_dict().items()}
    assert 45 <= sum(map(len, moved.values())) <= 50  # a weight of a token that never came has no gradient
    drawn = [to_numpy(places).tolist() for places in optimizer.places]
    assert all(set(moved[name]) <= set(places) for name, places in zip(moved, drawn, strict=True))
    other = RandomSubset(model.parameters(), 50, lr=1e-2, seed=2)
    assert [to_numpy(places).tolist() for places in other.places] != drawn


def test_a_subset_of_all_weights_is_adam_bit_for_bit():
    ends = []
    for make in (lambda p: ml.Adam(p, 1e-2), lambda p: RandomSubset(p, sum(q.size for q in p), 1e-2)):
        model = tiny_gpt()
        optimizer = make(model.parameters())
        for step in range(3):
            optimizer.zero_grad()
            loss(model, step).backward()
            optimizer.step()
        ends.append(model.state_dict())
    assert all(np.array_equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.mark.parametrize("n", [0, 10**6])
def test_a_subset_of_none_or_of_more_weights_than_there_are_is_refused(n):
    with pytest.raises(ValueError, match=f"1 to .* weights of this model, not {n:,}"):
        RandomSubset(tiny_gpt().parameters(), n, lr=1e-2)
