# %% [markdown]
# # 9. One base, many tasks
#
# **A model that learned a task: what is kept of it, what is lost, and what does the next task cost?** Switching adapters,
# several at once, forgetting, and little data.
#
# *Needs: `pip install -e ".[notebook]"`; no network, no GPU. Takes: about 30 s.*

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from committed import numbers, show
from progress import show_progress

import minilora as ml
from minilora.bases import held_out_strings, load_base, string_sampler
from minilora.claims import forgetting
from minilora.claims.adaptation import adaptation
from minilora.claims.adaptation import run as adapt_and_examine
from minilora.claims.bases import SHIPPED, adapt
from minilora.claims.figures import BLUE, GRAY, ORANGE, STYLE
from minilora.data import PRINTABLE
from minilora.lora import lora_layers
from minilora.training import evaluate_exact_match

plt.rcParams.update(STYLE)
show_progress()
folder = tempfile.TemporaryDirectory()
here = Path(folder.name)

# %% [markdown]
# ## Two adapters, one base
#
# The paper's picture of serving (§4.2): the base stays in memory, and what is swapped is small.

# %%
model = load_base("strings")
weights = model.state_dict()
tasks = ("revupper", "prev")
for task in tasks:
    trainable = ml.add_lora(model, ml.LoRAConfig(r=4, alpha=8), seed=0)
    adapt(model, ml.Adam(trainable, 0.032), string_sampler((task,), 32), 300, 0, ml.linear_schedule(300))
    ml.save_adapter(model, here / task)
    ml.remove_lora(model)

# %% measured 25%
model = load_base("strings")
for adapter in tasks:
    ml.load_adapter(model, here / adapter)  # wraps the base, then replaces the adapter in place
    scores = {task: evaluate_exact_match(model, held_out_strings(task)) for task in (*tasks, "reverse")}
    print(f"with the adapter {adapter:<9}", "  ".join(f"{task} {100 * s:3.0f} %" for task, s in scores.items()))
with ml.lora_disabled(model):
    print(
        f"adapter off:                reverse {100 * evaluate_exact_match(model, held_out_strings('reverse')):3.0f} %"
    )

# %% exact
ml.remove_lora(model)
print("the base, bit for bit:", all(np.array_equal(a, weights[n]) for n, a in model.state_dict().items()))
files = sorted((here / tasks[0]).iterdir())
print("an adapter:", ", ".join(f.name for f in files))

# %% [markdown]
# **Asked often: "how do I save only the adapter?"** `ml.save_adapter` writes these two files and nothing of the base: 2,048
# numbers are 8 kB, and what is around them less than 4 kB.

# %% exact
size = sum(f.stat().st_size for f in files)
print(f"2,048 parameters · 4 bytes = {2048 * 4:,} bytes; the files take less than 4,096 more: {size < 2048 * 4 + 4096}")
show("task_switching", "paper", "measured", "verdict")

# %% [markdown]
# ## Two adapters at once
#
# **Asked often: "I merged two adapters, and it is something else than their sum".** Averaging the $A$s and the $B$s is not
# averaging $\Delta W$: $(B_1 + B_2)(A_1 + A_2)$ has cross terms. The exact sum $w_1\Delta W_1 + w_2\Delta W_2$ has a simple
# form, of rank $r_1 + r_2$: stack $A$s, and put the scaled $B$s side by side.

# %% exact
layers = {}
for task in tasks:
    ml.load_adapter(model, here / task)
    layer = lora_layers(model)["blocks.0.attn.v_proj"]
    layers[task] = (layer.lora_A.numpy(), layer.lora_B.numpy(), layer.scaling, layer.delta_weight().copy())
    ml.remove_lora(model)
(A1, B1, s1, D1), (A2, B2, s2, D2) = layers.values()
w1, w2 = 0.7, 0.3
exact = np.concatenate([w1 * s1 * B1, w2 * s2 * B2], axis=1) @ np.concatenate([A1, A2])  # (out, 2r) @ (2r, in)
naive = (w1 * B1 + w2 * B2) @ (w1 * A1 + w2 * A2) * s1
print("[w₁s₁B₁, w₂s₂B₂] [A₁; A₂] = w₁ΔW₁ + w₂ΔW₂:", np.allclose(exact, w1 * D1 + w2 * D2, atol=1e-5))
print("the product of averages:              ", np.allclose(naive, w1 * D1 + w2 * D2, atol=1e-5))

# %% [markdown]
# Whether a *sum* of two tasks' changes is a useful model is another question, which the paper does not claim.
#
# ## Many adapters in one batch
#
# **Asked often: "can one batch serve many adapters?"** Merged, no: the paper names it as a limitation (§4.2). Unmerged, yes:
# each example gathers its own $A$ and $B$, and the frozen product is shared.

