"""What objects look like: features of crops, or features that come with the data."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyhead.errors import ConfigError, DtypeError, MissingExtraError, ShapeError

__all__ = ["BackboneEncoder", "CropEncoder", "crop_values", "pyramid_pool"]

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
        x = _images(crops, self.height, self.width, self.out.weight.dtype)
        x = F.max_pool2d(F.relu(self.first(x)), 5)
        x = F.relu(self.second(x))
        x = pyramid_pool(x, self.pyramid) if self.pyramid else F.max_pool2d(x, 3).flatten(1)
        features: Tensor = self.out(x)
        return features.view(*crops.shape[:-3], -1)


class BackboneEncoder(nn.Module):
    """Encode crops by a backbone of the package timm and a linear map.

    Source: Wightman 2019, doi:10.5281/zenodo.4414861.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, dim: int, *, name: str, height: int, width: int) -> None:
        """Make an encoder with fresh weights; see `load_public_weights`.

        Args:
            dim: columns of the output.
            name: of the backbone, as timm has it.
            height: of a crop, pixels.
            width: of a crop, pixels.

        Raises:
            MissingExtraError: timm is not installed.
            ConfigError: timm has no such backbone.
        """
        super().__init__()
        self.name, self.height, self.width = name, height, width
        timm = _timm(name)
        if not timm.is_model(name):
            raise ConfigError(f'timm has no backbone "{name}". All: python -c "import timm; print(timm.list_models())"')
        self.backbone: Any = timm.create_model(name, pretrained=False, num_classes=0)
        described = self.backbone.default_cfg
        for which, default in (("mean", 0.5), ("deviation", 0.5)):
            values = described.get("mean" if which == "mean" else "std", (default,) * 3)
            self.register_buffer(which, torch.tensor(values).view(3, 1, 1), persistent=False)
        self.out = nn.Linear(self.backbone.num_features, dim)

    def load_public_weights(self) -> None:
        """Take over the weights that timm knows of the backbone; it fetches them where they are not yet kept."""
        weights = _timm(self.name).create_model(self.name, pretrained=True, num_classes=0).state_dict()
        self.backbone.load_state_dict(weights)

    def forward(self, crops: Tensor) -> Tensor:
        """Return features of crops; as `CropEncoder.forward`."""
        x = _images(crops, self.height, self.width, self.out.weight.dtype)
        features: Tensor = self.out(self.backbone((x - self.mean) / self.deviation))
        return features.view(*crops.shape[:-3], -1)


def _timm(name: str) -> Any:
    try:
        import timm
    except ImportError as error:
        raise MissingExtraError(
            f"The backbone {name} is one of timm, which is not installed: pip install 'polyhead-gaze[timm]'"
        ) from error
    return timm


def _images(crops: Tensor, height: int, width: int, dtype: torch.dtype) -> Tensor:
    """Return crops (…, height, width, 3) as a batch of channels-first images."""
    if crops.dtype != torch.uint8 and not crops.is_floating_point():
        raise DtypeError(f"crops are {crops.dtype}, expected torch.uint8, or floats between 0 and 1.")
    if crops.ndim < 4 or crops.shape[-3:] != (height, width, 3):
        raise ShapeError(f"crops {tuple(crops.shape)} are not (…, {height}, {width}, 3).")
    return crop_values(crops).to(dtype).flatten(0, -4).movedim(-1, 1)
