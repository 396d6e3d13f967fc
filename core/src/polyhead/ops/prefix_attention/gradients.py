"""Tie a kernel's forward operator to its backward operator, the same way for every kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from polyhead.ops.library import distinct
from polyhead.ops.prefix_attention import PrefixAttention
from polyhead.ops.prefix_attention.state import PrefixState, wide_dtype

__all__ = ["BACKWARD", "FORWARD", "differentiable"]

FORWARD = (
    "(Tensor q, Tensor k, Tensor v, Tensor? key_mask, Tensor m, Tensor u, Tensor w, float scale) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
"""The schema of a forward operator, all but k and v in float32 at least: returns output, final m, u and w, and for the
backward operator logits (B, H, S), the logarithms of the prefixes' denominators (B, H, S) in float64, and means at the
boundaries of the kernel's chunks (B, H, boundaries, Dv)."""
BACKWARD = (
    "(Tensor grad_output, Tensor grad_u, Tensor grad_w, Tensor q, Tensor k, Tensor v, Tensor? key_mask, "
    "Tensor m, Tensor u, Tensor w, Tensor last_m, Tensor logits, Tensor sums, Tensor means, float scale) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
"""The schema of a backward operator: returns the gradients of q, k, v and the initial m, u and w."""


def differentiable(forward: Callable[..., Any], backward: Callable[..., Any]) -> Callable[..., PrefixAttention]:
    """Return a kernel's function made of two operators that ``polyhead.ops.library.register`` returned.

    Args:
        forward: of the schema ``FORWARD``; q is (B, H, D).
        backward: of the schema ``BACKWARD``.
    """

    class Function(torch.autograd.Function):
        """Gradients by the backward operator."""

        @staticmethod
        def forward(
            ctx: Any,
            q: Tensor,
            k: Tensor,
            v: Tensor,
            m: Tensor,
            u: Tensor,
            w: Tensor,
            key_mask: Tensor | None,
            scale: float,
        ) -> tuple[Tensor, ...]:
            output, last_m, last_u, last_w, logits, sums, means = forward(q, k, v, key_mask, m, u, w, scale)
            ctx.save_for_backward(q, k, v, key_mask, m, u, w, last_m, logits, sums, means)
            ctx.scale = scale
            ctx.mark_non_differentiable(last_m)
            return output, last_m, last_u, last_w

        @staticmethod
        def backward(ctx: Any, grad_output: Tensor, _grad_m: Tensor, grad_u: Tensor, grad_w: Tensor) -> Any:
            return *backward(grad_output, grad_u, grad_w, *ctx.saved_tensors, ctx.scale), None, None

    def prefix_attention(
        q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, m: Tensor, u: Tensor, w: Tensor, *, scale: float
    ) -> PrefixAttention:
        """Run the kernel; arguments as the public function validated them."""
        wide = wide_dtype(v.dtype)
        batch, heads, _, head_dim = k.shape
        rows = q.to(wide).expand(batch, heads, head_dim)  # so that the rows' gradients are summed in float32
        tensors = distinct(rows, k, v, m.to(wide), u.to(wide), w.to(wide))
        output, *state = Function.apply(*tensors, key_mask, scale)
        return PrefixAttention(output, PrefixState(*state))

    return prefix_attention
