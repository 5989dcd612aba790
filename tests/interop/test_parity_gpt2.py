"""GPT-2 and its adapters beside transformers and PEFT, where they are installed (extra `parity`)."""

import json
import warnings

import numpy as np
import pytest
from documents import blocks, run_as_pasted
from helpers import ALL_TARGETS, randomize
from hugging_face_libraries import peft, torch, transformers
from safetensors.torch import save_file

import minilora as ml
from minilora.lora import lora_layers

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")

SIZES = {  # vocabulary, positions, width, layers, heads, tied head
    "tiny": (31, 8, 12, 1, 3, True),
    "small": (101, 24, 32, 3, 4, True),
    "untied": (64, 16, 24, 2, 2, False),
    "wide": (211, 40, 96, 2, 8, True),
}
SCALINGS = ["alpha/r", "alpha/sqrt(r)"]
TARGETS = [("q_proj", "v_proj"), ALL_TARGETS, ("k_proj", "o_proj")]


def random_gpt2(size="small"):
    """A GPT2LMHeadModel in float64 with wide weights, biases and norms too, so that each of them counts."""
    V, T, D, L, H, tied = SIZES[size]
    config = transformers.GPT2Config(
        vocab_size=V, n_positions=T, n_embd=D, n_layer=L, n_head=H, tie_word_embeddings=tied, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).double().eval()
    rng = np.random.default_rng(3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.from_numpy(rng.normal(0, 0.2, p.shape)))
    return model


def tokens(model):
    config = model.config
    positions = getattr(config, "n_positions", None) or config.context_length
    return np.random.default_rng(4).integers(0, config.vocab_size, (3, positions))


def logits(model, ids):
    with torch.no_grad(), ml.no_grad():
        if isinstance(model, torch.nn.Module):
            return model.eval()(torch.from_numpy(ids)).logits.numpy()
        return model.eval()(ids).numpy()


def assert_same(one, other, atol):
    np.testing.assert_allclose(one, other, rtol=0, atol=atol)


@pytest.fixture
def gpt2(tmp_path):
    """transformers' model, and the folder that it was saved in."""
    model = random_gpt2()
    model.save_pretrained(tmp_path / "gpt2")
    return model, tmp_path / "gpt2"


@pytest.mark.parametrize("shard", [None, "20KB"])
@pytest.mark.parametrize("size", SIZES)
def test_a_saved_gpt2_gives_the_same_logits(tmp_path, size, shard):
    theirs = random_gpt2(size)
    theirs.save_pretrained(tmp_path, **({"max_shard_size": shard} if shard else {}))
    ours, ids = ml.load_gpt2(tmp_path, dtype="float64"), tokens(theirs)
    assert ours.num_parameters() == sum(p.numel() for p in theirs.parameters())
    expected = logits(theirs, ids)
    assert np.abs(expected).max() > 1
    assert_same(logits(ours, ids), expected, 1e-10)
    theirs.float().save_pretrained(tmp_path / "single")
    single = logits(ml.load_gpt2(tmp_path / "single"), ids)
    assert single.dtype == np.float32
    assert_same(single, logits(theirs, ids), 2e-5 * np.abs(expected).max())


def test_a_bare_gpt2_model_is_read_too(tmp_path):
    theirs = random_gpt2()
    theirs.transformer.save_pretrained(tmp_path)
    assert_same(logits(ml.load_gpt2(tmp_path, dtype="float64"), tokens(theirs)), logits(theirs, tokens(theirs)), 1e-10)


