"""The literature's metrics, exactly: hull accuracy and area, triangles, tour length.

A prediction is an array of tokens (B, M): 1-based points, then zeros. Percentages are 0 to 100.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyhead.protocols import Batch
from polyhead_combinatorics.instances import Floats, Kind
from polyhead_combinatorics.solvers import tour_length

__all__ = ["SolveMetric", "area", "is_simple", "same_polygon", "tokens_of", "triangles_of"]

FAIL_ABOVE = 0.01
"""Share of predictions that are no simple polygons from which on the paper gives no area but FAIL."""


def tokens_of(row: NDArray[np.int64]) -> list[int]:
    """Return the tokens before the end or the padding.

    >>> tokens_of(np.array([3, 1, 2, 0, 0])), tokens_of(np.array([2, 1, 0, -100]))
    ([3, 1, 2], [2, 1])
    """
    ends = np.flatnonzero(row <= 0)
    tokens: list[int] = row[: ends[0] if len(ends) else len(row)].tolist()
    return tokens


def _unclosed(polygon: Sequence[int]) -> list[int]:
    """Drop a repeated first point at the end, as the released files have it."""
    return list(polygon[:-1] if len(polygon) > 1 and polygon[0] == polygon[-1] else polygon)


def same_polygon(one: Sequence[int], other: Sequence[int]) -> bool:
    """Return whether two lists of corners are equal up to rotation and direction.

    >>> same_polygon([1, 2, 3, 4], [3, 2, 1, 4]), same_polygon([1, 2, 3, 4], [1, 3, 2, 4])
    (True, False)
    """
    one, other = _unclosed(one), _unclosed(other)
    if len(one) != len(other) or set(one) != set(other) or len(set(one)) < len(one):
        return False
    if not one:
        return True
    at = other.index(one[0])
    turned = [*other[at:], *other[:at]]
    return one == turned or one == [turned[0], *reversed(turned[1:])]


def area(corners: Floats) -> float:
    """Return the area of a polygon (m, 2) by the shoelace formula."""
    x, y = (corners - corners[0]).T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def is_simple(corners: Floats) -> bool:
    """Return whether a polygon (m, 2) has three corners or more and no side that touches another but its neighbours."""
    count = len(corners)
    if count < 3 or len(np.unique(corners, axis=0)) < count:
        return False
    start, end = corners, np.roll(corners, -1, axis=0)

    def side(a: Floats, b: Floats, c: Floats) -> Floats:
        return (b[..., 0] - a[..., 0]) * (c[..., 1] - a[..., 1]) - (b[..., 1] - a[..., 1]) * (c[..., 0] - a[..., 0])

    i, j = np.triu_indices(count, 1)
    apart = (j - i > 1) & ~((i == 0) & (j == count - 1))
    i, j = i[apart], j[apart]
    of_i = side(start[i], end[i], start[j]) * side(start[i], end[i], end[j])
    of_j = side(start[j], end[j], start[i]) * side(start[j], end[j], end[i])
    low = np.maximum(np.minimum(start[i], end[i]), np.minimum(start[j], end[j]))
    high = np.minimum(np.maximum(start[i], end[i]), np.maximum(start[j], end[j]))
    # Sides on one line cross only where their boxes overlap.
    return not bool(((of_i <= 0) & (of_j <= 0) & (low <= high).all(-1)).any()) and area(corners) > 0


def triangles_of(tokens: Sequence[int]) -> set[frozenset[int]]:
    """Return the triangles of a flattened list; what is left over at its end is none."""
    return {frozenset(tokens[i : i + 3]) for i in range(0, len(tokens) - 2, 3)}


class SolveMetric:
    """Accumulates one row of figures for every instance, with its size; implements ``polyhead.protocols.Metric``.

    Figures are over all instances; where several sizes were measured, those of each size follow, such as
    ``accuracy_n50``.
    """

    def __init__(self, kind: Kind) -> None:
        """Start empty."""
        self.kind = kind
        self._rows: list[tuple[float, ...]] = []

    def update(self, prediction: Any, batch: Batch) -> None:
        """Add one batch.

        Args:
            prediction: tokens (B, M), int64, zeros behind the end.
            batch: with ``points``, ``lengths`` and ``target``.
        """
        measure = {"tsp": _measure_tour, "hull": _measure_hull, "delaunay": _measure_triangles}[self.kind]
        points = np.asarray(batch["points"], dtype=np.float64)
        for each, count, target, answer in zip(
            points, batch["lengths"].tolist(), np.asarray(batch["target"]), np.asarray(prediction), strict=True
        ):
            self._rows.append((count, *measure(each[:count], tokens_of(target), tokens_of(answer))))

    def state(self) -> list[tuple[float, ...]]:
        """Return what ``merge`` of another process takes."""
        return self._rows

    def merge(self, states: Sequence[Any]) -> None:
        """Replace the own state by the union of ``states``."""
        self._rows = [tuple(row) for state in states for row in state]

    def compute(self) -> Mapping[str, float]:
        """Return the figures by name; ``area_coverage`` is left out where the literature prints FAIL."""
        rows = np.array(self._rows, dtype=np.float64)
        if not len(rows):
            return {}
        figures = self._figures(rows)
        sizes = sorted(set(rows[:, 0].astype(int).tolist()))
        for size in sizes if len(sizes) > 1 else []:
            figures |= {f"{name}_n{size}": value for name, value in self._figures(rows[rows[:, 0] == size]).items()}
        return figures

    def _figures(self, rows: Floats) -> dict[str, float]:
        if self.kind == "tsp":
            valid = rows[:, 1] > 0
            figures = {"valid": 100 * float(valid.mean())}
            if valid.any():
                length, known = rows[valid, 2], rows[valid, 3]
                figures = {
                    "gap": 100 * float((length / known - 1).mean()),
                    "length": float(length.mean()),
                    "shortest": float(known.mean()),
                    **figures,
                }
            return figures
        if self.kind == "delaunay":
            return {
                "accuracy": 100 * float(rows[:, 1].mean()),
                "triangle_coverage": 100 * float(rows[:, 2].sum() / rows[:, 3].sum()),
            }
        simple = rows[:, 2] > 0
        figures = {"accuracy": 100 * float(rows[:, 1].mean()), "simple": 100 * float(simple.mean())}
        if simple.any():
            figures["area_of_simple"] = 100 * float(rows[simple, 3].mean())
        if 1 - simple.mean() <= FAIL_ABOVE:
            figures["area_coverage"] = figures["area_of_simple"]
        return figures


def _measure_hull(points: Floats, target: Sequence[int], answer: Sequence[int]) -> tuple[float, ...]:
    """Return whether it is the same polygon, whether it is simple, and its share of the true area."""
    answer = _unclosed(answer)
    inside = all(1 <= token <= len(points) for token in answer)
    corners = points[np.asarray(answer, dtype=int) - 1] if inside and answer else points[:0]
    simple = is_simple(corners)
    truth = area(points[np.asarray(_unclosed(target), dtype=int) - 1])
    return float(same_polygon(target, answer)), float(simple), area(corners) / truth if simple else 0.0


def _measure_triangles(points: Floats, target: Sequence[int], answer: Sequence[int]) -> tuple[float, ...]:
    """Return whether the sets of triangles are equal, how many true ones were found, and how many there are."""
    del points
    truth, found = triangles_of(target), triangles_of(answer)
    whole = len(answer) % 3 == 0
    return float(whole and truth == found), float(len(truth & found)), float(len(truth))


def _measure_tour(points: Floats, target: Sequence[int], answer: Sequence[int]) -> tuple[float, ...]:
    """Return whether it is a tour, its length, and that of the known solution."""
    answer = _unclosed(answer)
    if sorted(answer) != list(range(1, len(points) + 1)):
        return 0.0, 0.0, 1.0
    distances = np.sqrt(((points[:, None] - points[None]) ** 2).sum(-1))
    return 1.0, tour_length(distances, answer), tour_length(distances, _unclosed(target))
