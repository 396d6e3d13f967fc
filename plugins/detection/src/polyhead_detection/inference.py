"""From logits and boxes to detections: the best of all queries and classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from polyhead_detection.boxes import to_corners
from polyhead_detection.focus_detr import Detected

__all__ = ["Found", "best_boxes"]


class Found(NamedTuple):
    """The detections of an image, best first."""

    scores: Tensor
    """In [0, 1], (K,)."""
    labels: Tensor
    """Class indices from 0, int64 (K,)."""
    boxes: Tensor
    """x0, y0, x1, y1 in pixels of the original image, (K, 4)."""


def best_boxes(detected: Detected, sizes: Sequence[tuple[int, int]], *, count: int = 300) -> list[Found]:
    """Return the ``count`` best pairs of query and class of each image, without suppression of overlaps.

    Args:
        detected: what the model gave.
        sizes: (height, width) of each original image, to which boxes are scaled.
        count: at most so many.
    """
    scores = detected.logits.sigmoid().masked_fill(~detected.query_mask[..., None], 0.0).flatten(1)
    classes = detected.logits.shape[-1]
    best, at = scores.topk(min(count, scores.shape[1]), dim=1)
    result = []
    for row, (height, width) in enumerate(sizes):
        boxes = to_corners(detected.boxes[row, at[row] // classes])
        scale = torch.tensor([width, height, width, height], device=boxes.device, dtype=boxes.dtype)
        result.append(Found(best[row], at[row] % classes, boxes * scale))
    return result
