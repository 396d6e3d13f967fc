"""Baselines: viewers of one rule, whose probabilities are probabilities and whose fit is the best of their kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from polyhead_gaze.baselines import RuleViewer, Scenes, baselines, distance_markov, nearest, uniform
from polyhead_gaze.searchers import SearcherData
from polyhead_gaze.settings import DisplaySettings

NAMES = (
    "uniform",
    "centre",
    "nearest neighbour",
    "appearance",
    "distance-Markov",
    "distance-Markov, knows the target",
    "other viewers",
)


@pytest.fixture(scope="module")
def data() -> SearcherData:
    return SearcherData(DisplaySettings(displays=120, test_displays=20))


@pytest.fixture(scope="module")
def found(data: SearcherData) -> dict[str, Any]:
    return baselines(data, most=30, samples=5)


def test_all_of_them_predict(data: SearcherData, found: dict[str, Any]) -> None:
    assert tuple(found) == NAMES
    batch = data.source("test").fetch(range(10), seed=0, epoch=0)
    for name, viewer in found.items():
        prediction = viewer(batch)
        paths = np.asarray(prediction["paths"])
        assert paths.shape[0] == 10
        assert (paths[:, 0, 0] >= 0).all()
        real = paths >= 0
        assert (real[..., :-1] | ~real[..., 1:]).all()  # no gaps
        there = np.asarray(batch["objects"]).sum(1)
        assert (paths < there[:, None, None]).all()
        if name != "other viewers":
            again = viewer({key: value[3:5] for key, value in batch.items()})
            np.testing.assert_array_equal(again["paths"], paths[3:5])
            np.testing.assert_allclose(again["nll"], prediction["nll"][3:5])


def test_probabilities_sum_to_one_at_every_step(data: SearcherData, found: dict[str, Any]) -> None:
    scenes = Scenes(data.source("test").fetch(range(8), seed=0, epoch=0))
    seen = np.zeros(scenes.objects.shape, bool)
    seen[:, :3] = True
    for name in NAMES[:-1]:
        for current in (np.full(8, -1), np.full(8, 2), scenes.target):
            chances = found[name].probabilities(scenes, current, seen)
            np.testing.assert_allclose(chances.sum(1), 1)
            assert (chances[:, :-1][~scenes.objects] == 0).all()
            assert (chances[:, -1] == 0).all() == (current[0] < 0)


def test_uniform_by_hand(data: SearcherData) -> None:
    batch = data.source("test").fetch([0], seed=0, epoch=0)
    count, steps = int(batch["objects"].sum()), int((batch["fixations"] >= 0).sum())
    viewer = RuleViewer(uniform, (0.1, 0.1), most=9, samples=1)
    expected = steps * np.log(count) - (steps - 1) * np.log(0.9) - np.log(0.1)
    assert viewer(batch)["nll"][0] == pytest.approx(expected)


def test_nearest_goes_to_the_nearest_not_yet_seen(data: SearcherData) -> None:
    scenes = Scenes(data.source("test").fetch([0], seed=0, epoch=0))
    seen = np.zeros(scenes.objects.shape, bool)
    seen[0, 5] = True
    weights = nearest(0.0)(scenes, np.array([5]), seen)[0]
    distance = np.sqrt(((scenes.place[0] - scenes.place[0, 5]) ** 2).sum(-1))
    distance[[5, *np.flatnonzero(~scenes.objects[0])]] = np.inf
    assert weights.argmax() == distance.argmin()
    assert weights.max() == 1


def test_fitted_distances_are_likelier_than_others(data: SearcherData, found: dict[str, Any]) -> None:
    source = data.source("train")
    batch = source.fetch(range(len(source)), seed=0, epoch=0)
    best = found["distance-Markov"](batch)["nll"].sum()
    flat = RuleViewer(distance_markov(np.ones(30), np.ones(30)), found["uniform"].stop, most=9, samples=1)
    assert best < flat(batch)["nll"].sum() - 50
    assert found["distance-Markov, knows the target"](batch)["nll"].sum() < best
    assert found["nearest neighbour"](batch)["nll"].sum() <= found["uniform"](batch)["nll"].sum() + 1e-6


def test_other_viewers_are_those_of_the_display(data: SearcherData, found: dict[str, Any]) -> None:
    source = data.source("test")
    batch = source.fetch([0, 3], seed=0, epoch=0)
    paths = np.asarray(found["other viewers"](batch)["paths"])
    for row, other in enumerate((1, 2)):
        path = paths[row, 0]
        assert tuple(path[path >= 0]) == source.trial(other).path
