# %% [markdown]
# # Homework 2: LoRA
#
# $h = W_0x + \frac{\alpha}{r}BAx$ (Hu et al. 2021, §4.1, equation 3). Here you write it yourself, with its gradients,
# merge it without losing a bit, and count. Read notebook 3 first.
#
# Put your name or number between the quotes: your numbers will be your own, and no test runs before you do. Everything is
# float64. Functions return new arrays and leave the ones they are given as they were.

# %%
import numpy as np

import minilora as ml
from minilora.tools.course import expect_close, student_rng, yours

STUDENT = "student"

# %% [markdown]
# ## 5. LoRA on one matrix (3 points)
#
# For one example $x$ and the loss $L = \frac12\lVert h - y\rVert^2$ return $h$, $\partial L/\partial A$ and
# $\partial L/\partial B$ (1 point each). The rank is the number of rows of $A$. The README's 2 × 2 example is among the tests.


# %% solution one_matrix
def lora_by_hand(W0, A, B, alpha, x, y):
    ### BEGIN SOLUTION
    s = alpha / len(A)
    h = W0 @ x + s * B @ (A @ x)
    g = h - y
    return h, s * np.outer(B.T @ g, x), s * np.outer(g, A @ x)
    ### END SOLUTION


# %% test one_matrix h 1
rng = student_rng(STUDENT, "one matrix")
W0, A, B = np.array([[1.0, 2], [3, 4]]), np.array([[0.5, -0.5]]), np.zeros((2, 1))
x, y = np.array([1.0, 2]), np.array([6.0, 11])
expect_close(yours(lora_by_hand, W0, A, B, 2.0, x, y)[0], [5, 11], "output h of the 2 × 2 example")
expect_close(yours(lora_by_hand, W0, A, np.array([[-0.5], [0]]), 2.0, x, y)[0], [5.5, 11], "output h one step later")
### BEGIN HIDDEN TESTS
W0, A, B = rng.normal(size=(5, 4)), rng.normal(size=(3, 4)), rng.normal(size=(5, 3))
x, y = rng.normal(size=4), rng.normal(size=5)
h = yours(lora_by_hand, W0, A, B, 2.0, x, y)[0]
expect_close(h, W0 @ x + 2 / 3 * B @ A @ x, "output h at α = 2, r = 3")
### END HIDDEN TESTS

# %% test one_matrix dA 1
rng = student_rng(STUDENT, "one matrix")
W0, A, B = np.array([[1.0, 2], [3, 4]]), np.array([[0.5, -0.5]]), np.array([[-0.5], [0]])
x, y = np.array([1.0, 2]), np.array([6.0, 11])
expect_close(yours(lora_by_hand, W0, A, B, 2.0, x, y)[1], [[0.5, 1]], "gradient of A one step later")
expect_close(yours(lora_by_hand, W0, A, 0 * B, 2.0, x, y)[1], [[0, 0]], "gradient of A where B is zero")
### BEGIN HIDDEN TESTS
W0, A, B = rng.normal(size=(5, 4)), rng.normal(size=(3, 4)), rng.normal(size=(5, 3))
x, y = rng.normal(size=4), rng.normal(size=5)
assert ml.check_gradient(
    lambda a: ((W0 @ x + 2 / 3 * B @ a @ x - y) ** 2).sum() / 2,
    lambda a: yours(lora_by_hand, W0, a, B, 2.0, x, y)[1],
    A,
)
### END HIDDEN TESTS

# %% test one_matrix dB 1
rng = student_rng(STUDENT, "one matrix")
W0, A, B = np.array([[1.0, 2], [3, 4]]), np.array([[0.5, -0.5]]), np.zeros((2, 1))
x, y = np.array([1.0, 2]), np.array([6.0, 11])
expect_close(yours(lora_by_hand, W0, A, B, 2.0, x, y)[2], [[1], [0]], "gradient of B of the 2 × 2 example")
### BEGIN HIDDEN TESTS
W0, A, B = rng.normal(size=(5, 4)), rng.normal(size=(3, 4)), rng.normal(size=(5, 3))
x, y = rng.normal(size=4), rng.normal(size=5)
assert ml.check_gradient(
    lambda b: ((W0 @ x + 2 / 3 * b @ A @ x - y) ** 2).sum() / 2,
    lambda b: yours(lora_by_hand, W0, A, b, 2.0, x, y)[2],
    B,
)
### END HIDDEN TESTS

