# %% [markdown]
# # 2. A transformer from its parts
#
# **What is inside the model that LoRA will adapt?** We build attention step by step and compare it with the library's,
# look at what a trained model attends to, train a small one on real text while watching, and let it write.
#
# *Needs: `pip install -e ".[notebook]"`; no network, no GPU. Takes: about 10 s.*

# %%
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import clear_output

import minilora as ml
from minilora import functional as F
from minilora.bases import load_base
from minilora.claims.figures import BLUE, GRAY, ORANGE, STYLE
from minilora.data import PRINTABLE, fixed, seeded, split, windows
from minilora.texts import english_text

plt.rcParams.update(STYLE)

# %% [markdown]
# ## The parts
#
# Text becomes ids, ids become vectors, and each block adds twice to them: once what attention fetched from earlier
# positions, once what the MLP makes of each position alone. The head turns the last vectors into logits, one for each
# symbol that may come next.

# %% exact
model = ml.GPT(ml.GPTConfig(vocab_size=96, context_length=64, d_model=64, n_layers=2, n_heads=4), seed=0)
for name, parameter in model.named_parameters():
    if not name.startswith("blocks.1"):
        print(f"{name:<32} {parameter.shape!s:<10} {parameter.size:>7,}")
print(f"and blocks.1 as blocks.0; in all {model.num_parameters():,}")

# %% [markdown]
# **Asked often: "where is `c_attn`?"** Here each of $W_q, W_k, W_v, W_o$ is a `Linear` of its own, because the paper
# adapts some and not others (§4.2, §7.1). A fused layer would need a LoRA that knows which rows belong to whom; that
# code is the least readable part of other libraries.
#
# ## Attention, step by step
#
# For each position a query asks, keys answer, and the softmax of their products says how much of each value to take:
# $\mathrm{softmax}(QK^\top/\sqrt{d})\,V$, for each head with its own slice of $d = D/H$ dimensions. No query may see a
# later key.

# %% exact
attention = model.blocks[0].attn
B, T, D, H = 1, 6, 64, 4
x = model.blocks[0].ln_1(model.embed(PRINTABLE.encode("Hello,")[None]))  # (B, T, D)

