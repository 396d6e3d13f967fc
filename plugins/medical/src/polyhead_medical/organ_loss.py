"""The losses of the self-guided network: cross-entropy of every map, and what ties its two steps together."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from polyhead_medical.self_guided import Passes

__all__ = ["IGNORED", "WEIGHTS", "organ_loss"]

IGNORED = -100
"""A label that no loss counts."""
WEIGHTS: Mapping[str, float] = {"segmentation": 1.0, "guidance": 0.25, "reconstruction": 0.1}
"""Of the published sum."""


def organ_loss(passes: Passes, target: Tensor, *, detach_targets: bool = False) -> dict[str, Tensor]:
    """Return the terms of the loss, unweighted scalars.

    ``segmentation``: cross-entropy summed over the maps of all scales before and after attention; ``guidance``: squared
    difference of the two steps' latents, summed over scales; ``reconstruction``: that of the auto-encoders, summed
    over scales and steps.

    Args:
        passes: of ``SelfGuidedNet.passes``.
        target: classes (B, H, W), int64; `IGNORED` is not counted.
        detach_targets: keep the network from making what is to be rebuilt easier; the release does not.

    Source: Sinha & Dolz 2020, arXiv:1906.02849, eq. 9-12, and its code.
    """
    maps = [*passes.first, *passes.second]
    zero = target.new_zeros((), dtype=maps[0].dtype)
    pairs = [(again, joined.detach() if detach_targets else joined) for again, joined in passes.rebuilt]
    return {
        "segmentation": torch.stack([F.cross_entropy(x, target, ignore_index=IGNORED) for x in maps]).sum(),
        "guidance": sum((F.mse_loss(a, b) for a, b in passes.latents), zero),
        "reconstruction": sum((F.mse_loss(a, b) for a, b in pairs), zero),
    }
