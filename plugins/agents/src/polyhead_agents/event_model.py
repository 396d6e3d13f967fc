"""Forecast events: when the next one comes and of which kind, from all before."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyhead.errors import ConfigError, ShapeError
from polyhead.models import Pretrained
from polyhead.nn import Stack
from polyhead.nn.positions import sinusoid

__all__ = ["EventConfig", "EventForecast", "EventModel"]

SMALL = 1e-6
"""Least deviation of a component: none becomes a spike on a tied interval."""


@dataclass(frozen=True)
class EventConfig:
    """Sizes and switches of an event model."""

    marks: int
    """Kinds of events."""
    mixer: str = "aaren"
    """``aaren``, or ``softmax`` for the Transformer of the same size."""
    components: int = 8
    """Log-normal components of an interval's density."""
    dim: int = 64
    depth: int = 2
    heads: int = 1
    ff_dim: int = 64
    dropout: float = 0.1

    def __post_init__(self) -> None:
        """Check what no type says.

        Raises:
            ConfigError: a size below 1.
        """
        for name in ("marks", "components", "dim", "depth", "heads", "ff_dim"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected 1 or more.")


class EventForecast(NamedTuple):
    """A density of every next interval, and the odds of every next kind; for L events there are L + 1 forecasts."""

    log_weights: Tensor
    """(B, L + 1, components)."""
    location: Tensor
    """(B, L + 1, components): mean of the logarithm of the interval."""
    deviation: Tensor
    """(B, L + 1, components): its standard deviation."""
    logits: Tensor
    """(B, L + 1, marks)."""

    def log_density(self, intervals: Tensor) -> Tensor:
        """Return the log density of intervals, (B, K) with K up to L + 1."""
        log_weights, location, deviation, _ = self._first(intervals.shape[1])
        logs = intervals.log().unsqueeze(-1)
        z = (logs - location) / deviation
        each = log_weights - z.square() / 2 - deviation.log() - math.log(2 * math.pi) / 2 - logs
        return each.logsumexp(-1)

    def log_survival(self, intervals: Tensor, at: Tensor) -> Tensor:
        """Return the log probability that nothing comes within ``intervals`` (B,) behind event ``at`` (B,)."""
        rows = torch.arange(len(at), device=at.device)
        log_weights, location, deviation = (part[rows, at] for part in self[:3])
        z = (intervals.log().unsqueeze(-1) - location) / deviation
        return (log_weights + torch.special.log_ndtr(-z)).logsumexp(-1)

    def mean(self) -> Tensor:
        """Return the expected intervals, (B, L + 1)."""
        return (self.log_weights + self.location + self.deviation.square() / 2).logsumexp(-1).exp()

    def _first(self, count: int) -> EventForecast:
        return EventForecast(*(part[:, :count] for part in self))


class EventModel(Pretrained, nn.Module):
    """Forecast interval and kind of the next event.

    A sinusoid of each event's time is added before every layer; a learned token stands for the beginning, so that the
    first event is forecast too. Times are divided by the mean interval, logarithms of intervals are standardised, by
    buffers that `set_data` fills and that are saved with the weights.

    Source: Feng et al. 2024, arXiv:2405.13956, sec. 4.2: the encoder of Zuo et al. 2020, arXiv:2002.09291, with the
    log-normal mixture of Shchur et al. 2020, arXiv:1909.12127. Differs: the beginning, and dropout is on outputs only.
    """

    Config = EventConfig
    scale: Tensor
    log_mean: Tensor
    log_std: Tensor

    def __init__(self, config: EventConfig) -> None:
        """Make a model with fresh weights."""
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.marks, config.dim)
        self.begin = nn.Parameter(torch.randn(config.dim) * 0.02)
        self.layers = nn.ModuleList(
            Stack(
                config.dim,
                1,
                config.heads,
                mixer=config.mixer,
                mixer_settings={"bias": False},
                causal=True,
                pre_norm=False,
                ff_dim=config.ff_dim,
                activation="gelu",
                dropout=config.dropout,
            )
            for _ in range(config.depth)
        )
        self.density = nn.Sequential(
            nn.Linear(config.dim, config.dim), nn.Tanh(), nn.Linear(config.dim, 3 * config.components)
        )
        self.kinds = nn.Linear(config.dim, config.marks)
        for name, value in (("scale", 1.0), ("log_mean", 0.0), ("log_std", 1.0)):
            self.register_buffer(name, torch.tensor(value))

    def set_data(self, scale: float, log_mean: float, log_std: float) -> None:
        """Set the mean interval, and mean and deviation of the logarithms of intervals."""
        self.scale.fill_(scale)
        self.log_mean.fill_(log_mean)
        self.log_std.fill_(log_std)

    def forward(self, intervals: Tensor, marks: Tensor, mask: Tensor) -> EventForecast:
        """Return forecasts of every event, and of one more.

        Args:
            intervals: since the event before, or the beginning; positive where real; shape (B, L).
            marks: kinds, int64, shape (B, L).
            mask: bool, shape (B, L), True = real; padding follows the events.

        Raises:
            ShapeError: shapes do not fit each other.
        """
        if not intervals.shape == marks.shape == mask.shape or intervals.ndim != 2:
            shapes = ", ".join(str(tuple(each.shape)) for each in (intervals, marks, mask))
            raise ShapeError(f"intervals, marks and mask are {shapes}, expected the same (batch, events).")
        first = torch.zeros_like(intervals[:, :1])
        times = torch.cat([first, intervals.masked_fill(~mask, 0)], 1).cumsum(1) / self.scale
        where = sinusoid(times, self.config.dim)
        real = torch.cat([torch.ones_like(mask[:, :1]), mask], 1)
        begin = self.begin.expand(len(marks), 1, -1)
        x = torch.cat([begin, self.embed(marks)], 1)
        for layer in self.layers:
            x = layer(x + where, key_mask=real).x
        log_weights, location, deviation = self.density(x).chunk(3, -1)
        return EventForecast(
            log_weights.log_softmax(-1),
            self.log_mean + self.log_std * location,
            self.log_std * (F.softplus(deviation) + SMALL),
            self.kinds(x),
        )
