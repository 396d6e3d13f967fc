"""MultiMatch against the package multimatch-gaze, and against hand-computed cases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyhead.errors import ShapeError
from polyhead_gaze.multimatch import multimatch

Path_ = np.ndarray[Any, Any]


def peer(first: list[Path_], second: list[Path_], size: tuple[float, float]) -> np.ndarray[Any, Any]:
    """Return the results of multimatch-gaze."""
    package = pytest.importorskip("multimatch_gaze", reason="multimatch-gaze is not installed")

    def record(path: Path_) -> Any:
        rows = np.zeros(len(path), dtype=[("start_x", "f8"), ("start_y", "f8"), ("duration", "f8")])
        rows["start_x"], rows["start_y"], rows["duration"] = path.T
        return rows

    pairs = zip(first, second, strict=True)
    return np.array([package.docomparison(record(a), record(b), list(size)) for a, b in pairs], dtype=float)


def draw(random: np.random.Generator, count: int, *, grid: bool, longest: int = 25) -> list[Path_]:
    paths = []
    for length in random.integers(1, longest, count):
        at = random.integers(0, 5, (length, 2)) * 100.0 if grid else random.uniform(0, 1000, (length, 2))
        paths.append(np.column_stack([at, random.uniform(0.1, 0.5, length)]))
    return paths


@pytest.mark.parametrize("grid", [False, True], ids=["pixels", "on a grid, with ties"])
def test_equal_to_multimatch_gaze(grid: bool) -> None:
    random = np.random.default_rng(3)
    first, second = draw(random, 300, grid=grid), draw(random, 300, grid=grid)
    found, expected = multimatch(first, second, (1000, 800)), peer(first, second, (1000, 800))
    np.testing.assert_allclose(found, expected, atol=1e-9, rtol=0, equal_nan=True)
    assert np.isnan(found).any(1).any()  # some are too short
    assert np.isfinite(found).all(1).sum() > 200


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(*(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=3, max_size=9) for _ in "ab")),
        min_size=1,
        max_size=4,
    )
)
def test_ties_are_decided_alike(pairs: list[tuple[list[tuple[int, int]], list[tuple[int, int]]]]) -> None:
    first, second = ([np.array([(*at, 1.0) for at in pair[k]], float) for pair in pairs] for k in (0, 1))
    expected = peer(first, second, (3, 3))
    np.testing.assert_allclose(multimatch(first, second, (3, 3)), expected, atol=1e-9, rtol=0)


def test_of_equal_alternatives_the_longer_may_be_the_peers() -> None:
    first = np.array([[2, 1, 1], [0, 2, 1], [1, 2, 1], [2, 0, 1], [0, 0, 1]], float)
    second = np.array([[0, 0, 1], [2, 1, 1], [2, 2, 1], [0, 2, 1], [0, 1, 1], [0, 0, 1]], float)
    expected = peer([first], [second], (3, 3))
    np.testing.assert_allclose(multimatch([first], [second], (3, 3)), expected, atol=1e-9, rtol=0)


def test_of_a_path_with_itself_and_each_on_its_own_screen() -> None:
    random = np.random.default_rng(0)
    paths = [path for path in draw(random, 40, grid=False) if len(path) >= 3]
    np.testing.assert_allclose(multimatch(paths, paths, (1000, 800)), 1, atol=1e-12)
    other = paths[::-1]
    sizes = np.stack([np.arange(1, len(paths) + 1) * 1000.0, np.full(len(paths), 900.0)], -1)
    whole = multimatch(paths, other, sizes)
    for row in (0, len(paths) - 1):
        alone = multimatch([paths[row]], [other[row]], sizes[row])
        np.testing.assert_allclose(whole[row], alone[0])


def test_many_pairs_in_groups_are_what_they_are_alone() -> None:
    random = np.random.default_rng(1)
    first, second = draw(random, 700, grid=False, longest=12), draw(random, 700, grid=False, longest=12)
    whole = multimatch(first, second, (1000, 800))
    for row in (0, 333, 699):
        alone = multimatch([first[row]], [second[row]], (1000, 800))[0]
        np.testing.assert_allclose(whole[row], alone, equal_nan=True)


def test_without_durations_the_fifth_is_unknown() -> None:
    path = np.array([[0.0, 0], [3, 4], [6, 0], [6, 9]])
    assert np.isnan(multimatch([path], [path], (10, 10))[0, 4])
    assert np.isnan(multimatch([path[:2]], [path], (10, 10))).all()


def test_recorded_runs_of_the_published_code(shared: Path) -> None:
    import json

    recorded = json.loads((shared / "golden" / "oat-gaze" / "metrics.json").read_text())["multimatch_grid"]

    def points(path: list[int], columns: int) -> Path_:
        at = np.array(path)
        return np.stack([at % columns, at // columns], -1).astype(float)

    first = [points(case["a"], case["cols"]) for case in recorded]
    second = [points(case["b"], case["cols"]) for case in recorded]
    sizes = [(case["cols"], case["rows"]) for case in recorded]
    found = multimatch(first, second, sizes, pad_short=True)[:, :4]
    np.testing.assert_allclose(found, [case["result"] for case in recorded], atol=1e-9)


def test_short_scanpaths_are_extended_as_published() -> None:
    short, long = np.array([[5.0, 5.0]]), np.array([[5.0, 5.0], [1.0, 1.0], [1.0, 1.0]])
    np.testing.assert_allclose(multimatch([short], [long], (10, 10), pad_short=True)[0, :4], 1)


def test_refused() -> None:
    path = np.zeros((3, 2))
    with pytest.raises(ShapeError, match=r"There are 1 first and 2 second scanpaths: give pairs"):
        multimatch([path], [path, path], (10, 10))
    with pytest.raises(ShapeError, match=r"A scanpath of shape \(3, 4\) is not \(fixations, 2\) or \(fixations, 3\)"):
        multimatch([np.zeros((3, 4))], [path], (10, 10))