q, k, v = (proj(x).numpy().reshape(B, T, H, D // H) for proj in (attention.q_proj, attention.k_proj, attention.v_proj))
q, k, v = (a.transpose(0, 2, 1, 3) for a in (q, k, v))  # (B, T, H, D/H) -> (B, H, T, D/H)
scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(D // H)  # (B, H, T, D/H) @ (B, H, D/H, T) -> (B, H, T, T)
scores = np.where(np.tril(np.ones((T, T))) > 0, scores, -np.inf)  # query t sees keys 0 ... t
P = np.exp(scores - scores.max(axis=-1, keepdims=True))
P = P / P.sum(axis=-1, keepdims=True)  # every row sums to one
y = (P @ v).transpose(0, 2, 1, 3).reshape(B, T, D)  # (B, H, T, T) @ (B, H, T, D/H), then the heads side by side
by_hand = attention.o_proj(ml.Tensor(y)).numpy()

print("rows of P sum to one:", np.allclose(P.sum(axis=-1), 1))
print("nothing flows back in time:", np.allclose(np.triu(P[0, 0], 1), 0))
print("equal to the library's attention:", np.allclose(by_hand, attention(x).numpy(), atol=1e-6))
fused = F.causal_attention(*(ml.Tensor(np.ascontiguousarray(a)) for a in (q, k, v))).numpy()
print("and to the fused operation:", np.allclose(fused, P @ v, atol=1e-6))

# %% [markdown]
# ## Attention maps
#
# The base of the string tasks knows seven functions of short strings: the first character says which. `1` is *reverse*:
# given `1badge>` it continues `egdab`. To write the $i$-th letter of the answer it has to look at the $i$-th last of
# the question. If one head did that in one step, its map would show an anti-diagonal.

# %%
base = load_base("strings")
line = "1badgehop>pohegdab"
ids = PRINTABLE.encode(line)[None]


def attention_maps(model, ids, layer):
    """P (H, T, T) of one block, from its projections."""
    with ml.no_grad():
        x = model.embed(ids)
        for block in model.blocks[:layer]:
            x = block(x)
        x = model.blocks[layer].ln_1(x)
        attn = model.blocks[layer].attn
        q, k = attn.split(attn.q_proj(x)).numpy(), attn.split(attn.k_proj(x)).numpy()
    T = ids.shape[1]
    scores = np.where(np.tril(np.ones((T, T))) > 0, q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]), -np.inf)
    P = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return (P / P.sum(axis=-1, keepdims=True))[0]


figure, axes = plt.subplots(2, 4, figsize=(11, 6), sharex=True, sharey=True, layout="constrained")
for layer, row in enumerate(axes):
    for head, (ax, P) in enumerate(zip(row, attention_maps(base, ids, layer), strict=True)):
        ax.imshow(P, cmap="Blues", vmin=0, vmax=1)
        ax.set_xticks(range(len(line)), list(line), fontsize=7)
        ax.set_yticks(range(len(line)), list(line), fontsize=7)
        ax.grid(visible=False)
        ax.set_title(f"block {layer}, head {head}", fontsize=9)
axes[0, 0].set_ylabel("what is read (query)")
axes[1, 0].set_ylabel("what is read (query)")
figure.supxlabel("what it looks at (key)")
plt.show()

# %% illustration
print("the answer:", repr(ml.generate_text(base, PRINTABLE, "1badgehop>", 9, temperature=0)))

# %% [markdown]
# The answer is right, and the picture is less tidy than the plan. In the second block three heads look along a piece of
# the anti-diagonal, as predicted, for *some* letters of the answer (bottom left of their maps). For the others they look
# along the main diagonal at positions that, by then, hold what the first block has already fetched. Two blocks leave the
# model more than one way to carry a letter, and it uses several. A map shows where a model looks, not why.

# %% [markdown]
# ## `k_proj.bias` has no gradient, and Adam moves it anyway
#
# Add a vector $c$ to every key: each score of query $t$ grows by the same $q_t\cdot c$, and the softmax of a row does
# not see a constant. So the loss does not depend on `k_proj.bias` at all, and its gradient is zero. In floating point
# it is not quite zero, and Adam divides by its size: a gradient of 1e-10 makes steps as large as one of 1.

# %% exact
model = ml.GPT(ml.GPTConfig(vocab_size=96, context_length=32, d_model=32, n_layers=1, n_heads=4), seed=0)
ids, targets = np.random.default_rng(0).integers(0, 96, (2, 8, 32))
optimizer = ml.Adam(model.parameters(), lr=1e-3, eps=1e-12)  # the usual ε of 1e-8 hides it here
start = {name: p.numpy() for name, p in model.named_parameters()}
F.cross_entropy(model(ids), targets).backward()
gradient = {name: float(np.abs(p.grad).max()) for name, p in model.named_parameters()}
optimizer.step()
moved = {name: float(np.abs(p.data - start[name]).max()) for name, p in model.named_parameters()}

k, q = "blocks.0.attn.k_proj.bias", "blocks.0.attn.q_proj.bias"
print(f"the gradient of k_proj.bias is below a thousandth of q_proj.bias's: {gradient[k] < 1e-3 * gradient[q]}")
print(f"and yet Adam's first step moves it by more than half the learning rate: {moved[k] > 0.5e-3}")

# %% [markdown]
# This does no harm, because nothing depends on it. But it is why two correct programs can disagree on this one
# parameter after a few steps, and why minilora's comparison with PyTorch leaves it out.
#
# ## Half a batch at a time: means do not average, sums add up
#
# A batch too large for your memory can be taken in parts whose gradients add up. But the loss is a mean over the targets
# that *count*, and parts rarely count as many. Here one sequence counts 32 targets and the other 4.

# %% exact
ids, targets = np.random.default_rng(1).integers(0, 96, (2, 2, 32))
targets[1, 4:] = -100  # ignored, as the prompt of an example is
weight = model.blocks[0].mlp.fc_in.weight


def gradient_of(losses):
    model.zero_grad()
    for loss in losses:
        loss.backward()  # adds to .grad
    return weight.grad.copy()


def halves(reduction):
    return [F.cross_entropy(model(ids[i : i + 1]), targets[i : i + 1], reduction=reduction) for i in range(2)]


whole = gradient_of([F.cross_entropy(model(ids), targets)])
means = gradient_of([loss / 2 for loss in halves("mean")])
sums = gradient_of([loss / 36 for loss in halves("sum")])  # 36 targets count in all
for name, gradient in (("means", means), ("sums", sums)):
    off = np.abs(gradient - whole).max() / np.abs(whole).max()
    print(f"{name:5s} are {'the same' if off < 1e-4 else 'off by ' + format(off, '.0%')}")

# %% [markdown]
# ## Training, live
#
# The text is CPython's own language reference, half a million characters of English that every installation has. A
# tenth of it is held out. Watch the loss fall; ln 96 is where a model that knows nothing starts.

# %%
training, held_out = split(PRINTABLE.encode(english_text()), context_length=64)
test = fixed(lambda rng: windows(held_out, 32, 64, rng), 2)
model = ml.GPT(ml.GPTConfig(vocab_size=96, context_length=64, d_model=64, n_layers=2, n_heads=4), seed=0)
optimizer = ml.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.99))
STEPS = 400
losses, evaluated = [], {}


