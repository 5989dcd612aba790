"""Choosing the array library; NumPy's products, and its blocks of memory that are used again."""

import gc
import itertools
import sys
import threading
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import ids, lora_gpt, snapshot, tiny_gpt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import minilora as ml
from minilora import backend
from minilora.fast import memory, products

pytestmark = pytest.mark.numpy_only("it is about how NumPy computes")

LARGE = (64, 256)  # float32: 64 KB, twice what the pool begins at


@pytest.fixture(autouse=True)
def fresh_pool(monkeypatch):
    monkeypatch.setattr(memory._of_thread, "pool", memory._Pool())


# ---- products cut into small ones --------------------------------------------------------------------


@pytest.fixture(params=[0, 10**6], ids=["whole", "cut"])
def small_product(request, monkeypatch):
    """Both ways, whatever processor this is."""
    monkeypatch.setattr(products, "_SMALL_PRODUCT", request.param)


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
    product = products.matmul(a, right)
    over_rows = products.matmul_over_rows(a, product)
    wide = a.astype("float64")
    for result, expected in ((product, wide @ b), (over_rows, wide.T @ product.astype("float64"))):
        assert result.dtype == dtype and result.flags.c_contiguous
        largest = abs(expected).max()
        assert abs(result - expected).max() <= (1e-5 if dtype == "float32" else 1e-13) * largest


# ---- the pool of blocks ------------------------------------------------------------------------------


def held():
    """Size of blocks -> how many the pool has of it."""
    return {size: len(shelf.leases) for size, shelf in memory._of_thread.pool.shelves.items()}


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
        array = memory.empty((rows, 8 * 1024), dtype)
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

    array = memory.empty(LARGE, "float32")
    first, view = address(array), array[3:, ::2]
    del array
    second = address(memory.empty(LARGE, "float32"))  # let go at once
    assert second != first, "a view still looks at the first"
    assert address(memory.empty((2, 32, 256), "float32")) == second, "any shape of that size will do"
    del view
    both = memory.empty(LARGE, "float32"), memory.empty((64, 128), "float64")
    assert {address(array) for array in both} == {first, second}


def test_a_training_step_takes_no_new_blocks_once_warm():
    model = tiny_gpt(d_model=64, context_length=32)
    optimizer = ml.Adam(model.parameters(), lr=1e-3)
    losses = ml.batch_loss(model, lambda step: (ids(model, 4, 32, step), ids(model, 4, 32, step + 1)))
    ml.train(model, optimizer, losses, 2)
    gc.collect()

    def blocks():
        shelves = memory._of_thread.pool.shelves.values()
        return sorted(id(lease.memory) for shelf in shelves for lease in shelf.leases.values())

    before = blocks()
    ml.train(model, optimizer, losses, 3)
    assert before and blocks() == before


def test_small_arrays_do_not_go_through_the_pool():
    memory.empty((10, 10), "float32")
    assert not held()


def test_what_nobody_needed_for_a_period_is_let_go_though_no_request_ever_missed():
    kept = memory.empty((40_000,), "uint8")
    kept[...] = 7
    large = [memory.empty((50_000,), "uint8") for _ in range(5)]  # an evaluation, say
    del large
    assert held() == {40_000: 1, 50_000: 5}
    for _ in range(2 * memory._PERIOD):
        memory.empty((50_000,), "uint8")  # training that goes on with one at a time
    assert held() == {40_000: 1, 50_000: 1}
    assert memory._of_thread.pool.bytes == 90_000 and (kept == 7).all()


def test_a_block_whose_array_ends_after_its_size_was_let_go_is_used_again():
    first, second = memory.empty((40_000,), "uint8"), memory.empty((40_000,), "uint8")
    del first
    for _ in range(2 * memory._PERIOD):
        memory.empty((50_000,), "uint8")
    assert held() == {40_000: 1, 50_000: 1}
    address = second.ctypes.data
    del second
    assert memory.empty((40_000,), "uint8").ctypes.data == address


