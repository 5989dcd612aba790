# %% [markdown]
# # 5. Rank
#
# **How small may r be?** The paper's Table 6 says: one or two will do for GPT-3 (§7.2). We first go where the answer is
# known exactly, then to tasks like the paper's, then to one where the answer is no.
#
# *Needs: `pip install -e ".[notebook]"`; no network, no GPU. Takes: about 45 s.*

# %%
import matplotlib.pyplot as plt
import numpy as np
from committed import numbers, show
from progress import show_progress

import minilora as ml
from minilora.analysis import spectrum, truncate
from minilora.bases import load_base
from minilora.claims.adaptation import adaptation, held_out, learn, rate, run
from minilora.claims.bases import SHIPPED
from minilora.claims.figures import BLUE, GRAY, GREEN, ORANGE, RED, STYLE
from minilora.claims.planted import fit, planted
from minilora.lora import lora_layers
from minilora.training import evaluate_exact_match

plt.rcParams.update(STYLE)
show_progress()

# %% [markdown]
# ## A change whose rank we know
#
# Plant a change $D$ of rank 4 with the singular values 4, 3, 2, 1, and let LoRA learn $W_0 + D$ from $W_0$, with
# inputs in all directions alike. The loss is then $\lVert\Delta W - D\rVert^2$, and Eckart and Young (1936) say how
# small a matrix of rank $r$ can make it: what remains is the sum of the squares of the singular values after the
# $r$-th. The best matrix is $D$ with its SVD cut off there, which is `truncate(D, r)`.
#
# LoRA knows nothing of an SVD. It takes 3,000 gradient steps on $A$ and $B$. Does it find that matrix?

# %% exact
d = 32
W0, D = planted(d, (4, 3, 2, 1), np.random.default_rng(0))


def learned(D, r):
    """ΔW after gradient descent on A and B, on all d unit vectors as inputs."""
    return fit(W0, np.eye(d), (W0 + D).T, r, lambda p: ml.SGD(p, 0.02), steps=3000, seed=0).delta_weight()


deltas = {r: learned(D, r) for r in (1, 2, 3, 4, 8, 32)}
for r, delta in deltas.items():
    floor = ((truncate(D, r) - D) ** 2).sum()
    same = np.allclose(delta, truncate(D, r), atol=1e-8)
    error = ((delta - D) ** 2).sum()
    print(f"r = {r:>2}: ‖ΔW − D‖² = {error:5.2f}, least possible {floor:5.2f}; ΔW is the cut SVD: {same}")

# %% [markdown]
# Yes, at every $r$. From $r$ = 4 on the change is found completely, and more rank finds nothing more: even at $r = d$,
# $\Delta W$ has rank 4. So on such a problem the curve has a knee, and the knee is the answer.
#
# Why does gradient descent get there, where a loss of two factors is not convex? With all unit vectors as inputs the loss
# is $\lVert BA - D\rVert^2$ itself, and its only minima are the cut SVD: wherever else the gradient vanishes there is a way
# down, which a random start finds. Inputs of covariance $\Sigma$ would weigh the directions: the loss is then
# $\lVert(\Delta W - D)\Sigma^{1/2}\rVert^2$, and what is found is the SVD of $D\Sigma^{1/2}$, cut, times $\Sigma^{-1/2}$.
#
# Not every change has a knee. Let the singular values of a second $D$ fall slowly, as $4/k$.

# %%
_, slow = planted(d, 4 / np.arange(1, d + 1), np.random.default_rng(0))
ranks = (1, 2, 3, 4, 6, 8, 16, 32)
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for ax, (change, name) in zip(axes, ((D, "4, 3, 2, 1: a knee at 4"), (slow, "4/k: no knee anywhere")), strict=True):
    start = (change**2).sum()
    left = [((learned(change, r) - change) ** 2).sum() / start for r in ranks]
    least = [((truncate(change, r) - change) ** 2).sum() / start for r in ranks]
    ax.plot(ranks, np.multiply(100, left), "o-", color=BLUE, label="LoRA")
    ax.plot(ranks, np.multiply(100, least), "x", color=ORANGE, markersize=9, label="least possible")
    ax.set(xscale="log", ylim=(-3, 70), xlabel="rank r", title=f"Singular values {name}")
    ax.set_xticks(ranks, [str(r) for r in ranks])
    ax.minorticks_off()
axes[0].set_ylabel("part of the change not found (%)")
axes[0].legend()
plt.show()

