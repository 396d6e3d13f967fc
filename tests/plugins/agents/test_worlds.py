"""Environments that need memory."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from stable_baselines3.common.env_checker import check_env

from polyhead.errors import ConfigError
from polyhead_agents import environments
from polyhead_agents.worlds import CARTPOLE, DOWN, FORWARD, TMAZE, UP, TMaze


@pytest.mark.parametrize("name", [TMAZE, CARTPOLE])
def test_they_pass_the_checks_of_stable_baselines3_and_are_made_by_name(name: str) -> None:
    check_env(environments.make(name).unwrapped, warn=True)
    first, again = (environments.make(name).reset(seed=3)[0] for _ in range(2))
    assert first.tolist() == again.tolist()


@pytest.mark.parametrize("right", [True, False])
def test_only_the_way_that_the_sign_told_is_rewarded(right: bool) -> None:
    maze = TMaze(corridor=5)
    signs = set()
    for seed in range(8):
        seen, _ = maze.reset(seed=seed)
        sign, total, over, steps = seen[0], 0.0, False, 0
        signs.add(sign)
        assert seen.tolist() == [sign, 1, 0]
        while not over:
            at_fork = seen[2] == 1
            way = UP if (sign == 1) == right else DOWN
            seen, reward, over, cut, _ = maze.step(way if at_fork else FORWARD)
            assert seen[0] == 0
            total, steps = total + reward, steps + 1
            assert not cut
        assert (total, steps) == (float(right), 6)
    assert signs == {1, -1}


def test_standing_costs_and_ends() -> None:
    maze = TMaze(corridor=5)
    maze.reset(seed=0)
    steps = [maze.step(UP) for _ in range(12)]
    assert sum(step[1] for step in steps) == pytest.approx(-12 / 5)
    assert [step[3] for step in steps] == [False] * 11 + [True]
    with pytest.raises(ConfigError, match=r"corridor is 0, expected 1 or more"):
        TMaze(corridor=0)


def test_a_masked_cartpole_is_cartpole_without_velocities() -> None:
    plain, masked = gymnasium.make("CartPole-v1"), environments.make(CARTPOLE)
    assert environments.horizon_of(masked) == 500
    seen, shown = plain.reset(seed=1)[0], masked.reset(seed=1)[0]
    for action in (0, 1, 1, 0, 1):
        assert shown == pytest.approx(seen[[0, 2]] / np.array([2.4, np.radians(12)]), rel=1e-5)
        seen, shown = plain.step(action)[0], masked.step(action)[0]