def test_shapes_that_never_come_again_do_not_pile_up():
    for rows in range(2000):  # 1 GB in all
        memory.empty((500_000 + rows,), "uint8")
    assert memory._of_thread.pool.bytes <= memory._ROOM


def test_switching_the_library_empties_the_pool_and_goes_on(restore_backend):
    memory.empty((40_000,), "uint8")
    backend.use_backend("numpy")
    assert not held()
    memory.empty((50_000,), "uint8")
    assert held() == {50_000: 1}


def memory_of(pool):
    return [weakref.ref(lease.memory) for shelf in pool.shelves.values() for lease in shelf.leases.values()]


def test_memory_that_is_let_go_is_freed_at_once_without_the_garbage_collector():
    """By letting go, by another library, and by the end of a thread."""
    gc.disable()
    try:
        memory.empty((40_000,), "uint8")
        seen = memory_of(memory._of_thread.pool)
        for _ in range(2 * memory._PERIOD):
            memory.empty((50_000,), "uint8")
        assert seen and not any(reference() for reference in seen)
        seen = memory_of(memory._of_thread.pool)
        backend.use_backend("numpy")
        assert seen and not any(reference() for reference in seen)

        def work():
            memory.empty((60_000,), "uint8")
            seen.extend(memory_of(memory._of_thread.pool))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert len(seen) > 1 and not any(reference() for reference in seen)
    finally:
        gc.enable()


def test_a_block_that_an_interrupt_lost_is_let_go():
    """An exception within take, as a signal handler may raise it."""

    def interrupted(*_):
        raise KeyboardInterrupt

    memory.empty((40_000,), "uint8")
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "frombuffer", interrupted)
        memory.empty((40_000,), "uint8")
    for _ in range(memory._PERIOD):
        memory.empty((50_000,), "uint8")
    assert held() == {50_000: 1} and memory._of_thread.pool.bytes == 50_000


def test_sizes_that_never_come_again_leave_nothing_behind():
    for rows in range(3000):
        memory.empty((100_000 + rows,), "uint8")
    assert len(memory._of_thread.pool.shelves) < 1000


def test_a_finalizer_may_save_what_looks_at_an_array():
    """The garbage collector clears weak references to what it collects before it asks the finalizers."""
    saved = []

    class Saves:
        def __del__(self):
            saved.append(self.look)

    array, saves = memory.empty(LARGE, "float32"), Saves()
    address, saves.look, saves.itself = array.ctypes.data, memoryview(array.base), saves
    del array, saves
    gc.collect()
    assert saved and memory.empty(LARGE, "float32").ctypes.data != address


@pytest.mark.parametrize(
    "look", [np.asarray, memoryview, lambda a: a.base, lambda a: memoryview(a.base), np.from_dlpack]
)
def test_whoever_looks_at_the_memory_keeps_the_block(look):
    """Not only views: whatever reaches the memory through the array."""
    array = memory.empty(LARGE, "float32")
    array[...] = 1
    address, eye = array.ctypes.data, look(array)
    del array
    assert memory.empty(LARGE, "float32").ctypes.data != address
    del eye
    gc.collect()
    assert address in {array.ctypes.data for array in (memory.empty(LARGE, "float32"), memory.empty(LARGE, "float32"))}


def test_an_array_in_a_cycle_gives_its_block_back_when_the_cycle_is_collected():
    array = memory.empty(LARGE, "float32")
    address, cycle = array.ctypes.data, [array]
    cycle.append(cycle)
    del array, cycle
    assert memory.empty(LARGE, "float32").ctypes.data != address
    gc.collect()
    assert address in {memory.empty(LARGE, "float32").ctypes.data, memory.empty(LARGE, "float32").ctypes.data}


