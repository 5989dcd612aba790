# %% [markdown]
# # Homework 1: Gradients
#
# Four backward passes by hand. Write each where it says so; the cell below it checks what you wrote with
# `ml.check_gradient`, and when it is graded a few more cases are tried. Read notebooks 0, 1 and 2 first.
#
# Put your name or number between the quotes: your numbers will be your own. Everything is float64.

# %%
import numpy as np

import minilora as ml
from minilora.tools.course import expect_close, student_rng

STUDENT = "student"

# %% [markdown]
# ## 1. The backward of matmul (2 points)
#
# $C = AB$ with $A$ (..., n, k) and $B$ (..., k, m), the leading axes equal. Given $G = \partial L/\partial C$, return
# $\partial L/\partial A$ and $\partial L/\partial B$.


# %% solution matmul
def matmul_backward(A, B, G):
    ### BEGIN SOLUTION
    return G @ B.swapaxes(-1, -2), A.swapaxes(-1, -2) @ G
    ### END SOLUTION


# %% test matmul 2
rng = student_rng(STUDENT, "matmul")
A, B, G = rng.normal(size=(3, 3)), rng.normal(size=(3, 3)), rng.normal(size=(3, 3))
assert [d.shape for d in matmul_backward(A, B, G)] == [A.shape, B.shape]
assert ml.check_gradient(lambda a: (a @ B * G).sum(), lambda a: matmul_backward(a, B, G)[0], A)
### BEGIN HIDDEN TESTS
assert ml.check_gradient(lambda b: (A @ b * G).sum(), lambda b: matmul_backward(A, b, G)[1], B)
A, B, G = rng.normal(size=(4, 2, 5)), rng.normal(size=(4, 5, 3)), rng.normal(size=(4, 2, 3))
assert ml.check_gradient(lambda a: (a @ B * G).sum(), lambda a: matmul_backward(a, B, G)[0], A)
assert ml.check_gradient(lambda b: (A @ b * G).sum(), lambda b: matmul_backward(A, b, G)[1], B)
### END HIDDEN TESTS

# %% [markdown]
# ## 2. The gradient of a broadcast (2 points)
#
# In $y = x + b$ NumPy repeats the smaller array. What was repeated gets the *sum* of the gradients of its copies. Given
# $g = \partial L/\partial y$ and the shape of one operand, return its gradient, of that shape. Axes may be repeated
# because they have length 1, or because they are missing in front.


# %% solution broadcast
def unbroadcast(g, shape):
    ### BEGIN SOLUTION
    lead = g.ndim - len(shape)
    axes = tuple(range(lead)) + tuple(lead + i for i, n in enumerate(shape) if n == 1 and g.shape[lead + i] > 1)
    return g.sum(axis=axes, keepdims=True).reshape(shape)
    ### END SOLUTION


# %% test broadcast 2
rng = student_rng(STUDENT, "broadcast")
g = rng.normal(size=(4, 3))
expect_close(unbroadcast(g, (4, 3)), g, "gradient of what was not repeated")
expect_close(unbroadcast(g, (1, 3)), g.sum(axis=0, keepdims=True), "gradient of a row repeated four times")
### BEGIN HIDDEN TESTS
g = rng.normal(size=(2, 4, 3))
for shape in ((3,), (4, 1), (2, 1, 3), (1, 4, 1), (), (1,)):
    x = rng.normal(size=shape)
    assert ml.check_gradient(lambda b: ((np.zeros((2, 4, 3)) + b) * g).sum(), lambda b: unbroadcast(g, b.shape), x)
### END HIDDEN TESTS

# %% [markdown]
# ## 3. The backward of layer norm (3 points)
#
# $\hat x = (x - \mu)/\sqrt{\mathrm{var} + \varepsilon}$ over the last axis, without weight and bias. Given
# $g = \partial L/\partial\hat x$, return $\partial L/\partial x$. (Derive it on paper: both $\mu$ and the variance depend
# on every entry of the row.)


# %% solution layer_norm
def layer_norm_backward(x, g, eps=1e-5):
    ### BEGIN SOLUTION
    sigma = np.sqrt(x.var(axis=-1, keepdims=True) + eps)
    x_hat = (x - x.mean(axis=-1, keepdims=True)) / sigma
    return (g - g.mean(axis=-1, keepdims=True) - x_hat * (g * x_hat).mean(axis=-1, keepdims=True)) / sigma
    ### END SOLUTION


# %% test layer_norm 3
rng = student_rng(STUDENT, "layer norm")
x, g = rng.normal(size=(5, 8)), rng.normal(size=(5, 8))
dx = layer_norm_backward(x, g)
assert dx.shape == x.shape
expect_close(dx.sum(axis=-1) + 1, np.ones(5), "sum of a row's gradient, plus one (a shift of x changes nothing)")
### BEGIN HIDDEN TESTS


def normalised(x):
    return (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)


assert ml.check_gradient(lambda x: (normalised(x) * g).sum(), lambda x: layer_norm_backward(x, g), x)
x, g = rng.normal(size=(2, 3, 16)) * 3 + 1, rng.normal(size=(2, 3, 16))
assert ml.check_gradient(lambda x: (normalised(x) * g).sum(), lambda x: layer_norm_backward(x, g), x)
### END HIDDEN TESTS

# %% [markdown]
# ## 4. Softmax cross-entropy (3 points)
#
# $L$ is the *mean* of $-\log\mathrm{softmax}(z)_{t}$ over the rows whose target $t$ is not −100. Given logits $z$ (M, V) and
# targets (M,), return $\partial L/\partial z$. Rows that are ignored have no part in the loss, nor in its mean.


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


# %% test cross_entropy 3
rng = student_rng(STUDENT, "cross-entropy")
logits, targets = rng.normal(size=(6, 5)), rng.integers(0, 5, 6)


def loss(z):
    counted = targets != -100
    z = z[counted] - z[counted].max(axis=-1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
    return -log_p[np.arange(len(z)), targets[counted]].mean()


assert ml.check_gradient(loss, lambda z: cross_entropy_backward(z, targets), logits)
### BEGIN HIDDEN TESTS
targets[[0, 3]] = -100
assert ml.check_gradient(loss, lambda z: cross_entropy_backward(z, targets), logits)
large = cross_entropy_backward(np.array([[1000.0, 0.0]]), np.array([1]))
expect_close(large, [[1.0, -1.0]], "gradient at large logits")
### END HIDDEN TESTS
