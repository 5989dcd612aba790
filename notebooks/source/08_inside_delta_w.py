# %% [markdown]
# # 8. Inside ΔW
#
# **What did adapting change? Is it really low-rank, is it the same from run to run, and how is it related to W₀?** The
# premise of LoRA and the three measurements of the paper's §7, each first where the answer is known.
#
# *Needs: `pip install -e ".[notebook]"`; no network, no GPU. Takes: about 40 s.*

# %%
import matplotlib.pyplot as plt
import numpy as np
from committed import numbers, show
from progress import show_progress

from minilora.analysis import (
    amplification,
    input_directions,
    output_directions,
    projected_norm,
    random_similarity,
    spectrum,
    subspace_similarity,
    truncate,
)
from minilora.bases import load_base
from minilora.claims.adaptation import adaptation, held_out, learn
from minilora.claims.adaptation import run as adapt_and_examine
from minilora.claims.bases import SHIPPED
from minilora.claims.figures import BLUE, GRAY, GREEN, ORANGE, STYLE
from minilora.lora import lora_layers
from minilora.nn import Linear
from minilora.training import evaluate_exact_match

plt.rcParams.update(STYLE)
show_progress()
TASK = "revupper"

# %% [markdown]
# ## The premise: a low intrinsic dimension
#
# Li et al. (2018) and Aghajanyan et al. (2020), whom the paper starts from (§1), trained *every* parameter, but only within
# a random subspace: $\theta = \theta_0 + Pz$ with $P$ random and fixed, $z$ of $n$ numbers. If a small $n$ suffices, the
# change that a task needs is simple, whatever basis it is written in.

# %%
dimensions = (256, 1024, 4096)
subspace = {n: adapt_and_examine(adaptation("strings", SHIPPED, TASK, f"subspace {n}")) for n in dimensions}
lora = {r: adapt_and_examine(adaptation("strings", SHIPPED, TASK, f"lora q,v {r}")) for r in (1, 4, 16)}
full = adapt_and_examine(adaptation("strings", SHIPPED, TASK, "full"))
figure, ax = plt.subplots(figsize=(8.5, 3.3))
for runs, color, name in ((subspace.values(), ORANGE, "a random subspace"), (lora.values(), BLUE, "LoRA on q, v")):
    points = [(r["trainable"], 100 * r["accuracy"] / full["accuracy"]) for r in runs]
    ax.plot(*zip(*points, strict=True), "o-", color=color, label=name)
ax.axhline(90, color=GRAY, linestyle=":", label="90 % of full fine-tuning")
ax.set(xscale="log", xlabel="numbers that train", ylabel="of full fine-tuning (%)", ylim=(-4, 106))
ax.set_title(f"Full fine-tuning moves {full['trainable']:,} numbers; a few thousand are enough")
ax.legend(loc="lower right")
plt.show()

# %% exact
show("intrinsic_dimension", "verdict")
numbers("intrinsic_dimension", "lead of LoRA")

# %% [markdown]
# The report sets three ways beside each other: random directions, a random *subset* of the weights (the others stay as they
# are), and LoRA with 2,048 numbers, where the first two, run with 1,024 and 4,096, are read off a straight line between, which
# makes them look worse than they are. On strings a few weights are far worse than a few directions: that "only some of the
# weights are used" is not what a low intrinsic dimension means. On text all three are alike, and all fall short. What LoRA
# on q, v buys over random directions in all weights is little in quality, on text with more numbers less than nothing, and much
# in cost: $P$ has as many rows as the model has weights.
#
# ## The hypothesis: a low intrinsic rank
#
# §1 goes one step further: "we hypothesize that the change in weights during model adaptation also has a low 'intrinsic rank'".
# So take what *full* fine-tuning changed, cut each $\Delta W$ to its $k$ largest singular values, and ask the model again.

