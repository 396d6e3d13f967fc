"""The encoder of the series models: a causal stack over embedded readings, which can be streamed."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from polyhead.nn import Stack
from polyhead.nn.positions import sinusoid

__all__ = ["EncoderState", "SeriesEncoder"]

KERNEL = 3


class EncoderState(NamedTuple):
    """What the encoder carries from reading to reading."""

    last: Tensor
    """(B, 2, channels): the last readings, zeros before the first."""
    time: Tensor
    """(B,), int64: readings so far."""
    stack: Any


class SeriesEncoder(nn.Module):
    """Encode readings so that no code depends on a later one.

    A convolution over the last three readings, a sinusoid of the position, then Transformer blocks with the norm behind
    each sum, around the mixer.

    Source: the host of Feng et al. 2024, Time-Series-Library (DataEmbedding, Transformer). Differs: its convolution is
    circular, which shows the last reading to the first; here the series is padded on the left.
    """

    def __init__(
        self, channels: int, *, dim: int, depth: int, heads: int, ff_dim: int, dropout: float, mixer: str
    ) -> None:
        """Make an encoder; ``mixer`` is one of `polyhead.nn.Stack`, causal."""
        super().__init__()
        self.dim = dim
        self.embed = nn.Conv1d(channels, dim, KERNEL, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.stack = Stack(
            dim,
            depth,
            heads,
            mixer=mixer,
            causal=True,
            pre_norm=False,
            final_norm=True,
            ff_dim=ff_dim,
            activation="gelu",
            dropout=dropout,
        )

    def forward(self, x: Tensor, *, mask: Tensor | None = None, extra: Tensor | None = None) -> Tensor:
        """Return codes (B, N, dim).

        Args:
            x: readings, shape (B, N, channels).
            mask: bool, shape (B, N), True = real; padding follows the readings.
            extra: added to the embedding, shape (B, N, dim).
        """
        y = self.embed(pad(x.transpose(1, 2), (KERNEL - 1, 0))).transpose(1, 2)
        y = y + sinusoid(torch.arange(x.shape[1], device=x.device), self.dim).to(y.dtype)
        if extra is not None:
            y = y + extra
        codes: Tensor = self.stack(self.dropout(y), key_mask=mask).x
        return codes

    def init_state(self, batch: int) -> EncoderState:
        """Return the state before the first reading."""
        like = self.embed.weight
        return EncoderState(
            like.new_zeros(batch, KERNEL - 1, like.shape[1]),
            torch.zeros(batch, dtype=torch.int64, device=like.device),
            self.stack.init_state(batch, device=like.device),
        )

    def step(self, x: Tensor, state: EncoderState) -> tuple[Tensor, EncoderState]:
        """Take one reading of every series, shape (B, channels); return its code (B, dim) and the state behind it."""
        window = torch.cat([state.last, x.unsqueeze(1)], 1)
        y = self.embed(window.transpose(1, 2))[:, :, 0] + sinusoid(state.time, self.dim).to(x.dtype)
        mixed = self.stack.step(self.dropout(y), state=state.stack)
        return mixed.x, EncoderState(window[:, 1:], state.time + 1, mixed.state)
