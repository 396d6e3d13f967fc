"""Sinusoidal positions of the pixels of an image, as detectors use them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from polyhead.errors import ConfigError, DtypeError, ShapeError
from polyhead.nn.positions.sinusoid import sinusoid

__all__ = ["SinePositions2d"]


class SinePositions2d(nn.Module):
    """Return a code of row and column for every pixel; the first half of the channels is the row's.

    Rows and columns are counted over real pixels, so that padding changes nothing. No parameters.

    Source: Carion et al. 2020, DETR, arXiv:2005.12872, appendix A.4; offset and base as DINO, arXiv:2203.03605, and
    Focus-DETR, arXiv:2307.12612, set them.
    """

    def __init__(
        self,
        dim: int,
        *,
        base: float = 10_000.0,
        offset: float = 0.0,
        normalize: bool = True,
        scale: float = 2 * math.pi,
        eps: float = 1e-6,
    ) -> None:
        """Make a module.

        Args:
            dim: channels, a multiple of 4.
            base: ratio of the longest wavelength to the shortest.
            offset: added to counts that begin at 1; −0.5 gives the middle of the pixel.
            normalize: divide by the number of rows or columns of the image, and multiply by ``scale``.
            scale: radians of the whole image at the shortest wavelength.
            eps: added to the divisor.

        Raises:
            ConfigError: dim is not a multiple of 4.
        """
        super().__init__()
        if dim < 4 or dim % 4:
            raise ConfigError(f"dim is {dim}, expected a multiple of 4: sine and cosine of row and column.")
        self.dim, self.base, self.offset = dim, base, offset
        self.normalize, self.scale, self.eps = normalize, scale, eps

    def forward(self, mask: Tensor) -> Tensor:
        """Return the codes.

        Args:
            mask: bool, True = real pixel, shape (B, height, width); padding is at the bottom and on the right.

        Returns:
            float32, shape (B, dim, height, width).

        Raises:
            ShapeError: mask has another rank.
            DtypeError: mask is not bool.
        """
        if mask.ndim != 3:
            raise ShapeError(f"mask {tuple(mask.shape)} is not (batch, height, width).")
        if mask.dtype != torch.bool:
            raise DtypeError(f"mask is {mask.dtype}, expected torch.bool, True = real pixel.")
        codes = []
        for axis in (1, 2):
            count = mask.cumsum(axis, dtype=torch.float32)
            places = count + self.offset
            if self.normalize:
                places = places / (count.narrow(axis, count.shape[axis] - 1, 1) + self.eps) * self.scale
            codes.append(sinusoid(places, self.dim // 2, base=self.base))
        return torch.cat(codes, -1).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        """Return what ``print`` shows between the brackets."""
        return f"{self.dim}, base={self.base:g}, offset={self.offset:g}, normalize={self.normalize}"
