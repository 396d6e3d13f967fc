"""Which keys a query may see by its place alone: descriptions of sparse patterns, from which kernels skip work.

They are data: two equal descriptions are the same pattern, to torch.compile as well. No mask of all pairs is ever made,
except by the kernels that know no better.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, product
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from polyhead.errors import ConfigError, ShapeError

__all__ = ["BlockMask", "Neighbourhood", "Pattern", "Tiles", "narrowed", "pairs", "tiles"]

_QUERIES = 128
"""Queries that a kernel takes together where the pattern leaves the choice: their keys overlap."""


@dataclass(frozen=True, repr=False)
class BlockMask:
    """Blocks of queries that see blocks of keys, for all rows of the batch and all heads alike.

    Args:
        rows: for each block of queries, the indices of the blocks of keys that it sees, in rising order.
        size: queries in a block and keys in a block; the last ones may be smaller.

    Raises:
        ConfigError: a block is not positive, or indices are not rising.

    >>> BlockMask(((0,), (0, 1)), (64, 64))
    BlockMask(2 blocks of 64 queries, 3 of keys of 64)
    """

    rows: tuple[tuple[int, ...], ...]
    size: tuple[int, int] = (64, 64)

    def __post_init__(self) -> None:
        """Refuse what would be read wrongly."""
        if min(self.size) < 1:
            raise ConfigError(f"BlockMask has blocks of {self.size}, expected 1 or more queries and keys.")
        for at, row in enumerate(self.rows):
            if any(index < 0 for index in row) or any(a >= b for a, b in pairwise(row)):
                raise ConfigError(f"BlockMask: row {at} is {row}, expected indices of 0 or more in rising order.")

    @classmethod
    def of(cls, blocks: Tensor, size: tuple[int, int] = (64, 64)) -> BlockMask:
        """Return the description of a bool matrix of shape (blocks of queries, blocks of keys), True = is seen."""
        return cls(tuple(tuple(row.nonzero().flatten().tolist()) for row in blocks), size)

    def check(self, queries: int, keys: int) -> None:
        """Refuse lengths that it does not describe.

        Raises:
            ShapeError: says which block does not exist.
        """
        expected, last = _ceil(queries, self.size[0]), _ceil(keys, self.size[1]) - 1
        if len(self.rows) != expected:
            raise ShapeError(
                f"pattern has {len(self.rows)} blocks of {self.size[0]} queries, but q has {queries}: expected "
                f"{expected}."
            )
        highest = max((row[-1] for row in self.rows if row), default=-1)
        if highest > last:
            raise ShapeError(
                f"pattern names the block {highest} of {self.size[1]} keys, but k has {keys}: up to {last}."
            )

    def materialise(self, queries: int, keys: int, device: torch.device | None = None) -> Tensor:
        """Return it as a mask of shape (Sq, Sk), True = may attend."""
        blocks = torch.zeros(len(self.rows), max(_ceil(keys, self.size[1]), 1), dtype=torch.bool)
        for at, row in enumerate(self.rows):
            blocks[at, list(row)] = True
        mask = blocks.to(device).repeat_interleave(self.size[0], 0).repeat_interleave(self.size[1], 1)
        return mask[:queries, :keys]

    def tiles(self, queries: int, keys: int) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Yield indices of queries, indices of keys that some of them see, and which pairs do (None: all)."""
        ends = [slice(at * self.size[1], min((at + 1) * self.size[1], keys)) for at in range(_ceil(keys, self.size[1]))]
        every = torch.arange(keys)
        for at, row in enumerate(self.rows):
            rows = torch.arange(at * self.size[0], min((at + 1) * self.size[0], queries))
            yield rows, torch.cat([every[ends[index]] for index in row]) if row else every[:0], None

    def __repr__(self) -> str:
        """Return how many blocks there are, since the list of them is long."""
        seen = sum(len(row) for row in self.rows)
        return f"BlockMask({len(self.rows)} blocks of {self.size[0]} queries, {seen} of keys of {self.size[1]})"


