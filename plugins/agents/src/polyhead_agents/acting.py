"""Play environments: with a decision model, with chance, or with any policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from gymnasium import error
from numpy.typing import NDArray
from torch import Tensor

from polyhead.errors import DataError, MissingExtraError, NonFiniteError
from polyhead.nn import states
from polyhead_agents import environments
from polyhead_agents.decision import DecisionModel, DecisionState

__all__ = ["Memory", "Played", "play", "play_at_random", "play_policy"]

Memory = Literal["window", "episode"]
"""What an agent acts on: the last ``context`` steps, computed anew, or a state carried since the episode began."""
MAX_STEPS = 100_000
"""Of an episode in an environment that never cuts one off."""


class Played(NamedTuple):
    """Episodes that were played."""

    returns: NDArray[np.float64]
    """(B,): sums of rewards."""
    lengths: NDArray[np.int64]
    """(B,): steps."""
    frames: list[NDArray[np.uint8]]
    """Pictures of the first episode, (height, width, 3) each; empty if none were asked for."""


class _Table:
    """Several copies of an environment, side by side; finished ones leave."""

    def __init__(self, name: str, seeds: Sequence[int], spaces: environments.Spaces, *, render: bool) -> None:
        self.environments = [environments.make(name, render=render and i == 0) for i in range(len(seeds))]
        found = environments.spaces_of(self.environments[0], name)
        if (found.state_dim, found.act_dim, found.discrete) != (spaces.state_dim, spaces.act_dim, spaces.discrete):
            raise DataError(f'Environment "{name}" has {found.text()}; the model has {spaces.text()}.')
        self.spaces, self.name, self.render = found, name, render
        self.active = np.arange(len(seeds))
        self.returns = np.zeros(len(seeds))
        self.lengths = np.zeros(len(seeds), dtype=np.int64)
        self.observations = np.stack(
            [one.reset(seed=int(seed))[0] for one, seed in zip(self.environments, seeds, strict=True)]
        ).astype(np.float32)
        self.frames: list[NDArray[np.uint8]] = []
        self._look()

    def step(self, actions: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Act in every active copy; return rewards and which of them go on."""
        rewards = np.zeros(len(self.active), dtype=np.float32)
        on = np.ones(len(self.active), dtype=bool)
        seen = []
        for row, at in enumerate(self.active):
            action = int(actions[row]) if self.spaces.discrete else actions[row]
            observation, reward, terminated, truncated, _ = self.environments[at].step(action)
            reward = float(reward)
            if not np.isfinite(reward) or not np.isfinite(observation).all():
                raise NonFiniteError(
                    f'Environment "{self.name}", episode {at}, step {self.lengths[at]}: reward {reward}, observation '
                    f"{observation} is not finite. Mend the environment."
                )
            rewards[row] = reward
            self.returns[at] += reward
            self.lengths[at] += 1
            on[row] = not (terminated or truncated or self.lengths[at] >= MAX_STEPS)
            if on[row]:
                seen.append(observation)
        self._look()
        self.active = self.active[on]
        self.observations = np.asarray(seen, dtype=np.float32).reshape(len(seen), self.spaces.state_dim)
        return rewards, on

    def _look(self) -> None:
        if self.render and 0 in self.active:
            try:
                frame = self.environments[0].render()
            except error.DependencyNotInstalled as problem:
                raise MissingExtraError(
                    f"Environment \"{self.name}\" cannot be drawn: {problem}  pip install 'polyhead-agents[render]'"
                ) from problem
            if frame is not None:
                self.frames.append(np.asarray(frame, dtype=np.uint8))

    def finish(self) -> Played:
        for one in self.environments:
            one.close()
        return Played(self.returns, self.lengths, self.frames)


@torch.no_grad()
def play(
    model: DecisionModel,
    name: str,
    seeds: Sequence[int],
    *,
    target: float,
    memory: Memory = "window",
    render: bool = False,
) -> Played:
    """Let a decision model play episodes, greedily.

    Args:
        model: in evaluation mode.
        name: of the environment.
        seeds: of each episode.
        target: the return that is asked for at the beginning.
        memory: what the model acts on.
        render: keep pictures of the first episode.

    Raises:
        DataError: the environment is of other sizes than the model.
        ConfigError: no such environment, or episodes that are longer than the model's table of time steps.
        NonFiniteError: rewards, observations or actions that are not finite.
    """
    config = model.config
    low, high = (model.action_mid - model.action_half).numpy(force=True), (model.action_mid + model.action_half)
    spaces = environments.Spaces(config.state_dim, config.act_dim, config.discrete, low, high.numpy(force=True))
    table = _Table(name, seeds, spaces, render=render)
    act = _Window(model) if memory == "window" else _Stream(model)
    wanted = np.full(len(seeds), target, dtype=np.float32)
    while len(table.active):
        chosen = act(wanted, table.observations)
        if not config.discrete:
            if not np.isfinite(chosen).all():
                raise NonFiniteError(f'The model acts {chosen[0]} in "{name}". The weights are damaged: fit again.')
            chosen = np.clip(chosen, table.spaces.low, table.spaces.high)
        rewards, on = table.step(chosen)
        act.done(chosen, on)
        wanted = (wanted - rewards)[on]
    return table.finish()


