"""Register a kernel's forward and backward pass and tie them together, the same way for every kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from polyhead.ops.additive_attention_scores import AdditiveAttentionScores
from polyhead.ops.library import distinct, register

__all__ = ["differentiable"]

_INPUTS = "Tensor q, Tensor k, Tensor weight, Tensor? mask, Tensor? lengths, Tensor? query_lengths, float? clip"


def differentiable(
    name: str, kernel: str, run_forward: Callable[..., Tensor], run_backward: Callable[..., tuple[Tensor, ...]]
) -> Callable[..., AdditiveAttentionScores]:
    """Return a kernel's function.

    Args:
        name: what the registered operators' names begin with.
        kernel: the kernel's own name.
        run_forward: of q, k, weight, mask, lengths, query_lengths and clip to the logits.
        run_backward: of the gradient of the logits and the same to the gradients of q, k and weight.
    """
    forward = register(f"{name}_forward({_INPUTS}) -> Tensor", run_forward, _fake_forward)
    backward = register(
        f"{name}_backward(Tensor grad_logits, {_INPUTS}) -> (Tensor, Tensor, Tensor)",
        run_backward,
        _fake_backward,
        backward_of=f"{kernel} of additive_attention_scores",
    )

    class Function(torch.autograd.Function):
        """Gradients by the backward operator."""

        @staticmethod
        def forward(
            ctx: Any,
            q: Tensor,
            k: Tensor,
            weight: Tensor,
            mask: Tensor | None,
            lengths: Tensor | None,
            query_lengths: Tensor | None,
            clip: float | None,
        ) -> Tensor:
            ctx.save_for_backward(q, k, weight, mask, lengths, query_lengths)
            ctx.clip = clip
            logits: Tensor = forward(q, k, weight, mask, lengths, query_lengths, clip)
            return logits

        @staticmethod
        def backward(ctx: Any, grad_logits: Tensor) -> Any:
            return (*backward(grad_logits, *ctx.saved_tensors, ctx.clip), None, None, None, None)

    def additive_attention_scores(
        q: Tensor,
        k: Tensor,
        weight: Tensor,
        *,
        mask: Tensor | None,
        lengths: Tensor | None,
        query_lengths: Tensor | None,
        clip: float | None,
    ) -> AdditiveAttentionScores:
        """Run the kernel; arguments as the public function validated them."""
        tensors = distinct(q, k, weight)
        return AdditiveAttentionScores(Function.apply(*tensors, mask, lengths, query_lengths, clip))

    return additive_attention_scores


def _fake_forward(q: Tensor, k: Tensor, *_rest: Any) -> Tensor:
    return q.new_empty(*q.shape[:3], k.shape[2])


def _fake_backward(_grad_logits: Tensor, q: Tensor, k: Tensor, weight: Tensor, *_rest: Any) -> tuple[Tensor, ...]:
    return q.new_empty(q.shape), k.new_empty(k.shape), weight.new_empty(weight.shape)