@dataclass(frozen=True)
class Neighbourhood:
    """Positions on a grid that see the positions around them: a window in one dimension, a patch in two, and so on.

    Args:
        grid: positions along each axis; their product is the length, the last axis runs fastest.
        window: keys along each axis that a query sees, an odd number, itself in the middle.
        cut: what happens at the border. False: the window moves inwards, so that every query sees the same number of
            keys (Hassani et al. 2023, arXiv:2204.07143). True: what is outside of the grid is cut off.

    Raises:
        ConfigError: grid and window do not fit together, or a window has no middle.

    >>> Neighbourhood((4,), (3,)).materialise(4, 4).int()
    tensor([[1, 1, 1, 0],
            [1, 1, 1, 0],
            [0, 1, 1, 1],
            [0, 1, 1, 1]], dtype=torch.int32)
    """

    grid: tuple[int, ...]
    window: tuple[int, ...]
    cut: bool = False

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if not self.grid or len(self.grid) != len(self.window) or min(self.grid) < 1:
            raise ConfigError(f"Neighbourhood has grid {self.grid} and window {self.window}: one number for each axis.")
        for positions, window in zip(self.grid, self.window, strict=True):
            if window < 1 or window % 2 == 0:
                raise ConfigError(
                    f"Neighbourhood has a window of {window}, expected an odd number: a query in its middle."
                )
            if window > positions and not self.cut:
                raise ConfigError(
                    f"Neighbourhood has a window of {window} on an axis of {positions} positions. Make it smaller, or "
                    "cut it off at the border by cut=True."
                )

    def check(self, queries: int, keys: int) -> None:
        """Refuse lengths that it does not describe.

        Raises:
            ShapeError: queries or keys are not the positions of the grid.
        """
        if queries != keys or queries != prod(self.grid):
            raise ShapeError(
                f"pattern has {prod(self.grid)} positions on the grid {self.grid}, but q has {queries} and k {keys}."
            )

    def materialise(self, queries: int, keys: int, device: torch.device | None = None) -> Tensor:
        """Return it as a mask of shape (Sq, Sk), True = may attend."""
        mask = torch.ones(1, 1, dtype=torch.bool, device=device)
        for axis, positions in enumerate(self.grid):
            start, end = (bound.to(device).unsqueeze(1) for bound in self.bounds(axis))
            place = torch.arange(positions, device=device)
            mask = _outer(mask, (place >= start) & (place < end))
        return mask[:queries, :keys]

    def bounds(self, axis: int) -> tuple[Tensor, Tensor]:
        """Return the first position of an axis that each one sees, and the one behind the last."""
        positions, window = self.grid[axis], self.window[axis]
        start = torch.arange(positions) - window // 2
        if not self.cut:
            start = start.clamp(0, positions - window)
        return start.clamp(min=0), (start + window).clamp(max=positions)

    def tiles(
        self,
        queries: int,  # noqa: ARG002  # the grid tells
        keys: int,  # noqa: ARG002
    ) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Yield indices of queries, indices of keys that some of them see, and which pairs do."""
        side = max(1, round(_QUERIES ** (1 / len(self.grid))))
        bounds = [self.bounds(axis) for axis in range(len(self.grid))]
        spans = [list(_spans(start, end, side)) for start, end in bounds]
        for chosen in product(*spans):
            rows, columns = torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long)
            mask = torch.ones(1, 1, dtype=torch.bool)
            for (start, end), size, (a, b, low, high) in zip(bounds, self.grid, chosen, strict=True):
                place = torch.arange(low, high)
                rows = (rows.unsqueeze(1) * size + torch.arange(a, b)).flatten()
                columns = (columns.unsqueeze(1) * size + place).flatten()
                mask = _outer(mask, (place >= start[a:b, None]) & (place < end[a:b, None]))
            yield rows, columns, mask


Pattern = BlockMask | Neighbourhood


def narrowed(mask: Tensor | None, pattern: Pattern | None, q: Tensor, k: Tensor) -> Tensor | None:
    """Return a mask that keeps what a mask and a pattern both keep, with all pairs in memory if there is a pattern."""
    if pattern is None:
        return mask
    own = pattern.materialise(q.shape[2], k.shape[2], q.device)[None, None]
    return own if mask is None else own & mask


class Tiles(NamedTuple):
    """Tiles of one size: what a kernel computes in one batch."""

    queries: Tensor
    """Indices, shape (tiles, queries of each)."""
    keys: Tensor
    """Indices, shape (tiles, keys of each)."""
    allowed: Tensor | None
    """Bool, shape (tiles, queries of each, keys of each); None if all pairs are."""


@lru_cache(maxsize=16)
def tiles(pattern: Pattern, queries: int, keys: int, causal: bool) -> tuple[Tiles, ...]:
    """Return the tiles of a pattern, those of one size together; queries that see nothing are in none."""
    groups: dict[tuple[int, int], list[tuple[Tensor, Tensor, Tensor | None]]] = {}
    for rows, columns, allowed in pattern.tiles(queries, keys):
        if causal and len(rows):
            reached = columns <= rows[-1] + keys - queries
            columns, allowed = columns[reached], None if allowed is None else allowed[:, reached]
            past = columns <= rows.unsqueeze(1) + keys - queries
            allowed = past if allowed is None else allowed & past
        if allowed is not None and bool(allowed.all()):
            allowed = None
        if len(rows) and len(columns):
            groups.setdefault((len(rows), len(columns)), []).append((rows, columns, allowed))
    return tuple(_together(group) for group in groups.values())


def pairs(pattern: Pattern, queries: int, keys: int, causal: bool) -> int:
    """Return how many pairs of a query and a key a pattern keeps."""
    if isinstance(pattern, Neighbourhood) and not causal:
        bounds = (pattern.bounds(axis) for axis in range(len(pattern.grid)))
        return prod(int((end - start).sum()) for start, end in bounds)
    found = tiles(pattern, queries, keys, causal)
    return sum(t.queries.numel() * t.keys.shape[1] if t.allowed is None else int(t.allowed.sum()) for t in found)


def _together(group: Sequence[tuple[Tensor, Tensor, Tensor | None]]) -> Tiles:
    rows, columns, masks = zip(*group, strict=True)
    allowed = None
    if any(mask is not None for mask in masks):
        whole = torch.ones(len(rows[0]), len(columns[0]), dtype=torch.bool)
        allowed = torch.stack([whole if mask is None else mask for mask in masks])
    return Tiles(torch.stack(rows), torch.stack(columns), allowed)


def _spans(start: Tensor, end: Tensor, side: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield pieces of an axis with the keys that they see, as many for each piece but the last, so that they batch."""
    positions = len(start)
    bounds = []
    for a in range(0, positions, side):
        b = min(a + side, positions)
        bounds.append((a, b, int(start[a]), int(end[b - 1])))
    widest = max(high - low for _, _, low, high in bounds)
    for a, b, low, high in bounds:
        if b - a == side:
            low = min(low, positions - widest)
            high = low + widest
        yield a, b, low, high


def _outer(a: Tensor, b: Tensor) -> Tensor:
    """Return the pairs of a grid of two axes, given those of each."""
    both = a[:, None, :, None] & b[None, :, None, :]
    return both.reshape(a.shape[0] * b.shape[0], a.shape[1] * b.shape[1])


def _ceil(count: int, size: int) -> int:
    return -(-count // size)
