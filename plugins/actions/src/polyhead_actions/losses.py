"""The losses of BMN, as sums and counts that add up over batches, and as released.

A balanced logistic loss weighs positives and negatives so that each half counts the same: it is half the mean over the
positives plus half the mean over the negatives. So it is two ratios, exact over micro-batches and processes, and none
of them is NaN where a batch has no positives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from polyhead.protocols import Ratio
from polyhead_actions.bmn import Maps

__all__ = ["Targets", "loss_terms", "released_loss"]

BOUNDARY, MATCH = 0.5, 0.9
"""Above these a step is a boundary and a proposal a match."""
HIGH, LOW = 0.7, 0.3
"""IoU above which a proposal is good, and up to which it is poor."""
REGRESSION = 5.0
"""Weight of the squared error of the IoU; the releases write it as 10 times one half."""


class Targets(NamedTuple):
    """What `Maps` are to be."""

    start: Tensor
    """(B, T) in [0, 1]."""
    end: Tensor
    """(B, T) in [0, 1]."""
    iou: Tensor
    """(B, D, T) in [0, 1]."""
    steps: Tensor
    """(B, T): steps that are not padding."""
    cells: Tensor
    """(B, D, T): proposals that end inside of the sequence."""


def loss_terms(logits: Maps, targets: Targets) -> Mapping[str, Ratio]:
    """Return the terms of the loss: starts, ends and matches, positives and negatives apart, and the IoU's error.

    The IoU is regressed on good, middling and poor proposals alike: the releases draw as many of the latter two as
    there are good ones, which in expectation is the sum of three means, taken here.
    """
    terms: dict[str, Ratio] = {}
    for name, logit, target, threshold, among in (
        ("start", logits.start, targets.start, BOUNDARY, targets.steps),
        ("end", logits.end, targets.end, BOUNDARY, targets.steps),
        ("match", logits.conf[:, 1], targets.iou, MATCH, targets.cells),
    ):
        positive = target > threshold
        error = F.binary_cross_entropy_with_logits(logit, positive.to(logit.dtype), reduction="none")
        terms[f"{name}_yes"] = _ratio(0.5 * error, positive & among)
        terms[f"{name}_no"] = _ratio(0.5 * error, ~positive & among)
    error = REGRESSION / 3 * (torch.sigmoid(logits.conf[:, 0]) - targets.iou).square()
    high, middle = targets.iou > HIGH, (targets.iou <= HIGH) & (targets.iou > LOW)
    for name, group in (("good", high), ("middling", middle), ("poor", ~high & ~middle)):
        terms[f"iou_{name}"] = _ratio(error, group & targets.cells)
    return terms


def _ratio(values: Tensor, among: Tensor) -> Ratio:
    return Ratio(torch.where(among, values, 0).sum(), among.sum())


def released_loss(
    maps: Maps,
    targets: Targets,
    *,
    poor: Literal["overlapping", "all"] = "overlapping",
    epsilon: float = 1e-6,
    draws: tuple[Tensor, Tensor] | None = None,
) -> Mapping[str, Tensor]:
    """Return the loss of the PyTorch ports from probabilities: means over a batch, the regression on a random subset.

    Without positives the balanced loss is a plain mean, and without good proposals the IoU is regressed on all; the
    port of J. Bai gives NaN there.

    Args:
        maps: probabilities.
        targets: what they are to be.
        poor: proposals of a low IoU that may be drawn: those that overlap an action (J. Bai), or all (OpenTAD).
        epsilon: added to probabilities before the logarithm; 0 for OpenTAD.
        draws: uniform numbers (B, D, T) for middling and for poor proposals; from the global generator if None.

    Returns:
        Mapping[str, Tensor]: "boundary", "match", "iou" (weighted) and their sum "total", scalars.
    """
    boundary = _balanced(maps.start, targets.start > BOUNDARY, targets.steps, epsilon)
    boundary = boundary + _balanced(maps.end, targets.end > BOUNDARY, targets.steps, epsilon)
    match = _balanced(maps.conf[:, 1], targets.iou > MATCH, targets.cells, epsilon)
    iou, cells = targets.iou, targets.cells
    high, middle = (iou > HIGH) & cells, (iou <= HIGH) & (iou > LOW) & cells
    low = (iou <= LOW) & cells & ((iou > 0) if poor == "overlapping" else cells)
    if draws is None:
        draws = (torch.rand_like(iou), torch.rand_like(iou))
    chosen = high
    for draw, group in zip(draws, (middle, low), strict=True):
        share = high.sum() / group.sum().clamp(min=1)
        chosen = chosen | ((draw * group > 1 - share) & group)
    chosen = torch.where(high.any(), chosen, cells)
    squared = torch.where(chosen, (maps.conf[:, 0] - iou).square(), 0).sum()
    error = REGRESSION * squared / chosen.sum().clamp(min=1)
    return {"boundary": boundary, "match": match, "iou": error, "total": boundary + match + error}


def _balanced(probability: Tensor, positive: Tensor, among: Tensor, epsilon: float) -> Tensor:
    if epsilon:
        yes, no = -torch.log(probability + epsilon), -torch.log(1 - probability + epsilon)
    else:
        ones = torch.ones_like(probability)
        yes = F.binary_cross_entropy(probability, ones, reduction="none")
        no = F.binary_cross_entropy(probability, 1 - ones, reduction="none")
    yes_sum = torch.where(positive & among, yes, 0).sum()
    no_sum = torch.where(~positive & among, no, 0).sum()
    yes_count, no_count = (positive & among).sum(), (~positive & among).sum()
    plain = (yes_sum + no_sum) / (yes_count + no_count).clamp(min=1)
    balanced = 0.5 * yes_sum / yes_count.clamp(min=1) + 0.5 * no_sum / no_count.clamp(min=1)
    return torch.where((yes_count > 0) & (no_count > 0), balanced, plain)
