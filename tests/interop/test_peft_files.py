"""Adapter folders in PEFT's layout: what stands in them, round trips, and what is refused by name."""

import copy
import json
import pickle
import re

import numpy as np
import pytest
from helpers import ALL_TARGETS, batches, ids, lora_gpt, randomize_lora, save_bfloat16, save_raw, snapshot, tiny_gpt
from safetensors.numpy import load_file, save_file

import minilora as ml
from minilora.backend import xp
from minilora.interop import peft
from minilora.interop.files import SafetensorsFile
from minilora.interop.peft import CONFIG, WEIGHTS, AdapterError
from minilora.lora import lora_layers, wrap

KEY = "base_model.model.blocks.0.attn.q_proj.lora_A.weight"


@pytest.fixture
def folder(tmp_path):
    """A saved adapter of r = 2 on q and v; `base()` is a plain model that it fits."""
    ml.save_adapter(trained(), tmp_path / "adapter")
    return tmp_path / "adapter"


def trained():
    return lora_gpt(("q_proj", "v_proj"), dropout=0.25)


def base():
    return tiny_gpt()


def config(folder, **changes):
    """The configuration; with changes, written back, as a program that knows no digest. `...` removes a field."""
    fields = {**json.loads((folder / CONFIG).read_text()), **changes}
    if changes:
        (folder / CONFIG).write_text(json.dumps({k: v for k, v in fields.items() if v is not ...}))
        tensors(folder)
    return fields


def tensors(folder, **changes):
    """The tensors, with changes, written back without a digest."""
    arrays = {k: v for k, v in {**load_file(folder / WEIGHTS), **changes}.items() if v is not ...}
    save_file(arrays, folder / WEIGHTS)
    return arrays


def logits(model):
    with ml.no_grad():
        return model.eval()(ids(model)).numpy()


# ---- what is written ---------------------------------------------------------------------------------


def test_the_weights_have_pefts_names_and_orientation(folder):
    model = trained()
    arrays = load_file(folder / WEIGHTS)
    assert set(arrays) == {
        f"base_model.model.blocks.{i}.attn.{target}.lora_{part}.weight"
        for i in (0, 1)
        for target in ("q_proj", "v_proj")
        for part in "AB"
    }
    layer = model.blocks[0].attn.q_proj
    assert arrays[KEY].shape == (2, 8) and np.array_equal(arrays[KEY], layer.lora_A.numpy())
    B = arrays[KEY.replace("lora_A", "lora_B")]
    assert B.shape == (8, 2) and np.array_equal(B, layer.lora_B.numpy()) and B.dtype == np.float32


