"""Refuse gradients of gradients of fused kernels, which have none, with the mend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from polyhead.errors import KernelError

__all__ = ["no_second", "refusal"]

Gradients = tuple[Tensor | None, ...]


def no_second(kernel: str, who: str = "SDPA") -> KernelError:
    """Return the error.

    Args:
        kernel: the kernel's name.
        who: what it is made of.
    """
    return KernelError(
        f'Kernel "{kernel}" of softmax_attention has no gradients of gradients: {who} has none. '
        'Run the forward pass under polyhead.use_kernel(softmax_attention="reference").'
    )


def refusal(kernel: str, who: str = "SDPA") -> Callable[[Gradients, Any], Gradients | None]:
    """Return a hook of an autograd node that turns a later request for gradients of its gradients into the error."""

    def hook(gradients: Gradients, _: Any) -> Gradients | None:
        if not torch.is_grad_enabled():
            return None
        return tuple(x if x is None else _Refuse.apply(x, kernel, who) for x in gradients)

    return hook


class _Refuse(torch.autograd.Function):
    """Identity without a derivative."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, kernel: str, who: str) -> Tensor:
        ctx.names = kernel, who
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_gradients: Tensor) -> Any:
        raise no_second(*ctx.names)
