"""Classical solvers: what gives the labels, and what a network's answer is compared with.

Tokens are those of the models: 1-based input positions, without the end.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyhead.errors import DataError

__all__ = [
    "canonical_tour",
    "convex_hull",
    "held_karp",
    "nearest_neighbour",
    "search",
    "tour_length",
    "triangulation",
    "two_opt",
]

Floats = NDArray[np.float64]
MOST_EXACT = 12
"""Most points of the exact dynamic programme."""
SEARCH_STEPS = 500
_SCALE = 10**7


def convex_hull(points: Floats) -> list[int]:
    """Return the hull's points from the lowest input index, counter-clockwise.

    Raises:
        DataError: fewer than 3 points, or all on one line.
    """
    from scipy.spatial import ConvexHull, QhullError

    try:
        corners: list[int] = ConvexHull(points).vertices.tolist()
    except (QhullError, ValueError) as error:
        raise DataError(_degenerate(points, "convex hull")) from error
    first = corners.index(min(corners))
    return [corner + 1 for corner in corners[first:] + corners[:first]]


def triangulation(points: Floats) -> list[int]:
    """Return the Delaunay triangles, flattened: indices ascending, triangles ordered by their incentres.

    Raises:
        DataError: fewer than 3 points, or all on one line.
    """
    from scipy.spatial import Delaunay, QhullError

    try:
        triangles = np.sort(Delaunay(points).simplices, axis=1)
    except (QhullError, ValueError) as error:
        raise DataError(_degenerate(points, "Delaunay triangulation")) from error
    corners = points[triangles]
    # The incentre weighs each corner by the length of the side across.
    sides = np.stack([np.linalg.norm(corners[:, (i + 1) % 3] - corners[:, (i + 2) % 3], axis=1) for i in range(3)], 1)
    centres = (sides[..., None] * corners).sum(1) / sides.sum(1, keepdims=True)
    order = np.lexsort((centres[:, 1], centres[:, 0]))
    flat: list[int] = (triangles[order] + 1).flatten().tolist()
    return flat


def _degenerate(points: Floats, what: str) -> str:
    if len(points) < 3:
        return f"{len(points)} points have no {what}: give at least 3."
    return f"These {len(points)} points lie on one line or are one place: they have no {what}. Move or add a point."


def canonical_tour(tour: Sequence[int]) -> list[int]:
    """Return a closed tour from city 1, in the direction in which the second city's index is below the last one's.

    >>> canonical_tour([3, 1, 4, 2])
    [1, 3, 2, 4]
    """
    first = list(tour).index(1)
    turned = [*tour[first:], *tour[:first]]
    return turned if len(turned) < 3 or turned[1] < turned[-1] else [1, *reversed(turned[1:])]


def tour_length(distances: Floats, tour: Sequence[int], *, closed: bool = True) -> float:
    """Return the length of a tour in the unit of ``distances`` (n, n)."""
    steps = np.asarray(tour) - 1
    length = distances[steps[:-1], steps[1:]].sum()
    return float(length + (distances[steps[-1], steps[0]] if closed else 0.0))


@functools.cache
def _subsets(others: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Return, size by size, the sets of ``others`` cities as bits, and their members, ascending."""
    layers = []
    for size in range(1, others + 1):
        members = np.array(list(itertools.combinations(range(others), size)), dtype=np.int64)
        layers.append(((1 << members).sum(1), members))
    return layers


def held_karp(distances: Floats) -> NDArray[np.int64]:
    """Return shortest closed tours of a batch of instances by dynamic programming.

    Args:
        distances: symmetric, shape (B, n, n), 3 <= n <= 12.

    Returns:
        tours (B, n), each canonical.

    Complexity: O(B · n² · 2^n) time, O(B · n · 2^n) memory.
    Source: Held and Karp 1962, doi:10.1137/0110015.
    """
    batch, count, _ = distances.shape
    if not 3 <= count <= MOST_EXACT:
        raise DataError(f"The exact solver takes 3 to {MOST_EXACT} points, not {count}.")
    others = count - 1
    rows = distances[:, 1:, 1:]
    cost = np.full((1 << others, others, batch), np.inf)
    before = np.zeros((1 << others, others, batch), dtype=np.int8)
    cost[1 << np.arange(others), np.arange(others)] = distances[:, 0, 1:].T
    for sets, members in _subsets(others)[1:]:
        size = members.shape[1]
        for place in range(size):
            last = members[:, place]
            rest = np.delete(members, place, axis=1)
            # (sets, size-1, B): the way to each other member through the rest, then on to the last one.
            through = cost[(sets - (1 << last))[:, None], rest] + rows[:, rest, last[:, None]].transpose(1, 2, 0)
            best = through.argmin(1)
            cost[sets, last] = np.take_along_axis(through, best[:, None], 1)[:, 0]
            before[sets, last] = np.take_along_axis(rest[:, :, None], best[:, None], 1)[:, 0]
    every = np.arange(batch)
    now = (cost[-1] + distances[:, 1:, 0].T).argmin(0)
    left = np.full(batch, (1 << others) - 1)
    tours = np.ones((batch, count), dtype=np.int64)
    for step in range(others, 0, -1):
        tours[:, step] = now + 2
        left, now = left - (1 << now), before[left, now, every].astype(np.int64)
    turned = tours[:, 1] > tours[:, -1]
    tours[turned, 1:] = tours[turned, :0:-1]
    return tours


