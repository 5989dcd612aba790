# %% [markdown]
# # Homework 3: α and rank
#
# Two equalities and a search. Read notebooks 4 and 5 first.
#
# Put your name or number between the quotes: your numbers will be your own, and no test runs before you do. Everything is
# float64. Functions return new arrays and leave the ones they are given as they were.

# %%
import numpy as np

from minilora.tools.course import expect_close, student_rng, yours

STUDENT = "student"

# %% [markdown]
# ## 10. The α identity (4 points)
#
# A run has α, a learning rate, a standard deviation of $A_0$ and, with Adam, an ε. Someone wants to use `new_alpha` instead,
# and still get the *same* $\Delta W$ at every step: `delta_of` below makes such a run. Return the learning rate, the standard
# deviation and the ε that do it, for `optimizer` "adam" (2 points, and 1 for its ε) and "sgd" (1 point; return ε as it was).
# Prove it on paper first: write $A' = \sqrt c A$, $B' = \sqrt c B$.


# %% given alpha
def delta_of(start, D, alpha, lr, std, eps, optimizer, steps=30):
    """ΔW after some steps on L = ½‖ΔW − D‖², with A = std · start (r, in) and B = 0 at the start."""
    A, B, s = std * start, np.zeros((len(D), len(start))), alpha / len(start)
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


# %% solution alpha
def same_run(alpha, lr, std, eps, new_alpha, optimizer):
    ### BEGIN SOLUTION
    c = alpha / new_alpha
    if optimizer == "adam":
        return lr * c**0.5, std * c**0.5, eps / c**0.5
    return lr * c, std * c**0.5, eps
    ### END SOLUTION


# %% test alpha adam 2
rng = student_rng(STUDENT, "alpha, Adam")
start, D = rng.normal(size=(2, 6)), rng.normal(size=(6, 6))
expect_close(same_run(4.0, 0.01, 0.5, 1e-30, 4.0, "adam"), (0.01, 0.5, 1e-30), "setting for the same α")
lr, std, _ = same_run(4.0, 0.01, 0.5, 1e-30, 1.0, "adam")
wanted, got = delta_of(start, D, 4.0, 0.01, 0.5, 1e-30, "adam"), delta_of(start, D, 1.0, lr, std, 1e-30, "adam")
expect_close(got, wanted, "ΔW of Adam (hardly any ε) with α = 1 instead of 4")
### BEGIN HIDDEN TESTS
for new_alpha in (16.0, 3.0):
    lr, std, _ = same_run(4.0, 0.01, 0.5, 1e-30, new_alpha, "adam")
    got = delta_of(start, D, new_alpha, lr, std, 1e-30, "adam")
    expect_close(got, wanted, f"ΔW of Adam (hardly any ε) with α = {new_alpha:g} instead of 4")
### END HIDDEN TESTS

# %% test alpha adam_eps 1
rng = student_rng(STUDENT, "alpha, ε")
start, D = rng.normal(size=(2, 6)), rng.normal(size=(6, 6))
c = 4.0
eps = same_run(4.0, 0.01, 0.5, 1e-3, 4.0 / c, "adam")[2]
wanted = delta_of(start, D, 4.0, 0.01, 0.5, 1e-3, "adam")
got = delta_of(start, D, 4.0 / c, 0.01 * c**0.5, 0.5 * c**0.5, eps, "adam")
expect_close(got, wanted, "ΔW of Adam with your ε, and the right learning rate and start, with α = 1 instead of 4")
### BEGIN HIDDEN TESTS
for new_alpha in (16.0, 3.0):
    c = 4.0 / new_alpha
    eps = same_run(4.0, 0.01, 0.5, 1e-3, new_alpha, "adam")[2]
    got = delta_of(start, D, new_alpha, 0.01 * c**0.5, 0.5 * c**0.5, eps, "adam")
    expect_close(got, wanted, f"ΔW of Adam with your ε and α = {new_alpha:g} instead of 4")
### END HIDDEN TESTS

# %% test alpha sgd 1
rng = student_rng(STUDENT, "alpha, SGD")
start, D = rng.normal(size=(2, 6)), rng.normal(size=(6, 6))
wanted = delta_of(start, D, 4.0, 0.02, 0.5, 1e-3, "sgd")
lr, std, eps = same_run(4.0, 0.02, 0.5, 1e-3, 1.0, "sgd")
expect_close(delta_of(start, D, 1.0, lr, std, eps, "sgd"), wanted, "ΔW of SGD with α = 1 instead of 4")
### BEGIN HIDDEN TESTS
for new_alpha in (16.0, 3.0):
    lr, std, eps = same_run(4.0, 0.02, 0.5, 1e-3, new_alpha, "sgd")
    got = delta_of(start, D, new_alpha, lr, std, eps, "sgd")
    expect_close(got, wanted, f"ΔW of SGD with α = {new_alpha:g} instead of 4")
