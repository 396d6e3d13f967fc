"""The layer around multi-scale deformable attention: offsets and weights from the query, values from the maps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polyhead.errors import ConfigError
from polyhead.ops import deformable_attention

__all__ = ["SMALL", "MultiScaleDeformableAttention"]

SMALL = 1e-3
"""Spread of the first weights of maps that are zero as published: with zeros nothing in front of them would learn in
the first step."""


class MultiScaleDeformableAttention(nn.Module):
    r"""Let each query read ``points`` places of every map, around a reference point or inside a reference box.

    .. math:: p_{lp} = r_l + \delta_{lp} / (W_l, H_l) \quad\text{or}\quad
        p_{lp} = r_{xy} + \tfrac{1}{2P} \, \delta_{lp} \, r_{wh}

    with offsets :math:`\delta` and weights (a softmax over levels and points) linear in the query.

    Complexity: O(B·(Q + S)·dim² + B·Q·dim·L·P). Parameters: 2·dim² + 3·dim·H·L·P, and biases.

    Source: Zhu et al. 2021, arXiv:2010.04159, sec. 4.1; initial values as in its release, but for ``SMALL``.
    """

    def __init__(self, dim: int, heads: int, levels: int, points: int) -> None:
        """Make a layer.

        Raises:
            ConfigError: dim is no multiple of heads.
        """
        super().__init__()
        if dim % heads:
            raise ConfigError(f"dim is {dim} and heads is {heads}: dim must be a multiple of heads.")
        self.heads, self.levels, self.points = heads, levels, points
        self.value_proj = nn.Linear(dim, dim)
        self.offsets = nn.Linear(dim, heads * levels * points * 2)
        self.weights = nn.Linear(dim, heads * levels * points)
        self.out_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Begin with each head looking in a direction of its own, point p at the distance p + 1 in pixels."""
        for linear in (self.value_proj, self.out_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        for linear in (self.offsets, self.weights):
            nn.init.normal_(linear.weight, std=SMALL)
        nn.init.zeros_(self.weights.bias)
        angles = torch.arange(self.heads) * (2 * math.pi / self.heads)
        directions = torch.stack([angles.cos(), angles.sin()], -1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.points + 1.0)
        grid = directions[:, None, None] * steps[None, None, :, None]
        self.offsets.bias.copy_(grid.expand(-1, self.levels, -1, -1).flatten())

    def forward(
        self,
        query: Tensor,
        reference: Tensor,
        value: Tensor,
        shapes: Sequence[tuple[int, int]],
        value_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            query: with its position added, shape (B, Q, dim).
            reference: points (B, Q, L, 2) or boxes (B, Q, L, 4) in units of the maps.
            value: tokens of all maps, shape (B, S, dim).
            shapes: (height, width) of each map.
            value_mask: bool (B, S), False = padding, which contributes nothing.

        Returns:
            Tensor: shape (B, Q, dim); the caller adds the query.
        """
        batch, count, _ = query.shape
        values = self.value_proj(value)
        if value_mask is not None:
            values = values.masked_fill(~value_mask[..., None], 0.0)
        values = values.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        wide = torch.promote_types(query.dtype, torch.float32)  # positions in 16 bit would be off by pixels
        offsets = self.offsets(query).to(wide).view(batch, count, self.heads, self.levels, self.points, 2)
        weights = self.weights(query).to(wide).view(batch, count, self.heads, self.levels * self.points).softmax(-1)
        weights = weights.unflatten(-1, (self.levels, self.points))
        around = reference.to(wide)[:, :, None, :, None]
        if reference.shape[-1] == 2:
            extents = torch.tensor([[w, h] for h, w in shapes], device=query.device, dtype=wide)
            places = around + offsets / extents[:, None]
        else:
            places = around[..., :2] + offsets / self.points * around[..., 2:] * 0.5
        read = deformable_attention(values, shapes, places.transpose(1, 2), weights.transpose(1, 2)).output
        output: Tensor = self.out_proj(read.transpose(1, 2).flatten(2))
        return output
