"""Numbers that used to be wrong without a word: each kind of fault that was found, and the right value."""

import collections
import copy
import pickle
import threading

import numpy as np
import pytest
from helpers import ids, lora_gpt, loss, tiny_gpt

import minilora as ml
from minilora import functional as F
from minilora.backend import asarray, to_numpy, xp
from minilora.baselines import PromptTuned, RandomSubset, RandomSubspace, add_prefix
from minilora.claims import adaptation
from minilora.gpt import GPT
from minilora.lora import lora_layers
from minilora.nn import Dropout, Linear, Module, Parameter, evaluating
from minilora.texts import BITS
from minilora.training import evaluate_exact_match


def leaf(values, dtype=np.float64):
    return ml.Tensor(np.array(values, dtype=dtype), requires_grad=True)


# ---- what belongs to the caller ----------------------------------------------------------------------

OPERATIONS = {
    "product": lambda x: x * x,
    "power": lambda x: x**3,
    "matmul": lambda x: x @ x,
    "exp, which keeps its result": F.exp,
    "tanh": F.tanh,
    "gelu": lambda x: F.gelu(x) * x,
    "softmax": F.softmax,
    "linear": lambda x: F.linear(x, x),
    "layer norm": lambda x: F.layer_norm(x, x[0], x[1]) * x,
    "attention": lambda x: F.causal_attention(*(x.reshape(1, 1, 2, 2),) * 3),
}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_writing_into_data_between_forward_and_backward_is_refused(operation):
    x = leaf([[1.0, 2.0], [3.0, 4.5]])
    y = (operation(x) * 1.5).sum()
    x.data[...] = 7
    with pytest.raises(ValueError, match=r"shape \(2, 2\) was changed in place between the forward pass and backward"):
        y.backward()
    assert x.grad is None


def test_writing_into_a_parameter_of_a_model_is_refused_and_one_entry_is_enough():
    model = lora_gpt()
    for p in (model.blocks[0].attn.q_proj.weight, model.blocks[1].attn.q_proj.lora_B, model.lm_head.weight):
        value = loss(model)
        p.data[0, 0] += 1e-3
        with pytest.raises(ValueError, match="was changed in place"):
            value.backward()
        assert all(q.grad is None for q in model.parameters())


@pytest.mark.numpy_only("the stand-in makes a view's base anew each time it is asked")
def test_writing_into_a_result_or_into_a_view_of_it_is_refused():
    for write in (lambda y: y.data, lambda y: y.reshape(4).data, lambda y: y.transpose().data, lambda y: y[:1].data):
        x = leaf([[1.0, 2.0], [3.0, 4.5]])
        y = x * 2
        total = (y * y).sum()
        write(y)[...] = 0
        with pytest.raises(ValueError, match="was changed in place"):
            total.backward()


def test_an_optimizers_step_between_forward_and_backward_is_refused():
    model = tiny_gpt()
    optimizer = ml.AdamW(model.parameters(), lr=1e-2)
    loss(model).backward()
    late = loss(model, step=1)
    optimizer.step()
    with pytest.raises(ValueError, match="was changed in place"):
        late.backward()


def test_looking_at_data_and_assigning_new_data_are_allowed():
    x = leaf([2.0, 3.0])
    y = (x * x).sum()
    assert to_numpy(x.data).sum() == 5 and x.data is x.data
    x.data = asarray(np.array([10.0, 10.0]))  # the graph has the old array
    x.data[...] = 20
    y.backward()
    assert x.grad.tolist() == [4, 6]
    x.data[...] = 1  # walked: nothing waits for it
    x.grad = None
    (x * x).sum().backward()
    assert x.grad.tolist() == [2, 2]


def test_a_tensor_may_be_read_ten_thousand_times_and_looked_at():
    """What is remembered of its readers grows with them, and no faster; each array is compared once."""
    x = leaf(np.ones((2000, 600)))
    total = ml.Tensor(0.0)
    for row in range(2000):
        total = total + x[row, 0]
    assert to_numpy(x.data).sum() == 1_200_000
    checks = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "array_equal", lambda *a, **k: checks.append(1) or True)
        total.backward()
    assert len(checks) <= 1 and to_numpy(x.grad)[:, 0].sum() == 2000


