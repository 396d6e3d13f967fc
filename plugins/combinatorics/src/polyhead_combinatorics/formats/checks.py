"""What every reader checks of the points it found."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from polyhead.errors import DataError
from polyhead_combinatorics.instances import Floats, Kind

__all__ = ["MOST_POINTS", "check_points", "number"]

MOST_POINTS = 100_000
SHOWN = 10


def number(text: str, where: str) -> float:
    """Return a finite number.

    Raises:
        DataError: it is none; names ``where``.
    """
    try:
        value = float(text)
    except ValueError:
        raise DataError(f'{where}: "{text}" is not a number. Use a decimal point.') from None
    if not np.isfinite(value):
        raise DataError(f'{where}: "{text}" is not a finite number. Fill it in, or leave the row out.')
    return value


def check_points(points: Floats, names: Sequence[str], where: str, kind: Kind) -> None:
    """Refuse points that have no answer, or none that is the only one.

    Raises:
        DataError: fewer than 3 points, the same name or place twice, or all points on one line.
    """
    count = len(points)
    if count < 3:
        raise DataError(f"{where}: {count} point{'s' * (count != 1)}, at least 3 are needed.")
    if count > MOST_POINTS:
        raise DataError(f"{where}: {count:,} points, at most {MOST_POINTS:,} are read. Cut them into districts.")
    repeated = [name for name, times in zip(*np.unique(names, return_counts=True), strict=True) if times > 1]
    if repeated:
        shown = ", ".join(f'"{name}"' for name in repeated[:SHOWN])
        raise DataError(f"{where}: {len(repeated)} names stand in several rows ({shown}). Give each row its own.")
    _, first, times = np.unique(points, axis=0, return_index=True, return_counts=True)
    if (times > 1).any():
        at = [names[place] for place in first[times > 1][:SHOWN]]
        raise DataError(
            f"{where}: rows stand at the same place as another ({int(times.sum() - len(times))} of them, the first at "
            f"{', '.join(at)}). Keep one row of each."
        )
    if kind != "tsp" and np.linalg.matrix_rank(points - points[0], tol=1e-12 * max(1.0, np.abs(points).max())) < 2:
        raise DataError(f"{where}: all {count} points lie on one line, they have no {kind}. Add one that does not.")
