# %% [markdown]
# # 4. α/r is a learning rate
#
# **What does α do, and is doubling it the same as doubling the learning rate?** The paper says "roughly, if we scale
# the initialization appropriately" (§4.1). That sentence hides an exact equality, and without its clause it is wrong.
#
# *Needs: `pip install -e ".[notebook]"`; no network, no GPU. Takes: about 35 s.*

# %%
from functools import lru_cache

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
from committed import numbers, show
from IPython.display import Image, display
from progress import show_progress

import minilora as ml
from minilora.bases import held_out_strings, load_base, string_sampler
from minilora.claims.bases import adapt
from minilora.claims.figures import BLUE, GRAY, GREEN, ORANGE, RED, STYLE
from minilora.claims.optimum import optimum
from minilora.claims.two_factors import multiples, trained_delta
from minilora.data import seeded
from minilora.lora import lora_layers

plt.rcParams.update(STYLE)
show_progress()

# %% [markdown]
# ## One number: s = α/r
#
# LoRA adds $\Delta W = \frac{\alpha}{r}BA$ to $W_0$. Neither α nor $r$ enters anywhere else than through
# $s = \frac{\alpha}{r}$ (and $r$ through the shapes of $A$ and $B$). A common slip says that α is set from $r$. In
# the paper it is the other way round: "α is a constant in $r$", set once, "to the first $r$ we try" (§4.1). When $r$
# changes later, α stays, and $s$ follows.
#
# **Asked often: "why does the layer ignore my rank?"** Because several implementations forgot the $/r$. Here is the
# test they lacked: $s$ for α ≠ $r$, and a $\Delta W$ that is exactly $s\,BA$.

# %% exact
for r in (1, 2, 8):
    model = ml.GPT(ml.GPTConfig(vocab_size=96, context_length=8, d_model=32, n_layers=1, n_heads=4), dtype="float64")
    ml.add_lora(model, ml.LoRAConfig(r=r, alpha=16))
    layer = model.blocks[0].attn.q_proj
    layer.lora_B.data[...] = np.random.default_rng(0).normal(size=(32, r))  # as if it had been trained
    expected = 16 / r * layer.lora_B.numpy() @ layer.lora_A.numpy()  # (D, r) @ (r, D) -> (D, D)
    print(f"r = {r}, α = 16: s = {layer.scaling:<4g}  ΔW = s·BA: {np.allclose(layer.delta_weight(), expected)}")

# %% [markdown]
# **Asked often: "I never set α. What did I get?"** In a library whose default is α = 8, a rank of 128 gets $s = 1/16$,
# and a learning rate copied from somebody with $s = 1$ is then too small. minilora has no fixed default: without α it
# takes α = $r$, so $s = 1$. (To compare ranks as the paper does, set α yourself and keep it.) Print $s$; it is one
# property.

# %% exact
settings = {
    "GPT-2, Table 11": ml.LoRAConfig(r=4, alpha=32),
    "RoBERTa base, Table 9": ml.LoRAConfig(r=8, alpha=8),
    "RoBERTa large, Table 9": ml.LoRAConfig(r=8, alpha=16),
    "α left at 8, r raised": ml.LoRAConfig(r=128, alpha=8),
    "minilora without α": ml.LoRAConfig(r=128),
    "rsLoRA: α/√r": ml.LoRAConfig(r=64, alpha=8, scaling="alpha/sqrt(r)"),
}
for name, config in settings.items():
    print(f"{name:<24} r = {config.r:>3}   α = {config.alpha or config.r:>3}   s = {config.scale:g}")

# %% [markdown]
# ## Why divide by r?
#
# **Asked often: "why α/r? what does α do?"** Adam moves every entry by about the learning rate, however small its
# gradient. With $r$ rows in $A$, a first step moves $r$ numbers in each row of $B$, and all $r$ of them push the output
# the same way. So the output moves $r$ times as far. Dividing by $r$ takes that back; dividing by $\sqrt r$ (rsLoRA,
# Kalajdzievski 2023) takes back half of it.
#
# We adapt a base that knows seven functions of short strings to an eighth, `revupper` (reverse, then upper case), and
# see how far its logits have moved after one step and after ten, all at one learning rate. Expect slopes of 1, ½
# and 0.