# %% [markdown]
# ## 6. B = 0: why does it still learn? (3 points)
#
# Predict, before you train anything. LoRA starts with $A_0$ Gaussian and $B_0 = 0$ and takes steps of SGD. True or false?
#
# 1. $\partial L/\partial A$ is exactly zero at step 0, before the first update.
# 2. $\partial L/\partial B$ is exactly zero at step 0.
# 3. $\partial L/\partial A$ is exactly zero at step 1, after the first update.
# 4. With $A$ and $B$ both zero at the start, it learns.
# 5. With $A$ zero and $B$ Gaussian at the start, it learns.
#
# Let `predictions` return your five answers in this order, each `True` or `False` (1 point).


# %% solution predictions
def predictions():
    ### BEGIN SOLUTION
    return [True, False, False, False, True]
    ### END SOLUTION


# %% test predictions answers 1
rng = student_rng(STUDENT, "predictions")
answers = list(predictions())
assert len(answers) == 5 and all(isinstance(answer, bool) for answer in answers), (
    f"predictions() should return five answers, each True or False; yours returned {answers}."
)
G, A0, B0, s = rng.normal(size=(6, 5)), rng.normal(size=(2, 5)), np.zeros((6, 2)), 3.0
happens = [not (s * B0.T @ G).any(), not (s * G @ A0.T).any()]
assert answers[:2] == happens, "Statements 1 and 2: the gradients are s·BᵀG and s·GAᵀ. What are they where B is zero?"
### BEGIN HIDDEN TESTS


def step(A, B, eta=0.1):
    """The gradients of L = ⟨G, ΔW⟩ + ½‖ΔW‖², and both factors one step later."""
    gradient = G + s * B @ A
    dA, dB = s * B.T @ gradient, s * gradient @ A.T
    return dA, dB, A - eta * dA, B - eta * dB


happens.append(not step(*step(A0, B0)[2:])[0].any())
for A, B in ((0 * A0, B0), (0 * A0, rng.normal(size=(6, 2)))):
    happens.append(bool(step(A, B)[0].any() or step(A, B)[1].any()))
assert answers == happens, "Not all of statements 3, 4 and 5 are right: take the first two steps on paper."
### END HIDDEN TESTS

# %% [markdown]
# Now write what $\Delta W = s\,BA$ is after the *first* step of SGD with learning rate η, from $G = \partial L/\partial W$ at the
# start, where $B$ is zero (2 points).


# %% solution first_delta
def first_delta(G, A0, eta, s):
    ### BEGIN SOLUTION
    return -eta * s**2 * G @ A0.T @ A0
    ### END SOLUTION


# %% test first_delta value 2
rng = student_rng(STUDENT, "first ΔW")
first = yours(first_delta, np.array([[2.0]]), np.array([[3.0]]), 0.1, 1.0)
expect_close(first, [[-1.8]], "ΔW after one step with G = 2, A = 3, η = 0.1 and s = 1")
### BEGIN HIDDEN TESTS
G, A0 = rng.normal(size=(6, 5)), rng.normal(size=(2, 5))
B1 = -0.1 * 3.0 * G @ A0.T
expect_close(yours(first_delta, G, A0, 0.1, 3.0), 3.0 * B1 @ A0, "ΔW after one step with s = 3")
### END HIDDEN TESTS

# %% [markdown]
# ## 7. Implement LoRALinear (4 points)
#
# A layer $y = xW_0^\top + s\,(xA^\top)B^\top$ for rows $x$ (n, in), with `A` (r, in) Gaussian of standard deviation
# 1/√in, `B` (out, r) zero and `scaling` α/r. `gradients(x, g)` returns $\partial L/\partial A$ and $\partial L/\partial B$
# from $g = \partial L/\partial y$. The `weight` is frozen: never written. The start gives 1 point, the output 1, the gradients 2.


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


# %% test lora_linear start 1
rng = student_rng(STUDENT, "LoRALinear, start")
weight = rng.normal(size=(7, 6))
layer = yours(LoRALinear, weight, 4, 4.0, rng)
expect_close(layer.B, np.zeros((7, 4)), "B at the start")
assert np.shape(layer.A) == (4, 6), f"A should have shape (4, 6); yours has {np.shape(layer.A)}."
assert np.any(layer.A), "With A and B both zero nothing is ever learned."
### BEGIN HIDDEN TESTS
spread = yours(LoRALinear, np.zeros((2, 400)), 50, 1.0, rng).A.std()
assert 0.8 < spread * 20 < 1.2, f"A's standard deviation should be 1/√in = 0.05; it is {spread:.3f}."
### END HIDDEN TESTS

