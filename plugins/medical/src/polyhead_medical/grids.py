"""The way from a scan's own voxels to the network's and back: orientation, crop, size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Box", "Grid", "head_box"]

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""First and past-the-last voxel along each axis."""
Arrays = np.ndarray[Any, Any]

_AIR = 0.2
"""Share of the intensity range below which a voxel is air, as in the published pre-processing."""
_BOX_VOXELS = 96
"""The head is looked for on at most so many voxels along each axis."""


@dataclass(frozen=True)
class Grid:
    """Where a scan's voxels lie, and which part of them the network sees.

    A scan is turned to RAS+ by swapping and mirroring axes (never interpolated for that), cut to a box and resized:
    averaged where it shrinks, interpolated linearly where it grows. The aspect ratio is lost on purpose, as published.
    """

    shape: tuple[int, int, int]
    """Voxels of the scan as stored."""
    affine: tuple[tuple[float, ...], ...]
    """4 × 4, from stored voxels to RAS+ millimetres."""
    box: Box
    """The part the network sees, in voxels of the turned scan."""
    size: tuple[int, int, int]
    """Voxels of the network."""

    @classmethod
    def whole(cls, shape: Sequence[int], affine: Arrays, size: Sequence[int] | None = None) -> Self:
        """Return the grid of a scan that the network sees as a whole; ``size`` is its own if None."""
        rows = tuple(tuple(float(value) for value in row) for row in np.asarray(affine, dtype=np.float64))
        own = (int(shape[0]), int(shape[1]), int(shape[2]))
        turned = _sizes(own, _axes(rows))
        box: Box = ((0, turned[0]), (0, turned[1]), (0, turned[2]))
        return cls(own, rows, box, (int(size[0]), int(size[1]), int(size[2])) if size is not None else turned)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance of neighbouring voxels along each stored axis, mm."""
        x, y, z = np.linalg.norm(np.asarray(self.affine)[:3, :3], axis=0).tolist()
        return (x, y, z)

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel, ml: from the determinant, which holds for sheared grids too."""
        return float(abs(np.linalg.det(np.asarray(self.affine)[:3, :3]))) / 1000

    @property
    def box_mm(self) -> tuple[float, float, float]:
        """Extent of what the network sees: right-left, back-front, down-up, mm."""
        turned = [self.spacing_mm[axis] for axis, _ in _axes(self.affine)]
        x, y, z = ((high - low) * each for (low, high), each in zip(self.box, turned, strict=True))
        return (x, y, z)

    @property
    def orientation(self) -> str:
        """Where the stored axes point, such as "LPS"."""
        from nibabel.orientations import aff2axcodes

        return "".join(aff2axcodes(np.asarray(self.affine)))

    def seen(self) -> Grid:
        """Return the grid of the network's own voxels."""
        return type(self).whole(
            self.size, np.diag([*(mm / n for mm, n in zip(self.box_mm, self.size, strict=True)), 1])
        )

    def cut_to(self, box: Box) -> Grid:
        """Return the grid with another box, in voxels of the turned scan."""
        return type(self)(self.shape, self.affine, box, self.size)

    def turn(self, stored: Tensor) -> Tensor:
        """Return (C, stored axes) as (C, right-left, back-front, down-up), each towards RAS+."""
        axes = _axes(self.affine)
        order = [axis for axis, _ in axes]
        turned = stored.permute(0, *(1 + axis for axis in order))
        return turned.flip([1 + place for place, (_, back) in enumerate(axes) if back])

    def to_network(self, stored: Tensor) -> Tensor:
        """Return (C, stored axes), float, as the network sees it: (C, *size)."""
        (a, b), (c, d), (e, f) = self.box
        part = self.turn(stored)[:, a:b, c:d, e:f].unsqueeze(0)
        x, y, z = (min(own, wanted) for own, wanted in zip(part.shape[2:], self.size, strict=True))
        part = F.adaptive_avg_pool3d(part, (x, y, z)) if tuple(part.shape[2:]) != (x, y, z) else part
        return _linear(part, self.size)[0].contiguous()

    def to_stored(self, seen: Tensor) -> Tensor:
        """Return (C, *size), float, on the scan's own voxels (C, stored axes); zero outside the box."""
        axes = _axes(self.affine)
        (a, b), (c, d), (e, f) = self.box
        turned = seen.new_zeros(len(seen), *_sizes(self.shape, axes))
        turned[:, a:b, c:d, e:f] = _linear(seen.unsqueeze(0), (b - a, d - c, f - e))[0]
        turned = turned.flip([1 + place for place, (_, back) in enumerate(axes) if back])
        places = [0, 0, 0]
        for place, (axis, _) in enumerate(axes):
            places[axis] = 1 + place
        return turned.permute(0, *places).contiguous()


def head_box(turned: Tensor) -> Box:
    """Return the box around the head in a scan (D, H, W) with intensities in [0, 1].

    The head is the largest connected part above a fifth of the range, found on every n-th voxel of a large scan. A scan
    that is all air is kept whole.
    """
    from scipy import ndimage

    step = [max(1, -(-size // _BOX_VOXELS)) for size in turned.shape]
    seen = turned[:: step[0], :: step[1], :: step[2]].numpy() >= _AIR
    parts, count = ndimage.label(seen)
    if not count:
        return ((0, turned.shape[0]), (0, turned.shape[1]), (0, turned.shape[2]))
    sizes = np.bincount(parts.ravel())[1:]
    found = ndimage.find_objects((parts == 1 + int(sizes.argmax())).astype(np.uint8))[0]
    sides = [
        (max(0, (part.start - 1) * each), min(size, (part.stop + 1) * each))
        for part, each, size in zip(found, step, turned.shape, strict=True)
    ]
    return (sides[0], sides[1], sides[2])


def _axes(affine: Sequence[Sequence[float]]) -> list[tuple[int, bool]]:
    """Return, for each of right, front and up, the stored axis nearest to it and whether it runs the other way."""
    from nibabel.orientations import io_orientation

    found = io_orientation(np.asarray(affine))
    order = np.argsort(found[:, 0]).astype(int)
    return [(int(axis), bool(found[axis, 1] < 0)) for axis in order]


def _sizes(shape: Sequence[int], axes: Sequence[tuple[int, bool]]) -> tuple[int, int, int]:
    x, y, z = (int(shape[axis]) for axis, _ in axes)
    return (x, y, z)


def _linear(x: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(x.shape[2:]) == tuple(size):
        return x
    grown: Tensor = F.interpolate(x, size=list(size), mode="trilinear", align_corners=False)
    return grown
