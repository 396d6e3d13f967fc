"""The encoder: each layer updates its share of the best tokens, and the finest of these attend to each other first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from polyhead import recording
from polyhead.nn import FeedForward, MultiHeadAttention
from polyhead_detection.deformable import MultiScaleDeformableAttention
from polyhead_detection.geometry import Geometry

__all__ = ["Encoded", "Encoder", "EncoderLayer", "Selection"]

FineScore = Callable[[Tensor, Tensor | None], Tensor]
"""Scores tokens (B, K, dim), given their foreground logits (B, K), for the fine attention: (B, K)."""


class Selection(NamedTuple):
    """The tokens that a layer takes, best first."""

    tokens: Tensor
    """int64 (B, K)."""
    real: Tensor | None
    """bool (B, K), False = beyond the image's own budget; None if there is no such token."""


class Encoded(NamedTuple):
    """What the encoder returns."""

    memory: Tensor
    """(B, N, dim): tokens that no layer took are as they came."""
    kept: tuple[Tensor, ...]
    """For each layer bool (B, N), True = updated."""


class EncoderLayer(nn.Module):
    """Fine attention among a few tokens, deformable attention into the maps, a feed-forward part; norms behind each.

    Source: Zheng et al. 2023, arXiv:2307.12612, sec. 3.4 (dual attention).
    """

    def __init__(
        self, dim: int, heads: int, levels: int, points: int, ff_dim: int, *, fine_tokens: int, dropout: float = 0.0
    ) -> None:
        """Make a layer; with ``fine_tokens`` 0 it has no fine attention and is one of Deformable DETR."""
        super().__init__()
        self.fine_tokens = fine_tokens
        self.fine = MultiHeadAttention(dim, heads, dropout=dropout) if fine_tokens else None
        self.fine_norm = nn.LayerNorm(dim) if fine_tokens else None
        self.deformable = MultiScaleDeformableAttention(dim, heads, levels, points)
        self.deformable_norm = nn.LayerNorm(dim)
        self.feed_forward = FeedForward(dim, ff_dim, activation="relu", dropout=dropout)
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        reference: Tensor,
        value: Tensor,
        shapes: Sequence[tuple[int, int]],
        *,
        value_mask: Tensor | None,
        scores: Tensor | None = None,
        real: Tensor | None = None,
    ) -> Tensor:
        """Update tokens.

        Args:
            x: the tokens that the layer takes, (B, K, dim).
            positions: theirs, (B, K, dim).
            reference: their places on each map, (B, K, L, 2).
            value: all tokens, (B, N, dim).
            shapes: of the maps.
            value_mask: bool (B, N), False = padding.
            scores: which tokens are finest, (B, K); needed by the fine attention.
            real: bool (B, K), False = beyond the image's budget: no token sees it.
        """
        if self.fine is not None and self.fine_norm is not None and scores is not None:
            if real is not None:
                scores = scores.masked_fill(~real, -torch.inf)
            index = scores.topk(min(self.fine_tokens, x.shape[1]), dim=1).indices
            recording.note(self, "fine", index)
            tokens, places = take(x, index), take(positions, index)
            seen = None if real is None else real.gather(1, index)
            placed = tokens + places
            attended = tokens + self.fine(placed, placed, tokens, key_mask=seen).output
            recording.note(self, "fine_sum", attended)
            x = x.scatter(1, index[..., None].expand_as(tokens), self.fine_norm(attended).to(x.dtype))
        attended = self.deformable(x + positions, reference, value, shapes, value_mask)
        x = x + self.dropout(attended)
        recording.note(self, "deformable_sum", x)
        x = self.deformable_norm(x)
        x = self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))
        recording.note(self, "output", x)
        return x


class Encoder(nn.Module):
    """Layers over nested selections of tokens; without selections they update all of them."""

    def __init__(self, layers: Sequence[EncoderLayer], *, refreshed: bool) -> None:
        """Stack layers.

        Args:
            layers: in order.
            refreshed: whether a layer reads the tokens as the last one left them, or as the neck made them.
        """
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.refreshed = refreshed

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        geometry: Geometry,
        *,
        token_mask: Tensor | None,
        selections: Sequence[Selection] | None = None,
        foreground: Tensor | None = None,
        fine_score: FineScore | None = None,
    ) -> Encoded:
        """Update tokens (B, N, dim) layer by layer.

        Args:
            tokens: the neck's.
            positions: theirs, (B, N, dim).
            geometry: of the maps.
            token_mask: bool (B, N), False = padding; None if there is none.
            selections: what each layer takes; None: all.
            foreground: logits (B, N), for the fine score.
            fine_score: which tokens are finest.
        """
        x, kept = tokens, []
        ratios = geometry.ratios()
        reference = (geometry.centres()[:, :, None] * ratios[:, None]).expand(tokens.shape[0], -1, -1, -1)
        everything = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        everything = everything if token_mask is None else token_mask
        for number, layer in enumerate(self.layers):
            value = x if self.refreshed else tokens
            if selections is None:
                scores = fine_score(x, foreground) if fine_score is not None and layer.fine is not None else None
                x = layer(
                    x,
                    positions,
                    reference,
                    value,
                    geometry.shapes,
                    value_mask=token_mask,
                    scores=scores,
                    real=token_mask,
                )
                kept.append(everything)
                continue
            index, real = selections[number]
            recording.note(self, "index", index)
            taken = take(x, index)
            scores = None
            if fine_score is not None and layer.fine is not None:
                scores = fine_score(taken, None if foreground is None else foreground.gather(1, index))
                recording.note(self, "fine_score", scores)
            updated = layer(
                taken,
                take(positions, index),
                take(reference.flatten(2), index).unflatten(-1, reference.shape[2:]),
                value,
                geometry.shapes,
                value_mask=token_mask,
                scores=scores,
                real=real,
            ).to(x.dtype)
            if real is not None:
                updated = torch.where(real[..., None], updated, taken)
            x = x.scatter(1, index[..., None].expand_as(taken), updated)
            where = torch.ones_like(index, dtype=torch.bool) if real is None else real
            kept.append(torch.zeros_like(everything).scatter(1, index, where))
        return Encoded(x, tuple(kept))


def take(x: Tensor, index: Tensor) -> Tensor:
    """Return the rows ``index`` (B, K) of (B, N, D)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
