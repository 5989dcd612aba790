# %% [markdown]
# # Homework 2: LoRA
#
# $h = W_0x + \frac{\alpha}{r}BAx$ (Hu et al. 2021, §4.1, equation 3). Here you write it yourself, with its gradients,
# merge it without losing a bit, and count. Read notebook 3 first.
#
# Put your name or number between the quotes: your numbers will be your own. Everything is float64.

# %%
import numpy as np

import minilora as ml
from minilora.tools.course import expect_close, student_rng

STUDENT = "student"

# %% [markdown]
# ## 5. LoRA on one matrix (3 points)
#
# For one example $x$ and the loss $L = \frac12\lVert h - y\rVert^2$ return $h$, $\partial L/\partial A$ and
# $\partial L/\partial B$. The rank is the number of rows of $A$. The README's 2 × 2 example is the first test.


# %% solution one_matrix
def lora_by_hand(W0, A, B, alpha, x, y):
    ### BEGIN SOLUTION
    s = alpha / len(A)
    h = W0 @ x + s * B @ (A @ x)
    g = h - y
    return h, s * np.outer(B.T @ g, x), s * np.outer(g, A @ x)
    ### END SOLUTION


# %% test one_matrix 3
W0, A, B = np.array([[1.0, 2], [3, 4]]), np.array([[0.5, -0.5]]), np.zeros((2, 1))
h, dA, dB = lora_by_hand(W0, A, B, 2.0, np.array([1.0, 2]), np.array([6.0, 11]))
expect_close(h, [5, 11], "output h")
expect_close(dB, [[1], [0]], "gradient of B")
assert dA.shape == A.shape and not dA.any(), "B is zero, so the gradient of A is."
### BEGIN HIDDEN TESTS
rng = student_rng(STUDENT, "one matrix")
W0, A, B = rng.normal(size=(5, 4)), rng.normal(size=(3, 4)), rng.normal(size=(5, 3))
x, y = rng.normal(size=4), rng.normal(size=5)
expect_close(lora_by_hand(W0, A, B, 2.0, x, y)[0], W0 @ x + 2 / 3 * B @ A @ x, "output h at α = 2, r = 3")


def loss(A, B):
    return ((W0 @ x + 2 / 3 * B @ A @ x - y) ** 2).sum() / 2


assert ml.check_gradient(lambda a: loss(a, B), lambda a: lora_by_hand(W0, a, B, 2.0, x, y)[1], A)
assert ml.check_gradient(lambda b: loss(A, b), lambda b: lora_by_hand(W0, A, b, 2.0, x, y)[2], B)
### END HIDDEN TESTS

# %% [markdown]
# ## 6. B = 0: why does it still learn? (3 points)
#
# Predict, before you train anything. LoRA starts with $A_0$ Gaussian and $B_0 = 0$ and takes steps of SGD. Fill in `True` or
# `False`. Then write what $\Delta W$ is after the *first* step, from $G = \partial L/\partial W$ at the start.


# %% solution why_it_learns
### BEGIN SOLUTION
prediction = {
    "dL/dA is exactly zero at step 0": True,
    "dL/dB is exactly zero at step 0": False,
    "dL/dA is exactly zero at step 1": False,
    "with A and B both zero it learns": False,
    "with A zero and B Gaussian it learns": True,
}


def first_delta(G, A0, eta, s):
    return -eta * s**2 * G @ A0.T @ A0


### END SOLUTION

# %% test why_it_learns 3
assert len(prediction) == 5 and all(isinstance(answer, bool) for answer in prediction.values())
rng = student_rng(STUDENT, "why it learns")
G, A0 = rng.normal(size=(6, 5)), rng.normal(size=(2, 5))
assert first_delta(G, A0, 0.1, 1.0).shape == G.shape
expect_close(first_delta(G, A0, 0.1, 1.0), -0.1 * G @ A0.T @ A0, "ΔW after one step with s = 1")
### BEGIN HIDDEN TESTS


def step(A, B, s=3.0, eta=0.1):
    """The gradients of L = ⟨G, ΔW⟩ + ½‖ΔW‖², and both factors one step later."""
    gradient = G + s * B @ A
    dA, dB = s * B.T @ gradient, s * gradient @ A.T
    return dA, dB, A - eta * dA, B - eta * dB


zero_A, zero_B = np.zeros((2, 5)), np.zeros((6, 2))
dA0, dB0, A1, B1 = step(A0, zero_B)
truth = [not dA0.any(), not dB0.any(), not step(A1, B1)[0].any()]
for A, B in ((zero_A, zero_B), (zero_A, rng.normal(size=(6, 2)))):
    truth.append(bool(step(A, B)[0].any() or step(A, B)[1].any()))
assert list(prediction.values()) == truth, f"what happens is {dict(zip(prediction, truth, strict=True))}"
expect_close(first_delta(G, A0, 0.1, 3.0), 3.0 * B1 @ A1, "ΔW after one step with s = 3")
### END HIDDEN TESTS

