"""GPT-2 folders: what is read and how it is turned, what is refused, and adapters on the fused `c_attn`."""

import json
import re
import tracemalloc

import numpy as np
import pytest
from helpers import ALL_TARGETS, gpt2_folder, ids, randomize_lora, save_bfloat16, save_raw, snapshot
from safetensors.numpy import load_file, save_file

import minilora as ml
from minilora.backend import to_numpy
from minilora.interop.checkpoint import CheckpointError
from minilora.interop.fused import shortest_targets
from minilora.interop.gpt2 import GPT2
from minilora.interop.hugging_face import Tokenizer
from minilora.interop.peft import CONFIG, WEIGHTS, AdapterError
from minilora.lora import lora_layers
from minilora.tools.cli import main

A_KEY = "base_model.model.transformer.h.{}.attn.c_attn.lora_A.weight"
B_KEY = "base_model.model.transformer.h.{}.attn.c_attn.lora_B.weight"


@pytest.fixture
def folder(tmp_path):
    gpt2_folder(tmp_path / "gpt2")
    return tmp_path / "gpt2"


def logits(model):
    with ml.no_grad():
        return model.eval()(ids(model)).numpy()


# ---- the model ---------------------------------------------------------------------------------------


def test_matrices_are_turned_and_c_attn_is_cut_into_q_k_v(tmp_path):
    tensors = gpt2_folder(tmp_path)
    model = ml.load_gpt2(tmp_path)
    D = model.config.d_model
    assert isinstance(model, ml.GPT) and model.config.tied_head
    assert model.lm_head.weight is model.token_embedding.weight
    assert model.num_parameters() == sum(array.size for array in tensors.values())
    attention, c_attn = model.blocks[1].attn, tensors["transformer.h.1.attn.c_attn.weight"]
    for number, name in enumerate(("q_proj", "k_proj", "v_proj")):
        part = slice(number * D, (number + 1) * D)
        linear = getattr(attention, name)
        assert np.array_equal(linear.weight.numpy(), c_attn[:, part].T) and linear.weight.data.flags.c_contiguous
        assert np.array_equal(linear.bias.numpy(), tensors["transformer.h.1.attn.c_attn.bias"][part])
    for own, theirs in ((attention.o_proj, "attn.c_proj"), (model.blocks[1].mlp.fc_out, "mlp.c_proj")):
        assert np.array_equal(own.weight.numpy(), tensors[f"transformer.h.1.{theirs}.weight"].T)
    assert np.array_equal(model.position_embedding.weight.numpy(), tensors["transformer.wpe.weight"])
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("changes", [{"shards": 3}, {"prefix": ""}], ids=str)
def test_shards_and_names_without_a_prefix_give_the_same_model(tmp_path, changes):
    gpt2_folder(tmp_path / "one")
    gpt2_folder(tmp_path / "other", **changes)
    assert snapshot(ml.load_gpt2(tmp_path / "one")) == snapshot(ml.load_gpt2(tmp_path / "other"))


def test_old_files_carry_causal_masks_and_the_head_once_more(tmp_path):
    tensors = gpt2_folder(tmp_path)
    masks = {"transformer.h.0.attn.bias": np.ones((1, 1, 12, 12), np.float32)}
    masks["transformer.h.0.attn.masked_bias"] = np.float32([-1e4])
    gpt2_folder(tmp_path, add={**masks, "lm_head.weight": tensors["transformer.wte.weight"]})
    assert ml.load_gpt2(tmp_path).num_parameters() == sum(array.size for array in tensors.values())
    gpt2_folder(tmp_path, add={"lm_head.weight": tensors["transformer.wte.weight"] + 1})
    with pytest.raises(CheckpointError, match=r"lm_head.weight in .* is not the embedding, though config.json ties"):
        ml.load_gpt2(tmp_path)


def test_a_head_of_its_own_is_read(tmp_path):
    tensors = gpt2_folder(tmp_path, tied_head=False)
    model = ml.load_gpt2(tmp_path, dtype="float64")
    assert np.array_equal(model.lm_head.weight.numpy(), tensors["lm_head.weight"])
    assert model.lm_head.weight.dtype == np.float64