def test_an_array_that_ends_in_another_thread_gives_its_block_back():
    arrays = [memory.empty(LARGE, "float32")]
    address = arrays[0].ctypes.data
    thread = threading.Thread(target=arrays.clear)
    thread.start()
    thread.join()
    assert memory.empty(LARGE, "float32").ctypes.data == address


def test_an_array_outlives_the_thread_whose_pool_it_came_from():
    arrays = []
    thread = threading.Thread(target=lambda: arrays.append(memory.empty(LARGE, "float32")))
    thread.start()
    thread.join()
    arrays[0][...] = 3
    gc.collect()
    others = [np.ones(LARGE, "float32") for _ in range(50)]
    assert (arrays[0] == 3).all() and len(others) == 50


def test_no_two_live_arrays_share_a_block_over_a_thousand_random_steps():
    """Arrays, views, transposes and gradients are kept and dropped at random, between threads too: each keeps its
    number."""
    rng = np.random.default_rng(0)
    live = {}
    for step in range(1000):
        rows = int(rng.integers(1, 5))
        array = memory.empty((rows, 4096), ["float32", "float64"][step % 2])
        array[...] = step
        live[step] = [array, array.T, array[:, ::3], array.reshape(-1)[7:], array.view("uint8")][int(rng.integers(5))]
        del array
        for gone in rng.choice(list(live), size=min(len(live), int(rng.integers(3))), replace=False):
            if step % 10 == 0:  # in another thread
                thread = threading.Thread(target=live.pop, args=(int(gone),))
                thread.start()
                thread.join()
            else:
                del live[int(gone)]
        if step % 50 == 49:
            ranges = sorted(np.lib.array_utils.byte_bounds(array) for array in live.values())
            assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ranges))
    for number, array in live.items():
        kind = "float32" if number % 2 == 0 else "float64"
        numbers = array.view(kind) if array.dtype == np.uint8 else array
        assert (numbers == number).all()


def test_each_thread_has_blocks_of_its_own():
    address, seen = [], []
    array = memory.empty(LARGE, "float32")
    address.append(array.ctypes.data)
    del array
    thread = threading.Thread(target=lambda: seen.append(memory.empty(LARGE, "float32")))
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
    assert held()
    monkeypatch.setattr(memory._of_thread, "pool", memory._Pool())
    monkeypatch.setattr(memory, "_SMALL", 2**62)
    assert trained() == with_pool and not held()


def test_results_do_not_depend_on_what_a_block_held_before(monkeypatch):
    """Every block is handed out full of NaN."""
    expected = trained()
    take = memory._Pool.take

    def poisoned(self, size):
        exporter = take(self, size)
        np.frombuffer(exporter, np.uint8)[...] = 255  # NaN in every float
        return exporter

    monkeypatch.setattr(memory._Pool, "take", poisoned)
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


@pytest.mark.parametrize(
    "log",
    [
        'x.h(1): catastrophic error: cannot open source file "vector_types.h"\n\n1 catastrophic error detected',
        'storage.h(137): error: incomplete type "__nv_fp8_e8m0" is not allowed\n1 error detected',
        "",
    ],
    ids=["headers missing", "headers of another version", "no log"],
)
def test_a_gpu_that_answers_without_headers_that_fit_is_not_called_missing(monkeypatch, log):
    """A simulation of what CuPy 14 raises at its first kernel; no GPU is here."""

    class CompileException(Exception):
        pass

    class Array:
        def __add__(self, other):
            raise CompileException(log)

    cupy = SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: True), zeros=lambda n: Array())
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    said = log.splitlines()[0] if log else "CompileException"
    with pytest.raises(ValueError, match="The GPU answers, but CuPy cannot compile") as caught:
        ml.use_backend("cupy")
    assert said in str(caught.value) and "CUDA_PATH" in str(caught.value) and "[ctk]" in str(caught.value)
    assert "\n" not in str(caught.value) and backend.backend_name() == "numpy"
