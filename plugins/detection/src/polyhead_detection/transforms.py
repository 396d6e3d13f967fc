"""Resize and augment pictures with their boxes, by torchvision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from polyhead_detection.boxes import to_centres, to_corners

__all__ = ["Sample", "augment", "fit_size", "resize"]

CROP_SIDES = (400, 500, 600)
"""Shorter sides before a crop, and its extents: those of DETR."""
CROP_EXTENTS = (384, 600)


class Sample(NamedTuple):
    """A picture and its boxes."""

    image: Tensor
    """uint8 (3, H, W)."""
    boxes: Tensor
    """Centre x, y, width, height in units of the picture, (n, 4)."""
    labels: Tensor
    """int64 (n,)."""


def fit_size(size: tuple[int, int], short_side: int, long_side: int) -> tuple[int, int]:
    """Return height and width with the shorter side of ``short_side``, or less where the longer one is bounded.

    >>> fit_size((480, 640), 800, 1333), fit_size((400, 1000), 800, 1333)
    ((800, 1067), (533, 1333))
    """
    scale = min(short_side / min(size), long_side / max(size))
    height, width = (max(1, int(extent * scale + 0.5)) for extent in size)
    return height, width


def resize(sample: Sample, size: tuple[int, int]) -> Sample:
    """Resize the picture; boxes are relative to it and stay."""
    if size == tuple(sample.image.shape[-2:]):
        return sample
    return sample._replace(image=tv.resize(sample.image, list(size), antialias=True))


def augment(
    sample: Sample,
    generator: np.random.Generator,
    *,
    sides: Sequence[int],
    long_side: int,
    flip: bool,
    crop: bool,
) -> Sample:
    """Mirror, crop and resize at random; the numbers come from ``generator`` alone.

    Source: Carion et al. 2020 (DETR), arXiv:2005.12872, sec. 4; the release of Focus-DETR has no crops.
    """
    mirrored, cropped = generator.random(2) < 0.5
    if flip and mirrored:
        boxes = sample.boxes.clone()
        boxes[:, 0] = 1 - boxes[:, 0]
        sample = sample._replace(image=tv.horizontal_flip(sample.image), boxes=boxes)
    if crop and cropped:
        before = fit_size(_size(sample), int(generator.choice(CROP_SIDES)), 10**9)
        sample = _crop(resize(sample, before), generator)
    return resize(sample, fit_size(_size(sample), int(generator.choice(list(sides))), long_side))


def _crop(sample: Sample, generator: np.random.Generator) -> Sample:
    """Cut a random part out; boxes are clipped, and those outside dropped."""
    whole = _size(sample)
    low, high = CROP_EXTENTS
    height, width = (int(generator.integers(min(extent, low), min(extent, high) + 1)) for extent in whole)
    top, left = (int(generator.integers(0, all_ - part + 1)) for all_, part in zip(whole, (height, width), strict=True))
    scale = torch.tensor([whole[1], whole[0]] * 2, dtype=sample.boxes.dtype)
    corners = to_corners(sample.boxes) * scale - torch.tensor([left, top] * 2, dtype=sample.boxes.dtype)
    extents = torch.tensor([width, height] * 2, dtype=sample.boxes.dtype)
    corners = torch.minimum(corners.clamp(min=0), extents)
    kept = ((corners[:, 2:] - corners[:, :2]) > 0).all(-1)
    image = tv.crop(sample.image, top, left, height, width)
    return Sample(image, to_centres(corners[kept] / extents), sample.labels[kept])


def _size(sample: Sample) -> tuple[int, int]:
    return sample.image.shape[-2], sample.image.shape[-1]
