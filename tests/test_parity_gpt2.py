"""GPT-2 and its adapters beside transformers and PEFT, where they are installed (extra `parity`)."""

import warnings

import numpy as np
import pytest
from helpers import ALL_TARGETS, randomize
from test_readme import blocks, run_as_pasted

import minilora as ml
from minilora.lora import lora_layers

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[parity]'")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what other libraries warn about while they are imported
    peft = pytest.importorskip("peft", reason="PEFT is not installed: pip install -e '.[parity]'")
    transformers = pytest.importorskip("transformers", reason="transformers is missing: pip install -e '.[parity]'")

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
    model = peft.get_peft_model(theirs, peft.LoraConfig(r=4, lora_alpha=6, fan_in_fan_out=True, **settings)).double()
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


def test_the_readmes_way_to_pytorch_and_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_as_pasted(blocks("python")[1], prints=2)


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