# %%
RANKS = (1, 2, 4, 8, 16, 32, 64)
SCALES = {
    "s = α, no division": lambda r: ml.LoRAConfig(r, alpha=8.0 * r),  # 8·r/r
    "s = α/√r": lambda r: ml.LoRAConfig(r, alpha=8.0, scaling="alpha/sqrt(r)"),
    "s = α/r": lambda r: ml.LoRAConfig(r, alpha=8.0),
}
draw = string_sampler(("revupper",), 32)
ids, _ = draw(np.random.default_rng(0))
base_logits = load_base("strings")(ids).numpy()  # (B, T, V)


def moved(config, steps):
    """How far the logits move in a few steps of Adam, root mean square."""
    model = load_base("strings")
    adapt(model, ml.Adam(ml.add_lora(model, config), lr=1e-3), draw, steps, seed=0)
    return float(np.sqrt(((model(ids).numpy() - base_logits) ** 2).mean()))


change = {(name, k): [moved(make(r), k) for r in RANKS] for name, make in SCALES.items() for k in (1, 10)}

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
for ax, k in zip(axes, (1, 10), strict=True):
    for name, color in zip(SCALES, (RED, ORANGE, BLUE), strict=True):
        ax.plot(RANKS, change[name, k], "o-", color=color, label=name)
    ax.set(xscale="log", yscale="log", xlabel="rank r", title=f"After {k} step{'s' * (k > 1)} of Adam, lr 0.001")
    ax.set_xticks(RANKS, [str(r) for r in RANKS])
    ax.minorticks_off()
axes[0].set_ylabel("change of the logits (rms)")
axes[0].legend(loc="upper left")
plt.show()

# %% measured 30%
for name in SCALES:
    print(f"{name:<20} after 1 step, r = 64 moves {change[name, 1][-1] / change[name, 1][0]:.1f} times as far as r = 1")

# %% [markdown]
# With $/r$, one learning rate does for all ranks at the start. Does it also for whole runs? The full report swept it at
# $r$ = 1, 8 and 64, over several bases, and set it beside full fine-tuning's:

# %% exact
numbers("init_scaling", "doublings of the best", "best rate over")  # what `minilora reproduce` measured

# %% [markdown]
# ## α × 4 against lr × 4
#
# Now the folk version: "doubling α is doubling the learning rate". $B$ starts at zero, so Adam's first step makes
# $B = -\eta\,\mathrm{sign}(\partial L/\partial B)$ and leaves $A$ alone. Then $\Delta W = sBA$ is proportional to both
# $s$ and η, and the folk version is right. From the second step on $A$ moves too, and $\Delta W$ is a *product* of two
# things that move.
#
# What is exact? Write $c$ for the factor and put $A' = \sqrt c\,A$, $B' = \sqrt c\,B$. Then
#
# $$(c\,\alpha)\cdot BA \;=\; \alpha\cdot B'A'.$$
#
# So α·c is the *same run* as one with the old α in which everything about $A$ and $B$ is $\sqrt c$ times as large: the
# start of $A$ and each step, so the learning rate. (The start is the paper's clause. Adam's ε has to shrink by
# $\sqrt c$, as the gradients do.) The exchange rate is the square root.
#
# We follow $\Delta W$ in float64, for α × 3. Expect one curve that starts near zero and leaves it, two that are wrong
# from the start or nearly right, and one that stays at the rounding.


