# %% [markdown]
# # 3. LoRA
#
# **How can a model start as the base exactly, learn from a frozen W₀, and end as one matrix again?** And what do the usual
# mistakes look like? Each of them is run here, and each leaves a curve or a message.
#
# *Needs: `pip install -e ".[notebook]"`; no network, no GPU. Takes: about 15 s.*

# %%
import textwrap

import matplotlib.pyplot as plt
import numpy as np
from committed import numbers, show
from progress import StepBar

import minilora as ml
from minilora import functional as F
from minilora.bases import held_out_strings, load_base, string_sampler
from minilora.claims.figures import BLUE, GRAY, GREEN, ORANGE, PURPLE, RED, SKY, STYLE
from minilora.data import PRINTABLE, seeded
from minilora.lora import lora_layers

plt.rcParams.update(STYLE)
TASK = "revupper"  # reverse, then upper case: neither alone is new to the base, together they are
batches = seeded(string_sampler((TASK,), 32), 0)
test = held_out_strings(TASK)

# %% [markdown]
# ## The task
#
# The base that comes with minilora knows seven functions of strings: a digit says which one, `1badge>` asks for `egdab`.
# Task 8, `revupper`, it has never seen: reverse *and* upper case. Ask it.

# %% exact
base = load_base("strings")
for prompt in ("1badge>", "2badge>", "8badge>"):
    print(prompt, ml.generate_text(base, PRINTABLE, prompt, 9, temperature=0, stop="\n").removeprefix(prompt))

# %% [markdown]
# Right, right, and wrong: `8badge>` should give `EGDAB`. A hundred and fifty steps of LoRA will teach it.
#
# ## Adding it
#
# `add_lora` freezes the base, wraps the targets in place and returns what is left to train. The wrapped layer computes
# $h = W_0x + b + s\,BAx$ with $s = \alpha/r$ (§4.1, equation 3).

# %% exact
model = load_base("strings")
ids, targets = batches(0)
before = model(ids).numpy()

trainable = ml.add_lora(model, ml.LoRAConfig(r=4, alpha=8, target_modules=("q_proj", "v_proj")), seed=0)
layer = model.blocks[0].attn.q_proj
print(f"A {layer.lora_A.shape}, B {layer.lora_B.shape}, s = α/r = {layer.scaling:g}")
print(f"trained: 2 blocks · 2 matrices · r(d + k) = 2 · 2 · 4 · (64 + 64) = {sum(p.size for p in trainable):,}")
print(f"beside {load_base('strings').num_parameters():,} of the base, which stay as they are")
print("logits equal to the base's, bit for bit:", np.array_equal(model(ids).numpy(), before))

# %% [markdown]
# **Asked often: "which of A and B is zero?"** In the paper and here $B$. It makes no difference to the idea, as long as
# *exactly one* is: then $BA = 0$, and the model starts as the base.
#
# **Asked often: "if B is zero, how does it ever train?"** And: **"the gradients of A are 0, is that a bug?"** Look at the
# two gradients. $\partial L/\partial B = s\,G A^\top$ needs only $A$; $\partial L/\partial A = s\,B^\top G$ needs $B$,
# so it is exactly zero, once. After one step $B$ has moved and both train.

# %% exact
optimizer = ml.SGD(trainable, lr=0.5)
for step in range(2):
    optimizer.zero_grad()
    F.cross_entropy(model(ids), targets).backward()
    norms = [float(np.sqrt(sum((p.grad**2).sum() for p in trainable if (p.shape[0] == 4) == is_A))) for is_A in (1, 0)]
    print(f"step {step}: ∂L/∂A is zero: {norms[0] == 0}; ∂L/∂B is zero: {norms[1] == 0}")
    optimizer.step()

