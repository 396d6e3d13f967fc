"""Classify a series: causal codes, and a head over all of them or the last one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyhead.errors import ConfigError, ShapeError
from polyhead.models import Pretrained
from polyhead_agents.series import EncoderState, SeriesEncoder

__all__ = ["ClassifierConfig", "SeriesClassifier"]

HEADS = ("flatten", "last", "mean")


@dataclass(frozen=True)
class ClassifierConfig:
    """Sizes and switches of a classifier."""

    channels: int
    classes: int
    length: int
    """Readings of the longest series."""
    mixer: str = "aaren"
    """``aaren``, or ``softmax`` for the Transformer of the same size."""
    head: str = "flatten"
    """``flatten``: all codes side by side, as published; ``last`` or ``mean``: of the codes so far, for streams."""
    dim: int = 128
    depth: int = 3
    heads: int = 8
    ff_dim: int = 256
    dropout: float = 0.1

    def __post_init__(self) -> None:
        """Check what no type says.

        Raises:
            ConfigError: a size below 1, or an unknown head.
        """
        for name in ("channels", "classes", "length", "dim", "depth", "heads", "ff_dim"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected 1 or more.")
        if self.head not in HEADS:
            raise ConfigError(f'head is "{self.head}". All: {", ".join(HEADS)}')


class SeriesClassifier(Pretrained, nn.Module):
    """Tell the class of a series of readings.

    Readings are standardised inside, by buffers that `set_data` fills and that are saved with the weights.

    Source: Feng et al. 2024, arXiv:2405.13956, sec. 4.4, on Time-Series-Library's Transformer. Differs: a causal
    embedding (see `SeriesEncoder`), and heads that can be streamed.
    """

    Config = ClassifierConfig
    mean: Tensor
    std: Tensor

    def __init__(self, config: ClassifierConfig) -> None:
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
        self.dropout = nn.Dropout(config.dropout)
        width = config.dim * (config.length if config.head == "flatten" else 1)
        self.head = nn.Linear(width, config.classes)
        self.register_buffer("mean", torch.zeros(config.channels))
        self.register_buffer("std", torch.ones(config.channels))

    def set_data(self, mean: Tensor, std: Tensor) -> None:
        """Set what readings are standardised by, each (channels,)."""
        self.mean.copy_(mean)
        self.std.copy_(std)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return logits (B, classes).

        Args:
            x: readings, shape (B, N, channels).
            mask: bool, shape (B, N), True = real; padding follows the readings, of which there is at least one.

        Raises:
            ShapeError: the series are longer than the head is wide, or of other channels.
        """
        config = self.config
        if x.ndim != 3 or x.shape[2] != config.channels or (config.head == "flatten" and x.shape[1] > config.length):
            raise ShapeError(f"x {tuple(x.shape)} is not (batch, up to {config.length}, {config.channels}).")
        x = ((x - self.mean) / self.std).masked_fill(~mask.unsqueeze(-1), 0)
        codes = self.dropout(F.gelu(self.encoder(x, mask=mask))).masked_fill(~mask.unsqueeze(-1), 0)
        if config.head == "flatten":
            codes = F.pad(codes, (0, 0, 0, config.length - x.shape[1])).flatten(1)
        elif config.head == "mean":
            codes = codes.sum(1) / mask.sum(1, keepdim=True)
        else:
            codes = codes[torch.arange(len(x), device=x.device), mask.sum(1) - 1]
        logits: Tensor = self.head(codes)
        return logits

    def init_state(self, batch: int) -> EncoderState:
        """Return the state before the first reading.

        Raises:
            ConfigError: the head needs all codes at once.
        """
        if self.config.head != "last":
            raise ConfigError(f'The head "{self.config.head}" is not streamed. Fit with model.head=last.')
        return self.encoder.init_state(batch)

    def step(self, x: Tensor, state: EncoderState) -> tuple[Tensor, EncoderState]:
        """Take one reading of every series, (B, channels); return logits from all so far, and the state."""
        code, state = self.encoder.step((x - self.mean) / self.std, state)
        return self.head(F.gelu(code)), state