def test_the_configuration_is_pefts_sorted_and_indented(folder):
    text = (folder / CONFIG).read_text()
    fields = json.loads(text)
    assert text == json.dumps(fields, indent=2, sort_keys=True) + "\n"
    assert {name: fields[name] for name in ("peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "bias")} == {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 3,
        "lora_dropout": 0.25,
        "use_rslora": False,
        "bias": "none",
    }
    assert fields["target_modules"] == ["q_proj", "v_proj"] and fields["fan_in_fan_out"] is False


def test_alpha_none_is_written_as_r_and_rslora_by_its_flag(tmp_path):
    ml.save_adapter(lora_gpt(alpha=None, r=4, scaling="alpha/sqrt(r)"), tmp_path)
    fields = config(tmp_path)
    assert fields["lora_alpha"] == fields["r"] == 4 and fields["use_rslora"] is True


@pytest.mark.parametrize("d", [16, 64])
def test_the_file_holds_the_adapter_and_nothing_of_the_base(tmp_path, d):
    model = lora_gpt(ALL_TARGETS, r=4, d_model=d)
    ml.save_adapter(model, tmp_path)
    parameters = model.num_parameters(trainable_only=True)
    assert sum(a.size for a in load_file(tmp_path / WEIGHTS).values()) == parameters
    assert 0 < (tmp_path / WEIGHTS).stat().st_size - 4 * parameters < 4096
    assert all(".lora_A." in key or ".lora_B." in key for key in load_file(tmp_path / WEIGHTS))
    assert sorted(p.name for p in tmp_path.iterdir()) == [CONFIG, WEIGHTS]


def test_a_merged_model_saves_the_same_adapter(folder, tmp_path):
    model = trained()
    ml.merge_lora(model)
    ml.save_adapter(model, tmp_path / "merged")
    assert (tmp_path / "merged" / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()


def test_arrays_that_are_not_contiguous_round_trip(tmp_path):
    """safetensors alone would write the bytes of a transposed array in the wrong order."""
    model = trained()
    for layer in lora_layers(model).values():
        layer.lora_A.data = xp.ascontiguousarray(layer.lora_A.data.T).T
        layer.lora_B.data = xp.repeat(layer.lora_B.data, 2, axis=1)[:, ::2]
        assert not layer.lora_A.data.flags.c_contiguous and not layer.lora_B.data.flags.c_contiguous
    ml.save_adapter(model, tmp_path)
    again = base()
    ml.load_adapter(again, tmp_path)
    assert snapshot(again) == snapshot(model)


# ---- what is read ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [{}, {"scaling": "alpha/sqrt(r)"}, {"alpha": 0.7}, {"targets": ("fc_in",)}], ids=str
)
def test_a_plain_model_gets_the_adapter(tmp_path, settings):
    model = lora_gpt(**settings)
    ml.save_adapter(model, tmp_path)
    again = base()
    ml.load_adapter(again, tmp_path)
    assert np.array_equal(logits(again), logits(model))
    assert snapshot(again) == snapshot(model)


def test_an_adapter_is_replaced_scaling_and_dropout_included(folder):
    model = lora_gpt(("q_proj", "v_proj"), alpha=40)
    optimized = [p for p in model.parameters() if p.requires_grad]
    randomize_lora(model, seed=8)
    ml.load_adapter(model, folder)
    layer = model.blocks[1].attn.v_proj
    assert layer.scaling == 1.5 and layer.dropout.p == 0.25
    assert np.array_equal(logits(model), logits(trained()))
    assert [p for p in model.parameters() if p.requires_grad] == optimized  # an optimizer's parameters stay


def test_a_model_in_float64_takes_an_adapter_in_float32(folder):
    model = tiny_gpt(dtype="float64")
    ml.load_adapter(model, folder)
    assert model.blocks[0].attn.q_proj.lora_A.dtype == np.float64


def test_pefts_own_defaults_and_unused_fields_are_read(folder):
    """A file as PEFT writes it: more fields, all of them at rest, and no checksum."""
    config(
        folder,
        alpha_pattern={},
        rank_pattern={},
        auto_mapping=None,
        base_model_name_or_path="gpt",
        layers_to_transform=None,
        use_dora=False,
        init_lora_weights=True,
        revision=None,
        task_type="CAUSAL_LM",
        peft_version="0.17.0",
    )
    tensors(folder, **{KEY: np.full((2, 8), 0.5, np.float32)})
    model = base()
    ml.load_adapter(model, folder)
    assert (model.blocks[0].attn.q_proj.lora_A.numpy() == 0.5).all()


def test_a_field_that_is_not_known_warns(folder):
    config(folder, use_novelty=True)
    with pytest.warns(UserWarning, match="does not know: use_novelty") as warned:
        ml.load_adapter(base(), folder)
    assert warned[0].filename == __file__


# ---- what other programs write -----------------------------------------------------------------------


def renamed(folder, change):
    """The tensors under other names, as a program that knows no digest."""
    save_file({change(name): array for name, array in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)


def assert_loads_as_saved(folder):
    model = base()
    ml.load_adapter(model, folder)
    assert snapshot(model) == snapshot(trained())
    assert np.array_equal(logits(model), logits(trained()))


def test_every_finite_bfloat16_is_read_as_that_number(tmp_path):
    """Both zeros and all subnormal numbers too: the float32 whose upper half it is."""
    halves = np.arange(2**16, dtype=np.uint32)
    halves = halves[halves >> 7 & 255 != 255].reshape(2, 2, -1)
    save_raw({"x": ("F32", (1,), b"\0\0\x80?"), "a": ("BF16", halves.shape, halves.astype("<u2").tobytes())},
             tmp_path / "f")  # fmt: skip
    one, array = SafetensorsFile(tmp_path / "f", AdapterError).read("x", "a")
    assert one == 1 and array.dtype == np.float32 and array.shape == halves.shape
    assert np.array_equal(array.view(np.uint32), halves << 16)


@pytest.mark.parametrize("half", [0x7F80, 0xFF80, 0x7FC0, 0x7F81, 0xFFFF], ids=hex)
def test_a_bfloat16_that_is_not_finite_is_refused(tmp_path, half):
    save_raw({"a": ("BF16", (2,), np.array([1, half], "<u2").tobytes())}, tmp_path / "f")
    with pytest.raises(AdapterError, match="is damaged: a does not hold finite floats"):
        SafetensorsFile(tmp_path / "f", AdapterError).read("a")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_adapter_in_bfloat16_is_read(folder, dtype):
    arrays = save_bfloat16(load_file(folder / WEIGHTS), folder / WEIGHTS)
    model = tiny_gpt(dtype=dtype)
    ml.load_adapter(model, folder)
    assert np.array_equal(model.blocks[0].attn.q_proj.lora_A.numpy(), arrays[KEY])
    assert model.blocks[0].attn.q_proj.lora_A.dtype == dtype


@pytest.mark.parametrize(
    ("dtype", "size"),
    [("F8_E4M3", 1), ("F8_E5M2", 1), ("I8", 1), ("U8", 1), ("BOOL", 1), ("I64", 8), ("C64", 8), ("F4", 0.5)],
)
def test_a_dtype_that_is_not_read_is_named_with_what_to_do(folder, dtype, size):
    if dtype in ("C64", "F4"):
        pytest.importorskip("safetensors", minversion="0.7", reason="older ones do not know it")
    save_raw({KEY: (dtype, (2, 8), bytes(int(16 * size)))}, folder / WEIGHTS)
    message = unfit(folder)
    assert f"holds {KEY} as {dtype}, which minilora does not read: save it as float32 or bfloat16" in message
    assert "damaged" not in message


@pytest.mark.parametrize(
    "change",
    [
        lambda name: name.replace(".weight", ".default.weight"),
        lambda name: name.replace(".weight", ".french.weight"),
        lambda name: name.removesuffix(".weight"),
        lambda name: name.removeprefix("base_model.model."),
        lambda name: name.removeprefix("base_model.model.").removesuffix(".weight"),
    ],
    ids=["default", "french", "no .weight", "no prefix", "loralib"],
)
def test_other_names_for_the_same_tensors_are_read(folder, change):
    renamed(folder, change)
    assert_loads_as_saved(folder)


def test_tensors_of_two_adapters_are_refused_by_name(folder):
    renamed(folder, lambda name: name.replace(".weight", f".{'one' if 'q_proj' in name else 'two'}.weight"))
    assert "holds tensors of several adapters (one, two): save one of them alone" in unfit(folder)
    renamed(folder, lambda name: name.replace(".one", ""))
    assert "several adapters (one without a name, two)" in unfit(folder)


def test_a_tensor_given_under_two_names_is_refused(folder):
    tensors(folder, **{KEY.removeprefix("base_model.model."): np.ones((2, 8), np.float32)})
    assert "holds blocks.0.attn.q_proj.lora_A twice" in unfit(folder)


def test_the_one_sub_folder_with_an_adapter_is_read(folder):
    """PEFT saves an adapter that is not called "default" in a folder of its name."""
    (folder.parent / "logs").mkdir()
    assert_loads_as_saved(folder.parent)
    assert_loads_as_saved(folder)


def test_several_sub_folders_with_adapters_are_listed(folder):
    folder.rename(folder.parent / "french")
    ml.save_adapter(trained(), folder.parent / "upper")
    with pytest.raises(AdapterError, match=r"holds several adapters: name one of its folders french, upper\."):
        ml.load_adapter(base(), folder.parent)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_half_an_adapter_is_not_mistaken_for_the_one_in_its_sub_folder(folder, name):
    ml.save_adapter(trained(), folder / "inner")
    (folder / name).unlink()
    assert f"adapter/{name} cannot be read" in unfit(folder)


@pytest.mark.parametrize(
    "choice",
    [
        {"target_modules": r".*attn\.(q|v)_proj"},
        {"target_modules": "(.*)*x"},  # never run: it would take for ever
        {"target_modules": None},
        {"target_modules": ...},
        {"target_modules": ["q_proj", "k_proj", "v_proj"], "exclude_modules": ["k_proj"]},
        {"target_modules": "all-linear", "exclude_modules": ["k_proj", "o_proj", "mlp.fc_in", "fc_out"]},
        {"target_modules": ["q_proj", "v_proj"], "exclude_modules": r".*\.lm_.*"},
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [0, 1], "layers_pattern": "blocks"},
    ],
    ids=str,
)
def test_the_tensors_say_which_modules_a_choice_means(folder, choice):
    config(folder, **choice)
    assert_loads_as_saved(folder)


def test_one_plain_string_is_one_target(tmp_path):
    ml.save_adapter(lora_gpt(("v_proj",)), tmp_path)
    config(tmp_path, target_modules="v_proj")
    model = base()
    ml.load_adapter(model, tmp_path)
    assert snapshot(model) == snapshot(lora_gpt(("v_proj",)))


def test_all_linear_is_every_linear_with_the_head_or_without(tmp_path):
    for targets in (ALL_TARGETS, (*ALL_TARGETS, "lm_head")):
        ml.save_adapter(lora_gpt(targets), tmp_path)
        config(tmp_path, target_modules="all-linear")
        model = base()
        ml.load_adapter(model, tmp_path)
        assert snapshot(model) == snapshot(lora_gpt(targets))


def test_some_layers_are_read_as_those_layers(tmp_path):
    model = lora_gpt(("blocks.0.attn.q_proj",))
    ml.save_adapter(model, tmp_path)
    for choice in ({"target_modules": "(a regular expression)"}, {"layers_to_transform": 0}):
        config(tmp_path, **{"target_modules": ["q_proj"], **choice})
        again = base()
        ml.load_adapter(again, tmp_path)
        assert snapshot(again) == snapshot(model) and list(lora_layers(again)) == ["blocks.0.attn.q_proj"]


def test_a_choice_that_the_tensors_do_not_bear_out_is_refused(folder):
    config(folder, target_modules=".*q_proj")
    renamed(folder, lambda name: name.replace("q_proj", "query"))
    assert "it also has blocks.0.attn.query.lora_A" in unfit(folder)
    renamed(folder, lambda name: name.replace("v_proj", "value"))
    assert "it is on blocks.0.attn.query, blocks.0.attn.value" in unfit(folder)
    save_file({}, folder / WEIGHTS)
    assert "it is on nothing" in unfit(folder)


@pytest.mark.parametrize("value", [None, False, 0, 0.0, "", [], {}], ids=repr)
def test_a_field_at_rest_asks_for_nothing_and_does_not_warn(folder, value):
    names = ["use_novelty", "use_dora", "rank_pattern", "modules_to_save", "lora_bias", "bias", "layers_pattern"]
    config(folder, **dict.fromkeys(names, value))
    assert_loads_as_saved(folder)


def test_a_byte_order_mark_is_no_part_of_the_settings(folder):
    tensors(folder)
    (folder / CONFIG).write_bytes(b"\xef\xbb\xbf" + (folder / CONFIG).read_bytes())
    assert_loads_as_saved(folder)
    (folder / CONFIG).write_bytes(b"\xef\xbb\xbf" + (folder / CONFIG).read_bytes())
    assert "is not JSON" in unfit(folder)


def test_a_rank_above_a_matrixs_side_loads_computes_merges_and_saves(tmp_path, rng):
    """PEFT allows it; `add_lora` does not, since such a rank can only be a mistake."""
    model = tiny_gpt(dtype="float64")
    wrap(model, ml.LoRAConfig(12, 6, ("q_proj", "fc_in")), seed=0)
    randomize_lora(model)
    ml.save_adapter(model, tmp_path / "a")
    tensors(tmp_path / "a")
    again = tiny_gpt(dtype="float64")
    ml.load_adapter(again, tmp_path / "a")
    layer, weight = again.blocks[0].attn.q_proj, tiny_gpt(dtype="float64").blocks[0].attn.q_proj.weight.numpy()
    assert layer.lora_A.shape == (12, 8) and snapshot(again) == snapshot(model)
    ml.merge_lora(again)
    A, B = layer.lora_A.numpy(), layer.lora_B.numpy()
    np.testing.assert_allclose(layer.merged_weight.numpy(), weight + B @ A / 2, rtol=0, atol=1e-12)
    np.testing.assert_allclose(logits(again), logits(model), rtol=0, atol=1e-12)
    ml.save_adapter(again, tmp_path / "b")
    ml.unmerge_lora(again)
    ml.load_adapter(again, tmp_path / "b")  # in its own place
    assert snapshot(again) == snapshot(model)
    ml.save_checkpoint(tmp_path / "c.npz", again)
    assert snapshot(ml.load_model(tmp_path / "c.npz")) == snapshot(model)
    with pytest.raises(ValueError, match="r must be at most min"):
        ml.add_lora(tiny_gpt(), ml.LoRAConfig(12))


@pytest.mark.parametrize("targets", [("lm_head",), ("q_proj", "lm_head")], ids=",".join)
@pytest.mark.parametrize("tied", [False, True])
def test_a_head_saved_beside_its_adapter_must_be_the_models_own(tmp_path, tied, targets):
    """PEFT writes it with an adapter on the head (save_embedding_layers)."""
    model = lora_gpt(targets, tied_head=tied)
    ml.save_adapter(model, tmp_path)
    head = model.lm_head.weight.numpy()
    for name in ("base_model.model.lm_head.base_layer.weight", "base_model.model.token_embedding.weight"):
        given = head if "head" in name else model.token_embedding.weight.numpy()
        tensors(tmp_path, **{name: given})
        again = tiny_gpt(tied_head=tied)
        ml.load_adapter(again, tmp_path)
        assert snapshot(again) == snapshot(model)
        for other in (given + 1, given[:-1]):
            tensors(tmp_path, **{name: other})
            with pytest.raises(AdapterError, match=f"holds '{name}', and not as this model has it"):
                ml.load_adapter(tiny_gpt(tied_head=tied), tmp_path)
        tensors(tmp_path, **{name: ...})


# ---- which base --------------------------------------------------------------------------------------


def test_an_adapter_for_another_base_warns_and_loads(folder):
    for model in (tiny_gpt(seed=1), lora_gpt(("q_proj", "v_proj"), seed=1)):
        with pytest.warns(UserWarning, match="adapter was made for another base") as warned:
            ml.load_adapter(model, folder)
        assert warned[0].filename == __file__
        assert model.blocks[0].attn.q_proj.lora_A.numpy().tobytes() == load_file(folder / WEIGHTS)[KEY].tobytes()


def test_a_base_is_known_in_float64_adapted_merged_and_loaded_again(folder, tmp_path):
    model = tiny_gpt(dtype="float64")
    model.load_state_dict(base().state_dict())
    ml.load_adapter(model, folder)
    ml.merge_lora(model)
    ml.save_adapter(model, tmp_path / "from float64")
    again = base()
    ml.load_adapter(again, tmp_path / "from float64")
    ml.load_adapter(again, folder)
    ml.save_checkpoint(tmp_path / "c.npz", again)
    again = ml.load_model(tmp_path / "c.npz")
    ml.load_adapter(again, folder)
    ml.remove_lora(again)
    ml.load_adapter(again, folder)  # and not a word, which would be an error here


def test_a_base_is_not_known_by_where_an_array_was_that_is_gone(folder):
    model = base()
    ml.load_adapter(model, folder)
    ml.load_adapter(model, folder)  # knows the base by now
    known, bias = id(model.ln_f.bias.array), model.ln_f.bias
    for _ in range(2):  # the second array comes where the first was, which is gone, if nothing holds that one
        bias.data = bias.array + 1
    assert id(bias.array) != known
    with pytest.warns(UserWarning, match="another base"):
        ml.load_adapter(model, folder)


def test_a_change_of_one_weight_of_the_base_is_noticed(folder):
    model = base()
    model.ln_f.bias.data[0] = np.nextafter(np.float32(0), np.float32(1))
    with pytest.warns(UserWarning, match="another base"):
        ml.load_adapter(model, folder)
    model.load_state_dict({**model.state_dict(), "ln_f.bias": np.zeros(8)})  # other arrays, so that it looks again
    ml.load_adapter(model, folder)
    ml.load_adapter(model, folder)
    state = model.state_dict()
    model.load_state_dict({**state, "ln_f.bias": np.ones(8)})
    with pytest.warns(UserWarning, match="another base"):
        ml.load_adapter(model, folder)
    model.load_state_dict(state)
    model.ln_f.bias.requires_grad = True  # as whoever trains it beside LoRA does
    model.ln_f.bias.data[0] = 1
    with pytest.warns(UserWarning, match="another base"):
        ml.load_adapter(model, folder)
    model.ln_f.bias.data[0] = 0
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        ml.load_adapter(copied, folder)


def test_files_that_name_no_base_are_silent(folder):
    tensors(folder)
    ml.load_adapter(tiny_gpt(seed=1), folder)


def test_files_from_before_bases_were_named_still_load(folder):
    """Their digest is of settings and tensors alone."""
    _, state, _ = peft._read(folder, base())
    made_of = SafetensorsFile(folder / WEIGHTS, AdapterError).metadata["minilora"]
    in_file = peft._lora_config(config(folder), ("q_proj", "v_proj"), folder)
    metadata = {"minilora": made_of, "digest": peft._digest(in_file, made_of, None, state)}
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS, metadata=metadata)
    ml.load_adapter(tiny_gpt(seed=1), folder)


