# %% [markdown]
# # 5. Rank
#
# **How small may r be?** The paper's answer for GPT-3 is: one or two (§7.2, Table 6). We first look where the answer is
# known exactly, then at tasks that behave like the paper's, then at one that does not.
#
# *Needs: `pip install -e ".[notebook]"`; no network, no GPU. Takes: about 45 s from a warm cache, 100 s the first time
# (two bases are pretrained and kept).*

# %%
import matplotlib.pyplot as plt
import numpy as np
from committed import show

import minilora as ml
from minilora.analysis import spectrum, truncate
from minilora.claims.adaptation import adaptation
from minilora.claims.adaptation import run as adapt_and_examine
from minilora.claims.figures import BLUE, GRAY, ORANGE, RED, STYLE
from minilora.claims.planted import fit
from minilora.tasks import planted

plt.rcParams.update(STYLE)

# %% [markdown]
# ## Where the answer is known
#
# Plant a change $D$ of rank 4 with singular values 4, 3, 2, 1, and let LoRA learn $W_0 + D$ from $W_0$. With white inputs
# the loss is $\lVert \Delta W - D\rVert^2$. Eckart and Young (1936) say what rank $r$ can reach at best: what is left is the
# sum of the squares of the singular values after the $r$-th. So the floor is 30, 14, 5, 1, 0, 0, ...

# %% exact
D_MODEL, SPECTRUM = 32, (4.0, 3.0, 2.0, 1.0)
W0, D = planted(D_MODEL, SPECTRUM, np.random.default_rng(0))
ranks = (1, 2, 3, 4, 8)
learned = {}
for r in ranks:
    layer = fit(W0, np.eye(D_MODEL), (W0 + D).T, r, lambda p: ml.SGD(p, 0.02), steps=3000, seed=0)
    learned[r] = layer.delta_weight()
    floor = sum(v**2 for v in SPECTRUM[r:])
    error = ((learned[r] - D) ** 2).sum()
    best = ((truncate(D, r) - D) ** 2).sum()
    print(f"r = {r}: error {error:5.2f}, floor {floor:5.2f}, by truncating D's SVD {best:5.2f}")

# %% [markdown]
# LoRA does not merely come close: it lands on the floor, and finds the very directions that the SVD of $D$ would have
# given. Its singular values are those of $D$, cut off after the $r$-th:

# %%
figure, ax = plt.subplots(figsize=(8.5, 3.2))
for r, color in ((1, GRAY), (2, ORANGE), (4, BLUE), (8, RED)):
    ax.plot(range(1, 11), spectrum(learned[r])[:10], "o:" if r == 8 else "o-", color=color, label=f"r = {r}")
ax.set(xlabel="number of the singular value", ylabel="singular value of ΔW")
ax.set_title("Planted 4, 3, 2, 1: rank r finds the r largest, and rank 8 finds no more than four")
ax.legend()
plt.show()

# %% [markdown]
# ## String tasks: small r is enough
#
# The base knows *reverse* and *upper*, each alone. Learn `revupper`, both at once. This is the situation of the paper: the
# model can nearly do the task, and adapting combines what is there. Each run is 300 steps at a rate tuned for its rank.

# %%
string_ranks = (1, 2, 8, 64)
strings = {r: adapt_and_examine(adaptation("strings", 0, "revupper", f"lora q,v {r}")) for r in string_ranks}
full = adapt_and_examine(adaptation("strings", 0, "revupper", "full"))

# %%
d = 64
figure, ax = plt.subplots(figsize=(8.5, 3.4))
ax.plot(string_ranks, [100 * strings[r]["accuracy"] for r in string_ranks], "o-", color=BLUE, label="LoRA on q, v")
ax.axhline(100 * full["accuracy"], color=GRAY, linestyle="--", label="full fine-tuning")
ax.axvline(d / 2, color=RED, linestyle=":", label="r(d + k) = dk: no fewer parameters than the matrix")
ax.set(xscale="log", xlabel="rank r", ylabel="answered exactly (%)", ylim=(0, 104))
ax.set_xticks(string_ranks, [str(r) for r in string_ranks])
ax.minorticks_off()
top = ax.secondary_xaxis("top")
top.set_xticks(string_ranks, [f"{r / d:.1%}" for r in string_ranks])
top.minorticks_off()
top.set_xlabel("r/d")
ax.legend(loc="center left")
plt.show()

