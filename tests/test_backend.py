"""Choosing the array library; NumPy's products, and its blocks of memory that are used again."""

import gc
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import ids, lora_gpt, snapshot, tiny_gpt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import minilora as ml
from minilora import backend

pytestmark = pytest.mark.numpy_only("it is about how NumPy computes")

LARGE = (64, 256)  # float32: 64 KB, twice what the pool begins at


@pytest.fixture(autouse=True)
def fresh_pool(monkeypatch):
    monkeypatch.setattr(backend, "_pool", backend._Pool())


# ---- products cut into small ones --------------------------------------------------------------------


@pytest.fixture(params=[0, 10**6], ids=["whole", "cut"])
def small_product(request, monkeypatch):
    """Both ways, whatever processor this is."""
    monkeypatch.setattr(backend, "_SMALL_PRODUCT", request.param)


@given(
    M=st.sampled_from([1, 63, 64, 70, 300, 512, 555]),
    k=st.sampled_from([1, 32, 64, 128, 96, 200]),
    n=st.sampled_from([1, 4, 64, 96, 512]),
    dtype=st.sampled_from(["float32", "float64"]),
    transposed=st.booleans(),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_products_of_any_shape_are_right(small_product, M, k, n, dtype, transposed):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(M, k)).astype(dtype), rng.normal(size=(k, n)).astype(dtype)
    right = np.asfortranarray(b) if transposed else b
    product = backend.matmul(a, right)
    over_rows = backend.matmul_over_rows(a, product)
    wide = a.astype("float64")
    for result, expected in ((product, wide @ b), (over_rows, wide.T @ product.astype("float64"))):
        assert result.dtype == dtype and result.flags.c_contiguous
        largest = abs(expected).max()
        assert abs(result - expected).max() <= (1e-5 if dtype == "float32" else 1e-13) * largest


# ---- the pool of blocks ------------------------------------------------------------------------------


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["float32", "float64"]), st.integers(1, 4), st.sampled_from(["keep", "view", "drop"])
        ),
        min_size=1,
        max_size=30,
    )
)
def test_two_live_arrays_never_share_memory(steps):
    """Each array, or a view of it alone, is filled with a number of its own, and must still hold it at the end."""
    live = []
    for number, (dtype, rows, fate) in enumerate(steps):
        array = backend.empty((rows, 8 * 1024), dtype)
        assert array.shape == (rows, 8 * 1024) and array.dtype == dtype and array.flags.c_contiguous
        array[...] = number
        if fate != "drop":
            live.append((number, array if fate == "keep" else array.T[::2].reshape(-1, rows)[3:]))
        if number % 7 == 6:
            live.pop(0)
    for i, (number, array) in enumerate(live):
        assert (array == number).all()
        assert not any(np.shares_memory(array, other) for _, other in live[:i])


def test_a_block_is_used_again_once_nobody_looks_at_it():
    def address(array):
        return array.ctypes.data

    array = backend.empty(LARGE, "float32")
    first, view = address(array), array[3:, ::2]
    del array
    second = address(backend.empty(LARGE, "float32"))  # let go at once
    assert second != first, "a view still looks at the first"
    assert address(backend.empty((2, 32, 256), "float32")) == second, "any shape of that size will do"
    del view
    both = backend.empty(LARGE, "float32"), backend.empty((64, 128), "float64")
    assert {address(array) for array in both} == {first, second}


def test_a_training_step_takes_no_new_blocks_once_warm():
    model = tiny_gpt(d_model=64, context_length=32)
    optimizer = ml.Adam(model.parameters(), lr=1e-3)
    losses = ml.batch_loss(model, lambda step: (ids(model, 4, 32, step), ids(model, 4, 32, step + 1)))
    ml.train(model, optimizer, losses, 2)
    gc.collect()

    def held():
        return sorted(id(block) for blocks in backend._pool.blocks.values() for block in blocks)

    before = held()
    ml.train(model, optimizer, losses, 3)
    assert before and held() == before


def test_small_arrays_do_not_go_through_the_pool():
    backend.empty((10, 10), "float32")
    assert not backend._pool.blocks


def test_a_size_nobody_asks_for_any_more_is_forgotten():
    def sizes():
        return set(backend._pool.blocks)

    kept = backend.empty((40_000,), "uint8")
    kept[...] = 7
    for _ in range(backend._MEMORY + 1):
        backend.empty((50_000,), "uint8")
    assert sizes() == {40_000, 50_000}
    backend.empty((60_000,), "uint8")  # a new block: the moment to look back
    assert sizes() == {50_000, 60_000}
    assert (kept == 7).all()


def test_switching_the_library_empties_the_pool_and_goes_on(restore_backend):
    backend.empty((40_000,), "uint8")
    backend.use_backend("numpy")
    assert not backend._pool.blocks
    for _ in range(backend._MEMORY + 1):
        backend.empty((50_000,), "uint8")
    backend.empty((60_000,), "uint8")
    assert set(backend._pool.blocks) == {50_000, 60_000}


def test_each_thread_has_blocks_of_its_own():
    address, seen = [], []
    array = backend.empty(LARGE, "float32")
    address.append(array.ctypes.data)
    del array
    thread = threading.Thread(target=lambda: seen.append(backend.empty(LARGE, "float32")))
    thread.start()
    thread.join()
    assert seen[0].ctypes.data not in address


def trained(steps=4):
    """Losses and bytes of a model with LoRA, dropout and blocks above 32 KB, after some steps."""
    model = lora_gpt(dropout=0.2, d_model=64, context_length=32)
    optimizer = ml.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = ml.batch_loss(model, lambda step: (ids(model, 4, 32, step), ids(model, 4, 32, step + 1)))
    return ml.train(model, optimizer, losses, steps, clip=1.0)["loss"], snapshot(model)


def test_results_are_bit_equal_to_those_of_fresh_memory(monkeypatch):
    with_pool = trained()
    assert backend._pool.blocks
    monkeypatch.setattr(backend, "_pool", backend._Pool())
    monkeypatch.setattr(backend, "_SMALL", 2**62)
    assert trained() == with_pool and not backend._pool.blocks


def test_results_do_not_depend_on_what_a_block_held_before(monkeypatch):
    """Every block is handed out full of NaN."""
    expected = trained()
    take = backend._Pool.take

    def poisoned(self, size):
        block = take(self, size)
        block[...] = 255  # NaN in every float
        return block

    monkeypatch.setattr(backend._Pool, "take", poisoned)
    assert trained() == expected


# ---- choosing the library --------------------------------------------------------------------------


def test_a_backend_that_is_not_there_is_an_error_and_changes_nothing(monkeypatch):
    with pytest.raises(ValueError, match='must be "numpy" or "cupy", not \'jax\''):
        ml.use_backend("jax")
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ValueError, match=r"needs CuPy, which is not installed: pip install cupy"):
        ml.use_backend("cupy")
    silent = SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: False))
    monkeypatch.setitem(sys.modules, "cupy", silent)
    with pytest.raises(ValueError, match="needs an NVIDIA GPU"):
        ml.use_backend("cupy")
    assert backend.backend_name() == "numpy"
