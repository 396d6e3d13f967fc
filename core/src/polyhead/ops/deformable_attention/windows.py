"""Where samples read: a window of two by two pixels inside of the map, and how near the sample is to each of them.

A sample at x, in pixels, lies between the pixels ⌊x⌋ and ⌊x⌋ + 1, one of which is outside of the map at its border. The
window stays inside: it begins at ⌊x⌋ clamped to [0, width − 2], and each of its pixels c counts max(0, 1 − |x − c|),
which is the bilinear weight of a pixel that the sample reads and zero for one that it does not. Nothing needs a mask.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from polyhead.ops.chunks import Workspace

__all__ = ["Rows", "Window", "Windows", "wide_of"]

FAR = 2.0**100
"""Where the second pixel of a map without one is: no sample is near it."""
OUTSIDE = -2.0
"""Where a location that is no number is, in pixels."""


def wide_of(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of positions, weights and sums."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class Rows:
    """Value (B, H, S, D) as a table of rows of D numbers, without a copy if its strides allow that."""

    def __init__(self, value: Tensor, dtype: torch.dtype) -> None:
        """Look at the strides; ``dtype`` is what the rows are wanted in."""
        self.value, self.dtype = value, dtype
        sizes, dim = value.shape[:3], value.shape[3]
        strides = [0 if size == 1 else step for size, step in zip(sizes, value.stride()[:3], strict=True)]
        dense = dim == 1 or value.stride(3) == 1
        self.in_place = value.dtype == dtype and dense and not any(step % dim for step in strides)
        steps = [step // dim for step in strides] if self.in_place else [sizes[1] * sizes[2], sizes[2], 1]
        self.batch, self.head, self.pixel = steps
        """Rows from one row of the batch, head or pixel to the next."""

    def table(self, first: int, last: int) -> Tensor:
        """Return rows (rows, D) that begin with the first pixel of ``value[first]`` and hold up to ``value[last]``."""
        part, dim = self.value[first:last], self.value.shape[3]
        if not self.in_place:
            return part.to(self.dtype).contiguous().view(-1, dim)
        steps = (self.batch, self.head, self.pixel)
        count = 1 + sum((size - 1) * step for size, step in zip(part.shape[:3], steps, strict=True))
        return part.as_strided((count, dim), (dim, 1))


class Window(NamedTuple):
    """The windows of samples, by rows of L·P samples each."""

    rows: Tensor
    """The rows of the table that are its pixels, (rows, 4, L·P): upper left, upper right, lower left, lower right."""
    distance: Tensor
    """From each pixel to the sample, in pixels, (rows, 2, 2, L·P): of x for left and right, of y for up and down."""
    near: Tensor
    """max(0, 1 − |distance|)."""

    def touched(self) -> Tensor:
        """Return whether the sample reads a pixel, be it with a weight of zero, (rows, 2, 2, L·P): by row, column."""
        near = (self.distance >= -1) & (self.distance < 1)
        return near[:, 1].unsqueeze(2) & near[:, 0].unsqueeze(1)


class Windows:
    """Finds windows, writing into the same memory every time."""

    def __init__(self, sizes: list[int], points: int, rows: tuple[int, int, int], like: Tensor) -> None:
        """Lay out constants.

        Args:
            sizes: height and width of each level, behind one another.
            points: of each level.
            rows: steps in the table from one row of the batch, head or pixel to the next.
            like: a tensor on the device.
        """
        self.dtype = wide_of(like.dtype)
        pairs = torch.tensor(sizes).view(-1, 2)
        steps = pairs.prod(1)
        heights, widths = (pairs * (steps > 0).unsqueeze(1)).repeat_interleave(points, 0).unbind(1)
        starts = (steps.cumsum(0) - steps).clamp(max=max(int(steps.sum()) - 1, 0)).repeat_interleave(points)
        extents = torch.stack([widths, heights])
        self.batch, self.head, pixel = rows
        furthest = self.batch * like.shape[0] + self.head * like.shape[1] + pixel * int(steps.sum())
        self.integer = torch.int32 if furthest < 2**31 else torch.int64
        corners = torch.stack([torch.zeros_like(extents), torch.ones_like(extents)], 1).to(self.dtype)
        corners[extents.unsqueeze(1).expand_as(corners) <= corners] = FAR

        def placed(x: Tensor, dtype: torch.dtype) -> Tensor:
            return x.to(like.device, dtype)

        self.extents = placed(extents, self.dtype)
        """Width and height of each sample's map, (2, L·P)."""
        self.last = placed((extents - 2).clamp(min=0), self.dtype)
        self.corners = placed(corners, self.dtype)
        self.starts = placed(starts * pixel, self.integer)
        self.lines = placed(widths * pixel, self.integer)
        right = torch.where(widths > 1, pixel, 0)
        below = torch.where(heights > 1, widths * pixel, 0)
        offsets = torch.stack([torch.zeros_like(right), right, below, below + right])
        self.offsets = placed(offsets, self.integer)
        self.pixel = pixel
        self.half = placed(torch.tensor(-0.5), self.dtype)
        self.zero = placed(torch.tensor(0.0), self.dtype)
        self.floats = Workspace(self.dtype, like.device)
        self.integers = Workspace(self.integer, like.device)

    def find(self, locations: Tensor) -> Window:
        """Return the windows of locations (b, q, H, L, P, 2), of which b and H count from the start of the table.

        The result is overwritten by the next call.
        """
        batch, queries, heads = locations.shape[:3]
        rows, samples = batch * queries * heads, self.extents.shape[1]
        take = self.floats.take
        given = locations.to(self.dtype).reshape(rows, samples, 2).mT
        at = torch.addcmul(self.half, given, self.extents, out=take("at", rows, 2, samples))
        at.nan_to_num_(nan=OUTSIDE)
        first = torch.floor(at, out=take("first", rows, 2, samples))
        torch.clamp(first, self.zero, self.last, out=first)
        at.sub_(first)
        distance = torch.sub(at.unsqueeze(2), self.corners, out=take("distance", rows, 2, 2, samples))
        near = torch.abs(distance, out=take("near", rows, 2, 2, samples)).neg_().add_(1).clamp_(min=0)

        cell = self.integers.take("cell", rows, 2, samples).copy_(first)
        start = torch.mul(cell[:, 1], self.lines, out=self.integers.take("start", rows, samples))
        start.add_(cell[:, 0], alpha=self.pixel)
        start.view(batch, queries, heads, samples).add_(self._starts(batch, heads))
        read = torch.add(start.unsqueeze(1), self.offsets, out=self.integers.take("read", rows, 4, samples))
        return Window(read, distance, near)

    def _starts(self, batch: int, heads: int) -> Tensor:
        """Return the table's row of the first pixel, (b, 1, H, L·P)."""
        numbers = [torch.arange(count, device=self.starts.device, dtype=self.integer) for count in (batch, heads)]
        rows, columns = numbers[0] * self.batch, numbers[1] * self.head
        return rows[:, None, None, None] + columns[:, None] + self.starts
