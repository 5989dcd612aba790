# %% [markdown]
# # 6. Which matrices
#
# **A fixed budget of parameters: which of $W_q, W_k, W_v, W_o$ should get it?** The paper's Table 5 says: two matrices with
# half the rank, q and v, beat any one of them (§7.1). Our string tasks are small enough to see *why*.
#
# *Needs: `pip install -e ".[notebook]"`; no network, no GPU. Takes: about 35 s from a warm cache, a minute the first time
# (one base is pretrained and kept).*

# %%
import textwrap

import matplotlib.pyplot as plt
from committed import show
from IPython.display import Image, display

import minilora as ml
from minilora.claims.adaptation import adaptation
from minilora.claims.adaptation import run as adapt_and_examine
from minilora.claims.bases import load_base
from minilora.claims.figures import BLUE, GREEN, ORANGE, STYLE, grouped_points

plt.rcParams.update(STYLE)

# %% [markdown]
# ## What each of them does
#
# Attention computes, for each head, $\mathrm{softmax}(QK^\top/\sqrt d)\,V\,W_o$.
#
# - $W_q$ and $W_k$ decide **where to read**: they enter only through $q\cdot k$.
# - $W_v$ and $W_o$ decide **what to write**: they enter only through what is carried over.
#
# So a task that needs only one of the two should be learned by one kind of matrix alone. We have three tasks for a base
# that knows *copy*, *reverse*, *upper*, *sort*, *next*, *alternate* and *rotate*:
#
# | task | example | new is |
# |---|---|---|
# | `pairs` | `abcdef` → `badcfe` | where to read |
# | `prev` | `bcd` → `abc` | what to write |
# | `revupper` | `abc` → `CBA` | both at once, each known alone |
#
# ## The same budget for all
#
# $r = 8$ on one matrix, 4 on two, 2 on four: 2,048 parameters each time.

# %% exact
choices = {"q": (("q_proj",), 8), "v": (("v_proj",), 8), "q, v": (("q_proj", "v_proj"), 4)}
choices["q, k, v, o"] = (("q_proj", "k_proj", "v_proj", "o_proj"), 2)
for name, (targets, r) in choices.items():
    model = ml.GPT(ml.GPTConfig(96, 40, 64, 2, 4))
    trainable = ml.add_lora(model, ml.LoRAConfig(r, target_modules=targets))
    print(f"{name:<11} r = {r}: {sum(p.size for p in trainable):,} parameters in {len(trainable) // 2} layers")

# %%
methods = {"q": "lora q 8", "v": "lora v 8", "q, v": "lora q,v 4", "q, k, v, o": "lora q,k,v,o 2"}
tasks = ("pairs", "prev", "revupper")
accuracy = {
    t: {n: adapt_and_examine(adaptation("strings", 0, t, m))["accuracy"] for n, m in methods.items()} for t in tasks
}

# %%
figure, ax = plt.subplots(figsize=(9, 3.6))
about = {"pairs": "where to read", "prev": "what to write", "revupper": "both"}
series = {f"{task}: {about[task]}": [[100 * accuracy[task][name]] for name in methods] for task in tasks}
grouped_points(ax, list(methods), series, (BLUE, ORANGE, GREEN))
ax.set(ylabel="answered exactly (%)", ylim=(0, 104))
ax.set_title("One base: without v nothing new is written, and q with v does it all")
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% measured 40%
for task in tasks:
    print(f"{task:<9}", "   ".join(f"{name}: {100 * accuracy[task][name]:3.0f} %" for name in methods))

# %% [markdown]
# With $q$ alone the model can look elsewhere, but it has to write what it always wrote: `prev` stays at nothing. $v$ alone
# does learn to write something new, and, since the heads of a trained base already look at several places, part of the
# tasks about where to read as well. $q$ and $v$ together at half the rank do all three, and give up little: rank 4 is
# plenty here (notebook 5).
#
# ## Three bases, all eight choices

# %% exact
show("which_matrices")

# %%
display(Image("../figures/which_matrices.png", width=950))

# %% [markdown]
# Read the paper's table as carefully: on MNLI $W_o$ alone (91.3) ties $W_q, W_v$ (91.3), and all four at $r = 2$ are best
# (91.7). "q and v are best overall" is its prose; the differences on MNLI are a few times its ±0.1. What it clearly shows,
# and what holds here on strings, is that *spreading* a budget beats concentrating it. On real text, at our scale, the MLP's
# first layer does best: the paper leaves the MLP to future work (§4.2), and later work found it worth adapting.
#
# ## Naming targets
#
# **Asked often: "Target modules not found".** Each entry of `target_modules` is a whole dotted name or the end of one, from a
# dot on. Every entry must match at least one `Linear`; if one does not, nothing is changed, and the message lists what
# there is and the nearest name.


# %% exact
def attempt(*targets):
    model = load_base("strings", 0)
    try:
        trainable = ml.add_lora(model, ml.LoRAConfig(4, target_modules=targets))
        print(f"{targets}: {len(trainable) // 2} layers")
    except ValueError as error:
        print(f"{targets}:")
        print(textwrap.indent(textwrap.fill(str(error), 100), "    "))


attempt("q_proj", "v_proj")
attempt("blocks.0.attn.q_proj")
attempt("q_porj")
attempt("q_proj", "c_attn")
attempt("proj")

# %% [markdown]
# ## Exercise
#
# - Course exercise 9, "count the parameters", once more with the MLP: which $r$ on `fc_in` has the budget of $r = 4$ on q and
#   v? ([course](course/README.md))
# - Make a task of your own that needs only `k`. (Hint: what can $W_k$ do that $W_q$ cannot, if anything?)
#
# Next: [7. What LoRA replaces](07_what_lora_replaces.ipynb)
