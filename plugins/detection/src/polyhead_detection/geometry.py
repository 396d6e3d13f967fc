"""Where the tokens of a pyramid of feature maps lie, and which of them are padding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polyhead_detection.boxes import logit

__all__ = ["Geometry", "sine"]

Size = tuple[int, int]


@dataclass(frozen=True)
class Geometry:
    """The maps of a batch: images lie at the upper left, the rest is padding.

    Tokens are the pixels of all maps behind one another, the finest map first, row by row.
    """

    shapes: tuple[Size, ...]
    """(height, width) of each level."""
    valid: tuple[tuple[Size, ...], ...]
    """For each image and level (height, width) of the part that is not padding; one entry where all images have the
    same size, and then what the methods return has one row for all."""
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def of(
        cls, canvas: Size, sizes: Sequence[Size], shapes: Sequence[Size], device: torch.device, dtype: torch.dtype
    ) -> Geometry:
        """Return that of images of ``sizes`` on one canvas: a token is valid if the pixel of its nearest neighbour is.

        This is the mask of the release, which is resized to each level by ``interpolate(mode="nearest")``.
        """

        def count(size: int, extent: int, cells: int) -> int:
            return sum(1 for cell in range(cells) if cell * extent // cells < size)

        valid = tuple(
            tuple((count(h, canvas[0], rows), count(w, canvas[1], columns)) for rows, columns in shapes)
            for h, w in sizes
        )
        return cls(tuple(shapes), valid, device, dtype)

    @classmethod
    def join(cls, parts: Sequence[Geometry], order: Sequence[int]) -> Geometry:
        """Put the images of several geometries on maps that are large enough for all.

        Args:
            parts: each with its images.
            order: where each image of the parts, one part after the other, stands in the new batch.
        """
        shapes = tuple(
            (max(part.shapes[level][0] for part in parts), max(part.shapes[level][1] for part in parts))
            for level in range(len(parts[0].shapes))
        )
        valid = [image for part in parts for image in part.valid]
        placed = tuple(image for _, image in sorted(zip(order, valid, strict=True)))
        return cls(shapes, placed, parts[0].device, parts[0].dtype)

    @property
    def tokens(self) -> int:
        """The tokens of an image, padding included."""
        return sum(h * w for h, w in self.shapes)

    @property
    def counts(self) -> list[int]:
        """The tokens of each image without padding."""
        return [sum(h * w for h, w in image) for image in self.valid]

    @property
    def padded(self) -> bool:
        """Whether any image has padding."""
        return any(count < self.tokens for count in self.counts)

    def split(self, tokens: Tensor) -> list[Tensor]:
        """Cut (B, N, ...) into the tokens of each level."""
        return list(tokens.split([h * w for h, w in self.shapes], 1))

    def token_mask(self) -> Tensor:
        """Return bool (B, N), True = no padding."""
        return torch.cat([mask.flatten(1) for mask in self._masks()], 1)

    def ratios(self) -> Tensor:
        """Return the valid shares of width and height of each level, (B, L, 2)."""
        whole = torch.tensor(self.shapes, device=self.device, dtype=self.dtype)
        return (torch.tensor(self.valid, device=self.device, dtype=self.dtype) / whole).flip(-1)

    def centres(self) -> Tensor:
        """Return x and y of the tokens' centres in units of their images, (B, N, 2)."""
        parts = []
        for level, (h, w) in enumerate(self.shapes):
            y, x = torch.meshgrid(self._range(h) + 0.5, self._range(w) + 0.5, indexing="ij")
            extents = self._valid(level).flip(-1)[:, None]
            parts.append(torch.stack([x, y], -1).flatten(0, 1) / extents)
        return torch.cat(parts, 1)

    def places(self, strides: Sequence[int]) -> Tensor:
        """Return x and y of the tokens in pixels and their level, (1, N, 3), as label assignment has them."""
        parts = []
        for level, ((h, w), stride) in enumerate(zip(self.shapes, strides, strict=True)):
            y, x = torch.meshgrid(self._range(h) * stride, self._range(w) * stride, indexing="ij")
            parts.append(torch.stack([x + stride // 2, y + stride // 2, torch.full_like(x, level)], -1).flatten(0, 1))
        return torch.cat(parts)[None]

    def anchors(self) -> tuple[Tensor, Tensor]:
        """Return logits of a box around each token, (B, N, 4), and which are usable, bool (B, N).

        A box is 0.05 · 2^level wide and high. Padding and boxes that reach within 0.01 of 0 or 1 are not usable; their
        logits are infinite.
        """
        sizes = [torch.full((h * w, 2), 0.05 * 2**level) for level, (h, w) in enumerate(self.shapes)]
        centres = self.centres()
        size = torch.cat(sizes).to(centres).expand(len(self.valid), -1, -1)
        boxes = torch.cat([centres, size], -1)
        usable = ((boxes > 0.01) & (boxes < 0.99)).all(-1) & self.token_mask()
        return logit(boxes, 0.0).masked_fill(~usable[..., None], math.inf), usable

    def positions(self, dim: int, temperature: float, offset: float) -> list[Tensor]:
        """Return sines of the tokens' places, (B, H·W, dim) of each level: y in the first half, x in the second.

        A place is counted in valid pixels and scaled to 2π.
        """
        result = []
        for level, mask in enumerate(self._masks()):
            extents = self._valid(level)
            places = []
            for axis in (0, 1):
                place = mask.cumsum(axis + 1).to(self.dtype)
                places.append((place + offset) / (extents[:, axis, None, None] + 1e-6) * 2 * math.pi)
            result.append(torch.cat([sine(place, dim // 2, temperature) for place in places], -1).flatten(1, 2))
        return result

    def _masks(self) -> list[Tensor]:
        masks = []
        for level, (h, w) in enumerate(self.shapes):
            extents = self._valid(level)
            rows = self._range(h)[None] < extents[:, :1]
            columns = self._range(w)[None] < extents[:, 1:]
            masks.append(rows[:, :, None] & columns[:, None])
        return masks

    def _valid(self, level: int) -> Tensor:
        return torch.tensor([image[level] for image in self.valid], device=self.device, dtype=self.dtype).view(-1, 2)

    def _range(self, size: int) -> Tensor:
        return torch.arange(size, device=self.device, dtype=self.dtype)


def sine(x: Tensor, dim: int, temperature: float) -> Tensor:
    """Return ``dim`` sines and cosines, in turn, of wavelengths from 2π to ``temperature`` · 2π; shape (..., dim)."""
    at = torch.arange(dim, device=x.device, dtype=x.dtype)
    angles = x[..., None] / temperature ** (2 * (at // 2) / dim)
    return torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], -1).flatten(-2)
