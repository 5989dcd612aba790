# %% [markdown]
# # 0. Start here
#
# **What is LoRA, and how can a model learn when almost all of it is frozen?** One matrix is enough to see it.
#
# *Needs: `pip install -e ".[notebook]"`; no network, no GPU. This one uses NumPy and matplotlib only. Takes: 2 s.*

# %%
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

from minilora.claims.figures import BLUE, GRAY, GREEN, ORANGE, STYLE

plt.rcParams.update(STYLE)

# %% [markdown]
# ## One picture
#
# A trained layer computes $W_0x$. To adapt it, full fine-tuning changes every entry of $W_0$. LoRA (Hu et al. 2021,
# §4.1) leaves $W_0$ alone and trains two thin matrices beside it:
#
# $$h = W_0x + \Delta W x = W_0x + \frac{\alpha}{r}\,BA\,x
#   \qquad A \in \mathbb{R}^{r\times k},\; B \in \mathbb{R}^{d\times r},\; r \ll \min(d, k)$$


# %%
def box(x, y, width, height, text, color):
    ax.add_patch(Rectangle((x, y), width, height, facecolor=color, alpha=0.75, edgecolor="black"))
    ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=12)


figure, ax = plt.subplots(figsize=(8.5, 4))
box(0.5, 1, 2.4, 2.4, "$W_0$\nfrozen\n$d \\times k$", GRAY)
box(4.1, 0.9, 2.4, 0.5, "$A$   $r \\times k$   starts Gaussian", ORANGE)
box(4.9, 1.55, 0.8, 2.0, "$B$\n$d \\times r$\nstarts\nat 0", ORANGE)
ax.text(5.9, 2.5, "trained", color="black", fontsize=11)
box(1.3, 0.05, 4.6, 0.4, "$x$", BLUE)
box(1.3, 4.2, 4.6, 0.4, "$h = W_0x + \\frac{\\alpha}{r} BAx$", GREEN)
for x, low, high in ((1.7, 0.45, 1), (5.3, 0.45, 0.9), (1.7, 3.4, 4.2), (5.3, 3.55, 4.2), (5.3, 1.4, 1.55)):
    ax.annotate("", (x, high), (x, low), arrowprops={"arrowstyle": "->", "linewidth": 1.5})
ax.text(3.5, 3.7, "+", fontsize=20, ha="center")
ax.set(xlim=(0, 7), ylim=(0, 4.7))
ax.axis("off")
ax.set_title("LoRA: a detour of width r beside a frozen matrix")
plt.show()

# %% [markdown]
# Three things to notice, all of which come back later.
#
# - **The input goes through both.** Write-ups sometimes print $h = W_0x + BA$. Without its $x$ the formula adds a
#   matrix to a vector; the paper's equation 3 has it.
# - **Only few numbers are trained, but every entry of $W$ changes.** $\Delta W$ is a full $d\times k$ matrix; what is
#   small is its *rank*.
# - **Nothing stays in the way.** Once trained, $W_0 + \frac{\alpha}{r}BA$ is one matrix again (notebook 3). A merged
#   model is as fast as the base, and as a fully fine-tuned one: equal, not faster.
#
# How many numbers? For a square matrix, $2dr$ instead of $d^2$:

# %% exact
for d in (64, 768, 12288):
    counts = {r: 2 * d * r for r in (1, 4, 8)}
    print(f"d = {d:>6,}: full {d * d:>11,}   " + "   ".join(f"r = {r}: {n:>7,}" for r, n in counts.items()))

# %% [markdown]
# (d = 12,288 is GPT-3; $2 \cdot 12288 \cdot 4$ on two matrices in each of its 96 layers are the 18.9 million parameters
# of §4.2's "35 MB".)
#
# ## LoRA by hand: 2 × 2, r = 1
#
# With these numbers every step can be done on paper. The loss is $L = \frac12\lVert h - y\rVert^2$, the learning
# rate $\eta = 0.5$, and $s = \alpha/r = 2$.

# %% exact
W0, x, y = np.array([[1.0, 2], [3, 4]]), np.array([1.0, 2]), np.array([6.0, 11])
A, B, s, eta = np.array([[0.5, -0.5]]), np.zeros((2, 1)), 2.0, 0.5

h = W0 @ x + s * B @ (A @ x)  # (2, 2) @ (2,) + (2, 1) @ (1, 2) @ (2,) -> (2,)
g = h - y  # ∂L/∂h
dB = s * np.outer(g, A @ x)  # ∂L/∂B = s g (Ax)ᵀ
dA = s * B.T @ np.outer(g, x)  # ∂L/∂A = s Bᵀ g xᵀ
print(f"h = {h}, exactly the base's {W0 @ x};  L = {g @ g / 2}")
print(f"g = {g};  ∂L/∂B = {dB.ravel() + 0.0};  ∂L/∂A = {dA.ravel() + 0.0}")