def test_half_precision_becomes_the_dtype_asked_for(tmp_path):
    tensors = gpt2_folder(tmp_path)
    half = {name: array.astype(np.float16) for name, array in tensors.items()}
    gpt2_folder(tmp_path, add=half)
    weight = ml.load_gpt2(tmp_path).token_embedding.weight.numpy()
    assert weight.dtype == np.float32 and np.array_equal(weight, half["transformer.wte.weight"])


def in_bfloat16(folder):
    """Every file of the folder in bfloat16; returns the numbers that are left."""
    arrays = {}
    for path in folder.glob("*.safetensors"):
        arrays.update(save_bfloat16(load_file(path), path))
    return arrays


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shards", [1, 3])
def test_bfloat16_becomes_the_dtype_asked_for_exactly(tmp_path, shards, dtype):
    gpt2_folder(tmp_path / "half", shards=shards)
    arrays = in_bfloat16(tmp_path / "half")
    gpt2_folder(tmp_path / "whole", add=arrays)
    model = ml.load_gpt2(tmp_path / "half", dtype)
    assert snapshot(model) == snapshot(ml.load_gpt2(tmp_path / "whole", dtype))
    assert np.array_equal(model.token_embedding.weight.numpy(), arrays["transformer.wte.weight"])


def test_bfloat16_is_read_tensor_by_tensor(tmp_path):
    """The peak is the model and a little more than its largest tensor, as for any other dtype."""
    tensors = gpt2_folder(tmp_path, d_model=64, n_layers=4, vocab_size=300)
    in_bfloat16(tmp_path)
    ml.load_gpt2(tmp_path)  # what is imported and kept on a first call
    tracemalloc.start()
    model = ml.load_gpt2(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    largest = max(array.nbytes for array in tensors.values())
    assert peak < 4 * model.num_parameters() + 2 * largest + 2**17


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_a_tied_head_once_more_in_half_precision(tmp_path, dtype):
    wte = gpt2_folder(tmp_path)["transformer.wte.weight"]
    for head, equal in ((wte, True), (wte * 2, False)):
        gpt2_folder(tmp_path, add={"lm_head.weight": head})
        if dtype == "BF16":
            in_bfloat16(tmp_path)
        else:
            half = {name: a.astype(np.float16) for name, a in load_file(tmp_path / "model.safetensors").items()}
            save_file(half, tmp_path / "model.safetensors")
        if equal:
            ml.load_gpt2(tmp_path)
        else:
            with pytest.raises(CheckpointError, match="is not the embedding, though config"):
                ml.load_gpt2(tmp_path)


def test_a_dtype_that_is_not_read_is_named_with_what_to_do(folder):
    for dtype in ("F8_E4M3", "F8_E5M2"):
        names = {name: (dtype, a.shape, bytes(a.size)) for name, a in load_file(folder / "model.safetensors").items()}
        save_raw(names, folder / "model.safetensors")
        with pytest.raises(
            CheckpointError, match=rf"holds .*wte.weight as {dtype}, .*: save it as float32 or bfloat16"
        ):
            ml.load_gpt2(folder)
        gpt2_folder(folder)


@pytest.mark.parametrize(("prefix", "who"), [("module.", "DistributedDataParallel"), ("_orig_mod.", "torch.compile")])
@pytest.mark.parametrize("within", ["", "transformer."])
def test_a_prefix_that_every_name_has_is_named(tmp_path, prefix, who, within):
    gpt2_folder(tmp_path, prefix=prefix + within)
    with pytest.raises(CheckpointError, match=f"every name begins with '{prefix}', as .*{who} put"):
        ml.load_gpt2(tmp_path)


def test_matrices_all_transposed_are_called_so(tmp_path):
    tensors = gpt2_folder(tmp_path)
    turned = {n: np.ascontiguousarray(a.T) for n, a in tensors.items() if a.ndim == 2 and ".h." in n}
    gpt2_folder(tmp_path, add=turned)
    with pytest.raises(CheckpointError, match=r"have every matrix transposed: GPT-2 stores .* \(in, out\)"):
        ml.load_gpt2(tmp_path)


def test_a_byte_order_mark_is_no_part_of_any_json(tmp_path):
    gpt2_folder(tmp_path, shards=2)
    before = snapshot(ml.load_gpt2(tmp_path))
    for name in ("config.json", "model.safetensors.index.json"):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + (tmp_path / name).read_bytes())
    assert snapshot(ml.load_gpt2(tmp_path)) == before