# %% [markdown]
# Whether a small $r$ is enough is therefore a question about the *task*: is what must change in $W$ of low rank? The
# paper's hypothesis is that it is (§4.1, "intrinsic rank"), and Table 6 is its test.
#
# ## Tasks like the paper's
#
# A base knows seven functions of short strings, among them *reverse* and *upper*. It learns an eighth, `revupper`:
# first one, then the other. The model nearly has it; adapting combines what is there. That is the paper's situation.
# Each run takes 300 steps with α = 2$r$, and its learning rate was tuned for its rank on a base that is not used here.

# %%
RANKS = (1, 2, 4, 8, 16, 64)
answered = {r: 100 * run(adaptation("strings", SHIPPED, "revupper", f"lora q,v {r}"))["accuracy"] for r in RANKS}
full = 100 * run(adaptation("strings", SHIPPED, "revupper", "full"))["accuracy"]

# %%
paper = {1: 73.4, 2: 73.3, 4: 73.7, 8: 73.8, 64: 73.5}  # Table 6, WikiSQL with q and v, ±0.5
figure, ax = plt.subplots(figsize=(9, 3.6), layout="constrained")
ax.plot(RANKS, list(answered.values()), "o-", color=BLUE, label="LoRA on q and v, one base")
ax.plot(paper.keys(), paper.values(), "x", color=GREEN, label="paper: GPT-3, WikiSQL")
ax.axhline(full, color=GRAY, linestyle="--", label="full fine-tuning")
ax.axvline(32, color=RED, linestyle=":", label="r = d/2: as many numbers as W₀")
ax.set(xscale="log", xlabel="rank r", ylabel="answered exactly (%)", ylim=(0, 106))
ax.set_xticks(RANKS, [str(r) for r in RANKS])
ax.minorticks_off()
top = ax.secondary_xaxis("top")
top.set_xticks(RANKS, [f"{r / 64:.1%}" for r in RANKS])
top.minorticks_off()
top.set_xlabel("r/d")
ax.set_title("Strings: the curve is flat from a small r on, as in the paper's table")
ax.legend(loc="lower left")
plt.show()

# %% measured 55%
print(f"{'r':>4} {'parameters':>11} {'answered':>9}   lr")
for r in RANKS:
    print(f"{r:>4} {4 * 2 * 64 * r:>11,} {answered[r]:>8.0f}%   {rate('strings', f'lora q,v {r}')}")
print(f"full {load_base('strings').num_parameters():>11,} {full:>8.0f}%   {rate('strings', 'full')}")

# %% [markdown]
# On this base even $r$ = 1 comes far. Bases differ. Of what full fine-tuning answers, over the eight bases of the report:

# %% exact
numbers("rank", "answers, of full fine-tuning's, r")

# %% [markdown]
# ## Where r stops being low
#
# "Low" is relative to the matrix. $BA$ holds $2dr$ numbers where $W$ holds $d^2$. At $r = d/2$ nothing is saved, and at
# $r = d$ the matrix is held twice, although $\Delta W$ can be anything then (§4.1 calls that the expressiveness of full
# fine-tuning). More is refused:

# %% exact
for name, size, r in (("GPT-3", 12288, 1), ("GPT-3", 12288, 64), ("ours", 64, 1), ("ours", 64, 8), ("ours", 64, 32)):
    share = 2 * size * r / size**2
    print(
        f"{name:<6} d = {size:>6,}, r = {r:>2}: r/d = {r / size:7.3%}, LoRA holds {share:7.3%} of the matrix's numbers"
    )
try:
    ml.add_lora(load_base("strings"), ml.LoRAConfig(r=65))
except ValueError as error:
    print(error)

# %% [markdown]
# Our $r$ = 1 is, for its matrix, larger than GPT-3's $r$ = 64. A tiny model cannot test *very* small $r/d$; it can test
# small $r$.
#
# ## Is the rank that training needs the rank that ΔW has?
#
# Tempting recipe: train once with a large $r$, look at the spectrum of $\Delta W$, keep what is large. On the planted
# problem that is exact. Here we train $r$ = 16, cut every $\Delta W$ to rank $k$, add it to the base, and compare with
# training at $r = k$. What do you expect at $k$ = 1?

# %%
model, _ = learn(adaptation("strings", SHIPPED, "revupper", "lora q,v 16"))
changes = {name: layer.delta_weight() for name, layer in lora_layers(model).items()}


def answered_when_cut(k):
    base = load_base("strings")
    modules = dict(base.named_modules())
    for name, delta in changes.items():
        modules[name].weight.data += truncate(delta, k)  # (D, D) + (D, D)
    return 100 * evaluate_exact_match(base, held_out("strings", "revupper"))


