"""The definition of additive attention scores, and nothing faster."""

from __future__ import annotations

import torch
from torch import Tensor

from polyhead.ops.additive_attention_scores import AdditiveAttentionScores

__all__ = ["additive_attention_scores", "allowed_pairs", "scores"]


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
    """Write the formula out; arguments as the public function validated them.

    Complexity: O(B·H·Sq·Sk·D) time and memory.
    """
    allowed = allowed_pairs(q, k, mask, lengths, query_lengths)
    logits = scores(q, k, weight, allowed, clip)
    return AdditiveAttentionScores(logits.masked_fill(~allowed.any(3, keepdim=True), 0).to(q.dtype))


def scores(q: Tensor, k: Tensor, weight: Tensor, allowed: Tensor, clip: float | None) -> Tensor:
    """Return logits (B, H, Sq, Sk) in float32 at least, −∞ where a query may not attend."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    q = q.to(wide).masked_fill(~allowed.any(3).unsqueeze(-1), 0)
    k = k.to(wide).masked_fill(~allowed.any(2).unsqueeze(-1), 0)
    hidden = torch.tanh(q.unsqueeze(3) + k.unsqueeze(2))
    logits = (hidden * weight.to(wide)[:, None, None]).sum(-1)
    if clip is not None:
        logits = clip * torch.tanh(logits)
    return logits.masked_fill(~allowed, -torch.inf)


def allowed_pairs(
    q: Tensor, k: Tensor, mask: Tensor | None, lengths: Tensor | None, query_lengths: Tensor | None
) -> Tensor:
    """Return which query may attend which key, bool, shape (B, H, Sq, Sk)."""
    allowed = torch.ones(*q.shape[:3], k.shape[2], dtype=torch.bool, device=q.device)
    if mask is not None:
        allowed = allowed & mask
    if lengths is not None:
        allowed = allowed & (torch.arange(k.shape[2], device=q.device) < lengths[:, None, None, None])
    if query_lengths is not None:
        allowed = allowed & (torch.arange(q.shape[2], device=q.device)[:, None] < query_lengths[:, None, None, None])
    return allowed
