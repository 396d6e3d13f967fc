"""Sensor graphs, coordinates and spatial embeddings as they lie beside readings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polyhead.errors import DataError
from polyhead_traffic.data import SensorGraph
from polyhead_traffic.formats.arrays import open_npy
from polyhead_traffic.formats.table import Faults, find_mark, first_cells, lines, split_line
from polyhead_traffic.settings import SensorSettings

__all__ = ["kernel_weights", "read_coordinates", "read_embedding", "read_graph", "refuse_pickle"]

DISTANCES = frozenset({"cost", "dist", "distance", "length", "metres", "meters"})
WEIGHTS = frozenset({"w", "weight", "similarity"})
NAMED = 5


def kernel_weights(
    distances: NDArray[np.float64], *, sigma: float = 0.0, threshold: float = 0.1
) -> tuple[NDArray[np.float64], float]:
    r"""Turn road distances into edge weights by a Gaussian kernel.

    .. math:: w = \exp(-(d / \sigma)^2), \quad \text{0 where smaller than the threshold}

    Args:
        distances: shape (E,), any unit, finite and not negative.
        sigma: width in the same unit; 0 takes the standard deviation of ``distances``.
        threshold: smallest weight that is kept.

    Returns:
        weights (E,) and the sigma that was used.

    Source: Li et al. 2018, DCRNN, ``scripts/gen_adj_mx.py``.
    """
    width = sigma or float(distances.std())
    # One distance for every pair (all lanes 1 km long): then the kernel's width is that distance.
    width = width or float(distances.max(initial=0)) or 1.0
    with np.errstate(over="ignore"):  # a width that is tiny beside the distances gives 0, as it should
        weights = np.exp(-np.square(distances / width))
    return np.where(weights >= threshold, weights, 0.0), width


def read_graph(path: Path, ids: Sequence[str], settings: SensorSettings) -> tuple[SensorGraph, tuple[str, ...]]:
    """Read a graph over the sensors ``ids`` from any of its three layouts, and say what was done.

    - edges: CSV ``from,to,`` and ``distance``, ``cost`` or ``weight``; without a header the third is a distance;
    - matrix: CSV of N rows and N columns of weights, with or without an index row and column;
    - index triples: lines ``i j w`` (GMAN's ``Adj`` files), 0-based in the order of the readings' columns.

    Raises:
        DataError: names file, row and mend: unknown or left-out sensors, a negative, NaN or infinite entry, a matrix
            that is not square or of another size.
    """
    if path.suffix.lower() in (".pkl", ".pickle"):
        refuse_pickle(path)
    if path.suffix.lower() == ".npy":
        return _keep(path, *_read_dense(path, len(ids)), settings), (f"Graph from {path.name}: matrix of weights.",)
    head = first_cells(path)
    if len(head[0]) == 1 and len(head[0][0].split()) == 3:
        edges, weights = _read_triples(path, len(ids))
        notes = [f"Graph from {path.name}: weights by index."]
    elif (len(head[0]) == 3 and len(ids) != 3) or _is_edge_header(head[0]):
        edges, weights, notes = _read_edges(path, ids, settings)
    else:
        edges, weights = _read_matrix(path, ids)
        notes = [f"Graph from {path.name}: matrix of weights."]
    return _keep(path, edges, weights, settings), tuple(notes)


def refuse_pickle(path: Path) -> None:
    """Refuse DCRNN's ``adj_mx.pkl`` and its like, and say what to give instead.

    Raises:
        DataError: always.
    """
    distances = "distances_bay_2017.csv" if "bay" in path.name.lower() else "distances_la_2012.csv"
    raise DataError(
        f"{path.name} is a pickle, which could run any code when opened, and is refused. Give the distances it was "
        f"made from, {distances} of github.com/liyaguang/DCRNN (data/sensor_graph): --graph {distances}; or --graph "
        "none."
    )


def _keep(path: Path, edges: NDArray[np.int64], weights: NDArray[np.float64], settings: SensorSettings) -> SensorGraph:
    kept = weights > 0
    if not (edges[0][kept] != edges[1][kept]).any():
        raise DataError(
            f"{path.name} connects no two sensors (smallest weight kept: {settings.threshold:g}). Check its units, "
            "lower --threshold, raise --sigma, or do without: --graph none."
        )
    return SensorGraph(edges[:, kept], weights[kept])


def _read_dense(path: Path, nodes: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Read a square matrix from a ``.npy`` file, row by row."""
    edges, weights = [], []
    array = open_npy(path)
    with array.stream:
        if array.shape != (nodes, nodes):
            raise DataError(
                f"{path.name} has shape {array.shape}, but the readings have {nodes} sensors. Give the square matrix "
                "of these sensors, or --graph none."
            )
        first = 0
        for block in array.blocks():
            wrong = ~(np.isfinite(block) & (block >= 0))
            if wrong.any():
                row, column = np.argwhere(wrong)[0]
                raise DataError(
                    f"{path.name}, row {first + row + 1}, column {column + 1}: weight {block[row, column]} is negative "
                    "or not finite. Weights are 0 or more."
                )
            row, column = np.nonzero(block)
            edges.append(np.stack([row + first, column]))
            weights.append(block[row, column].astype(np.float64))
            first += len(block)
    return np.concatenate(edges, axis=1).astype(np.int64), np.concatenate(weights)


def _is_edge_header(cells: Sequence[str]) -> bool:
    names = [cell.lower() for cell in cells]
    return "from" in names and "to" in names


def _read_triples(path: Path, nodes: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    edges, weights, faults = [], [], Faults(path.name)
    for number, line in lines(path):
        try:
            first, second, third = line.split()
            i, j, w = int(first), int(second), float(third)
        except ValueError:
            faults.add(f"row {number}", f'"{line[:40]}" is not "i j w"', "Write two sensor numbers and a weight.")
            continue
        if not (0 <= i < nodes and 0 <= j < nodes):
            faults.add(
                f"row {number}",
                f"sensor {i if not 0 <= i < nodes else j} is not among the {nodes} of the readings (0 to {nodes - 1})",
                "Give the graph of these sensors, or --graph none.",
            )
        elif not (math.isfinite(w) and w >= 0):
            faults.add(f"row {number}", f"weight {third} is negative or not finite", "Weights are 0 or more.")
        elif w > 0:
            edges.append((i, j))
            weights.append(w)
        if len(weights) > nodes * nodes:
            raise DataError(f"{path.name} has more than {nodes * nodes:,} edges. Write each pair of sensors once.")
    faults.check()
    return np.array(edges, np.int64).reshape(-1, 2).T, np.array(weights, np.float64)


def _read_edges(
    path: Path, ids: Sequence[str], settings: SensorSettings
) -> tuple[NDArray[np.int64], NDArray[np.float64], list[str]]:
    rows = _cells(path)
    number, names = next(rows)
    lower = [name.lower() for name in names]
    if _is_edge_header(names):
        kind = next((name for name in lower if name in DISTANCES | WEIGHTS), None)
        if kind is None:
            raise DataError(
                f"{path.name}, row 1: columns {', '.join(names)}: none is a distance or a weight. Name the third "
                "column distance, cost or weight."
            )
        take = [lower.index("from"), lower.index("to"), lower.index(kind)]
        distances = kind in DISTANCES
    else:
        rows, take, distances = _cells(path), [0, 1, 2], True
    column = {name: position for position, name in enumerate(ids)}
    found: dict[tuple[int, int], float] = {}
    unknown: dict[str, int] = {}
    mentioned: set[int] = set()
    faults = Faults(path.name)
    what = "distance" if distances else "weight"
    for number, cells in rows:
        if len(cells) != len(names):
            faults.add(f"row {number}", f"{len(cells)} cells instead of {len(names)}", "Write from,to,distance.")
            continue
        first, second, third = (cells[position] for position in take)
        try:
            value = float(third)
        except ValueError:
            faults.add(f"row {number}", f'{what} "{third[:40]}" is not a number', "Write a number, or remove the row.")
            continue
        if math.isnan(value) or value < 0 or (math.isinf(value) and not distances):
            faults.add(
                f"row {number}", f"{what} {third} is negative or not finite", "Write 0 or more, or remove the row."
            )
            continue
        missing = [name for name in (first, second) if name not in column]
        unknown |= {name: number for name in missing if name not in unknown}
        if not missing:
            mentioned |= {column[first], column[second]}
            if math.isfinite(value):  # an infinite distance is how some files write "not connected"
                found[column[first], column[second]] = value
    faults.check()
    left_out = [name for position, name in enumerate(ids) if position not in mentioned]
    if settings.graph_ids == "strict":
        _refuse_ids(path.name, unknown, left_out)
    edges = np.array(list(found), np.int64).reshape(-1, 2).T
    values = np.array(list(found.values()), np.float64)
    notes = [f"Graph from {path.name}: {len(found):,} {what}s."]
    if unknown or left_out:
        notes.append(
            f"Of the graph's sensors {len(unknown):,} have no readings and were left out; {len(left_out):,} sensors of "
            "the readings are not in the graph."
        )
    if not distances:
        return edges, values, notes
    weights, sigma = kernel_weights(values, sigma=settings.sigma, threshold=settings.threshold)
    if not settings.sigma and _isolates_most(edges, weights):
        # Roads of much the same length: their deviation says nothing about what is near.
        weights, sigma = kernel_weights(values, sigma=_rms(values), threshold=settings.threshold)
    notes[0] = (
        f"{notes[0][:-1]}, made weights by a Gaussian kernel (sigma {sigma:.6g}, threshold {settings.threshold:g})."
    )
    return edges, weights, notes


def _rms(values: NDArray[np.float64]) -> float:
    """Return the root mean square."""
    return float(np.sqrt(np.square(values).mean()))


def _isolates_most(edges: NDArray[np.int64], weights: NDArray[np.float64]) -> bool:
    """Tell whether most sensors that have edges lose all of them."""
    other = edges[0] != edges[1]
    return 2 * len(np.unique(edges[:, other & (weights > 0)])) < len(np.unique(edges[:, other]))


def _refuse_ids(file: str, unknown: dict[str, int], left_out: Sequence[str]) -> None:
    if unknown:
        names = ", ".join(f'"{name}" (row {row})' for name, row in list(unknown.items())[:NAMED])
        raise DataError(
            f"{file} names {len(unknown):,} sensors that the readings do not have: {names}{_more(unknown)}. Remove "
            "them, or leave them out with --graph-ids common."
        )
    if left_out:
        names = ", ".join(f'"{name}"' for name in left_out[:NAMED])
        raise DataError(
            f"{file} has no edge of {len(left_out):,} sensors of the readings: {names}{_more(left_out)}. Add them, or "
            "keep them without edges with --graph-ids common."
        )


def _more(names: dict[str, int] | Sequence[str]) -> str:
    return ", …" if len(names) > NAMED else ""


def _read_matrix(path: Path, ids: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    nodes = len(ids)
    rows = _cells(path)
    number, cells = next(rows)
    labels = cells[1:] if cells[0] == "" else None
    if labels is None:
        rows = _cells(path)
    elif sorted(labels) != sorted(ids) and labels != [str(i) for i in range(nodes)]:
        odd = next((name for name in labels if name not in ids), None) or next(
            name for name in ids if name not in labels
        )
        raise DataError(
            f"{path.name}, row 1: its {len(labels)} sensors are not the {nodes} of the readings; the first that "
            "differs is "
            f'"{odd}". Give the graph of these sensors, or --graph none.'
        )
    # A matrix labelled by ids may list them in another order than the readings.
    place = {name: i for i, name in enumerate(ids)}
    order = np.array([place.get(name, i) for i, name in enumerate(labels or ids)])
    edges, weights, faults = [], [], Faults(path.name)
    count = 0
    for number, cells in rows:
        values = cells if labels is None else cells[1:]
        if len(values) != nodes:
            raise DataError(
                f"{path.name}, row {number}: {len(values)} columns, but the readings have {nodes} sensors. Give the "
                "square matrix of these sensors, or --graph none."
            )
        if count == nodes:
            raise DataError(
                f"{path.name} has more than {nodes} rows, one for each sensor of the readings. Give a square matrix."
            )
        for j, cell in enumerate(values):
            try:
                weight = float(cell)
            except ValueError:
                faults.add(
                    f"row {number}, column {j + 1}", f'"{cell[:40]}" is not a number', "Write 0 where there is no edge."
                )
                continue
            if not (math.isfinite(weight) and weight >= 0):
                faults.add(
                    f"row {number}, column {j + 1}",
                    f"weight {cell} is negative or not finite",
                    "Weights are 0 or more.",
                )
            elif weight > 0:
                edges.append((order[count], order[j]))
                weights.append(weight)
        count += 1
    faults.check()
    if count < nodes:
        raise DataError(
            f"{path.name} has {count} rows for {nodes} sensors. Give a square matrix in the order of the readings."
        )
    return np.array(edges, np.int64).reshape(-1, 2).T, np.array(weights, np.float64)


def _cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, stripped cells)."""
    mark = ""
    for number, line in lines(path):
        mark = mark or find_mark(line)
        yield number, [cell.strip() for cell in split_line(line, mark)]


def read_coordinates(path: Path, ids: Sequence[str], settings: SensorSettings) -> NDArray[np.float64] | None:
    """Read (N, 2) latitudes and longitudes in degrees: ``[index,]sensor_id,latitude,longitude``, header optional.

    Returns:
        None under ``graph_ids = common`` if some sensor has no row.

    Raises:
        DataError: names file, row and mend: no number, out of range (swapped), or a sensor without a row.
    """
    column = {name: position for position, name in enumerate(ids)}
    found = np.full((len(ids), 2), np.nan)
    faults = Faults(path.name)
    take: list[int] = []
    for number, cells in _cells(path):
        if not take:
            take, header = _coordinate_columns(path.name, cells)
            if header:
                continue
        if len(cells) <= max(take):
            faults.add(f"row {number}", f"{len(cells)} cells", "Write sensor_id,latitude,longitude.")
            continue
        name, *numbers = (cells[position] for position in take)
        try:
            latitude, longitude = (float(text) for text in numbers)
        except ValueError:
            faults.add(
                f"row {number}", f'"{",".join(numbers)[:40]}" are not two numbers', "Write degrees, such as 34.15."
            )
            continue
        if not (abs(latitude) <= 90 and abs(longitude) <= 180):
            swapped = " Latitude and longitude seem swapped." if abs(latitude) <= 180 and abs(longitude) <= 90 else ""
            mend = f"Latitudes lie in -90 to 90, longitudes in -180 to 180 degrees.{swapped}"
            faults.add(f"row {number}", f"({latitude:g}, {longitude:g}) is no place on earth", mend)
        elif name in column:
            found[column[name]] = latitude, longitude
    faults.check()
    lost = [name for name, row in zip(ids, found, strict=True) if np.isnan(row).any()]
    if lost and settings.graph_ids == "common":
        return None
    if lost:
        names = ", ".join(f'"{name}"' for name in lost[:NAMED])
        raise DataError(
            f"{path.name} has no row for {len(lost):,} sensors of the readings: {names}{_more(lost)}. Add them, or do "
            "without: --coordinates none."
        )
    return found


def _coordinate_columns(file: str, cells: Sequence[str]) -> tuple[list[int], bool]:
    """Return the columns of id, latitude and longitude, and whether this first row is a header."""
    lower = [cell.lower() for cell in cells]
    latitude = next((i for i, name in enumerate(lower) if name in {"latitude", "lat"}), None)
    longitude = next((i for i, name in enumerate(lower) if name in {"longitude", "lon", "lng", "long"}), None)
    name = next((i for i, name in enumerate(lower) if name in {"sensor_id", "sensor", "id", "station", "node"}), None)
    if latitude is not None and longitude is not None and name is not None:
        return [name, latitude, longitude], True
    if len(cells) == 3:
        return [0, 1, 2], False
    raise DataError(f"{file}, row 1: columns {', '.join(cells[:6])}. Name them sensor_id,latitude,longitude.")


def read_embedding(path: Path, nodes: int) -> NDArray[np.float32]:
    """Read a spatial embedding in word2vec's text format: first line ``N D``, then ``index v1 … vD`` in any order.

    Returns:
        (N, D) float32 in the order of the readings' columns.

    Raises:
        DataError: another number of sensors, a row too short or long, a value that is not finite, a sensor missing.
    """
    rows = lines(path)
    number, line = next(rows)
    try:
        count, width = (int(text) for text in line.split())
    except ValueError:
        raise DataError(f'{path.name}, row 1: "{line[:40]}" is not "sensors dimensions", such as "207 64".') from None
    if count != nodes or not 0 < width <= 4096:
        raise DataError(
            f"{path.name}, row 1: {count} sensors of {width} values, but the readings have {nodes} sensors. Give the "
            "embedding of these sensors, or --set task.embedding=node2vec."
        )
    embedding = np.full((nodes, width), np.nan, np.float32)
    faults = Faults(path.name)
    for number, line in rows:
        cells = line.split()
        try:
            index, values = int(cells[0]), [float(cell) for cell in cells[1:]]
        except ValueError:
            faults.add(f"row {number}", "not an index and numbers", "Write a sensor number and its values.")
            continue
        if not 0 <= index < nodes or len(values) != width or not all(map(math.isfinite, values)):
            what = f"sensor {index} with {len(values)} values, not all of them fit"
            faults.add(f"row {number}", what, f"Sensors are 0 to {nodes - 1}, with {width} finite values each.")
            continue
        embedding[index] = values
    faults.check()
    if np.isnan(embedding).any():
        lost = int(np.flatnonzero(np.isnan(embedding).any(axis=1))[0])
        raise DataError(f"{path.name} has no row for sensor {lost}. Give one row for each of the {nodes} sensors.")
    return embedding