cut = {k: answered_when_cut(k) for k in (0, 1, 2, 4, 8, 16)}

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for (name, delta), color in zip(changes.items(), (BLUE, ORANGE, GREEN, RED), strict=True):
    shown = name.replace("blocks.", "block ").replace(".attn.", ", ").replace("_proj", "")
    left.plot(range(1, 21), spectrum(delta)[:20], ".-", color=color, label=shown)
left.set(xlabel="number of the singular value", ylabel="singular value of ΔW", ylim=(0, None))
left.set_xticks(range(1, 21, 3))
left.set_title("Trained at r = 16: all 16 are in use")
left.legend()
right.plot(list(cut), list(cut.values()), "o-", color=RED, label="trained at r = 16, cut to k")
right.plot(RANKS[:5], [answered[r] for r in RANKS[:5]], "o-", color=BLUE, label="trained at r = k")
right.set(xlabel="k", ylabel="answered exactly (%)", ylim=(0, 106))
right.set_title("Trained with k directions, k are enough")
right.legend(loc="lower right")
plt.show()

# %% exact
print("one direction, trained, answers more than twice as much as the best one of sixteen:", answered[1] > 2 * cut[1])
print("eight of the sixteen keep almost all of it:", cut[8] > 0.9 * cut[16])

# %% [markdown]
# Given sixteen directions, training uses sixteen; given one, it finds a solution that needs one. So the spectrum of one
# run is an upper bound for the rank a task needs, not the answer. Notebook 8 looks at such spectra, also of full
# fine-tuning.
#
# ## Where real text says no
#
# Now a task of another kind. A base that has read English is to go on in Python source. That is no combination of what
# it knows: words, layout and rules are new. The paper expects this case: its footnote 6 does not claim a small $r$ for
# every task, and names one in another language than the pretraining's. 400 steps each:

# %%
methods = ("lora q,v 1", "lora q,v 4", "lora q,v 64", "lora all 1", "full")
text = {method: run(adaptation("text", SHIPPED, "code", method)) for method in methods}
before, least = text["full"]["before"], text["full"]["bits"]
closed = {method: 100 * (before - text[method]["bits"]) / (before - least) for method in methods}

# %%
figure, ax = plt.subplots(figsize=(9, 3.3), layout="constrained")
ax.plot((1, 4, 64), [closed[m] for m in methods[:3]], "o-", color=BLUE, label="LoRA on q and v")
ax.plot([1], [closed["lora all 1"]], "s", color=ORANGE, markersize=8, label="LoRA on every Linear, r = 1")
ax.axhline(100, color=GRAY, linestyle="--", label="full fine-tuning")
ax.set(xscale="log", xlabel="rank r", ylabel="share of the gain (%)", ylim=(0, 108))
ax.set_xticks((1, 4, 8, 16, 64), ("1", "4", "8", "16", "64"))
ax.minorticks_off()
ax.set_title("English to Python: more rank still helps, and more matrices help more")
ax.legend(loc="lower right")
plt.show()

# %% measured 25%
print(f"bits a character of Python: {before:.1f} before, {least:.1f} after full fine-tuning; of this gain reach")
for method in methods[:-1]:
    print(f"  {method:<12} {text[method]['trainable']:>7,} parameters  {closed[method]:.0f} %")

# %% [markdown]
# So on this task a small $r$ stays behind a large one, and q and v behind full fine-tuning at any $r$. Or does a small $r$
# only need more time? The report trained each longer, at a rate tuned for that length:

# %% exact
numbers("rank", "loss after")

# %% [markdown]
# On strings time brings every rank closer to the answer, a large one soonest; $r$ = 1 needs more than 3,000 steps, or
# never gets there. On text the ranks move *apart* with time. By rules that were written down before the run:

# %% exact
show("rank", "paper", "measured", "verdict")

# %% [markdown]
# **Asked often: "which rank should I take?"** First ask which kind of task it is. If the base can nearly do it, $r$ = 4
# or 8 is enough, as in Table 6. (In the paper's Table 18, GPT-2 on E2E, BLEU is best at $r$ = 4, where everything else
# was tuned, and within two points of that up to $r$ = 1,024.) If it is a new domain, no $r$ is safe: double it, and if
# the loss still falls, adapt more matrices before you add more rank to the same ones. α/r makes that cheap, since α and
# the learning rate can stay (notebook 4). A rank of its own for each layer (PEFT's `rank_pattern`) is not offered here.
#
# ## Exercise
#
# - Course exercise 11, "find the planted rank": from inputs and noisy answers ([course](course/README.md)).
# - Course exercise 12, "the best matrix of rank k": write `truncate` yourself.
# - Give $r$ = 1 on `revupper` 1,000 steps (`adaptation(..., steps=1000)`). Was the rank too small, or the time too
#   short?
#
# Next: [6. Which matrices](06_which_matrices.ipynb)
