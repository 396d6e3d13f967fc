"""Instances: points with what the user calls them, their solution if it is known, and the batches made of them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from polyhead_combinatorics import solvers

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["KINDS", "Instance", "Kind", "collate", "distances_of", "in_the_plane", "most_tokens", "normalised", "solve"]

Kind = Literal["tsp", "hull", "delaunay"]
KINDS: tuple[Kind, ...] = ("tsp", "hull", "delaunay")
Floats = NDArray[np.float64]
Metric = Literal["euclidean", "haversine", "ceil", "att", "geo", "matrix"]
EARTH_KM = 6371.0088
MOST_TRIPLES = 60
_NEAR = 1e-9


@dataclass(frozen=True)
class Instance:
    """Points to be ordered."""

    points: Floats
    """Shape (n, 2), in the user's unit; longitude and latitude in degrees for haversine and geo."""
    ids: tuple[str, ...] = ()
    """The user's names; row numbers from 1 if empty."""
    solution: tuple[int, ...] | None = None
    """Tokens without the end, 1-based; None if unknown."""
    metric: Metric = "euclidean"
    matrix: Floats | None = None
    """Distances (n, n) where the file gives them; ``points`` are then placed to fit."""
    name: str = ""
    unit: str = ""
    placed: bool = False
    """Whether ``points`` were made to fit the distances."""

    @property
    def names(self) -> tuple[str, ...]:
        """The user's names of the points."""
        return self.ids or tuple(str(number) for number in range(1, len(self.points) + 1))

    @property
    def geographic(self) -> bool:
        """Whether the points are longitude and latitude."""
        return self.metric in ("haversine", "geo")


def most_tokens(kind: Kind, count: int) -> int:
    """Return how many tokens the solution of ``count`` points has at most, the end included."""
    return 3 * max(2 * count - 5, 1) + 1 if kind == "delaunay" else count + 1


def normalised(points: Floats) -> Floats:
    """Shift and scale points into the unit square, both axes alike, so that the units of a user change nothing.

    >>> normalised(np.array([[10.0, 0.0], [30.0, 5.0]])).tolist()
    [[0.0, 0.375], [1.0, 0.625]]
    """
    low, high = points.min(0), points.max(0)
    side = float((high - low).max()) or 1.0
    scaled: Floats = (points - (low + high) / 2) / side + 0.5
    return scaled


def in_the_plane(instance: Instance) -> Floats:
    """Return points (n, 2) for a network, in the unit square; a degree of longitude is as long as it is half-way up.

    >>> in_the_plane(Instance(np.array([[0.0, 59.0], [2.0, 61.0]]), metric="haversine")).round(2).tolist()
    [[0.25, 0.0], [0.75, 1.0]]
    """
    points = instance.points
    if instance.geographic:
        latitude = np.radians((points[:, 1].min() + points[:, 1].max()) / 2)
        points = points * [np.cos(latitude), 1.0]
    return normalised(points)


def distances_of(instance: Instance) -> Floats:
    """Return the distances (n, n) of an instance in its unit, by the metric its file names.

    Source: TSPLIB 95 (Reinelt), section 2; haversine with the mean radius of 6371.0088 km.
    """
    points = instance.points
    if instance.matrix is not None:
        return instance.matrix
    if instance.metric == "haversine":
        longitude, latitude = np.radians(points).T
        halves = [np.sin((a[:, None] - a[None]) / 2) ** 2 for a in (latitude, longitude)]
        inside = halves[0] + np.cos(latitude)[:, None] * np.cos(latitude)[None] * halves[1]
        return np.asarray(2 * EARTH_KM * np.arcsin(np.sqrt(inside.clip(0, 1))))
    if instance.metric == "geo":
        return _geo(points)
    straight = np.sqrt(((points[:, None] - points[None]) ** 2).sum(-1))
    if instance.metric == "ceil":
        return np.ceil(straight)
    if instance.metric == "att":
        short = straight / np.sqrt(10.0)
        rounded = np.rint(short)
        return rounded + (rounded < short)
    if instance.unit == "TSPLIB":
        return np.floor(straight + 0.5)
    return straight


def _geo(points: Floats) -> Floats:
    """Return TSPLIB's geographical distances; its degrees are written as DDD.MM, its pi has six digits."""
    degrees = np.trunc(points)
    angles = 3.141592 * (degrees + 5.0 * (points - degrees) / 3.0) / 180.0
    longitude, latitude = angles.T
    q1 = np.cos(longitude[:, None] - longitude[None])
    q2 = np.cos(latitude[:, None] - latitude[None])
    q3 = np.cos(latitude[:, None] + latitude[None])
    inside = 0.5 * ((1.0 + q1) * q2 - (1.0 - q1) * q3)
    distances: Floats = np.trunc(6378.388 * np.arccos(inside.clip(-1, 1)) + 1.0)
    np.fill_diagonal(distances, 0)
    return distances


def solve(kind: Kind, points: Sequence[Floats]) -> list[tuple[int, ...]]:
    """Solve instances of equally many points; tours are exact up to 12 points, found by PyVRP beyond.

    Raises:
        DataError: points without a hull or a triangulation.
    """
    if kind == "hull":
        return [tuple(solvers.convex_hull(each)) for each in points]
    if kind == "delaunay":
        return [tuple(solvers.triangulation(each)) for each in points]
    stacked = np.stack(points)
    distances = np.sqrt(((stacked[:, :, None] - stacked[:, None]) ** 2).sum(-1))
    if stacked.shape[1] <= solvers.MOST_EXACT:
        return [tuple(tour) for tour in solvers.held_karp(distances).tolist()]
    return [tuple(solvers.canonical_tour(solvers.search(each))) for each in distances]


def in_general_position(points: Floats) -> NDArray[np.bool_]:
    """Whether no three points of each instance (B, n, 2) lie on a line, so that its hull and triangulation are unique.

    Beyond 60 points, whether no two are the same.
    """
    count = points.shape[1]
    if count > MOST_TRIPLES:
        return np.array([len(np.unique(each, axis=0)) == count for each in points], dtype=bool)
    i, j, k = _triples(count)
    x, y = points[..., 0], points[..., 1]
    cross = (x[:, j] - x[:, i]) * (y[:, k] - y[:, i]) - (x[:, k] - x[:, i]) * (y[:, j] - y[:, i])
    return np.asarray((np.abs(cross) >= _NEAR).all(1))


@functools.cache
def _triples(count: int) -> NDArray[np.int64]:
    return np.array(list(itertools.combinations(range(count), 3)), dtype=np.int64).reshape(-1, 3).T


def collate(instances: Sequence[tuple[Floats, Sequence[int]]], kind: Kind, width: int) -> Mapping[str, Tensor]:
    """Return points in the unit square and solutions as a padded batch.

    Returns:
        ``points`` (B, width, 2) float32, zeros behind the length; ``lengths`` (B,) int64; ``target`` (B, M) int64, the
        end after the solution, -100 behind it.
    """
    import torch

    points = np.zeros((len(instances), width, 2), dtype=np.float32)
    target = np.full((len(instances), most_tokens(kind, width)), -100, dtype=np.int64)
    for row, (each, solution) in enumerate(instances):
        points[row, : len(each)] = each
        target[row, : len(solution)] = solution
        target[row, len(solution)] = 0
    lengths = np.array([len(each) for each, _ in instances], dtype=np.int64)
    arrays: dict[str, NDArray[Any]] = {"points": points, "lengths": lengths, "target": target}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