@pytest.mark.parametrize("wrapped", [False, True])
def test_loading_returns_what_trains_so_that_training_goes_on(tmp_path, wrapped):
    """In `add_lora`'s order, so that an optimizer's state belongs to the same parameters."""
    ml.save_adapter(lora_gpt(("q_proj", "v_proj")), tmp_path)
    losses = []
    for load in (True, False):
        model = lora_gpt(("q_proj", "v_proj")) if wrapped or not load else base()
        own = [p for name, p in model.named_parameters() if "lora_" in name]
        trainable = ml.load_adapter(model, tmp_path) if load else own
        assert [p.shape for p in trainable] == [(2, 8), (8, 2)] * 4 and all(p.requires_grad for p in trainable)
        assert [id(p) for p in trainable] == [id(p) for p in model.parameters() if p.requires_grad]
        optimizer = ml.Adam(trainable[::-1], lr=0.01)
        losses.append(ml.train(model, optimizer, ml.batch_loss(model, batches(model)), 3)["loss"])
    assert losses[0] == losses[1] and losses[0][0] != losses[0][2]


# ---- what is refused ---------------------------------------------------------------------------------


def unfit(folder):
    """Both a plain model and one with LoRA refuse the folder, and stay as they were."""
    messages = []
    for model in (base(), lora_gpt(("q_proj", "v_proj"))):
        before, names = snapshot(model), list(lora_layers(model))
        with pytest.raises(AdapterError) as error:
            ml.load_adapter(model, folder)
        assert snapshot(model) == before and list(lora_layers(model)) == names
        messages.append(str(error.value))
        assert messages[-1].endswith((".", "'", "...")) and str(folder) in messages[-1]
    return messages[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "uses use_dora = True, which minilora does not have"),
        ({"modules_to_save": ["lm_head"]}, r"uses modules_to_save = \['lm_head'\]"),
        ({"rank_pattern": {"q_proj": 4}}, "uses rank_pattern"),
        ({"bias": "all"}, "uses bias = 'all'"),
        ({"fan_in_fan_out": True}, "uses fan_in_fan_out"),
        ({"lora_bias": True}, "uses lora_bias"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa', which changes the base"),
        ({"init_lora_weights": ["gaussian"]}, "init_lora_weights"),
        ({"peft_type": "IA3"}, "peft_type is not LORA"),
        ({"peft_type": ...}, "peft_type is not LORA"),
        ({"target_modules": "all-linear"}, "it lacks blocks.0.attn.k_proj.lora_A"),
        ({"target_modules": "q_proj"}, "it also has blocks.0.attn.v_proj.lora_A"),
        ({"target_modules": 3}, "target_modules must be names, a regular expression or null, not 3"),
        ({"target_modules": {"q_proj": 1}}, "target_modules must be names, a regular expression or null"),
        ({"exclude_modules": ["v_proj"]}, "it also has blocks.0.attn.v_proj.lora_A"),
        ({"layers_to_transform": 0}, "it also has blocks.1.attn.q_proj.lora_A"),
        ({"layers_to_transform": [5]}, "this model has no such module"),
        ({"enable_lora": [True, False, True]}, "uses enable_lora"),
        ({"target_modules": ["q_proj", "c_attn"]}, "'c_attn' matches no Linear"),
        ({"target_modules": []}, "impossible settings"),
        ({"r": 3}, "shape"),
        ({"r": 0}, "at least 1, not 0"),
        ({"r": "2"}, "whole number"),
        ({"lora_alpha": -1}, "above 0"),
        ({"lora_alpha": 10**400}, "above 0"),
        ({"lora_alpha": float("nan")}, "above 0"),
        ({"lora_dropout": 2}, "less than 1"),
    ],
    ids=str,
)
def test_a_configuration_that_cannot_be_used_is_refused_by_name(folder, changes, message):
    config(folder, **changes)
    assert re.search(message, unfit(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({KEY: ...}, "it lacks blocks.0.attn.q_proj.lora_A"),
        ({KEY.replace("q_proj", "k_proj"): np.ones((2, 8), np.float32)}, "it also has blocks.0.attn.k_proj.lora_A"),
        ({"lm_head.weight": np.ones((7, 8), np.float32)}, "holds 'lm_head.weight'"),
        ({KEY: np.ones((8, 2), np.float32)}, "has shape (8, 2); this model needs (2, 8)"),
        ({KEY: np.full((2, 8), np.nan, np.float32)}, "lora_A.weight does not hold finite floats"),
        ({KEY: np.full((2, 8), np.inf, np.float32)}, "lora_A.weight does not hold finite floats"),
        (
            {KEY: np.ones((2, 8), np.int32)},
            "lora_A.weight as I32, which minilora does not read: save it as float32 or bfloat16",
        ),
    ],
    ids=["missing", "extra", "foreign", "transposed", "NaN", "infinite", "integers"],
)
def test_weights_that_do_not_fit_are_refused_by_name(folder, changes, message):
    tensors(folder, **changes)
    assert message in unfit(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"r": 2, "lora_alpha": 4},
        {"use_rslora": True},
        {"lora_dropout": 0.5},
        {"target_modules": ["q_proj", "v_proj", "k_proj"]},
        {"init_lora_weights": True},
    ],
    ids=str,
)
def test_settings_that_were_edited_are_refused(folder, changes):
    """Weights and settings carry one digest: an α changed by hand, or by a flipped bit, is not taken."""
    fields = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**fields, **changes}))
    unfit(folder)


