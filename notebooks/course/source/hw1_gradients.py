# %% [markdown]
# # Homework 1: Gradients
#
# Four backward passes by hand. Write each where it says so; the cells below it check what you wrote with
# `ml.check_gradient`, and when it is graded a few more cases are tried. Read notebooks 0, 1 and 2 first.
#
# Put your name or number between the quotes: your numbers will be your own, and no test runs before you do. Everything is
# float64. Functions return new arrays and leave the ones they are given as they were.

# %%
import numpy as np

import minilora as ml
from minilora.tools.course import expect_close, student_rng, yours

STUDENT = "student"

# %% [markdown]
# ## 1. The backward of matmul (2 points)
#
# $C = AB$ with $A$ (..., n, k) and $B$ (..., k, m), the leading axes equal. Given $G = \partial L/\partial C$, return
# $\partial L/\partial A$ (1 point) and $\partial L/\partial B$ (1 point).


# %% solution matmul
def matmul_backward(A, B, G):
    ### BEGIN SOLUTION
    return G @ B.swapaxes(-1, -2), A.swapaxes(-1, -2) @ G
    ### END SOLUTION


# %% test matmul dA 1
rng = student_rng(STUDENT, "matmul")
A, B, G = rng.normal(size=(3, 3)), rng.normal(size=(3, 3)), rng.normal(size=(3, 3))
assert ml.check_gradient(lambda a: (a @ B * G).sum(), lambda a: yours(matmul_backward, a, B, G)[0], A)
### BEGIN HIDDEN TESTS
A, B, G = rng.normal(size=(4, 3, 3)), rng.normal(size=(4, 3, 3)), rng.normal(size=(4, 3, 3))
assert ml.check_gradient(lambda a: (a @ B * G).sum(), lambda a: yours(matmul_backward, a, B, G)[0], A)
### END HIDDEN TESTS

# %% test matmul dB 1
rng = student_rng(STUDENT, "matmul")
A, B, G = rng.normal(size=(3, 3)), rng.normal(size=(3, 3)), rng.normal(size=(3, 3))
assert ml.check_gradient(lambda b: (A @ b * G).sum(), lambda b: yours(matmul_backward, A, b, G)[1], B)
### BEGIN HIDDEN TESTS
A, B, G = rng.normal(size=(4, 3, 3)), rng.normal(size=(4, 3, 3)), rng.normal(size=(4, 3, 3))
assert ml.check_gradient(lambda b: (A @ b * G).sum(), lambda b: yours(matmul_backward, A, b, G)[1], B)
### END HIDDEN TESTS

# %% [markdown]
# ## 2. The gradient of a broadcast (2 points)
#
# In $y = x + b$ NumPy repeats the smaller array. What was repeated gets the *sum* of the gradients of its copies. Given
# $g = \partial L/\partial y$ and the shape of one operand, return its gradient, of that shape. Axes may be repeated
# because they have length 1 (1 point), or because they are missing in front, some of each too (1 point).


# %% solution broadcast
def unbroadcast(g, shape):
    ### BEGIN SOLUTION
    lead = g.ndim - len(shape)
    axes = tuple(range(lead)) + tuple(lead + i for i, n in enumerate(shape) if n == 1 and g.shape[lead + i] > 1)
    return g.sum(axis=axes, keepdims=True).reshape(shape)
    ### END SOLUTION


# %% test broadcast length_one 1
g = student_rng(STUDENT, "broadcast").normal(size=(4, 3))
expect_close(yours(unbroadcast, g, (4, 3)), g, "gradient of what was not repeated")
expect_close(yours(unbroadcast, g, (1, 3)), g.sum(axis=0, keepdims=True), "gradient of a row repeated four times")
### BEGIN HIDDEN TESTS
rng = student_rng(STUDENT, "broadcast, length one")
g = rng.normal(size=(2, 4, 3))
for shape in ((2, 1, 3), (1, 4, 1), (1, 1, 1)):
    x = rng.normal(size=shape)
    assert ml.check_gradient(lambda b: ((np.zeros(g.shape) + b) * g).sum(), lambda b: yours(unbroadcast, g, b.shape), x)
### END HIDDEN TESTS

# %% test broadcast missing 1
g = student_rng(STUDENT, "broadcast").normal(size=(4, 3))
expect_close(yours(unbroadcast, g, (3,)), g.sum(axis=0), "gradient of a vector added to four rows")
### BEGIN HIDDEN TESTS
rng = student_rng(STUDENT, "broadcast, missing")
g = rng.normal(size=(2, 4, 3))
for shape in ((3,), (4, 1), (), (1,)):
    x = rng.normal(size=shape)
    assert ml.check_gradient(lambda b: ((np.zeros(g.shape) + b) * g).sum(), lambda b: yours(unbroadcast, g, b.shape), x)
### END HIDDEN TESTS

# %% [markdown]
# ## 3. The backward of layer norm (3 points)
#
# $\hat x = (x - \mu)/\sqrt{\mathrm{var} + \varepsilon}$ over the last axis, without weight and bias: `normalised` below. Given
# $g = \partial L/\partial\hat x$, return $\partial L/\partial x$: for rows (2 points), and for any leading axes and any ε (1 point).
# (Derive it on paper: both $\mu$ and the variance depend on every entry of the row.)


# %% given layer_norm
def normalised(x, eps=1e-5):
    return (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + eps)


