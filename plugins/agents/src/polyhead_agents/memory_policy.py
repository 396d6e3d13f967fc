"""A policy and a features extractor of Stable-Baselines3 that remember by Aaren's streaming state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, MlpExtractor
from torch import Tensor, nn

from polyhead.errors import ConfigError, ShapeError
from polyhead.nn import Stack, states
from polyhead_agents.recent_aaren import RecentAaren

__all__ = ["AarenExtractor", "AarenPolicy", "Sequences"]

Mixer = str | Callable[..., Any]


class Sequences(NamedTuple):
    """Pieces of episodes, padded behind their ends; what `AarenPolicy.evaluate_actions` takes as observations."""

    observations: Tensor
    """(U, L, …)."""
    mask: Tensor
    """Bool (U, L): True = a step."""
    state: Any
    """The memory before each piece, U rows."""


class AarenExtractor(BaseFeaturesExtractor):
    """Features of the last ``frames`` observations for any algorithm and any policy of Stable-Baselines3.

    For environments wrapped in ``VecFrameStack(env, frames)``, which puts the last observations, vectors, one behind
    the other; those before the beginning of an episode are zeros, and are seen as such.

    >>> from stable_baselines3 import PPO
    >>> from stable_baselines3.common.env_util import make_vec_env
    >>> from stable_baselines3.common.vec_env import VecFrameStack
    >>> env = VecFrameStack(make_vec_env("CartPole-v1"), 4)
    >>> kwargs = {"features_extractor_class": AarenExtractor, "features_extractor_kwargs": {"frames": 4}}
    >>> PPO("MlpPolicy", env, policy_kwargs=kwargs, device="cpu").policy.features_dim
    64
    """

    def __init__(
        self,
        observation_space: spaces.Box,
        *,
        frames: int,
        dim: int = 64,
        depth: int = 1,
        heads: int = 4,
        mixer: Mixer = RecentAaren,
    ) -> None:
        """Make an extractor.

        Args:
            observation_space: (frames · numbers,).
            frames: observations in one.
            dim: number of features.
            depth: layers.
            heads: of each layer.
            mixer: of `polyhead.nn.Stack`.

        Raises:
            ConfigError: the observation is no vector of so many frames.
        """
        shape = observation_space.shape
        if len(shape) != 1 or shape[0] % frames:
            raise ConfigError(f"Observations {shape} are not {frames} vectors. Wrap with VecFrameStack(env, {frames}).")
        super().__init__(observation_space, features_dim=dim)
        self.frames = frames
        self.embed = nn.Linear(shape[0] // frames, dim)
        self.memory = Stack(dim, depth, heads, mixer=mixer, causal=True)

    def forward(self, observations: Tensor) -> Tensor:
        """Return features (B, dim) of observations (B, frames · numbers)."""
        x: Tensor = self.memory(self.embed(observations.unflatten(1, (self.frames, -1)))).x
        return x[:, -1]


class AarenPolicy(ActorCriticPolicy):
    """An actor and a critic that see features of all of an episode so far; for `polyhead_agents.sb3.PPO`.

    The features of an observation go through a causal `polyhead.nn.Stack`, whose state is what is remembered; then
    through the layers of SB3's ``MlpPolicy``. A state has the same size at every step, however long an episode is.

    `predict` takes and gives states like every recurrent policy of SB3: ``state`` is None at first, and
    ``episode_start`` tells which environments began anew. So ``evaluate_policy`` works as it is.
    """

    def __init__(
        self,
        *arguments: Any,
        memory_dim: int = 64,
        memory_depth: int = 1,
        memory_heads: int = 4,
        memory_mixer: Mixer = RecentAaren,
        **settings: Any,
    ) -> None:
        """Make a policy; SB3 gives spaces and learning rate, ``policy_kwargs`` the rest.

        Args:
            arguments: those of ``ActorCriticPolicy``.
            memory_dim: width of the stack.
            memory_depth: its layers.
            memory_heads: heads of each.
            memory_mixer: its mixer, such as "aaren"; its state has to be of constant size.
            settings: those of ``ActorCriticPolicy``, such as ``net_arch``.

        Raises:
            ConfigError: SDE or two extractors are asked for, or the state of the mixer grows.
        """
        if settings.get("use_sde") or not settings.get("share_features_extractor", True):
            raise ConfigError("AarenPolicy has neither use_sde nor separate features extractors. Leave them out.")
        self.memory_settings: dict[str, Any] = {
            "memory_dim": memory_dim,
            "memory_depth": memory_depth,
            "memory_heads": memory_heads,
            "memory_mixer": memory_mixer,
        }
        super().__init__(*arguments, **settings)
        empty = self.init_state(1)
        with torch.no_grad():
            after = self.memory.step(torch.zeros(1, memory_dim, device=self.device), state=empty).state
        if states.nbytes(after) != states.nbytes(empty):
            raise ConfigError(f'The state of memory_mixer "{memory_mixer}" grows. Take one of constant size: aaren.')

    def _build_mlp_extractor(self) -> None:
        settings = self.memory_settings
        dim = settings["memory_dim"]
        self.embed = nn.Linear(self.features_dim, dim)
        self.memory = Stack(
            dim, settings["memory_depth"], settings["memory_heads"], mixer=settings["memory_mixer"], causal=True
        )
        self.mlp_extractor = MlpExtractor(dim, self.net_arch, self.activation_fn, device=self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), **self.memory_settings}

    def init_state(self, batch: int) -> Any:
        """Return the memory before the first observation of ``batch`` environments."""
        return self.memory.init_state(batch, device=self.device)

    def forward(  # type: ignore[override]  # a memory goes through it
        self, obs: Tensor, state: Any, starts: Tensor, deterministic: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, Any]:
        """Act.

        Args:
            obs: observations, (B, …).
            state: the memory, B rows.
            starts: bool (B,), True where obs is the first of an episode.
            deterministic: take the likeliest action.

        Returns:
            Actions (B, …), values (B, 1), log probabilities (B,), and the memory behind these observations.
        """
        latent, state = self._remember(obs, state, starts)
        distribution = self._get_action_dist_from_latent(self.mlp_extractor.forward_actor(latent))
        actions = distribution.get_actions(deterministic=deterministic)
        values: Tensor = self.value_net(self.mlp_extractor.forward_critic(latent))
        return actions.reshape(-1, *self._action_shape()), values, distribution.log_prob(actions), state

    def predict_values(self, obs: Tensor, state: Any, starts: Tensor) -> Tensor:  # type: ignore[override]  # as forward
        """Return the values (B, 1) of observations; arguments as in `forward`."""
        latent, _ = self._remember(obs, state, starts)
        values: Tensor = self.value_net(self.mlp_extractor.forward_critic(latent))
        return values

    def get_distribution(  # type: ignore[override]  # as forward
        self, obs: Tensor, state: Any, starts: Tensor
    ) -> tuple[Distribution, Any]:
        """Return the distribution of actions, and the memory behind; arguments as in `forward`."""
        latent, state = self._remember(obs, state, starts)
        return self._get_action_dist_from_latent(self.mlp_extractor.forward_actor(latent)), state

    def evaluate_actions(  # type: ignore[override]  # of sequences
        self, obs: Sequences, actions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return values, log probabilities and entropies of all steps of sequences, piece by piece.

        Args:
            obs: pieces of episodes.
            actions: of their steps, as many as ``obs.mask`` counts.

        Raises:
            ShapeError: obs are no sequences.
        """
        if not isinstance(obs, Sequences):
            raise ShapeError("AarenPolicy learns from sequences. Use polyhead_agents.sb3.PPO, which keeps them whole.")
        features = self.extract_features(obs.observations.flatten(0, 1))
        if not isinstance(features, Tensor):
            raise TypeError(type(features))
        x = self.embed(features).unflatten(0, obs.mask.shape)
        latent = self.memory(x, key_mask=obs.mask, state=obs.state).x[obs.mask]
        distribution = self._get_action_dist_from_latent(self.mlp_extractor.forward_actor(latent))
        values = self.value_net(self.mlp_extractor.forward_critic(latent))
        return values, distribution.log_prob(actions), distribution.entropy()

    def predict(
        self,
        observation: NDArray[Any] | dict[str, NDArray[Any]],
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...] | None]:
        """Act on observations of one or several environments; see the class.

        Raises:
            ShapeError: the state is of another number of environments.
        """
        self.set_training_mode(False)
        obs, vectorised = self.obs_to_tensor(observation)
        if not isinstance(obs, Tensor):
            raise TypeError(type(obs))
        count = len(obs)
        memory = self.init_state(count)
        if state is not None:
            if len(state[0]) != count:
                raise ShapeError(f"The state is of {len(state[0])} environments, the observations are of {count}.")
            memory = unpack(state, memory)
        starts = np.zeros(count, dtype=bool) if episode_start is None else np.asarray(episode_start).astype(bool)
        with torch.no_grad():
            distribution, memory = self.get_distribution(obs, memory, torch.from_numpy(starts).to(self.device))
            actions = distribution.get_actions(deterministic=deterministic)
        chosen = actions.cpu().numpy().reshape(-1, *self._action_shape())
        if isinstance(self.action_space, spaces.Box):
            chosen = np.clip(chosen, self.action_space.low, self.action_space.high)
        return (chosen if vectorised else chosen.squeeze(0)), pack(memory)

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:  # noqa: ARG002  # SB3's names
        raise ConfigError("AarenPolicy acts by predict or forward, which take its memory along.")

    def _remember(self, obs: Tensor, state: Any, starts: Tensor) -> tuple[Tensor, Any]:
        state = states.where(starts, self.init_state(len(starts)), state)
        features = self.extract_features(obs)
        mixed = self.memory.step(self.embed(features), state=state)
        return mixed.x, mixed.state

    def _action_shape(self) -> tuple[int, ...]:
        shape = self.action_space.shape
        return () if shape is None else shape


def pack(state: Any) -> tuple[NDArray[Any], ...]:
    """Return the tensors of a state as arrays, in the order of the structure."""
    if isinstance(state, Tensor):
        return (state.cpu().numpy(),)
    if isinstance(state, tuple):
        return tuple(array for part in state for array in pack(part))
    return ()


def unpack(arrays: tuple[NDArray[Any], ...], like: Any) -> Any:
    """Return the state that `pack` took apart, of the structure and on the device of ``like``."""
    rest = iter(arrays)

    def take(part: Any) -> Any:
        if isinstance(part, Tensor):
            return torch.from_numpy(next(rest)).to(part)
        if isinstance(part, tuple):
            each = [take(one) for one in part]
            return type(part)(*each) if hasattr(part, "_fields") else tuple(each)
        return part

    return take(like)
