# %% [markdown]
# # 1. Autograd by hand
#
# **Where do gradients come from, and how do you know that they are right?** We go from finite differences to a tape that
# differentiates a whole transformer, and derive one fused backward on paper.
#
# *Needs: `pip install -e ".[notebook]"`; no network, no GPU. Takes: 3 s.*

# %%
import inspect
import time

import matplotlib.pyplot as plt
import numpy as np

import minilora as ml
from minilora import functional as F
from minilora.autograd import Node
from minilora.claims.figures import BLUE, GRAY, GREEN, ORANGE, STYLE

plt.rcParams.update(STYLE)

# %% [markdown]
# ## A derivative without calculus
#
# A central difference $\frac{f(x+h)-f(x-h)}{2h}$ has two errors: the curve ($\propto h^2$) and rounding
# ($\propto 10^{-16}/h$ in float64, $10^{-7}/h$ in float32). The best $h$ lies where they meet.

# %%
h = 10.0 ** -np.arange(0, 12, 0.25)
figure, ax = plt.subplots(figsize=(8.5, 3.4))
for dtype, color in (("float64", BLUE), ("float32", ORANGE)):
    x, step = np.array(1.0, dtype), h.astype(dtype)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = (np.tanh(x + step) - np.tanh(x - step)) / (2 * step)
    error = np.abs(slope.astype("float64") - (1 - np.tanh(1.0) ** 2))
    ax.loglog(h, np.maximum(error, 1e-13), color=color, label=dtype)
ax.set(xlabel="step h", ylabel="error of the derivative of tanh at 1")
ax.invert_xaxis()
ax.set_title("Finite differences: too large a step bends, too small a one rounds")
ax.legend()
plt.show()

# %% [markdown]
# **Asked often: "why does my gradient check fail in float32?"** Look at the orange curve: in float32 no step gets below
# an error of some 1e-6, and most are far worse. A correct gradient and a slightly wrong one cannot be told apart there. minilora's checks
# refuse float32 and say so:

# %% exact
try:
    ml.gradcheck(F.tanh, ml.Tensor(np.ones(3, "float32"), requires_grad=True))
except TypeError as error:
    print(error)

# %% [markdown]
# ## The tape
#
# Finite differences cost one evaluation for each number. Reverse mode costs about two evaluations for *all* of them.
# Every operation leaves a node that knows, for each input, a *rule*: from $g$, the gradient of the loss with respect to
# the result, to the gradient with respect to that input. Here is a whole operation as `functional.py` has it, GPT-2's
# non-linearity: its formula, and the rule right beside its input. (`x.array` is `x.data`, as operations read it.)

# %% exact
print(inspect.getsource(F.gelu))

# %% [markdown]
# The nodes can be walked and drawn. Take $z = (x + y)\cdot x$:


# %%
def draw_graph(result, names):
    """The operations below a result, leaves at the bottom; a node is named after the function that recorded it."""
    place, edges, row = {}, [], {}
    stack = [(result._node, 0)]
    while stack:
        node, depth = stack.pop()
        if depth > place.get(node, (0, -1))[1]:
            place[node] = (0, depth)
        for parent, _, _ in getattr(node, "steps", ()):
            edges.append((parent, node))
            stack.append((parent, depth + 1))
    figure, ax = plt.subplots(figsize=(8.5, 3))
    for node, (_, depth) in sorted(place.items(), key=lambda item: item[1][1]):
        row[depth] = row.get(depth, -1) + 1
        place[node] = (row[depth] * 1.5 + 0.35 * depth, -depth)
    for a, b in edges:
        bend = 0.5 if place[a][1] < place[b][1] - 1 else 0  # around what lies between
        way = {"arrowstyle": "->", "shrinkA": 14, "shrinkB": 14, "connectionstyle": f"arc3,rad={-bend}"}
        ax.annotate("", place[b], place[a], arrowprops=way)
    for node, (x, y) in place.items():
        inner = isinstance(node, Node)
        label = node.steps[0][2].__qualname__.split(".")[-3].strip("_") if inner else names[id(node)]
        style = {"boxstyle": "round", "facecolor": ORANGE if inner else BLUE, "alpha": 0.8}
        ax.text(x, y, label, ha="center", va="center", bbox=style)
    ax.set(xlim=(-1, 4), ylim=(-max(-y for _, y in place.values()) - 0.5, 0.5))
    ax.axis("off")
    ax.set_title("z = (x + y) · x: x is used twice, and the gradient has two ways back to it")
    plt.show()


x, y = ml.Tensor(np.array(3.0), requires_grad=True), ml.Tensor(np.array(2.0), requires_grad=True)
z = (x + y) * x
draw_graph(z, {id(x): "x", id(y): "y"})

