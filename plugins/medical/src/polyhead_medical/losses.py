"""The loss of one map of probabilities: soft Dice of the foreground, by MONAI, and cross-entropy."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["cross_entropy", "one_hot_of_share", "shrink", "soft_dice"]


@cache
def _dice() -> Any:
    from monai.losses.dice import DiceLoss

    return DiceLoss(include_background=False, squared_pred=True, smooth_nr=1.0, smooth_dr=1.0, reduction="none")


def soft_dice(probabilities: Tensor, target: Tensor) -> Tensor:
    r"""Return one loss of each sample and foreground class.

    .. math:: 1 - \frac{2 \sum p g + 1}{\sum p^2 + \sum g^2 + 1}

    Args:
        probabilities: (B, K, ...), background first.
        target: one-hot or soft labels, the same shape.

    Returns:
        Tensor: (B, K - 1).

    Source: Bouget et al. 2021, arXiv:2101.07715, and its code. Differs: the release sums over the background too and
    clips, which leaves no gradient once the background is learnt.
    """
    loss: Tensor = _dice()(probabilities, target)
    return loss.flatten(1)


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean cross-entropy (B,) of logits (B, K, ...) against one-hot or soft labels of the same shape."""
    return F.cross_entropy(logits, target, reduction="none").flatten(1).mean(1)


def one_hot_of_share(share: Tensor) -> Tensor:
    """Return the share of the foreground (B, ...) as soft labels (B, 2, ...)."""
    return torch.stack([1 - share, share], 1)


def shrink(target: Tensor) -> Tensor:
    """Halve soft labels (B, K, ...) by averaging: a lesion below one coarse voxel keeps its share of it."""
    return F.avg_pool3d(target, 2) if target.ndim == 5 else F.avg_pool2d(target, 2)
