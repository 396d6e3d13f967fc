"""The DINO decoder: queries with boxes that every layer refines."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyhead import recording
from polyhead.nn import FeedForward, MultiHeadAttention
from polyhead_detection.boxes import logit
from polyhead_detection.deformable import MultiScaleDeformableAttention
from polyhead_detection.geometry import Geometry, sine

__all__ = ["MLP", "Decoded", "Decoder"]


class MLP(nn.Module):
    """Linear maps with ReLU between."""

    def __init__(self, *widths: int) -> None:
        """Make a map of each width to the next."""
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """Map the last axis."""
        for number, layer in enumerate(self.layers):
            x = layer(x if number == 0 else F.relu(x))
        return x


class Decoded(NamedTuple):
    """What the decoder returns, for each layer."""

    states: tuple[Tensor, ...]
    """(B, Q, dim), normalised."""
    references: tuple[Tensor, ...]
    """(B, Q, 4): the boxes that the layer started from, with the gradient of the layer before."""


class _Layer(nn.Module):
    def __init__(self, dim: int, heads: int, levels: int, points: int, ff_dim: int, dropout: float) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(dim, heads, dropout=dropout)
        self.attention_norm = nn.LayerNorm(dim)
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
        value_mask: Tensor | None,
        mask: Tensor | None,
    ) -> Tensor:
        placed = x + positions
        x = self.attention_norm(x + self.attention(placed, placed, x, mask=mask).output)
        read = self.deformable(x + positions, reference, value, shapes, value_mask)
        x = self.deformable_norm(x + self.dropout(read))
        y: Tensor = self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))
        return y


class Decoder(nn.Module):
    """Layers of self-attention, deformable attention inside the query's box, and a feed-forward part.

    Each layer moves the boxes; its own boxes are computed from those of the layer before with their gradient, so that
    a layer also learns from the loss of the next one ("look forward twice").

    Source: Zhang et al. 2023 (DINO), arXiv:2203.03605, sec. 3.4; the positions are those of DAB-DETR.
    """

    def __init__(
        self, depth: int, dim: int, heads: int, levels: int, points: int, ff_dim: int, *, dropout: float = 0.0
    ) -> None:
        """Make a decoder."""
        super().__init__()
        self.dim = dim
        self.layers = nn.ModuleList(_Layer(dim, heads, levels, points, ff_dim, dropout) for _ in range(depth))
        self.position = MLP(2 * dim, dim, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self,
        queries: Tensor,
        boxes: Tensor,
        memory: Tensor,
        geometry: Geometry,
        box_heads: Sequence[nn.Module],
        *,
        token_mask: Tensor | None,
        mask: Tensor | None,
        scaled_positions: bool,
    ) -> Decoded:
        """Decode.

        Args:
            queries: (B, Q, dim).
            boxes: where they begin, (x, y, w, h) in units of the image, (B, Q, 4).
            memory: the encoder's tokens, (B, N, dim).
            geometry: of the maps.
            box_heads: one of each layer, from states to changes of the boxes' logits.
            token_mask: bool (B, N), False = padding.
            mask: bool, broadcastable to (B, H, Q, Q), True = may attend.
            scaled_positions: whether a query's position is that on the finest map with its padding (as released), or
                that on the image.
        """
        ratios = geometry.ratios()
        ratios = torch.cat([ratios, ratios], -1)[:, None]
        states, references = [], []
        x, reference, base = queries, boxes, boxes
        for layer, head in zip(self.layers, box_heads, strict=True):
            on_maps = reference[:, :, None] * ratios
            place = on_maps[:, :, 0] if scaled_positions else reference
            x = layer(x, self.position(self._sines(place)), on_maps, memory, geometry.shapes, token_mask, mask)
            recording.note(self, "output", x)
            states.append(self.norm(x))
            references.append(base)
            base = (head(x) + logit(reference)).sigmoid()
            reference = base.detach()
        return Decoded(tuple(states), tuple(references))

    def _sines(self, boxes: Tensor) -> Tensor:
        """Return (B, Q, 2 · dim): y, x, w, h in turn, each of dim / 2 numbers."""
        places = boxes[..., [1, 0, 2, 3]] * 2 * math.pi
        return sine(places, self.dim // 2, 10_000.0).flatten(-2)
