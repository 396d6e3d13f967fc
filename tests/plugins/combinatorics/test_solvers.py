"""Labels and metrics against independent statements."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyhead.errors import DataError
from polyhead_combinatorics import solvers
from polyhead_combinatorics.instances import Instance, distances_of, normalised
from polyhead_combinatorics.metrics import SolveMetric, area, is_simple, same_polygon


def _distances(count: int, seed: int = 0) -> np.ndarray:
    points = np.random.default_rng(seed).random((count, 2))
    return np.linalg.norm(points[:, None] - points[None], axis=-1)


@pytest.mark.parametrize("count", [3, 4, 7])
def test_held_karp_equals_trying_all_tours(count: int) -> None:
    distances = np.stack([_distances(count, seed) for seed in range(3)])
    for each, tour in zip(distances, solvers.held_karp(distances).tolist(), strict=True):
        best = min(solvers.tour_length(each, (1, *rest)) for rest in itertools.permutations(range(2, count + 1)))
        assert solvers.tour_length(each, tour) == pytest.approx(best)
        assert tour == solvers.canonical_tour(tour)


def test_the_exact_solver_says_how_many_it_takes() -> None:
    with pytest.raises(DataError, match="The exact solver takes 3 to 12 points, not 13"):
        solvers.held_karp(np.zeros((1, 13, 13)))


@pytest.mark.parametrize(("start", "end", "closed"), [(1, 0, True), (5, 0, True), (3, 0, False), (3, 7, False)])
def test_every_solver_keeps_the_ends_it_is_given(start: int, end: int, closed: bool) -> None:
    distances = _distances(15)
    near = solvers.nearest_neighbour(distances, start=start, end=end)
    polished = solvers.two_opt(distances, near, closed=closed, end=bool(end))
    searched = solvers.search(distances, start=start, end=end, closed=closed, steps=100)
    warmed = solvers.search(distances, start=start, end=end, closed=closed, steps=1, warm=searched)
    assert searched == solvers.search(distances, start=start, end=end, closed=closed, steps=100)
    lengths = [solvers.tour_length(distances, tour, closed=closed) for tour in (near, polished, searched, warmed)]
    for tour in (near, polished, searched, warmed):
        assert sorted(tour) == list(range(1, 16))
        assert tour[0] == start
        assert not end or tour[-1] == end
    assert lengths[1] <= lengths[0]
    assert lengths[2] <= lengths[1] + 1e-6
    assert lengths[3] <= lengths[2] + 1e-6


def test_hull_and_triangles_of_a_square_with_a_point_inside() -> None:
    points = np.array([[0.5, 0.4], [1, 1], [0, 0], [1, 0], [0, 1]], dtype=float)
    assert solvers.convex_hull(points) == [2, 5, 3, 4]
    triangles = solvers.triangulation(points)
    assert len(triangles) == 12
    assert all(sorted(triangles[i : i + 3]) == triangles[i : i + 3] for i in range(0, 12, 3))
    with pytest.raises(DataError, match="These 3 points lie on one line or are one place: they have no convex hull"):
        solvers.convex_hull(np.array([[0, 0], [1, 1], [2, 2]], dtype=float))
    with pytest.raises(DataError, match="2 points have no Delaunay triangulation: give at least 3"):
        solvers.triangulation(np.zeros((2, 2)))


@settings(max_examples=40, deadline=None)
@given(st.integers(3, 12), st.integers(0, 1000), st.booleans(), st.integers(0, 20))
def test_a_polygon_stays_itself_turned_and_reversed(count: int, seed: int, reverse: bool, turn: int) -> None:
    tokens = np.random.default_rng(seed).permutation(count) + 1
    other = np.roll(tokens[::-1] if reverse else tokens, turn).tolist()
    assert same_polygon(tokens.tolist(), other)
    assert same_polygon(tokens.tolist(), [*other, other[0]])
    assert not same_polygon(tokens.tolist(), other[:-1])


def test_simple_polygons_are_told_from_crossing_ones() -> None:
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=float)
    assert is_simple(square)
    assert area(square) == 1
    assert not is_simple(square[[0, 2, 1, 3]])
    assert not is_simple(square[:2])
    assert not is_simple(square[[0, 1, 1, 2]])
    assert not is_simple(np.array([[0, 0], [2, 0], [1, 0], [1, 1.0]]))


def _batch(points: np.ndarray, target: list[int]) -> dict[str, np.ndarray]:
    padded = np.array([[*target, 0]])
    return {"points": points[None], "lengths": np.array([len(points)]), "target": padded}


def test_hull_figures_by_hand() -> None:
    points = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0.5, 0.5]])
    metric = SolveMetric("hull")
    metric.update(np.array([[3, 2, 1, 4, 0]]), _batch(points, [1, 2, 3, 4]))
    assert metric.compute() == {"accuracy": 100, "simple": 100, "area_of_simple": 100, "area_coverage": 100}
    metric.update(np.array([[1, 2, 3, 0, 0]]), _batch(points, [1, 2, 3, 4]))
    assert metric.compute() == {"accuracy": 50, "simple": 100, "area_of_simple": 75, "area_coverage": 75}
    metric.update(np.array([[1, 3, 2, 4, 0]]), _batch(points, [1, 2, 3, 4]))
    found = metric.compute()
    assert found["simple"] == pytest.approx(200 / 3)
    assert found["area_of_simple"] == 75
    assert "area_coverage" not in found  # the literature prints FAIL


def test_tour_and_triangle_figures_by_hand() -> None:
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=float)
    tour = SolveMetric("tsp")
    tour.update(np.array([[1, 3, 2, 4, 0]]), _batch(square, [1, 2, 3, 4]))
    tour.update(np.array([[1, 2, 2, 4, 0]]), _batch(square, [1, 2, 3, 4]))
    assert tour.compute()["valid"] == 50
    assert tour.compute()["gap"] == pytest.approx(100 * ((2 + 2 * 2**0.5) / 4 - 1))
    triangles = SolveMetric("delaunay")
    triangles.update(np.array([[1, 2, 3, 0, 0, 0]]), _batch(square, [1, 2, 3, 1, 3, 4]))
    assert triangles.compute() == {"accuracy": 0, "triangle_coverage": 50}


def test_shift_and_scale_of_a_users_coordinates_change_nothing() -> None:
    points = np.random.default_rng(0).random((6, 2))
    np.testing.assert_allclose(normalised(1e5 * points + 3e6), normalised(points), atol=1e-9)


def test_published_distances() -> None:
    # TSPLIB: the first two nodes of att48 and of burma14 by their definitions; Berlin to Potsdam in km.
    att = Instance(np.array([[6734.0, 1453.0], [2233.0, 10.0]]), metric="att")
    assert distances_of(att)[0, 1] == 1495
    geo = Instance(np.array([[96.10, 16.47], [94.44, 16.47]]), metric="geo")
    assert distances_of(geo)[0, 1] == 153
    cities = Instance(np.array([[13.405, 52.52], [13.065, 52.391]]), metric="haversine")
    assert distances_of(cities)[0, 1] == pytest.approx(27.1, abs=0.2)
    assert distances_of(Instance(np.array([[0, 0], [1.0, 1]]), metric="ceil"))[0, 1] == 2