def test_no_random_weights_are_drawn(folder, monkeypatch):
    monkeypatch.setattr(np.random, "default_rng", None)
    ml.load_gpt2(folder)


NORM = "transformer.h.0.ln_1.weight"
REFUSED = {
    "another kind of model": ({"config": {"model_type": "llama"}}, "of a 'llama' model"),
    "another activation": ({"config": {"activation_function": "relu"}}, "activation_function = 'relu'"),
    "another epsilon": (
        {"config": {"layer_norm_epsilon": 1e-6}},
        "layer_norm_epsilon = 1e-06; minilora computes 1e-05",
    ),
    "unscaled attention": ({"config": {"scale_attn_weights": False}}, "scale_attn_weights = False"),
    "scaled by layer": ({"config": {"scale_attn_by_inverse_layer_idx": True}}, "scale_attn_by_inverse_layer_idx"),
    "another MLP": ({"config": {"n_inner": 20}}, "n_inner = 20; minilora's MLP is 4 × n_embd"),
    "no size": ({"config": {"n_embd": ...}}, "does not say n_embd"),
    "a size of text": ({"config": {"n_embd": "8"}}, "impossible sizes: d_model must be a whole number"),
    "heads that do not divide": ({"config": {"n_head": 3}}, "divisible by n_heads"),
    "more layers than weights": ({"config": {"n_layer": 10**9}}, "have 2 layers; its config.json says 1000000000"),
    "wider than its weights": ({"config": {"n_embd": 10**8}}, r"has shape \(40, 8\); config.json asks for \(40, 10000"),
    "more positions": ({"config": {"n_positions": 13}}, r"wpe.weight in .* has shape \(12, 8\); .* asks for \(13, 8\)"),
    "a tensor missing": ({"add": {NORM: None}}, "they lack h.0.ln_1.weight"),
    "a tensor too many": ({"add": {"score.weight": np.ones((2, 8), np.float32)}}, "they also hold score.weight"),
    "a tensor twice": ({"add": {"h.0.ln_1.weight": np.ones(8, np.float32)}}, "holds .*, which .* holds too"),
    "a matrix not turned": (
        {"add": {"transformer.h.0.mlp.c_fc.weight": np.ones((32, 8), np.float32)}},
        r"has shape \(32, 8\); config.json asks for \(8, 32\)",
    ),
    "integers": (
        {"add": {NORM: np.ones(8, np.int32)}},
        "ln_1.weight as I32, which minilora does not read: save it as float32",
    ),
    "NaN": ({"add": {NORM: np.full(8, np.nan, np.float32)}}, "ln_1.weight does not hold finite floats"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.parametrize("shards", [1, 2])
def test_folders_that_are_no_whole_gpt2_are_refused(tmp_path, changes, message, shards):
    gpt2_folder(tmp_path, shards=shards, **changes)
    with pytest.raises(CheckpointError, match=message) as error:
        ml.load_gpt2(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_numbers_too_large_for_the_dtype_are_refused(tmp_path):
    gpt2_folder(tmp_path, add={NORM: np.full(8, 1e300)})
    assert ml.load_gpt2(tmp_path, dtype="float64").blocks[0].ln_1.weight.numpy()[0] == 1e300
    with pytest.raises(CheckpointError, match=r"ln_1.weight holds numbers too large for float32"):
        ml.load_gpt2(tmp_path)


def test_a_pickle_is_never_opened(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin is a pickle, which minilora never opens"):
        ml.load_gpt2(folder)


def test_files_that_are_missing_or_damaged(folder, tmp_path):
    with pytest.raises(CheckpointError, match=r"config.json cannot be read"):
        ml.load_gpt2(tmp_path / "nowhere")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="is damaged, or no safetensors file"):
        ml.load_gpt2(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has neither model.safetensors nor model.safetensors.index.json"):
        ml.load_gpt2(folder)
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="is not JSON"):
        ml.load_gpt2(folder)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a\\b.safetensors", "x.bin", "", 3, None])
def test_an_index_reaches_no_file_outside_its_folder(tmp_path, name):
    gpt2_folder(tmp_path / "gpt2", shards=2)
    gpt2_folder(tmp_path)  # a whole file next door
    (tmp_path / "model.safetensors").rename(tmp_path / "x.safetensors")
    index = tmp_path / "gpt2" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"transformer.wte.weight": name}}))
    with pytest.raises(CheckpointError, match=r"no .safetensors file of its own folder"):
        ml.load_gpt2(tmp_path / "gpt2")