# %% solution layer_norm
def layer_norm_backward(x, g, eps=1e-5):
    ### BEGIN SOLUTION
    sigma = np.sqrt(x.var(axis=-1, keepdims=True) + eps)
    x_hat = (x - x.mean(axis=-1, keepdims=True)) / sigma
    return (g - g.mean(axis=-1, keepdims=True) - x_hat * (g * x_hat).mean(axis=-1, keepdims=True)) / sigma
    ### END SOLUTION


# %% test layer_norm rows 2
rng = student_rng(STUDENT, "layer norm")
x, g = rng.normal(size=(5, 8)), rng.normal(size=(5, 8))
dx = yours(layer_norm_backward, x, g)
expect_close(dx.sum(axis=-1) + 1, np.ones(5), "sum of a row's gradient, plus one (a shift of x changes nothing)")
ahead, behind = normalised(x + 1e-5 * g), normalised(x - 1e-5 * g)
expect_close((dx * g).sum(), ((ahead - behind) * g).sum() / 2e-5, "slope along g itself", tolerance=1e-6)
### BEGIN HIDDEN TESTS
assert ml.check_gradient(lambda x: (normalised(x) * g).sum(), lambda x: yours(layer_norm_backward, x, g), x)
### END HIDDEN TESTS

# %% test layer_norm axes_and_eps 1
rng = student_rng(STUDENT, "layer norm, axes and ε")
x, g = rng.normal(size=(2, 4, 4)) * 3 + 1, rng.normal(size=(2, 4, 4))
ahead, behind = normalised(x + 1e-5 * g), normalised(x - 1e-5 * g)
slope = ((ahead - behind) * g).sum() / 2e-5
expect_close((yours(layer_norm_backward, x, g) * g).sum(), slope, "slope along g, for x (2, 4, 4)", tolerance=1e-6)
### BEGIN HIDDEN TESTS
assert ml.check_gradient(lambda x: (normalised(x) * g).sum(), lambda x: yours(layer_norm_backward, x, g), x)
eps = 0.5
assert ml.check_gradient(lambda x: (normalised(x, eps) * g).sum(), lambda x: yours(layer_norm_backward, x, g, eps), x)
### END HIDDEN TESTS

# %% [markdown]
# ## 4. Softmax cross-entropy (3 points)
#
# $L$ is the *mean* of $-\log\mathrm{softmax}(z)_{t}$ over the rows whose target $t$ is not −100: `mean_loss` below. Given logits $z$
# (M, V) and targets (M,), return $\partial L/\partial z$ (1 point). Rows that are ignored have no part in the loss, nor in its
# mean (1 point), and logits of a thousand are no problem (1 point).


# %% given cross_entropy
def mean_loss(z, targets):
    counted = targets != -100
    z = z[counted] - z[counted].max(axis=-1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
    return -log_p[np.arange(len(z)), targets[counted]].mean()


# %% solution cross_entropy
def cross_entropy_backward(logits, targets):
    ### BEGIN SOLUTION
    counted = targets != -100
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    d = e / e.sum(axis=-1, keepdims=True)
    d[np.flatnonzero(counted), targets[counted]] -= 1
    d[~counted] = 0
    return d / counted.sum()
    ### END SOLUTION


# %% test cross_entropy gradient 1
rng = student_rng(STUDENT, "cross-entropy")
z, t = rng.normal(size=(6, 5)), rng.integers(0, 5, 6)
assert ml.check_gradient(lambda z: mean_loss(z, t), lambda z: yours(cross_entropy_backward, z, t), z)
### BEGIN HIDDEN TESTS
z, t = rng.normal(size=(3, 7)), rng.integers(0, 7, 3)
assert ml.check_gradient(lambda z: mean_loss(z, t), lambda z: yours(cross_entropy_backward, z, t), z)
### END HIDDEN TESTS

# %% test cross_entropy ignored 1
rng = student_rng(STUDENT, "cross-entropy, ignored rows")
z, t = rng.normal(size=(4, 5)), np.array([1, -100, 0, 2])
d = yours(cross_entropy_backward, z, t)
expect_close(d[1], np.zeros(5), "gradient of an ignored row")
assert np.any(d[0] != 0), "Rows that are not ignored have a gradient; yours is zero."
### BEGIN HIDDEN TESTS
assert ml.check_gradient(lambda z: mean_loss(z, t), lambda z: yours(cross_entropy_backward, z, t), z)
t = np.array([-100, -100, 4, -100])
assert ml.check_gradient(lambda z: mean_loss(z, t), lambda z: yours(cross_entropy_backward, z, t), z)
### END HIDDEN TESTS

# %% test cross_entropy large 1
z = 1000 + student_rng(STUDENT, "cross-entropy, large").normal(size=(3, 4))
t = np.array([0, 3, 1])
small, large = yours(cross_entropy_backward, z - 1000, t), yours(cross_entropy_backward, z, t)
assert np.all(np.any(small != 0, axis=1)), "Every row has a gradient; yours is zero."
expect_close(large, small, "gradient with 1000 added to every logit, which changes no probability", tolerance=1e-6)
expect_close(small.sum(axis=1) + 1, np.ones(3), "sum of a row's gradient, plus one")
### BEGIN HIDDEN TESTS
large = yours(cross_entropy_backward, np.array([[1000.0, 0.0]]), np.array([1]))
expect_close(large, [[1.0, -1.0]], "gradient at large logits")
### END HIDDEN TESTS
