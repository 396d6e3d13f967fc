"""What objects look like: features of crops, or features that come with the data."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyhead.errors import ConfigError, DtypeError, ShapeError

__all__ = ["CropEncoder", "crop_values", "pyramid_pool"]

CHANNELS = (16, 32)


def pyramid_pool(x: Tensor, levels: int) -> Tensor:
    """Return the largest value in each part of an image cut into 1, 2 × 2, 4 × 4, … parts.

    Args:
        x: shape (B, C, H, W).
        levels: how many divisions.

    Returns:
        Tensor: shape (B, C · (1 + 4 + … + 4^(levels - 1))), whatever H and W are.

    Source: He et al. 2014, arXiv:1406.4729. Parts are equal, and the image is padded with zeros to whole ones.

    >>> pyramid_pool(torch.arange(12.0).view(1, 1, 3, 4), 2)
    tensor([[11.,  5.,  7.,  9., 11.]])
    """
    height, width = x.shape[-2:]
    pooled = []
    for level in range(levels):
        parts = 2**level
        kernel = (math.ceil(height / parts), math.ceil(width / parts))
        rest = (kernel[0] * parts - height, kernel[1] * parts - width)
        padded = F.pad(x, (rest[1] // 2, rest[1] - rest[1] // 2, rest[0] // 2, rest[0] - rest[0] // 2))
        pooled.append(F.max_pool2d(padded, kernel, kernel).flatten(1))
    return torch.cat(pooled, 1)


def crop_values(crops: Tensor) -> Tensor:
    """Return crops with values between 0 and 1: bytes are divided by 255, floats are taken as they are."""
    return crops.float() / 255 if crops.dtype == torch.uint8 else crops


class CropEncoder(nn.Module):
    """Encode crops by two convolutions and a linear map.

    Convolution 3 → 16 of 5 × 5, ReLU, pool 5; convolution 16 → 32 of 3 × 3, ReLU, pool 3, or a pyramid of pools, with
    which crops may be of any size; flatten; linear.

    Source: Fang et al. 2024, arXiv:2407.13335, and the code published with it.
    """

    def __init__(self, dim: int, *, height: int, width: int, pyramid: int = 0) -> None:
        """Make an encoder.

        Args:
            dim: columns of the output.
            height: of a crop, pixels.
            width: of a crop, pixels.
            pyramid: levels of the pyramid of pools; 0 for none.

        Raises:
            ConfigError: crops are too small.
        """
        super().__init__()
        self.height, self.width, self.pyramid = height, width, pyramid
        self.first = nn.Conv2d(3, CHANNELS[0], 5)
        self.second = nn.Conv2d(CHANNELS[0], CHANNELS[1], 3)
        sides = [((side - 4) // 5 - 2) // (1 if pyramid else 3) for side in (height, width)]
        if min(sides) < 1:
            raise ConfigError(f"Crops of {height} × {width} pixels are too small: see crop_height and crop_width.")
        size = sum(4**level for level in range(pyramid)) if pyramid else sides[0] * sides[1]
        self.out = nn.Linear(CHANNELS[1] * size, dim)

    def forward(self, crops: Tensor) -> Tensor:
        """Return features.

        Args:
            crops: uint8, or float between 0 and 1, shape (..., height, width, 3).

        Returns:
            Tensor: shape (..., dim).

        Raises:
            ShapeError, DtypeError: the crops are of another size, or no pictures.
        """
        if crops.dtype != torch.uint8 and not crops.is_floating_point():
            raise DtypeError(f"crops are {crops.dtype}, expected torch.uint8, or floats between 0 and 1.")
        if crops.ndim < 4 or crops.shape[-3:] != (self.height, self.width, 3):
            raise ShapeError(f"crops {tuple(crops.shape)} are not (…, {self.height}, {self.width}, 3).")
        x = crop_values(crops).to(self.out.weight.dtype).flatten(0, -4).movedim(-1, 1)
        x = F.max_pool2d(F.relu(self.first(x)), 5)
        x = F.relu(self.second(x))
        x = pyramid_pool(x, self.pyramid) if self.pyramid else F.max_pool2d(x, 3).flatten(1)
        features: Tensor = self.out(x)
        return features.view(*crops.shape[:-3], -1)