# %%
def path(alpha=4.0, lr=1e-3, start=1.0, eps=1e-12, steps=60):
    """ΔW of all adapted layers after each step of Adam, (steps, numbers)."""
    config = ml.GPTConfig(vocab_size=96, context_length=20, d_model=32, n_layers=2, n_heads=4)
    model = ml.GPT(config, seed=0, dtype="float64")
    trainable = ml.add_lora(model, ml.LoRAConfig(r=4, alpha=alpha), seed=0)
    layers = [proj for block in model.blocks for proj in (block.attn.q_proj, block.attn.v_proj)]
    for layer in layers:
        layer.lora_A.data *= start
    deltas = []
    ml.train(
        model,
        ml.Adam(trainable, lr=lr, eps=eps),
        ml.batch_loss(model, seeded(string_sampler(("revupper",), 8), 0)),
        steps,
        callback=lambda done, loss: deltas.append(np.concatenate([layer.delta_weight().ravel() for layer in layers])),
    )
    return np.array(deltas)


c = 3.0
wanted = path(alpha=4.0 * c)  # α times c; what follows leaves α alone
runs = {
    "folk: lr·c": path(lr=1e-3 * c),
    "lr·√c": path(lr=1e-3 * c**0.5),
    "lr·√c, A₀·√c": path(lr=1e-3 * c**0.5, start=c**0.5),
    "lr·√c, A₀·√c, ε/√c": path(lr=1e-3 * c**0.5, start=c**0.5, eps=1e-12 / c**0.5),
}
off = {name: np.abs(got - wanted).max(axis=1) / np.abs(wanted).max(axis=1) for name, got in runs.items()}

# %%
figure, ax = plt.subplots(figsize=(9, 3.6), layout="constrained")
for (name, values), color, lift in zip(off.items(), (RED, ORANGE, GREEN, BLUE), (4, 0.3, 1, 1), strict=True):
    ax.plot(range(1, 61), np.maximum(values, 1e-17), color=color)
    ax.annotate(name, (60.5, lift * values[-1]), color=color, va="center", fontsize=9, annotation_clip=False)
ax.set(yscale="log", xlim=(1, 60), ylim=(1e-17, 5), xlabel="step of Adam", ylabel="how far ΔW is off (relative)")
ax.set_title("α × 3: the folk version agrees on the first step only; the identity on all")
plt.show()

# %% exact
print("after one step, lr·c is off by less than 0.1 %:", off["folk: lr·c"][0] < 1e-3)
print("after sixty, by more than 10 %:", off["folk: lr·c"][-1] > 0.1)
print("the identity, on every step, by less than 1e-10:", off["lr·√c, A₀·√c, ε/√c"].max() < 1e-10)

# %% [markdown]
# **Asked often: "if I double α, is that doubling the learning rate?"** For Adam's first step, yes. After it, no: the
# equality is $\sqrt2$ times the learning rate with $A_0$ started $\sqrt2$ times as wide. (The green curve leaves ε
# alone. It is so small here that only float64 sees the difference.)
#
# ## All the identities: Adam, SGD, and LoRA+
#
# SGD's step is proportional to the gradient, and the gradient of $A'$ is $1/\sqrt c$ times that of $A$. To move $A'$
# by $\sqrt c$ times as much it needs $c$ times the learning rate: for SGD the folk factor is right, but still only
# with the clause.
#
# More generally, any $A' = pA$, $B' = qB$ with $pq = c$ will do. $p = 1$, $q = c$ leaves $A_0$ alone and gives $B$ a rate of
# its own: for Adam that is LoRA+ (Hayou et al. 2024), so LoRA+ with ratio $c$ is α times $c$ under another name.
# `multiples` says what a run has to change, and `trained_delta` trains 60 steps in float64. Powers of two are multiplied
# without rounding, so there the runs are equal in every bit.

