"""Additive attention scores in tiles that stay in the cache, with a backward pass that computes them again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from polyhead.ops.additive_attention_scores import AdditiveAttentionScores
from polyhead.ops.additive_attention_scores.masks import reach
from polyhead.ops.additive_attention_scores.tiles import Tile, backward, strips
from polyhead.ops.library import distinct, register

__all__ = ["additive_attention_scores"]


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
    """Run the tiled form; arguments as the public function validated them."""
    q, k, weight = distinct(q, k, weight)  # type: ignore[assignment]
    return AdditiveAttentionScores(_Function.apply(q, k, weight, mask, lengths, query_lengths, clip))


class _Function(torch.autograd.Function):
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
        logits: Tensor = _forward(q, k, weight, mask, lengths, query_lengths, clip)
        return logits

    @staticmethod
    def backward(ctx: Any, grad_logits: Tensor) -> Any:
        return (*_backward(grad_logits, *ctx.saved_tensors, ctx.clip), None, None, None, None)


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


def _fake_forward(
    q: Tensor,
    k: Tensor,
    _weight: Tensor,
    _mask: Tensor | None,
    _lengths: Tensor | None,
    _query_lengths: Tensor | None,
    _clip: float | None,
) -> Tensor:
    return q.new_empty(*q.shape[:3], k.shape[2])


def _fake_backward(
    _grad_logits: Tensor,
    q: Tensor,
    k: Tensor,
    weight: Tensor,
    _mask: Tensor | None,
    _lengths: Tensor | None,
    _query_lengths: Tensor | None,
    _clip: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), weight.new_empty(weight.shape)


_forward = register(
    "additive_attention_scores_forward(Tensor q, Tensor k, Tensor weight, Tensor? mask, Tensor? lengths, "
    "Tensor? query_lengths, float? clip) -> Tensor",
    _run_forward,
    _fake_forward,
)
_backward = register(
    "additive_attention_scores_backward(Tensor grad_logits, Tensor q, Tensor k, Tensor weight, Tensor? mask, "
    "Tensor? lengths, Tensor? query_lengths, float? clip) -> (Tensor, Tensor, Tensor)",
    _run_backward,
    _fake_backward,
    backward_of="torch of additive_attention_scores",
)
