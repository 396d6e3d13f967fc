"""What Pointer Networks and the paper's two baselines share: encoder, start state, teacher forcing, one decoding step.

Tokens are 0 for the end and 1..n for the input points. A model that decodes gives, for K partial answers of each of B
inputs at once, the logits of the next token; see ``Decoder``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from polyhead.errors import ShapeError

__all__ = ["IGNORED", "Decoder", "Memory", "State", "encode", "initialise", "shifted_points"]

IGNORED = -100
"""Fills targets behind their end."""
INITIAL = 0.08


class Memory(NamedTuple):
    """What a decoder knows of its inputs; the same for all partial answers."""

    points: Tensor
    """Shape (B, n, F)."""
    lengths: Tensor | None
    """Int64, (B,); None if all n points are real."""
    states: Tensor
    """Encoder states, (B, n, D)."""
    keys: Tensor
    """Projected for additive attention, (B, n or n+1, D); empty for a model without attention."""


class State(NamedTuple):
    """What a decoder carries from step to step, for K partial answers of each input."""

    hidden: Tensor
    """Shape (B, K, D)."""
    cell: Tensor
    """Shape (B, K, D)."""
    context: Tensor
    """Shape (B, K, C): what attention fed back, C = 0 for a model without input feeding."""


class Decoder(Protocol):
    """A model that answers token by token."""

    def start(self, points: Tensor, lengths: Tensor | None) -> tuple[Memory, State]:
        """Read the points; return what is known of them, and the state before the first token, K = 1."""
        ...

    def step(self, memory: Memory, state: State, chosen: Tensor | None) -> tuple[Tensor, State]:
        """Return logits (B, K, n+1) of the next token after ``chosen`` (B, K), None before the first one."""
        ...


def initialise(module: nn.Module, lstms: Sequence[nn.LSTM], features: int, input_init: float) -> None:
    """Draw every parameter from U(-0.08, 0.08) but what multiplies coordinates, from U(-input_init, input_init).

    Coordinates lie between 0 and 1. Weights of 0.08 make the states of all points nearly equal, and what two of them
    have to do with each other, which a tour depends on, a product of several such small numbers: the loss then stays
    for thousands of steps where it began.

    Args:
        module: all parameters of it are drawn.
        lstms: those whose first ``features`` inputs are coordinates.
        features: numbers a point has.
        input_init: the bound; 0.08 in the paper.
    """
    for parameter in module.parameters():
        nn.init.uniform_(parameter, -INITIAL, INITIAL)
    with torch.no_grad():
        for lstm in lstms:
            weight: Tensor = lstm.get_parameter("weight_ih_l0")
            weight[:, :features].uniform_(-input_init, input_init)


def encode(
    lstm: nn.LSTM, points: Tensor, lengths: Tensor | None, start: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Run the encoder; padding changes nothing.

    Args:
        lstm: batch first, one layer.
        points: shape (B, n, F).
        lengths: int64, (B,), each at least 1; None if all points are real.
        start: hidden and cell state before the first point, (D,) each; zeros if None.

    Returns:
        states (B, n, D), zeros behind the length, and hidden and cell state (1, B, D) at each input's last point.

    Raises:
        ShapeError: points are not (B, n, F), or a length is not between 1 and n.
    """
    if points.ndim != 3 or points.shape[2] != lstm.input_size:
        raise ShapeError(f"points {tuple(points.shape)} are not (batch, n, {lstm.input_size}).")
    batch, count, _ = points.shape
    initial = None
    if start is not None:
        hidden, cell = (x.expand(1, batch, lstm.hidden_size).contiguous() for x in start)
        initial = (hidden, cell)
    if lengths is None or batch == 0:
        return lstm(points, initial)
    if tuple(lengths.shape) != (batch,):
        raise ShapeError(f"lengths {tuple(lengths.shape)} is not (batch,) = {(batch,)}.")
    counts = lengths.cpu()
    if int(counts.min()) < 1 or int(counts.max()) > count:
        raise ShapeError(f"lengths are {int(counts.min())} to {int(counts.max())}, expected 1 to {count}.")
    if int(counts.min()) == count:
        return lstm(points, initial)
    packed = nn.utils.rnn.pack_padded_sequence(points, counts, batch_first=True, enforce_sorted=False)
    outputs, final = lstm(packed, initial)
    states, _ = nn.utils.rnn.pad_packed_sequence(outputs, batch_first=True, total_length=count)
    return states, final


def shifted_points(points: Tensor, target: Tensor, first: Tensor) -> Tensor:
    """Return what a decoder reads when it is told the right answer: ``first``, then the point of each token before.

    Args:
        points: shape (B, n, F).
        target: tokens, (B, m); ends and padding stand for no point and are read as the first one.
        first: the learned input of step 1, shape (F,).

    Returns:
        shape (B, m, F).
    """
    batch, steps = target.shape
    index = (target[:, : steps - 1].clamp(min=1) - 1).unsqueeze(-1).expand(-1, -1, points.shape[2])
    told = points.gather(1, index)
    return torch.cat([first.expand(batch, 1, -1), told], dim=1)


def chosen_points(points: Tensor, chosen: Tensor | None, first: Tensor) -> Tensor:
    """Return the points of tokens ``chosen`` (B, K), or ``first`` for each input; shape (B, K, F)."""
    if chosen is None:
        return first.expand(points.shape[0], 1, -1)
    index = (chosen.clamp(min=1) - 1).unsqueeze(-1).expand(-1, -1, points.shape[2])
    return points.gather(1, index)


def recur(lstm: nn.LSTM, inputs: Tensor, state: State) -> tuple[Tensor, Tensor]:
    """Advance all partial answers by one step in one call; return hidden and cell state (B, K, D)."""
    batch, beams, width = inputs.shape
    before = tuple(x.reshape(1, batch * beams, -1) for x in (state.hidden, state.cell))
    _, (hidden, cell) = lstm(inputs.reshape(batch * beams, 1, width), before)
    return hidden.view(batch, beams, -1), cell.view(batch, beams, -1)


def begin(final: tuple[Tensor, Tensor], context: int) -> State:
    """Return the decoder's first state from the encoder's last one, (1, B, D) each."""
    hidden, cell = (x.transpose(0, 1) for x in final)
    return State(hidden, cell, hidden.new_zeros(hidden.shape[0], 1, context))
