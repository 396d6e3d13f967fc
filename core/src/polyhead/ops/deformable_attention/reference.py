"""The definition of multi-scale deformable attention; nothing faster."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from polyhead.ops.deformable_attention import DeformableAttention

__all__ = ["deformable_attention"]


def deformable_attention(
    value: Tensor,
    locations: Tensor,
    weights: Tensor,
    *,
    shapes: tuple[tuple[int, int], ...],
    deterministic: bool,
) -> DeformableAttention:
    """Gather the four pixels around every sample, level by level; arguments as the public function validated them.

    Complexity: O(B·H·Q·L·P·D) time and memory.
    """
    del deterministic  # autograd's gradients are as deterministic as torch's settings say
    dtype = value.dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    value, locations, weights = value.to(wide), locations.to(wide), weights.to(wide)
    # A sum over no pixels, so that there are gradients, of zeros, where all maps are empty.
    output = value[:, :, :0].sum(2, keepdim=True).expand(-1, -1, locations.shape[2], -1)
    start = 0
    for level, (height, width) in enumerate(shapes):
        pixels = value[:, :, start : start + height * width]
        start += height * width
        if height * width:
            output = output + _level(pixels, height, width, locations[:, :, :, level], weights[:, :, :, level])
    return DeformableAttention(output.to(dtype))


def _level(pixels: Tensor, height: int, width: int, locations: Tensor, weights: Tensor) -> Tensor:
    """Return (B, H, Q, D) of one map (B, H, height · width, D), locations (B, H, Q, P, 2) and weights (B, H, Q, P)."""
    x, y = locations[..., 0] * width - 0.5, locations[..., 1] * height - 0.5
    near = (x >= -1) & (x < width) & (y >= -1) & (y < height)  # of NaN, nothing holds
    x, y, weights = (torch.where(near, each, 0) for each in (x, y, weights))
    left, top = x.floor(), y.floor()
    output = pixels.new_zeros(*x.shape[:3], pixels.shape[3])
    for below, right in product((False, True), repeat=2):
        row, column = top + below, left + right
        inside = near & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        share = (y - top if below else 1 - (y - top)) * (x - left if right else 1 - (x - left))
        at = torch.where(inside, row * width + column, 0).long().flatten(2)
        rows = pixels.gather(2, at.unsqueeze(-1).expand(*at.shape, pixels.shape[3])).unflatten(2, x.shape[2:])
        output = output + ((share * weights).unsqueeze(-1) * torch.where(inside.unsqueeze(-1), rows, 0)).sum(3)
    return output