# ---- adapters ----------------------------------------------------------------------------------------

# minilora's targets -> those in the file, and the rank there over minilora's
TARGETS = {
    ("q_proj", "v_proj"): (["c_attn"], 2),
    ("q_proj",): (["c_attn"], 1),
    ("k_proj", "o_proj"): (["attn.c_proj", "c_attn"], 1),
    ALL_TARGETS: (["c_attn", "c_fc", "c_proj"], 3),
    ("o_proj",): (["attn.c_proj"], 1),
    ("fc_in", "fc_out"): (["c_fc", "mlp.c_proj"], 1),
    ("blocks.1.attn.q_proj", "blocks.0.attn.q_proj", "blocks.1.attn.v_proj"): (["c_attn"], 2),
    ("blocks.1.attn.v_proj",): (["h.1.attn.c_attn"], 1),
    ("lm_head", "q_proj"): (["c_attn", "lm_head"], 1),
}


def adapted(folder, targets=("q_proj", "v_proj"), r=3, alpha=5, **settings):
    model = ml.load_gpt2(folder, dtype="float64")
    ml.add_lora(model, ml.LoRAConfig(r, alpha, targets, **settings))
    randomize_lora(model)
    return model


def deltas(folder, adapter):
    """What PEFT would add: GPT-2's module -> Δ (in, out), from its formula B A α/r, turned."""
    fields, tensors = json.loads((adapter / CONFIG).read_text()), load_file(adapter / WEIGHTS)
    assert fields["fan_in_fan_out"] is True and fields["use_rslora"] is False
    names = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith("lora_A.weight")]
    return {
        name.removeprefix("base_model.model."): (
            tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"] * fields["lora_alpha"] / fields["r"]
        ).T
        for name in names
    }


@pytest.mark.parametrize("scaling", ["alpha/r", "alpha/sqrt(r)"])
@pytest.mark.parametrize("targets", TARGETS, ids=",".join)
def test_an_adapter_becomes_gpt2s_blocks_and_comes_back(folder, tmp_path, targets, scaling):
    model = adapted(folder, targets, dropout=0.2, scaling=scaling)
    ml.save_adapter(model, tmp_path / "a")
    fields = json.loads((tmp_path / "a" / CONFIG).read_text())
    names, factor = TARGETS[targets]
    assert (fields["target_modules"], fields["r"]) == (names, 3 * factor)
    assert fields["lora_alpha"] == pytest.approx(fields["r"] * next(iter(lora_layers(model).values())).scaling)
    D, found = model.config.d_model, deltas(folder, tmp_path / "a")
    for i, block in enumerate(model.blocks):
        for name, parts in {
            "attn.c_attn": [block.attn.q_proj, block.attn.k_proj, block.attn.v_proj],
            "attn.c_proj": [block.attn.o_proj],
            "mlp.c_fc": [block.mlp.fc_in],
            "mlp.c_proj": [block.mlp.fc_out],
        }.items():
            zero = np.zeros(parts[0].weight.shape)
            own = [to_numpy(part.delta_weight()) if hasattr(part, "lora_A") else zero for part in parts]
            delta = found.pop(f"transformer.h.{i}.{name}", np.zeros((parts[0].weight.shape[1], D)))
            if any(part.any() for part in own):
                np.testing.assert_allclose(delta, np.concatenate(own).T, atol=1e-12)
    assert found.keys() <= {"lm_head"}
    again = ml.load_gpt2(folder, dtype="float64")
    ml.load_adapter(again, tmp_path / "a")
    assert snapshot(again) == snapshot(model)
    one, other = (next(iter(lora_layers(m).values())).adapter.config for m in (again, model))
    assert one == other
    assert np.array_equal(logits(again), logits(model))