# %% [markdown]
# ## What the first step does
#
# Write $G = \partial L/\partial W$, the gradient that full fine-tuning would follow by $\Delta W = -\eta G$. LoRA's
# first step of SGD moves only $B$, by $-\eta s\,GA_0^\top$, and so
#
# $$\Delta W = s\,BA_0 = -\eta s^2\, G\,A_0^\top A_0 .$$
#
# The same gradient, seen through the $r$ directions in which $A_0$ happens to look. In float64, on one layer:

# %% exact
rng = np.random.default_rng(0)
d, r, s, eta = 16, 4, 2.0, 0.1
x, y = ml.Tensor(rng.normal(size=(50, d))), ml.Tensor(rng.normal(size=(50, d)))
net = ml.GPT(ml.GPTConfig(8, 4, d, 1, 1), dtype="float64").blocks[0].attn  # any module with a Linear in it


def loss(linear):
    return ((linear(x) - y) ** 2).sum() * 0.5


loss(net.q_proj).backward()  # not frozen yet: this is what full fine-tuning sees
G = net.q_proj.weight.grad.copy()
trained = ml.add_lora(net, ml.LoRAConfig(r, alpha=s * r, target_modules=("q_proj",)), seed=0)
A0 = net.q_proj.lora_A.numpy()
sgd = ml.SGD(trained, lr=eta)
sgd.zero_grad()
loss(net.q_proj).backward()
sgd.step()
delta = net.q_proj.delta_weight()
print("ΔW = −η s² G A₀ᵀA₀ to 1e-12:", np.allclose(delta, -eta * s**2 * G @ A0.T @ A0, rtol=1e-12))
print(f"rank of G: {np.linalg.matrix_rank(G)}; rank of ΔW: {np.linalg.matrix_rank(delta)}")

# %%
figure, axes = plt.subplots(1, 3, figsize=(9.5, 3), layout="constrained")
for ax, matrix, title in zip(
    axes,
    (-eta * G, delta, A0.T @ A0),
    ("full fine-tuning: −ηG, rank 16", "LoRA: −ηs² G A₀ᵀA₀, rank 4", "what A₀ lets through: A₀ᵀA₀"),
    strict=True,
):
    size = abs(matrix).max()
    ax.imshow(matrix, cmap="RdBu", vmin=-size, vmax=size)
    ax.set_title(title, fontsize=9)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(visible=False)
plt.show()

# %% [markdown]
# Every entry of $\Delta W$ moves. So "LoRA changes only some of the parameters" is not quite it: all of $W$ changes, along
# few directions.
#
# **Asked often: "Kaiming in the code, Gaussian in the paper?"** Both exist here: `init="gaussian"` (the paper's, the
# default) and `init="kaiming"` (uniform, as in loralib and PEFT). Measured over several bases at one learning rate, with
# `A` zero instead of `B` as well:

# %% exact
numbers("zero_init", "loss after")

# %% [markdown]
# ## Training it, and a gallery of failures
#
# Two good runs, four ways to go wrong, and full fine-tuning for comparison. All learn the same task from the same
# batches for 150 steps, with a rate that falls to zero at the last: towards the end every curve flattens.


# %%
def train(prepare, lr, steps=150):
    """The losses of one run; `prepare(model)` changes the base and returns what to train."""
    model = load_base("strings")
    optimizer, loss, schedule = ml.Adam(prepare(model), lr), ml.batch_loss(model, batches), ml.linear_schedule(steps)
    bar = StepBar(steps)
    try:
        history = ml.train(model, optimizer, loss, steps, schedule=schedule, callback=bar)
    except ml.DivergedError as error:
        return [], str(error), model
    return history["loss"], "", model


def lora(model, r=4, alpha=8, **settings):
    return ml.add_lora(model, ml.LoRAConfig(r, alpha, **settings), seed=0)


def both_zero(model):
    trainable = lora(model)
    for layer in lora_layers(model).values():
        layer.lora_A.data[...] = 0
    return trainable


