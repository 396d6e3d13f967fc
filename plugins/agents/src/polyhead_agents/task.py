"""The task `offline-rl`: learn to act from recorded episodes, measured by playing."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from polyhead.artifacts import atomic_file
from polyhead.errors import CheckpointError, ConfigError, DataError
from polyhead.models import load
from polyhead.protocols import Batch, Direction, Monitor, Picture, Predictor, Ratio
from polyhead_agents import environments
from polyhead_agents.acting import Played, play, play_at_random
from polyhead_agents.decision import DecisionModel
from polyhead_agents.episodes import PLAY_SEEDS, EpisodeData
from polyhead_agents.metrics import AgentMetric
from polyhead_agents.settings import OfflineTaskSettings, PlaySettings

__all__ = ["OfflineTask"]

PREDICT_SEEDS = 2 * PLAY_SEEDS


@dataclass(frozen=True)
class OfflineTask:
    """What a decision model is trained for: the recorded actions, given the return that followed them."""

    state_dim: int
    act_dim: int
    discrete: bool
    context: int
    steps: int
    """The longest episode, recorded or as the environment cuts it off."""
    target: float
    """The return that is asked for when playing."""
    buffers: Mapping[str, Sequence[float]]
    """Normalisation of observations, returns and actions, for a fresh model."""
    monitor: ClassVar[Monitor] = Monitor("action_error", "min")
    directions: ClassVar[Mapping[str, Direction]] = dict.fromkeys(
        ("return", "normalised", "return_episode", "normalised_episode"), "max"
    )
    headline: ClassVar[Sequence[str]] = (
        "return",
        "return_ci95",
        "normalised",
        "return_episode",
        "return_episode_ci95",
        "action_error",
    )

    @classmethod
    def prepare(cls, data: EpisodeData, settings: OfflineTaskSettings, *, seed: int) -> Self:  # noqa: ARG003
        """Measure the training episodes."""
        episodes = data.episodes
        chosen = data.chosen("train")
        steps = np.concatenate(
            [np.arange(episodes.starts[i], episodes.starts[i] + episodes.lengths[i]) for i in chosen]
        )
        seen = episodes.observations[steps].astype(np.float64)
        scale = float(np.abs(episodes.returns_to_go[steps]).max()) or 1.0
        buffers = {
            "state_mean": seen.mean(axis=0).tolist(),
            # As in min-decision-transformer; an observation that never changes stays finite.
            "state_std": (seen.std(axis=0) + 1e-6).tolist(),
            "return_scale": [scale],
        }
        if not episodes.discrete:
            low, high = data.low, data.high
            if not len(low):
                low, high = episodes.actions[steps].min(axis=0), episodes.actions[steps].max(axis=0)
            half = (high.astype(np.float64) - low) / 2
            buffers["action_mid"] = ((high.astype(np.float64) + low) / 2).tolist()
            buffers["action_half"] = np.where(half > 0, half, 1.0).tolist()
        target = settings.target_return
        if target is None:
            target = environments.target_of(data.env) if data.env else None
        return cls(
            state_dim=episodes.state_dim,
            act_dim=episodes.act_dim,
            discrete=episodes.discrete,
            context=data.context,
            steps=max(int(episodes.lengths.max()), data.horizon or 0),
            target=float(episodes.returns[chosen].max()) if target is None else target,
            buffers=buffers,
        )

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Self:
        """Make the task of a saved model.

        Raises:
            CheckpointError: the state is that of another version.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if set(state) != names:
            odd = ", ".join(sorted(set(state) ^ names))
            raise CheckpointError(
                f"The state of the task offline-rl does not fit this version: {odd}. Fit the model again."
            )
        return cls(**state)

    def state(self) -> Mapping[str, Any]:
        """Return what ``restore`` needs, as JSON values."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def build_model(self, name: str, config: Mapping[str, Any]) -> nn.Module:
        """Build a fresh model for these observations and actions.

        Raises:
            ConfigError: ``config`` sets what the data determine to something else, or a table that is too short.
        """
        determined = {
            "state_dim": self.state_dim,
            "act_dim": self.act_dim,
            "discrete": self.discrete,
            "context": self.context,
        }
        for key, value in determined.items():
            if config.get(key, value) != value:
                raise ConfigError(f"model.{key} is {config[key]}, but the data have {value}. Leave it out.")
        values = {"max_timestep": self.steps, **config, **determined}
        if values.get("positions", "table") == "table" and values["max_timestep"] < self.steps:
            raise ConfigError(
                f"model.max_timestep is {values['max_timestep']}, and episodes have up to {self.steps} steps. "
                "Leave it out, or use model.positions=sinusoid."
            )
        model = load(name, **values)
        if not isinstance(model, DecisionModel):
            raise ConfigError(f'Model "{name}" is no decision model. Take decision-aaren or decision-transformer.')
        numbers = {key: torch.tensor(value, dtype=torch.float32) for key, value in self.buffers.items()}
        numbers["return_scale"] = numbers["return_scale"].reshape(())
        model.set_data(**numbers)
        return model

    def check(self, data: EpisodeData) -> None:
        """Refuse episodes of other observations or actions.

        Raises:
            DataError: names what differs.
        """
        episodes = data.episodes
        for what, have, want in (
            ("numbers in an observation", episodes.state_dim, self.state_dim),
            ("choices or numbers in an action", episodes.act_dim, self.act_dim),
        ):
            if have != want:
                raise DataError(f"{data.name} has {have} {what}, the model was fitted with {want}. Fit again.")
        if episodes.discrete != self.discrete:
            kinds = ("vectors", "choices")
            raise DataError(
                f"{data.name} has actions that are {kinds[episodes.discrete]}, the model was fitted with "
                f"{kinds[self.discrete]}. Fit again."
            )

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Ratio]:
        """Return cross-entropy of choices, or the squared error of continuous actions, over real steps."""
        predicted = self._actions(model, batch)
        mask = batch["mask"]
        if self.discrete:
            each = F.cross_entropy(predicted.flatten(0, 1), batch["actions"].flatten(), reduction="none")
            each = each.view(mask.shape)
        else:
            each = (predicted - batch["actions"]).square().mean(-1)
        return {"action": Ratio((each * mask).sum(), mask.sum())}

    def predict(self, model: nn.Module, batch: Batch) -> Mapping[str, Any]:
        """Return ``action`` for windows; for episodes to be played what came of them, by each of the two memories."""
        if "play" not in batch:
            return {"action": self._actions(model, batch)}
        if not batch["env"]:
            return {}
        inner: Any = getattr(model, "module", model)
        env, seeds = batch["env"][0], batch["play"].tolist()
        whole = play(inner, env, seeds, target=self.target, memory="episode")
        return {
            **outcome(env, play(inner, env, seeds, target=self.target)),
            **{f"{name}_episode": values for name, values in outcome(env, whole).items()},
        }

    def metric(self) -> AgentMetric:
        """Return a fresh accumulator of action errors and returns."""
        return AgentMetric()

    def baselines(self, data: EpisodeData) -> Mapping[str, Predictor]:
        """Return the policy that was recorded and one that acts at random; without an environment the usual action."""
        if not data.env:
            return {"the usual action": _usual(data)}
        returns = np.sort(data.episodes.returns)

        def behaviour(batch: Batch) -> Mapping[str, Any]:
            # Its returns are known from the recording: as many quantiles of them as there are test episodes.
            at = (batch["play"].numpy() - PLAY_SEEDS + 0.5) / data.play_episodes
            return {"return": np.quantile(returns, np.clip(at, 0, 1)), **_scores(data.env, np.quantile(returns, at))}

        def random(batch: Batch) -> Mapping[str, Any]:
            return outcome(data.env, play_at_random(data.env, batch["play"].tolist()))

        return {"recorded policy": behaviour, "random": random}

    def pictures(self, model: nn.Module, data: EpisodeData) -> Sequence[Picture]:
        """Return the report's figures: returns asked for and reached, and an episode where it can be drawn."""
        from polyhead_agents.report import pictures

        return pictures(self, model, data)

    def write_predictions(
        self, model: nn.Module, data: EpisodeData, out: Path, settings: PlaySettings
    ) -> Sequence[Path]:
        """Play, and write ``episodes.csv``: seed, return, length, and where there is one the normalised score.

        With ``render`` also ``episode.gif``, the first of them.

        Raises:
            DataError: there is no environment to play.
            MissingExtraError: pictures need more than is installed.
        """
        if not data.env:
            raise DataError(f"{data.name} names no environment to play. Give --env, such as --env CartPole-v1.")
        inner: Any = getattr(model, "module", model)
        seeds = range(PREDICT_SEEDS, PREDICT_SEEDS + settings.episodes)
        played = play(inner, data.env, seeds, target=self.target, memory=settings.memory, render=settings.render)
        figures = outcome(data.env, played)
        file = out / "episodes.csv"
        with atomic_file(file) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
            rows = csv.writer(stream, lineterminator="\n")
            rows.writerow(["seed", *figures])
            for seed, *values in zip(seeds, *figures.values(), strict=True):
                rows.writerow([seed, *(f"{value:.6g}" for value in values)])
        if not settings.render:
            return [file]
        from polyhead_agents.report import animation

        gif = out / "episode.gif"
        gif.write_bytes(animation(played.frames, "GIF"))
        return [file, gif]

    def _actions(self, model: nn.Module, batch: Batch) -> Tensor:
        action: Tensor = model(
            batch["returns_to_go"], batch["states"], batch["actions"], batch["timesteps"], batch["mask"]
        ).action
        return action


def outcome(env: str, played: Played) -> dict[str, NDArray[Any]]:
    """Return what metrics and files tell of played episodes, by name, each (B,)."""
    return {"return": played.returns, "length": played.lengths, **_scores(env, played.returns)}


def _scores(env: str, returns: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    scores = environments.normalised(env, returns)
    return {} if scores is None else {"normalised": scores}


def _usual(data: EpisodeData) -> Predictor:
    """Return the most frequent choice, or the mean action, of the training episodes."""
    episodes = data.episodes
    acted = np.concatenate(
        [episodes.actions[episodes.starts[i] : episodes.starts[i] + episodes.lengths[i]] for i in data.chosen("train")]
    )
    usual = np.bincount(acted, minlength=episodes.act_dim) if episodes.discrete else acted.mean(axis=0)
    action = torch.from_numpy(np.asarray(usual, dtype=np.float32))

    def predict(batch: Batch) -> Mapping[str, Any]:
        return {"action": action.expand(*batch["mask"].shape, -1)}

    return predict
