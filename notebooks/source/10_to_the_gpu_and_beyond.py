# %% [markdown]
# # 10. To the GPU and beyond
#
# **The same code on a GPU, the same adapter in PyTorch, the same runs on many machines: what changes?** As little as
# possible, and only at the edges.
#
# *Needs: `pip install -e ".[notebook]"`; no network, no GPU, no PyTorch. Takes: about 10 s.*

# %%
import json
import tempfile
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from safetensors.numpy import load_file, save_file

import minilora as ml
from minilora.backend import asarray, backend_name, to_numpy, xp
from minilora.bases import load_base
from minilora.claims.figures import STYLE
from minilora.interop.gpt2 import stored_tensors
from minilora.lora import lora_layers
from minilora.tools.cost_tables import budget_text
from minilora.tools.device_report import device_report
from minilora.tools.sweep import process_pool, sweep

plt.rcParams.update(STYLE)
folder = tempfile.TemporaryDirectory()
here = Path(folder.name)

# %% [markdown]
# ## One switch
#
# Library code never writes `np.exp(x)` for an array that a model computes with; it writes `xp.exp(x)`, and `xp` is NumPy
# or CuPy, chosen once at the start. Arrays cross only at the edges: `asarray` on the way in, `to_numpy` on the way out.
# Random numbers are always drawn by NumPy on the CPU, so that both start from the same ones.

# %% exact
print("computing with:", backend_name())
x = asarray([[1.0, 2.0], [3.0, 4.0]])
print("xp.matmul:", to_numpy(xp.matmul(x, x)).tolist())
try:
    ml.use_backend("tpu")
except ValueError as error:
    print(error)

# %% [markdown]
# ## For owners of a GPU
#
# With CuPy and an NVIDIA GPU the next cell allocates, checks gradients, trains the same small model on both and compares
# the losses, times steps of several sizes, and prints a report to paste into an issue (`minilora info --backend cupy`
# prints the same). Without, it says in one sentence what is missing.

# %% illustration
try:
    ml.use_backend("cupy")
    print(device_report())
except ValueError as error:
    print(textwrap.fill(str(error), 100))
finally:
    ml.use_backend("numpy")

# %% [markdown]
# What a step moves: ids and targets go to the GPU, nothing comes back. The losses stay there, and `ml.train` fetches
# them together, every 50th step: a fetch makes the CPU wait for all that the GPU still has to do.
#
# Do not expect a tiny model to be faster on a GPU: its products are too short to fill one.
#
# ## PEFT's two files
#
# An adapter saved here is what [PEFT](https://github.com/huggingface/peft) saves: a JSON file with the settings and a
# safetensors file with the matrices.

# %% exact
model = load_base("strings")
ml.add_lora(model, ml.LoRAConfig(r=4, alpha=8), seed=0)
ml.save_adapter(model, here / "adapter")
config = json.loads((here / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
print(
    {name: config[name] for name in ("peft_type", "r", "lora_alpha", "target_modules", "fan_in_fan_out", "use_rslora")}
)
for name, array in sorted(load_file(here / "adapter" / "adapter_model.safetensors").items())[:2]:
    print(f"{name:<65} {array.shape}")

# %% [markdown]
# What PEFT has and minilora has not is refused by name, never silently ignored:

# %% exact
(here / "adapter" / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}), encoding="utf-8")
try:
    ml.load_adapter(load_base("strings"), here / "adapter")
except ValueError as error:
    print(textwrap.fill(str(error).replace(str(here), "..."), 100))

# %% [markdown]
# ## GPT-2
#
# `ml.load_gpt2(folder)` reads a GPT-2 as Hugging Face stores it. There are three differences to get right, all at the file's
# boundary, and nowhere else:
#
# - **Transposed.** GPT-2 stores $(in, out)$ and computes $xW$; here it is $(out, in)$ and $xW^\top$.
# - **Fused.** Its `c_attn` holds $W_q, W_k, W_v$ side by side.
# - **Tied.** The head is the token embedding.
#
# **Asked often: "my merged GPT-2 computes nonsense".** Usually someone forgot the first point: PEFT calls it `fan_in_fan_out`.
# To see it, we write a small random GPT-2 in that layout (no download needed) and read it back.

# %% exact
config = ml.GPTConfig(vocab_size=500, context_length=32, d_model=48, n_layers=2, n_heads=4, tied_head=True)
rng = np.random.default_rng(0)
tensors = {n: 0.05 * rng.standard_normal(shape, dtype="float32") for n, shape, _ in stored_tensors(config)}
(here / "gpt2").mkdir()
save_file({f"transformer.{n}": a for n, a in tensors.items()}, here / "gpt2" / "model.safetensors")
sizes = {"vocab_size": 500, "n_positions": 32, "n_embd": 48, "n_layer": 2, "n_head": 4}
(here / "gpt2" / "config.json").write_text(json.dumps({"model_type": "gpt2", **sizes}), encoding="utf-8")

