# %% [markdown]
# # Homework 4: Inside and beyond
#
# Comparing what two runs learned, serving many adapters at once, and leaving NumPy. Read notebooks 8, 9 and 10 first.
#
# Put your name or number between the quotes: your numbers will be your own. Everything is float64.

# %%
import math

import numpy as np

from minilora.tools.course import expect_close, student_rng

STUDENT = "student"

# %% [markdown]
# ## 13. Similar subspaces (2 points)
#
# $\varphi(i, j) = \lVert U_i^\top V_j\rVert_F^2/\min(i, j)$ for the first $i$ columns of $U$ and the first $j$ of $V$, both with
# orthonormal columns (§7.2, equation 4).


# %% solution phi
def phi(U, V, i, j):
    ### BEGIN SOLUTION
    return float(((U[:, :i].T @ V[:, :j]) ** 2).sum() / min(i, j))
    ### END SOLUTION


# %% test phi 2
rng = student_rng(STUDENT, "phi")
U, V = (np.linalg.qr(rng.normal(size=(10, 6)))[0] for _ in range(2))
expect_close(phi(U, U, 3, 3), 1.0, "φ of a subspace with itself")
assert 0 <= phi(U, V, 4, 4) <= 1
### BEGIN HIDDEN TESTS
expect_close(phi(U, U, 2, 5), 1.0, "φ of a subspace and one that contains it")
expect_close(phi(U, U, 5, 2), 1.0, "φ of a subspace and one within it")
expect_close(phi(U, V, 3, 5), ((U[:, :3].T @ V[:, :5]) ** 2).sum() / 3, "φ(3, 5)")
### END HIDDEN TESTS

# %% [markdown]
# ## 14. Many adapters in one batch (3 points)
#
# Rows $X$ (n, in), one frozen $W_0$ (out, in), several adapters $A$ (k, r, in) and $B$ (k, out, r), and which one each row wants
# (n,). Return $h$ (n, out), row by row $W_0x + s\,B_iA_ix$, without a Python loop over the rows.


# %% solution many
def batch_of_adapters(X, W0, A, B, s, which):
    ### BEGIN SOLUTION
    z = np.einsum("nri,ni->nr", A[which], X)
    return X @ W0.T + s * np.einsum("nor,nr->no", B[which], z)
    ### END SOLUTION


# %% test many 3
rng = student_rng(STUDENT, "many adapters")
X, W0 = rng.normal(size=(6, 5)), rng.normal(size=(4, 5))
A, B = rng.normal(size=(3, 2, 5)), rng.normal(size=(3, 4, 2))
same = np.zeros(6, dtype=int)
expect_close(
    batch_of_adapters(X, W0, A, B, 0.5, same), X @ (W0 + 0.5 * B[0] @ A[0]).T, "output when all want adapter 0"
)
### BEGIN HIDDEN TESTS
which = np.array([2, 0, 1, 1, 2, 0])
expected = np.stack([(W0 + 0.5 * B[i] @ A[i]) @ x for x, i in zip(X, which, strict=True)])
expect_close(batch_of_adapters(X, W0, A, B, 0.5, which), expected, "output when rows want different adapters")
### END HIDDEN TESTS

# %% [markdown]
# ## 15. Swap the backend (2 points)
#
# GELU in GPT-2's form, $\frac12x\,(1 + \tanh(\sqrt{2/\pi}\,(x + 0.044715x^3)))$, for an array of *any* library: `xp` is the module (NumPy,
# or CuPy on a GPU), and a GPU's array may be given to no function of `np`.


# %% solution backend
def gelu(xp, x):
    ### BEGIN SOLUTION
    return 0.5 * x * (1 + xp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    ### END SOLUTION


# %% test backend 2
x = student_rng(STUDENT, "backend").normal(size=12)
expected = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
expect_close(gelu(np, x), expected, "GELU with NumPy")
### BEGIN HIDDEN TESTS


class DeviceArray:
    """An array that lives elsewhere: it knows arithmetic, and nothing of NumPy."""

    __array_ufunc__ = None

    def __init__(self, values):
        self.values = values

    def __array__(self, *args, **kwargs):
        raise TypeError("An array of the device was given to NumPy.")

    def __mul__(self, other):
        return DeviceArray(self.values * getattr(other, "values", other))

    def __add__(self, other):
        return DeviceArray(self.values + getattr(other, "values", other))

    def __pow__(self, exponent):
        return DeviceArray(self.values**exponent)

    __rmul__, __radd__ = __mul__, __add__


class DeviceLibrary:
    @staticmethod
    def tanh(array):
        return DeviceArray(np.tanh(array.values))


expect_close(gelu(DeviceLibrary, DeviceArray(x)).values, expected, "GELU on the device")
### END HIDDEN TESTS
