"""Small GGUF files and Llama folders with random weights, written from the formats' descriptions, for tests alone."""

import json
import struct

import numpy as np
from helpers import save_raw, save_shards

from minilora.interop.llama import stored_tensors
from minilora.llama import LlamaConfig

# kind -> its number in a file, numbers in a block, bytes in a block
KINDS = {
    "F32": (0, 1, 4), "F16": (1, 1, 2), "BF16": (30, 1, 2),
    "Q4_0": (2, 32, 18), "Q4_1": (3, 32, 20), "Q8_0": (8, 32, 34),
}  # fmt: skip

# ---- the container -----------------------------------------------------------------------------------


def text(value):
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def typed(value):
    """A setting's type and value: of the types that llama.cpp's converter takes; bytes are both already."""
    if isinstance(value, bytes):
        return value
    for kind, number, form in ((bool, 7, "<B"), (int, 4, "<I"), (float, 6, "<f")):
        if isinstance(value, kind):
            return struct.pack("<I", number) + struct.pack(form, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    if value and isinstance(value[0], int):
        return struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)
    return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))


def gguf_bytes(settings, tensors, *, version=3, alignment=32, offsets=None, counts=None):
    """`tensors`: (name, kind or its number, shape (out, in), bytes). `offsets` of some by name, and `counts` of tensors
    and settings, may lie."""
    data, directory = b"", b""
    for name, kind, shape, raw in tensors:
        data += bytes(-len(data) % alignment)
        number = KINDS[kind][0] if isinstance(kind, str) else kind
        sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        directory += text(name) + sizes + struct.pack("<IQ", number, (offsets or {}).get(name, len(data)))
        data += raw
    counts = counts or (len(tensors), len(settings))
    head = b"GGUF" + struct.pack("<IQQ", version, *counts)
    pairs = settings if isinstance(settings, list) else settings.items()
    head += b"".join(text(name) + typed(value) for name, value in pairs) + directory
    return head + bytes(-len(head) % alignment) + data


# ---- numbers -----------------------------------------------------------------------------------------


def random_blocks(kind, shape, rng):
    """The bytes of a tensor: (rows, bytes of a row), small numbers."""
    _, numbers, size = KINDS[kind]
    count = int(np.prod(shape)) // numbers
    if numbers == 1:
        values = rng.normal(0, 0.3, count).astype("<f4")
        raw = {"F32": values, "F16": values.astype("<f2"), "BF16": (values.view("<u4") >> 16).astype("<u2")}[kind]
        return raw.view(np.uint8).reshape(shape[0], -1)
    raw = rng.integers(0, 256, (count, size), dtype=np.uint8)
    scales = rng.normal(0, 0.002 if kind == "Q8_0" else 0.03, (count, 2)).astype("<f2")
    width = 4 if kind == "Q4_1" else 2
    raw[:, :width] = scales.view(np.uint8)[:, :width]
    return raw.reshape(shape[0], -1)


def numbers(kind, raw):
    """What the format's description says that the bytes are, one number after the other."""
    _, _, size = KINDS[kind]
    data, out = bytes(raw.tobytes()), []
    for at in range(0, len(data), size):
        block = data[at : at + size]
        if kind in ("F32", "F16"):
            out += struct.unpack("<f" if kind == "F32" else "<e", block)
        elif kind == "BF16":
            out += struct.unpack("<f", b"\0\0" + block)
        else:
            (scale,) = struct.unpack("<e", block[:2])
            if kind == "Q8_0":
                out += [scale * q for q in struct.unpack("<32b", block[2:])]
                continue
            halves = block[-16:]
            nibbles = [byte & 15 for byte in halves] + [byte >> 4 for byte in halves]
            if kind == "Q4_0":
                out += [scale * (q - 8) for q in nibbles]
            else:
                (minimum,) = struct.unpack("<e", block[2:4])
                out += [scale * q + minimum for q in nibbles]
    return np.array(out, np.float64).astype(np.float32)  # doubles hold each exactly: it is rounded once


# ---- a tiny Llama, both ways -------------------------------------------------------------------------