def foreign(adapter):
    """The same adapter as another program would write it: without minilora's notes."""
    save_file(load_file(adapter / WEIGHTS), adapter / WEIGHTS, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "targets", [("q_proj", "v_proj"), ("k_proj",), ALL_TARGETS, ("k_proj", "v_proj", "o_proj")], ids=",".join
)
def test_a_foreign_block_adapter_gives_what_its_blocks_hold(folder, tmp_path, targets):
    model = adapted(folder, targets)
    ml.save_adapter(model, tmp_path / "a")
    foreign(tmp_path / "a")
    again = ml.load_gpt2(folder, dtype="float64")
    ml.load_adapter(again, tmp_path / "a")
    assert list(lora_layers(again)) == list(lora_layers(model))
    layer = next(iter(lora_layers(again).values()))
    assert layer.adapter.config.r == 3 and layer.scaling == pytest.approx(5 / 3)
    assert set(layer.adapter.config.target_modules) == set(targets)
    for name, p in model.named_parameters():
        assert np.array_equal(dict(again.named_parameters())[name].numpy(), p.numpy()), name


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_pefts_ordinary_adapter_gives_each_of_q_k_v_a_copy_of_a(folder, tmp_path, rng, rslora, prefix):
    model = ml.load_gpt2(folder, dtype="float64")
    D, r, tensors = 8, 4, {}
    for i in range(2):
        tensors[A_KEY.format(i).replace("transformer.", prefix)] = rng.normal(size=(r, D))
        tensors[B_KEY.format(i).replace("transformer.", prefix)] = rng.normal(size=(3 * D, r))
    save_file(tensors, tmp_path / WEIGHTS)
    fields = {"peft_type": "LORA", "r": r, "lora_alpha": 6, "target_modules": ["c_attn"], "use_rslora": rslora}
    (tmp_path / CONFIG).write_text(json.dumps({**fields, "fan_in_fan_out": True}))
    ml.load_adapter(model, tmp_path)
    for i, block in enumerate(model.blocks):
        A, B = (tensors[key.format(i).replace("transformer.", prefix)] for key in (A_KEY, B_KEY))
        for number, layer in enumerate((block.attn.q_proj, block.attn.k_proj, block.attn.v_proj)):
            assert np.array_equal(layer.lora_A.numpy(), A)
            assert np.array_equal(layer.lora_B.numpy(), B[number * D : (number + 1) * D])
            assert layer.scaling == (3.0 if rslora else 1.5)
    assert next(iter(lora_layers(model).values())).adapter.config.target_modules == ("q_proj", "k_proj", "v_proj")


# PEFT's up to 0.2, whose conv1d always has two groups, and loralib's
GROUPED = {
    "q, v": ([True, False, True], 2, ("q_proj", "v_proj")),
    "k": ([False, True, False], 1, ("k_proj",)),
    "q, k, v": ([True, True, True], 3, ("q_proj", "k_proj", "v_proj")),
    "k, v": ([False, True, True], 2, ("k_proj", "v_proj")),
    "q, k, v in two groups": ([True, True, True], 2, None),
    "v in two groups": ([False, False, True], 2, None),
}