# %% measured 10%
print(f"{'':<24}{'c = 3':<22}c = 4")
for kind in ("adam", "sgd"):
    for name in ("p = q = √c", "p = 1, q = c", "folk: lr times c"):
        words = []
        for c in (3.0, 4.0):
            folk = {"lr_A": c, "lr_B": c}
            settings = {"p = q = √c": multiples(kind, c**0.5, c**0.5), "p = 1, q = c": multiples(kind, 1, c)}.get(
                name, folk
            )
            wanted = trained_delta(kind, alpha=c)
            error = np.abs(trained_delta(kind, **{**settings, "alpha": 1}) - wanted).max() / np.abs(wanted).max()
            equal = "equal, every bit" if error == 0 else "equal to 1e-12" if error < 1e-12 else ""
            words.append(equal or f"off by {error:.0%}")
        print(f"{kind:<5} {name:<18}{words[0]:<22}{words[1]}")

# %% [markdown]
# Two things would break the identities: clipping the gradients, whose size changes with α, and decoupled weight decay,
# unless it is divided by $\sqrt c$ as ε is.
#
# ## The same as a map
#
# If α were the learning rate, the best lr would fall as $1/\alpha$. The identity says $1/\sqrt\alpha$. So train every
# pair of α and lr for 50 steps on the base. On the left $A_0$ is scaled with α as the clause asks ($A_0 \propto
# 1/\sqrt s$), and cells on a diagonal are one and the same run. On the right $A_0$ is left alone, as everybody does.

# %%
ALPHAS, RATES = [0.5, 2.0, 8.0, 32.0, 128.0], [2.0**-k for k in range(8, 2, -1)]


def bits(alpha, lr, scaled):
    """Held-out bits a character after 50 steps."""
    model = load_base("strings")
    trainable = ml.add_lora(model, ml.LoRAConfig(8, alpha=alpha), seed=0)
    for layer in lora_layers(model).values():
        layer.lora_A.data /= layer.scaling**0.5 if scaled else 1
    adapt(model, ml.Adam(trainable, lr), string_sampler(("revupper",), 32), 50, 0, ml.linear_schedule(50))
    return min(ml.evaluate(model, held_out_strings("revupper")) / np.log(2), 10)


maps = {
    start: np.array([[bits(alpha, lr, start == "scaled") for lr in RATES] for alpha in ALPHAS])
    for start in ("scaled", "fixed")
}
best_rates = {start: np.log2([optimum(RATES, row).best for row in map_]) for start, map_ in maps.items()}
powers = {start: np.polyfit(np.log2(ALPHAS), best, 1)[0] for start, best in best_rates.items()}

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
x, y = np.log2(RATES), np.log2(ALPHAS)
for ax, (start, name) in zip(axes, (("scaled", "A₀ ∝ 1/√s"), ("fixed", "A₀ left alone")), strict=True):
    image = ax.pcolormesh(x, y, np.log10(maps[start]), cmap="cividis", shading="nearest")
    ax.plot(best_rates[start], y, "o-", color="white")
    middle = best_rates[start][2]
    ax.plot(middle - (y - y[2]) / 2, y, "--", color=RED)
    ax.plot(middle - (y - y[2]), y, ":", color=RED)
    ax.set(xlim=(x[0] - 0.5, x[-1] + 0.5), ylim=(y[0] - 1, y[-1] + 1), xlabel="learning rate")
    ax.set_xticks(x, [f"$2^{{{v:.0f}}}$" for v in x])
    ax.set_yticks(y, [f"{alpha:g}" for alpha in ALPHAS])
    ax.set_title(f"{name}: best lr ∝ α$^{{{powers[start]:.2f}}}$")
    ax.grid(False)
axes[0].set_ylabel("α  (r = 8)")
figure.colorbar(image, ax=axes, label="log₁₀ bits a character")
figure.supxlabel("white: best lr of each α; dashed: √α·lr constant; dotted: α·lr constant", fontsize=9)
plt.show()

# %% measured 25%
for start in ("scaled", "fixed"):
    print(f"A₀ {start:<7}: best lr ∝ α^{powers[start]:.2f}")
