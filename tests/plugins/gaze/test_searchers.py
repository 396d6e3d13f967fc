"""Simulated searchers: displays as described, and viewers who choose as they say."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from polyhead.testing import check_dataset
from polyhead_gaze.searchers import (
    FEATURES,
    MOST_STEPS,
    PROTOTYPES,
    STAY,
    STOP,
    SearcherData,
    _generator,
    choice,
    draw_display,
    search,
)
from polyhead_gaze.settings import DisplaySettings


def test_conformance() -> None:
    check_dataset("simulated-searchers", settings={"displays": 12, "test_displays": 6})


@pytest.mark.parametrize("split", ["train", "test"])
def test_displays(split: str) -> None:
    for index in range(20):
        display, target = draw_display(split, index)  # type: ignore[arg-type]
        again, _ = draw_display(split, index)  # type: ignore[arg-type]
        np.testing.assert_array_equal(display.boxes, again.boxes)
        assert 24 <= len(display.boxes) <= 40
        assert 0 <= target < len(display.boxes)
        assert display.place.min() == 0
        assert display.place.max() < 9.5
        assert (display.boxes[:, :2] < display.boxes[:, 2:]).all()
        assert (display.boxes >= 0).all()
        assert (display.boxes[:, 2:] <= display.size).all()


def test_targets_of_tests_look_like_none_of_training() -> None:
    prototypes = _generator(9).normal(0, 1, (PROTOTYPES, FEATURES))

    def kinds(split: str) -> list[int]:
        found = []
        for index in range(40):
            display, target = draw_display(split, index)  # type: ignore[arg-type]
            assert display.appearance is not None
            found.append(int(((prototypes - display.appearance[target]) ** 2).sum(1).argmin()))
        return found

    # The noise of 0.3 seldom makes an object more like another prototype.
    assert np.mean([kind < 9 for kind in kinds("train")]) > 0.9
    assert np.mean([kind >= 9 for kind in kinds("test")]) > 0.9
    assert not np.array_equal(draw_display("train", 0)[0].boxes, draw_display("test", 0)[0].boxes)


def test_choices_by_the_formula() -> None:
    display, target = draw_display("train", 3)
    looks = np.asarray(display.appearance, dtype=float)
    path = [4, 9, 4]
    chances = choice(display, target, path)
    weights = []
    for k in range(len(looks)):
        distance = math.dist(display.place[k], display.place[4])
        cosine = looks[k] @ looks[target] / np.linalg.norm(looks[k]) / np.linalg.norm(looks[target])
        weights.append(math.exp(-(distance**2) / (2 * 2.2**2) + 1.5 * cosine - 2.5 * (k in path)) * (k != 4))
    expected = (1 - STAY) * np.array(weights) / sum(weights)
    expected[4] = STAY
    stop = STOP if target == 4 else 0
    np.testing.assert_allclose(chances, [*(1 - stop) * expected, stop])
    assert choice(display, target, [])[-1] == 0
    assert choice(display, target, [target])[-1] == STOP
    assert chances.sum() == pytest.approx(1)


def test_viewers_follow_them() -> None:
    display, target = draw_display("test", 1)
    random = np.random.default_rng(0)
    paths = [search(display, target, random) for _ in range(400)]
    first = np.bincount([path[0] for path in paths], minlength=len(display.boxes)) / len(paths)
    assert float(np.abs(first - choice(display, target, [])[:-1]).max()) < 0.07
    stays = [a == b for path in paths for a, b in itertools.pairwise(path)]
    assert np.mean(stays) == pytest.approx(STAY, abs=0.03)
    assert np.mean([path[-1] == target for path in paths if len(path) < MOST_STEPS]) == 1


def test_the_splits_are_of_the_settings() -> None:
    data = SearcherData(DisplaySettings(displays=8, test_displays=6, viewers=3))
    assert [len(data.source(split)) for split in ("train", "validation", "test")] == [8, 6, 18]
    batch = data.source("test").fetch([0, 1, 4], seed=0, epoch=0)
    assert batch["display"].tolist() == [0, 0, 1]
    assert data.fingerprint() != SearcherData(DisplaySettings(displays=9)).fingerprint()


def test_training_displays_are_turned() -> None:
    data = SearcherData(DisplaySettings(displays=16, test_displays=2))
    source = data.source("train")
    epochs = [source.fetch(range(16), seed=0, epoch=epoch)["place"] for epoch in (0, 1)]
    still = SearcherData(DisplaySettings(displays=16, test_displays=2, flip=False, turn_features=False)).source("train")
    plain = still.fetch(range(16), seed=0, epoch=0)["place"]
    turned = [(epoch != plain).any(-1).any(-1).float().mean() for epoch in epochs]
    assert all(0.4 < float(share) < 1 for share in turned)
    assert (epochs[0] != epochs[1]).any()
    assert (epochs[0].amax(1) - plain.amax(1)).abs().max() < 1e-5
    looks = [each.fetch(range(16), seed=0, epoch=0)["appearance"] for each in (source, still)]
    assert (looks[0] - looks[1]).abs().amax((1, 2)).min() > 0.1
    torch.testing.assert_close(looks[0] @ looks[0].mT, looks[1] @ looks[1].mT, atol=1e-3, rtol=1e-4)
