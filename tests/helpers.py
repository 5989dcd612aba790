"""Small models and batches that several test files use."""

import json

import numpy as np
from safetensors.numpy import save_file

import minilora as ml
from minilora import functional as F
from minilora.backend import asarray
from minilora.interop.gpt2 import stored_tensors
from minilora.lora import lora_layers

ALL_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "fc_in", "fc_out")


def tiny_config(**changes):
    return ml.GPTConfig(**{"vocab_size": 7, "context_length": 6, "d_model": 8, "n_layers": 2, "n_heads": 2, **changes})


def tiny_gpt(seed=0, dtype="float32", **changes):
    return ml.GPT(tiny_config(**changes), seed=seed, dtype=dtype)


def randomize_lora(model, seed=1):
    """Give every B normal numbers, as if the adapter had been trained."""
    rng = np.random.default_rng(seed)
    for layer in lora_layers(model).values():
        layer.lora_B.data[...] = asarray(rng.normal(0, 0.5, layer.lora_B.shape))


def randomize(model, seed=3, std=0.3):
    """Give every lora_A and lora_B Gaussian entries; returns the parameters."""
    noise, parameters = np.random.default_rng(seed), []
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.data[...] = asarray(noise.normal(0, std, p.shape))
            parameters.append(p)
    return parameters


def lora_gpt(targets=ALL_TARGETS, r=2, alpha=3, randomize=True, **changes):
    """A tiny GPT with LoRA whose B is no longer zero; further settings go to the LoRA config or to the model."""
    lora_settings = {k: changes.pop(k) for k in ("dropout", "init", "init_std", "scaling") if k in changes}
    model = tiny_gpt(**changes)
    ml.add_lora(model, ml.LoRAConfig(r, alpha, targets, **lora_settings), seed=3)
    if randomize:
        randomize_lora(model)
    return model


def ids(model, B=2, T=5, seed=0):
    return np.random.default_rng(seed).integers(0, model.config.vocab_size, (B, T))


def batches(model, B=2, T=5, seed=0):
    """step -> (ids, targets): random tokens, the same every time for the same step."""

    def batch(step):
        rows = np.random.default_rng([seed, step]).integers(0, model.config.vocab_size, (B, T + 1))
        return rows[:, :-1], rows[:, 1:]

    return batch


def loss(model, step=0, **sizes):
    tokens, targets = batches(model, **sizes)(step)
    return F.cross_entropy(model(tokens), targets)


def snapshot(model):
    """Name -> (bytes, shape, requires_grad) of each parameter, to compare a model with itself later."""
    return {name: (p.numpy().tobytes(), p.shape, p.requires_grad) for name, p in model.named_parameters()}


def adapter_state(model):
    """All that loading an adapter may change."""
    return snapshot(model), [(name, layer.scaling, layer.dropout.p) for name, layer in lora_layers(model).items()]


def optimizer_state(optimizer):
    """Settings, steps and every array's bytes."""
    saved = optimizer.state_dict()
    arrays = {slot: [a.tobytes() for a in values] for slot, values in saved.pop("arrays").items()}
    return saved, arrays


def save_shards(folder, tensors, shards, save):
    """`save(tensors, path)` in one file, or in several with an index of which holds what."""
    folder.mkdir(parents=True, exist_ok=True)
    if shards == 1:
        save(tensors, folder / "model.safetensors")
        return
    names, weight_map = sorted(tensors), {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        save({name: tensors[name] for name in names[number::shards]}, folder / file)
        weight_map.update(dict.fromkeys(names[number::shards], file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def gpt2_folder(folder, shards=1, prefix="transformer.", config=None, add=None, **changes):
    """A GPT-2 in Hugging Face's layout with random weights; returns its tensors. `add` changes or adds tensors, None
    removes one; `config` changes config.json, further arguments the sizes."""
    sizes = tiny_config(**{"vocab_size": 40, "context_length": 12, "tied_head": True, **changes})
    rng = np.random.default_rng(5)
    tensors = {
        f"{'' if name.startswith('lm_head') else prefix}{name}": rng.normal(0, 0.3, shape).astype(np.float32)
        for name, shape, _ in stored_tensors(sizes)
    }
    tensors = {name: array for name, array in {**tensors, **(add or {})}.items() if array is not None}
    save_shards(folder, tensors, shards, lambda part, path: save_file(part, path, metadata={"format": "pt"}))
    fields = {
        "model_type": "gpt2",
        "vocab_size": sizes.vocab_size,
        "n_positions": sizes.context_length,
        "n_embd": sizes.d_model,
        "n_layer": sizes.n_layers,
        "n_head": sizes.n_heads,
        "tie_word_embeddings": sizes.tied_head,
        **(config or {}),
    }
    (folder / "config.json").write_text(json.dumps({k: v for k, v in fields.items() if v is not ...}))
    return tensors


def save_bfloat16(arrays, path):
    """A safetensors file of the upper halves of float32 arrays; returns the float32 that the halves are."""
    halves = {name: np.ascontiguousarray(array, np.float32).view(np.uint32) >> 16 for name, array in arrays.items()}
    save_raw({name: ("BF16", half.shape, half.astype("<u2").tobytes()) for name, half in halves.items()}, path)
    return {name: (half << 16).view(np.float32) for name, half in halves.items()}


def save_raw(tensors, path):
    """A safetensors file of any dtype: name -> (its word for the dtype, shape, bytes)."""
    header, offset = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data for *_, data in tensors.values()))


def run_short(claim, configuration):
    """The result of one of a claim's configurations, in no more steps than its world takes now."""
    from minilora import claims  # here, since few of those who use this file need them
    from minilora.claims import adaptation

    short = dict(configuration)
    if "steps" in short:
        short["steps"] = min(short["steps"], adaptation.STEPS[short["base"][0]])
    return claims.experiment(claims.experiment_of(claim, configuration)).run(short)
