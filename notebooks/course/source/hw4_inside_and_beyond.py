# %% [markdown]
# # Homework 4: Inside and beyond
#
# Comparing what two runs learned, serving many adapters at once, and leaving NumPy. Read notebooks 8, 9 and 10 first.
#
# Put your name or number between the quotes: your numbers will be your own, and no test runs before you do. Everything is
# float64. Functions return new arrays and leave the ones they are given as they were.

# %%
import math

import numpy as np

from minilora.tools.course import expect_close, student_rng, yours

STUDENT = "student"

# %% [markdown]
# ## 13. Similar subspaces (2 points)
#
# $\varphi(i, j) = \lVert U_i^\top V_j\rVert_F^2/\min(i, j)$ for the first $i$ columns of $U$ and the first $j$ of $V$, both with
# orthonormal columns (§7.2, equation 4): for $i = j$ (1 point), and for any two (1 point).


# %% solution phi
def phi(U, V, i, j):
    ### BEGIN SOLUTION
    return float(((U[:, :i].T @ V[:, :j]) ** 2).sum() / min(i, j))
    ### END SOLUTION


# %% test phi same_size 1
rng = student_rng(STUDENT, "phi")
U, V = (np.linalg.qr(rng.normal(size=(10, 6)))[0] for _ in range(2))
expect_close(yours(phi, U, U, 3, 3), 1.0, "φ of a subspace with itself")
expect_close(yours(phi, np.eye(4), np.eye(4)[:, ::-1], 3, 3), 2 / 3, "φ where two of three directions are shared")
### BEGIN HIDDEN TESTS
for i in (1, 4, 6):
    expect_close(yours(phi, U, V, i, i), ((U[:, :i].T @ V[:, :i]) ** 2).sum() / i, f"φ({i}, {i})")
### END HIDDEN TESTS

# %% test phi any_size 1
rng = student_rng(STUDENT, "phi, any size")
U, V = (np.linalg.qr(rng.normal(size=(10, 6)))[0] for _ in range(2))
expect_close(yours(phi, U, U, 2, 5), 1.0, "φ of a subspace and one that contains it")
expect_close(yours(phi, np.eye(4), np.eye(4)[:, ::-1], 2, 3), 1 / 2, "φ where one of two directions is shared")
### BEGIN HIDDEN TESTS
expect_close(yours(phi, U, U, 5, 2), 1.0, "φ of a subspace and one within it")
expect_close(yours(phi, U, V, 3, 5), ((U[:, :3].T @ V[:, :5]) ** 2).sum() / 3, "φ(3, 5)")
### END HIDDEN TESTS

# %% [markdown]
# ## 14. Many adapters in one batch (3 points)
#
# Rows $X$ (n, in), one frozen $W_0$ (out, in), several adapters $A$ (k, r, in) and $B$ (k, out, r), and which one each row wants
# (n,). Return $h$ (n, out), row by row $W_0x + s\,B_iA_ix$, without a Python loop over the rows: where all rows want the same one
# (1 point), and where they want different ones (2 points).


# %% solution many
def batch_of_adapters(X, W0, A, B, s, which):
    ### BEGIN SOLUTION
    z = np.einsum("nri,ni->nr", A[which], X)
    return X @ W0.T + s * np.einsum("nor,nr->no", B[which], z)
    ### END SOLUTION


# %% test many same 1
rng = student_rng(STUDENT, "many adapters")
X, W0 = rng.normal(size=(6, 5)), rng.normal(size=(4, 5))
A, B = rng.normal(size=(3, 2, 5)), rng.normal(size=(3, 4, 2))
h = yours(batch_of_adapters, X, W0, A, B, 0.5, np.zeros(6, dtype=int))
expect_close(h, X @ (W0 + 0.5 * B[0] @ A[0]).T, "output when all want adapter 0")
### BEGIN HIDDEN TESTS
for i in (1, 2):
    h = yours(batch_of_adapters, X, W0, A, B, 2.0, np.full(6, i))
    expect_close(h, X @ (W0 + 2.0 * B[i] @ A[i]).T, f"output when all want adapter {i}")
### END HIDDEN TESTS

# %% test many different 2
rng = student_rng(STUDENT, "many adapters, different ones")
X, W0 = np.array([[1.0, 2], [1, 2]]), np.zeros((1, 2))
A, B = np.array([[[1.0, 0]], [[0, 1]]]), np.array([[[1.0]], [[10]]])
h = yours(batch_of_adapters, X, W0, A, B, 1.0, np.array([0, 1]))
expect_close(h, [[1], [20]], "output when the first row wants adapter 0 and the second adapter 1")
### BEGIN HIDDEN TESTS
X, W0 = rng.normal(size=(6, 5)), rng.normal(size=(4, 5))
A, B = rng.normal(size=(3, 2, 5)), rng.normal(size=(3, 4, 2))
which = np.array([2, 0, 1, 1, 2, 0])
expected = np.stack([(W0 + 0.5 * B[i] @ A[i]) @ x for x, i in zip(X, which, strict=True)])
h = yours(batch_of_adapters, X, W0, A, B, 0.5, which)
expect_close(h, expected, "output when rows want different adapters")
### END HIDDEN TESTS

# %% [markdown]
# ## 15. Swap the backend (2 points)
#
# GELU in GPT-2's form, $\frac12x\,(1 + \tanh(\sqrt{2/\pi}\,(x + 0.044715x^3)))$, for an array of *any* library: `xp` is the module (NumPy,
# 1 point, or CuPy on a GPU), and a GPU's array may be given to no function of `np` (1 point).


# %% solution backend
def gelu(xp, x):
    ### BEGIN SOLUTION
    return 0.5 * x * (1 + xp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    ### END SOLUTION


# %% test backend numpy 1
rng = student_rng(STUDENT, "backend")
expect_close(yours(gelu, np, np.array([0.0, 1.0])), [0, 0.8411919906], "GELU of 0 and 1", tolerance=1e-9)
### BEGIN HIDDEN TESTS
x = rng.normal(size=12)
expected = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
expect_close(yours(gelu, np, x), expected, "GELU with NumPy")
### END HIDDEN TESTS


# %% test backend device 1
class DeviceArray:
    """An array that lives elsewhere: it knows arithmetic, and nothing of NumPy."""

    __array_ufunc__ = None

    def __init__(self, values):
        self.values = values

    def __array__(self, *args, **kwargs):
        raise TypeError("An array of the device was given to NumPy.")

    def __add__(self, other):
        return DeviceArray(self.values + getattr(other, "values", other))

    def __mul__(self, other):
        return DeviceArray(self.values * getattr(other, "values", other))

    def __truediv__(self, other):
        return DeviceArray(self.values / getattr(other, "values", other))

    def __pow__(self, exponent):
        return DeviceArray(self.values**exponent)

    __radd__, __rmul__ = __add__, __mul__


class DeviceLibrary:
    """A library that looks like NumPy, for arrays of the device."""

    pi = math.pi

    def __getattr__(self, name):
        return lambda *arrays: DeviceArray(getattr(np, name)(*(getattr(a, "values", a) for a in arrays)))


x = np.append(1.0, student_rng(STUDENT, "device").normal(size=12))
got = gelu(DeviceLibrary(), DeviceArray(x.copy()))
assert isinstance(got, DeviceArray), f"GELU of an array of the device should be another one; yours is {type(got)}."
expect_close(got.values[0], 0.8411919906, "GELU of 1 on the device", tolerance=1e-9)
### BEGIN HIDDEN TESTS
expected = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
expect_close(got.values, expected, "GELU on the device")
### END HIDDEN TESTS
