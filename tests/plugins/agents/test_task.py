"""The task offline-rl."""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from polyhead.errors import CheckpointError, ConfigError, DataError, MissingExtraError
from polyhead.testing import check_task
from polyhead_agents.episodes import EpisodeData, Episodes
from polyhead_agents.report import animation, pictures
from polyhead_agents.settings import OfflineTaskSettings, PlaySettings
from polyhead_agents.task import OfflineTask

Make = Callable[..., Episodes]
TINY = {"dim": 8, "depth": 1}


@pytest.fixture
def data(episodes: Make) -> EpisodeData:
    return EpisodeData(episodes((6,) * 12), 4, "made-up", "Made up.", env="CartPole-v1", horizon=500, play_episodes=3)


def test_the_registered_task_conforms() -> None:
    assert check_task("agents/offline-rl")
    assert check_task("agents/offline-rl", model="decision-transformer")


def test_it_conforms_without_an_environment_and_with_continuous_actions(episodes: Make) -> None:
    made = EpisodeData(episodes((6,) * 12, discrete=False), 4, "made-up", "Made up.")
    task = OfflineTask.prepare(made, OfflineTaskSettings(), seed=0)
    model = task.build_model("decision-aaren", TINY)
    for name, baseline in {**task.baselines(made), "model": lambda batch: task.predict(model, batch)}.items():
        metric = task.metric()
        batch = made.source("test").fetch([0], seed=0, epoch=0)
        with torch.no_grad():
            metric.update(baseline(batch), batch)
        assert 0 < metric.compute()["action_error"] < 4, name
    assert [picture.title for picture in pictures(task, model, made)] == ["Returns of the recording"]
    with pytest.raises(DataError, match=r"names no environment to play\. Give --env"):
        task.write_predictions(model, made, Path(), PlaySettings())


def test_normalisation_is_of_the_training_episodes_and_travels_with_the_weights(data: EpisodeData) -> None:
    task = OfflineTask.prepare(data, OfflineTaskSettings(), seed=0)
    steps = np.concatenate([np.arange(6 * i, 6 * i + 6) for i in data.chosen("train")])
    seen = data.episodes.observations[steps]
    model = task.build_model("decision-aaren", TINY)
    assert model.state_dict()["state_mean"].numpy() == pytest.approx(seen.mean(axis=0), abs=1e-6)
    assert model.state_dict()["return_scale"] == data.episodes.returns_to_go[steps].max()
    assert task.target == data.episodes.returns[data.chosen("train")].max()
    assert OfflineTask.prepare(data, OfflineTaskSettings(target_return=3), seed=0).target == 3


def test_the_recorded_policy_has_its_own_mean(data: EpisodeData) -> None:
    task = OfflineTask.prepare(data, OfflineTaskSettings(), seed=0)
    returns = task.baselines(data)["recorded policy"](data.source("test").fetch(range(3), seed=0, epoch=0))["return"]
    assert returns.mean() == pytest.approx(np.quantile(data.episodes.returns, [1 / 6, 1 / 2, 5 / 6]).mean())


def test_predictions_are_a_line_an_episode(data: EpisodeData, tmp_path: Path) -> None:
    task = OfflineTask.prepare(data, OfflineTaskSettings(), seed=0)
    model = task.build_model("decision-aaren", TINY).eval()
    (file,) = task.write_predictions(model, data, tmp_path, PlaySettings(episodes=4, memory="episode"))
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert [row["seed"] for row in rows] == ["2000000", "2000001", "2000002", "2000003"]
    assert all(float(row["return"]) == float(row["length"]) >= 8 for row in rows)


def test_rendering_draws_or_says_what_is_missing(data: EpisodeData, tmp_path: Path) -> None:
    task = OfflineTask.prepare(data, OfflineTaskSettings(), seed=0)
    model = task.build_model("decision-aaren", TINY).eval()
    if importlib.util.find_spec("pygame") is None:  # what Gymnasium draws with
        with pytest.raises(MissingExtraError, match=r'"CartPole-v1" cannot be drawn: .*polyhead-agents\[render\]'):
            task.write_predictions(model, data, tmp_path, PlaySettings(render=True))
        return
    files = task.write_predictions(model, data, tmp_path, PlaySettings(render=True))
    assert files[1].read_bytes()[:6] == b"GIF89a"


def test_animations_move_and_are_no_larger_than_asked() -> None:
    from io import BytesIO

    from PIL import Image

    frames = [np.full((400, 600, 3), value, dtype=np.uint8) for value in (0, 80, 160, 240)]
    forms: tuple[Literal["GIF", "PNG"], ...] = ("GIF", "PNG")
    for form in forms:
        with Image.open(BytesIO(animation(frames, form))) as image:
            assert (image.size, getattr(image, "n_frames", 1)) == ((300, 200), 4)
    with pytest.raises(DataError, match=r"draws no pictures: leave --render out"):
        animation([], "GIF")


def test_what_does_not_fit_is_refused(data: EpisodeData, episodes: Make) -> None:
    task = OfflineTask.prepare(data, OfflineTaskSettings(), seed=0)
    with pytest.raises(ConfigError, match=r"model.state_dim is 5, but the data have 4\. Leave it out"):
        task.build_model("decision-aaren", {"state_dim": 5})
    with pytest.raises(ConfigError, match=r"model.max_timestep is 100, and episodes have up to 500 steps"):
        task.build_model("decision-aaren", {"max_timestep": 100})
    other = EpisodeData(episodes((6,) * 12, discrete=False), 4, "other", "Made up.")
    with pytest.raises(DataError, match=r"other has 1 choices or numbers in an action, the model was fitted with 2"):
        task.check(other)
    two = np.zeros((72, 2), dtype=np.float32)
    vectors = EpisodeData(episodes((6,) * 12, actions=two), 4, "other", "Made up.")
    with pytest.raises(DataError, match=r"has actions that are vectors, the model was fitted with choices"):
        task.check(vectors)
    with pytest.raises(CheckpointError, match=r"does not fit this version: target\. Fit the model again"):
        OfflineTask.restore({name: value for name, value in task.state().items() if name != "target"})


def test_an_empty_share_of_a_batch_costs_nothing(data: EpisodeData) -> None:
    task = OfflineTask.prepare(data, OfflineTaskSettings(), seed=0)
    model = task.build_model("decision-aaren", TINY)
    with torch.no_grad():
        (ratio,) = task.loss(model, data.source("train").fetch([], seed=0, epoch=0)).values()
    assert (float(ratio.total), int(ratio.count)) == (0, 0)
    assert torch.isfinite(ratio.total)