def test_a_refusal_leaves_the_graph_as_it_is():
    x = leaf([2.0, 3.0])
    y = (x * x).sum()
    x.data[0] = 7
    with pytest.raises(ValueError, match="was changed in place"):
        y.backward()
    x.data[0] = 2
    y.backward()
    assert x.grad.tolist() == [4, 6]


def test_a_copy_of_a_tensor_and_a_gradient_check_leave_no_way_round():
    x = leaf([2.0, 3.0])
    y = (x * x).sum()
    copy.copy(x).data[...] = 7
    with pytest.raises(ValueError, match="was changed in place"):
        y.backward()
    x = leaf([2.0, 3.0])
    y = (x * x).sum()
    assert ml.gradcheck(lambda x: (x * x).sum(), x)
    x.data[...] = 7
    with pytest.raises(ValueError, match="was changed in place"):
        y.backward()


def test_nothing_is_copied_or_kept_once_a_graph_is_walked_or_gone():
    x = leaf([1.0, 2.0])
    for _ in range(100):
        (x * x).sum().backward()
    assert len(x._readers) <= 32
    y = x * x
    del y
    before = x.data
    assert x.data is before and not any(reader() is not None and reader().steps for reader in x._readers)


def test_a_tensor_copies_the_array_it_is_made_from():
    array = np.array([1.0, 2.0])
    x = ml.Tensor(array, requires_grad=True)
    y = (x * x).sum()
    array[...] = 7
    y.backward()
    assert x.data.tolist() == [1, 2] and x.grad.tolist() == [2, 4]
    weights = np.array([3.0, 5.0])
    z = (x * weights).sum()
    weights[...] = 0
    x.grad = None
    z.backward()
    assert x.grad.tolist() == [3, 5]


def test_ids_and_targets_may_be_written_into_after_the_forward_pass():
    weight, rows = leaf(np.arange(12.0).reshape(4, 3)), np.array([0, 1, 1])
    y = F.embedding(weight, rows).sum()
    rows[...] = 3
    y.backward()
    assert to_numpy(weight.grad)[:, 0].tolist() == [1, 2, 0, 0]
    model, tokens, targets = tiny_gpt(dtype="float64"), *np.random.default_rng(0).integers(0, 7, (2, 2, 5))
    expected = F.cross_entropy(model(tokens), targets)
    expected.backward()
    gradients = [to_numpy(p.grad).copy() for p in model.parameters()]
    model.zero_grad()
    value = F.cross_entropy(model(tokens), targets)
    tokens[...], targets[...] = 0, 1
    value.backward()
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        np.testing.assert_array_equal(to_numpy(p.grad), gradient)


def test_a_trained_model_can_still_be_copied_and_pickled():
    model = lora_gpt()
    loss(model).backward()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert loss(twin).item() == loss(model).item()
        for name, p in twin.named_parameters():
            own = dict(model.named_parameters())[name]
            assert p.requires_grad == own.requires_grad and not xp.may_share_memory(p.data, own.data)


# ---- Adam counts each parameter's own steps ----------------------------------------------------------


@pytest.mark.parametrize("joins", [2, 51, 2001])
def test_a_parameter_that_joins_late_is_moved_as_if_training_began_then(joins):
    """Its first update is lr·sign(g), however late: a shared count gave 0.71 of it at step 51."""
    early, late = leaf([1.0]), leaf([1.0])
    optimizer = ml.Adam([early, late], lr=1e-2)
    for step in range(1, joins + 1):
        early.grad = asarray(np.array([0.3]))
        late.grad = asarray(np.array([-2.0])) if step == joins else None
        optimizer.step()
    assert late.data.item() == pytest.approx(1 + 1e-2, rel=1e-8)
    assert optimizer.state_dict()["steps"] == [joins, 1]


def test_counts_are_kept_and_an_old_state_with_one_count_loads():
    p, q = leaf([1.0]), leaf([1.0])
    optimizer = ml.Adam([p, q], lr=1e-2)
    for gradients in (([1.0], None), ([1.0], [2.0])):
        p.grad, q.grad = (None if g is None else asarray(np.array(g)) for g in gradients)
        optimizer.step()
    state = optimizer.state_dict()
    twin = ml.Adam([leaf([1.0]), leaf([1.0])], lr=1e-2)
    twin.load_state_dict(state)
    assert twin.steps == [2, 1]
    twin.load_state_dict({**state, "steps": 7})
    assert twin.steps == [7, 7]
    for wrong in ([1], [1, 2, 3], [1, -1]):
        with pytest.raises(ValueError, match="step counts"):
            twin.load_state_dict({**state, "steps": wrong})
    assert twin.steps == [7, 7]


