"""Environments that only an agent with memory solves; importing this registers them with Gymnasium."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control import CartPoleEnv
from numpy.typing import NDArray

from polyhead.errors import ConfigError

__all__ = ["CARTPOLE", "TMAZE", "MaskedCartPole", "TMaze"]

TMAZE = "polyhead/TMaze-v0"
CARTPOLE = "polyhead/CartPoleNoVelocity-v1"
FORWARD, UP, DOWN, BACK = range(4)
SHOWN = [0, 2]


class TMaze(gymnasium.Env[NDArray[np.float32], np.int64]):
    """A corridor with a fork at its end; which way to take is told at its beginning only.

    An observation is (sign, in the corridor, at the fork): the sign is 1 or −1 at the first step and 0 after it.
    Actions: forward, up, down, back. A step in the corridor that does not lead forward costs 1 / corridor, so that
    walking is easily learned. Up or down at the fork ends the episode, with a reward of 1 if it was the right way; a
    return of 1 is the largest, and an agent without memory gets 0.5 at most. After 2 (corridor + 1) steps an episode
    is cut off.

    Source: Bakker 2001, Reinforcement learning with long short-term memory. Differs: the cost of standing, as in Ni et
    al. 2023, arXiv:2307.03864, and no cost of the wrong way.
    """

    def __init__(self, corridor: int = 50) -> None:
        """Make a maze whose fork is so many steps away.

        Raises:
            ConfigError: a corridor below 1.
        """
        if corridor < 1:
            raise ConfigError(f"corridor is {corridor}, expected 1 or more.")
        self.corridor = corridor
        self.observation_space = spaces.Box(-1.0, 1.0, (3,), np.float32)
        self.action_space = spaces.Discrete(4)
        self.place, self.time, self.sign = 0, 0, 1

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin at the sign."""
        super().reset(seed=seed, options=options)
        self.place, self.time = 0, 0
        self.sign = 1 if self.np_random.integers(2) else -1
        return self._look(), {}

    def step(self, action: np.int64 | int) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Go."""
        self.time += 1
        reward, over = 0.0, False
        if self.place == self.corridor and action in (UP, DOWN):
            over = True
            reward = float((action == UP) == (self.sign == 1))
        elif self.place < self.corridor and action == FORWARD:
            self.place += 1
        else:
            self.place -= int(action == BACK and self.place > 0)
            reward = -1 / self.corridor
        return self._look(), reward, over, not over and self.time >= 2 * (self.corridor + 1), {}

    def _look(self) -> NDArray[np.float32]:
        fork = self.place == self.corridor
        return np.array([self.sign if self.time == 0 else 0, not fork, fork], dtype=np.float32)


class MaskedCartPole(gymnasium.ObservationWrapper[NDArray[np.float32], np.int64, NDArray[np.float32]]):
    """CartPole that shows positions and no velocities.

    An observation is (position of the cart, angle of the pole), as shares of those at which an episode ends.
    """

    def __init__(self, render_mode: str | None = None) -> None:
        """Make the environment."""
        inner: Any = CartPoleEnv(render_mode=render_mode)
        super().__init__(inner)
        self.ends = np.array([inner.x_threshold, inner.theta_threshold_radians], dtype=np.float32)
        # CartPole's own bounds are twice as far as the ends, which the last observation passes.
        self.observation_space = spaces.Box(-2.0, 2.0, (2,), np.float32)

    def observation(self, observation: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what is shown."""
        return observation[SHOWN] / self.ends


gymnasium.register(TMAZE, entry_point=f"{__name__}:TMaze", reward_threshold=0.95)
gymnasium.register(CARTPOLE, entry_point=f"{__name__}:MaskedCartPole", reward_threshold=475.0, max_episode_steps=500)