B = B - eta * dB
A = A - eta * dA
h = (W0 + s * B @ A) @ x
print(f"after one step: B = {B.ravel()}, ΔW = {(s * B @ A).tolist()}, h = {h}, L = {(h - y) @ (h - y) / 2}")

# %% [markdown]
# Because $B = 0$, the adapted layer starts *exactly* as the base, and the gradient of $A$ is exactly zero. $B$'s is
# not: it moves first, and from the second step on both move. That is the whole answer to the question most asked about
# LoRA, and notebook 3 takes it apart.
#
# ## LoRA on one matrix, in plain NumPy
#
# Now a matrix of 16 × 16. A teacher differs from $W_0$ by a change of rank 2, and we see examples of what it says. The
# gradients are the two formulas above, summed over the examples: with $G = \sum g x^\top$,
# $\partial L/\partial B = s\,GA^\top$ and $\partial L/\partial A = s\,B^\top G$.


# %%
def losses_of(train_A, train_B, r=2, alpha=2.0, eta=0.1, steps=400, seed=0):
    """Fit Y = (W₀ + D)X with LoRA and plain gradient descent; the loss of every step, and ΔW."""
    rng = np.random.default_rng(seed)
    d, n = 16, 64
    W0 = rng.normal(size=(d, d)) / np.sqrt(d)
    D = rng.normal(size=(d, 2)) @ rng.normal(size=(2, d)) / d  # the change to be found, of rank 2
    X = rng.normal(size=(d, n))
    Y = (W0 + D) @ X
    A, B, s = rng.normal(size=(r, d)) / np.sqrt(d), np.zeros((d, r)), alpha / r
    losses = []
    for _ in range(steps):
        E = W0 @ X + s * B @ (A @ X) - Y  # (d, d) @ (d, n) + (d, r) @ (r, d) @ (d, n) -> (d, n)
        G = E @ X.T / n  # ∂L/∂W, which full fine-tuning would follow: (d, n) @ (n, d) -> (d, d)
        dB, dA = s * G @ A.T, s * B.T @ G
        B, A = B - eta * dB * train_B, A - eta * dA * train_A
        losses.append((E**2).sum() / (2 * n))
    return np.array(losses), s * B @ A, D


both, delta, change = losses_of(True, True)
only_B, _, _ = losses_of(False, True)
only_A, _, _ = losses_of(True, False)

# %% [markdown]
# Before trusting hand-derived gradients, compare them with finite differences. This one uses nothing but the formula
# of a difference; notebook 1 builds the real tool.

# %% exact
rng = np.random.default_rng(1)
W0, A, B = rng.normal(size=(5, 4)), rng.normal(size=(2, 4)), rng.normal(size=(5, 2))
X, Y = rng.normal(size=(4, 7)), rng.normal(size=(5, 7))


def loss(A, B, s=2.0):
    return ((W0 @ X + s * B @ (A @ X) - Y) ** 2).sum() / 2


G = (W0 @ X + 2.0 * B @ (A @ X) - Y) @ X.T
for name, gradient, f, at in (
    ("A", 2.0 * B.T @ G, lambda a: loss(a, B), A),
    ("B", 2.0 * G @ A.T, lambda b: loss(A, b), B),
):
    u, h = rng.normal(size=at.shape), 1e-6
    numeric = (f(at + h * u) - f(at - h * u)) / (2 * h)  # along one random direction
    print(f"∂L/∂{name}: within 1e-6 of the difference: {abs(numeric - (gradient * u).sum()) < 1e-6 * abs(numeric)}")

# %%
figure, ax = plt.subplots(figsize=(8.5, 3.4))
for values, color, name in (
    (both, BLUE, "A and B"),
    (only_B, ORANGE, "only B: two directions, those of A₀"),
    (only_A, GRAY, "only A: B stays 0"),
):
    ax.plot(values, "--" if color == GRAY else "-", color=color, label=name)
ax.set(yscale="log", xlabel="step of gradient descent", ylabel="loss")
ax.set_title("A change of rank 2 is found by r = 2, if both factors train")
ax.legend()
plt.show()