def show(done, loss):
    losses.append(loss)
    if done % 100 == 0:
        evaluated[done] = ml.evaluate(model, test)
        model.train()
        clear_output(wait=True)
        figure, ax = plt.subplots(figsize=(8.5, 3.2))
        ax.plot(losses, color=GRAY, linewidth=0.8, label="each batch")
        ax.plot(list(evaluated), list(evaluated.values()), "o-", color=BLUE, label="held-out text")
        ax.axhline(np.log(96), color=ORANGE, linestyle="--", label="knows nothing: ln 96")
        ax.set(xlim=(0, STEPS), xlabel="step", ylabel="nats a character")
        ax.set_title(f"Step {done}: {evaluated[done] / np.log(2):.1f} bits a character on text never seen")
        ax.legend(loc="center right")
        plt.show()


batches = seeded(lambda rng: windows(training, 16, 64, rng), 0)
history = ml.train(
    model,
    optimizer,
    ml.batch_loss(model, batches),
    STEPS,
    schedule=ml.cosine_schedule(STEPS, warmup=0.05, final=0.1),
    clip=1.0,
    callback=show,
)

# %% measured 15%
print(f"held-out loss: {evaluated[STEPS]:.1f} nats, {evaluated[STEPS] / np.log(2):.1f} bits a character")

# %% [markdown]
# ## Sampling
#
# The model gives probabilities; a sample is drawn symbol by symbol. Temperature divides the logits: 0 takes the
# likeliest each time, which soon goes in circles; 1 takes the model at its word. Four hundred steps are few: expect
# words, not sense.

# %% illustration
for temperature in (0, 0.5, 1.0):
    text = ml.generate_text(model, PRINTABLE, "The ", 100, temperature=temperature, top_k=20, seed=1)
    print(f"temperature {temperature}: {text!r}")

# %% [markdown]
# A sampled symbol costs one position, not the whole context: keys and values of what was read are remembered in a
# cache (`gpt.Cache`). The numbers are the same to rounding:

# %% exact
from minilora.gpt import Cache

ids = PRINTABLE.encode("The value of the expression")[None]
with ml.no_grad():
    model.eval()
    whole = model(ids).numpy()
    cache = Cache(model)
    piecewise = np.concatenate([model(ids[:, t : t + 1], cache).numpy() for t in range(ids.shape[1])], axis=1)
print("position by position, the same logits:", np.allclose(whole, piecewise, atol=1e-4))

# %% [markdown]
# ## Exercise
#
# - Course exercise 4, "softmax cross-entropy": write its gradient, with ignored targets ([course](course/README.md)).
# - In the map of `1badgehop>`, which heads look at the tag `1`? Change the tag to `0` (copy) and predict the picture
#   before you draw it.
# - Show that adding a constant vector to `v_proj.bias` does change the output. Why does the argument for keys not hold?
#
# Next: [3. LoRA](03_lora.ipynb)
