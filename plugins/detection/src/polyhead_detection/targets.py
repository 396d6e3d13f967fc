"""Which tokens are foreground: those inside a box of the size that their level is for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from polyhead_detection.boxes import to_corners

__all__ = ["foreground_targets", "size_ranges"]

Ranges = tuple[tuple[float, float], ...]


def size_ranges(strides: Sequence[int], rule: Literal["release", "overlap"] | Ranges) -> Ranges:
    """Return for each level which largest distances to a box's sides it takes, in pixels, as (above, up to).

    >>> size_ranges((8, 16, 32, 64), "release")
    ((-1.0, 64.0), (64.0, 128.0), (128.0, 256.0), (256.0, inf))
    >>> size_ranges((8, 16, 32, 64), "overlap")
    ((-1.0, 96.0), (48.0, 192.0), (96.0, 384.0), (192.0, inf))
    """
    if not isinstance(rule, str):
        return rule
    wider = (0.75, 1.5) if rule == "overlap" else (1.0, 1.0)
    bounds = [8.0 * stride for stride in strides[:-1]]
    lows = [-1.0, *(wider[0] * bound for bound in bounds)]
    return tuple(zip(lows, [*(wider[1] * bound for bound in bounds), float("inf")], strict=True))


def foreground_targets(places: Tensor, boxes: Tensor, size: tuple[int, int], ranges: Ranges) -> Tensor:
    """Return which tokens of an image are foreground.

    A token is if it lies strictly inside a box and the largest of its distances to the four sides is in the range of
    its level.

    Args:
        places: x and y in pixels and level of the tokens, (N, 3).
        boxes: centre x, y, width, height in units of the image, (n, 4).
        size: height and width of the image in pixels.
        ranges: of each level, see `size_ranges`.

    Returns:
        Tensor: bool (N,).

    Source: Zheng et al. 2023, arXiv:2307.12612, sec. 3.2, and its release.
    """
    scale = boxes.new_tensor([size[1], size[0]])
    corners = to_corners(boxes)
    inner = places[:, None, :2] - corners[None, :, :2] * scale
    outer = corners[None, :, 2:] * scale - places[:, None, :2]
    distances = torch.cat([inner, outer], -1)
    limits = torch.tensor(ranges, device=places.device, dtype=places.dtype)[places[:, 2].long()]
    largest = distances.amax(-1)
    fits = (largest > limits[:, :1]) & (largest <= limits[:, 1:])
    return ((distances.amin(-1) > 0) & fits).any(-1)