# %% measured 25%
print("   ".join(f"r = {r}: {100 * strings[r]['accuracy']:.0f} %" for r in string_ranks))
print(f"full: {100 * full['accuracy']:.0f} %")

# %% [markdown]
# ## Where r stops being low
#
# "Low rank" is low *relative to the matrix*. $BA$ holds $r(d + k)$ numbers and $W$ holds $dk$. At $r = d/2$ (for a square
# one) LoRA stores as many as the matrix itself, and at $r = d$ twice as many, although ΔW can then be anything. GPT-3 at
# $r = 8$ is at 0.07 % of $d = 12{,}288$; our $r = 8$ is at 12.5 % of 64. A tiny model cannot test "very small r/d": with
# $d = 64$ even $r = 1$ is 1.6 %.

# %% exact
for name, d, r in (("GPT-3", 12288, 8), ("GPT-2", 768, 4), ("ours", 64, 1), ("ours", 64, 8), ("ours", 64, 32)):
    share = r * 2 * d / d**2
    print(f"{name:<6} d = {d:>6,}, r = {r:>2}: r/d = {r / d:7.3%}, LoRA holds {share:7.2%} of the matrix's numbers")

# %% [markdown]
# ## Where real text says no
#
# Now the other kind of task: a base that read English is to read Python. That is not a recombination of what it knows; it
# has new words, new rules. The paper's footnote 6 expects this: "we do not expect a small r to work for every task".

# %%
text_ranks = (1, 8, 64)
text = {r: adapt_and_examine(adaptation("text", 0, "code", f"lora q,v {r}")) for r in text_ranks}
text_full = adapt_and_examine(adaptation("text", 0, "code", "full"))

# %% measured 30%
before, best = text_full["before"], text_full["bits"]
closed = {r: (before - text[r]["bits"]) / (before - best) for r in text_ranks}
print(f"bits a character of Python: before {before:.1f}, after full fine-tuning {best:.1f}")
print("share of that gap which LoRA closes:", "   ".join(f"r = {r}: {100 * c:.0f} %" for r, c in closed.items()))

# %%
figure, ax = plt.subplots(figsize=(8.5, 3))
ax.plot(text_ranks, [100 * closed[r] for r in text_ranks], "o-", color=BLUE, label="LoRA on q, v")
ax.axhline(100, color=GRAY, linestyle="--", label="full fine-tuning")
ax.set(xscale="log", xlabel="rank r", ylabel="gap closed (%)", ylim=(0, 105))
ax.set_xticks(text_ranks, [str(r) for r in text_ranks])
ax.minorticks_off()
ax.set_title("English to Python: more rank still helps")
ax.legend(loc="lower right")
plt.show()

# %% [markdown]
# The full measurement, three bases, with its rule fixed before the run:

# %% exact
show("rank")

# %% [markdown]
# **Asked often: "which rank should I take?"** Table 6 says that for GPT-3 and its tasks $r$ hardly matters from 1 on; ours
# says the same for tasks that recombine what the base knows, and the opposite for a new domain. So: start at 4 or 8; if
# doubling $r$ still helps you are in the second case, and adapting *more matrices* is usually worth more than more rank in
# the same ones (notebook 6). A different rank for each layer (PEFT's `rank_pattern`) is not offered here.
#
# ## Exercise
#
# - Course exercise 11, "find the planted rank", and 12, "the best matrix of rank k" ([course](course/README.md)).
# - Plant `(4, 3, 2, 1)` again and let $r = 2$ learn it from only 20 white examples instead of all. What is the error then?
#
# Next: [6. Which matrices](06_which_matrices.ipynb)