def byte_letters():
    """GPT-2's letter for each byte: itself where it can be seen, else one from 256 on."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = iter(range(256, 512))
    return [chr(byte if byte in seen else next(hidden)) for byte in range(256)]


SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "1 2"]
TOKENS = [*SPECIAL, *byte_letters(), *(merge.replace(" ", "") for merge in MERGES)]
# SmolLM2's
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou "
    "are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + "
    "message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONFIG = LlamaConfig(len(TOKENS), 16, 32, 2, 4, 2, 64, rope_base=50_000.0, eps=1e-5, tied_head=True)
TEXT_SETTINGS = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)),
    "tokenizer.ggml.merges": MERGES,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.chat_template": TEMPLATE,
}


def blocks_of(config=CONFIG, kinds=tuple(KINDS), seed=0):
    """Hugging Face's name -> (GGUF's, kind, shape, rows of bytes in Hugging Face's order); the kinds one after the
    other, norms in F32."""
    rng, tensors = np.random.default_rng(seed), {}
    for number, (name, theirs, shape) in enumerate(stored_tensors(config)):
        kind = kinds[number % len(kinds)] if len(shape) > 1 else "F32"
        tensors[name] = theirs, kind, shape, random_blocks(kind, shape, rng)
    return tensors


def permuted(rows, heads):
    """As llama.cpp's converter does it: the two of a rotary pair, half a head apart, come side by side."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def llama_gguf(path, *given, **options):
    """Write a file of `llama_gguf_bytes`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(llama_gguf_bytes(*given, **options))


def llama_gguf_bytes(config=CONFIG, tensors=None, settings=None, add=None, **options):
    """`tensors`, as `blocks_of` gives them, and settings; `settings` changes some, None removes one; `add` has further
    tensors, None removes one."""
    known = {
        "general.architecture": "llama",
        "llama.vocab_size": config.vocab_size,
        "llama.context_length": config.context_length,
        "llama.embedding_length": config.d_model,
        "llama.block_count": config.n_layers,
        "llama.feed_forward_length": config.d_ff,
        "llama.rope.dimension_count": config.d_model // config.n_heads,
        "llama.attention.head_count": config.n_heads,
        "llama.attention.head_count_kv": config.n_kv_heads,
        "llama.attention.layer_norm_rms_epsilon": config.eps,
        "llama.rope.freq_base": config.rope_base,
        **TEXT_SETTINGS,
        **(settings or {}),
    }
    entries = {}
    for name, (theirs, kind, shape, rows) in (tensors or blocks_of(config)).items():
        heads = config.n_heads if "q_proj" in name else config.n_kv_heads if "k_proj" in name else 0
        rows = permuted(rows, heads) if heads else rows
        entries[theirs] = (theirs, kind, shape, rows.tobytes())
    entries = [entry for entry in {**entries, **(add or {})}.values() if entry is not None]
    known = {name: value for name, value in known.items() if value is not None}
    return gguf_bytes(known, entries, **options)


def llama_folder(folder, config=CONFIG, tensors=None, dtype="F32", shards=1, settings=None, add=None):
    """The same model as transformers saves it. `settings` changes config.json, `...` removes one; `add` has further
    tensors as safetensors' (dtype, shape, bytes), None removes one."""
    entries = {}
    for name, (_, kind, shape, rows) in (tensors or blocks_of(config)).items():
        values = numbers(kind, rows)
        halves = {"F16": lambda a: a.astype("<f2"), "BF16": lambda a: (a.view("<u4") >> 16).astype("<u2")}
        entries[name] = (dtype, shape, halves.get(dtype, lambda a: a)(values).tobytes())
    entries = {name: entry for name, entry in {**entries, **(add or {})}.items() if entry is not None}
    save_shards(folder, entries, shards, save_raw)
    fields = {
        "model_type": "llama",
        "hidden_act": "silu",
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "rms_norm_eps": config.eps,
        "rope_theta": config.rope_base,
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": config.tied_head,
        **(settings or {}),
    }
    (folder / "config.json").write_text(json.dumps({k: v for k, v in fields.items() if v is not ...}))


def save_tokenizer(folder):
    """The tokenizer of `TEXT_SETTINGS` as transformers saves it; needs the library `tokenizers`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    merges = [tuple(merge.split()) for merge in MERGES]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(TOKENS)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    said = {"bos_token": SPECIAL[1], "eos_token": {"content": SPECIAL[2]}, "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