def test_greedy_generation_is_transformers(gpt2):
    theirs, folder = gpt2
    prompt = tokens(theirs)[0, :5]
    row = theirs.generate(torch.from_numpy(prompt[None]), max_new_tokens=15, do_sample=False, eos_token_id=None)
    assert ml.generate(ml.load_gpt2(folder, dtype="float64"), prompt, 15, temperature=0).tolist() == row[0].tolist()


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("targets", TARGETS, ids=",".join)
def test_our_adapter_in_peft_on_c_attn(gpt2, tmp_path, targets, scaling):
    theirs, folder = gpt2
    ours, ids = ml.load_gpt2(folder, dtype="float64"), tokens(theirs)
    base = logits(theirs, ids)
    ml.add_lora(ours, ml.LoRAConfig(3, 7, targets, scaling=scaling))
    randomize(ours)
    ml.save_adapter(ours, tmp_path / "a")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT has nothing to remark on the file
        loaded = peft.PeftModel.from_pretrained(theirs, str(tmp_path / "a")).double()
    expected = logits(ours, ids)
    assert np.abs(expected - base).max() > 0.1
    assert_same(logits(loaded, ids), expected, 1e-10)
    assert_same(logits(loaded.merge_and_unload(), ids), expected, 1e-10)


def pefts_adapter(theirs, **settings):
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "fan_in_fan_out": True, **settings})
    model = peft.get_peft_model(theirs, config).double()
    rng = np.random.default_rng(7)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.copy_(torch.from_numpy(rng.normal(0, 0.3, p.shape)))
    return model


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("targets", [["c_attn"], ["c_attn", "c_proj", "c_fc"], ["attn.c_proj"]], ids=",".join)
def test_pefts_adapter_on_c_attn_here_and_back_again(gpt2, tmp_path, targets, rslora):
    theirs, folder = gpt2
    ids = tokens(theirs)
    model = pefts_adapter(theirs, target_modules=targets, use_rslora=rslora, task_type="CAUSAL_LM")
    expected = logits(model, ids)
    model.save_pretrained(str(tmp_path / "theirs"))
    ours = ml.load_gpt2(folder, dtype="float64")
    base = logits(ours, ids)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ml.load_adapter(ours, tmp_path / "theirs")
    assert np.abs(expected - base).max() > 0.1
    assert_same(logits(ours, ids), expected, 1e-10)
    ml.save_adapter(ours, tmp_path / "ours")
    back = peft.PeftModel.from_pretrained(random_gpt2(), str(tmp_path / "ours")).double()
    assert_same(logits(back, ids), expected, 1e-10)


def test_a_block_adapter_that_peft_saved_again_is_q_and_v_of_rank_r(gpt2, tmp_path):
    """PEFT drops minilora's notes; the blocks speak for themselves."""
    theirs, folder = gpt2
    ours = ml.load_gpt2(folder, dtype="float64")
    ml.add_lora(ours, ml.LoRAConfig(3, 7))
    randomize(ours)
    ml.save_adapter(ours, tmp_path / "a")
    peft.PeftModel.from_pretrained(theirs, str(tmp_path / "a")).double().save_pretrained(str(tmp_path / "b"))
    again = ml.load_gpt2(folder, dtype="float64")
    ml.load_adapter(again, tmp_path / "b")
    assert list(lora_layers(again)) == list(lora_layers(ours))
    assert again.blocks[0].attn.q_proj.lora_A.shape[0] == 3
    assert_same(logits(again, tokens(theirs)), logits(ours, tokens(theirs)), 1e-10)


WRITTEN = [
    ("q_proj",),
    ("q_proj", "v_proj"),
    ALL_TARGETS,
    ("k_proj", "o_proj"),
    ("blocks.1.attn.v_proj",),
    ("blocks.1.attn.v_proj", "blocks.0.attn.q_proj"),
    ("fc_out", "blocks.0.attn.o_proj"),
    ("lm_head",),
    ("lm_head", "q_proj"),
    (*ALL_TARGETS, "lm_head"),
]


