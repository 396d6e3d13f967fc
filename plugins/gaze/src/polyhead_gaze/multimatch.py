"""MultiMatch: shape, direction, length, position and duration of two scanpaths compared, for many pairs in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from polyhead.errors import ShapeError
from polyhead_gaze.displays import Floats

__all__ = ["MULTIMATCH", "multimatch"]

MULTIMATCH = ("shape", "direction", "length", "position", "duration")
FEWEST = 3
"""Fixations of a scanpath that can be compared."""
TOGETHER = 512
"""Pairs that are aligned together, of like lengths; fewer where they are long."""
MOST_CELLS = 2_000_000
TIED_CELLS = 1500
"""Cells of the tables that one call of the shortest-path search takes."""

Ints = NDArray[np.int64]


class _Side(NamedTuple):
    """Saccades of the scanpaths of one side, padded: shape (S, P) each."""

    x: Floats
    y: Floats
    dx: Floats
    dy: Floats
    length: Floats
    angle: Floats
    duration: Floats
    saccades: Ints
    """How many each scanpath has, shape (P,)."""


def multimatch(first: Sequence[Floats], second: Sequence[Floats], size: Any, *, pad_short: bool = False) -> Floats:
    r"""Compare scanpaths pair by pair.

    The saccades of a pair are aligned by the cheapest path through the table of their differences, right, down or
    diagonally. The results are 1 minus the median difference along it, each over its largest value: vectors
    :math:`|u - v| / 2d`, angles over :math:`\pi`, lengths and starts over the screen's diagonal d, durations over the
    longer one.

    Where several paths are equally cheap, the pair is given to the search that ``multimatch-gaze`` uses (SciPy's
    ``dijkstra``), on the same graph, so that the results are its results, ties included.

    Args:
        first: x, y and, if known, duration of each fixation, shapes (n, 2) or (n, 3).
        second: the others.
        size: width and height of the screen, or those of each pair, shape (P, 2).
        pad_short: extend shorter scanpaths to three fixations at (1, 1) of duration 1, as in the code published with
            OAT, instead of giving NaN.

    Returns:
        float64, shape (P, 5), see `MULTIMATCH`; NaN where a scanpath has fewer than three fixations, and for durations
        where one has none.

    Raises:
        ShapeError: there are not as many of both, or they are not (n, 2) or (n, 3).

    Complexity: O(n·m) for each pair, O(n·m·log(n·m)) for one with ties.
    Source: Dewhurst et al. 2012, doi:10.3758/s13428-012-0212-2; Wagner et al. 2019, doi:10.21105/joss.01525.

    >>> a = np.array([[0.0, 0.0], [30.0, 40.0], [60.0, 0.0]])
    >>> multimatch([a], [a], (100, 100))[0, :4].tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    if len(first) != len(second):
        raise ShapeError(f"There are {len(first)} first and {len(second)} second scanpaths: give pairs.")
    for path in (*first, *second):
        if path.ndim != 2 or path.shape[1] not in (2, 3):
            raise ShapeError(f"A scanpath of shape {path.shape} is not (fixations, 2) or (fixations, 3).")
    if pad_short:
        first, second = ([_padded(path) for path in side] for side in (first, second))
    diagonal = np.broadcast_to(np.hypot(*np.moveaxis(np.asarray(size, dtype=np.float64), -1, 0)), (len(first),))
    result = np.full((len(first), 5), np.nan)
    lengths = np.array([[len(path) for path in side] for side in (first, second)], dtype=np.int64).reshape(2, -1)
    order = np.argsort(lengths.max(0), kind="stable")
    order = order[lengths.min(0)[order] >= FEWEST]
    while len(order):
        # The longest come first, so that the size of a group is known.
        longest = int(lengths[:, order[-1]].max())
        count = min(TOGETHER, max(1, MOST_CELLS // (2 * longest**2)))
        rows, order = order[-count:], order[:-count]
        ours = _saccades([first[i] for i in rows], lengths[0, rows])
        theirs = _saccades([second[i] for i in rows], lengths[1, rows])
        result[rows] = _compare(ours, theirs, diagonal[rows])
    return result


def _padded(path: Floats) -> Floats:
    missing = FEWEST - len(path)
    return np.concatenate([path, np.ones((missing, path.shape[1]))]) if missing > 0 else path


def _saccades(paths: Sequence[Floats], lengths: Ints) -> _Side:
    """Return the saccades of scanpaths, behind the end of each whatever there is."""
    flat = np.zeros((3, lengths.max(), len(paths)))
    owner = np.repeat(np.arange(len(paths)), lengths)
    step = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    points = np.concatenate([path[:, :2] for path in paths])
    flat[0, step, owner], flat[1, step, owner] = points[:, 0], points[:, 1]
    timed = [path[:, 2] if path.shape[1] == 3 else np.full(len(path), np.nan) for path in paths]
    flat[2, step, owner] = np.concatenate(timed)
    x, y, duration = flat[:, :-1]
    dx, dy = np.diff(flat[0], axis=0), np.diff(flat[1], axis=0)
    angle = np.arctan2(dy, dx)
    angle = np.where(angle < 0, np.pi + (np.pi + angle), angle)
    return _Side(x, y, dx, dy, np.sqrt(dx**2 + dy**2), angle, duration, lengths - 1)


def _compare(a: _Side, b: _Side, diagonal: Floats) -> Floats:
    """Return the five similarities of pairs, shape (P, 5)."""
    rows, columns, real = _alignments(a, b)
    pairs = np.arange(len(diagonal))
    u = [side[rows, pairs] for side in a[:7]]
    v = [side[columns, pairs] for side in b[:7]]
    x, y, dx, dy, length, angle, duration = (p - q for p, q in zip(u, v, strict=True))
    angle = np.abs(angle)
    turned = np.minimum(angle, 2 * np.pi - angle)
    differences = np.stack(
        [
            np.sqrt(dx**2 + dy**2),
            turned,
            np.abs(length),
            np.sqrt(x**2 + y**2),
            np.abs(duration) / np.abs(np.maximum(u[6], v[6])),
        ]
    )
    scale = np.stack([2 * diagonal, np.full_like(diagonal, np.pi), diagonal, diagonal, np.ones_like(diagonal)])
    similar: Floats = (1 - _median(differences, real) / scale).T
    return similar


def _alignments(a: _Side, b: _Side) -> tuple[Ints, Ints, NDArray[np.bool_]]:
    """Return the cheapest alignment of each pair, backwards: saccades of both (K, P), and which of them there are."""
    costs = _cumulated(a, b)
    count = len(a.saccades)
    high = costs.shape[1]
    start = (2 * high + 1) * count + np.arange(count)
    at = start + ((a.saccades + b.saccades - 2) * high + a.saccades - 1) * count
    up, left, diagonal = -(high + 1) * count, -high * count, -(2 * high + 1) * count
    flat = costs.reshape(-1)
    cells, reals = [at], [np.ones(count, bool)]
    tied = np.zeros(count, bool)
    while (going := at != start).any():
        above, before, both = flat[at + up], flat[at + left], flat[at + diagonal]
        least = np.minimum(np.minimum(above, before), both)
        by_both, by_above = both == least, above == least
        by_before = before == least
        tied |= going & ((by_both & by_above) | (by_both & by_before) | (by_above & by_before))
        at = at + going * np.where(by_both, diagonal, np.where(by_above, up, left))
        cells.append(at)
        reals.append(going)
    real = np.stack(reals)
    place = np.stack(cells) // count
    rows = place % high - 1
    columns = place // high - 2 - rows
    if tied.any():
        # Another path that is as cheap may have more cells.
        longest = int((a.saccades + b.saccades)[tied].max()) - 1
        more = ((0, max(0, longest - len(real))), (0, 0))
        rows, columns, real = np.pad(rows, more), np.pad(columns, more), np.pad(real, more)
        for pairs in _groups(np.flatnonzero(tied), a.saccades * b.saccades):
            _search(a, b, pairs, rows, columns, real)
    return rows, columns, real


def _cumulated(a: _Side, b: _Side) -> Floats:
    """Return the cost of the cheapest path to every cell.

    Antidiagonal by antidiagonal, since cells of one do not depend on each other: cell (i, j) stands at [i + j + 2,
    i + 1]; cells around the table are infinite.
    """
    n, count = a.dx.shape
    m = len(b.dx)
    costs = np.empty((n + m + 1, n + 1, count))
    costs[:2] = np.inf
    from_end_x, from_end_y = np.ascontiguousarray(b.dx[::-1]), np.ascontiguousarray(b.dy[::-1])
    for sum_ij in range(n + m - 1):
        low, high = max(0, sum_ij - m + 1), min(sum_ij, n - 1) + 1
        there = slice(low + m - 1 - sum_ij, high + m - 1 - sum_ij)
        across = a.dx[low:high] - from_end_x[there]
        across *= across
        along = a.dy[low:high] - from_end_y[there]
        along *= along
        across += along
        apart = np.sqrt(across, out=across)
        here = costs[sum_ij + 2]
        here[low] = np.inf
        if high < n:
            here[high + 1] = np.inf
        if sum_ij:
            last, before = costs[sum_ij + 1], costs[sum_ij]
            least = np.minimum(last[low:high], last[low + 1 : high + 1], out=along)
            np.minimum(least, before[low:high], out=least)
            np.add(least, apart, out=here[low + 1 : high + 1])
        else:
            here[1] = 0  # the search starts in the first cell, and only steps cost
    return costs


def _groups(pairs: Ints, cells: Ints) -> list[Ints]:
    """Cut pairs into groups that one call of the search takes."""
    ends = np.cumsum(cells[pairs]) // TIED_CELLS
    return [pairs[ends == end] for end in np.unique(ends)]


def _search(a: _Side, b: _Side, pairs: Ints, rows: Ints, columns: Ints, real: NDArray[np.bool_]) -> None:
    """Replace the alignments of pairs by those that Dijkstra's search finds.

    One graph holds the tables of all pairs, which are not joined; the search starts once in each. Which of several
    cheapest paths it finds depends on the order of edges, which is that of ``multimatch-gaze``: right, down, diagonal.
    """
    n, m = a.saccades[pairs], b.saccades[pairs]
    ends = np.cumsum(n * m)
    starts = ends - n * m
    pair = np.repeat(np.arange(len(pairs)), n * m)
    local = np.arange(ends[-1]) - starts[pair]
    i, j = local // m[pair], local % m[pair]
    own = pairs[pair]
    apart = np.sqrt(np.abs(a.dx[i, own] - b.dx[j, own]) ** 2 + np.abs(a.dy[i, own] - b.dy[j, own]) ** 2)
    here = np.arange(ends[-1])
    targets = np.stack([here + 1, here + m[pair], here + m[pair] + 1], -1)
    right, down = j < m[pair] - 1, i < n[pair] - 1
    allowed = np.stack([right, down, right & down], -1)
    edges = targets[allowed]
    pointers = np.concatenate([[0], np.cumsum(allowed.sum(1))]).astype(np.int32)
    graph = csr_array((apart[edges], edges.astype(np.int32), pointers), shape=(len(here),) * 2)
    before = np.atleast_2d(dijkstra(graph, directed=True, indices=starts, return_predecessors=True)[1])
    at, number = ends - 1, np.arange(len(pairs))
    real[:, pairs] = False
    for step in range(len(real)):
        rows[step, pairs[number]], columns[step, pairs[number]] = i[at], j[at]
        real[step, pairs[number]] = True
        on = at != starts[number]
        number = number[on]
        at = before[number, at[on]].astype(np.int64)
        if not len(number):
            return


def _median(values: Floats, real: NDArray[np.bool_]) -> Floats:
    """Return the median of the real values (…, K, P) of each pair, shape (…, P); NaN where one is NaN."""
    count = real.sum(0)
    unknown = (np.isnan(values) & real).any(-2)
    ordered = np.sort(np.where(real, values, np.inf).swapaxes(-1, -2), -1)
    low = np.take_along_axis(ordered, np.broadcast_to(((count - 1) // 2)[:, None], (*ordered.shape[:-1], 1)), -1)
    high = np.take_along_axis(ordered, np.broadcast_to((count // 2)[:, None], (*ordered.shape[:-1], 1)), -1)
    middle: Floats = np.where(unknown, np.nan, ((low + high) / 2)[..., 0])
    return middle
