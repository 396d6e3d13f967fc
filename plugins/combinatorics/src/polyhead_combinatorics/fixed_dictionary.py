"""The paper's two baselines: their output is a dictionary of fixed size, so more points than it has are refused."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyhead import Pretrained
from polyhead.errors import ConfigError, ShapeError
from polyhead.ops import additive_attention_scores
from polyhead_combinatorics.sequence_models import (
    IGNORED,
    Memory,
    State,
    begin,
    chosen_points,
    encode,
    initialise,
    recur,
    shifted_points,
)

__all__ = ["FixedDictionary", "FixedDictionaryConfig", "LSTMAttention", "Seq2Seq"]


@dataclass(frozen=True)
class FixedDictionaryConfig:
    """Sizes of a baseline."""

    features: int = 2
    """Numbers a point has."""
    dim: int = 128
    """Width of encoder and decoder."""
    max_points: int = 20
    """Size of the dictionary without the end: the most points it can name."""
    input_init: float = 2.0
    """Bound of the fresh weights of coordinates; all others, in the paper these too, are drawn from U(-0.08, 0.08)."""


class FixedDictionary(Pretrained, nn.Module):
    """An encoder and a decoder LSTM with a softmax over positions 1..max_points and the end.

    Source: Vinyals, Fortunato, Jaitly 2015, arXiv:1506.03134, sections 2.1, 2.2 and 4.
    """

    Config = FixedDictionaryConfig
    config: FixedDictionaryConfig
    attends = False

    def __init__(self, config: FixedDictionaryConfig) -> None:
        """Build fresh weights, see ``sequence_models.initialise``.

        Raises:
            ConfigError: a size or input_init is not positive.
        """
        super().__init__()
        if min(config.features, config.dim, config.max_points) < 1 or not config.input_init > 0:
            raise ConfigError(
                f"features {config.features}, dim {config.dim} and max_points {config.max_points} must be 1 or more, "
                f"input_init {config.input_init} above 0."
            )
        self.config = config
        dim = config.dim
        context = dim if self.attends else 0
        self.encoder = nn.LSTM(config.features, dim, batch_first=True)
        self.decoder = nn.LSTM(config.features + context, dim, batch_first=True)
        self.first = nn.Parameter(torch.empty(config.features))
        self.head = nn.Linear(dim + context, config.max_points + 1)
        if self.attends:
            self.key = nn.Linear(dim, dim, bias=False)
            self.query = nn.Linear(dim, dim, bias=False)
            self.weight = nn.Parameter(torch.empty(1, dim))
        initialise(self, [self.encoder, self.decoder], config.features, config.input_init)

    @property
    def max_points(self) -> int | None:
        """The most points it takes."""
        return self.config.max_points

    def forward(self, points: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return the logits (B, m, n+1) of every step, told the right answer of the steps before.

        Args:
            points: shape (B, n, F).
            target: tokens, int64 (B, m): 0 = end, 1..n = points, -100 behind the end.
            lengths: int64 (B,): how many points are real; all if None.

        Raises:
            ShapeError: more points than the dictionary has.
        """
        memory, state = self.start(points, lengths)
        inputs = shifted_points(points, target, self.first)
        if not self.attends:
            final = (state.hidden.transpose(0, 1).contiguous(), state.cell.transpose(0, 1).contiguous())
            hidden, _ = self.decoder(inputs, final)
            return self._logits(memory, hidden)
        outputs = []
        for told in inputs.unbind(1):
            features, state = self._attend(memory, state, told.unsqueeze(1))
            outputs.append(features)
        return self._logits(memory, torch.cat(outputs, dim=1))

    def nll(
        self, points: Tensor, target: Tensor, lengths: Tensor | None = None, allowed: Tensor | None = None
    ) -> Tensor:
        """Return -log p of every target token, shape (B, m), 0 for padding; arguments as ``forward``.

        ``allowed``, bool (B, m, n+1), leaves p to some tokens of each step, see ``decoding.allowed_tokens``.
        """
        logits = self.forward(points, target, lengths)
        if allowed is not None:
            # A padded step has no token: its logits stay finite, and cross entropy ignores them.
            logits = logits.masked_fill(~allowed & allowed.any(-1, keepdim=True), -torch.inf)
        return F.cross_entropy(logits.transpose(1, 2), target, ignore_index=IGNORED, reduction="none")

    def start(self, points: Tensor, lengths: Tensor | None = None) -> tuple[Memory, State]:
        """Read the points; see ``Decoder.start``.

        Raises:
            ShapeError: more points than the dictionary has.
        """
        if points.ndim == 3 and points.shape[1] > self.config.max_points:
            raise ShapeError(
                f"points {tuple(points.shape)} are more than the {self.config.max_points} of this dictionary: "
                "a Pointer Network has no such limit."
            )
        states, final = encode(self.encoder, points, lengths, None)
        keys = self.key(states) if self.attends else states[..., :0]
        return Memory(points, lengths, states, keys), begin(final, self.config.dim if self.attends else 0)

    def step(self, memory: Memory, state: State, chosen: Tensor | None) -> tuple[Tensor, State]:
        """Return logits (B, K, n+1) of the next token; see ``Decoder.step``."""
        inputs = chosen_points(memory.points, chosen, self.first)
        if self.attends:
            features, state = self._attend(memory, state, inputs)
        else:
            features, cell = recur(self.decoder, inputs, state)
            state = State(features, cell, state.context)
        return self._logits(memory, features), state

    def _attend(self, memory: Memory, state: State, inputs: Tensor) -> tuple[Tensor, State]:
        """Return what the softmax sees, (B, K, 2D), and the next state; the context is fed to the next step."""
        hidden, cell = recur(self.decoder, torch.cat([inputs, state.context], dim=-1), state)
        logits = additive_attention_scores(
            self.query(hidden).unsqueeze(1), memory.keys.unsqueeze(1), self.weight, lengths=memory.lengths
        ).logits.squeeze(1)
        context = logits.softmax(-1) @ memory.states
        return torch.cat([hidden, context], dim=-1), State(hidden, cell, context)

    def _logits(self, memory: Memory, features: Tensor) -> Tensor:
        """Return logits of the end and of the points there are; those behind each input's length are -inf."""
        count = memory.points.shape[1]
        logits: Tensor = self.head(features)[..., : count + 1]
        if memory.lengths is None:
            return logits
        padded = torch.arange(count + 1, device=logits.device) > memory.lengths[:, None]
        return logits.masked_fill(padded.unsqueeze(1), -torch.inf)


class Seq2Seq(FixedDictionary):
    """LSTM sequence to sequence: the decoder sees of the points what the encoder's last state holds."""


class LSTMAttention(FixedDictionary):
    """LSTM with additive attention and input feeding: a context vector of the points joins the decoder's state."""

    attends = True