gpt2 = ml.load_gpt2(here / "gpt2")
stored = tensors["h.0.attn.c_attn.weight"]  # (48, 144): in, then q, k and v
v_proj = gpt2.blocks[0].attn.v_proj.weight.data
print(
    f"stored {stored.shape}; v_proj {v_proj.shape} is its last third, transposed:",
    np.array_equal(v_proj, stored[:, 96:].T),
)
print(f"{gpt2.num_parameters():,} parameters, head tied:", gpt2.lm_head.weight is gpt2.token_embedding.weight)

# %% [markdown]
# LoRA goes on q and v as on any other model. For PEFT, where there is only `c_attn`, the two adapters of rank $r$ become
# one of rank $2r$, in blocks: its $A$ stacks both, its $B$ has zeros where k would be. Equal for inference; trained further in
# PEFT the blocks would mix.

# %% exact
trainable = ml.add_lora(gpt2, ml.LoRAConfig(r=4, alpha=32), seed=0)
ids = rng.integers(0, 500, (4, 17))
ml.train(gpt2, ml.Adam(trainable, 1e-3), ml.batch_loss(gpt2, lambda step: (ids[:, :-1], ids[:, 1:])), 20)
ml.save_adapter(gpt2, here / "on_gpt2")
saved = load_file(here / "on_gpt2" / "adapter_model.safetensors")
A, B = (
    next(a for n, a in saved.items() if "h.0.attn.c_attn" in n and n.endswith(f"lora_{letter}.weight"))
    for letter in "AB"
)
print(f"c_attn: A {A.shape}, B {B.shape}; the rows of k are zero: {not B[48:96].any()}")

# %%
figure, ax = plt.subplots(figsize=(8.5, 2.4))
ax.imshow(np.abs(B).T, cmap="Blues", aspect="auto")
for start, name in ((0, "q"), (48, "k"), (96, "v")):
    ax.text(start + 24, -0.9, f"rows of {name}", ha="center")
    ax.axvline(start - 0.5, color="black", linewidth=0.6)
ax.set(xlabel="row of c_attn's output", ylabel="rank, 2r = 8", yticks=range(8))
ax.grid(visible=False)
plt.show()

# %% exact
again = ml.load_gpt2(here / "gpt2")
ml.load_adapter(again, here / "on_gpt2")
print("read back, the same logits:", np.allclose(again(ids).numpy(), gpt2(ids).numpy(), atol=1e-5))

# %% [markdown]
# **Asked often: "how do I ship a merged model and keep training the adapter?"** `merge_lora` keeps $W_0$, so merging is a mode
# you can leave; `merge_and_unload` makes a plain model for serving, after you saved the adapter.

# %% exact
adapted = gpt2(ids).numpy()
ml.merge_and_unload(again)  # a plain model
print("served:", np.allclose(again(ids).numpy(), adapted, atol=1e-4), "  LoRA left in it:", len(lora_layers(again)))
print("still adapting:", len(lora_layers(gpt2)), "layers with LoRA in the other")

# %% [markdown]
# ## Many runs
#
# Tiny models do not fill a core, so cores are used for runs side by side, each with one BLAS thread. `sweep` takes any
# `concurrent.futures` executor: a pool of processes here, the workers of a Dask cluster with
# `minilora reproduce --scheduler tcp://HOST:8786`, one GPU for each worker.

# %% exact
with process_pool(2) as executor:
    print("in the order of the configurations:", sweep(abs, [-3, 2, -1], executor))

# %% [markdown]
# (A function that goes to another process must live in a module, not in a notebook; here it is Python's own `abs`. For real
# ones see `minilora/tools/reproduce.py`.)
#
# ## What would GPT-3 cost?
#
# The formulas of `minilora.budget`, checked against the tiny model's real arrays, applied to the paper's case (§4.2):

# %% exact
print(budget_text("gpt3-175b", r=4, time=2048).split("\n\nEvery")[0])

# %% exact
folder.cleanup()
shared = 350e9
print(f"one adapter: 18,874,368 numbers · 2 bytes = {18_874_368 * 2 / 1e6:.1f} MB (the paper: 35 MB)")
print(
    f"100 tasks: {(shared + 100 * 35e6) / 1e9:.1f} GB with LoRA, {100 * shared / 1e12:.0f} TB without (footnote 4: 354 GB, 35 TB)"
)

# %% [markdown]
# ## Exercise
#
# - Course exercise 15, "swap the backend": write a layer that runs on an array library which is not NumPy
#   ([course](course/README.md)).
# - Read `interop/fused.py` and say why a PEFT adapter on `c_attn` with a dense $B$ gives each of q, k and v a copy of $A$.
#
# That is all. Back to [the start](00_start_here.ipynb), or on to the [code](../README.md#read-these-eleven-files).
