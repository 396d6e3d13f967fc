"""The definition of a pointer's loss, and nothing faster."""

from __future__ import annotations

import torch
from torch import Tensor

from polyhead.ops.additive_attention_scores.reference import allowed_pairs, scores
from polyhead.ops.pointer_nll import PointerNLL

__all__ = ["pointer_nll"]


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
    """Write the formula out; arguments as the public function validated them.

    Complexity: O(B·H·Sq·Sk·D) time and memory.
    """
    allowed = allowed_pairs(q, k, mask, lengths, query_lengths)
    empty = ~allowed.any(3)
    logits = scores(q, k, weight, allowed, clip)
    right = targets.unsqueeze(3) == torch.arange(k.shape[2], device=q.device)
    chosen = logits.masked_fill(~(right & allowed), 0).sum(3)
    # The sum of nothing would be −∞, and NaN as soon as something is subtracted from it.
    total = logits.masked_fill(empty.unsqueeze(3), 0).logsumexp(3)
    nll = (total - chosen).masked_fill(~(right & allowed).any(3), torch.inf)
    return PointerNLL(nll.masked_fill(empty, 0).to(q.dtype))
