"""A learned vector for every position."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polyhead.errors import ShapeError
from polyhead.nn.positions.sinusoid import check_positions

__all__ = ["LearnedPositions"]


class LearnedPositions(nn.Module):
    """Add a learned vector for its position to every token.

    Parameters: length · dim.

    Source: Gehring et al. 2017, arXiv:1705.03122, sec. 3.1; initial values as in BERT, arXiv:1810.04805.
    """

    def __init__(self, length: int, dim: int, *, std: float = 0.02) -> None:
        """Make a table.

        Args:
            length: number of positions; there are no others.
            dim: width of a token.
            std: standard deviation of the initial normal values.
        """
        super().__init__()
        self.length, self.dim = length, dim
        self.table = nn.Parameter(torch.randn(length, dim) * std)

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Add positions.

        Args:
            x: features, shape (B, S, dim).
            positions: int64, shape (S,) or (B, S), each below the table's length; 0 to S - 1 if None.

        Returns:
            Shape and dtype of x.

        Raises:
            ShapeError: x is longer than the table or has another dim, or positions do not fit it.
            IndexError: a position is not in the table (on a GPU: torch's device-side assertion).
        """
        if positions is None and x.ndim == 3 and x.shape[1] > self.length:
            raise ShapeError(
                f"x {tuple(x.shape)} has {x.shape[1]} tokens and the table {self.length} positions: "
                f"shorten x, or make the table longer before training."
            )
        code = self.table[check_positions(x, positions, self.dim)]
        return x + code.to(x.dtype)

    def extra_repr(self) -> str:
        """Return what ``print`` shows between the brackets."""
        return f"{self.length}, {self.dim}"
