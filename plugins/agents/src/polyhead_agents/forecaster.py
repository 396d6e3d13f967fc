"""Forecast a table of readings: causal codes of the history, and of the steps to come."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from polyhead.errors import ConfigError, ShapeError
from polyhead.models import Pretrained
from polyhead_agents.series import SeriesEncoder

__all__ = ["MARKS", "ForecasterConfig", "SeriesForecaster"]

MARKS = 4
"""Numbers of the calendar for each step: hour, day of the week, day of the month, day of the year, −½ to ½."""
EPS = 1e-5


@dataclass(frozen=True)
class ForecasterConfig:
    """Sizes and switches of a forecaster."""

    channels: int
    history: int = 96
    horizon: int = 96
    mixer: str = "aaren"
    """``aaren``, or ``softmax`` for the Transformer of the same size."""
    dim: int = 512
    depth: int = 3
    heads: int = 8
    ff_dim: int = 2048
    dropout: float = 0.1

    def __post_init__(self) -> None:
        """Check what no type says.

        Raises:
            ConfigError: a size below 1.
        """
        for name in ("channels", "history", "horizon", "dim", "depth", "heads", "ff_dim"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected 1 or more.")


class SeriesForecaster(Pretrained, nn.Module):
    """Forecast all channels for the next steps.

    The steps to come are tokens of their own behind the history, with position and calendar and nothing else; their
    codes are mapped to readings. Each window is brought to mean 0 and deviation 1, and its forecast back.

    Source: Feng et al. 2024, arXiv:2405.13956, sec. 4.3, on Time-Series-Library's Transformer with stationarised
    windows (Liu et al. 2022, arXiv:2205.14415). Differs: one causal stack instead of an encoder and a decoder.
    """

    Config = ForecasterConfig

    def __init__(self, config: ForecasterConfig) -> None:
        """Make a model with fresh weights."""
        super().__init__()
        self.config = config
        self.encoder = SeriesEncoder(
            config.channels,
            dim=config.dim,
            depth=config.depth,
            heads=config.heads,
            ff_dim=config.ff_dim,
            dropout=config.dropout,
            mixer=config.mixer,
        )
        self.calendar = nn.Linear(MARKS, config.dim, bias=False)
        self.head = nn.Linear(config.dim, config.channels)

    def forward(self, x: Tensor, marks: Tensor) -> Tensor:
        """Return forecasts, shape (B, horizon, channels), in the unit of x.

        Args:
            x: readings, shape (B, history, channels).
            marks: calendar of history and horizon, shape (B, history + horizon, 4).

        Raises:
            ShapeError: shapes do not fit the config or each other.
        """
        config = self.config
        steps = config.history + config.horizon
        if x.shape[1:] != (config.history, config.channels) or marks.shape != (len(x), steps, MARKS):
            raise ShapeError(
                f"x {tuple(x.shape)} and marks {tuple(marks.shape)} are not (batch, {config.history}, "
                f"{config.channels}) and (batch, {steps}, {MARKS})."
            )
        mean = x.mean(1, keepdim=True)
        std = (x.var(1, keepdim=True, unbiased=False) + EPS).sqrt()
        known = (x - mean) / std
        ahead = known.new_zeros(len(x), config.horizon, config.channels)
        codes = self.encoder(torch.cat([known, ahead], 1), extra=self.calendar(marks))
        y: Tensor = self.head(codes[:, config.history :])
        return y * std + mean
