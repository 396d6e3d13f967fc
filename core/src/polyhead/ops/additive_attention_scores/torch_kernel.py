"""Additive attention scores in tiles that stay in the cache, with a backward pass that computes them again."""

from __future__ import annotations

import torch
from torch import Tensor

from polyhead.ops.additive_attention_scores.gradients import differentiable
from polyhead.ops.additive_attention_scores.masks import reach
from polyhead.ops.additive_attention_scores.tiles import Tile, backward, strips

__all__ = ["additive_attention_scores"]


def _run_forward(
    q: Tensor,
    k: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    lengths: Tensor | None,
    query_lengths: Tensor | None,
    clip: float | None,
) -> Tensor:
    part = reach(q, k, mask, lengths, query_lengths)
    logits = torch.empty(*q.shape[:3], k.shape[2], dtype=q.dtype, device=q.device)
    if part is not None:
        logits.fill_(-torch.inf)
    for strip in strips(q, k, weight, part):
        for _, tiles in strip.blocks():
            for tile in tiles:
                values = tile.logits()
                if clip is not None:
                    values.tanh_().mul_(clip)
                if tile.allowed is not None:
                    values.masked_fill_(~tile.allowed, -torch.inf)
                logits[tile.rows, tile.head, tile.queries, tile.keys] = values.to(q.dtype)
    if part is not None:
        logits.masked_fill_(~part.queries.unsqueeze(-1), 0)
    return logits


def _run_backward(
    grad_logits: Tensor,
    q: Tensor,
    k: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    lengths: Tensor | None,
    query_lengths: Tensor | None,
    clip: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and weight."""

    def gradient(tile: Tile) -> Tensor:
        g = tile.of(grad_logits).to(tile.hidden.dtype)
        if clip is not None:
            g = g * tile.logits().tanh_().square_().neg_().add_(1).mul_(clip)
        return g if tile.allowed is None else g.masked_fill(~tile.allowed, 0)

    return backward(q, k, weight, reach(q, k, mask, lengths, query_lengths), gradient)


additive_attention_scores = differentiable("additive_attention_scores", "torch", _run_forward, _run_backward)