def test_decay_groups_leave_out_vectors_and_what_is_frozen():
    model = tiny_gpt()
    model.lm_head.weight.requires_grad = False
    groups = ml.decay_groups(model.parameters())
    assert all(p.ndim == 2 for p in groups[0]["params"]) and all(p.ndim == 1 for p in groups[1]["params"])
    assert sum(len(group["params"]) for group in groups) == len(model.parameters()) - 1
    before = model.state_dict()
    optimizer = ml.AdamW(groups, lr=0.1, weight_decay=0.5)
    for p in optimizer.params:
        p.grad = xp.zeros_like(p.data)
    optimizer.step()
    for name, array in model.state_dict().items():
        decays = array.ndim == 2 and name != "lm_head.weight"
        np.testing.assert_allclose(array, before[name] * (0.95 if decays else 1), rtol=1e-6)
    with pytest.raises(ValueError, match="None of these parameters trains"):
        ml.decay_groups([ml.Tensor(1.0)])


# ---- inference writes no mode ------------------------------------------------------------------------


def test_inference_in_several_threads_is_without_dropout_and_leaves_training_mode_on():
    model = lora_gpt(dropout=0.5, d_model=16)
    plain = lora_gpt(dropout=0.0, d_model=16)
    expected = ml.generate(plain, [1], 40, temperature=0).tolist()
    batch = ids(model), ids(model, seed=1)
    value = ml.evaluate(plain, [batch])
    wrong, stop = [], threading.Event()

    def watch():
        while not stop.wait(0.001):  # not without a pause: it would take the interpreter from the others
            if not model.training:
                wrong.append("the mode was switched")

    def infer():
        for _ in range(5):
            if ml.generate(model, [1], 40, temperature=0).tolist() != expected or ml.evaluate(model, [batch]) != value:
                wrong.append("dropout was active")

    threads = [threading.Thread(target=infer) for _ in range(4)]
    watcher = threading.Thread(target=watch)
    for thread in (watcher, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    watcher.join()
    assert not wrong and model.training


def test_evaluating_is_of_this_thread_and_ends_with_its_context():
    layer, seen = Dropout(0.5, np.random.default_rng(0)), []
    with pytest.raises(KeyError), evaluating():
        assert not layer.training
        thread = threading.Thread(target=lambda: seen.append(layer.training))
        thread.start()
        thread.join()
        raise KeyError
    assert seen == [True] and layer.training
    layer.eval()
    assert not layer.training


# ---- generate ----------------------------------------------------------------------------------------


def test_a_batch_of_prompts_is_answered_row_by_row():
    model = tiny_gpt()
    prompts = np.array([[1, 2, 3], [4, 5, 6]])
    greedy = ml.generate(model, prompts, 9, temperature=0)  # beyond the context of 6
    assert greedy.shape == (2, 12)
    for row, prompt in zip(greedy, prompts, strict=True):
        assert row.tolist() == ml.generate(model, prompt, 9, temperature=0).tolist()
    same = np.array([[1, 2], [1, 2]])
    one, two = ml.generate(model, same, 20, temperature=2.0, seed=5)
    assert one.tolist() != two.tolist(), "rows draw numbers of their own"
    assert ml.generate(model, same[:1], 20, temperature=2.0, seed=5)[0].tolist() == one.tolist()
    assert ml.generate(model, ml.Tensor(prompts), 1, temperature=0).shape == (2, 4)
    with pytest.raises(ValueError, match=r"shape \(n,\), or a batch of them \(B, n\), not \(1, 1, 2\)"):
        ml.generate(model, [[[1, 2]]], 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_choose_no_token(bad):
    model = tiny_gpt()
    model.ln_f.weight.data[...] = bad
    for temperature in (0, 1.0):
        with pytest.raises(ValueError, match=r"No token can be chosen.*not finite"), np.errstate(all="ignore"):
            ml.generate(model, [1], 3, temperature=temperature)


class Scripted(GPT):
    """Says the next letter of the alphabet, whatever it reads."""

    def read(self, x, pasts=None):
        logits = np.full((*self.last.shape, self.config.vocab_size), -50.0, np.float32)
        np.put_along_axis(logits, ((self.last + 1) % self.config.vocab_size)[..., None], 0.0, axis=-1)
        return ml.Tensor(asarray(logits))

    def embed(self, ids, start=0):
        self.last = to_numpy(ids)
        return super().embed(ids, start)


def test_generation_stops_at_a_stop_token_or_text():
    model = Scripted(ml.GPTConfig(26, 30, 4, 1, 1))
    letters = ml.Vocabulary("abcdefghijklmnopqrstuvwxyz")
    assert ml.generate(model, [0], 20, temperature=0, stop=3).tolist() == [0, 1, 2, 3]
    assert ml.generate(model, [0], 2, temperature=0, stop=3).tolist() == [0, 1, 2]
    assert ml.generate(model, [3], 3, temperature=0, stop=[3, 5]).tolist() == [3, 4, 5], "the prompt's own stop no end"
    rows = ml.generate(model, [[0], [2], [9]], 20, temperature=0, stop=[3, 11])
    assert rows.tolist() == [[0, 1, 2, 3], [2, 3, 3, 3], [9, 10, 11, 11]]
    assert ml.generate_text(model, letters, "a", 20, temperature=0, stop="f") == "abcde"
    assert ml.generate_text(model, letters, "ab", 20, temperature=0, stop="fg") == "abcde", "of several characters"
    assert ml.generate_text(model, letters, "xa", 4, temperature=0, stop="x") == "xabcde", "not in the prompt"
    with pytest.raises(TypeError, match="stop takes ids, not 'd'"):
        ml.generate(model, [0], 5, stop="d")
    letters.end = 4  # as a tokenizer's end token
    assert ml.generate_text(model, letters, "a", 20, temperature=0) == "abcd"
    assert ml.generate_text(model, letters, "a", 20, temperature=0, stop="cd") == "ab"
    assert ml.generate_text(model, letters, "de", 20, temperature=0) == "de" + "fghijklmnopqrstuvwxyzabcd"[:20]
    with pytest.raises(ValueError, match="at least one character"):
        ml.generate_text(model, letters, "a", 2, stop="")


class Ill(Scripted):
    """The logits of a row that has read a 5 are NaN."""

    def read(self, x, pasts=None):
        return super().read(x, pasts) * np.where(self.last[:, -1:, None] >= 5, np.float32("nan"), np.float32(1))


def test_a_row_that_has_ended_asks_nothing_more_of_the_model():
    model = Ill(ml.GPTConfig(26, 30, 4, 1, 1))
    rows = ml.generate(model, [[3], [0]], 4, temperature=0, stop=5)
    assert rows.tolist() == [[3, 4, 5, 5, 5], [0, 1, 2, 3, 4]]
    with pytest.raises(ValueError, match="No token can be chosen"):
        ml.generate(model, [[3], [0]], 4, temperature=0)


def test_the_smallest_temperature_is_greedy_without_a_warning():
    model = tiny_gpt()
    assert ml.generate(model, [1], 9, temperature=5e-324).tolist() == ml.generate(model, [1], 9, temperature=0).tolist()


@pytest.mark.parametrize(
    "wrap", [lambda m: PromptTuned(m, 2), lambda m: add_prefix(m, 2) and m], ids=["prompt", "prefix"]
)
def test_a_prefix_leaves_less_of_the_context_and_generation_goes_on_beyond_it(wrap):
    model = wrap(tiny_gpt())
    assert model.reads == 4
    assert ml.generate(model, [1, 2], 9, temperature=0).shape == (11,)


# ---- relu, max, cross-entropy at the edges -----------------------------------------------------------


def test_relu_of_infinities_and_of_nan():
    x = leaf([-np.inf, -1.0, 0.0, 2.0, np.inf])
    y = F.relu(x)
    assert y.numpy().tolist() == [0, 0, 0, 2, np.inf]
    with np.errstate(invalid="ignore"):  # 0 · inf, in the loss alone
        (y * np.array([np.inf, 1, 1, 1, 1])).sum().backward()
    assert x.grad.tolist() == [0, 0, 0, 1, 1], "an infinite gradient does not pass where relu is flat"
    assert np.isnan(F.relu(leaf([np.nan])).item())


def test_an_infinite_gradient_reaches_the_largest_entry_alone():
    x = leaf([1.0, 3.0])
    (x.max() * np.inf).backward()
    assert x.grad.tolist() == [0, np.inf]


def test_sums_of_the_loss_add_up_where_means_do_not():
    """Halves of a batch with 7 and 2 counted targets: the gradient of the whole is that of the sums over 9."""
    rng = np.random.default_rng(0)
    whole, targets = leaf(rng.normal(size=(2, 7, 5))), rng.integers(0, 5, (2, 7))
    targets[1, 2:] = -100
    F.cross_entropy(whole, targets).backward()
    expected = to_numpy(whole.grad)
    halves = leaf(whole.numpy())
    value = sum(F.cross_entropy(halves[i], targets[i], reduction="sum") for i in range(2)) / 9
    value.backward()
    np.testing.assert_allclose(to_numpy(halves.grad), expected, rtol=1e-12)
    assert value.item() == pytest.approx(F.cross_entropy(whole, targets).item(), rel=1e-12)
    means = leaf(whole.numpy())
    (sum(F.cross_entropy(means[i], targets[i]) for i in range(2)) / 2).backward()
    assert np.abs(to_numpy(means.grad) - expected).max() > 0.1 * np.abs(expected).max()
    nothing = leaf(whole.numpy())
    F.cross_entropy(nothing, np.full((2, 7), -100), reduction="sum").backward()
    assert not to_numpy(nothing.grad).any()
    with pytest.raises(ValueError, match='reduction must be "mean" or "sum", not \'none\''):
        F.cross_entropy(whole, targets, reduction="none")


def test_evaluation_weighs_batches_by_what_they_count():
    model = tiny_gpt(dtype="float64")
    one, two, none = (ids(model, B, 5, seed) for B, seed in ((1, 0), (3, 1), (2, 2)))
    targets = [ids(model, len(rows), 5, 9) for rows in (one, two, none)]
    targets[0][:, 1:] = -100
    targets[2][...] = -100
    batches = list(zip((one, two, none), targets, strict=True))
    together = F.cross_entropy(model(np.concatenate([one, two])), np.concatenate(targets[:2])).item()
    assert ml.evaluate(model, batches) == pytest.approx(together, rel=1e-12)
    right = [model(rows).numpy().argmax(-1) for rows in (one, two)]
    assert evaluate_exact_match(model, [(one, right[0]), (two, (right[1] + 1) % 7)]) == 1 / 4
    as_tensors = [(ml.Tensor(rows), ml.Tensor(wanted)) for rows, wanted in batches]
    assert ml.evaluate(model, as_tensors) == ml.evaluate(model, batches)
    with pytest.raises(ValueError, match="no target to average over"):
        ml.evaluate(model, [(none, targets[2])])


def test_the_bits_of_a_claim_are_of_all_targets_together():
    logits, targets = ml.Tensor(np.random.default_rng(0).normal(size=(2, 7, 5))), np.ones((2, 7), int)
    targets[0, 1:] = -100
    both = [(logits[:1], targets[:1]), (logits[1:], targets[1:])]
    assert adaptation._bits(both) == pytest.approx(BITS * F.cross_entropy(logits, targets).item(), rel=1e-12)


# ---- modules that are found ----------------------------------------------------------------------------


class Ensemble(Module):
    def __init__(self):
        rng = np.random.default_rng(0)
        self.pair = (Linear(3, 3, rng=rng), Linear(3, 3, rng=rng))
        self.named = {"left": Linear(3, 3, rng=rng), "deep": [(Linear(3, 3, rng=rng),)]}
        self.shifts = [Parameter(xp.zeros(3)), Parameter(xp.ones(3))]
        self.first = self.pair[0]  # a second name for the same module

    def forward(self, x):
        for layer in (*self.pair, self.named["left"], self.named["deep"][0][0], self.first):
            x = layer(x)
        return x + self.shifts[0] * self.shifts[1]


def test_modules_and_parameters_in_containers_are_found_once():
    model = Ensemble()
    layers = ["pair.0", "pair.1", "named.left", "named.deep.0.0"]
    names = [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")]
    assert sorted(dict(model.named_parameters())) == sorted([*names, "shifts.0", "shifts.1"])
    assert [name for name, _ in model.named_modules()] == ["", *layers]
    twin = Ensemble()
    for p in twin.parameters():
        p.data[...] = 0
    twin.load_state_dict(model.state_dict())
    x = ml.Tensor(np.random.default_rng(1).normal(size=(2, 3)).astype(np.float32))
    assert np.array_equal(twin(x).numpy(), model(x).numpy())
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert not any(m.training for _, m in model.eval().named_modules())


def test_a_module_with_two_names_gets_one_adapter_in_both_places():
    model = Ensemble()
    x = ml.Tensor(np.random.default_rng(1).normal(size=(2, 3)).astype(np.float32))
    base, before = model(x).numpy(), {name: id(m) for name, m in model.named_modules()}
    trained = ml.add_lora(model, ml.LoRAConfig(1, target_modules=("pair.0", "pair.1", "deep.0.0", "left")))
    assert len(trained) == 8 and len(lora_layers(model)) == 4
    assert model.first is model.pair[0] and type(model.pair) is tuple
    assert np.array_equal(model(x).numpy(), base)
    for layer in lora_layers(model).values():
        layer.lora_B.data[...] = 0.3
    adapted = model(x).numpy()
    ml.merge_lora(model)
    np.testing.assert_allclose(model(x).numpy(), adapted, rtol=1e-4, atol=1e-5)
    ml.remove_lora(model)
    assert np.array_equal(model(x).numpy(), base) and model.first is model.pair[0]
    assert {name for name, _ in model.named_modules()} == before.keys()


def test_a_module_may_hold_the_one_that_holds_it():
    outer, inner = Module(), Linear(2, 2, rng=np.random.default_rng(0))
    outer.inner, inner.outer = inner, outer
    assert [name for name, _ in outer.named_modules()] == ["", "inner"]


@pytest.mark.parametrize("kind", [set, collections.deque, collections.UserList, lambda x: collections.UserDict(a=x[0])])
def test_modules_where_they_cannot_be_named_or_exchanged_are_refused(kind):
    model = Module()
    model.layers = {"deep": [kind([Linear(2, 2)])]}
    with pytest.raises(TypeError, match="where they cannot be named or exchanged: use a list"):
        model.parameters()
    model.layers = [kind(["a"])]
    assert model.parameters() == []


@pytest.mark.parametrize("key", [1, "", "a.b", None])
def test_keys_that_are_no_names_are_refused(key):
    """1 and "1" would share a name, and state_dict would have one of the two."""
    model = Module()
    model.layers = {key: Linear(2, 2)}
    with pytest.raises(TypeError, match="is not a name: use text without dots"):
        model.state_dict()
    model.layers = {key: "something else"}
    assert model.state_dict() == {}


def test_a_list_may_hold_itself():
    model = Module()
    model.layers = [Linear(2, 2)]
    model.layers.append(model.layers)
    assert list(dict(model.named_parameters())) == ["layers.0.weight", "layers.0.bias"]


class Pair(collections.namedtuple("Pair", ["left", "right"])):
    def __new__(cls, layer):  # another signature than the fields'
        return super().__new__(cls, layer, Linear(3, 3))


def test_tuples_of_any_kind_are_made_anew_as_they_were():
    model = Module()
    model.pair = Pair(Linear(3, 3))
    ml.add_lora(model, ml.LoRAConfig(1, target_modules=("0", "1")))
    assert type(model.pair) is Pair and list(lora_layers(model)) == ["pair.0", "pair.1"]
    ml.remove_lora(model)
    assert type(model.pair) is Pair and type(model.pair.left) is Linear


def test_lora_does_not_take_the_place_of_what_only_inherits_from_linear():
    """Its own forward would be lost."""

    class Active(Linear):
        def forward(self, x):
            return F.relu(super().forward(x))

    model = Module()
    model.active, model.plain = Active(3, 3), Linear(3, 3)
    with pytest.raises(ValueError, match="'active' matches no Linear"):
        ml.add_lora(model, ml.LoRAConfig(1, target_modules=("active",)))
    ml.add_lora(model, ml.LoRAConfig(1, target_modules=("plain",)))
    assert list(lora_layers(model)) == ["plain"]


def test_models_adapted_one_by_one_are_not_taken_for_one():
    both = Module()
    both.one, both.two = lora_gpt(), lora_gpt()
    for function in (ml.merge_lora, ml.remove_lora, ml.merge_and_unload):
        with pytest.raises(ValueError, match="holds 2 models that were adapted one by one"):
            function(both)
    with pytest.raises(ValueError, match="one by one"), ml.lora_disabled(both):
        pass
    ml.merge_lora(both.one)


def test_lora_added_or_removed_while_evaluating_still_has_dropout_in_training():
    model = tiny_gpt()
    with evaluating():
        ml.add_lora(model, ml.LoRAConfig(2, dropout=0.5))
    assert all(layer.dropout.training for layer in lora_layers(model).values())
    with evaluating():
        ml.remove_lora(model)
    assert all(module.training for _, module in model.named_modules())


# ---- clipping a random subspace ------------------------------------------------------------------------


def test_clipping_takes_parameters_from_a_generator():
    p = Parameter(xp.ones(3))
    p.grad = xp.full(3, 100.0)
    assert ml.clip_grad_norm((q for q in [p]), 1.0).item() == pytest.approx(100 * 3**0.5)
    assert np.linalg.norm(to_numpy(p.grad)) == pytest.approx(1)


@pytest.mark.parametrize("kind", [RandomSubspace, RandomSubset])
def test_clipping_bounds_the_gradient_of_a_random_subspace(kind):
    """With SGD's eyes: Adam's first step does not show the size of a gradient, its second mean does."""
    norms = []
    for clip in (None, 1e-3):
        model = tiny_gpt()
        optimizer = kind(model.parameters(), 20, lr=1e-3)
        ml.train(model, optimizer, lambda step, model=model: loss(model), 1, clip=clip)
        norms.append(float(np.sqrt(to_numpy(optimizer.state["v"][0]).sum() / 1e-3)))
    assert norms[0] > 1e-2 and norms[1] == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("kind", [RandomSubspace, RandomSubset])
def test_a_subspace_without_gradients_and_clipping_without_any_are_refused(kind):
    model = tiny_gpt()
    optimizer = kind(model.parameters(), 20, lr=1e-3)
    with pytest.raises(ValueError, match="no gradient to clip"):
        ml.clip_grad_norm(optimizer.params, 1.0)
    with pytest.raises(ValueError, match="No parameter of this optimizer has a gradient"):
        optimizer.step()


@pytest.mark.parametrize("kind", [RandomSubspace, RandomSubset])
def test_a_subspace_step_is_the_same_whether_gradients_were_collected_before_or_not(kind):
    ends = []
    for collect in (False, True):
        model = tiny_gpt()
        optimizer = kind(model.parameters(), 20, lr=1e-2)
        for step in range(3):
            optimizer.zero_grad()
            loss(model, step).backward()
            if collect:
                optimizer.collect_gradients()
            optimizer.step()
        ends.append(model.state_dict())
    assert all(np.array_equal(ends[0][name], ends[1][name]) for name in ends[0])


# ---- float32 stays float32, and nothing imaginary is dropped ------------------------------------------

NUMBERS = [3, 0.25, True, np.float64(3), np.float32(0.25), np.int64(3), np.array(3.0), np.array(3), np.float64(2) * 1]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda n: f"{type(n).__name__} {n}")
def test_numbers_of_any_type_leave_float32_alone(number):
    x = leaf([1.0, 2.0], np.float32)
    results = [x + number, number + x, x - number, number - x, x * number, number * x, x / number, number / x]
    if np.ndim(number) == 0 and not isinstance(number, np.ndarray):
        results.append(x**number)
    for result in results:
        assert result.dtype == np.float32
    sum(r.sum() for r in results).backward()
    assert x.grad.dtype == np.float32


def test_settings_of_numpys_types_leave_float32_alone_and_can_be_saved(tmp_path):
    x = leaf(np.ones((2, 3)), np.float32)
    y = F.layer_norm(x, leaf(np.ones(3), np.float32), leaf(np.zeros(3), np.float32), np.float64(1e-5))
    y = F.dropout(y, np.float64(0.5), np.random.default_rng(0)).mean() / np.float64(2)
    y.backward()
    assert y.dtype == x.grad.dtype == np.float32
    model = tiny_gpt()
    settings = {"lr": np.float32(0.5), "betas": (np.float64(0.5), np.float32(0.5)), "eps": np.float64(1e-8)}
    optimizer = ml.AdamW(model.parameters(), weight_decay=np.float32(0.5), **settings)
    ml.train(model, optimizer, lambda step: loss(model), 1, clip=np.float64(1))
    assert all(p.dtype == np.float32 for p in model.parameters())
    ml.save_checkpoint(tmp_path / "c.npz", model, optimizer)
    ml.load_checkpoint(tmp_path / "c.npz", model, optimizer)
    assert optimizer.groups[0]["lr"] == 0.5


@pytest.mark.parametrize(
    "make",
    [
        lambda: ml.Tensor(1 + 2j),
        lambda: ml.Tensor([1 + 2j, 3]),
        lambda: ml.Tensor(np.complex64(1j)),
        lambda: leaf([1.0]) * 1j,
        lambda: leaf([1.0]) + np.complex128(1j),
        lambda: 1j - leaf([1.0]),
        lambda: leaf([1.0]) ** 1j,
        lambda: leaf([1.0]) ** np.complex64(1j),
        lambda: ml.gradcheck(lambda x: x, np.array([1j])),
        lambda: ml.check_gradient(lambda x: x.sum().real, lambda x: np.ones(1), np.array([1j])),
        lambda: ml.check_gradient(lambda x: 1j * x.sum(), lambda x: np.ones(1), np.ones(1)),
        lambda: ml.check_gradient(lambda x: x.sum(), lambda x: 1j * np.ones(1), np.ones(1)),
    ],
)
def test_an_imaginary_part_is_never_dropped(make):
    with pytest.raises(TypeError, match=r"real number|Python number"):
        make()


# ---- gradient checks hand out copies -------------------------------------------------------------------


def test_a_gradient_that_writes_into_its_input_does_not_pass():
    def grad(x):
        x[...] = 0
        return 2 * x

    with pytest.raises(AssertionError, match=r"grad changed its input 0 in place.*x = x.copy"):
        ml.check_gradient(lambda x: (x**2).sum(), grad, np.array([1.0, -2.0]))


def test_a_right_function_that_works_in_place_is_told_so_and_no_generator_is_blamed():
    def f(x, y):
        y *= y
        return (x * y).sum()

    with pytest.raises(AssertionError, match="f changed its input 1 in place"):
        ml.check_gradient(f, lambda x, y: (y**2, 2 * x * y), (np.array([1.0, 2.0]), np.array([3.0, 4.0])))
    given = np.array([1.0, 2.0])
    with pytest.raises(AssertionError, match="f changed its input 0"):
        ml.check_gradient(lambda x: x.sort() or x.sum(), np.ones_like, given[::-1])
    assert given.tolist() == [1, 2]


def test_gradcheck_says_so_too_and_gives_every_tensor_back():
    x, frozen = leaf([1.0, 2.0]), ml.Tensor(np.array([3.0, 4.0]))
    array, constant = x.data, frozen.data

    def write(tensor):
        def fn(a, b):
            y = (a * b).sum()
            tensor(a, b).data[...] *= 2
            return y

        return fn

    for fn, number in ((write(lambda a, b: a), 0), (write(lambda a, b: b), 1)):
        with pytest.raises(AssertionError, match=f"fn changed its input {number} in place"):
            ml.gradcheck(fn, x, frozen)
        assert x.data is array and x.data.tolist() == [1, 2] and frozen.data is constant
        frozen.data[...] = asarray([3, 4])
    assert ml.gradcheck(lambda a, b: (a * b).sum(), x, frozen)
    assert x.grad is None and x.data is array


def test_a_gradient_may_return_its_input_itself():
    assert ml.check_gradient(lambda x: (x**2).sum() / 2, lambda x: x, np.array([1.0, 2.0]))