# %% exact
z.backward()
print(f"∂z/∂x = 2x + y = {x.grad}, ∂z/∂y = x = {y.grad}")

# %% [markdown]
# **Asked often: "why is topological sorting needed?"** Because of diamonds. Let $a = 2x$, $b = a + a$, $c = a\cdot b$.
# A node may hand its gradient on only when *all* that use it have reported. Whoever walks in the wrong order passes on
# half a gradient, or the same one twice. Here is the naive recursion beside the right order:


# %% exact
def naive(x0):
    """Every use passes its gradient straight on, all the way down, without waiting for the others."""
    a = 2 * x0
    b = a + a
    arrived = {"a": 0.0, "x": 0.0}

    def into_a(g):
        arrived["a"] += g
        arrived["x"] += 2 * arrived["a"]  # the mistake: what arrived before is passed on again

    into_a(b)  # c = a · b, by way of a
    into_a(a)  # by way of b = a + a, first use
    into_a(a)  # second use
    return arrived["x"]


x = ml.Tensor(np.array(1.0), requires_grad=True)
a = x * 2
b = a + a
(a * b).backward()
print(f"c = 2(2x)² = 8x², so dc/dx at 1 is 16.  Tape: {x.grad:g}.  Naive recursion: {naive(1.0):g}.")

# %% [markdown]
# **Asked often: "RecursionError on deep graphs?"** The walk in `autograd.py` is a loop, not a recursion, so a chain of
# 10,000 operations is no problem.
#
# **Asked often: "may I call `backward()` twice?"** Each node is freed while it is walked, so that memory is freed as
# early as possible. A second walk is an error in a full sentence, unless you ask to keep the graph; then it adds the
# same gradient once more. Only leaves keep a gradient, and it adds up until `zero_grad()`.
#
# **Asked often: "may I write into `w.data`?"** Before the forward pass and after the backward, yes: optimizers do. In
# between, the graph still needs the old numbers, so `backward()` compares, and refuses. (Only an array that you took
# *before* the forward pass can be written into unseen.)

# %% exact
x = ml.Tensor(np.array(0.5), requires_grad=True)
y = x
for _ in range(10_000):
    y = y * 1.0001
y.backward()
print(f"10,000 operations: {x.grad:.4f} = 1.0001^10000: {1.0001**10_000:.4f}")

x = ml.Tensor(np.array(2.0), requires_grad=True)
y = x * x
y.backward(retain_graph=True)
y.backward()
print(f"walked twice: {x.grad:g} = 4 + 4")
try:
    y.backward()
except ValueError as error:
    print(error)

y = x * x
x.data[...] = 7
try:
    y.backward()
except ValueError as error:
    print(error)

# %% [markdown]
# ## Layer norm's backward, on paper
#
# $\hat x = (x - \mu)/\sigma$ with $\mu = \frac1D\sum x_i$, $\sigma^2 = \frac1D\sum (x_i-\mu)^2 + \varepsilon$, and
# $y = w\hat x + b$. We want $\partial L/\partial x$ from $g = \partial L/\partial y$.
#
# 1. Through $y = w\hat x + b$: $h_i = \partial L/\partial \hat x_i = g_i w_i$; $\partial L/\partial w = \sum_{rows} g\hat x$,
#    $\partial L/\partial b = \sum_{rows} g$.
# 2. $\hat x$ depends on $x_j$ directly and through $\mu$ and $\sigma$. From $\partial\mu/\partial x_j = \frac1D$ and
#    $\partial\sigma/\partial x_j = \frac1{D}\hat x_j$ (the term through $\mu$ vanishes, since $\sum (x_i-\mu) = 0$):
#    $$\frac{\partial \hat x_i}{\partial x_j} = \frac1\sigma\Bigl(\delta_{ij} - \frac1D - \frac1D\hat x_i\hat x_j\Bigr)$$
# 3. Sum over $i$ with $h_i$: $\;\displaystyle \frac{\partial L}{\partial x_j} =
#    \frac1\sigma\Bigl(h_j - \overline{h} - \hat x_j\,\overline{h\hat x}\Bigr)$, bars being means over the row.
#
# Two means to subtract: $\partial L/\partial x$ has no component along $(1,\dots,1)$, since adding a constant to $x$
# changes nothing, and (up to $\varepsilon$) none along $\hat x$, since scaling changes nothing either.


# %% exact
def layer_norm(x, eps=1e-5):
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps)


def layer_norm_backward(x, g, eps=1e-5):
    x_hat = layer_norm(x, eps)
    sigma = np.sqrt(x.var(axis=-1, keepdims=True) + eps)
    return (g - g.mean(axis=-1, keepdims=True) - x_hat * (g * x_hat).mean(axis=-1, keepdims=True)) / sigma


