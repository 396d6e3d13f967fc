"""TSPLIB 95: symmetric instances with coordinates or explicit distances."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from polyhead.errors import DataError
from polyhead_combinatorics.formats.checks import check_points, number
from polyhead_combinatorics.formats.matrix import MOST_ROWS, checked_matrix, place
from polyhead_combinatorics.instances import Floats, Instance, Kind, Metric
from polyhead_combinatorics.settings import InstanceSettings

__all__ = ["read_tsplib"]

_METRICS: dict[str, Metric] = {"EUC_2D": "euclidean", "CEIL_2D": "ceil", "GEO": "geo", "ATT": "att"}
_SECTIONS = ("NODE_COORD_SECTION", "EDGE_WEIGHT_SECTION", "DISPLAY_DATA_SECTION", "FIXED_EDGES_SECTION", "EOF")
_TOOLS = {"CVRP": "capacities", "ATSP": "ways of two lengths", "SOP": "orders of precedence", "TSPTW": "time windows"}
MOST_BYTES = 500_000_000


def read_tsplib(path: Path, settings: InstanceSettings, kind: Kind) -> list[Instance]:
    """Return the instance of a ``.tsp`` file; lengths are TSPLIB's rounded ones.

    Raises:
        DataError: names the file, what is missing or not supported, and the mend.
    """
    del settings
    if path.stat().st_size > MOST_BYTES:
        raise DataError(f"{path.name} has {path.stat().st_size:,} bytes, at most {MOST_BYTES:,} are read.")
    head: dict[str, str] = {}
    sections: dict[str, list[str]] = {}
    current = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.strip()
        if text.rstrip(" :") in _SECTIONS:
            current = text.rstrip(" :")
            if current == "EOF":
                break
            sections[current] = []
        elif current:
            sections[current].append(text)
        elif text:
            key, colon, value = text.partition(":")
            if not colon:
                raise DataError(f'{path.name}: "{text[:40]}" is neither KEY : VALUE nor a section of TSPLIB.')
            head[key.strip().upper()] = value.strip()
    sort = head.get("TYPE", "TSP").split()[0].upper() if head.get("TYPE", "TSP") else "TSP"
    if sort != "TSP":
        what = _TOOLS.get(sort, f"instances of TYPE {sort}")
        raise DataError(f"{path.name} is of TYPE {sort}: {what} are not solved here. PyVRP and OR-Tools do that.")
    count = int(number(head.get("DIMENSION", ""), f"{path.name}, DIMENSION"))
    weights = head.get("EDGE_WEIGHT_TYPE", "").upper()
    if weights == "EXPLICIT":
        if not 3 <= count <= MOST_ROWS:
            raise DataError(f"{path.name}: DIMENSION is {count}, 3 to {MOST_ROWS:,} are read.")
        matrix = _explicit(path.name, head, sections.get("EDGE_WEIGHT_SECTION", []), count)
        if kind != "tsp":
            raise DataError(f"{path.name} holds distances: a {kind} needs coordinates.")
        checked_matrix(matrix, path.name)
        return [Instance(place(matrix), matrix=matrix, metric="matrix", name=path.name, placed=True)]
    if weights not in _METRICS:
        known = ", ".join([*_METRICS, "EXPLICIT"])
        raise DataError(f'{path.name}: EDGE_WEIGHT_TYPE "{weights}" is not read, these are: {known}.')
    names, points = _coordinates(path.name, sections.get("NODE_COORD_SECTION", []), count)
    if weights == "GEO":
        points = points[:, ::-1].copy()  # written latitude first
    check_points(points, names, path.name, kind)
    return [Instance(points, tuple(names), metric=_METRICS[weights], name=path.name, unit="TSPLIB")]


def _coordinates(where: str, lines: list[str], count: int) -> tuple[list[str], Floats]:
    rows = [line.split() for line in lines if line]
    for at, row in enumerate(rows, 1):
        if len(row) != 3:
            raise DataError(f"{where}, NODE_COORD_SECTION, line {at} has {len(row)} words, a node has name, x and y.")
    if len(rows) != count:
        raise DataError(f"{where}: DIMENSION is {count} and NODE_COORD_SECTION has {len(rows)} nodes.")
    points = [
        [number(text, f"{where}, NODE_COORD_SECTION, line {at}") for text in row[1:]] for at, row in enumerate(rows, 1)
    ]
    return [row[0] for row in rows], np.array(points, dtype=np.float64).reshape(-1, 2)


def _explicit(where: str, head: dict[str, str], lines: list[str], count: int) -> Floats:
    form = head.get("EDGE_WEIGHT_FORMAT", "").upper()
    # Columns of one triangle are rows of the other.
    shapes = {
        "FULL_MATRIX": (count * count, None),
        "UPPER_ROW": (count * (count - 1) // 2, np.triu_indices(count, 1)),
        "LOWER_COL": (count * (count - 1) // 2, np.triu_indices(count, 1)),
        "LOWER_ROW": (count * (count - 1) // 2, np.tril_indices(count, -1)),
        "UPPER_COL": (count * (count - 1) // 2, np.tril_indices(count, -1)),
        "UPPER_DIAG_ROW": (count * (count + 1) // 2, np.triu_indices(count)),
        "LOWER_DIAG_COL": (count * (count + 1) // 2, np.triu_indices(count)),
        "LOWER_DIAG_ROW": (count * (count + 1) // 2, np.tril_indices(count)),
        "UPPER_DIAG_COL": (count * (count + 1) // 2, np.tril_indices(count)),
    }
    if form not in shapes:
        raise DataError(f'{where}: EDGE_WEIGHT_FORMAT "{form}" is not read, these are: {", ".join(shapes)}.')
    expected, places = shapes[form]
    values = [number(text, f"{where}, EDGE_WEIGHT_SECTION") for line in lines for text in line.split()]
    if len(values) != expected:
        raise DataError(f"{where}: {form} of {count} nodes has {expected} distances, here are {len(values)}.")
    if places is None:
        return np.array(values).reshape(count, count)
    matrix = np.zeros((count, count))
    matrix[places] = values
    matrix.T[places] = values
    return matrix