@pytest.mark.parametrize("size", ["small", "untied"])
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("targets", WRITTEN, ids=",".join)
def test_every_adapter_that_peft_saved_again_loads_here_again(tmp_path, targets, scaling, size):
    """Beside an adapter on the head it writes the head too, tied or not."""
    theirs = random_gpt2(size)
    theirs.save_pretrained(tmp_path / "gpt2")
    ours, ids = ml.load_gpt2(tmp_path / "gpt2", dtype="float64"), tokens(theirs)
    ml.add_lora(ours, ml.LoRAConfig(3, 7, targets, scaling=scaling))
    randomize(ours)
    expected = logits(ours, ids)
    ml.save_adapter(ours, tmp_path / "a")
    in_peft = peft.PeftModel.from_pretrained(theirs, str(tmp_path / "a")).double()
    assert_same(logits(in_peft, ids), expected, 1e-10)
    in_peft.save_pretrained(str(tmp_path / "b"))
    again = ml.load_gpt2(tmp_path / "gpt2", dtype="float64")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ml.load_adapter(again, tmp_path / "b")
    assert_same(logits(again, ids), expected, 1e-10)


def test_a_gpt2_and_its_adapter_in_bfloat16(gpt2, tmp_path):
    theirs, _ = gpt2
    model = pefts_adapter(theirs, target_modules=["c_attn", "c_fc"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.to(torch.bfloat16).save_pretrained(str(tmp_path / "adapter"))
        model.unload().save_pretrained(tmp_path / "bfloat16")
    exact = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "bfloat16").double()
    ours, ids = ml.load_gpt2(tmp_path / "bfloat16", dtype="float64"), tokens(theirs)
    assert_same(logits(ours, ids), logits(exact, ids), 1e-10)
    ml.load_adapter(ours, tmp_path / "adapter")
    expected = logits(peft.PeftModel.from_pretrained(exact, str(tmp_path / "adapter")).double(), ids)
    assert_same(logits(ours, ids), expected, 1e-10)


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": "all-linear"},
        {"target_modules": r".*\.(c_attn|c_fc)"},
        {"target_modules": r".*\.1\.attn\.c_attn"},
        {"target_modules": ["c_attn", "c_proj"], "exclude_modules": ["mlp.c_proj"]},
        {"target_modules": ["c_attn"], "layers_to_transform": [0, 2]},
        {"target_modules": ["c_attn"], "layers_to_transform": 1, "layers_pattern": "h"},
        {"target_modules": ["c_attn", "lm_head"]},
    ],
    ids=str,
)
@pytest.mark.parametrize("r", [4, 40])  # 40 is more than any matrix has, which PEFT allows
def test_whatever_peft_was_told_to_adapt_is_adapted_here(gpt2, tmp_path, settings, r):
    theirs, folder = gpt2
    ids = tokens(theirs)
    model = pefts_adapter(theirs, **settings, r=r)
    expected = logits(model, ids)
    model.save_pretrained(str(tmp_path / "a"))
    config = tmp_path / "a" / "adapter_config.json"
    for target_modules in (..., settings["target_modules"]):  # as PEFT resolved it, and as it was asked for
        fields = json.loads(config.read_text())
        if target_modules is not ...:
            config.write_text(json.dumps({**fields, "target_modules": target_modules}))
        ours = ml.load_gpt2(folder, dtype="float64")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ml.load_adapter(ours, tmp_path / "a")
        assert_same(logits(ours, ids), expected, 1e-10)
    ml.save_adapter(ours, tmp_path / "b")
    back = peft.PeftModel.from_pretrained(random_gpt2(), str(tmp_path / "b")).double()
    assert_same(logits(back, ids), expected, 1e-10)
    ml.merge_lora(ours)
    assert_same(logits(ours, ids), expected, 1e-10)


