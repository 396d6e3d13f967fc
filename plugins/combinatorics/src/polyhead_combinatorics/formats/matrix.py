"""A matrix of distances as CSV, with or without names; points are placed to fit it."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from polyhead.errors import DataError
from polyhead_combinatorics.formats.checks import number
from polyhead_combinatorics.instances import Floats, Instance, Kind
from polyhead_combinatorics.settings import InstanceSettings

__all__ = ["MOST_ROWS", "checked_matrix", "place", "read_matrix"]

MOST_ROWS = 5000


def read_matrix(path: Path, settings: InstanceSettings, kind: Kind) -> list[Instance]:
    """Return the one instance of a matrix: bare numbers, or names in the first row and column.

    Raises:
        DataError: names the file, the row and column, and the mend.
    """
    del settings
    if kind != "tsp":
        raise DataError(f"{path.name} holds distances: a {kind} needs coordinates.")
    with path.open(encoding="utf-8-sig", newline="") as stream:
        head = stream.readline(2**22)
        stream.seek(0)
        try:
            rows = [
                row for row in csv.reader(stream, delimiter=max(",;\t", key=head.count)) if any(map(str.strip, row))
            ]
        except csv.Error as error:
            raise DataError(f"{path.name}: {error}. Save it as plain CSV.") from error
    names: tuple[str, ...] = ()
    if not rows[0][0].strip():
        names = tuple(cell.strip() for cell in rows[0][1:])
        told = tuple(row[0].strip() for row in rows[1:])
        if names != told:
            raise DataError(f"{path.name}: the names of its rows are not those of its columns, in the same order.")
        rows = [row[1:] for row in rows[1:]]
    count = len(rows)
    if count > MOST_ROWS:
        raise DataError(f"{path.name} has {count:,} rows, at most {MOST_ROWS:,} are read.")
    for at, row in enumerate(rows, 1):
        if len(row) != count:
            raise DataError(f"{path.name} is not square: {count} rows, and row {at} has {len(row)} distances.")
    matrix = np.array(
        [
            [number(cell, f"{path.name}, row {i}, column {j}") for j, cell in enumerate(row, 1)]
            for i, row in enumerate(rows, 1)
        ]
    )
    return [
        Instance(
            place(checked_matrix(matrix, path.name)), names, matrix=matrix, metric="matrix", name=path.name, placed=True
        )
    ]


def checked_matrix(matrix: Floats, where: str) -> Floats:
    """Return a matrix of distances that a round tour can be planned on.

    Raises:
        DataError: fewer than 3 rows, negative distances, a diagonal that is not 0, or ways of two lengths.
    """
    if len(matrix) < 3:
        raise DataError(f"{where}: {len(matrix)} points, at least 3 are needed.")
    if matrix.min() < 0:
        i, j = np.argwhere(matrix < 0)[0] + 1
        raise DataError(f"{where}, row {i}, column {j}: the distance {matrix[i - 1, j - 1]:g} is negative.")
    if np.diag(matrix).any():
        at = int(np.flatnonzero(np.diag(matrix))[0]) + 1
        raise DataError(f"{where}, row {at}: the distance to itself is {matrix[at - 1, at - 1]:g}, not 0.")
    apart = np.abs(matrix - matrix.T)
    if (apart > 1e-9 * max(1.0, float(matrix.max()))).any():
        i, j = np.unravel_index(apart.argmax(), apart.shape)
        raise DataError(
            f"{where}: from {i + 1} to {j + 1} it is {matrix[i, j]:g} and back {matrix[j, i]:g}. Ways of two lengths "
            "are not solved here; PyVRP and OR-Tools do that."
        )
    return matrix


def place(matrix: Floats) -> Floats:
    """Return points in the plane whose distances are near those given (classical scaling).

    Complexity: O(n³) time. Source: Torgerson 1952, doi:10.1007/BF02288916.
    """
    squares = matrix**2
    inner = -(squares - squares.mean(0) - squares.mean(1)[:, None] + squares.mean()) / 2
    values, vectors = np.linalg.eigh(inner)
    points: Floats = vectors[:, -2:] * np.sqrt(values[-2:].clip(min=0))
    return points