def both_gaussian(model):
    trainable = lora(model)
    rng = np.random.default_rng(0)
    for layer in lora_layers(model).values():
        layer.lora_B.data[...] = rng.normal(0, 1 / 8, layer.lora_B.shape)
    return trainable


RATE, FULL_RATE = 0.016, 1e-3
good, _, adapted = train(lora, RATE)
runs = {
    "LoRA, r = 4, α = 8": (good, BLUE),
    "LoRA, r = 64, α = 8": (train(lambda m: lora(m, 64, 8), RATE)[0], SKY),
    "A and B both zero": (train(both_zero, RATE)[0], GRAY),
    "A and B both Gaussian": (train(both_gaussian, RATE)[0], PURPLE),
    "r = 64, forgot /r: s = α = 8": (train(lambda m: lora(m, 64, 8 * 64), RATE)[0], RED),
    "a rate fit for full fine-tuning": (train(lora, FULL_RATE)[0], ORANGE),
    "full fine-tuning at that rate": (train(lambda m: m.parameters(), FULL_RATE)[0], GREEN),
}

# %%
figure, ax = plt.subplots(figsize=(9, 3.8))
for name, (losses, color) in runs.items():
    ax.plot(losses, "--" if "full fine-tuning at" in name else "-", color=color, label=name, linewidth=1.2)
    ax.plot([0], losses[:1], ".", color=color)
ax.plot([0], [good[0]], "o", color="black", markerfacecolor="none", markersize=10, label="the base")
ax.set(xlabel="step", ylabel="loss on the answer (nats)", yscale="log")
ax.set_title("All start at the base, but for the one whose B is not zero")
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% measured 30%
print("nats: of the first batch, and of the last eight in the mean")
for name, (losses, _) in runs.items():
    print(f"{name:<32} {losses[0]:5.1f}  {np.mean(losses[-8:]):5.1f}")

# %% [markdown]
# With both zero, $\partial L/\partial A = sB^\top G$ and $\partial L/\partial B = sGA^\top$ are zero as well: stuck for
# ever. With both Gaussian the first loss is not the base's any more. A rate that is too small is merely slow.
#
# And the answers, before and after. The first two strings are of the tenth that no training ever sees:

# %% illustration
for word in ("mail", "pink", "badge", "clamp"):
    asked, taught = (
        ml.generate_text(m, PRINTABLE, f"8{word}>", 9, temperature=0, stop="\n").split(">")[1] for m in (base, adapted)
    )
    print(f"8{word}>  the base: {asked}  with the adapter: {taught}")

# %% [markdown]
# - **Both zero** (nothing complains, and nothing is learned): both gradients are products with a zero. Nothing ever moves.
# - **Both Gaussian**: it trains, but it starts somewhere else than the base, which is what one wanted to adapt.
#   minilora's `LoRAConfig` offers no such start; PEFT has one under `init_lora_weights=False`, made for tests.
# - **Forgotten /r**: at $r = 64$ the detour is 64 times as loud. With it, $r = 64$ learns at the rate that suited
#   $r = 4$. Several reimplementations shipped this.
# - **Full fine-tuning's learning rate**: LoRA wants a higher one. How many times higher is measured in notebook 4; in the
#   paper's Table 12 it is 40 times (2e-4 where full fine-tuning has 5e-6).
#
# The other mistakes never get as far as a curve. Here is what they say:


# %% exact
def attempt(what, action):
    try:
        action()
    except (ValueError, TypeError) as error:
        print(f"{what}:")
        print(textwrap.indent(textwrap.fill(str(error), 100), "    "))


model = load_base("strings")
early = ml.Adam(model.parameters(), 1e-3)
trainable = lora(model)
attempt("the optimizer made before add_lora", lambda: (F.cross_entropy(model(ids), targets).backward(), early.step()))
attempt("an optimizer of everything", lambda: ml.Adam(model.parameters(), 1e-3))
attempt("LoRA twice", lambda: lora(model))
ml.merge_lora(model)
attempt("training while merged", lambda: F.cross_entropy(model(ids), targets).backward())
attempt("loading while merged", lambda: model.load_state_dict(model.state_dict()))
attempt("merging twice", lambda: ml.merge_lora(model))