class _Window:
    """Act on the last steps, all computed anew: exactly what training saw."""

    def __init__(self, model: DecisionModel) -> None:
        self.model, self.time = model, 0
        self.past: tuple[Tensor, Tensor, Tensor] | None = None

    def __call__(self, wanted: NDArray[np.float32], observations: NDArray[np.float32]) -> NDArray[Any]:
        model, context = self.model, self.model.config.context
        device = model.state_mean.device
        now = (
            torch.from_numpy(wanted)[:, None].to(device),
            torch.from_numpy(observations)[:, None].to(device),
            # What is to be done is not known yet; its token reaches no action.
            torch.zeros(len(wanted), 1, dtype=torch.int64, device=device)
            if model.config.discrete
            else torch.zeros(len(wanted), 1, model.config.act_dim, device=device),
        )
        parts = now if self.past is None else tuple(torch.cat(pair, 1) for pair in zip(self.past, now, strict=True))
        returns, seen, acted = (part[:, -context:] for part in parts)
        steps = torch.arange(self.time - seen.shape[1] + 1, self.time + 1, device=device)
        model.check_timestep(self.time)
        logits = model(returns, seen, acted, steps.expand(len(wanted), -1)).action[:, -1]
        self.past = (returns, seen, acted)
        return _choice(logits, discrete=model.config.discrete)

    def done(self, chosen: NDArray[Any], on: NDArray[np.bool_]) -> None:
        if self.past is None:
            raise RuntimeError("act first")
        returns, seen, acted = self.past
        acted = acted.clone()
        acted[:, -1] = torch.from_numpy(chosen).to(acted)
        keep = torch.from_numpy(on)
        self.past = (returns[keep], seen[keep], acted[keep])
        self.time += 1


class _Stream:
    """Act on a state carried since the episode began."""

    def __init__(self, model: DecisionModel) -> None:
        self.model = model
        self.state: DecisionState | None = None

    def __call__(self, wanted: NDArray[np.float32], observations: NDArray[np.float32]) -> NDArray[Any]:
        device = self.model.state_mean.device
        state = self.model.init_state(len(wanted)) if self.state is None else self.state
        logits, self.state = self.model.act(
            torch.from_numpy(wanted).to(device), torch.from_numpy(observations).to(device), state
        )
        return _choice(logits, discrete=self.model.config.discrete)

    def done(self, chosen: NDArray[Any], on: NDArray[np.bool_]) -> None:
        device = self.model.state_mean.device
        if self.state is None:
            raise RuntimeError("act first")
        state = self.model.observe(torch.from_numpy(chosen).to(device), self.state)
        self.state = states.reorder(state, torch.from_numpy(np.flatnonzero(on)).to(device))


def _choice(action: Tensor, *, discrete: bool) -> NDArray[Any]:
    chosen: NDArray[Any] = (action.argmax(-1) if discrete else action.float()).numpy(force=True)
    return chosen


def play_policy(
    policy: Callable[[NDArray[np.float32]], NDArray[Any]],
    name: str,
    seeds: Sequence[int],
    spaces: environments.Spaces,
) -> Played:
    """Let a policy without memory play: observations (B, state_dim) to actions."""
    table = _Table(name, seeds, spaces, render=False)
    while len(table.active):
        table.step(policy(table.observations))
    return table.finish()


def play_at_random(name: str, seeds: Sequence[int]) -> Played:
    """Play with actions drawn evenly; each episode has a generator of its own, seeded as the environment."""
    spaces = environments.spaces_of(environments.make(name), name)
    table = _Table(name, seeds, spaces, render=False)
    for one, seed in zip(table.environments, seeds, strict=True):
        one.action_space.seed(int(seed))
    while len(table.active):
        table.step(np.stack([table.environments[at].action_space.sample() for at in table.active]))
    return table.finish()