@pytest.mark.parametrize("peft", [False, True], ids=["loralib", "PEFT 0.2"])
@pytest.mark.parametrize("name", GROUPED)
def test_grouped_files_with_enable_lora_become_adapters_of_q_k_and_v(folder, tmp_path, rng, name, peft):
    enable, groups, targets = GROUPED[name]
    D, r, n, tensors = 8, 2, sum(enable), {}
    for i in range(2):
        A, B = rng.normal(size=(n * r, D)), rng.normal(size=(n * D, n * r // groups))
        if peft:
            tensors.update({A_KEY.format(i): A, B_KEY.format(i): B[:, :, None]})
        else:
            tensors.update({f"transformer.h.{i}.attn.c_attn.lora_{part}": a for part, a in (("A", A), ("B", B))})
    save_file(tensors, tmp_path / WEIGHTS)
    fields = {"peft_type": "LORA", "r": r, "lora_alpha": 6, "target_modules": ["c_attn"], "enable_lora": enable}
    (tmp_path / CONFIG).write_text(json.dumps({**fields, "fan_in_fan_out": True, "merge_weights": False}))
    model = ml.load_gpt2(folder, dtype="float64")
    ml.load_adapter(model, tmp_path)
    own = next(iter(lora_layers(model).values())).adapter.config
    if targets:
        assert (own.r, own.scale, own.target_modules) == (r, 3, targets)
    for i, block in enumerate(model.blocks):
        A, B = (tensors[next(key for key in tensors if f"h.{i}." in key and f"lora_{part}" in key)] for part in "AB")
        pairs = zip(np.split(A, groups), np.split(B.reshape(len(B), -1), groups), strict=True)
        rows = iter(np.concatenate([b @ a for a, b in pairs]) * 3)  # s B A, group by group
        for enabled, part in zip(enable, ("q_proj", "k_proj", "v_proj"), strict=True):
            wanted = np.array([next(rows) for _ in range(D)]) if enabled else np.zeros((D, D))
            layer = getattr(block.attn, part)
            delta = to_numpy(layer.delta_weight()) if hasattr(layer, "lora_A") else np.zeros((D, D))
            np.testing.assert_allclose(delta, wanted, rtol=0, atol=1e-12)
    ml.save_adapter(model, tmp_path / "again")
    again = ml.load_gpt2(folder, dtype="float64")
    ml.load_adapter(again, tmp_path / "again")
    assert snapshot(again) == snapshot(model)


def test_a_grouped_file_that_has_not_learned_yet_trains_as_it_would_in_loralib(folder, tmp_path, rng):
    """A B of zeros would be of any form, but enable_lora says which."""
    shapes = {"lora_A": (4, 8), "lora_B": (16, 2)}
    tensors = {f"h.{i}.attn.c_attn.{part}": rng.normal(size=shapes[part]) for i in (0, 1) for part in shapes}
    save_file({name: array * ("lora_A" in name) for name, array in tensors.items()}, tmp_path / WEIGHTS)
    fields = {"peft_type": "LORA", "r": 2, "target_modules": ["c_attn"], "enable_lora": [True, False, True]}
    (tmp_path / CONFIG).write_text(json.dumps(fields))
    model = ml.load_gpt2(folder, dtype="float64")
    assert [p.shape for p in ml.load_adapter(model, tmp_path)] == [(2, 8), (8, 2)] * 4
    assert np.array_equal(model.blocks[1].attn.v_proj.lora_A.numpy(), tensors["h.1.attn.c_attn.lora_A"][2:])


@pytest.mark.parametrize(
    ("enable", "shape", "message"),
    [
        (
            [True, True, True],
            (16, 2),
            r"lora_A \(4, 8\) and lora_B \(16, 2\), which is no adapter of r 2 with enable_lora",
        ),
        ([True, False, True], (24, 2), r"lora_B \(24, 2\)"),
        ([True, False, True], (16, 3), r"lora_B \(16, 3\)"),
        ([True, False, True], (16, 2, 2), r"lora_B \(16, 2, 2\)"),
        ([True, True], (16, 0), r"lora_B \(16, 0\)"),
        ([False, False, False], (16, 2), "not a list of true and false"),
        ([1, 0, 1], (16, 2), "not a list of true and false"),
        ("q, v", (16, 2), "not a list of true and false"),
        ([True, True, False, False, False], (16, 2), "on a matrix of"),
    ],
    ids=str,
)
def test_grouped_files_that_do_not_fit_are_refused(folder, tmp_path, enable, shape, message):
    tensors = {key.format(i): np.ones((4, 8) if "lora_A" in key else shape) for i in (0, 1) for key in (A_KEY, B_KEY)}
    save_file(tensors, tmp_path / WEIGHTS)
    fields = {"peft_type": "LORA", "r": 2, "target_modules": ["c_attn"], "enable_lora": enable}
    (tmp_path / CONFIG).write_text(json.dumps(fields))
    model = ml.load_gpt2(folder)
    with pytest.raises(AdapterError, match=message):
        ml.load_adapter(model, tmp_path)
    assert not lora_layers(model)


@pytest.mark.parametrize(
    ("choice", "targets"),
    [
        (r".*\.c_attn", ("q_proj", "v_proj")),
        (None, ("q_proj", "v_proj")),
        ("c_attn", ("q_proj", "v_proj")),
        ("all-linear", ALL_TARGETS),
    ],
    ids=str,
)
def test_the_tensors_say_which_of_gpt2s_modules_a_choice_means(folder, tmp_path, choice, targets):
    model = adapted(folder, targets)
    ml.save_adapter(model, tmp_path / "a")
    foreign(tmp_path / "a")
    fields = json.loads((tmp_path / "a" / CONFIG).read_text())
    (tmp_path / "a" / CONFIG).write_text(json.dumps({**fields, "target_modules": choice}))
    again = ml.load_gpt2(folder, dtype="float64")
    ml.load_adapter(again, tmp_path / "a")
    assert np.array_equal(logits(again), logits(model))


def test_the_embedding_saved_beside_an_adapter_must_be_the_models_own(folder, tmp_path):
    model = adapted(folder, ("lm_head",))
    ml.save_adapter(model, tmp_path / "a")
    wte = load_file(folder / "model.safetensors")["transformer.wte.weight"]
    for name in ("transformer.wte.weight", "lm_head.base_layer.weight"):
        for given in (wte, wte + 1):
            tensors = {**load_file(tmp_path / "a" / WEIGHTS), f"base_model.model.{name}": given}
            (tmp_path / "b").mkdir(exist_ok=True)
            save_file(tensors, tmp_path / "b" / WEIGHTS)
            (tmp_path / "b" / CONFIG).write_bytes((tmp_path / "a" / CONFIG).read_bytes())
            again = ml.load_gpt2(folder, dtype="float64")
            if given is wte:
                ml.load_adapter(again, tmp_path / "b")
                assert snapshot(again) == snapshot(model)
            else:
                with pytest.raises(AdapterError, match="not as this model has it: the adapter was made for another"):
                    ml.load_adapter(again, tmp_path / "b")
                assert not lora_layers(again)


def test_an_adapter_for_another_gpt2_of_the_same_size_warns(folder, tmp_path):
    ml.save_adapter(adapted(folder), tmp_path / "a")
    ml.load_adapter(ml.load_gpt2(folder), tmp_path / "a")  # in float32, and silent
    gpt2_folder(folder, add={"transformer.ln_f.bias": np.ones(8, np.float32)})
    with pytest.warns(UserWarning, match="made for another base"):
        ml.load_adapter(ml.load_gpt2(folder), tmp_path / "a")


def test_an_adapter_that_has_not_learned_yet_is_read_as_an_ordinary_one(folder, tmp_path, rng):
    """Its B is zero, which any form allows; as an ordinary one it trains as it would in PEFT."""
    tensors = {
        key.format(i): np.zeros((24, 2)) if "lora_B" in key else rng.normal(size=(2, 8))
        for i in (0, 1)
        for key in (A_KEY, B_KEY)
    }
    save_file(tensors, tmp_path / WEIGHTS)
    (tmp_path / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 2, "target_modules": ["c_attn"]}))
    model = ml.load_gpt2(folder)
    ml.load_adapter(model, tmp_path)
    assert model.blocks[0].attn.k_proj.lora_A.shape == (2, 8)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_modules": ["c_proj", "c_attn"]}, "it lacks transformer.h.0.attn.c_proj.lora_A"),
        ({"target_modules": ["q_proj"]}, "'q_proj' matches no Linear of this model.*c_attn"),
        ({"target_modules": ["wte"]}, "'wte' matches no Linear"),
        ({"r": 4}, r"lora_A has shape \(6, 8\); this model needs \(4, 8\)"),
        ({"use_dora": True}, "uses use_dora"),
    ],
    ids=str,
)
def test_an_adapter_that_does_not_fit_changes_nothing(folder, tmp_path, fields, message):
    ml.save_adapter(adapted(folder), tmp_path / "a")
    foreign(tmp_path / "a")
    path = tmp_path / "a" / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    model = ml.load_gpt2(folder)
    before = snapshot(model)
    with pytest.raises(AdapterError, match=message):
        ml.load_adapter(model, tmp_path / "a")
    assert snapshot(model) == before and not lora_layers(model)