def test_every_value_counts(folder):
    """A change that no check of shapes, dtypes or finite numbers would see."""
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-3] ^= 1
    (folder / WEIGHTS).write_bytes(content)
    assert "do not give the digest" in unfit(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n: n.replace("model.blocks", "model.module.blocks"), "'module.', as torch's DataParallel"),
        (lambda n: f"module.{n}", "'module.base_model.model.': save what is wrapped itself, or write"),
        (lambda n: n.replace("model.blocks", "model._orig_mod.blocks"), "'_orig_mod.', as torch.compile"),
        (lambda n: n.replace("model.blocks", "model.model.blocks"), "every name begins with 'model.': save"),
    ],
    ids=["module", "outermost", "compiled", "model"],
)
def test_a_prefix_that_every_name_has_is_named(folder, change, message):
    renamed(folder, change)
    assert message in unfit(folder)


def test_matrices_all_transposed_are_called_so(folder):
    tensors(folder, **{name: np.ascontiguousarray(array.T) for name, array in load_file(folder / WEIGHTS).items()})
    assert "every matrix is transposed; an adapter's A is (r, in) and its B (out, r)." in unfit(folder)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"d_model": 16}, r"another width: blocks.0.attn.q_proj.lora_A has shape \(2, 16\); this model needs \(2, 8\)"),
        ({"n_layers": 3}, "its tensors are of 3 layers; this model has 2"),
        ({"n_layers": 1}, "its tensors are of 1 layers; this model has 2"),
    ],
    ids=str,
)
def test_an_adapter_for_a_base_of_another_size_is_called_so(tmp_path, sizes, message):
    ml.save_adapter(lora_gpt(("q_proj", "v_proj"), **sizes), tmp_path)
    assert re.search(message, unfit(tmp_path))


