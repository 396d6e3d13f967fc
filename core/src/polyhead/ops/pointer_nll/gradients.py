"""Register a kernel's forward and backward pass and tie them together, the same way for every kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from polyhead.ops.additive_attention_scores.tiles import wide_dtype
from polyhead.ops.library import distinct, register
from polyhead.ops.pointer_nll import PointerNLL

__all__ = ["differentiable"]

_INPUTS = (
    "Tensor q, Tensor k, Tensor weight, Tensor targets, Tensor? mask, Tensor? lengths, Tensor? query_lengths, "
    "float? clip"
)


def differentiable(
    name: str,
    kernel: str,
    run_forward: Callable[..., tuple[Tensor, Tensor]],
    run_backward: Callable[..., tuple[Tensor, ...]],
) -> Callable[..., PointerNLL]:
    """Return a kernel's function.

    Args:
        name: what the registered operators' names begin with.
        kernel: the kernel's own name.
        run_forward: of q, k, weight, targets, mask, lengths, query_lengths and clip to the losses and, in float32 at
            least, the logarithms of the sums, (B, H, Sq); +∞ where the target is impossible, so that no probability
            and no gradient is left.
        run_backward: of the gradient of the losses, these logarithms and the same to the gradients of q, k and weight.
    """
    forward = register(f"{name}_forward({_INPUTS}) -> (Tensor, Tensor)", run_forward, _fake_forward)
    backward = register(
        f"{name}_backward(Tensor grad_nll, Tensor total, {_INPUTS}) -> (Tensor, Tensor, Tensor)",
        run_backward,
        _fake_backward,
        backward_of=f"{kernel} of pointer_nll",
    )

    class Function(torch.autograd.Function):
        """Gradients by the backward operator."""

        @staticmethod
        def forward(
            ctx: Any,
            q: Tensor,
            k: Tensor,
            weight: Tensor,
            targets: Tensor,
            mask: Tensor | None,
            lengths: Tensor | None,
            query_lengths: Tensor | None,
            clip: float | None,
        ) -> Tensor:
            nll: Tensor
            nll, total = forward(q, k, weight, targets, mask, lengths, query_lengths, clip)
            ctx.save_for_backward(total, q, k, weight, targets, mask, lengths, query_lengths)
            ctx.clip = clip
            return nll

        @staticmethod
        def backward(ctx: Any, grad_nll: Tensor) -> Any:
            return (*backward(grad_nll, *ctx.saved_tensors, ctx.clip), None, None, None, None, None)

    def pointer_nll(
        q: Tensor,
        k: Tensor,
        weight: Tensor,
        targets: Tensor,
        *,
        mask: Tensor | None,
        lengths: Tensor | None,
        query_lengths: Tensor | None,
        clip: float | None,
    ) -> PointerNLL:
        """Run the kernel; arguments as the public function validated them."""
        tensors = distinct(q, k, weight)
        return PointerNLL(Function.apply(*tensors, targets, mask, lengths, query_lengths, clip))

    return pointer_nll


def _fake_forward(q: Tensor, *_rest: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape[:3]), q.new_empty(q.shape[:3], dtype=wide_dtype(q.dtype))


def _fake_backward(
    _grad_nll: Tensor, _total: Tensor, q: Tensor, k: Tensor, weight: Tensor, *_rest: Any
) -> tuple[Tensor, ...]:
    return q.new_empty(q.shape), k.new_empty(k.shape), weight.new_empty(weight.shape)
