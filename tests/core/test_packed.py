"""A base that stays packed trains LoRA as the same base in float32, bit for bit, and keeps nothing that is unpacked."""

import gc
import tracemalloc

import numpy as np
import pytest
from gguf_files import blocks_of, llama_gguf

import minilora as ml
from minilora import functional as F
from minilora.llama import LlamaConfig
from minilora.lora import lora_layers
from minilora.packed import Packed

CONFIG = LlamaConfig(32, 16, 64, 2, 4, 2, 96, tied_head=True)
pytestmark = pytest.mark.numpy_only("it reads files, and memory as NumPy takes it")


@pytest.fixture
def path(tmp_path):
    return written(tmp_path / "tiny.gguf", "Q4_1", "Q4_0")


def written(path, *kinds):
    llama_gguf(path, CONFIG, blocks_of(CONFIG, kinds))
    return path


def steps(model, count=5):
    parameters = ml.add_lora(model, ml.LoRAConfig(r=2, alpha=4, target_modules=("q_proj", "k_proj", "down_proj")))
    ids = np.random.default_rng(0).integers(0, 32, (2, 9))
    return ml.train(model, ml.Adam(parameters, 1e-2), lambda _: F.cross_entropy(model(ids[:, :-1]), ids[:, 1:]), count)[
        "loss"
    ]


def test_losses_are_those_of_the_unpacked_base_bit_for_bit(path):
    plain, packed = ml.load_llama(path), ml.load_llama(path, four_bit=True)
    assert sum(isinstance(p, Packed) for p in packed.parameters()) == 14
    assert packed.num_parameters() == plain.num_parameters()
    assert steps(packed) == steps(plain)


def test_merging_and_removing(path):
    ids = np.random.default_rng(0).integers(0, 32, (2, 9))
    model = ml.load_llama(path, four_bit=True)
    base = model(ids).numpy()
    steps(model)
    adapted = model(ids).numpy()
    ml.merge_lora(model)
    np.testing.assert_allclose(model(ids).numpy(), adapted, rtol=1e-4, atol=1e-4)
    ml.remove_lora(model)
    np.testing.assert_array_equal(model(ids).numpy(), base)


def test_the_textbook_gives_the_same_numbers(path):
    model, ids = ml.load_llama(path, "float64", four_bit=True), np.arange(8)[None]
    with ml.textbook():
        slow = model(ids).numpy()
    np.testing.assert_allclose(model(ids).numpy(), slow, rtol=1e-10)


def test_a_forward_pass_keeps_no_unpacked_weight(path):
    """Of each of the packed base's products the tape holds the few numbers per token, not the matrix."""

    def kept(model):
        ml.add_lora(model, ml.LoRAConfig(r=1, target_modules=("q_proj",)))
        gc.collect()
        tracemalloc.start()
        loss = F.cross_entropy(model(np.array([[1]])), np.array([[2]]))
        gc.collect()
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        loss.backward()
        assert all(np.isfinite(layer.lora_B.grad).all() for layer in lora_layers(model).values())
        return held

    matrices = sum(p.size for p in ml.load_llama(path, four_bit=True).parameters() if isinstance(p, Packed)) * 4
    assert kept(ml.load_llama(path, four_bit=True)) < matrices / 4


def test_a_packed_weight_does_not_train(path):
    model = ml.load_llama(path, four_bit=True)
    weight = model.model.layers[0].mlp.up_proj.weight
    assert weight.nbytes * 6 < weight.size * 4 and not weight.requires_grad
    with pytest.raises(ValueError, match="cannot train"):
        weight.requires_grad = True
    with pytest.raises(ValueError, match="cannot be replaced"):
        weight.data = weight.data


def test_a_file_without_four_bits_is_refused(tmp_path):
    path = written(tmp_path / "whole.gguf", "F16")
    with pytest.raises(ValueError, match="no matrix in Q4_0 or Q4_1"):
        ml.load_llama(path, four_bit=True)
