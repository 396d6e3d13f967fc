"""CSV and TSV: a row a point, columns x,y or lat,lon, with or without names."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from polyhead.errors import DataError, nearest
from polyhead_combinatorics.formats.checks import MOST_POINTS, check_points, number
from polyhead_combinatorics.instances import Instance, Kind
from polyhead_combinatorics.settings import InstanceSettings

__all__ = ["read_table"]

_X = ("x", "lon", "lng", "long", "longitude")
_Y = ("y", "lat", "latitude")
_GEOGRAPHIC = ("lon", "lng", "long", "longitude", "lat", "latitude")
_IDS = ("id", "name", "stop")
LIMITS = {
    "capacities": ("demand", "capacity", "load", "weight_kg", "volume"),
    "time windows": ("tw_start", "tw_end", "time_window", "ready_time", "due_date", "due_time", "earliest", "latest"),
}
"""Columns that say what a tour of this app would not keep."""


def read_table(path: Path, settings: InstanceSettings, kind: Kind) -> list[Instance]:
    """Return the one instance of a table.

    Raises:
        DataError: names the file, the row and the column, and the mend.
    """
    with path.open(encoding="utf-8-sig", newline="") as stream:
        head = stream.readline(2**20)
        delimiter = max(",;\t", key=head.count)
        stream.seek(0)
        rows = csv.reader(stream, delimiter=delimiter)
        try:
            columns = [cell.strip().lower() for cell in next(rows)]
            refuse_limits(path.name, columns, settings.ignore)
            x, y = (_column(path.name, columns, *pair) for pair in ((settings.x, _X, "x"), (settings.y, _Y, "y")))
            by = _identity(path.name, columns, settings.id)
            points, names = _points(path.name, columns, rows, x, y, by)
        except csv.Error as error:
            raise DataError(f"{path.name}, line {rows.line_num}: {error}. Save it as plain CSV.") from error
    check_points(points, names, path.name, kind)
    geographic = columns[x] in _GEOGRAPHIC and columns[y] in _GEOGRAPHIC
    metric = ("haversine" if geographic else "euclidean") if settings.metric == "auto" else settings.metric
    if metric == "haversine":
        outside = np.flatnonzero((np.abs(points[:, 0]) > 180) | (np.abs(points[:, 1]) > 90))
        if len(outside):
            row = int(outside[0])
            raise DataError(
                f"{path.name}, row {row + 2}: lon {points[row, 0]:g}, lat {points[row, 1]:g} is not on the globe. Are "
                "the columns swapped (--x, --y), or metres (--metric euclidean)?"
            )
    unit = "km" if metric == "haversine" else ""
    return [Instance(points, tuple(names), metric=metric, name=path.name, unit=unit)]


def refuse_limits(where: str, columns: Sequence[str], ignored: Sequence[str]) -> None:
    """Refuse columns of time windows and capacities, which a tour of this app would not keep.

    Raises:
        DataError: names the column and the tools that keep it.
    """
    for what, names in LIMITS.items():
        found = [column for column in columns if column in names and column not in ignored]
        if found:
            raise DataError(
                f'{where} has the column "{found[0]}": {what} are not kept here. PyVRP and OR-Tools do that; to leave '
                f"them out of account: --ignore {','.join(found)}"
            )


def _column(where: str, columns: Sequence[str], given: str, known: Sequence[str], what: str) -> int:
    if given:
        if given.lower() in columns:
            return columns.index(given.lower())
        guess = nearest(given.lower(), columns)
        mend = f'Did you mean "{guess}"?' if guess else f"It has {', '.join(columns[:10])}."
        raise DataError(f'{where} has no column "{given}" (--{what}). {mend}')
    for name in known:
        if name in columns:
            return columns.index(name)
    raise DataError(f"{where} has no column {' or '.join(known)}; it has {', '.join(columns[:10])}. Name it: --{what}.")


def _identity(where: str, columns: Sequence[str], given: str) -> int | None:
    if given:
        return _column(where, columns, given, (), "id")
    return next((columns.index(name) for name in _IDS if name in columns), None)


def _points(
    where: str, columns: Sequence[str], rows: object, x: int, y: int, by: int | None
) -> tuple[np.ndarray[tuple[int, int], np.dtype[np.float64]], list[str]]:
    points: list[tuple[float, float]] = []
    names: list[str] = []
    unnamed: list[int] = []
    for at, row in enumerate(rows, 2):  # type: ignore[var-annotated, arg-type]  # a csv.reader, which has no public type
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != len(columns):
            raise DataError(f"{where}, row {at} has {len(row)} cells, the header {len(columns)}.")
        if len(points) == MOST_POINTS:
            raise DataError(f"{where} has more than {MOST_POINTS:,} rows. Cut them into districts.")
        points.append(
            (
                number(row[x], f'{where}, row {at}, column "{columns[x]}"'),
                number(row[y], f'{where}, row {at}, column "{columns[y]}"'),
            )
        )
        name = row[by].strip() if by is not None else str(len(points))
        if not name:
            unnamed.append(at)
        names.append(name)
    if unnamed and by is not None:
        shown = ", ".join(str(at) for at in unnamed[:10])
        raise DataError(f'{where}: {len(unnamed)} rows have no "{columns[by]}" (rows {shown}). Name them.')
    return np.array(points, dtype=np.float64).reshape(-1, 2), names
