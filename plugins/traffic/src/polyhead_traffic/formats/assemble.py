"""From a table of readings and the files beside it to the container."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyhead.errors import DataError
from polyhead_traffic.data import SensorData
from polyhead_traffic.formats.graph import read_coordinates, read_embedding, read_graph, refuse_pickle
from polyhead_traffic.formats.known import recognise
from polyhead_traffic.formats.table import Table, first_cells, lines
from polyhead_traffic.formats.timeline import lay_out
from polyhead_traffic.holidays import read_holidays
from polyhead_traffic.settings import SensorSettings

__all__ = ["assemble", "graph_candidates", "is_companion", "visible_files"]

SPEED_UNITS = frozenset({"mph", "mi/h", "km/h", "kmh", "kph", "m/s"})
PLACES = re.compile(r"(location|coordinate|places)", re.IGNORECASE)
GRAPHS = re.compile(r"(^|[_\W])(adj|adjacency|edges?|links?|graph|distances?)([_\W\d]|$)", re.IGNORECASE)


def visible_files(folder: Path) -> list[Path]:
    """Return the files of a folder by name, hidden ones left out."""
    return sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))


def is_companion(file: Path) -> bool:
    """Tell whether a table beside readings is a graph or a list of places, by its name or its header."""
    if PLACES.search(file.stem) or GRAPHS.search(file.stem):
        return True
    if file.suffix.lower() not in (".csv", ".tsv"):
        return False
    try:
        header = {cell.lower() for cell in first_cells(file, rows=1)[0]}
    except DataError:
        return False  # let the reader say what is wrong with it
    return {"from", "to"} <= header or _has_places(header)


def graph_candidates(files: Sequence[Path]) -> list[Path]:
    """Return the files that look like a graph: matrices and edge lists first, index triples last."""
    tables = [file for file in files if file.suffix.lower() in (".csv", ".tsv") and is_companion(file)]
    triples = [file for file in files if file.suffix.lower() == ".txt" and GRAPHS.search(file.stem)]
    return [file for file in tables if not _is_places(file)] + [file for file in triples if _words(file) == 3]


def assemble(
    table: Table,
    path: Path,
    settings: SensorSettings,
    *,
    layout: str,
    graph: Path | None = None,
    notes: Sequence[str] = (),
) -> SensorData:
    """Make the container from a table of readings and what lies beside it.

    Args:
        table: the readings.
        path: the file they are from; graph, coordinates and embedding are looked for in its folder.
        settings: how to read.
        layout: name of the format, for the provenance.
        graph: the graph that belongs to the readings by its name, if there is one.
        notes: what the reader chose.

    Raises:
        DataError: names file, row or key and the mend.
    """
    files = [file for file in visible_files(path.parent) if file != path]
    timeline = lay_out(table, path.name, settings)
    known = recognise(path, len(table.ids))
    unit = settings.unit or (known.unit if known else "")
    speeds = unit.lower() in SPEED_UNITS or "speed" in path.stem.lower()
    read, said = [path], [*notes, *timeline.notes]
    fields: dict[str, Any] = {}
    found = _choose(settings.graph, "graph", path.parent, [graph] if graph else [], graph_candidates(files), said)
    if found is not None:
        fields["graph"], how = read_graph(found, table.ids, settings)
        read.append(found)
        said += how
        if found.suffix.lower() == ".txt":
            _check_order(files, table.ids, found.name)
    places = [file for file in files if file.suffix.lower() in (".csv", ".tsv") and _is_places(file)]
    found = _choose(settings.coordinates, "coordinates", path.parent, [], places, said)
    if found is not None:
        fields["coordinates"] = read_coordinates(found, table.ids, settings)
        read.append(found)
    holidays = read_holidays(settings.holidays, path.parent, timeline.timestamps)
    if holidays:
        said.append(f"Holidays ({settings.holidays}) count as Sundays.")
    embeddings = [file for file in files if re.match(r"SE(\W.*)?\.txt$", file.name) and _words(file) == 2]
    if len(embeddings) == 1:
        _check_order(files, table.ids, embeddings[0].name)
        fields["embedding"] = read_embedding(embeddings[0], len(table.ids))
        read.append(embeddings[0])
    elif embeddings:
        said.append(f"{len(embeddings)} embedding files and none was taken: {_names(embeddings)}.")
    data = SensorData.from_readings(
        timeline.readings,
        timeline.timestamps,
        copy=False,
        zero_is_missing=settings.missing == "zero" or (settings.missing == "auto" and speeds),
        step_s=timeline.step_s,
        ids=table.ids,
        name=known.name if known else path.stem,
        origin=known.origin if known else f"Readings from {path.name} (layout {layout}).",
        licence=known.licence if known else "that of the files",
        unit=unit,
        breaks=timeline.breaks,
        holidays=holidays,
        history=settings.history,
        horizon=settings.horizon,
        protocol=settings.protocol,
        fill=settings.fill,
        files=tuple(file.name for file in read),
        notes=tuple(said),
        **fields,
    )
    silent = [data.ids[column] for column in np.flatnonzero(~data.mask.any(axis=0))]
    if silent:
        names = ", ".join(f'"{name}"' for name in silent[:5]) + (", …" if len(silent) > 5 else "")
        raise DataError(
            f"{path.name}: {len(silent)} sensors have no reading at all: {names}. Remove their columns"
            + (", or say --missing none if 0 is a reading." if data.zero_is_missing else ".")
        )
    return data


def _choose(
    setting: str, what: str, folder: Path, own: Sequence[Path], others: Sequence[Path], notes: list[str]
) -> Path | None:
    """Return the companion file to read: as told, else the one that belongs by name, else the first found."""
    if setting == "none":
        return None
    if setting != "auto":
        path = Path(setting) if Path(setting).exists() else folder / setting
        if not path.is_file():
            raise DataError(f"--{what} {setting}: no such file, here or in {folder.name}. Give its path, or none.")
        return path
    found = list(dict.fromkeys([*own, *others]))
    if not found and what == "graph":
        for pickle in folder.glob("adj*.pkl"):
            refuse_pickle(pickle)
    if len(found) > 1:
        notes.append(f"Took {found[0].name} for the {what}; also there: {_names(found[1:])} (--{what} FILE).")
    return found[0] if found else None


def _names(files: Sequence[Path]) -> str:
    return ", ".join(file.name for file in files)


def _is_places(file: Path) -> bool:
    if PLACES.search(file.stem):
        return True
    try:
        header = {cell.lower() for cell in first_cells(file, rows=1)[0]}
    except DataError:
        return False
    return _has_places(header)


def _has_places(header: set[str]) -> bool:
    return any(names <= header for names in ({"latitude", "longitude"}, {"lat", "lon"}, {"lat", "lng"}))


def _words(file: Path) -> int:
    """Return the number of words in the first line of a text file; 0 if it cannot be read."""
    try:
        return len(next(lines(file))[1].split())
    except DataError:
        return 0


def _check_order(files: Sequence[Path], ids: Sequence[str], user: str) -> None:
    """Refuse a file that names sensors by number where ``graph_sensor_ids.txt`` lists another order."""
    listing = next((file for file in files if file.name == "graph_sensor_ids.txt"), None)
    if listing is None:
        return
    listed = [name.strip() for _, line in lines(listing) for name in line.split(",") if name.strip()]
    if listed != list(ids):
        at = next((i for i, (a, b) in enumerate(zip(listed, ids, strict=False)) if a != b), min(len(listed), len(ids)))
        raise DataError(
            f"{listing.name} and the readings differ from sensor {at} on, and {user} names sensors by number. Put the "
            f"columns of the readings in the order of {listing.name}, or do without {user}."
        )
