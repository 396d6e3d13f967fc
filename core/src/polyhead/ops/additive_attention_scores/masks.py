"""Which queries and keys take part at all, without multiplying masks out to all pairs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Reach", "reach"]


class Reach(NamedTuple):
    """What mask and lengths leave. A pair is allowed if its query, its key and the mask all are."""

    queries: Tensor
    """Bool, (B, H, Sq): the query is real and may attend some key."""
    keys: Tensor
    """Bool, (B, H, Sk): the key is real and some query may attend it."""
    mask: Tensor | None
    """Bool, (B, H, Sq, Sk), possibly broadcast."""


def reach(
    q: Tensor, k: Tensor, mask: Tensor | None, lengths: Tensor | None, query_lengths: Tensor | None
) -> Reach | None:
    """Return what takes part, or None if everything does. Reads no values, so that a GPU is not waited for."""
    if mask is None and lengths is None and query_lengths is None:
        return None
    batch, heads, count, _ = q.shape
    queries = _real(count, query_lengths, q)
    keys = _real(k.shape[2], lengths, k)
    if mask is None:
        queries, keys = queries & keys.any(-1, keepdim=True), keys & queries.any(-1, keepdim=True)
    else:
        # A mask that all queries share, or all keys, stays as small as it is.
        rows = queries if mask.shape[2] > 1 else queries.any(-1, keepdim=True)
        columns = keys if mask.shape[3] > 1 else keys.any(-1, keepdim=True)
        pairs = mask & rows.unsqueeze(-1) & columns.unsqueeze(-2)
        queries, keys = queries & pairs.any(3), keys & pairs.any(2)
        mask = mask.expand(batch, heads, count, k.shape[2])
    return Reach(queries.expand(batch, heads, count), keys.expand(batch, heads, k.shape[2]), mask)


def _real(count: int, lengths: Tensor | None, like: Tensor) -> Tensor:
    places = torch.arange(count, device=like.device)[None, None]
    return places >= 0 if lengths is None else places < lengths[:, None, None]
