"""Record episodes, and the command `agent-train record`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from polyhead.artifacts import atomic_file
from polyhead.errors import ConfigError, NonFiniteError, StorageError

if TYPE_CHECKING:
    from polyhead_agents.episodes import Episodes
    from polyhead_agents.policies import Policy

__all__ = ["record", "record_episodes", "write_minari"]


def record_episodes(policy: Policy, name: str, *, episodes: int, seed: int) -> Episodes:
    """Play episodes with a policy, one after the other, and return them; episode i begins with seed + i.

    Raises:
        NonFiniteError: a reward that is not finite.
    """
    from polyhead_agents import environments
    from polyhead_agents.episodes import Episodes

    environment = environments.make(name)
    spaces = environments.spaces_of(environment, name)
    seen: list[Any] = []
    done: list[Any] = []
    rewards: list[float] = []
    lengths: list[int] = []
    for number in range(episodes):
        observation, _ = environment.reset(seed=seed + number)
        steps, over = 0, False
        while not over:
            action = policy.act(np.asarray(observation, dtype=np.float32)[None])[0]
            seen.append(observation)
            done.append(action)
            observation, reward, terminated, truncated, _ = environment.step(int(action) if spaces.discrete else action)
            if not np.isfinite(float(reward)):
                raise NonFiniteError(f'Environment "{name}", episode {number}, step {steps}: reward {reward}.')
            rewards.append(float(reward))
            steps += 1
            over = terminated or truncated
        lengths.append(steps)
    environment.close()
    return Episodes(
        observations=np.asarray(seen, dtype=np.float32),
        actions=np.asarray(done, dtype=np.int64 if spaces.discrete else np.float32),
        rewards=np.asarray(rewards, dtype=np.float32),
        lengths=np.asarray(lengths, dtype=np.int64),
        name=name,
        act_dim=spaces.act_dim,
    )


def write_minari(episodes: Episodes, path: Path, *, about: str) -> None:
    """Write episodes in the layout of Minari's ``main_data.hdf5``, whole or not at all.

    What is seen behind the last action is not recorded: the last observation stands there twice.
    """
    import h5py

    with atomic_file(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs["total_episodes"] = len(episodes.lengths)
        file.attrs["total_steps"] = len(episodes.rewards)
        file.attrs["description"] = about
        for number, (start, length) in enumerate(zip(episodes.starts, episodes.lengths, strict=True)):
            steps = slice(start, start + length)
            group = file.create_group(f"episode_{number}")
            group.attrs["id"] = number
            seen = episodes.observations[steps]
            group["observations"] = np.concatenate([seen, seen[-1:]])
            group["actions"] = episodes.actions[steps]
            group["rewards"] = episodes.rewards[steps]


def record(
    env: Annotated[str, typer.Option(help="Environment, e.g. CartPole-v1; your own: package:Id.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="HDF5 file to write.", show_default=False)],
    policy: Annotated[
        str, typer.Option(help="sb3:ppo trains one; a .zip archive of Stable-Baselines3; random.")
    ] = "sb3:ppo",
    train_steps: Annotated[int, typer.Option(min=1, help="sb3:ppo: steps it is trained for.")] = 10_000,
    episodes: Annotated[int, typer.Option(min=1, help="Episodes to record.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Seed of training, actions and episodes.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Record episodes of a policy, as a file that --data takes."""
    from polyhead_agents import environments, policies
    from polyhead_apps.console import Console

    console = Console(quiet=quiet)
    if out.exists() and not force:
        raise StorageError(f"--out {out} exists: name another file, or replace it with --force.")
    spaces = environments.spaces_of(environments.make(env), env)
    chosen = _policy(policy, env, spaces, policies, train_steps=train_steps, seed=seed)
    recorded = record_episodes(chosen, env, episodes=episodes, seed=seed)
    about = f"{env}: {chosen.text}, {episodes} episodes, seeds from {seed}"
    write_minari(recorded, out, about=about)
    console.table(["figure", "value"], _figures(recorded.returns, recorded.lengths))
    console.line(f"made {out}: {about}. Next: agent-train fit --data {out} --env {env}")


def _policy(policy: str, env: str, spaces: Any, policies: Any, *, train_steps: int, seed: int) -> Policy:
    made: Policy
    if policy == "random":
        made = policies.chance(spaces, seed=seed)
    elif policy == "sb3:ppo":
        made = policies.trained_ppo(env, spaces, steps=train_steps, seed=seed)
    elif policy.removeprefix("sb3:").endswith(".zip"):
        made = policies.from_archive(Path(policy.removeprefix("sb3:")), spaces, seed=seed)
    else:
        raise ConfigError(f'--policy "{policy}" is none. All: sb3:ppo, random, or an archive ending in .zip')
    return made


def _figures(returns: Any, lengths: Any) -> Sequence[Sequence[Any]]:
    return [
        ["episodes", len(returns)],
        ["steps", int(lengths.sum())],
        ["return, mean", float(returns.mean())],
        ["return, least", float(returns.min())],
        ["return, largest", float(returns.max())],
    ]
