"""What the network is to say: where actions start and end, and how well each proposal matches one.

Segments are in steps: step j covers [j, j + 1].
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = ["Anchors", "boundary_targets", "iou_targets"]

Anchors = Literal["steps", "centred"]
"""The piece of time that a step answers for: [j, j + 1] (OpenTAD), or [j - 0.5, j + 0.5] (J. Bai's port)."""

WIDTH = 3.0
"""Steps around a boundary that count as near it."""


def boundary_targets(
    segments: Tensor, present: Tensor, length: int, *, anchors: Anchors = "steps"
) -> tuple[Tensor, Tensor]:
    """Return how much of each step lies within 1.5 steps of a start, and of an end.

    OpenTAD truncates these numbers to integers, so that a step counts where it lies there wholly.

    Args:
        segments: (B, M, 2), starts and ends.
        present: (B, M), which of them there are.
        length: T.
        anchors: what a step covers.

    Returns:
        tuple[Tensor, Tensor]: starts and ends, (B, T) each, in [0, 1].
    """
    low = torch.arange(length, device=segments.device, dtype=segments.dtype)
    if anchors == "centred":
        low = low - 0.5
    found = []
    for side in (0, 1):
        at = segments[:, :, side].unsqueeze(-1)
        overlap = torch.minimum(low + 1, at + WIDTH / 2) - torch.maximum(low, at - WIDTH / 2)
        found.append(_best(overlap.clamp(min=0), present))
    return found[0], found[1]


def iou_targets(segments: Tensor, present: Tensor, length: int, durations: int) -> Tensor:
    """Return the IoU of every proposal with the action that it matches best.

    Args:
        segments: (B, M, 2), starts and ends.
        present: (B, M), which of them there are.
        length: T.
        durations: D.

    Returns:
        Tensor: (B, D, T) in [0, 1], for proposals that end outside of the sequence too.

    Complexity: O(B·M·D·T).
    """
    start = torch.arange(length, device=segments.device, dtype=segments.dtype)
    end = start + torch.arange(1, durations + 1, device=segments.device, dtype=segments.dtype).unsqueeze(-1)
    low, high = (segments[:, :, side, None, None] for side in (0, 1))
    overlap = (torch.minimum(end, high) - torch.maximum(start, low)).clamp(min=0)
    union = (end - start) + (high - low) - overlap
    return _best((overlap / union).flatten(2), present).unflatten(-1, (durations, length))


def _best(values: Tensor, present: Tensor) -> Tensor:
    """Return the maximum over the actions there are, (B, M, X) -> (B, X); 0 without any."""
    if values.shape[1] == 0:
        return values.new_zeros(values.shape[0], values.shape[2])
    return torch.where(present.unsqueeze(-1), values, 0).amax(1)