def test_a_plain_gpt_takes_no_adapter_of_gpt2(folder, tmp_path):
    ml.save_adapter(adapted(folder), tmp_path / "a")
    model = ml.GPT(ml.load_gpt2(folder).config)
    with pytest.raises(AdapterError, match="uses fan_in_fan_out = True"):
        ml.load_adapter(model, tmp_path / "a")
    assert not isinstance(model, GPT2)


def test_targets_are_the_shortest_names_that_mean_no_other_module():
    modules = ["h.0.attn.c_proj", "h.0.mlp.c_proj", "h.1.attn.c_proj", "h.1.mlp.c_proj", "c"]
    assert shortest_targets(modules[:4], modules) == ("c_proj",)
    assert shortest_targets(modules[:4:2], modules) == ("attn.c_proj",)
    assert shortest_targets(modules[:1] + modules[4:], modules) == ("h.0.attn.c_proj", "c")


# ---- text and the command line -----------------------------------------------------------------------


@pytest.fixture
def whole(tmp_path):
    """A folder with a tokenizer of 300 tokens, and a text."""
    tokenizers = pytest.importorskip("tokenizers", reason="extra gpt2")
    text = "LoRA leaves a trained matrix alone, and trains a product of two thin ones beside it. " * 40
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([text], trainer)
    gpt2_folder(tmp_path / "gpt2", vocab_size=len(tokenizer.get_vocab()))
    tokenizer.save(str(tmp_path / "gpt2" / "tokenizer.json"))
    (tmp_path / "text.txt").write_text(text)
    return tmp_path


