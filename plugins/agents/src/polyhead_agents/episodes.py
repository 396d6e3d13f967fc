"""Recorded episodes in memory, and their windows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from polyhead.errors import DataError
from polyhead.protocols import Batch, Source, Split

__all__ = ["EpisodeData", "Episodes", "PlaySource", "WindowSource"]

MAX_PROBLEMS = 10
PLAY_SEEDS = 1_000_000
"""Test episode i begins with this seed plus i: far from those of recordings."""


@dataclass(frozen=True, eq=False)
class Episodes:
    """Episodes, one behind the other.

    Raises:
        DataError: arrays that do not fit each other, none with a step, numbers that are not finite, odd actions.
    """

    observations: NDArray[np.float32]
    """(S, state_dim): what was seen before each action."""
    actions: NDArray[Any]
    """(S,) int64, or (S, act_dim) float32."""
    rewards: NDArray[np.float32]
    """(S,): for each action."""
    lengths: NDArray[np.int64]
    """(E,): steps of each episode, at least 1."""
    name: str
    act_dim: int
    dropped: int = 0
    """Episodes without a step, which were left out."""

    def __post_init__(self) -> None:
        """Check that the parts fit each other and are what can be learned from."""
        steps = int(self.lengths.sum())
        sizes = {len(self.observations), len(self.actions), len(self.rewards), steps}
        if len(sizes) > 1 or self.observations.ndim != 2:
            raise DataError(
                f"{self.name}: observations {self.observations.shape}, actions {self.actions.shape}, rewards "
                f"{self.rewards.shape} and episodes of {steps} steps do not fit each other."
            )
        if not len(self.lengths):
            raise DataError(f"{self.name} has no episode with a step. Record some: agent-train record.")
        problems = []
        for what in ("observations", "actions", "rewards"):
            values = getattr(self, what)
            if values.dtype.kind != "f":
                continue
            finite = np.isfinite(values).reshape(steps, -1).all(axis=1)
            problems += [f"{what[:-1]} of {self.place(int(step))}" for step in np.flatnonzero(~finite)]
        if problems:
            shown = "; ".join(problems[:MAX_PROBLEMS])
            more = f"; and {len(problems) - MAX_PROBLEMS} more" if len(problems) > MAX_PROBLEMS else ""
            raise DataError(f"{self.name}: not finite: {shown}{more}. Leave such episodes out.")
        if self.discrete and not 0 <= self.actions.min() <= self.actions.max() < self.act_dim:
            raise DataError(
                f"{self.name} has actions from {self.actions.min()} to {self.actions.max()}, of {self.act_dim}. "
                "They have to count from 0."
            )

    @property
    def discrete(self) -> bool:
        """Whether actions are choices."""
        return self.actions.ndim == 1

    @property
    def state_dim(self) -> int:
        """Numbers in an observation."""
        return int(self.observations.shape[1])

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """(E,): the first step of each episode."""
        return np.concatenate([[0], np.cumsum(self.lengths)[:-1]]).astype(np.int64)

    @cached_property
    def returns(self) -> NDArray[np.float64]:
        """(E,): the sum of the rewards of each episode."""
        return np.add.reduceat(self.rewards.astype(np.float64), self.starts)

    @cached_property
    def returns_to_go(self) -> NDArray[np.float32]:
        """(S,): the sum of rewards from each step to the end of its episode."""
        total = np.cumsum(self.rewards.astype(np.float64))
        ends = np.repeat(total[self.starts + self.lengths - 1], self.lengths)
        return (ends - total + self.rewards).astype(np.float32)

    @cached_property
    def timesteps(self) -> NDArray[np.int64]:
        """(S,): number of each step in its episode, from 0."""
        return np.arange(len(self.rewards)) - np.repeat(self.starts, self.lengths)

    def place(self, step: int) -> str:
        """Return where a step is, for messages."""
        episode = int(np.searchsorted(self.starts, step, side="right")) - 1
        return f"episode {episode}, step {step - int(self.starts[episode])}"


class WindowSource:
    """Windows of up to ``context`` steps, shorter episodes padded behind their end."""

    def __init__(self, episodes: Episodes, chosen: NDArray[np.int64], context: int) -> None:
        """Take the windows of the episodes ``chosen``."""
        self.episodes, self.context = episodes, context
        counts = np.maximum(episodes.lengths[chosen] - context + 1, 1)
        first = np.repeat(episodes.starts[chosen], counts)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        self.first = first + within
        self.steps = np.minimum(np.repeat(episodes.lengths[chosen], counts), context)

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.first)

    def fetch(self, indices: Sequence[int], *, seed: int = 0, epoch: int = 0) -> Batch:  # noqa: ARG002  # not random
        """Return windows: ``returns_to_go``, ``states``, ``actions``, ``timesteps``, ``mask``, each (B, T, …)."""
        data = self.episodes
        index = np.asarray(indices, dtype=np.int64)
        offsets = np.arange(self.context)
        mask = offsets < self.steps[index, None]
        at = np.where(mask, self.first[index, None] + offsets, self.first[index, None])
        rows = {
            "returns_to_go": data.returns_to_go[at] * mask,
            "states": data.observations[at] * mask[..., None],
            "actions": data.actions[at] * (mask if data.discrete else mask[..., None]),
            "timesteps": data.timesteps[at] * mask,
            "mask": mask,
        }
        return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in rows.items()}


class PlaySource:
    """Episodes to be played: each sample is the seed that an environment is reset with."""

    def __init__(self, env: str, episodes: int) -> None:
        """Ask for so many episodes of an environment."""
        self.env, self.episodes = env, episodes

    def __len__(self) -> int:
        """Return the number of episodes."""
        return self.episodes

    def fetch(self, indices: Sequence[int], *, seed: int = 0, epoch: int = 0) -> Batch:  # noqa: ARG002  # not random
        """Return ``play``, int64 (B,), the seeds; and ``env``, the environment's name for each."""
        seeds = torch.tensor(list(indices), dtype=torch.int64) + PLAY_SEEDS
        return {"play": seeds, "env": [self.env] * len(indices)}


