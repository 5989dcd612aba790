# %% [markdown]
# # Homework 3: α and rank
#
# Two equalities and a search. Read notebooks 4 and 5 first.
#
# Put your name or number between the quotes: your numbers will be your own. Everything is float64.

# %%
import numpy as np

from minilora.tools.course import expect_close, student_rng

STUDENT = "student"

# %% [markdown]
# ## 10. The α identity (4 points)
#
# A run has α, a learning rate, a standard deviation of $A_0$ and, with Adam, an ε. Someone wants to use `new_alpha` instead,
# and still get the *same* $\Delta W$ at every step. Return the learning rate, the standard deviation and the ε that do it, for
# `optimizer` "adam" and "sgd" (for SGD return ε as it was). Prove it on paper first: write $A' = \sqrt c A$, $B' = \sqrt c B$.


# %% solution alpha
def same_run(alpha, lr, std, eps, new_alpha, optimizer):
    ### BEGIN SOLUTION
    c = alpha / new_alpha
    if optimizer == "adam":
        return lr * c**0.5, std * c**0.5, eps / c**0.5
    return lr * c, std * c**0.5, eps
    ### END SOLUTION


# %% test alpha 4
rng = student_rng(STUDENT, "alpha")
D, d = rng.normal(size=(6, 6)), 6
start = rng.normal(size=(2, d))


def delta_of(alpha, lr, std, eps, optimizer, steps=30):
    """ΔW after some steps on L = ½‖ΔW − D‖², r = 2."""
    A, B, s = std * start, np.zeros((d, 2)), alpha / 2
    m, v = [0.0, 0.0], [0.0, 0.0]
    for t in range(1, steps + 1):
        G = s * B @ A - D
        updates = []
        for i, g in enumerate((s * B.T @ G, s * G @ A.T)):
            m[i], v[i] = 0.9 * m[i] + 0.1 * g, 0.999 * v[i] + 0.001 * g * g
            adam = (m[i] / (1 - 0.9**t)) / (np.sqrt(v[i] / (1 - 0.999**t)) + eps)
            updates.append(adam if optimizer == "adam" else g)
        A, B = A - lr * updates[0], B - lr * updates[1]
    return s * B @ A


for optimizer in ("adam", "sgd"):
    expect_close(same_run(4.0, 0.01, 0.5, 1e-6, 4.0, optimizer), (0.01, 0.5, 1e-6), "setting for the same α")
### BEGIN HIDDEN TESTS
for optimizer, lr in (("adam", 0.01), ("sgd", 0.02)):
    for new_alpha in (1.0, 16.0, 3.0):
        wanted = delta_of(4.0, lr, 0.5, 1e-3, optimizer)
        found = same_run(4.0, lr, 0.5, 1e-3, new_alpha, optimizer)
        got = delta_of(new_alpha, *found, optimizer)
        expect_close(got, wanted, f"ΔW of {optimizer} with α = {new_alpha:g} instead of 4")
### END HIDDEN TESTS

# %% [markdown]
# ## 11. Find the planted rank (3 points)
#
# You see inputs $X$ (d, n) and what a teacher answers, $Y = (W_0 + D)X$, with $n \ge d$ and a little noise (about a millionth of
# the answers). What is the rank of $D$?


# %% solution planted
def planted_rank(W0, X, Y):
    ### BEGIN SOLUTION
    D = np.linalg.lstsq(X.T, (Y - W0 @ X).T, rcond=None)[0].T
    s = np.linalg.svd(D, compute_uv=False)
    return int((s > 1e-3 * s[0]).sum())
    ### END SOLUTION


# %% test planted 3
def teacher(rank, d, n, rng):
    W0, D = rng.normal(size=(d, d)), rng.normal(size=(d, rank)) @ rng.normal(size=(rank, d))
    X = rng.normal(size=(d, n))
    Y = (W0 + D) @ X
    return W0, X, Y + 1e-6 * rng.normal(size=Y.shape)


rng = student_rng(STUDENT, "planted rank")
assert planted_rank(*teacher(2, 12, 40, rng)) == 2
### BEGIN HIDDEN TESTS
for rank, d, n in ((1, 8, 30), (5, 16, 64), (3, 10, 20), (7, 9, 50)):
    found = planted_rank(*teacher(rank, d, n, rng))
    assert found == rank, f"A change of rank {rank} in {d} dimensions was taken for rank {found}."
### END HIDDEN TESTS

# %% [markdown]
# ## 12. The best matrix of rank k (2 points)
#
# Eckart and Young (1936): return the matrix of rank at most $k$ that is nearest to $D$, and how far it is, $\lVert D - D_k\rVert_F^2$.


# %% solution best
def best_of_rank(D, k):
    ### BEGIN SOLUTION
    U, s, Vh = np.linalg.svd(D, full_matrices=False)
    return (U[:, :k] * s[:k]) @ Vh[:k], float((s[k:] ** 2).sum())
    ### END SOLUTION


# %% test best 2
rng = student_rng(STUDENT, "best of rank k")
D = rng.normal(size=(7, 5))
nearest, distance = best_of_rank(D, 5)
expect_close(nearest, D, "nearest matrix of full rank")
assert best_of_rank(D, 2)[0].shape == D.shape
### BEGIN HIDDEN TESTS
s = np.linalg.svd(D, compute_uv=False)
for k in (0, 1, 2, 3, 4):
    nearest, distance = best_of_rank(D, k)
    assert np.linalg.matrix_rank(nearest) <= k
    expect_close(((D - nearest) ** 2).sum(), (s[k:] ** 2).sum(), f"distance of the nearest matrix of rank {k}")
    expect_close(distance, (s[k:] ** 2).sum(), f"distance that you report for rank {k}")
### END HIDDEN TESTS
