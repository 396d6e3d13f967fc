"""Tie a kernel's forward operator to its backward operator, the same way for every kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from polyhead.ops.deformable_attention import DeformableAttention

__all__ = ["BACKWARD", "FORWARD", "differentiable", "fake_backward", "fake_forward"]

FORWARD = "(Tensor value, Tensor locations, Tensor weights, SymInt[] sizes) -> Tensor"
"""The schema of a forward operator; ``sizes`` holds height and width of each level behind one another."""
BACKWARD = (
    "(Tensor grad_output, Tensor value, Tensor locations, Tensor weights, SymInt[] sizes, bool deterministic, "
    "bool value_grad, bool sample_grad) -> (Tensor, Tensor, Tensor)"
)
"""The schema of a backward operator: gradients of value, and of locations and weights; empty if not asked for."""


def fake_forward(value: Tensor, locations: Tensor, _weights: Tensor, _sizes: list[int]) -> Tensor:
    """Return what a forward operator returns, without its values: heads are last but one in memory."""
    batch, heads, queries = locations.shape[:3]
    return value.new_empty(batch, queries, heads, value.shape[3]).transpose(1, 2)


def fake_backward(
    _grad_output: Tensor,
    value: Tensor,
    locations: Tensor,
    weights: Tensor,
    _sizes: list[int],
    _deterministic: bool,
    value_grad: bool,
    sample_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what a backward operator returns, without its values."""
    return (
        torch.empty_like(value) if value_grad else value.new_empty(0),
        torch.empty_like(locations) if sample_grad else locations.new_empty(0),
        torch.empty_like(weights) if sample_grad else weights.new_empty(0),
    )


def differentiable(forward: Callable[..., Any], backward: Callable[..., Any]) -> Callable[..., DeformableAttention]:
    """Return a kernel's function made of two operators that ``polyhead.ops.library.register`` returned.

    Args:
        forward: of the schema ``FORWARD``.
        backward: of the schema ``BACKWARD``.
    """

    class Function(torch.autograd.Function):
        """Gradients by the backward operator."""

        @staticmethod
        def forward(
            ctx: Any, value: Tensor, locations: Tensor, weights: Tensor, deterministic: bool, *sizes: int
        ) -> Tensor:
            ctx.save_for_backward(value, locations, weights)
            ctx.deterministic, ctx.sizes = deterministic, sizes
            output: Tensor = forward(value, locations, weights, sizes)
            return output

        @staticmethod
        def backward(ctx: Any, grad_output: Tensor) -> Any:
            by_value, by_location, by_weight = ctx.needs_input_grad[:3]
            gradients = backward(
                grad_output, *ctx.saved_tensors, ctx.sizes, ctx.deterministic, by_value, by_location or by_weight
            )
            asked = (by_value, by_location, by_weight)
            wanted = (x if needed else None for x, needed in zip(gradients, asked, strict=True))
            return (*wanted, None, *(None for _ in ctx.sizes))

    def deformable_attention(
        value: Tensor,
        locations: Tensor,
        weights: Tensor,
        *,
        shapes: tuple[tuple[int, int], ...],
        deterministic: bool,
    ) -> DeformableAttention:
        """Run the kernel; arguments as the public function validated them."""
        sizes = [size for pair in shapes for size in pair]
        return DeformableAttention(Function.apply(value, locations, weights, deterministic, *sizes))

    return deformable_attention