@dataclass(frozen=True, eq=False)
class EpisodeData:
    """Recorded episodes, split into training and validation; the test is to play, where the environment is known.

    Every tenth episode is for validation. Without an environment another tenth is the test.

    Raises:
        DataError: too few episodes to split.
    """

    episodes: Episodes
    context: int
    name: str
    provenance: str
    licence: str = "yours"
    env: str = ""
    """Name of the environment; empty if there is none to play."""
    horizon: int | None = None
    """Steps after which the environment cuts an episode off."""
    play_episodes: int = 20
    low: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    high: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))

    def __post_init__(self) -> None:
        """Check that every split has an episode."""
        need = 2 if self.env else 3
        if len(self.episodes.lengths) < need:
            raise DataError(
                f"{self.name} has {len(self.episodes.lengths)} episode(s) with a step: at least {need} are needed to "
                "hold some out. Record more."
            )

    def chosen(self, split: Split) -> NDArray[np.int64]:
        """Return the episodes of a split."""
        number = np.arange(len(self.episodes.lengths))
        every = min(10, len(number))
        validation = number % every == every - 1
        test = (number % every == every - 2) & (not self.env)
        return number[{"train": ~validation & ~test, "validation": validation, "test": test}[split]]

    def source(self, split: Split) -> Source:
        """Return the windows of a split, or the episodes to be played."""
        if split == "test" and self.env:
            return PlaySource(self.env, self.play_episodes)
        return WindowSource(self.episodes, self.chosen(split), self.context)

    def summary(self) -> Mapping[str, Any]:
        """Return sizes and returns."""
        data = self.episodes
        return {
            "episodes": len(data.lengths),
            "steps": len(data.rewards),
            "shortest": int(data.lengths.min()),
            "longest": int(data.lengths.max()),
            "left out without a step": data.dropped,
            "observation": f"{data.state_dim} numbers",
            "action": f"one of {data.act_dim}" if data.discrete else f"{data.act_dim} numbers",
            "return, mean": round(float(data.returns.mean()), 3),
            "return, least": round(float(data.returns.min()), 3),
            "return, largest": round(float(data.returns.max()), 3),
            "environment": self.env or "none: give --env to play",
        }

    def fingerprint(self) -> str:
        """Return a digest of the episodes."""
        digest = hashlib.sha256(self.env.encode())
        data = self.episodes
        for array in (data.observations, data.actions, data.rewards, data.lengths):
            digest.update(str((array.shape, array.dtype.str)).encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()
