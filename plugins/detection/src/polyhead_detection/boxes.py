"""Boxes: forms, overlaps, and the logits that refine them."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["area", "generalised_iou", "intersection", "logit", "to_centres", "to_corners"]

LEAST = 1e-3
"""Coordinates are this far from 0 and 1 before their logit is taken, as in the release."""


def to_corners(boxes: Tensor) -> Tensor:
    """Turn (x, y, w, h) around a centre into (x0, y0, x1, y1); shape (..., 4).

    >>> to_corners(torch.tensor([0.5, 0.5, 0.5, 1.0])).tolist()
    [0.25, 0.0, 0.75, 1.0]
    """
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], -1)


def to_centres(boxes: Tensor) -> Tensor:
    """Turn (x0, y0, x1, y1) into (x, y, w, h) around a centre; shape (..., 4)."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1)


def logit(x: Tensor, least: float = LEAST) -> Tensor:
    """Return the logit of numbers in [0, 1], as if none were nearer than ``least`` to an end."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=least) / (1 - x).clamp(min=least))


def area(boxes: Tensor) -> Tensor:
    """Return the areas of boxes (..., 4), given by corners."""
    size = boxes[..., 2:] - boxes[..., :2]
    return size[..., 0] * size[..., 1]


def intersection(a: Tensor, b: Tensor) -> Tensor:
    """Return the areas that boxes share, given by corners; any shapes (..., 4) that broadcast."""
    low = torch.maximum(a[..., :2], b[..., :2])
    size = (torch.minimum(a[..., 2:], b[..., 2:]) - low).clamp(min=0)
    return size[..., 0] * size[..., 1]


def generalised_iou(a: Tensor, b: Tensor) -> Tensor:
    r"""Return the generalised IoU of boxes given by corners; any shapes (..., 4) that broadcast.

    .. math:: \frac{|A \cap B|}{|A \cup B|} - \frac{|C| - |A \cup B|}{|C|}

    with C the smallest box around both. Two boxes at one point have 0, not NaN.

    Source: Rezatofighi et al. 2019, arXiv:1902.09630.
    """
    shared = intersection(a, b)
    union = area(a) + area(b) - shared
    size = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0)
    hull = size[..., 0] * size[..., 1]
    tiny = torch.finfo(union.dtype).tiny
    return shared / union.clamp(min=tiny) - (hull - union) / hull.clamp(min=tiny)
