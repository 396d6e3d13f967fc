"""Codes of places: how alike two of them are falls with the distance between the places."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from polyhead.errors import ConfigError

__all__ = ["PLACES", "PlaceCode", "distance_table"]

PLACES = ("distance", "table", "sinusoid", "random", "none")
EXTRA_ROWS = 4
"""Rows of zeros that the published code appends to its table."""
SMALLEST = 1e-7
"""Eigenvalues below this share of the largest one carry rounding errors only."""


def distance_table(cells: int, width: int, sigma: float) -> Tensor:
    r"""Return codes of the cells 0 to ``cells`` - 1 of one axis, whose cosine is a Gaussian of their distance.

    .. math:: \cos(E_i, E_j) = \exp\left(-\frac{(i - j)^2}{2 \sigma^2}\right)

    The published table is fitted by gradient descent; this is what it converges to, :math:`E = U \sqrt{\Lambda}` of the
    eigendecomposition of the right side, up to a rotation. All rows have the norm ``sqrt(width)``, as theirs nearly do.
    With fewer columns than cells the smallest eigenvalues are left out.

    Args:
        cells: number of cells.
        width: columns.
        sigma: of the Gaussian, in cells.

    Returns:
        Tensor: float64, shape (cells, width).

    Source: Fang et al. 2024, arXiv:2407.13335, distance-preserving positional encoding.

    >>> code = distance_table(6, 8, 2.0) / 8**0.5
    >>> float((code[2] @ code[4] - math.exp(-0.5)).abs()) < 1e-9
    True
    """
    values, vectors = _spectrum(cells, width, sigma)
    table = torch.zeros(cells, width, dtype=torch.float64)
    table[:, : len(values)] = vectors * values.sqrt() * math.sqrt(width)
    return table


def _spectrum(cells: int, width: int, sigma: float) -> tuple[Tensor, Tensor]:
    """Return the largest eigenvalues and their vectors, shapes (k,) and (cells, k)."""
    at = torch.arange(cells, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(_kernel(at, at, sigma))
    kept = (values > SMALLEST * values[-1]).nonzero()[-width:, 0].flip(0)
    return values[kept], vectors[:, kept]


def _kernel(a: Tensor, b: Tensor, sigma: float) -> Tensor:
    return torch.exp(-((a.unsqueeze(-1) - b) ** 2) / (2 * sigma**2))


class PlaceCode(nn.Module):
    """Code rows, columns and whether it is the target: ``[E[row], E[column], E[target]]``, cut to ``dim``.

    - ``distance``: the codes of `distance_table`, between cells by the kernel's own interpolation (Nyström). Places
      outside of the cells count as the outermost ones.
    - ``table``: a frozen table, looked up at the place cut to an integer, as published; what marks the target are
      the codes of rows 0 and 1. Filled with `distance_table`, and to be replaced by a released table.
    - ``sinusoid``: sines and cosines of each axis; for places between cells too.
    - ``random``: fixed random codes of the same norm, at the nearest cell: no distances.
    - ``none``: no place at all.

    But for ``table`` and ``sinusoid`` the two codes that mark the target are trained: rows 0 and 1 of a table are
    nearly the same code.
    """

    table: Tensor
    basis: Tensor

    def __init__(self, dim: int, kind: str, *, cells: int, sigma: float, seed: int = 0) -> None:
        """Make the codes.

        Args:
            dim: columns in all.
            kind: one of `PLACES`.
            cells: of one axis.
            sigma: of the Gaussian, in cells.
            seed: of random codes.

        Raises:
            ConfigError: no such kind, or a size that is not positive.
        """
        super().__init__()
        if kind not in PLACES:
            raise ConfigError(f'place is "{kind}", expected one of: {", ".join(PLACES)}.')
        if cells < 2 or sigma <= 0:
            raise ConfigError(f"cells is {cells} and sigma {sigma}: expected 2 cells or more, and a positive sigma.")
        self.dim, self.kind, self.cells, self.sigma = dim, kind, cells, sigma
        self.width = 2 * math.ceil(dim / 6) if kind == "sinusoid" else dim // 3 + 1
        scale = torch.get_default_dtype()
        if kind == "distance":
            values, vectors = _spectrum(cells, self.width, sigma)
            basis = torch.zeros(cells, self.width, dtype=torch.float64)
            basis[:, : len(values)] = vectors / values.sqrt() * math.sqrt(self.width)
            self.register_buffer("basis", basis.to(scale), persistent=False)
        elif kind == "table":
            rows = torch.cat([distance_table(cells, self.width, sigma), torch.zeros(EXTRA_ROWS, self.width)])
            self.register_buffer("table", rows.to(scale))
        elif kind == "random":
            rows = torch.randn(cells, self.width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            rows = rows / rows.norm(dim=-1, keepdim=True) * math.sqrt(self.width)
            self.register_buffer("table", rows.to(scale))
        self.marks = nn.Parameter(torch.randn(2, self.width)) if kind in ("distance", "random", "none") else None

    def forward(self, place: Tensor, target: Tensor) -> Tensor:
        """Return codes.

        Args:
            place: row and column, in cells, of the parameters' dtype, shape (..., 2).
            target: bool, shape (...), whether it is the target.

        Returns:
            Tensor: shape (..., dim).
        """
        if self.marks is None:
            three = torch.cat([place, target.unsqueeze(-1).to(place.dtype)], -1)
            return self._axis(three).flatten(-2)[..., : self.dim]
        marked = self.marks[target.long()]
        if self.kind == "none":
            axes = marked.new_zeros(*marked.shape[:-1], 2 * self.width)
        else:
            axes = self._axis(place).flatten(-2)
        return torch.cat([axes, marked], -1)[..., : self.dim]

    def _axis(self, at: Tensor) -> Tensor:
        """Return codes of one axis for each number, shape (..., width)."""
        if self.kind == "distance":
            cells = torch.arange(self.cells, dtype=at.dtype, device=at.device)
            return _kernel(at.clamp(0, self.cells - 1), cells, self.sigma) @ self.basis
        if self.kind == "sinusoid":
            exponents = torch.arange(0, self.width, 2, dtype=at.dtype, device=at.device) / self.width
            angles = at.unsqueeze(-1) * 10_000.0**-exponents
            return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)
        index = at.long() if self.kind == "table" else at.round().long()
        return self.table[index.clamp(0, len(self.table) - 1)]