# %% [markdown]
# **Asked often: "memory did not shrink".** Make the optimizer from what `add_lora` returns: Adam keeps two numbers for each
# parameter it is given, and the saving of §4.2 is exactly that it is given few. (Activations shrink much less:
# notebook 7.)
#
# ## Merging, and its drift
#
# Once trained, $W_0 + \Delta W$ is computed once, and a layer is one product again. minilora stores the merged weight
# *beside* $W_0$, so unmerging is exact. The usual way, `W += ΔW` and later `W -= ΔW`, rounds every time.

# %% exact
model = adapted
logits = model(ids).numpy()
W0 = model.blocks[0].attn.q_proj.weight.numpy()

layer = model.blocks[0].attn.q_proj
drifting, delta = W0.copy(), layer.delta_weight()
for _ in range(100):
    drifting += delta
    drifting -= delta
    ml.merge_lora(model)
    ml.unmerge_lora(model)
print("after 100 times += and -=:               W₀ as it was, bit for bit:", np.array_equal(drifting, W0))
print("after 100 times merge and unmerge here:  W₀ as it was, bit for bit:", np.array_equal(layer.weight.data, W0))
print("and the logits as they were, bit for bit:", np.array_equal(model(ids).numpy(), logits))

ml.merge_lora(model)
print("merged logits equal to rounding:", np.allclose(model(ids).numpy(), logits, atol=1e-3))
ml.unmerge_lora(model)

# %% [markdown]
# **Asked often: "the merged model gives different outputs".** By rounding, yes: $(W_0 + \Delta W)x$ and $W_0x + \Delta Wx$
# round differently. By more than rounding, no; then dropout was still on, or someone merged twice, or a file was loaded
# into a merged model, all of which are refused here.
#
# **Asked often: "eval() did not merge", "eval() merged when I did not want it".** Here switching modes has no side
# effects. `merge_lora` merges, nothing else does; `merge_and_unload` hands back a plain model for serving while you keep
# the adapter, and `load_state_dict` into a merged model is an error, because it would corrupt $W_0$.
#
# ## Dropout's place
#
# LoRA's dropout acts on $x$ before $A$, on LoRA's path only, in training mode only. The frozen path always sees all of
# $x$. So at the start, with $B = 0$, even a model with dropout is the base exactly.

# %% exact
model = load_base("strings")
trainable = lora(model, dropout=0.3)
model.train()
print("B = 0, training mode, dropout 0.3: the base exactly:", np.array_equal(model(ids).numpy(), before))
for layer in lora_layers(model).values():
    layer.lora_B.data[...] = 0.1
print("B ≠ 0, training mode: two passes differ:", not np.array_equal(model(ids).numpy(), model(ids).numpy()))
model.eval()
print("B ≠ 0, evaluation mode: they do not:", np.array_equal(model(ids).numpy(), model(ids).numpy()))

# %% [markdown]
# ## The teacher's list
#
# **Asked often: "a from-scratch LoRA with ΔW = 0 at the start and merge equality *proven*, please."** The claims that
# this notebook showed on one base are settled by `minilora reproduce` on three, with a float64 control:

# %% exact
show("zero_init")

# %% [markdown]
# ## Exercise
#
# - Course exercise 6, "B = 0: why does it still learn?", 7, "implement LoRALinear", 8, "merge without drift" and 9,
#   "count the parameters" ([course](course/README.md)).
# - Find the largest rate at which `train(lora, lr)` still learns, and the same for full fine-tuning.
#
# Next: [4. α/r is a learning rate](04_alpha_is_a_learning_rate.ipynb)