rng = np.random.default_rng(0)
x, g = rng.normal(size=(3, 8)), rng.normal(size=(3, 8))
f = lambda x: (layer_norm(x) * g).sum()  # a loss whose ∂L/∂y is g
print("by hand, against differences:", ml.check_gradient(f, lambda x: layer_norm_backward(x, g), x))

tensor = ml.Tensor(x, requires_grad=True)
ones, zeros = ml.Tensor(np.ones(8)), ml.Tensor(np.zeros(8))
(F.layer_norm(tensor, ones, zeros) * ml.Tensor(g)).sum().backward()
print("by hand, against minilora:  ", np.allclose(tensor.grad, layer_norm_backward(x, g), rtol=1e-12))

# %% [markdown]
# The same three lines as the library has them, `dx` being step 3:

# %% exact
print(inspect.getsource(F.layer_norm).split('"""')[2])

# %% [markdown]
# And what does the check say if the last mean is forgotten, the usual slip? It names the element, both derivatives and
# the errors. The tolerance is relative to the *largest* gradient of the check, so that neither a tiny gradient passes
# by accident nor one that is zero in theory fails by rounding.

# %% measured 1%
forgotten = lambda x: (g - g.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)
try:
    ml.check_gradient(f, forgotten, x)
except AssertionError as error:
    print(str(error).replace(": ", ":\n    ", 1).replace("; ", ";\n    "))

# %% [markdown]
# ## Gradients flow through what is frozen
#
# **Asked often: "no gradients reach my adapters when the base is frozen?"** They must pass *through* frozen layers, even
# though nothing is computed *for* them. Nobody has to arrange that: the tape keeps a rule only where its input wants a
# gradient, and with the rule of a frozen weight goes the input that it would have needed.

# %% exact
rng = np.random.default_rng(0)
x = ml.Tensor(rng.normal(size=(4, 5)), requires_grad=True)
frozen = ml.Tensor(rng.normal(size=(3, 5)))  # requires_grad is False
F.linear(x, frozen).sum().backward()
print(f"x gets its gradient: {x.grad is not None}; the frozen weight none: {frozen.grad is None}")

# %% [markdown]
# ## A whole model, checked
#
# The same check takes a model with its loss. Every parameter at once, in float64, one random direction each:

# %% exact
model = ml.GPT(ml.GPTConfig(vocab_size=11, context_length=6, d_model=8, n_layers=2, n_heads=2), dtype="float64")
ids, targets = np.random.default_rng(0).integers(0, 11, (2, 3, 6))
print(ml.gradcheck(lambda *parameters: F.cross_entropy(model(ids), targets), *model.parameters()))

# %% [markdown]
# ## Adam in six lines
#
# $m$ and $v$ are running means of $g$ and $g^2$, corrected for starting at zero (Kingma & Ba 2015, algorithm 1).
# The library's own lines, `optim.adam`, are these; what runs is a kernel that reorders them to save a pass over memory.


# %% exact
def adam(theta, grad, steps, lr=0.1, beta1=0.9, beta2=0.999, eps=1e-8):
    m = v = np.zeros_like(theta)
    for t in range(1, steps + 1):
        g = grad(theta)
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        theta = theta - lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)
    return theta


start, goal = np.array([3.0, -2.0, 0.5]), np.array([1.0, 1.0, 1.0])
by_hand = adam(start, lambda theta: theta - goal, steps=50)
p = ml.Tensor(start.copy(), requires_grad=True)
optimizer = ml.Adam([p], lr=0.1)
for _ in range(50):
    optimizer.zero_grad()
    (((p - ml.Tensor(goal)) ** 2).sum() * 0.5).backward()
    optimizer.step()
print(by_hand.round(4), "equal to 1e-12:", np.allclose(by_hand, p.data, rtol=1e-12))

# %% [markdown]
# Its first step is $\eta\,\mathrm{sign}(g)$, whatever the size of the gradient:

# %%
figure, ax = plt.subplots(figsize=(8.5, 3))
for scale, color in ((1.0, BLUE), (1e-3, ORANGE), (1e3, GREEN)):
    path = [adam(np.array([3.0]), lambda theta, c=scale: c * (theta - 1), steps)[0] for steps in range(40)]
    ax.plot(path, color=color, linestyle="-" if scale == 1 else "--" if scale < 1 else ":", label=f"loss × {scale:g}")
ax.axhline(1, color=GRAY, linewidth=0.8)
ax.set(xlabel="step", ylabel="θ")
ax.set_title("Adam does not see the scale of the loss: three curves in one")
ax.legend()
plt.show()

