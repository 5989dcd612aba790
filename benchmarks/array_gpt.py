"""minilora's GPT as one function over any library with NumPy's names, for JAX and HIPS autograd to differentiate."""

import math


def loss(np, config, parameters, ids, targets):
    """Mean cross-entropy of ids (B, T); `parameters` is name -> array, named as in minilora's `state_dict`."""
    p = parameters
    B, T = ids.shape
    D, H = config.d_model, config.n_heads
    mask = np.where(np.tril(np.ones((T, T))) > 0, 0.0, -1e9).astype("float32")

    def linear(x, name):
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def layer_norm(x, name):
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = (centred * centred).mean(axis=-1, keepdims=True)
        return centred / np.sqrt(variance + 1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"]

    def heads(x, name):
        return np.transpose(linear(x, name).reshape(B, T, H, D // H), (0, 2, 1, 3))

    def attention(x, name):
        q, k, v = (heads(x, f"{name}.{letter}_proj") for letter in "qkv")
        scores = q @ np.swapaxes(k, -1, -2) * np.float32(1 / math.sqrt(D // H)) + mask
        e = np.exp(scores - scores.max(axis=-1, keepdims=True))
        y = e / e.sum(axis=-1, keepdims=True) @ v
        return linear(np.transpose(y, (0, 2, 1, 3)).reshape(B, T, D), f"{name}.o_proj")

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(np.float32(math.sqrt(2 / math.pi)) * (x + 0.044715 * x * x * x)))

    x = p["token_embedding.weight"][ids] + p["position_embedding.weight"][:T]
    for layer in range(config.n_layers):
        block = f"blocks.{layer}"
        x = x + attention(layer_norm(x, f"{block}.ln_1"), f"{block}.attn")
        x = x + linear(gelu(linear(layer_norm(x, f"{block}.ln_2"), f"{block}.mlp.fc_in")), f"{block}.mlp.fc_out")
    logits = (layer_norm(x, "ln_f") @ p["lm_head.weight"].T).reshape(B * T, -1)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_total = np.log(np.exp(shifted).sum(axis=-1))
    return (log_total - shifted[np.arange(B * T), targets.reshape(-1)]).mean()
