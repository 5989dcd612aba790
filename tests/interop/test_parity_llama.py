"""Llama beside transformers' and PEFT's: logits, gradients, adapters, training; and SmolLM2 itself where it is.

transformers computes norms and angles in float32 whatever the model's dtype; for float64 the two are put in here as
their papers have them.
"""

import numpy as np
import pytest
from gguf_files import llama_gguf
from hugging_face_libraries import peft, torch, transformers

import minilora as ml
from minilora import functional as F
from minilora.interop.llama import find_smollm2, tokenizer_of
from minilora.lora import lora_layers

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")

SIZES = {"vocab_size": 13, "hidden_size": 16, "intermediate_size": 10, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 24, "rms_norm_eps": 1e-5}


@pytest.fixture
def in_float64(monkeypatch):
    from transformers.models.llama import modeling_llama

    def norm(self, x):
        return x / torch.sqrt((x**2).mean(-1, keepdim=True) + self.variance_epsilon) * self.weight

    def angles(self, x, position_ids):
        d = self.config.hidden_size // self.config.num_attention_heads
        turns = position_ids[..., None].double() * 10_000.0 ** (-torch.arange(0, d, 2).double() / d)
        turns = torch.cat([turns, turns], dim=-1)
        return turns.cos(), turns.sin()

    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", norm)
    monkeypatch.setattr(modeling_llama.LlamaRotaryEmbedding, "forward", angles)


