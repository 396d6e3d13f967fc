"""The foreground token selector: which tokens of the pyramid are worth an encoder's work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyhead_detection.geometry import Geometry

__all__ = ["ForegroundSelector", "budgets"]

PRIOR = -math.log(99)
"""Bias of the last map: at first one token in a hundred is taken for foreground, as in focal loss."""


class ForegroundSelector(nn.Module):
    r"""Score every token by how likely it belongs to an object, from the coarsest map down to the finest.

    .. math:: S_L = f(t_L), \qquad S_l = f\big(t_l \cdot (1 + \alpha_l \, \text{up}(S_{l+1}))\big)

    where f, shared by all levels, sees the token and the mean of its map, and ``up`` is bilinear. As published, f
    begins with a layer norm, which takes the size of a token away: what is left of the modulation is its sign, where
    :math:`\alpha_l \, \text{up}(S_{l+1}) < -1`.

    Source: Zheng et al. 2023, arXiv:2307.12612, sec. 3.2. Differs: the last bias begins at −log 99, which spares the
    first steps a large loss.
    """

    def __init__(self, dim: int, levels: int, *, top_down: bool = True) -> None:
        """Make a selector; without ``top_down`` each level is scored on its own."""
        super().__init__()
        self.local = dim // 2
        self.embed = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU())
        widths = (dim, max(dim // 2, 1), max(dim // 4, 1), 1)
        self.score = nn.Sequential(
            nn.Linear(widths[0], widths[1]),
            nn.GELU(),
            nn.Linear(widths[1], widths[2]),
            nn.GELU(),
            nn.Linear(widths[2], widths[3]),
        )
        # From the second coarsest level to the finest.
        self.alpha = nn.Parameter(torch.empty(levels - 1).uniform_(-0.3, 0.3)) if top_down and levels > 1 else None
        last: Any = self.score[-1]
        nn.init.constant_(last.bias, PRIOR)

    def forward(self, levels: Sequence[Tensor], shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Score the tokens of each level, (B, H·W, dim) to logits (B, H·W)."""
        result: list[Tensor] = []
        for step, level in enumerate(reversed(range(len(levels)))):
            tokens = levels[level]
            if result and self.alpha is not None:
                coarse = result[-1].unflatten(1, shapes[level + 1])[:, None]
                up = F.interpolate(coarse, shapes[level], mode="bilinear", align_corners=True)
                tokens = tokens * (1 + self.alpha[step - 1] * up.flatten(1)[..., None])
            x = self.embed(tokens)
            whole = x[..., self.local :].mean(1, keepdim=True).expand(-1, x.shape[1], -1)
            result.append(self.score(torch.cat([x[..., : self.local], whole], -1))[..., 0])
        return result[::-1]


def budgets(
    geometry: Geometry, rho: float, cascade: Sequence[float], *, by_batch: bool
) -> list[tuple[int, tuple[int, ...]]]:
    """Return for each layer how many tokens it takes, and how many of each image it updates.

    An image of n tokens has ⌊rho · n⌋ + 1 of them, at most n, and a layer a share c of these. ``by_batch`` takes the
    share of the largest image's tokens for all, as the release has it.

    >>> one = Geometry(((4, 5),), (((4, 5),), ((2, 5),)), torch.device("cpu"), torch.float32)
    >>> budgets(one, 0.5, (1.0, 0.3), by_batch=False)
    [(11, (11, 6)), (3, (3, 1))]
    >>> budgets(one, 0.5, (1.0, 0.3), by_batch=True)
    [(11, (11, 6)), (3, (3, 3))]
    """
    counts = [min(int(rho * count) + 1, count) for count in geometry.counts]
    most = max(counts)
    result = []
    for share in cascade:
        if by_batch:
            taken = max(1, _share(share, most))
            result.append((taken, tuple(min(count, taken) for count in counts)))
        else:
            own = tuple(max(1, _share(share, count)) for count in counts)
            result.append((max(own), own))
    return result


def _share(share: float, count: int) -> int:
    """Return ⌊share · count⌋, multiplied in float32 as in the release: 0.2 of 10 are 2."""
    return int(np.float32(share) * np.float32(count))
