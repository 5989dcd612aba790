"""Each library's way to do the same work: a function (B, T, D, L, threads) -> (what runs, one step).

All train the same GPT: 4 heads, 96 symbols, float32, Adam at 1e-3; LoRA is r = 4 on q and v. A step is forward,
backward and Adam, in a plain loop, as a user would write it. Imports stay within the functions: one process, one
library.
"""

import os
import sys
from pathlib import Path

TOKENS = 16  # of one measured generation


def data(B, T):
    import numpy as np

    rng = np.random.default_rng(0)
    return rng.integers(0, 96, (B, T)), rng.integers(0, 96, (B, T))


def configuration(T, D, L):
    import minilora as ml

    return ml.GPTConfig(vocab_size=96, context_length=T, d_model=D, n_layers=L, n_heads=4)


# ---- minilora ----------------------------------------------------------------------------------------


def about_minilora():
    import minilora as ml
    from minilora.machine import blas_name, blas_threads

    return f"minilora {ml.__version__}, {blas_name()}, {blas_threads()} thread(s), {os.cpu_count()} cores"


def minilora_step(B, T, D, L, threads, lora=False, textbook=False):
    import minilora as ml
    from minilora import functional as F

    model = ml.GPT(configuration(T, D, L))
    parameters = ml.add_lora(model, ml.LoRAConfig(r=4)) if lora else model.parameters()
    optimizer = ml.Adam(parameters, lr=1e-3)
    ids, targets = data(B, T)

    def step():
        loss = F.cross_entropy(model(ids), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def by_the_book():
        with ml.textbook():
            step()

    return about_minilora(), by_the_book if textbook else step


def minilora_forward(B, T, D, L, threads, merged=False):
    import minilora as ml

    model = ml.GPT(configuration(T, D, L)).eval()
    if merged:
        ml.add_lora(model, ml.LoRAConfig(r=4))
        ml.merge_lora(model)
    ids, _ = data(B, T)

    def step():
        with ml.no_grad():
            model(ids)

    return about_minilora(), step


def minilora_tokens(B, T, D, L, threads):
    import minilora as ml

    model = ml.GPT(configuration(T, D, L))
    prompt = data(1, T - TOKENS)[0][0]
    return about_minilora(), lambda: ml.generate(model, prompt, TOKENS)


# ---- PyTorch and PEFT --------------------------------------------------------------------------------


def torch_model(T, D, L, threads):
    import torch

    sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "parity"))
    from torch_gpt import TorchGPT

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    return TorchGPT(configuration(T, D, L)), f"torch {torch.__version__}, {torch.get_num_threads()} thread(s)"


def torch_step(B, T, D, L, threads, lora=False, compiled=False):
    import torch

    model, about = torch_model(T, D, L, threads)
    if lora:
        import peft

        model = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj", "v_proj"]))
        about += f", peft {peft.__version__}"
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    ids, targets = map(torch.from_numpy, data(B, T))

    def loss_of(ids, targets):
        return torch.nn.functional.cross_entropy(model(ids).reshape(-1, 96), targets.reshape(-1))

    if compiled:
        loss_of = torch.compile(loss_of)

    def step():
        loss = loss_of(ids, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return about, step


def torch_forward(B, T, D, L, threads):
    import torch

    model, about = torch_model(T, D, L, threads)
    ids = torch.from_numpy(data(B, T)[0])

    def step():
        with torch.no_grad():
            model(ids)

    return about, step


# ---- JAX and HIPS autograd ---------------------------------------------------------------------------


def plain_weights(T, D, L):
    """name -> array, as minilora starts them."""
    import minilora as ml

    config = configuration(T, D, L)
    return config, ml.GPT(config).state_dict()


def jax_step(B, T, D, L, threads):
    import array_gpt
    import jax
    import jax.numpy as jnp

    config, weights = plain_weights(T, D, L)
    ids, targets = map(jnp.asarray, data(B, T))

    @jax.jit
    def update(p, m, v, t):
        g = jax.grad(lambda p: array_gpt.loss(jnp, config, p, ids, targets))(p)
        m = {n: 0.9 * m[n] + 0.1 * g[n] for n in p}
        v = {n: 0.999 * v[n] + 0.001 * g[n] ** 2 for n in p}
        rate, size = 1e-3 / (1 - 0.9**t), 1 - 0.999**t
        return {n: p[n] - rate * m[n] / (jnp.sqrt(v[n] / size) + 1e-8) for n in p}, m, v, t + 1

    p = {n: jnp.asarray(a) for n, a in weights.items()}
    state = [p, {n: jnp.zeros_like(a) for n, a in p.items()}, {n: jnp.zeros_like(a) for n, a in p.items()}, 1.0]

    def step():
        state[:] = update(*state)
        jax.block_until_ready(state)

    return f"jax {jax.__version__}, jit, {threads} thread(s)", step


def autograd_step(B, T, D, L, threads):
    from importlib.metadata import version

    import array_gpt
    import autograd
    import autograd.numpy as anp

    config, p = plain_weights(T, D, L)
    ids, targets = data(B, T)
    gradient = autograd.grad(lambda p: array_gpt.loss(anp, config, p, ids, targets))

    def step():  # with SGD, which is cheaper than Adam
        for name, g in gradient(p).items():
            p[name] -= 1e-3 * g

    return f"HIPS autograd {version('autograd')}, SGD, {threads} thread(s)", step


# ---- the floor ---------------------------------------------------------------------------------------


def products(B, T, D, L, threads):
    """The matrix products of one full step: each linear layer's three, and attention's six, into arrays made once."""
    import numpy as np

    rng = np.random.default_rng(0)
    jobs = []

    def product(a, b):
        a, b = (rng.normal(size=shape).astype("float32") for shape in (a, b))
        jobs.append((a, b, np.matmul(a, b)))

    M, d = B * T, D // 4
    for i, o in [(D, D)] * 4 * L + [(D, 4 * D), (4 * D, D)] * L + [(D, 96)]:
        for a, b in (((M, i), (i, o)), ((M, o), (o, i)), ((o, M), (M, i))):
            product(a, b)
    for _ in range(L):
        for a, b in [((T, d), (d, T)), ((T, T), (T, d))] * 3:
            product((B, 4, *a), (B, 4, *b))

    def step():
        for a, b, out in jobs:
            np.matmul(a, b, out=out)

    return f"numpy {np.__version__}, {len(jobs)} products", step


MAKERS = {
    "minilora full": minilora_step,
    "PyTorch full": torch_step,
    "torch.compile full": lambda *a: torch_step(*a, compiled=True),
    "JAX jit full": jax_step,
    "HIPS autograd full": autograd_step,
    "products": products,
    "minilora LoRA": lambda *a: minilora_step(*a, lora=True),
    "PEFT LoRA": lambda *a: torch_step(*a, lora=True),
    "minilora forward": minilora_forward,
    "minilora forward again": minilora_forward,
    "minilora merged forward": lambda *a: minilora_forward(*a, merged=True),
    "PyTorch forward": torch_forward,
    f"minilora {TOKENS} tokens": minilora_tokens,
    "textbook full": lambda *a: minilora_step(*a, textbook=True),  # the core's own formulas, without kernels
    "textbook LoRA": lambda *a: minilora_step(*a, lora=True, textbook=True),
}
