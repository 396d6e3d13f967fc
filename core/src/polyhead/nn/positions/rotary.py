"""Rotary positions: queries and keys are turned, and their products depend on distances only."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polyhead.errors import ConfigError, ShapeError

__all__ = ["Rotary", "rotate"]

PAIRINGS = ("halves", "interleaved")


def rotate(x: Tensor, angles: Tensor, *, pairing: str = "halves") -> Tensor:
    r"""Turn pairs of channels by angles.

    .. math:: (a, b) \mapsto (a \cos\phi - b \sin\phi, \; a \sin\phi + b \cos\phi)

    Args:
        x: queries or keys, shape (B, H, S, D).
        angles: radians, float, shape (S, R/2), (B, S, R/2) or broadcastable to (B, H, S, R/2), with R ≤ D: the first R
            channels are turned, the others left.
        pairing: ``halves``: channels i and R/2 + i, as in Llama; ``interleaved``: channels 2i and 2i + 1, as published.

    Returns:
        Shape and dtype of x.

    Raises:
        ConfigError: no such pairing.
        ShapeError: there are more angles than pairs of channels.
    """
    if pairing not in PAIRINGS:
        raise ConfigError(f'pairing is "{pairing}", expected one of: {", ".join(PAIRINGS)}.')
    turned = 2 * angles.shape[-1]
    if turned > x.shape[-1]:
        raise ShapeError(f"angles {tuple(angles.shape)} turn {turned} channels, but x {tuple(x.shape)} has fewer.")
    if angles.ndim == 3:
        angles = angles.unsqueeze(1)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    part = x[..., :turned]
    if pairing == "halves":
        a, b = part.chunk(2, -1)
        part = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
    else:
        a, b = part[..., 0::2], part[..., 1::2]
        part = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
    return part if turned == x.shape[-1] else torch.cat([part, x[..., turned:]], -1)


class Rotary(nn.Module):
    r"""Turn channel pair i of a token at position p by the angle :math:`p \, b^{-2i/R}`.

    The hook ``rotary=`` of ``MultiHeadAttention``: called with q, then with k, shape (B, H, S, D), and positions. A
    module of one's own that computes other angles, from places say, calls ``rotate``. No parameters.

    Source: Su et al. 2021, RoFormer, arXiv:2104.09864, eq. 34. Differs: the pairing is Llama's unless asked otherwise;
    checkpoints need the one that they were trained with.

    >>> q = torch.ones(1, 1, 2, 4)
    >>> Rotary(4)(q, torch.tensor([0, 1]))[0, 0]
    tensor([[ 1.0000,  1.0000,  1.0000,  1.0000],
            [-0.3012,  0.9900,  1.3818,  1.0099]])
    """

    def __init__(
        self,
        head_dim: int,
        *,
        base: float = 10_000.0,
        rotary_dim: int | None = None,
        pairing: str = "halves",
        stretch: float = 1.0,
    ) -> None:
        """Make a module.

        Args:
            head_dim: D.
            base: b.
            rotary_dim: R, even; all of D if None.
            pairing: see ``rotate``.
            stretch: positions are divided by it (linear scaling to longer contexts, arXiv:2306.15595).

        Raises:
            ConfigError: rotary_dim is odd or not within head_dim, or there is no such pairing.
        """
        super().__init__()
        rotary_dim = head_dim if rotary_dim is None else rotary_dim
        if rotary_dim % 2 or not 0 < rotary_dim <= head_dim:
            raise ConfigError(f"rotary_dim is {rotary_dim}, expected an even number from 2 to head_dim = {head_dim}.")
        if pairing not in PAIRINGS:
            raise ConfigError(f'pairing is "{pairing}", expected one of: {", ".join(PAIRINGS)}.')
        self.head_dim, self.base, self.rotary_dim, self.pairing = head_dim, base, rotary_dim, pairing
        self.stretch = stretch

    def angles(self, positions: Tensor) -> Tensor:
        """Return radians, shape (..., R/2), of positions (...): float32, or float64 if they are."""
        # Computed, not stored: a table in the module would be rounded by .to(bfloat16), and angles need float32.
        dtype = torch.float64 if positions.dtype == torch.float64 else torch.float32
        exponents = torch.arange(0, self.rotary_dim, 2, dtype=dtype, device=positions.device) / self.rotary_dim
        return (positions.to(dtype) / self.stretch).unsqueeze(-1) * self.base**-exponents

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """Turn queries or keys.

        Args:
            x: shape (B, H, S, D).
            positions: shape (S,) or (B, S), integer or float.

        Returns:
            Shape and dtype of x.

        Raises:
            ShapeError: x has another head_dim.
        """
        if x.shape[-1] != self.head_dim:
            raise ShapeError(f"x {tuple(x.shape)} has head_dim {x.shape[-1]}, rotary was made for {self.head_dim}.")
        if x.dtype == torch.float64:
            positions = positions.double()
        return rotate(x, self.angles(positions), pairing=self.pairing)

    def extra_repr(self) -> str:
        """Return what ``print`` shows between the brackets."""
        return f"{self.head_dim}, base={self.base:g}, rotary_dim={self.rotary_dim}, pairing={self.pairing!r}"