def test_the_tokenizer_turns_any_text_into_ids_and_back(whole):
    tokenizer = Tokenizer(whole / "gpt2")
    path = whole / "gpt2" / "tokenizer.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # a byte-order mark is no part of it
    assert len(Tokenizer(whole / "gpt2")) == len(tokenizer)
    text = "two thin ones, é and 漢字\n"
    row = tokenizer.encode(text)
    assert row.dtype == np.int64 and row.max() < len(tokenizer)
    assert len(row) < len(text.encode()) and tokenizer.decode(row) == text


def test_adapt_and_generate_with_gpt2(whole, capsys):
    model = str(whole / "gpt2")
    adapt = ["adapt", "--gpt2", model, "--text", str(whole / "text.txt"), "--out", str(whole / "a"), "--batch", "4"]
    assert main([*adapt, "--steps", "30", "--lr", "0.01"]) == 0
    said = capsys.readouterr().out
    before, after = map(float, re.findall(r"([\d.]+) bits/token", said))
    assert after < before and "scaling α/r = 8" in said
    assert json.loads((whole / "a" / CONFIG).read_text())["target_modules"] == ["c_attn"]
    generate = ["generate", "--gpt2", model, "--prompt", "two thin", "--length", "5"]
    texts = []
    for extra in ([], [], ["--adapter", str(whole / "a")]):
        assert main([*generate, *extra]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0].startswith("two thin") and texts[0] == texts[1] != texts[2]


def test_refusals_of_the_command_line(whole, capsys):
    model, text = str(whole / "gpt2"), ["--text", str(whole / "text.txt"), "--out", str(whole / "a")]
    for arguments, message in (
        (["--gpt2", model, *text, "--context", "13"], "--context must be 1 to 12"),
        (["--gpt2", model, *text, "--context", "0"], "--context must be at least 1"),
        (["--gpt2", model, "--task", "upper", "--out", str(whole / "a")], "String tasks need a base"),
        (["--gpt2", str(whole / "no"), *text], "tokenizer.json is missing"),
    ):
        assert main(["adapt", *arguments]) == 2
        assert message in capsys.readouterr().err
    (whole / "gpt2" / "tokenizer.json").write_text("{}")
    assert main(["adapt", "--gpt2", model, *text]) == 2
    assert "is not a tokenizer that can be read" in capsys.readouterr().err


def test_the_end_token_ends_what_is_generated(whole):
    tokenizers = pytest.importorskip("tokenizers")
    assert Tokenizer(whole / "gpt2").end is None
    path = whole / "gpt2" / "tokenizer.json"
    with_end = tokenizers.Tokenizer.from_file(str(path))
    with_end.add_special_tokens(["<|endoftext|>"])
    with_end.save(str(path))
    tokenizer = Tokenizer(whole / "gpt2")
    assert tokenizer.end == len(tokenizer) - 1
    model = ml.GPT(ml.GPTConfig(len(tokenizer), 12, 4, 1, 1))
    model.lm_head.weight.data[...] = 0
    model.ln_f.bias.data[...] = 1
    model.lm_head.weight.data[tokenizer.end] = 1  # the likeliest at once
    assert ml.generate_text(model, tokenizer, "ab", 9, temperature=0) == "ab"


def test_a_tokenizer_larger_than_the_model_is_refused(whole, capsys):
    gpt2_folder(whole / "gpt2", vocab_size=20)
    assert main(["generate", "--gpt2", str(whole / "gpt2"), "--prompt", "a"]) == 2
    assert "they do not belong together" in capsys.readouterr().err


def test_without_the_tokenizers_library_the_extra_is_named(whole, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    assert main(["generate", "--gpt2", str(whole / "gpt2"), "--prompt", "a"]) == 2
    assert 'pip install -e ".[gpt2]"' in capsys.readouterr().err