def test_numbers_too_large_for_the_model_are_refused(folder):
    tensors(folder, **{KEY: np.full((2, 8), 1e300)})
    assert "lora_A holds numbers too large for float32" in unfit(folder)


def test_a_pickled_adapter_is_never_opened(folder):
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    assert "adapter_model.bin is a pickle, which minilora never opens" in unfit(folder)


def test_a_folder_without_a_digest_gives_the_same_model(folder):
    foreign, own = base(), base()
    ml.load_adapter(own, folder)
    tensors(folder)
    ml.load_adapter(foreign, folder)
    assert snapshot(foreign) == snapshot(own)


def test_an_adapter_of_another_rank_or_other_targets_does_not_replace(folder):
    for model in (lora_gpt(("q_proj", "v_proj"), r=4), lora_gpt(("q_proj",)), lora_gpt(ALL_TARGETS)):
        before = snapshot(model)
        with pytest.raises(AdapterError, match=r"r 2 on q_proj, v_proj, the model's own .*remove_lora"):
            ml.load_adapter(model, folder)
        assert snapshot(model) == before


def test_an_adapter_of_a_larger_model_is_refused(tmp_path):
    ml.save_adapter(lora_gpt(("lm_head",), r=6), tmp_path)
    model = tiny_gpt(vocab_size=5)
    with pytest.raises(AdapterError, match=r"lm_head.lora_B has shape \(7, 6\); this model needs \(5, 6\)"):
        ml.load_adapter(model, tmp_path)
    assert not lora_layers(model)


