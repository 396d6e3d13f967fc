"""Tie a kernel's forward operator to its backward operator, the same way for every kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from polyhead.ops.decay_attention import DecayAttention
from polyhead.ops.library import distinct

__all__ = ["BACKWARD", "FORWARD", "differentiable"]

FORWARD = (
    "(Tensor q, Tensor k, Tensor v, Tensor log_decay, Tensor? initial_state, Tensor? cu_seqlens, float scale, "
    "bool keep) -> (Tensor, Tensor, Tensor)"
)
"""The schema of a forward operator: returns output, final state, and the states that the backward one wants if kept."""
BACKWARD = (
    "(Tensor grad_output, Tensor grad_final, Tensor q, Tensor k, Tensor v, Tensor log_decay, Tensor? cu_seqlens, "
    "Tensor states, float scale, bool decay_grad) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
"""The schema of a backward operator: gradients of q, k, v, log_decay (empty if not asked for) and initial state."""


def differentiable(forward: Callable[..., Any], backward: Callable[..., Any]) -> Callable[..., DecayAttention]:
    """Return a kernel's function made of two operators that ``polyhead.ops.library.register`` returned.

    Args:
        forward: of the schema ``FORWARD``.
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
            log_decay: Tensor,
            initial_state: Tensor | None,
            cu_seqlens: Tensor | None,
            scale: float,
            keep: bool,
        ) -> tuple[Tensor, Tensor]:
            output, final, states = forward(q, k, v, log_decay, initial_state, cu_seqlens, scale, keep)
            ctx.save_for_backward(q, k, v, log_decay, cu_seqlens, states)
            ctx.scale = scale
            ctx.state_dtype = None if initial_state is None else initial_state.dtype
            return output, final

        @staticmethod
        def backward(ctx: Any, grad_output: Tensor, grad_final: Tensor) -> Any:
            q, k, v, log_decay, cu_seqlens, states = ctx.saved_tensors
            dq, dk, dv, ddecay, dstate = backward(
                grad_output, grad_final, q, k, v, log_decay, cu_seqlens, states, ctx.scale, ctx.needs_input_grad[3]
            )
            return (
                dq,
                dk,
                dv,
                ddecay if ctx.needs_input_grad[3] else None,
                dstate.to(ctx.state_dtype) if ctx.needs_input_grad[4] else None,
                None,
                None,
                None,
            )

    def decay_attention(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_decay: Tensor,
        *,
        initial_state: Tensor | None,
        cu_seqlens: Tensor | None,
        scale: float,
    ) -> DecayAttention:
        """Run the kernel; arguments as the public function validated them."""
        tensors = distinct(q, k, v, log_decay, initial_state)
        keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
        return DecayAttention(*Function.apply(*tensors, cu_seqlens, scale, keep))

    return decay_attention