### END HIDDEN TESTS

# %% [markdown]
# ## 11. Find the planted rank (3 points)
#
# You see inputs $X$ (d, n) and what a teacher answers, $Y = (W_0 + D)X$, with $n \ge d$. What is the rank of $D$, where the answers
# are exact (1 point), and where they have a little noise, about a millionth of them (2 points)? `teacher` makes examples.


# %% given planted
def teacher(rank, d, n, noise, rng):
    left, right, X = (
        np.linalg.qr(rng.normal(size=(rows, columns)))[0] for rows, columns in ((d, rank), (d, rank), (n, d))
    )
    W0, D, X = rng.normal(size=(d, d)), (left * rng.uniform(1, 5, rank)) @ right.T, X.T * n**0.5
    Y = (W0 + D) @ X
    return W0, X, Y + noise * rng.normal(size=Y.shape)


# %% solution planted
def planted_rank(W0, X, Y):
    ### BEGIN SOLUTION
    D = np.linalg.lstsq(X.T, (Y - W0 @ X).T, rcond=None)[0].T
    s = np.linalg.svd(D, compute_uv=False)
    return int((s > 1e-3 * s[0]).sum())
    ### END SOLUTION


# %% test planted exact 1
rng = student_rng(STUDENT, "planted rank")
for rank in (2, 4):
    found = yours(planted_rank, *teacher(rank, 12, 40, 0, rng))
    assert found == rank, f"A change of rank {rank} in 12 dimensions, without noise, was taken for rank {found}."
### BEGIN HIDDEN TESTS
for rank, d, n in ((1, 8, 30), (5, 16, 64), (3, 10, 20), (7, 9, 50)):
    found = yours(planted_rank, *teacher(rank, d, n, 0, rng))
    assert found == rank, f"A change of rank {rank} in {d} dimensions, without noise, was taken for rank {found}."
### END HIDDEN TESTS

# %% test planted noise 2
rng = student_rng(STUDENT, "planted rank, noise")
for rank in (2, 4):
    found = yours(planted_rank, *teacher(rank, 12, 40, 1e-6, rng))
    assert found == rank, f"A change of rank {rank} in 12 dimensions, with noise, was taken for rank {found}."
### BEGIN HIDDEN TESTS
for rank, d, n in ((1, 8, 30), (5, 16, 64), (3, 10, 20), (7, 9, 50)):
    found = yours(planted_rank, *teacher(rank, d, n, 1e-6, rng))
    assert found == rank, f"A change of rank {rank} in {d} dimensions, with noise, was taken for rank {found}."
### END HIDDEN TESTS

# %% [markdown]
# ## 12. The best matrix of rank k (2 points)
#
# Eckart and Young (1936): return the matrix of rank at most $k$ that is nearest to $D$ (1 point), and how far it is,
# $\lVert D - D_k\rVert_F^2$ (1 point).


# %% solution best
def best_of_rank(D, k):
    ### BEGIN SOLUTION
    U, s, Vh = np.linalg.svd(D, full_matrices=False)
    return (U[:, :k] * s[:k]) @ Vh[:k], float((s[k:] ** 2).sum())
    ### END SOLUTION


# %% test best nearest 1
rng = student_rng(STUDENT, "best of rank k")
D = np.diag([1.0, 3.0, 2.0])
expect_close(yours(best_of_rank, D, 3)[0], D, "nearest matrix of full rank")
expect_close(yours(best_of_rank, D, 1)[0], np.diag([0.0, 3, 0]), "nearest matrix of rank 1 to diag(1, 3, 2)")
### BEGIN HIDDEN TESTS
D = rng.normal(size=(7, 5))
s = np.linalg.svd(D, compute_uv=False)
for k in (0, 1, 2, 3, 4):
    nearest = yours(best_of_rank, D, k)[0]
    assert np.linalg.matrix_rank(nearest) <= k, f"The nearest matrix of rank at most {k} has a larger rank."
    expect_close(((D - nearest) ** 2).sum(), (s[k:] ** 2).sum(), f"distance of the nearest matrix of rank {k}")
### END HIDDEN TESTS

# %% test best distance 1
rng = student_rng(STUDENT, "best of rank k, distance")
expect_close(yours(best_of_rank, np.diag([1.0, 3.0, 2.0]), 1)[1], 5.0, "squared distance of diag(1, 3, 2) for rank 1")
### BEGIN HIDDEN TESTS
D = rng.normal(size=(7, 5))
s = np.linalg.svd(D, compute_uv=False)
for k in (0, 1, 2, 3, 4):
    expect_close(yours(best_of_rank, D, k)[1], (s[k:] ** 2).sum(), f"squared distance that you report for rank {k}")
### END HIDDEN TESTS
