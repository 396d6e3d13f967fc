"""Episodes, windows and splits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from polyhead.errors import DataError
from polyhead.testing import check_dataset
from polyhead_agents.episodes import EpisodeData, Episodes, WindowSource

Make = Callable[..., Episodes]


def test_returns_to_go_and_timesteps_restart_with_each_episode(episodes: Make) -> None:
    made = episodes()  # rewards 0 1 2 | 3 | 4 5 6 7 8
    assert made.returns.tolist() == [3, 3, 30]
    assert made.returns_to_go.tolist() == [3, 3, 2, 3, 30, 26, 21, 15, 8]
    assert made.timesteps.tolist() == [0, 1, 2, 0, 0, 1, 2, 3, 4]


def test_windows_are_all_of_their_length_and_short_episodes_are_padded(episodes: Make) -> None:
    source = WindowSource(episodes(), np.arange(3), 3)
    assert len(source) == 1 + 1 + 3
    batch = source.fetch(range(5))
    assert batch["mask"].tolist() == [[True] * 3, [True, False, False], [True] * 3, [True] * 3, [True] * 3]
    assert batch["timesteps"].tolist() == [[0, 1, 2], [0, 0, 0], [0, 1, 2], [1, 2, 3], [2, 3, 4]]
    assert batch["returns_to_go"][1].tolist() == [3, 0, 0]
    assert not batch["states"][1, 1:].any()


@pytest.mark.parametrize("env", ["", "CartPole-v1"])
def test_splits_are_apart_and_none_is_empty(episodes: Make, env: str) -> None:
    data = EpisodeData(episodes((2,) * 25), 4, "made-up", "Made up.", env=env)
    parts = [set(data.chosen(split).tolist()) for split in ("train", "validation", "test")]
    assert sum(map(len, parts)) == 25
    assert set().union(*parts) == set(range(25))
    assert bool(parts[2]) != bool(env)


def test_three_episodes_of_one_step_can_be_learned_from(episodes: Make) -> None:
    data = EpisodeData(episodes((1, 1, 1)), 20, "made-up", "Made up.")
    for split in ("train", "validation", "test"):
        assert len(data.source(split)) == 1  # type: ignore[arg-type]  # see Source


def test_the_embedded_recording_conforms() -> None:
    assert check_dataset("cartpole-ppo")


def test_faults_are_named(episodes: Make) -> None:
    rewards = np.ones(9, dtype=np.float32)
    rewards[[3, 6]] = np.nan
    with pytest.raises(DataError, match=r"not finite: reward of episode 1, step 0; reward of episode 2, step 2\. "):
        episodes(rewards=rewards)
    with pytest.raises(DataError, match=r"episodes of 3 steps do not fit each other"):
        episodes(lengths=(3,), rewards=rewards)
    with pytest.raises(DataError, match=r"has no episode with a step"):
        episodes(lengths=())
    with pytest.raises(DataError, match=r"has actions from 0 to 1, of 1\. They have to count from 0"):
        episodes(act_dim=1)
    with pytest.raises(DataError, match=r"2 episode\(s\) with a step: at least 3 are needed"):
        EpisodeData(episodes((3, 3)), 4, "made-up", "Made up.")
