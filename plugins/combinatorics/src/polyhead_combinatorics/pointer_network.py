"""Pointer Network: a sequence-to-sequence model whose output alphabet is the positions of its own input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from polyhead import Pretrained
from polyhead.errors import ConfigError
from polyhead.ops import additive_attention_scores, pointer_nll
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

__all__ = ["PointerNetwork", "PointerNetworkConfig"]


@dataclass(frozen=True)
class PointerNetworkConfig:
    """Sizes and switches of a Pointer Network."""

    features: int = 2
    """Numbers a point has."""
    dim: int = 128
    """Width of encoder and decoder; the paper has 256 and 512."""
    glimpse: bool = False
    """Look at the points once more before pointing (Bello et al. 2016)."""
    clip: float = 0.0
    """Bound of the logits, 10 in Bello et al. 2016; 0 for none."""
    input_init: float = 2.0
    """Bound of the fresh weights of coordinates; all others, in the paper these too, are drawn from U(-0.08, 0.08)."""
    learned_start: bool = False
    """The encoder starts from the end slot's vector and a learned cell state instead of zeros."""

    @classmethod
    def release(cls, name: str) -> Self:
        """Return the config of a published model.

        Args:
            name: "paper" (Vinyals et al. 2015) or "gchaperon" (its public replication).

        Raises:
            ConfigError: there is no such release.
        """
        releases: dict[str, dict[str, Any]] = {
            "paper": {"dim": 512, "input_init": 0.08},
            "gchaperon": {"dim": 256, "input_init": 0.08, "learned_start": True},
        }
        if name not in releases:
            raise ConfigError(f'No release "{name}" of the Pointer Network. All: {", ".join(releases)}')
        return cls(**releases[name])


