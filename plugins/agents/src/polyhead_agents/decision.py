"""Decision Aaren and Decision Transformer: sequence models of returns, observations and actions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from polyhead.errors import ConfigError, ShapeError
from polyhead.models import Pretrained
from polyhead.nn import Stack
from polyhead.nn.positions import sinusoid

__all__ = ["DecisionAaren", "DecisionConfig", "DecisionState", "DecisionTransformer", "Decisions"]

TOKENS = 3
"""Of a time step: return-to-go, observation, action."""


@dataclass(frozen=True)
class DecisionConfig:
    """Sizes and switches of a decision model."""

    state_dim: int
    """Numbers in an observation."""
    act_dim: int
    """Numbers in an action, or how many actions there are to choose from."""
    discrete: bool = False
    """Actions are choices: they enter one-hot, and come out as logits."""
    dim: int = 128
    depth: int = 3
    heads: int = 1
    context: int = 20
    """Time steps of a training window, and of the window that acting may look back on."""
    positions: str = "table"
    """``table``: a learned vector a time step, up to ``max_timestep``; ``sinusoid``: without an end."""
    max_timestep: int = 4096
    dropout: float = 0.1
    tanh: bool = True
    """Continuous actions are bounded by the tanh of the published head."""
    mask_padding: bool = True
    """Padded steps are not attended."""
    auxiliary: bool = False
    """Heads that predict the next observation and return; the published loss does not use them."""

    def __post_init__(self) -> None:
        """Check what no type says.

        Raises:
            ConfigError: a size below 1, or an unknown kind of positions.
        """
        for name in ("state_dim", "act_dim", "dim", "depth", "heads", "context", "max_timestep"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected 1 or more.")
        if self.positions not in ("table", "sinusoid"):
            raise ConfigError(f'positions is "{self.positions}". All: table, sinusoid')
        if self.discrete and self.act_dim < 2:
            raise ConfigError(f"act_dim is {self.act_dim} with discrete actions: there is nothing to choose.")

    @classmethod
    def release(cls, name: str, **sizes: Any) -> Self:
        """Return the config that reproduces a published release.

        Args:
            name: ``min-decision-transformer``, commit d6694248.
            sizes: ``state_dim``, ``act_dim`` and whatever else differs.

        Raises:
            ConfigError: no such release.
        """
        if name != "min-decision-transformer":
            raise ConfigError(f'There is no release "{name}". All: min-decision-transformer')
        return cls(**{"mask_padding": False, "auxiliary": True, **sizes})


class Decisions(NamedTuple):
    """What a decision model predicts for every time step."""

    action: Tensor
    """(B, T, act_dim): actions in their own unit, or logits. From what was known before the action."""
    observation: Tensor | None
    """(B, T, state_dim): the next observation, standardised; None without auxiliary heads."""
    return_to_go: Tensor | None
    """(B, T, 1): scaled; None without auxiliary heads."""


class DecisionState(NamedTuple):
    """What an agent carries through an episode; the batch is the first axis of each part."""

    stack: Any
    """States of the blocks: of constant size for Aaren, a growing cache for the Transformer."""
    timestep: Tensor
    """(B,), int64: of the next observation."""


class DecisionModel(Pretrained, nn.Module):
    """Predict the action that fits a wanted return, from what was observed and done so far.

    Every time step is three tokens: the return still wanted, the observation, the action. The action is read from the
    token of the observation, which sees no later one. Blocks are post-norm; all three get the timestep's vector.

    Observations are standardised, returns scaled and actions brought to [-1, 1] inside, by buffers that `set_data`
    fills and that are saved with the weights. All inputs and outputs are in the units of the environment.

    Source: Chen et al. 2021, arXiv:2106.01345; Feng et al. 2024, arXiv:2405.13956, sec. 4.1; layers as in
    min-decision-transformer (d6694248). Differs by default: padding is not attended, dropout is on outputs only, there
    are no heads for observations and returns; ``Config.release`` undoes all but the second.
    """

    Config = DecisionConfig
    mixer: ClassVar[str]

    state_mean: Tensor
    state_std: Tensor
    action_mid: Tensor
    action_half: Tensor
    return_scale: Tensor

    def __init__(self, config: DecisionConfig) -> None:
        """Make a model with fresh weights."""
        super().__init__()
        self.config = config
        dim = config.dim
        table = nn.Embedding(config.max_timestep, dim) if config.positions == "table" else None
        self.embed_timestep = table
        self.embed_return = nn.Linear(1, dim)
        self.embed_state = nn.Linear(config.state_dim, dim)
        self.embed_action = nn.Linear(config.act_dim, dim)
        self.embed_norm = nn.LayerNorm(dim)
        self.stack = Stack(
            dim,
            config.depth,
            config.heads,
            mixer=self.mixer,
            causal=True,
            pre_norm=False,
            dropout=config.dropout,
            ff_dropout=0.0,
        )
        self.predict_action = nn.Linear(dim, config.act_dim)
        self.predict_state = nn.Linear(dim, config.state_dim) if config.auxiliary else None
        self.predict_return = nn.Linear(dim, 1) if config.auxiliary else None
        self.register_buffer("state_mean", torch.zeros(config.state_dim))
        self.register_buffer("state_std", torch.ones(config.state_dim))
        self.register_buffer("action_mid", torch.zeros(config.act_dim))
        self.register_buffer("action_half", torch.ones(config.act_dim))
        self.register_buffer("return_scale", torch.ones(()))

    def set_data(self, **values: Tensor) -> None:
        """Set buffers by name: ``state_mean``, ``state_std``, ``action_mid``, ``action_half``, ``return_scale``.

        Raises:
            ShapeError: a value is not of its buffer's shape.
        """
        for name, value in values.items():
            buffer: Tensor = getattr(self, name)
            if value.shape != buffer.shape:
                raise ShapeError(f"{name} is {tuple(value.shape)}, expected {tuple(buffer.shape)}.")
            buffer.copy_(value)

    def forward(
        self,
        returns_to_go: Tensor,
        states: Tensor,
        actions: Tensor,
        timesteps: Tensor,
        mask: Tensor | None = None,
    ) -> Decisions:
        """Predict for all steps of a window at once.

        Args:
            returns_to_go: shape (B, T), sum of rewards from each step to the end.
            states: observations, shape (B, T, state_dim).
            actions: shape (B, T, act_dim) or, discrete, int64 (B, T); that of the last step reaches no action.
            timesteps: int64, shape (B, T), of the episode; from 0.
            mask: bool, shape (B, T), True = real step.

        Raises:
            ShapeError: shapes do not fit each other.
        """
        batch, steps = returns_to_go.shape
        if states.shape != (batch, steps, self.config.state_dim):
            raise ShapeError(
                f"states {tuple(states.shape)} is not (batch, steps, state_dim) = "
                f"{(batch, steps, self.config.state_dim)} of returns_to_go {tuple(returns_to_go.shape)}."
            )
        where = self._where(timesteps)
        parts = (self._return(returns_to_go), self._state(states), self._action(actions))
        tokens = torch.stack([part + where for part in parts], dim=2).flatten(1, 2)
        key_mask = None
        if mask is not None and self.config.mask_padding:
            key_mask = mask.repeat_interleave(TOKENS, dim=1)
        x = self.stack(self.embed_norm(tokens), key_mask=key_mask).x
        x = x.unflatten(1, (steps, TOKENS))
        return Decisions(
            self._head(x[:, :, 1]),
            None if self.predict_state is None else self.predict_state(x[:, :, 2]),
            None if self.predict_return is None else self.predict_return(x[:, :, 2]),
        )

    def init_state(self, batch: int, *, capacity: int | None = None) -> DecisionState:
        """Return the state at the beginning of an episode.

        Args:
            batch: episodes at once.
            capacity: time steps the Transformer's cache holds, at constant shape; it grows if None.
        """
        room = None if capacity is None else TOKENS * capacity
        device = self.state_mean.device
        return DecisionState(
            self.stack.init_state(batch, capacity=room, device=device),
            torch.zeros(batch, dtype=torch.int64, device=device),
        )

    def act(self, returns_to_go: Tensor, states: Tensor, state: DecisionState) -> tuple[Tensor, DecisionState]:
        """Return actions (or logits), shape (B, act_dim), for observations (B, state_dim); `observe` comes next.

        The state then holds return and observation of this step, and waits for the action that was really taken.

        Raises:
            ConfigError: an episode is longer than the table of time steps.
        """
        where = self._where_now(state.timestep)
        mixed = self.stack.step(self.embed_norm(self._return(returns_to_go) + where), state=state.stack)
        mixed = self.stack.step(self.embed_norm(self._state(states) + where), state=mixed.state)
        return self._head(mixed.x), state._replace(stack=mixed.state)

    def observe(self, actions: Tensor, state: DecisionState) -> DecisionState:
        """Take the actions that were done, (B, act_dim) or, discrete, int64 (B,), and go on to the next time step."""
        token = self.embed_norm(self._action(actions) + self._where_now(state.timestep))
        mixed = self.stack.step(token, state=state.stack)
        return DecisionState(mixed.state, state.timestep + 1)

    def _return(self, returns_to_go: Tensor) -> Tensor:
        y: Tensor = self.embed_return((returns_to_go / self.return_scale).unsqueeze(-1))
        return y

    def _state(self, states: Tensor) -> Tensor:
        y: Tensor = self.embed_state((states - self.state_mean) / self.state_std)
        return y

    def _action(self, actions: Tensor) -> Tensor:
        if self.config.discrete:
            actions = nn.functional.one_hot(actions, self.config.act_dim).to(self.state_mean.dtype)
        else:
            actions = (actions - self.action_mid) / self.action_half
        y: Tensor = self.embed_action(actions)
        return y

    def _head(self, x: Tensor) -> Tensor:
        y: Tensor = self.predict_action(x)
        if self.config.discrete:
            return y
        return self.action_mid + self.action_half * (torch.tanh(y) if self.config.tanh else y)

    def _where(self, timesteps: Tensor) -> Tensor:
        if self.embed_timestep is None:
            return sinusoid(timesteps, self.config.dim).to(self.state_mean.dtype)
        y: Tensor = self.embed_timestep(timesteps)
        return y

    def _where_now(self, timesteps: Tensor) -> Tensor:
        if self.embed_timestep is not None and len(timesteps):
            self.check_timestep(int(timesteps.max()))
        return self._where(timesteps)

    def check_timestep(self, timestep: int) -> None:
        """Refuse a time step behind the end of the table.

        Raises:
            ConfigError: the episode goes on for longer.
        """
        if self.embed_timestep is not None and timestep >= self.config.max_timestep:
            raise ConfigError(
                f"An episode goes on at step {timestep}, and the model's table of time steps ends at "
                f"{self.config.max_timestep - 1}. Fit with model.positions=sinusoid, or a larger model.max_timestep."
            )


class DecisionAaren(DecisionModel):
    """A decision model of `polyhead.nn.Aaren`: it acts with a state of constant size; see `DecisionModel`."""

    mixer = "aaren"


class DecisionTransformer(DecisionModel):
    """A decision model of causal softmax attention, the published baseline; see `DecisionModel`."""

    mixer = "softmax"