def both(tmp_path, tied=False):
    """The same weights in both, in float64; ours read from the folder that theirs was saved in."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, **HEADS, tie_word_embeddings=tied)
    theirs = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter *= 10 if parameter.ndim == 2 else 1
    theirs.save_pretrained(tmp_path / "model")
    return ml.load_llama(tmp_path / "model", dtype="float64"), theirs.double()


def batch(T=9):
    return np.random.default_rng(1).integers(0, SIZES["vocab_size"], (2, T))


def their_loss(model, ids):
    logits = model(torch.from_numpy(ids[:, :-1])).logits
    return torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), torch.from_numpy(ids[:, 1:]).ravel())


@pytest.mark.parametrize("tied", [False, True])
def test_logits_and_every_gradient(in_float64, tmp_path, tied):
    own, theirs = both(tmp_path, tied)
    ids = batch()
    with torch.no_grad():
        np.testing.assert_allclose(own(ids).numpy(), theirs(torch.from_numpy(ids)).logits.numpy(), atol=1e-10)
    F.cross_entropy(own(ids[:, :-1]), ids[:, 1:]).backward()
    their_loss(theirs, ids).backward()
    wanted = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    found = {name: p.grad for name, p in own.named_parameters()}
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        np.testing.assert_allclose(found[name], gradient, atol=1e-10, err_msg=name)


def with_adapter(own, targets=("q_proj", "v_proj", "down_proj")):
    parameters = ml.add_lora(own, ml.LoRAConfig(r=2, alpha=6, target_modules=targets))
    rng = np.random.default_rng(2)
    for layer in lora_layers(own).values():
        layer.lora_B.data[:] = rng.normal(0, 0.5, layer.lora_B.shape)
    return parameters


def test_peft_reads_our_adapter(in_float64, tmp_path):
    own, theirs = both(tmp_path)
    with_adapter(own)
    ml.save_adapter(own, tmp_path / "adapter")
    adapted = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    with torch.no_grad():
        logits = adapted(torch.from_numpy(batch())).logits.numpy()
    np.testing.assert_allclose(own(batch()).numpy(), logits, atol=1e-8)


def test_we_read_peft_s_adapter(in_float64, tmp_path):
    own, theirs = both(tmp_path)
    config = peft.LoraConfig(
        r=2, lora_alpha=6, target_modules=["k_proj", "o_proj", "gate_proj"], init_lora_weights=False
    )
    adapted = peft.get_peft_model(theirs, config).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    ml.load_adapter(own, tmp_path / "adapter")
    with torch.no_grad():
        logits = adapted(torch.from_numpy(batch())).logits.numpy()
    np.testing.assert_allclose(own(batch()).numpy(), logits, atol=1e-8)


def test_twenty_steps_of_lora_have_peft_s_losses(in_float64, tmp_path):
    own, theirs = both(tmp_path)
    parameters = with_adapter(own)
    ml.save_adapter(own, tmp_path / "adapter")
    adapted = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter", is_trainable=True).train()
    optimizer = torch.optim.Adam([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    ids, losses = batch(), []
    for _ in range(20):
        optimizer.zero_grad()
        loss = their_loss(adapted, ids)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    history = ml.train(own, ml.Adam(parameters, 1e-2), lambda step: F.cross_entropy(own(ids[:, :-1]), ids[:, 1:]), 20)
    np.testing.assert_allclose(history["loss"], losses, rtol=1e-8)
    assert losses[-1] < losses[0]


def test_transformers_reads_what_save_llama_writes(tmp_path):
    llama_gguf(tmp_path / "tiny.gguf")
    own, tokenizer = ml.load_llama(tmp_path / "tiny.gguf"), tokenizer_of(tmp_path / "tiny.gguf")
    ml.save_llama(tmp_path / "saved", own, tokenizer)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    reads = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    text, messages = "hello  wörld 123 <|im_end|>\n", [{"role": "user", "content": "hello 12"}]
    ids = tokenizer.encode(text)
    assert reads(text, add_special_tokens=False).input_ids == ids.tolist()
    assert reads.eos_token_id == tokenizer.end
    assert reads.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == tokenizer.chat(messages)
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(ids[None, :16])).logits.numpy()
    np.testing.assert_allclose(own(ids[None, :16]).numpy(), wanted, atol=1e-4)


# ---- SmolLM2 -----------------------------------------------------------------------------------------

TEXTS = (
    "The Debian system is a free operating system. Its source is written in many languages, of which C is the oldest. ",
    "데비안은 자유 운영 체제이다. 그 소스는 여러 언어로 쓰여 있으며, 그 가운데 C가 가장 오래되었다. ",
)


@pytest.fixture(scope="module")
def smollm2():
    """Ours, its tokenizer, and theirs with our weights: transformers' own reading of GGUF takes a minute."""
    try:
        path = find_smollm2()
    except ValueError as error:
        pytest.skip(str(error))
    own = ml.load_llama(path)
    c = own.config
    config = transformers.LlamaConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.d_model,
        intermediate_size=c.d_ff,
        num_hidden_layers=c.n_layers,
        num_attention_heads=c.n_heads,
        num_key_value_heads=c.n_kv_heads,
        max_position_embeddings=c.context_length,
        rms_norm_eps=c.eps,
        rope_theta=c.rope_base,
        tie_word_embeddings=True,
    )
    theirs = transformers.LlamaForCausalLM(config).eval()
    state = {name: torch.from_numpy(p.numpy()) for name, p in own.named_parameters()}
    missing = theirs.load_state_dict(state, strict=False)
    assert set(missing.missing_keys) <= {"lm_head.weight"} and not missing.unexpected_keys
    assert theirs.config.rope_parameters["rope_theta"] == c.rope_base
    return own, tokenizer_of(path), theirs


@pytest.mark.slow
@pytest.mark.parametrize("text", TEXTS, ids=("English", "Korean"))
def test_smollm2_s_logits_on_five_hundred_tokens(smollm2, text):
    own, tokenizer, theirs = smollm2
    ids = tokenizer.encode(text * 30)[None, :500]
    assert ids.shape == (1, 500)
    with torch.no_grad(), ml.no_grad():
        wanted, found = theirs(torch.from_numpy(ids)).logits.numpy(), own(ids).numpy()
    print(f"largest difference {np.abs(found - wanted).max():.1e} of logits up to {np.abs(wanted).max():.0f}")
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    np.testing.assert_array_equal(found.argmax(-1), wanted.argmax(-1))


@pytest.mark.slow
def test_smollm2_says_the_same_fifty_tokens(smollm2):
    own, tokenizer, theirs = smollm2
    ids = tokenizer.encode(tokenizer.chat([{"role": "user", "content": "Tell me about the city of Paris."}]))
    with torch.no_grad():
        wanted = theirs.generate(
            torch.from_numpy(ids[None]), max_new_tokens=50, min_new_tokens=50, do_sample=False, pad_token_id=0
        )
    assert ml.generate(own, ids, 50, temperature=0).tolist() == wanted[0].tolist()