def nearest_neighbour(distances: Floats, *, start: int = 1, end: int = 0) -> list[int]:
    """Return the tour that always goes on to the nearest city left; ``end``, if not 0, is kept for last."""
    left = distances.copy()
    now = start - 1
    left[:, now] = np.inf
    tour = [start]
    if end:
        left[:, end - 1] = np.inf
    while len(tour) < len(distances) - bool(end and end != start):
        now = int(left[now].argmin())
        left[:, now] = np.inf
        tour.append(now + 1)
    return tour + [end] * bool(end and end != start)


def two_opt(distances: Floats, tour: Sequence[int], *, closed: bool = True, end: bool = False) -> list[int]:
    """Turn parts of a tour around as long as that shortens it; the first city stays first.

    Args:
        distances: symmetric, (n, n).
        tour: every city once.
        closed: whether the way back counts.
        end: of an open tour: the last city stays last.

    Complexity: O(n²) a turn, in NumPy.
    """
    count = len(tour)
    places = np.asarray(tour) - 1
    if count < 4:
        return [int(place) + 1 for place in places]
    nothing = np.zeros(count)
    while True:
        # Turning i+1..j replaces (i, i+1) and (j, j+1) by (i, j) and (i+1, j+1).
        along = distances[np.ix_(places, places)]
        following = np.roll(np.arange(count), -1)
        edges = along[np.arange(count), following]
        joined = along[np.ix_(following, following)]
        if not closed:
            edges[-1] = 0.0
            joined[:, -1] = nothing
        gain = edges[:, None] + edges[None, :] - along - joined
        gain[np.tril_indices(count, 1)] = 0.0
        if not closed and end:
            gain[:, -1] = 0.0
        best = int(gain.argmax())
        i, j = divmod(best, count)
        if gain[i, j] <= 1e-12 * max(1.0, float(edges.sum())):
            return [int(place) + 1 for place in places]
        places[i + 1 : j + 1] = places[i + 1 : j + 1][::-1].copy()


def search(
    distances: Floats,
    *,
    start: int = 1,
    end: int = 0,
    closed: bool = True,
    warm: Sequence[int] | None = None,
    steps: int = SEARCH_STEPS,
    seed: int = 0,
) -> list[int]:
    """Return a short tour by PyVRP's iterated local search; the same for the same arguments.

    Args:
        distances: (n, n), any unit.
        start: the first city.
        end: the last city of an open tour, 0 for any.
        closed: whether the way back counts.
        warm: a tour to begin from, with the same start and end.
        steps: iterations, and nothing else, end the search: a time limit would give another tour on another machine.
        seed: of the search.
    """
    import pyvrp
    from pyvrp.stop import MaxIterations

    count = len(distances)
    if count < 4:
        return nearest_neighbour(distances, start=start, end=end)
    scale = _SCALE / max(float(distances.max()), 1e-300)
    costs: NDArray[Any] = np.rint(distances * scale).astype(np.int64)
    np.fill_diagonal(costs, 0)
    if closed:
        depots = [start - 1]
    elif end:
        depots = [start - 1, end - 1]
    else:
        # An open tour may end anywhere: a depot of its own is no way from everywhere.
        costs = np.pad(costs, (0, 1))
        depots = [start - 1, count]
    clients = [city for city in range(count) if city not in depots]
    data = pyvrp.ProblemData(
        [pyvrp.Location(0, 0)] * len(costs),
        [pyvrp.Client(city) for city in clients],
        [pyvrp.Depot(city) for city in depots],
        [pyvrp.VehicleType(start_depot=0, end_depot=len(depots) - 1)],
        [costs],  # type: ignore[list-item]  # its stubs ask for arrays without a shape
        [np.zeros_like(costs)],  # type: ignore[list-item]
    )
    place = {city: at for at, city in enumerate(clients)}
    initial = None
    if warm is not None:
        initial = pyvrp.Solution(data, [[place[city - 1] for city in warm if city - 1 in place]])
    found = pyvrp.solve(
        data, MaxIterations(steps), seed=seed, collect_stats=False, display=False, initial_solution=initial
    )
    visits = [step.idx for step in found.best.routes()[0].schedule() if step.is_client()]
    tail = [end] if end and not closed else []
    return [start, *(clients[at] + 1 for at in visits), *tail]
