"""A pointer's loss from tiles that stay in the cache; logits are neither kept nor computed twice in a pass."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from polyhead.ops.additive_attention_scores.masks import reach
from polyhead.ops.additive_attention_scores.tiles import Strip, Tile, backward, strips, wide_dtype
from polyhead.ops.pointer_nll.gradients import differentiable

__all__ = ["pointer_nll"]


def _logits(tile: Tile, clip: float | None) -> Tensor:
    values = tile.logits()
    if clip is not None:
        values.tanh_().mul_(clip)
    return values if tile.allowed is None else values.masked_fill_(~tile.allowed, -torch.inf)


def _blocks(strip: Strip, clip: float | None) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield queries, keys and their logits: several tiles together where their logits are as few as one's numbers."""
    for keys, tiles in strip.blocks():
        width = keys.stop - keys.start
        if strip.height * strip.queries * width > strip.elements:
            yield from ((tile.queries, keys, _logits(tile, clip)) for tile in tiles)
            continue
        values = strip.workspace.take("block", strip.height, strip.queries, width)
        for tile in tiles:
            values[:, tile.queries] = _logits(tile, clip)
        yield slice(0, strip.queries), keys, values


def _run_forward(
    q: Tensor,
    k: Tensor,
    weight: Tensor,
    targets: Tensor,
    mask: Tensor | None,
    lengths: Tensor | None,
    query_lengths: Tensor | None,
    clip: float | None,
) -> tuple[Tensor, Tensor]:
    """Return the losses, and for the backward pass the logarithms of the sums (B, H, Sq)."""
    part = reach(q, k, mask, lengths, query_lengths)
    total = torch.full(q.shape[:3], -torch.inf, dtype=wide_dtype(q.dtype), device=q.device)
    chosen = total.clone()
    for strip in strips(q, k, weight, part):
        for queries, keys, values in _blocks(strip, clip):
            where = (strip.rows, strip.head, queries)
            total[where] = torch.logaddexp(total[where], values.logsumexp(2))
            at = targets[where] - keys.start
            inside = (at >= 0) & (at < values.shape[2])
            found = values.gather(2, at.clamp(0, values.shape[2] - 1).unsqueeze(2)).squeeze(2)
            chosen[where] = torch.where(inside, found, chosen[where])
    total.masked_fill_(chosen == -torch.inf, torch.inf)  # the loss of what is impossible, and no gradient
    nll = (total - chosen).to(q.dtype)
    empty = torch.full_like(total, k.shape[2] == 0, dtype=torch.bool) if part is None else ~part.queries
    return nll.masked_fill_(empty, 0), total


def _run_backward(
    grad_nll: Tensor,
    total: Tensor,
    q: Tensor,
    k: Tensor,
    weight: Tensor,
    targets: Tensor,
    mask: Tensor | None,
    lengths: Tensor | None,
    query_lengths: Tensor | None,
    clip: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and weight."""

    def gradient(tile: Tile) -> Tensor:
        where = (tile.rows, tile.head, tile.queries)
        values = _logits(tile, clip)
        g = (values - total[where].unsqueeze(2)).exp_()
        keys = torch.arange(tile.keys.start, tile.keys.stop, device=q.device)
        g.add_(targets[where].unsqueeze(2) == keys, alpha=-1).mul_(grad_nll[where].unsqueeze(2))
        if clip is not None:
            g *= values.div_(clip).square_().neg_().add_(1).mul_(clip)
        return g if tile.allowed is None else g.masked_fill_(~tile.allowed, 0)

    return backward(q, k, weight, reach(q, k, mask, lengths, query_lengths), gradient)


pointer_nll = differentiable("pointer_nll", "torch", _run_forward, _run_backward)