best = maps["scaled"].min(axis=1)
print("A₀ scaled: the best losses of all α are within 0.01 bits:", np.ptp(best) < 0.01)

# %% [markdown]
# The white line follows the dashed one, the square root, in both. On the left every α reaches the very same best loss,
# as it must. On the right it does so roughly: that is the word in the paper's sentence. One base and 50 steps are a
# small measurement. The full one has steps of √2, 150 steps of training and several bases:

# %%
display(Image("../figures/alpha_learning_rate.png", width=900))

# %% exact
show("alpha_learning_rate", "paper", "measured", "verdict")

# %% [markdown]
# In practice: keep α and tune the learning rate, as the paper does. If you inherit a recipe with another α, start at
# its learning rate times $\sqrt{\alpha_\mathrm{theirs}/\alpha_\mathrm{yours}}$: four times theirs if they had α = 128
# and you have 8.
#
# ## Move it yourself
#
# Fifty steps at a fixed learning rate of $2^{-6}$, beside the gray run with α = 8 and $r$ = 8. First three settings.
# Which one will look like the gray run: one with the same α, or one with the same $s$?


# %%
@lru_cache
def losses(alpha, r):
    model = load_base("strings")
    trainable = ml.add_lora(model, ml.LoRAConfig(r, alpha=alpha))
    return np.array(adapt(model, ml.Adam(trainable, lr=2**-6), draw, 50, seed=0)) / np.log(2)  # nats -> bits


def draw_losses(ax, alpha, r):
    ax.plot(losses(8.0, 8), color=GRAY, linewidth=1, label="α = 8, r = 8")
    ax.plot(losses(alpha, r), color=BLUE, label=f"α = {alpha:g}, r = {r}")
    ax.set(ylim=(0, 10), xlabel="step", title=f"α = {alpha:g}, r = {r}: s = {alpha / r:g}")


figure, axes = plt.subplots(1, 3, figsize=(9, 3), sharey=True, layout="constrained")
for ax, (alpha, r) in zip(axes, ((8.0, 64), (64.0, 64), (0.5, 8)), strict=True):
    draw_losses(ax, alpha, r)
axes[0].set_ylabel("loss (bits a character)")
axes[0].annotate("gray: α = 8, r = 8 (s = 1)", (12, 8), color=GRAY, fontsize=9)
plt.show()

# %% [markdown]
# On the left the rank is eight times as large and α is the same: nearly the same curve, although $s$ is an eighth. That
# is what $/r$ is for. In the middle $s$ is the same and α eight times as large: faster at first, and then less steady,
# as with a larger learning rate. On the right α is a sixteenth, and the run is slow. So with $/r$ in place, α is the
# knob, and it turns the speed.
#
# Where the notebook runs, sliders appear below. Leave α and move $r$; then leave $r$ and move α.


# %%
def explore(alpha, r):
    figure, ax = plt.subplots(figsize=(6, 3), layout="constrained")
    draw_losses(ax, alpha, r)
    ax.set_ylabel("loss (bits a character)")
    plt.show()


controls = ipywidgets.interactive(
    explore,
    alpha=ipywidgets.SelectionSlider(options=ALPHAS, value=32.0, description="α", continuous_update=False),
    r=ipywidgets.SelectionSlider(options=RANKS, value=8, description="r", continuous_update=False),
)
display(controls, exclude=["text/plain"])

# %% [markdown]
# ## Exercise
#
# - Course exercise 10, "the α identity": write the two forms for SGD and show them equal to 1e-12
#   ([course](course/README.md)).
# - Predict, then measure with `path`: by how much is α × 3 off when only $A_0$ is scaled and the learning rate is not?
# - Train the first figure of this notebook with `ml.SGD` instead of `ml.Adam`. Which of the three scalings keeps the
#   change independent of $r$ now? (The gradient of $B$ has a factor $s$ of its own.)
#
# Next: [5. Rank](05_rank.ipynb)