# %%
base = load_base("strings")
tuned, _ = learn(adaptation("strings", SHIPPED, TASK, "full"))
starts = {n: m.weight.numpy() for n, m in base.named_modules() if isinstance(m, Linear) and n.startswith("blocks")}
modules = dict(tuned.named_modules())
changes = {n: modules[n].weight.numpy() - start for n, start in starts.items()}
batches, cuts, kept = held_out("strings", TASK), (0, 1, 2, 4, 8, 16, 64), {}
for k in cuts:
    for name, start in starts.items():
        modules[name].weight.data[...] = start + truncate(changes[name], k)
    kept[k] = evaluate_exact_match(tuned, batches)

figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.3), layout="constrained")
left.plot(range(len(cuts)), [100 * kept[k] for k in cuts], "o-", color=BLUE)
left.set_xticks(range(len(cuts)), [str(k) for k in cuts])
left.set(xlabel="rank k of every ΔW", ylabel="answered exactly (%)", ylim=(-4, 104))
left.set_title("Full fine-tuning, cut to rank k")
for name, color in (("q_proj", BLUE), ("v_proj", ORANGE), ("fc_in", GREEN)):
    s = spectrum(changes[f"blocks.1.{'mlp' if name == 'fc_in' else 'attn'}.{name}"])
    right.plot(range(1, len(s) + 1), s / s[0], color=color, label=name)
right.set(xlabel="number of the singular value", ylabel="singular value, of the largest", xscale="log")
right.set_title("Spectra of ΔW in the last block")
right.legend()
plt.show()

# %% exact
show("intrinsic_rank", "key", "verdict")

# %% [markdown]
# The spectra have long tails: ΔW is *not* a matrix of low rank, though steeper than a Gaussian matrix, of whose squared norm a
# third lies in the first 8 values. Most of what it does for a string task is in the first directions, if not quite all of it:
# rank 8 loses more than the 0.02 bits that the rule allows, though not so surely that the rule says no. On text the tail matters.
#
# ## Do two runs find the same directions?
#
# Figure 3 of the paper compares $r = 8$ with $r = 64$ by
# $\varphi(i, j) = \lVert U_i^\top V_j\rVert_F^2/\min(i, j)$: how much of the first $i$ directions of one lies in the first
# $j$ of the other, from 0 (orthogonal) to 1 (contained). Two traps:
#
# - **A floor.** Two random subspaces of $\mathbb R^d$ share $\max(i, j)/d$ on average. With $d = 64$ that is not nothing.
# - **A gauge.** $BA = (BM^{-1})(MA)$: the directions of $A$ alone depend on how ΔW happens to be split. Those of ΔW do not.
#   (§7.2 speaks of the right-singular vectors of $A$, appendix G of left ones, and prints $\frac1p(1-d^2)$ where its own
#   definition gives $1 - d^2/p$.)

# %% exact
rng = np.random.default_rng(0)
u, v = (np.linalg.qr(rng.normal(size=(64, 8)))[0] for _ in range(2))
print(
    f"φ of a span with itself: {subspace_similarity(u, u)[7, 7]:.3f}; φ is never above 1: {subspace_similarity(u, v).max() <= 1}"
)
many = [subspace_similarity(*(np.linalg.qr(rng.normal(size=(64, 8)))[0] for _ in range(2)))[3, 7] for _ in range(400)]
print(f"random, φ(4, 8): {np.mean(many):.2f} on average, max(4, 8)/64 = {random_similarity(8, 8, 64)[3, 7]:.3f}")

A, B, M = rng.normal(size=(4, 64)), rng.normal(size=(64, 4)), rng.normal(size=(4, 4))
same = subspace_similarity(input_directions(B @ A, 4), input_directions((B @ np.linalg.inv(M)) @ (M @ A), 4))
split = subspace_similarity(input_directions(A, 4), input_directions(M @ A, 4))
print(f"the same ΔW split in two ways: φ(1, 1) of ΔW {same[0, 0]:.2f}, of A alone {split[0, 0]:.2f}")