# %% exact
rng = np.random.default_rng(0)
X = rng.normal(size=(5, 64)).astype("float32")  # five examples
which = np.array([0, 1, 1, 0, 1])  # and the adapter of each
W0 = weights["blocks.0.attn.v_proj.weight"]
As, Bs = np.stack([A1, A2]), np.stack([s1 * B1, s2 * B2])
z = np.einsum("nri,ni->nr", As[which], X)  # (N, r, in), (N, in) -> (N, r)
H = X @ W0.T + np.einsum("nor,nr->no", Bs[which], z)  # (N, out, r), (N, r) -> (N, out)
one_by_one = np.stack([x @ (W0 + (D1, D2)[i]).T for x, i in zip(X, which, strict=True)])
print("gathered, equal to one example at a time:", np.allclose(H, one_by_one, atol=1e-4))

# %% [markdown]
# ## Forgetting
#
# Adapt a base that reads English to Python code: what happens to its English? "LoRA learns less and forgets less", it is
# said (Biderman et al. 2024). To compare forgetting one has to compare it at equal *learning*, and a trained change has a
# knob for that: use $W_0 + \lambda\,\Delta W$. It costs no training, and it works for full fine-tuning as well, whose ΔW is
# the difference of all weights. What do you expect at λ = ½: half of the learning, half of the forgetting?

# %%
methods = {"full fine-tuning": "full", "LoRA on q, v, r = 4": "lora q,v 4"}
ends = {
    name: np.array(forgetting.run({**adaptation("text", SHIPPED, "code", method), "doublings": 0})["points"])
    for name, method in methods.items()
}  # of each λ: bits of code learned, bits of English forgotten
figure, ax = plt.subplots(figsize=(8.5, 3.5))
for (name, points), color in zip(ends.items(), (GRAY, BLUE), strict=True):
    ax.plot(*points.T, "o-", color=color, label=name)
ax.set(xlabel="code learned (bits a character)", ylabel="English forgotten (bits)")
ax.set_title("λ from 0 to 1: for the same code, full fine-tuning forgets less")
ax.legend()
plt.show()

# %% measured 30%
for name, points in ends.items():
    half = forgetting.VOLUMES.index(0.5)
    learned, forgotten = 100 * points[half] / points[-1]
    print(f"{name:<20} λ = ½ keeps {learned:.0f} % of the learning and {forgotten:.0f} % of the forgetting")

# %% exact
numbers("forgetting", "most code", "English")

# %% [markdown]
# So here this LoRA, on q and v with r = 4, at its end has forgotten less because it has learned less; at equal learning it has
# forgotten *more*. With the adapter off the base answers exactly as before, and the volume knob is free.
#
# ## Little data
#
# Appendix F.3 (Table 16): with 100 examples of MNLI, LoRA reaches 63.8 where full fine-tuning has 60.2. In a planted problem
# this can be computed: the error of least squares grows with the number of free directions, $d^2$ for a full matrix and about
# $2dr$ for one of rank $r$.

# %%
examples = (16, 64, 256)
few = {
    method: [
        adapt_and_examine(adaptation("strings", SHIPPED, "revupper", method, examples=n))["accuracy"] for n in examples
    ]
    for method in ("full", "lora q,v 4")
}
figure, ax = plt.subplots(figsize=(8.5, 3))
for (method, values), color in zip(few.items(), (GRAY, ORANGE), strict=True):
    ax.plot(examples, [100 * v for v in values], "o-", color=color, label=method)
ax.set(xscale="log", xlabel="examples", ylabel="answered exactly (%)", ylim=(-4, 104))
ax.set_xticks(examples, [str(n) for n in examples])
ax.minorticks_off()
ax.set_title("Strings, one base, each method at the rate tuned for so many examples")
ax.legend()
plt.show()

# %% exact
show("low_data")

# %% [markdown]
# Planted, LoRA of the right rank errs eight times less than full fine-tuning, even if that is stopped at the best moment. On
# strings full fine-tuning is ahead at 16, 64 and 1,024 examples, and at 256 within noise, each method at a rate tuned for that
# number. That is not about little data alone: after these few steps LoRA on q, v is behind with endless examples too.
#
# ## Let it speak

# %% illustration
ml.load_adapter(model, here / "revupper")
for prompt in ("8abcd>", "8hello>"):
    print(repr(ml.generate_text(model, PRINTABLE, prompt, 6, temperature=0)))
folder.cleanup()

# %% [markdown]
# ## Exercise
#
# - Course exercise 14, "many adapters in one batch" ([course](course/README.md)).
# - Load `revupper`, merge, load `prev` into the merged model. What does minilora say, and why is that the right answer?
#
# Next: [10. To the GPU and beyond](10_to_the_gpu_and_beyond.ipynb)