# %% [markdown]
# Keep this in mind for notebook 4, where it decides what α does.
#
# **Asked often: "is every operation really tested?"** Every public operation stands in a table, `tests/operations.py`,
# with shapes to draw at random, and its gradients are checked; one that is missing there fails the suite, and the checker
# itself is tested with a wrong derivative (2.001 for 2).
#
# ## From the textbook to the engine room
#
# What you have read is not what runs. An operation marked `@operation` has a quicker twin in `minilora/fast/`, which takes
# its place from outside, as LoRA takes the place of a `Linear`: no file of the core mentions it. `with ml.textbook():`
# sends the guest away. The numbers are the same to rounding, which a test asks of every operation and of whole runs:


# %%
B, T, D, H, V = 16, 64, 64, 4, 96
rng = np.random.default_rng(0)
draw = lambda *shape: ml.Tensor(rng.normal(size=shape).astype("float32"), requires_grad=True)
x, wide, weight, scale, logits = draw(B, T, D), draw(B, T, 4 * D), draw(4 * D, D), draw(D), draw(B, T, V)
q, k, v = (draw(B, H, T, D // H) for _ in "qkv")
targets = rng.integers(0, V, (B, T))
OPERATIONS = {
    "gelu": (lambda: F.gelu(wide), "chunks that fit into the cache; one array kept, not four"),
    "layer_norm": (lambda: F.layer_norm(x, scale, scale), "a mean is a product with a column of 1/D"),
    "cross_entropy": (lambda: F.cross_entropy(logits, targets), "softmax and loss in one"),
    "causal_attention": (lambda: F.causal_attention(q, k, v), "32 queries at a time meet the keys that they see"),
    "linear": (lambda: F.linear(x, weight), "large products cut into what BLAS likes best"),
}


def gradient_of(call):
    x.grad = wide.grad = logits.grad = q.grad = None
    call().sum().backward()
    return next(t.grad for t in (x, wide, logits, q) if t.grad is not None)


def milliseconds(call):
    """The least of twenty: what else runs on this computer only adds."""
    times = []
    for _ in range(20):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return min(times)


# %% exact
for name, (call, _) in OPERATIONS.items():
    kernel = gradient_of(call)
    with ml.textbook():
        print(f"{name:<17}", np.allclose(kernel, gradient_of(call), rtol=1e-3, atol=1e-6))

# %% [markdown]
# And the time of each, forward and backward, with what its kernel does about it:

# %% illustration
for name, (call, how) in OPERATIONS.items():
    quick = milliseconds(lambda call=call: gradient_of(call))
    with ml.textbook():
        plain = milliseconds(lambda call=call: gradient_of(call))
    print(f"{name:<17} textbook {plain:5.2f} ms, kernel {quick:5.2f} ms: {plain / quick:3.1f} times.  {how}")

# %% [markdown]
# None of it is deep. Memory used before is in the cache and needs no page faults; a pass less over an array is a pass
# less; a product is the best code that a processor has, so sums become products. There is a floor: the products
# themselves, which no kernel can leave out. A whole training step, its textbook, and that floor:

# %% illustration
model = ml.GPT(ml.GPTConfig(V, T, D, n_layers=2, n_heads=H))
optimizer, ids = ml.Adam(model.parameters(), 1e-3), rng.integers(0, V, (B, T))


def step():
    optimizer.zero_grad()
    F.cross_entropy(model(ids), targets).backward()
    optimizer.step()


M = B * T
linears = 2 * [(M, D, D)] * 4 + 2 * [(M, D, 4 * D), (M, 4 * D, D)] + [(M, D, V)]  # (M, k) @ (k, n) of the forward
products = [shape for M, k, n in linears for shape in ((M, k, n), (M, n, k), (n, M, k))]  # and of the backward
arrays = [[np.ones(shape, "float32") for shape in ((M, k), (k, n), (M, n))] for M, k, n in products]
floor = milliseconds(lambda: [np.matmul(a, b, out=c) for a, b, c in arrays])
quick = milliseconds(step)
with ml.textbook():
    plain = milliseconds(step)
print(
    f"a step: textbook {plain:.0f} ms, kernels {quick:.0f} ms; the products of its linear layers alone {floor:.0f} ms"
)

# %% [markdown]
# ## Exercise
#
# - Course exercises 1 to 4: the backward of matmul, the gradient of a broadcast, layer norm, softmax cross-entropy
#   ([course](course/README.md)).
# - Put `y = F.relu(x)` into `ml.gradcheck` at a point with a zero in it. What does the message say, and why?
#
# Next: [2. A transformer from its parts](02_a_transformer_from_its_parts.ipynb)
