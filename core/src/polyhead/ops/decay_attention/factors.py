"""The decays of a group of chunks as the factors that its matrix products need."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from polyhead.ops.chunks import Piece, decay_matrix, scan_matrix

__all__ = ["ConstantDecay", "Crossed", "Decay", "Factors", "VaryingDecay"]


class Factors(NamedTuple):
    """What is left of what; ``1`` in a shape where all chunks are alike. Chunks have C tokens."""

    inside: Tensor
    """(rows, chunks or 1, C, C): of key j when query i of its chunk comes, times scale; 0 for j > i."""
    entering: Tensor
    """(rows, chunks or 1, C, 1): of the state before the chunk when query i comes, times scale."""
    leaving: Tensor
    """(rows, chunks or 1, C, 1): of key j when the chunk ends."""
    between: Tensor
    """(rows, chunks + 1, chunks + 1): of a state at boundary j when boundary i comes; 0 for j > i."""


class Crossed(NamedTuple):
    """Gradients by where a decay's path starts and ends. A log decay gets the sum of those whose path crosses it.

    Unlike the sum of <q, dq> - <k, dk> over all later tokens, which is shorter to write, nothing cancels.
    """

    inside: Tensor
    """(rows, chunks, C, C): from key j to query i."""
    entering: Tensor
    """(rows, chunks, C): from the chunk's start to query i."""
    leaving: Tensor
    """(rows, chunks, C): from key j to the chunk's end."""
    through: Tensor
    """(rows, chunks): from start to end."""


class Decay(Protocol):
    """Decays of rows of one length."""

    def factors(self, piece: Piece) -> Factors:
        """Return the factors of a piece."""

    def add_gradient(self, piece: Piece, crossed: Crossed) -> None:
        """Add what a piece gives to the gradient of the log decays."""


def _factors(steps: Tensor, between: Tensor, scale: float, dtype: torch.dtype) -> Factors:
    """Build the factors from the log decays of chunks, (rows, chunks or 1, C) in float64."""
    inside = decay_matrix(steps, dtype)
    leaving = inside[..., -1, :].unsqueeze(-1).clone()
    entering = (scale * steps.cumsum(-1).exp()).to(dtype).unsqueeze(-1)
    return Factors(inside.mul_(scale), entering, leaving, between)


class ConstantDecay:
    """One decay for each head: the factors are tables, made once for each size of a piece."""

    def __init__(self, log_decay: Tensor, heads: Tensor, scale: float, dtype: torch.dtype, grad: Tensor | None) -> None:
        """Take log decays (H,), each row's head, the factors' dtype, and where the gradient (H,) is added, or None."""
        self.steps, self.heads, self.scale, self.dtype, self.grad = log_decay.double(), heads, scale, dtype, grad
        self._tables: dict[tuple[int, int], Factors] = {}
        self._last: tuple[Any, Factors] | None = None

    def factors(self, piece: Piece) -> Factors:
        """Return the factors of a piece; most pieces have those of the piece before."""
        asked = (piece.rows.start, piece.rows.stop, piece.chunks, piece.size)
        if self._last is None or self._last[0] != asked:
            self._last = (asked, self._pick(piece))
        return self._last[1]

    def _pick(self, piece: Piece) -> Factors:
        key = (piece.chunks, piece.size)
        if key not in self._tables:
            steps = self.steps[:, None].expand(-1, piece.size)
            between = scan_matrix((piece.size * self.steps)[:, None].expand(-1, piece.chunks), self.dtype)
            self._tables[key] = _factors(steps[:, None], between, self.scale, self.dtype)
        table = self._tables[key]
        heads = self.heads[piece.rows]
        return Factors(*(x.index_select(0, heads) for x in table))

    def add_gradient(self, piece: Piece, crossed: Crossed) -> None:
        """Add each path's gradient as often as the head's decay is on it."""
        place = torch.arange(piece.size, dtype=crossed.inside.dtype, device=crossed.inside.device)
        steps = (place[:, None] - place).flatten()
        by_row = (crossed.inside.flatten(2) @ steps).sum(1)
        by_row = by_row + ((crossed.entering @ (place + 1)) + (crossed.leaving @ (piece.size - 1 - place))).sum(1)
        by_row = by_row + piece.size * crossed.through.sum(1)
        assert self.grad is not None
        self.grad.index_add_(0, self.heads[piece.rows], by_row.to(self.grad.dtype))


class VaryingDecay:
    """A decay for each token."""

    def __init__(self, log_decay: Tensor, scale: float, dtype: torch.dtype, grad: Tensor | None) -> None:
        """Take log decays (rows, length), the factors' dtype, and where the gradient is written, or None."""
        self.steps, self.scale, self.dtype, self.grad = log_decay.double(), scale, dtype, grad

    def factors(self, piece: Piece) -> Factors:
        """Return the factors of a piece."""
        steps = self.steps[piece.rows, piece.tokens].unflatten(1, (piece.chunks, piece.size))
        return _factors(steps, scan_matrix(steps.sum(-1), self.dtype), self.scale, self.dtype)

    def add_gradient(self, piece: Piece, crossed: Crossed) -> None:
        """Sum up the paths that cross each token's decay: to query i ≥ t from key j < t, and so on."""
        size, inside = piece.size, crossed.inside
        from_here = torch.ones(size, size, dtype=inside.dtype, device=inside.device).triu_()  # row t: i ≥ t
        before_here = 1 - from_here  # row t: j < t
        rows = torch.matmul(from_here, inside).mul_(before_here).sum(-1)
        rows += crossed.entering @ from_here.T + crossed.leaving @ before_here.T + crossed.through.unsqueeze(-1)
        assert self.grad is not None
        self.grad[piece.rows, piece.tokens] = rows.flatten(1, 2).to(self.grad.dtype)
