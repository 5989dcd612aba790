"""LoRA's line in few products, with the small ones beside the large."""

from __future__ import annotations

from ..autograd import Array, Tensor, record
from .layers import sum_rows
from .products import matmul, matmul_over_rows
from .walk import together


def lora_linear(
    x: Tensor, dropped: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scaling: float
) -> Tensor:
    """With z = A x̃ and g = ∂L/∂h:  ∂L/∂B = s gᵀz,  ∂L/∂z = s g B,  ∂L/∂A = (∂L/∂z)ᵀ x̃, ∂L/∂x = g W₀ and
    ∂L/∂x̃ = (∂L/∂z) A."""
    rows, dropped_rows = (t.array.reshape(-1, t.shape[-1]) for t in (x, dropped))  # (..., in) -> (M, in)
    a, b = A.array, B.array
    z = matmul(dropped_rows, a.T)  # (M, in) @ (in, r) -> (M, r)
    z *= scaling
    w = weight.keep()
    h = matmul(rows, w().T)  # (M, in) @ (in, out) -> (M, out)
    h += matmul(z, b.T)  # (M, r) @ (r, out) -> (M, out)
    if bias is not None:
        h += bias.array
    shape, same = x.shape, dropped is x
    x_needs, dropped_needs, weight_needs = x.requires_grad, dropped.requires_grad, weight.requires_grad
    saved_rows = rows if weight_needs else None
    bias_needs = bias is not None and bias.requires_grad

    def backward(g: Array) -> list[Array | None]:
        g = g.reshape(-1, g.shape[-1])  # (..., out) -> (M, out)
        db = matmul_over_rows(g, z)  # (out, M) @ (M, r) -> (out, r); z holds s·A x̃
        dz = matmul(g, b)  # (M, out) @ (out, r) -> (M, r)
        dz *= scaling
        da = matmul_over_rows(dz, dropped_rows)  # (r, M) @ (M, in) -> (r, in)
        dx = matmul(g, w()) if x_needs else None  # (M, out) @ (out, in) -> (M, in)
        dropped_dx = matmul(dz, a) if dropped_needs else None  # (M, r) @ (r, in) -> (M, in)
        if same and dx is not None:
            dx += dropped_dx
        gradients: list[Array | None] = [da, db, None if dx is None else dx.reshape(shape)]
        if not same:
            gradients.append(None if dropped_dx is None else dropped_dx.reshape(shape))
        gradients.append(None if saved_rows is None else matmul_over_rows(g, saved_rows))
        if bias is not None:
            gradients.append(sum_rows(g) if bias_needs else None)
        return gradients

    parents = [A, B, x] + ([] if same else [dropped]) + [weight] + ([] if bias is None else [bias])
    return record(h.reshape(*shape[:-1], h.shape[-1]), *together(parents, backward))
