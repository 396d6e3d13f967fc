"""What an encoder costs: multiplications with additions, counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from polyhead_detection.focus_detr import FocusDETRConfig
from polyhead_detection.geometry import Geometry
from polyhead_detection.selector import budgets

__all__ = ["EncoderMacs", "encoder_macs"]


class EncoderMacs(NamedTuple):
    """Multiply-accumulates of an encoder for one picture."""

    values: int
    """The projection of all tokens that deformable attention reads from: the same for every budget."""
    tokens: int
    """All that is done for the tokens that are updated: offsets, weights, sampling, output, feed-forward part."""
    fine: int
    """The attention among the finest tokens."""
    scoring: int
    """Of the selector and the category scores."""

    @property
    def total(self) -> int:
        """The encoder's, without the scoring, as the literature compares encoders."""
        return self.values + self.tokens + self.fine


def encoder_macs(config: FocusDETRConfig, shapes: Sequence[tuple[int, int]]) -> EncoderMacs:
    """Count for one picture with maps of ``shapes`` (height, width)."""
    c = config
    count = sum(h * w for h, w in shapes)
    geometry = Geometry(tuple(shapes), (tuple(shapes),), torch.device("cpu"), torch.float32)
    if c.fts == "none":
        taken = [count] * c.encoder_layers
    else:
        taken = [own for own, _ in budgets(geometry, c.rho, c.cascade, by_batch=c.padding == "release")]
    samples = c.levels * c.points
    # Offsets and weights; four corners of each sample for each channel; the output; the feed-forward part.
    each = c.dim * c.heads * samples * 3 + samples * c.dim * 4 + c.dim**2 + 2 * c.dim * c.ff_dim
    fine = 0
    for own in taken:
        few = min(c.fine_tokens, own)
        fine += 4 * few * c.dim**2 + 2 * few**2 * c.dim
    selector = count * (2 * c.dim**2 + c.dim * (c.dim // 2) + (c.dim // 2) * (c.dim // 4) + c.dim // 4)
    scoring = (selector if c.fts == "score" else 0) + (sum(taken) * c.dim * c.classes if c.fine_tokens else 0)
    return EncoderMacs(c.encoder_layers * count * c.dim**2, sum(taken) * each, fine, scoring)