# %% exact
error = np.linalg.norm(delta - change) / np.linalg.norm(change)
print(f"rank of ΔW: {np.linalg.matrix_rank(delta)}; entries of ΔW that are not zero: {(delta != 0).mean():.0%}")
print(f"‖ΔW − D‖/‖D‖ is below 1 %: {error < 0.01}; the change is found: {both[-1] < 1e-3 * both[0]}")
print(
    f"with A frozen: final loss {only_B[-1] / both[0]:.2f} of the first; with B frozen at 0: {only_A[-1] / both[0]:.2f}"
)

# %% [markdown]
# With $A$ frozen, only the two directions that $A$ happened to look in can be used. With $B$ frozen at zero, nothing
# moves at all. So neither factor is decoration.
#
# **Asked often: "why are query, key and value separate here, when GPT-2 has one `c_attn`?"** Because LoRA adapts some of
# them and not others (§7.1 compares), and one matrix for each reads like the paper. GPT-2's fused layer is taken apart
# and put together at the file's boundary only (notebook 10).
#
# **Asked often: "which way round are the matrices?"** Everywhere in minilora a weight is stored `(out, in)` and applied
# as $y = xW^\top + b$, as in PyTorch, so the paper's $BA$ with $A$ `(r, in)` and $B$ `(out, r)` reads the same in code.
# Files that store the transpose are turned when they are read, nowhere else.
#
# **Asked often: "where in the model's code is LoRA?"** Nowhere. `gpt.py` does not mention it; `lora.py` wraps a `Linear`
# from outside, so you can read the transformer without it, and LoRA without the transformer.
#
# ## The map
#
# | notebook | question | paper | minutes |
# |---|---|---|---|
# | [1](01_autograd_by_hand.ipynb) | where do gradients come from, and are they right? | | 30 |
# | [2](02_a_transformer_from_its_parts.ipynb) | what is inside the model that LoRA adapts? | §2 | 30 |
# | [3](03_lora.ipynb) | why does it work from B = 0, what is merging, how does it fail? | §4.1 | 40 |
# | [4](04_alpha_is_a_learning_rate.ipynb) | is α just a learning rate? | §4.1 | 25 |
# | [5](05_rank.ipynb) | how small may r be? | §7.2, Table 6 | 25 |
# | [6](06_which_matrices.ipynb) | which matrices to adapt? | §7.1, Table 5 | 20 |
# | [7](07_what_lora_replaces.ipynb) | what does it replace, and at what cost? | §3, §5, Tables 1 to 4 | 30 |
# | [8](08_inside_delta_w.ipynb) | what is inside ΔW? | §7.2, §7.3, Table 7 | 30 |
# | [9](09_one_base_many_tasks.ipynb) | one base, many tasks: what is kept, what is forgotten? | §4.2, Table 16 | 25 |
# | [10](10_to_the_gpu_and_beyond.ipynb) | how do I get to PyTorch, GPT-2, a cluster, a GPU? | §4.2 | 20 |
#
# ## Symbols
#
# | paper | minilora | PEFT | loralib | 한국어 |
# |---|---|---|---|---|
# | $W_0$ | `layer.weight` | `base_layer.weight` | `weight` | 고정된 사전 학습 가중치 |
# | $A$ (r × k), Gaussian | `layer.lora_A` | `lora_A["default"].weight` | `lora_A` | 가우시안으로 초기화하는 행렬 A |
# | $B$ (d × r), zero | `layer.lora_B` | `lora_B["default"].weight` | `lora_B` | 0으로 초기화하는 행렬 B |
# | $r$ | `LoRAConfig(r=…)` | `r` | `r` | 랭크 |
# | $\alpha$ | `LoRAConfig(alpha=…)` | `lora_alpha` | `lora_alpha` | 알파 |
# | $\alpha/r$ | `layer.scaling` | `scaling["default"]` | `scaling` | 스케일링 |
# | $\Delta W = \frac{\alpha}{r}BA$ | `layer.delta_weight()` | `get_delta_weight("default")` | | 가중치 변화량 |
# | $W_0 + \Delta W$, stored | `ml.merge_lora(model)` | `merge_adapter()` | `eval()` merges | 병합 |
# | adapted matrices $W_q, W_v$ | `target_modules` | `target_modules` | each layer by hand | 쿼리, 밸류 투영행렬 |
# | $\eta$ | `lr` | | | 학습률 |
#
# ## Exercise
#
# - Course exercise 5, "LoRA on one matrix": write the forward and both gradients yourself
#   ([course](course/README.md)).
# - Change `losses_of` so that $A$ starts at zero and $B$ Gaussian. Does it still learn? And with both at zero?
#
# Next: [1. Autograd by hand](01_autograd_by_hand.ipynb)