def test_a_merged_model_takes_no_adapter(folder):
    model = trained()
    ml.merge_lora(model)
    with pytest.raises(ValueError, match="unmerge_lora"):
        ml.load_adapter(model, folder)


def test_a_model_without_lora_has_no_adapter_to_save(tmp_path):
    with pytest.raises(ValueError, match="no LoRA"):
        ml.save_adapter(base(), tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_a_folder_that_cannot_be_written_or_read(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match="cannot be written"):
        ml.save_adapter(trained(), tmp_path / "file" / "adapter")
    for path in (tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(AdapterError, match=r"adapter_config\.json cannot be read"):
            ml.load_adapter(base(), path)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_missing_file_is_refused(folder, name):
    (folder / name).unlink()
    assert f"{name} cannot be read" in unfit(folder)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"[1, 2]", b"\xff\xfe", b'{"r": 2}', b"PK\x03\x04"])
def test_a_foreign_file_is_refused(folder, name, content):
    (folder / name).write_bytes(content)
    unfit(folder)


def test_settings_nested_without_end_are_refused_even_with_a_right_digest(folder):
    """Whoever makes the file can make the digest too."""
    made_of = "[" * 100_000
    own, state, base = peft._read(folder, tiny_gpt())
    metadata = {"minilora": made_of, "base": base, "digest": peft._digest(own, made_of, base, state)}
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS, metadata=metadata)
    assert "brackets within brackets" in unfit(folder)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
@pytest.mark.parametrize("part", range(30))
def test_a_truncated_file_is_refused(folder, name, part):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: part * len(content) // 30])
    unfit(folder)


@pytest.mark.parametrize("part", range(60))
def test_a_flipped_bit_in_the_weights_is_refused_or_harmless(folder, part):
    """In the header, the first third, or in the values, which a checksum covers."""
    content = bytearray((folder / WEIGHTS).read_bytes())
    rng = np.random.default_rng(part)
    content[(part * len(content) + int(rng.integers(len(content)))) // 60] ^= 1 << int(rng.integers(8))
    (folder / WEIGHTS).write_bytes(content)
    model = base()
    before = snapshot(model)
    try:
        ml.load_adapter(model, folder)
    except AdapterError:
        assert snapshot(model) == before and not lora_layers(model)
    else:
        assert snapshot(model) == snapshot(trained())
