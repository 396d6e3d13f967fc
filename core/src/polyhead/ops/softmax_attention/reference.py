"""The definition of softmax attention, and nothing faster."""

from __future__ import annotations

import torch
from torch import Tensor

from polyhead.ops.softmax_attention import SoftmaxAttention
from polyhead.ops.softmax_attention.patterns import Pattern, narrowed

__all__ = ["softmax_attention"]


def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None,
    bias: Tensor | None,
    causal: bool,
    scale: float,
    heads: tuple[int, ...] | None,
    pattern: Pattern | None = None,
) -> SoftmaxAttention:
    """Compute the formula with all logits in memory; arguments as the public function validated them.

    Complexity: O(B·H·Sq·Sk·(D + Dv)) time, O(B·H·Sq·Sk) memory.
    """
    dtype = q.dtype
    if dtype in (torch.float16, torch.bfloat16):
        q, k, v = q.float(), k.float(), v.float()
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)

    mask = narrowed(mask, pattern, q, k)
    allowed = torch.ones(*q.shape[:3], k.shape[2], dtype=torch.bool, device=q.device)
    if causal:
        allowed = allowed.tril(k.shape[2] - q.shape[2])
    if mask is not None:
        allowed = allowed & mask
    if bias is not None:
        allowed = allowed & (bias > -torch.inf)
    # Zero times NaN is NaN, in the backward pass too: what nobody attends must be gone before any product.
    nothing, unseen = ~allowed.any(-1, keepdim=True), ~allowed.any(-2).unsqueeze(-1)
    q, k, v = q.masked_fill(nothing, 0), k.masked_fill(unseen, 0), v.masked_fill(unseen, 0)

    logits = scale * (q @ k.mT)
    if bias is not None:
        logits = logits + bias
    # A softmax of nothing but -inf is NaN: a row without keys gets the logits of a uniform one, and then no weight.
    logits = logits.masked_fill(~allowed, -torch.inf).masked_fill(nothing, 0)
    weights = logits.softmax(-1).masked_fill(~allowed, 0)
    output = weights @ v
    return SoftmaxAttention(output.to(dtype), None if heads is None else weights[:, list(heads)].to(dtype))
