"""PPO of Stable-Baselines3 for policies with memory: ``PPO("AarenPolicy", env).learn(100_000)``."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import stable_baselines3
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from polyhead.errors import ConfigError
from polyhead.nn import states
from polyhead_agents.memory_policy import AarenExtractor, AarenPolicy, Sequences

__all__ = ["PPO", "AarenExtractor", "AarenPolicy", "SequenceBuffer"]


class SequenceBuffer(RolloutBuffer):
    """A rollout that is given out in whole pieces of episodes, with the memory before each.

    A piece ends where an episode does, or the rollout. One that began in the rollout before starts from the memory
    that the policy had then, through which no gradient goes.
    """

    empty: Any = None
    initial: Any = None

    def begin(self, empty: Any, initial: Any) -> None:
        """Keep the memory before an episode, one row, and that before the rollout, a row for each environment."""
        self.empty, self.initial = empty, initial

    def get(self, batch_size: int | None = None) -> Iterator[RolloutBufferSamples]:  # type: ignore[override]  # same
        """Yield minibatches of about ``batch_size`` steps, of at least one piece; all at once if None."""
        total = self.buffer_size * self.n_envs
        count = 1 if batch_size is None else max(1, round(total / batch_size))
        pieces = self._pieces()
        chosen: list[tuple[int, int, int]] = []
        sofar, made = 0, 0
        for number in np.random.permutation(len(pieces)):
            chosen.append(pieces[number])
            sofar += pieces[number][2] - pieces[number][1]
            if sofar * count >= (made + 1) * total:
                yield self._samples(chosen)
                chosen, made = [], sofar * count // total

    def _pieces(self) -> list[tuple[int, int, int]]:
        """Return (environment, first step, step behind the last) of each."""
        found = []
        for env in range(self.n_envs):
            cuts = [0, *(np.flatnonzero(self.episode_starts[1:, env]) + 1).tolist(), self.buffer_size]
            found += [(env, first, last) for first, last in pairwise(cuts)]
        return found

    def _samples(self, pieces: list[tuple[int, int, int]]) -> RolloutBufferSamples:
        lengths = [last - first for _, first, last in pieces]
        seen = np.zeros((len(pieces), max(lengths), *self.observations.shape[2:]), dtype=self.observations.dtype)
        for row, (env, first, last) in enumerate(pieces):
            seen[row, : last - first] = self.observations[first:last, env]
        mask = np.arange(max(lengths)) < np.asarray(lengths)[:, None]
        fresh = [bool(self.episode_starts[first, env]) or first > 0 for env, first, _ in pieces]
        state = states.reorder(self.initial, torch.tensor([env for env, _, _ in pieces], device=self.device))
        sequences = Sequences(
            self.to_torch(seen),
            torch.from_numpy(mask).to(self.device),
            states.where(torch.tensor(fresh, device=self.device), self.empty, state),
        )

        def flat(values: NDArray[Any]) -> Tensor:
            joined = np.concatenate([values[first:last, env] for env, first, last in pieces])
            return self.to_torch(joined.astype(np.float32, copy=False))

        return RolloutBufferSamples(
            sequences,  # type: ignore[arg-type]  # what the policy takes as observations
            flat(self.actions),
            flat(self.values),
            flat(self.log_probs),
            flat(self.advantages),
            flat(self.returns),
        )


class PPO(stable_baselines3.PPO):
    """PPO of Stable-Baselines3, which knows "AarenPolicy" besides SB3's policies.

    Everything else is SB3's: arguments, callbacks, ``save`` and ``load``, ``evaluate_policy``. With AarenPolicy a
    minibatch has about ``batch_size`` steps, but whole pieces of episodes; learning sees as far back as a rollout of
    ``n_steps`` goes, so let it be longer than what has to be remembered.

    >>> model = PPO("AarenPolicy", "CartPole-v1", n_steps=64, device="cpu", seed=0).learn(128)
    >>> action, state = model.predict(model.env.reset())
    >>> [part.shape for part in state]
    [(1, 4), (1, 4), (1, 4, 16)]
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        **stable_baselines3.PPO.policy_aliases,
        "AarenPolicy": AarenPolicy,
    }
    _memory: Any = None

    def _setup_model(self) -> None:
        if issubclass(self.policy_class, AarenPolicy):
            if isinstance(self.observation_space, spaces.Dict):
                raise ConfigError("AarenPolicy takes no dictionary of observations. Flatten them (FlattenObservation).")
            self.rollout_buffer_class = SequenceBuffer
        super()._setup_model()

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_memory"]

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Fill the buffer; as in SB3, with a memory for each environment that begins anew with its episodes."""
        policy = self.policy
        if not isinstance(policy, AarenPolicy) or not isinstance(rollout_buffer, SequenceBuffer):
            return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        policy.set_training_mode(False)
        rollout_buffer.reset()
        memory = policy.init_state(env.num_envs) if self._memory is None else self._memory
        rollout_buffer.begin(policy.init_state(1), memory)
        callback.on_rollout_start()
        dones = np.zeros(env.num_envs, dtype=bool)
        for _ in range(n_rollout_steps):
            obs, starts = self._tensors()
            with torch.no_grad():
                chosen, values, log_probs, memory = policy(obs, memory, starts)
            actions = chosen.cpu().numpy()
            clipped = actions
            if isinstance(self.action_space, spaces.Box):
                clipped = np.clip(actions, self.action_space.low, self.action_space.high)
            new_obs, rewards, dones, infos = env.step(clipped)
            self.num_timesteps += env.num_envs
            callback.update_locals(locals())
            if not callback.on_step():
                return False
            self._update_info_buffer(infos, dones)
            for at, info in enumerate(infos):
                # Cut off, not ended: what was still to come is worth something (SB3, issue 633).
                if dones[at] and info.get("terminal_observation") is not None and info.get("TimeLimit.truncated"):
                    rewards[at] += self.gamma * self._value_behind(policy, info["terminal_observation"], memory, at)
            if isinstance(self.action_space, spaces.Discrete):
                actions = actions.reshape(-1, 1)
            rollout_buffer.add(self._last_obs, actions, rewards, self._last_episode_starts, values, log_probs)  # type: ignore[arg-type]  # arrays, since there was a reset
            self._last_obs, self._last_episode_starts = new_obs, dones  # type: ignore[assignment]  # no tuples of observations
        self._memory = memory
        obs, starts = self._tensors()
        with torch.no_grad():
            values = policy.predict_values(obs, memory, starts)
        rollout_buffer.compute_returns_and_advantage(last_values=values, dones=dones)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _tensors(self) -> tuple[Tensor, Tensor]:
        """Return the last observations, and which of them begin an episode."""
        obs = torch.as_tensor(np.asarray(self._last_obs), device=self.device)
        return obs, torch.as_tensor(np.asarray(self._last_episode_starts, dtype=bool), device=self.device)

    def _value_behind(self, policy: AarenPolicy, observation: NDArray[Any], memory: Any, at: int) -> float:
        obs = policy.obs_to_tensor(observation)[0]
        own = states.slice_state(memory, at, at + 1)
        with torch.no_grad():
            value = policy.predict_values(obs, own, torch.zeros(1, dtype=torch.bool, device=self.device))  # type: ignore[arg-type]  # no dictionary
        return float(value)
