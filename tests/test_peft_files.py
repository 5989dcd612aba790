"""Adapter folders in PEFT's layout: what stands in them, round trips, and what is refused by name."""

import json
import re

import numpy as np
import pytest
from helpers import ALL_TARGETS, ids, lora_gpt, randomize_lora, snapshot, tiny_gpt
from safetensors.numpy import load_file, save_file

import minilora as ml
from minilora.backend import xp
from minilora.interop import peft
from minilora.interop.peft import CONFIG, WEIGHTS, AdapterError
from minilora.lora import lora_layers

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
    with pytest.warns(UserWarning, match="does not know: use_novelty"):
        ml.load_adapter(base(), folder)


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
        ({"target_modules": "all-linear"}, "must list target_modules by name, not 'all-linear'"),
        ({"target_modules": ["q_proj", "c_attn"]}, "'c_attn' matches no Linear"),
        ({"target_modules": []}, "settings that cannot be"),
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
        ({KEY: np.ones((2, 8), np.int32)}, "lora_A.weight as I32, which minilora does not read"),
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
    own, _, state = peft._read(folder, fused=False)
    digest = peft._digest(own, made_of, state)
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS, metadata={"minilora": made_of, "digest": digest})
    unfit(folder)


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