class PointerNetwork(Pretrained, nn.Module):
    r"""Point to the next input by content attention from the decoder to the encoder.

    .. math:: u^i_j = v^\top \tanh(W_1 e_j + W_2 d_i), \qquad p(C_i = j \mid C_{<i}, P) = \text{softmax}_j(u^i)

    with :math:`e_j` the encoder's states, :math:`e_0` a learned vector for the end, and :math:`d_i` the decoder's
    states, which reads the coordinates of the point chosen before. One set of weights serves any number of points.

    Complexity: O(B·m·n·D) time for m steps over n points; memory without the (B, m, n, D) hidden layer.
    Source: Vinyals, Fortunato, Jaitly 2015, arXiv:1506.03134, section 2.3; glimpse and clip: Bello et al. 2016,
    arXiv:1611.09940.
    """

    Config = PointerNetworkConfig
    config: PointerNetworkConfig

    def __init__(self, config: PointerNetworkConfig) -> None:
        """Build fresh weights, see ``sequence_models.initialise``.

        Raises:
            ConfigError: a size or input_init is not positive, or clip is negative.
        """
        super().__init__()
        if config.features < 1 or config.dim < 1 or config.clip < 0 or not config.input_init > 0:
            raise ConfigError(
                f"features {config.features} and dim {config.dim} must be 1 or more, clip {config.clip} 0 or more, "
                f"input_init {config.input_init} above 0."
            )
        self.config = config
        dim = config.dim
        self.encoder = nn.LSTM(config.features, dim, batch_first=True)
        self.decoder = nn.LSTM(config.features, dim, batch_first=True)
        self.first = nn.Parameter(torch.empty(config.features))
        self.end = nn.Parameter(torch.empty(dim))
        self.cell = nn.Parameter(torch.empty(dim)) if config.learned_start else None
        self.key = nn.Linear(dim, dim, bias=False)
        self.query = nn.Linear(dim, dim, bias=False)
        self.weight = nn.Parameter(torch.empty(1, dim))
        if config.glimpse:
            self.glimpse_key = nn.Linear(dim, dim, bias=False)
            self.glimpse_query = nn.Linear(dim, dim, bias=False)
            self.glimpse_weight = nn.Parameter(torch.empty(1, dim))
        initialise(self, [self.encoder, self.decoder], config.features, config.input_init)

    @property
    def max_points(self) -> int | None:
        """The most points it takes: any number."""
        return None

    def forward(self, points: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return the logits of every step, told the right answer of the steps before.

        Args:
            points: shape (B, n, F).
            target: tokens, int64 (B, m): 0 = end, 1..n = points, -100 behind the end.
            lengths: int64 (B,): how many points are real; all if None.

        Returns:
            logits (B, m, n+1): column 0 is the end, column j point j; -inf for padded points, 0 for padded steps.
        """
        memory, queries = self._teach(points, target, lengths)
        logits: Tensor = additive_attention_scores(
            queries.unsqueeze(1),
            memory.keys.unsqueeze(1),
            self.weight,
            lengths=_with_end(lengths),
            query_lengths=_steps(target, lengths),
            clip=self.config.clip or None,
        ).logits
        return logits.squeeze(1)

    def nll(
        self, points: Tensor, target: Tensor, lengths: Tensor | None = None, allowed: Tensor | None = None
    ) -> Tensor:
        """Return -log p of every target token, shape (B, m), 0 for padding; arguments as ``forward``.

        ``allowed``, bool (B, m, n+1), leaves p to some tokens of each step, see ``decoding.allowed_tokens``. The logits
        of all steps are never stored.
        """
        memory, queries = self._teach(points, target, lengths)
        loss: Tensor = pointer_nll(
            queries.unsqueeze(1),
            memory.keys.unsqueeze(1),
            self.weight,
            target.clamp(min=0).unsqueeze(1),
            mask=None if allowed is None else allowed.unsqueeze(1),
            lengths=_with_end(lengths),
            query_lengths=_steps(target, lengths),
            clip=self.config.clip or None,
        ).nll
        # Rows are padded at their ends only where lengths are given; a target may still be.
        return loss.squeeze(1).masked_fill(target == IGNORED, 0)

    def start(self, points: Tensor, lengths: Tensor | None = None) -> tuple[Memory, State]:
        """Read the points; see ``Decoder.start``."""
        start = None if self.cell is None else (self.end, self.cell)
        states, final = encode(self.encoder, points, lengths, start)
        states = torch.cat([self.end.expand(points.shape[0], 1, -1), states], dim=1)
        return Memory(points, lengths, states, self.key(states)), begin(final, 0)

    def step(self, memory: Memory, state: State, chosen: Tensor | None) -> tuple[Tensor, State]:
        """Return logits (B, K, n+1) of the next token; see ``Decoder.step``. The keys are shared by all K."""
        hidden, cell = recur(self.decoder, chosen_points(memory.points, chosen, self.first), state)
        logits = additive_attention_scores(
            self._queries(memory, hidden).unsqueeze(1),
            memory.keys.unsqueeze(1),
            self.weight,
            lengths=_with_end(memory.lengths),
            clip=self.config.clip or None,
        ).logits
        return logits.squeeze(1), State(hidden, cell, state.context)

    def _teach(self, points: Tensor, target: Tensor, lengths: Tensor | None) -> tuple[Memory, Tensor]:
        memory, state = self.start(points, lengths)
        final = (state.hidden.transpose(0, 1).contiguous(), state.cell.transpose(0, 1).contiguous())
        hidden, _ = self.decoder(shifted_points(points, target, self.first), final)
        return memory, self._queries(memory, hidden)

    def _queries(self, memory: Memory, hidden: Tensor) -> Tensor:
        """Project decoder states (B, m, D), after a glimpse at the points if there is one."""
        if self.config.glimpse:
            logits = additive_attention_scores(
                self.glimpse_query(hidden).unsqueeze(1),
                self.glimpse_key(memory.states).unsqueeze(1),
                self.glimpse_weight,
                lengths=_with_end(memory.lengths),
            ).logits.squeeze(1)
            hidden = logits.softmax(-1) @ memory.states
        queries: Tensor = self.query(hidden)
        return queries


def _with_end(lengths: Tensor | None) -> Tensor | None:
    """Count the end slot, which is always real."""
    return None if lengths is None else lengths + 1


def _steps(target: Tensor, lengths: Tensor | None) -> Tensor | None:
    """Count the real steps; None where no input is padded, which needs no look at the values."""
    return None if lengths is None else (target != IGNORED).sum(1)
