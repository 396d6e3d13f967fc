"""Sizes at which deformable attention is measured, and the form that people write without it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from polyhead.ops.spec import Inputs, Measure

__all__ = ["LEVELS", "MEASURES", "grid_sample"]

LEVELS = ((100, 167), (50, 84), (25, 42), (13, 21))
"""Of an image of 800 × 1333 pixels at strides 8, 16, 32 and 64."""


def grid_sample(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Sample each level by ``grid_sample`` and add up: the PyTorch form of Deformable DETR and its descendants."""
    grids = (2 * locations - 1).flatten(0, 1)  # (B·H, Q, L, P, 2)
    levels = value.flatten(0, 1).mT.split([height * width for height, width in shapes], 2)
    sampled = []
    for level, (pixels, shape) in enumerate(zip(levels, shapes, strict=True)):
        grid = grids[:, :, level].to(value.dtype)  # one dtype for both, as grid_sample wants it
        sampled.append(F.grid_sample(pixels.unflatten(2, shape), grid, align_corners=False))
    stacked = torch.stack(sampled, -2).flatten(-2)  # (B·H, D, Q, L·P)
    output = (stacked * weights.flatten(0, 1).flatten(2).unsqueeze(1)).sum(-1)
    return output.mT.unflatten(0, value.shape[:2])


def _draw(shape: tuple[int, int, int, int], queries: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    samples = (*shape[:2], queries, len(LEVELS), 4)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    tensors = {
        "value": torch.randn(shape, generator=generator).to(dtype),
        "locations": torch.rand(*samples, 2, generator=generator, dtype=wide),
        "weights": torch.randn(samples, generator=generator, dtype=wide).flatten(3).softmax(-1).view(samples),
    }
    return Inputs(tensors, {"shapes": LEVELS}, ("value", "locations", "weights"))


def _measure(queries: int) -> Measure:
    shape = (1, 8, sum(height * width for height, width in LEVELS), 32)
    options = {"queries": queries, "levels": ",".join(f"{height}x{width}" for height, width in LEVELS)}
    make = partial(_draw, shape, queries)
    peer = "polyhead.ops.deformable_attention.measures:grid_sample"
    return Measure(f"4 levels of 800×1333, Q{queries}", shape, make, options, peer, "grid_sample")


MEASURES = (_measure(20_000), _measure(2_000))
