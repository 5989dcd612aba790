"""The model against a GPT-2 written again in plain NumPy, and what modules hold and load."""

import numpy as np
import pytest
from helpers import ids, loss, snapshot, tiny_gpt

import minilora as ml
from minilora import functional as F
from minilora import nn
from minilora.backend import asarray, to_numpy


def reference_logits(state, config, tokens):
    """Pre-LN GPT-2, one head at a time, from a state dict alone."""

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        return (
            centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * state[f"{name}.weight"]
            + state[f"{name}.bias"]
        )

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def gelu(x):
        return x / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    out = []
    for row in tokens:
        T, d = len(row), config.d_model // config.n_heads
        x = state["token_embedding.weight"][row] + state["position_embedding.weight"][:T]
        for i in range(config.n_layers):
            h = norm(x, f"blocks.{i}.ln_1")
            q, k, v = (linear(h, f"blocks.{i}.attn.{name}_proj") for name in "qkv")
            heads = []
            for head in range(config.n_heads):
                part = slice(head * d, (head + 1) * d)
                scores = q[:, part] @ k[:, part].T / np.sqrt(d)
                scores[np.triu_indices(T, 1)] = -np.inf
                p = np.exp(scores - scores.max(-1, keepdims=True))
                heads.append(p / p.sum(-1, keepdims=True) @ v[:, part])
            x = x + linear(np.concatenate(heads, -1), f"blocks.{i}.attn.o_proj")
            h = gelu(linear(norm(x, f"blocks.{i}.ln_2"), f"blocks.{i}.mlp.fc_in"))
            x = x + linear(h, f"blocks.{i}.mlp.fc_out")
        head = state.get("lm_head.weight", state["token_embedding.weight"])
        out.append(norm(x, "ln_f") @ head.T)
    return np.stack(out)


@pytest.mark.parametrize(("n_heads", "tied", "T"), [(1, False, 6), (2, True, 5), (8, False, 1)])
def test_the_model_is_gpt2(n_heads, tied, T):
    model = tiny_gpt(dtype="float64", n_heads=n_heads, tied_head=tied)
    rng = np.random.default_rng(0)
    for p in model.parameters():
        p.data += asarray(rng.normal(0, 0.5, p.shape))
    tokens = ids(model, B=3, T=T)
    np.testing.assert_allclose(
        model(tokens).numpy(), reference_logits(model.state_dict(), model.config, tokens), atol=1e-11
    )


def test_a_fresh_model_knows_nothing():
    """Its loss is that of guessing, log V."""
    model = tiny_gpt(vocab_size=50)
    assert loss(model).item() == pytest.approx(np.log(50), rel=0.01)


def test_a_tied_head_gets_the_gradients_of_both_uses():
    model = tiny_gpt(dtype="float64", tied_head=True)
    free = tiny_gpt(dtype="float64")
    free.load_state_dict({**model.state_dict(), "lm_head.weight": model.token_embedding.weight.numpy()})
    loss(model).backward()
    loss(free).backward()
    both = free.token_embedding.weight.grad + free.lm_head.weight.grad
    np.testing.assert_allclose(to_numpy(model.token_embedding.weight.grad), to_numpy(both), atol=1e-14)
    assert len(model.parameters()) == len(free.parameters()) - 1


def test_modules_and_parameters_are_found_by_their_dotted_names():
    model = tiny_gpt(n_layers=1)
    names = dict(model.named_modules())
    assert names[""] is model and names["blocks.0.attn.q_proj"] is model.blocks[0].attn.q_proj
    assert set(names) >= {"blocks.0", "blocks.0.mlp.fc_out", "ln_f", "lm_head"}
    assert names["blocks.0.mlp.fc_in"].weight is dict(model.named_parameters())["blocks.0.mlp.fc_in.weight"]
    assert [id(p) for p in model.parameters()] == [id(p) for _, p in model.named_parameters()]


def test_train_and_eval_reach_every_module_and_return_the_model():
    model = tiny_gpt()
    assert model.eval() is model and not any(m.training for _, m in model.named_modules())
    assert model.train() is model and all(m.training for _, m in model.named_modules())


def test_zero_grad_and_the_count_of_what_trains():
    model = tiny_gpt()
    loss(model).backward()
    assert all(p.grad is not None for p in model.parameters())
    model.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    model.lm_head.weight.requires_grad = False
    assert model.num_parameters() - model.num_parameters(trainable_only=True) == 7 * 8


def test_states_are_copies_both_ways():
    model, other = tiny_gpt(), tiny_gpt(1)
    state = model.state_dict()
    state["ln_f.bias"] += 1
    assert not model.ln_f.bias.numpy().any()
    other.load_state_dict(state)
    state["ln_f.bias"] += 1
    assert (other.ln_f.bias.numpy() == 1).all()


def test_a_state_in_float64_becomes_the_models_dtype_and_the_parameters_stay_the_same_objects():
    model, double = tiny_gpt(), tiny_gpt(1, dtype="float64")
    before = model.parameters()
    model.load_state_dict(double.state_dict())
    assert all(a is b and a.dtype == np.float32 for a, b in zip(before, model.parameters(), strict=True))
    assert snapshot(model) == snapshot(tiny_gpt(1))


def test_the_vocabulary_and_the_context_bound_what_a_model_reads():
    model = tiny_gpt()
    for tokens, error, message in [
        ([[0, 7]], ValueError, "id 7 is outside the vocabulary of 7"),
        ([[0, -1]], ValueError, "id -1 is outside"),
        ([[0.0, 1.0]], TypeError, "must be integers"),
        ([[0] * 7], ValueError, "7 positions; the context holds at most 6"),
        ([0, 1], ValueError, r"shape \(B, T\)"),
        (np.zeros((0, 3), int), ValueError, "both at least 1"),
    ]:
        with pytest.raises(error, match=message):
            model(tokens)
    assert model(ml.Tensor(np.array([[1, 2]]))).shape == (1, 2, 7)


def test_a_dtype_that_is_no_float_is_refused():
    with pytest.raises(ValueError, match='must be "float32" or "float64", not \'float16\''):
        tiny_gpt(dtype="float16")


def test_a_dropout_layer_drops_in_training_only_and_checks_its_probability():
    layer, x = nn.Dropout(0.5, np.random.default_rng(0)), ml.Tensor(np.ones(100))
    assert 20 < (layer(x).numpy() == 0).sum() < 80
    assert layer.eval()(x) is x
    for p in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="at least 0 and less than 1"):
            nn.Dropout(p, np.random.default_rng(0))


def test_a_module_of_ones_own_needs_only_a_forward():
    class Two(nn.Module):
        def __init__(self):
            rng = np.random.default_rng(0)
            self.layers = [nn.Linear(3, 4, rng=rng), nn.Linear(4, 2, bias=False, rng=rng)]
            self.scale = nn.Parameter(np.ones(2, np.float32))

        def forward(self, x):
            return self.layers[1](F.relu(self.layers[0](x))) * self.scale

    model = Two()
    assert [name for name, _ in model.named_parameters()] == [
        "scale", "layers.0.weight", "layers.0.bias", "layers.1.weight",
    ]  # fmt: skip
    model(ml.Tensor(np.ones((5, 3), np.float32))).sum().backward()
    assert all(p.grad.shape == p.shape for p in model.parameters())
    trainable = ml.add_lora(model, ml.LoRAConfig(1, target_modules=("layers.1",)))
    assert [p.shape for p in trainable] == [(1, 4), (2, 1)]
    with pytest.raises(NotImplementedError, match=r"Module has no forward\(\)"):
        nn.Module()(1)
