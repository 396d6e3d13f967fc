"""Where boundary matching samples a sequence: a few weighted steps for every point of every proposal.

A proposal is a cell (i, d): it begins at step i and lasts d + 1 steps. Only cells that end inside the sequence exist.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Span", "Taps", "cells", "taps"]

Span = Literal["snippets", "boundaries"]
"""What a proposal's length is measured by before it is extended: its first and last snippet, or its two boundaries."""


class Taps(NamedTuple):
    """A sparse matrix with a row for each cell and a column ``step * samples + point``, in compressed rows."""

    columns: NDArray[np.int64]
    """(nnz,): columns, row after row, ascending in each."""
    offsets: NDArray[np.int64]
    """(cells + 1,): where each row begins."""
    weights: NDArray[np.float64]
    """(nnz,): positive; the weights of a point of a cell add up to 1 where the sequence has all its steps."""

    def transposed(self, columns: int) -> Taps:
        """Return the transpose; ``columns`` is the width of this matrix."""
        rows = np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))
        order = np.argsort(self.columns, kind="stable")
        offsets = np.searchsorted(self.columns[order], np.arange(columns + 1))
        return Taps(rows[order], offsets, self.weights[order])


def cells(length: int, durations: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return duration and start of the cells that end inside the sequence, durations first.

    >>> [part.tolist() for part in cells(3, 2)]
    [[0, 0, 0, 1, 1], [0, 1, 2, 0, 1]]
    """
    duration, start = np.meshgrid(np.arange(durations), np.arange(length), indexing="ij")
    inside = start + duration < length
    return duration[inside], start[inside]


def taps(
    length: int,
    durations: int,
    *,
    samples: int = 32,
    per_sample: int = 3,
    extend: float = 0.5,
    span: Span = "snippets",
    legacy_edge: bool = False,
) -> Taps:
    """Return the weights with which every cell samples the steps of a sequence.

    The span of a proposal is extended on both sides by ``extend`` of its length; ``samples * per_sample`` points lie on
    it at equal distances, ends included; a point shares its weight between the two steps beside it, and ``per_sample``
    neighbouring points are averaged. Steps outside of the sequence are zeros.

    Args:
        length: steps of the sequence, T.
        durations: longest proposal in steps, D.
        samples: points of a proposal after averaging, N.
        per_sample: points that are averaged.
        extend: share of the length by which a proposal is extended on each side.
        span: "snippets" extends [i, i + d], of length d + 1 (mmaction2, OpenTAD); "boundaries" extends
            [i, i + d + 1], of length d + 2 (the PyTorch port of J. Bai).
        legacy_edge: truncate positions between -1 and 0 towards zero, as the released ports do: such a point then
            lies on step 0 with all its weight.

    Complexity: O(cells * samples) memory, never T times as much.
    Source: Lin et al. 2019, arXiv:1907.09702, section 3.2.
    """
    duration, start = cells(length, durations)
    last = start + duration + (span == "boundaries")
    size = (last - start + 1.0) * extend
    points = samples * per_sample
    low, high = start - size, last + size
    where = low[:, None] + ((high - low) / (points - 1.0))[:, None] * np.arange(points)
    below = np.floor(where)
    share = where - below
    if legacy_edge:
        edge = (where > -1) & (where < 0)
        below[edge], share[edge] = 0, 0
    step = np.stack([below, below + 1], -1).astype(np.int64)
    weight = np.stack([1 - share, share], -1) / per_sample
    point = np.arange(points)[None, :, None] // per_sample
    row = np.arange(len(start))[:, None, None]
    key = (row * length + step) * samples + point
    kept = (step >= 0) & (step < length) & (weight > 0)
    unique, inverse = np.unique(key[kept], return_inverse=True)
    rows, columns = np.divmod(unique, length * samples)
    offsets = np.searchsorted(rows, np.arange(len(start) + 1))
    weights = np.bincount(inverse, weight[kept], minlength=len(unique)).astype(np.float64)
    return Taps(columns, offsets.astype(np.int64), weights)