# %%
pair = {r: learn(adaptation("strings", SHIPPED, TASK, f"lora q,v {r}", init_std=0.01))[0] for r in (8, 32)}
layer = "blocks.1.attn.v_proj"
small, large = (input_directions(lora_layers(pair[r])[layer].delta_weight(), r) for r in (8, 32))
figure, axes = plt.subplots(1, 2, figsize=(9.5, 2.9), layout="constrained", sharey=True)
for ax, phi, title in zip(
    axes,
    (subspace_similarity(small, large), random_similarity(8, 32, 64)),
    ("ΔW of v, last block: r = 8 against r = 32", "two random subspaces: max(i, j)/d"),
    strict=True,
):
    shown = ax.imshow(phi, cmap="magma", vmin=0, vmax=1, aspect="auto", extent=(0.5, 32.5, 8.5, 0.5))
    ax.set(xlabel="j")
    ax.set_title(title)
    ax.grid(visible=False)
axes[0].set_ylabel("i")
figure.colorbar(shown, label="φ(i, j)")
plt.show()

# %% exact
show("subspaces", "measured", "verdict")

# %% [markdown]
# Where the answer is planted, φ is 1 for the true directions. In the transformer the top direction is shared thirty times
# above the random floor, on strings as far as two starts $A_0$ of one rank share it: more cannot be asked of two ranks. The
# paper's second half, "while others do not" (§7.2), is another matter: on text half of what could be shared of the directions
# 5 to 8 is shared as well.
#
# ## Amplification
#
# Table 7 projects $W$ onto the directions of ΔW: $\lVert U^\top W V\rVert_F$ with $U, V$ ΔW's top singular vectors. The paper
# finds 0.32, far below $W$'s own top directions (21.67), and calls $\lVert\Delta W\rVert/0.32 = 21.5$ the amplification
# factor: "ΔW only amplifies directions that are not emphasized in W". A third trap: *random* directions have a small projection as
# well, so they would have a large "factor". What tells is the ratio to random.

# %%
adapted = {r: learn(adaptation("strings", SHIPPED, TASK, f"lora q,v {r}"))[0] for r in (4, 32)}
rows = {
    r: amplification(m.weight.data, m.delta_weight(), r, np.random.default_rng(0))
    for r, model in adapted.items()
    for m in [lora_layers(model)[layer]]
}
figure, ax = plt.subplots(figsize=(8.5, 3))
for x, r in enumerate(rows):
    for number, (kind, color, name) in enumerate(
        (("random", GRAY, "random"), ("change", BLUE, "ΔW's"), ("own", ORANGE, "W's own"))
    ):
        ax.bar(x + 0.25 * (number - 1), rows[r][kind], 0.22, color=color, label=name if x == 0 else None)
ax.set_xticks(range(len(rows)), [f"r = {r}: factor {row['factor']:.1f}" for r, row in rows.items()])
ax.set(ylabel="‖UᵀWV‖")
ax.set_title("W₀ seen through three kinds of directions (v, last block)")
ax.legend(title="directions")
ax.grid(axis="x", visible=False)
plt.show()

# %% exact
W, delta = (
    np.asarray(a, "float64")
    for a in (lora_layers(adapted[4])[layer].weight.data, lora_layers(adapted[4])[layer].delta_weight())
)
by_hand = projected_norm(W, output_directions(delta, 4), input_directions(delta, 4))
U, S, Vh = np.linalg.svd(delta)
print("‖UᵀWV‖ by its definition:", np.isclose(by_hand, np.linalg.norm(U[:, :4].T @ W @ Vh[:4].T)))
show("amplification", "paper", "measured", "verdict")

# %% [markdown]
# ΔW's directions are not those that $W$ emphasizes; but neither are random ones, so that alone says nothing. The rule asks for
# one and a half times what random directions give. On strings $W$ has nearly twice as much along ΔW's directions; on text
# hardly more than along random ones. And the factor, 21.5 in the paper, grows with the learning rate, since it has ‖ΔW‖ in it.
#
# ## Exercise
#
# - Course exercise 13, "similar subspaces" ([course](course/README.md)).
# - Compute the amplification factor of a *random* ΔW of rank 4 with the same norm as the learned one. Is 21.5 a large number?
#
# Next: [9. One base, many tasks](09_one_base_many_tasks.ipynb)
