"""What the chunked forms of recurrences share: a plan of the work, decay matrices, and memory that is used again.

On a CPU such kernels are bound by memory traffic. They therefore work in groups of chunks small enough for the cache,
and write into the same buffers group after group; fresh tensors would cost a page fault for every four kilobytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Piece", "Workspace", "decay_matrix", "merged", "pieces", "scan_matrix"]

FORGET = -1000.0
"""A log decay whose exponential is zero in every float dtype. It stands for −∞, whose differences would be NaN."""


class Piece(NamedTuple):
    """Consecutive chunks of one size, of several rows: what is computed at once."""

    rows: slice
    first: int
    """Index of the first chunk."""
    chunks: int
    """Per row."""
    size: int
    """Tokens per chunk."""
    tokens: slice

    @property
    def height(self) -> int:
        """Number of rows."""
        return int(self.rows.stop - self.rows.start)


def pieces(rows: int, length: int, chunk: int, group: int) -> Iterator[list[Piece]]:
    """Yield blocks of rows, each as its pieces in the order of time.

    Args:
        rows: independent sequences.
        length: tokens of each.
        chunk: tokens per chunk; what is left at the end is a chunk of its own.
        group: chunks that fit the cache together.
    """
    if not length:
        return
    full, tail = divmod(length, chunk)
    budget = group * chunk
    height = 1 if length >= budget else min(budget // length, 4 * group)
    width = min(full, group)
    for top in range(0, rows, height):
        block = slice(top, min(top + height, rows))
        parts = []
        for first in range(0, full, max(width, 1)):
            count = min(width, full - first)
            parts.append(Piece(block, first, count, chunk, slice(first * chunk, (first + count) * chunk)))
        if tail:
            parts.append(Piece(block, full, 1, tail, slice(full * chunk, length)))
        yield parts


def decay_matrix(steps: Tensor, dtype: torch.dtype) -> Tensor:
    """Return exp(steps_{j+1} + … + steps_i) for j ≤ i and 0 above the diagonal, shape (..., n, n).

    Args:
        steps: log decays, −∞ included, float64, shape (..., n); the first one counts for nothing.
        dtype: of the result. The sums are differences of sums from the start, in float64; for a result in float64
            they are added up for each j by itself, since a difference would lose digits.
    """
    size = steps.shape[-1]
    future = torch.ones(size, size, dtype=torch.bool, device=steps.device).triu_(1)
    if dtype == torch.float64:
        passed = steps.unsqueeze(-1).expand(*steps.shape, size).masked_fill(~future.mT, 0)
        sums = passed.cumsum(-2)
    else:
        logs = steps.clamp(min=FORGET).cumsum(-1)
        sums = (logs.unsqueeze(-1) - logs.unsqueeze(-2)).to(dtype)
    return sums.masked_fill_(future, -torch.inf).exp_()


def scan_matrix(steps: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the matrix that runs y_c = exp(steps_c) y_{c−1} + x_c over x_0 … x_n with y_0 = x_0.

    Its transpose runs the gradients back.

    Args:
        steps: log decays, float64, shape (..., n).
        dtype: of the result.

    Returns:
        Shape (..., n + 1, n + 1).
    """
    return decay_matrix(F.pad(steps, (1, 0)), dtype)


def merged(x: Tensor, piece: Piece) -> Tensor | None:
    """Return a piece of x (rows, length, dim) as (rows · chunks, size, dim) without a copy, or None if that is none."""
    part = x[piece.rows, piece.tokens]
    rows, step = part.stride(0), piece.size * part.stride(1)
    if piece.height == 1 or piece.chunks == 1 or rows == piece.chunks * step:
        outer = rows if piece.chunks == 1 else step
        shape = (piece.height * piece.chunks, piece.size, x.shape[-1])
        return part.as_strided(shape, (outer, part.stride(1), part.stride(2)))
    return None


class Workspace:
    """Buffers by name that grow and are used again; each use overwrites the last."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        """Make an empty workspace."""
        self.dtype, self.device = dtype, device
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """Return the buffer of this name in this shape, contiguous, its content undefined."""
        count = 1
        for size in shape:
            count *= size
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < count:
            buffer = self._buffers[name] = torch.empty(count, dtype=self.dtype, device=self.device)
        return buffer[:count].view(shape)

    def load(self, name: str, x: Tensor, piece: Piece) -> Tensor:
        """Return a piece of x (rows, length, dim) as (rows · chunks, size, dim) in the workspace's dtype."""
        if x.dtype == self.dtype and (view := merged(x, piece)) is not None:
            return view
        part = x[piece.rows, piece.tokens]
        buffer = self.take(name, piece.height * piece.chunks, piece.size, x.shape[-1])
        buffer.view(part.shape).copy_(part)
        return buffer

    def target(self, name: str, x: Tensor, piece: Piece) -> Tensor:
        """Return where a piece of x is to be written: in place if that can be, else a buffer for ``store``."""
        if x.dtype == self.dtype and (view := merged(x, piece)) is not None:
            return view
        return self.take(name, piece.height * piece.chunks, piece.size, x.shape[-1])

    def store(self, written: Tensor, x: Tensor, piece: Piece) -> None:
        """Bring what was written to ``target`` to its place in x."""
        part = x[piece.rows, piece.tokens]
        if written.data_ptr() != part.data_ptr():
            part.copy_(written.view(part.shape))