# %% test lora_linear output 1
rng = student_rng(STUDENT, "LoRALinear, output")
weight, x = rng.normal(size=(6, 6)), rng.normal(size=(9, 6))
layer = yours(LoRALinear, weight, 4, 4.0, rng)
layer.A, layer.B = rng.normal(size=(4, 6)), np.zeros((6, 4))
assert np.array_equal(yours(layer, x), x @ weight.T), "With B zero the layer is the base, exactly."
layer.B = rng.normal(size=(6, 4))
assert not np.allclose(yours(layer, x), x @ weight.T), "With B not zero the output should be another than the base's."
### BEGIN HIDDEN TESTS
weight = rng.normal(size=(7, 6))
layer = yours(LoRALinear, weight, 4, 8.0, rng)
A, B = rng.normal(size=(4, 6)), rng.normal(size=(7, 4))
layer.A, layer.B = A.copy(), B.copy()
expect_close(yours(layer, x), x @ (weight + 8.0 / 4 * B @ A).T, "output at α = 8, r = 4")
assert np.array_equal(layer.weight, weight), "The weight is frozen: calling the layer must not write it."
### END HIDDEN TESTS

# %% test lora_linear gradients 2
rng = student_rng(STUDENT, "LoRALinear, gradients")
weight, x, g = np.zeros((2, 2)), np.array([[1.0, 2]]), np.array([[-1.0, 0]])
layer = yours(LoRALinear, weight, 1, 2.0, rng)
layer.A, layer.B = np.array([[0.5, -0.5]]), np.array([[-0.5], [0]])
dA, dB = yours(layer.gradients, x, g)
expect_close(dA, [[1, 2]], "gradient of A")
expect_close(dB, [[1], [0]], "gradient of B")
### BEGIN HIDDEN TESTS
weight, x, g = rng.normal(size=(7, 6)), rng.normal(size=(9, 6)), rng.normal(size=(9, 7))
layer = yours(LoRALinear, weight, 4, 8.0, rng)
A, B = rng.normal(size=(4, 6)), rng.normal(size=(7, 4))
layer.A, layer.B = A.copy(), B.copy()
assert ml.check_gradient(
    lambda a: (x @ (weight + 8.0 / 4 * B @ a).T * g).sum(), lambda _: yours(layer.gradients, x, g)[0], A
)
assert ml.check_gradient(
    lambda b: (x @ (weight + 8.0 / 4 * b @ A).T * g).sum(), lambda _: yours(layer.gradients, x, g)[1], B
)
assert np.array_equal(layer.weight, weight), "The weight is frozen: gradients() must not write it."
### END HIDDEN TESTS

# %% [markdown]
# ## 8. Merge without drift (2 points)
#
# `merge(delta)` makes `weight` $W_0 + \Delta W$; `unmerge()` makes it $W_0$ again (1 point), *bit for bit*, however often, and
# the array that was handed in is never changed (1 point).


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


# %% test merge weight 1
rng = student_rng(STUDENT, "merge")
W0, delta = rng.normal(size=(5, 5)), rng.normal(size=(5, 5))
layer = yours(Mergeable, W0)
yours(layer.merge, delta)
expect_close(layer.weight, W0 + delta, "merged weight")
layer.unmerge()
expect_close(layer.weight, W0, "unmerged weight", tolerance=1e-6)
### BEGIN HIDDEN TESTS
W0, delta = rng.normal(size=(3, 7)), rng.normal(size=(3, 7))
layer = yours(Mergeable, W0)
for factor in (1, -2):
    yours(layer.merge, factor * delta)
    expect_close(layer.weight, W0 + factor * delta, "weight that is merged for the second time", tolerance=1e-6)
    layer.unmerge()
### END HIDDEN TESTS

# %% test merge drift 1
rng = student_rng(STUDENT, "drift")
W0, delta = rng.normal(size=(5, 5)), rng.normal(size=(5, 5))
given = W0.copy()
layer = Mergeable(given)
yours(layer.merge, delta)
expect_close(layer.weight, W0 + delta, "merged weight")
assert np.array_equal(given, W0), "The array that was handed in has changed: merging must make a new one."
### BEGIN HIDDEN TESTS
layer.unmerge()
for k in range(100):
    yours(layer.merge, delta * (k + 1))
    layer.unmerge()
assert np.array_equal(layer.weight, W0), "After a hundred merges the weight has drifted."
assert np.array_equal(given, W0), "The array that was handed in has changed: merging must make a new one."
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


# %% test count number 1
rng = student_rng(STUDENT, "count")
expect_close(yours(lora_count, [(1024, 1024)] * 2 * 24, 4), 393_216, "number for GPT-2 medium")
expect_close(yours(lora_count, [(1024, 1024)], 1), 2048, "number for one square matrix and rank 1")
### BEGIN HIDDEN TESTS
model, r = ml.GPT(ml.GPTConfig(96, 20, 32, 3, 4)), int(rng.integers(2, 9))
trained = ml.add_lora(model, ml.LoRAConfig(r, target_modules=("fc_in", "q_proj")))
expect_close(yours(lora_count, [(128, 32), (32, 32)] * 3, r), sum(p.size for p in trained), f"number for rank {r}")
### END HIDDEN TESTS