def test_an_adapter_of_another_name_is_found_in_its_sub_folder(gpt2, tmp_path):
    theirs, folder = gpt2
    config = peft.LoraConfig(target_modules=["c_attn"], init_lora_weights=False, fan_in_fan_out=True)
    model = peft.get_peft_model(theirs, config, adapter_name="french").double()
    expected = logits(model, tokens(theirs))
    model.save_pretrained(str(tmp_path / "a"))
    assert (tmp_path / "a" / "french").is_dir()
    ours = ml.load_gpt2(folder, dtype="float64")
    ml.load_adapter(ours, tmp_path / "a")
    assert_same(logits(ours, tokens(theirs)), expected, 1e-10)
    model.add_adapter("upper", config)
    model.save_pretrained(str(tmp_path / "a"))
    with pytest.raises(ValueError, match="several adapters: name one of its folders french, upper"):
        ml.load_adapter(ml.load_gpt2(folder), tmp_path / "a")
    names = {name: p.detach().clone() for name, p in model.state_dict().items() if "lora_" in name}
    save_file(names, tmp_path / "a" / "french" / "adapter_model.safetensors")  # both, under their names
    with pytest.raises(ValueError, match=r"tensors of several adapters \(french, upper\)"):
        ml.load_adapter(ml.load_gpt2(folder), tmp_path / "a" / "french")
    french = {name: p for name, p in names.items() if ".french." in name}
    save_file(french, tmp_path / "a" / "french" / "adapter_model.safetensors")
    ours = ml.load_gpt2(folder, dtype="float64")
    ml.load_adapter(ours, tmp_path / "a" / "french")
    assert_same(logits(ours, tokens(theirs)), expected, 1e-10)


@pytest.mark.parametrize("enable", [[True, False, True], [False, True, False], [True, True, True]], ids=str)
def test_loralibs_merged_linear_on_gpt2(gpt2, tmp_path, enable):
    loralib = pytest.importorskip("loralib", reason="loralib is not installed: pip install -e '.[parity]'")
    theirs, folder = gpt2
    D = theirs.config.n_embd
    rng = np.random.default_rng(5)
    for block in theirs.transformer.h:  # as in its GPT-2 example
        plain = block.attn.c_attn
        block.attn.c_attn = loralib.MergedLinear(
            D, 3 * D, r=4, lora_alpha=6, enable_lora=enable, fan_in_fan_out=True, merge_weights=False
        ).double()
        with torch.no_grad():
            block.attn.c_attn.weight.copy_(plain.weight)
            block.attn.c_attn.bias.copy_(plain.bias)
            for p in (block.attn.c_attn.lora_A, block.attn.c_attn.lora_B):
                p.copy_(torch.from_numpy(rng.normal(0, 0.3, p.shape)))
    expected = logits(theirs, tokens(theirs))
    (tmp_path / "a").mkdir()
    save_file(loralib.lora_state_dict(theirs), tmp_path / "a" / "adapter_model.safetensors")
    fields = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "target_modules": ["c_attn"], "enable_lora": enable}
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps({**fields, "fan_in_fan_out": True}))
    ours = ml.load_gpt2(folder, dtype="float64")
    base = logits(ours, tokens(theirs))
    trainable = ml.load_adapter(ours, tmp_path / "a")
    assert np.abs(expected - base).max() > 0.1
    assert_same(logits(ours, tokens(theirs)), expected, 1e-10)
    assert len(trainable) == 2 * sum(enable) * theirs.config.n_layer and trainable[0].shape == (4, D)


def test_the_readmes_way_to_pytorch_and_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_as_pasted(blocks("python", "docs/peft.md")[0], prints=2)


def test_dora_and_modules_to_save_are_refused(gpt2, tmp_path):
    for settings, message in (({"use_dora": True}, "use_dora"), ({"modules_to_save": ["lm_head"]}, "modules_to_save")):
        model = pefts_adapter(random_gpt2(), target_modules=["c_attn"], **settings)
        model.save_pretrained(str(tmp_path / message))
        with pytest.raises(ValueError, match=f"uses {message}"):
            ml.load_adapter(ml.load_gpt2(gpt2[1]), tmp_path / message)


def test_every_field_of_pefts_configuration_is_known():
    """A field of a newer PEFT is warned about where it stands in a file; this says when there is one."""
    import dataclasses

    from minilora.interop.peft import _HARMLESS, _READ, _UNSUPPORTED

    fields = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    assert fields <= _HARMLESS | _READ | _UNSUPPORTED.keys()