# %% [markdown]
# ## 7. Implement LoRALinear (4 points)
#
# A layer $y = xW_0^\top + s\,(xA^\top)B^\top$ for rows $x$ (n, in), with `A` (r, in) Gaussian of standard deviation
# 1/√in, `B` (out, r) zero and `scaling` α/r. `gradients(x, g)` returns $\partial L/\partial A$ and $\partial L/\partial B$
# from $g = \partial L/\partial y$. The weight is frozen: never written.


# %% solution lora_linear
class LoRALinear:
    def __init__(self, weight, r, alpha, rng):
        ### BEGIN SOLUTION
        out_features, in_features = weight.shape
        self.weight, self.scaling = weight, alpha / r
        self.A = rng.normal(0, 1 / np.sqrt(in_features), (r, in_features))
        self.B = np.zeros((out_features, r))
        ### END SOLUTION

    def __call__(self, x):
        ### BEGIN SOLUTION
        return x @ self.weight.T + self.scaling * (x @ self.A.T) @ self.B.T
        ### END SOLUTION

    def gradients(self, x, g):
        ### BEGIN SOLUTION
        return self.scaling * (g @ self.B).T @ x, self.scaling * g.T @ (x @ self.A.T)
        ### END SOLUTION


# %% test lora_linear 4
rng = student_rng(STUDENT, "LoRALinear")
weight, x, g = rng.normal(size=(6, 6)), rng.normal(size=(9, 6)), rng.normal(size=(9, 6))
layer = LoRALinear(weight.copy(), 4, 4.0, rng)
assert layer.A.shape == (4, 6) and layer.B.shape == (6, 4)
assert np.array_equal(layer(x), x @ weight.T), "At the start the layer is the base, exactly."
assert [d.shape for d in layer.gradients(x, g)] == [(4, 6), (6, 4)]
### BEGIN HIDDEN TESTS
assert layer.A.any(), "With A and B both zero nothing is ever learned."
weight, g = rng.normal(size=(7, 6)), rng.normal(size=(9, 7))
layer = LoRALinear(weight.copy(), 4, 8.0, rng)
layer.B = rng.normal(size=(7, 4))
A, B = layer.A.copy(), layer.B.copy()
expect_close(layer(x), x @ (weight + 8.0 / 4 * B @ A).T, "output at α = 8, r = 4")


def loss(A, B):
    return (x @ (weight + 8.0 / 4 * B @ A).T * g).sum()


assert ml.check_gradient(lambda a: loss(a, B), lambda a: layer.gradients(x, g)[0], A)
assert ml.check_gradient(lambda b: loss(A, b), lambda b: layer.gradients(x, g)[1], B)
assert np.array_equal(layer.weight, weight), "The weight is frozen."
spread = LoRALinear(np.zeros((2, 400)), 50, 1.0, rng).A.std()
assert 0.8 < spread * 20 < 1.2, f"A's standard deviation should be 1/√in = 0.05; it is {spread:.3f}."
### END HIDDEN TESTS

# %% [markdown]
# ## 8. Merge without drift (2 points)
#
# `merge(delta)` makes `weight` $W_0 + \Delta W$; `unmerge()` makes it $W_0$ again, *bit for bit*, however often. The array that
# was handed in is never changed.


# %% solution merge
class Mergeable:
    def __init__(self, W0):
        ### BEGIN SOLUTION
        self.W0 = self.weight = W0
        ### END SOLUTION

    def merge(self, delta):
        ### BEGIN SOLUTION
        self.weight = self.W0 + delta
        ### END SOLUTION

    def unmerge(self):
        ### BEGIN SOLUTION
        self.weight = self.W0
        ### END SOLUTION


# %% test merge 2
rng = student_rng(STUDENT, "merge")
W0, delta = rng.normal(size=(5, 5)), rng.normal(size=(5, 5))
layer = Mergeable(W0.copy())
layer.merge(delta)
expect_close(layer.weight, W0 + delta, "merged weight")
layer.unmerge()
expect_close(layer.weight, W0, "unmerged weight", tolerance=1e-6)
### BEGIN HIDDEN TESTS
given = W0.copy()
layer = Mergeable(given)
for k in range(100):
    layer.merge(delta * (k + 1))
    layer.unmerge()
assert np.array_equal(layer.weight, W0), "After a hundred merges the weight has drifted."
assert np.array_equal(given, W0), "The array that was handed in has changed."
### END HIDDEN TESTS

# %% [markdown]
# ## 9. Count the parameters (1 point)
#
# How many numbers does LoRA of rank $r$ train on matrices of these shapes (out, in)? For GPT-2 medium, $r = 4$ on q and v, the
# answer is 393,216, whatever Table 3 prints.


# %% solution count
def lora_count(shapes, r):
    ### BEGIN SOLUTION
    return sum(r * (out_features + in_features) for out_features, in_features in shapes)
    ### END SOLUTION


# %% test count 1
assert lora_count([(1024, 1024)] * 2 * 24, 4) == 393_216
### BEGIN HIDDEN TESTS
model = ml.GPT(ml.GPTConfig(96, 20, 32, 3, 4))
trained = ml.add_lora(model, ml.LoRAConfig(5, target_modules=("fc_in", "q_proj")))
assert lora_count([(128, 32), (32, 32)] * 3, 5) == sum(p.size for p in trained)
### END HIDDEN TESTS
