"""Sinusoidal positions, fixed and with a trained scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polyhead.errors import ConfigError, ShapeError

__all__ = ["ScaledSinusoidPositions", "SinusoidPositions", "sinusoid"]

LAYOUTS = ("interleaved", "halves")


def sinusoid(positions: Tensor, dim: int, *, base: float = 10_000.0, layout: str = "interleaved") -> Tensor:
    r"""Return the sinusoidal code of positions.

    .. math:: e_{2i} = \sin(p \, b^{-2i / d}), \qquad e_{2i+1} = \cos(p \, b^{-2i / d})

    Args:
        positions: any shape (...), integer or float: event times are positions too.
        dim: d; the last cosine is left out if it is odd.
        base: b, the ratio of the longest wavelength to the shortest.
        layout: ``interleaved`` as above, or ``halves``: all sines, then all cosines.

    Returns:
        float32 (float64 for positions of float64), shape (..., dim).

    Raises:
        ConfigError: dim is below 1, or there is no such layout.

    Source: Vaswani et al. 2017, arXiv:1706.03762, sec. 3.5.

    >>> sinusoid(torch.arange(3), 4)
    tensor([[ 0.0000,  1.0000,  0.0000,  1.0000],
            [ 0.8415,  0.5403,  0.0100,  0.9999],
            [ 0.9093, -0.4161,  0.0200,  0.9998]])
    """
    if layout not in LAYOUTS:
        raise ConfigError(f'layout is "{layout}", expected one of: {", ".join(LAYOUTS)}.')
    if dim < 1:
        raise ConfigError(f"dim is {dim}, expected 1 or more.")
    dtype = torch.float64 if positions.dtype == torch.float64 else torch.float32
    exponents = torch.arange(0, dim, 2, dtype=dtype, device=positions.device) / dim
    angles = positions.to(dtype).unsqueeze(-1) * base**-exponents
    if layout == "halves":
        return torch.cat([angles.sin(), angles.cos()], -1)[..., :dim]
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)[..., :dim]


class SinusoidPositions(nn.Module):
    """Add the sinusoidal code of its position to every token. Any length; no parameters.

    Source: Vaswani et al. 2017, arXiv:1706.03762, sec. 3.5. Differs: nothing is multiplied by the root of dim.

    >>> SinusoidPositions(4)(torch.zeros(1, 2, 4))[0, 1]
    tensor([0.8415, 0.5403, 0.0100, 0.9999])
    """

    def __init__(self, dim: int, *, base: float = 10_000.0, layout: str = "interleaved") -> None:
        """Make a module; the arguments are those of ``sinusoid``."""
        super().__init__()
        self.dim, self.base, self.layout = dim, base, layout
        sinusoid(torch.arange(1), dim, base=base, layout=layout)  # refuses here what forward would refuse

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Add positions.

        Args:
            x: features, shape (B, S, dim).
            positions: shape (S,) or (B, S), integer or float; 0 to S - 1 if None.

        Returns:
            Shape and dtype of x.

        Raises:
            ShapeError: x has another dim, or positions fit none of its tokens.
        """
        return x + self.code(x, positions)

    def code(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Return what ``forward`` adds, shape (S, dim) or (B, S, dim), x's dtype."""
        positions = check_positions(x, positions, self.dim)
        return sinusoid(positions, self.dim, base=self.base, layout=self.layout).to(x.dtype)

    def extra_repr(self) -> str:
        """Return what ``print`` shows between the brackets."""
        return f"{self.dim}, base={self.base:g}, layout={self.layout!r}"


class ScaledSinusoidPositions(SinusoidPositions):
    """Add the sinusoidal code times a trained scale, so that it can match what it is added to.

    Parameters: 1, ``alpha``; leave it out of weight decay.

    Source: Li et al. 2019, Neural Speech Synthesis with Transformer Network, arXiv:1809.08895, eq. 2.
    """

    def __init__(
        self, dim: int, *, base: float = 10_000.0, layout: str = "interleaved", initial_scale: float = 1.0
    ) -> None:
        """Make a module whose scale begins at ``initial_scale``."""
        super().__init__(dim, base=base, layout=layout)
        self.alpha = nn.Parameter(torch.tensor(initial_scale))

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Add scaled positions; as ``SinusoidPositions.forward``."""
        return x + self.alpha * self.code(x, positions)


def check_positions(x: Tensor, positions: Tensor | None, dim: int) -> Tensor:
    """Return the positions of the tokens of x, shape (S,) or (B, S)."""
    if x.ndim != 3 or x.shape[-1] != dim:
        raise ShapeError(f"x {tuple(x.shape)} is not (batch, seq, dim) with dim {dim}.")
    if positions is None:
        return torch.arange(x.shape[1], device=x.device)
    if positions.ndim not in (1, 2) or positions.shape[-1] != x.shape[1] or positions.shape[0] not in (1, *x.shape[:2]):
        raise ShapeError(
            f"positions {tuple(positions.shape)} is neither (seq,) nor (batch, seq) of x {tuple(x.shape)}."
        )
    return positions
