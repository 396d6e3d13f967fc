"""Make the embedded recording: ``python -m polyhead_agents.embedded FILE.npz``."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import numpy as np

from polyhead.artifacts import atomic_file
from polyhead_agents import environments, policies
from polyhead_agents.episodes import Episodes
from polyhead_agents.recording import record_episodes

__all__ = ["main", "recording"]

ENV = "CartPole-v1"
TRAIN_STEPS = 14_000
EPISODES = 150
SEED = 0


def recording() -> tuple[Episodes, str]:
    """Train the policy for a while, let it play, and return the episodes and what they are."""
    spaces = environments.spaces_of(environments.make(ENV), ENV)
    policy = policies.trained_ppo(ENV, spaces, steps=TRAIN_STEPS, seed=SEED)
    episodes = record_episodes(policy, ENV, episodes=EPISODES, seed=SEED)
    version = importlib.metadata.version("gymnasium")
    return episodes, f"{ENV} of Gymnasium {version}, played by {policy.text}"


def main(file: Path) -> None:
    """Write the recording."""
    episodes, about = recording()
    with atomic_file(file) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(
            stream,
            observations=episodes.observations,
            actions=episodes.actions.astype(np.uint8),
            lengths=episodes.lengths.astype(np.int32),
            about=np.array(about),
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
