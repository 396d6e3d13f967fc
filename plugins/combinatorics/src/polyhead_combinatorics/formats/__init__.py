"""Read instances from files: the paper's release, TSPLIB, CSV, distance matrices, GeoJSON."""

from __future__ import annotations

from pathlib import Path

from polyhead.errors import DataError
from polyhead_combinatorics.data import FileData
from polyhead_combinatorics.formats.geojson import read_geojson
from polyhead_combinatorics.formats.matrix import read_matrix
from polyhead_combinatorics.formats.released import read_released
from polyhead_combinatorics.formats.table import read_table
from polyhead_combinatorics.formats.tsplib import read_tsplib
from polyhead_combinatorics.instances import Instance, Kind
from polyhead_combinatorics.settings import InstanceSettings

__all__ = ["MOST_BYTES", "open_delaunay", "open_hull", "open_tsp", "read"]

MOST_BYTES = 2_000_000_000
_READERS = {
    "released": read_released,
    "tsplib": read_tsplib,
    "csv": read_table,
    "matrix": read_matrix,
    "geojson": read_geojson,
}
_SUFFIXES = {
    ".zip": "released",
    ".txt": "released",
    ".tsp": "tsplib",
    ".geojson": "geojson",
    ".json": "geojson",
    ".csv": "csv",
    ".tsv": "csv",
}


def read(path: Path, settings: InstanceSettings, kind: Kind) -> list[Instance]:
    """Return the instances of a file.

    Raises:
        DataError: it cannot be read; names the file, the line or row, and the mend.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder: give one file of points, such as {path}/stops.csv.")
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}.") from error
    if size == 0:
        raise DataError(f"{path} is empty: it holds no points.")
    if size > MOST_BYTES:
        raise DataError(f"{path} has {size:,} bytes, at most {MOST_BYTES:,} are read. Cut it into parts.")
    form = settings.format if settings.format != "auto" else _SUFFIXES.get(path.suffix.lower(), "")
    if not form:
        known = ", ".join(_SUFFIXES)
        raise DataError(f'{path}: the suffix "{path.suffix}" says no layout ({known}). Name it with --format.')
    try:
        if form == "csv" and settings.format == "auto" and _is_matrix(path):
            form = "matrix"
        return _READERS[form](path, settings, kind)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from error
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}.") from error


def _is_matrix(path: Path) -> bool:
    """Whether the first line is a row of numbers, or of names behind an empty corner."""
    with path.open(encoding="utf-8-sig") as stream:
        cells = stream.readline(2**20).strip("\r\n").replace("\t", ",").replace(";", ",").split(",")
    if not cells[0].strip():
        return len(cells) > 2
    try:
        return len([float(cell) for cell in cells]) > 2
    except ValueError:
        return False


def open_tsp(path: Path, settings: InstanceSettings) -> FileData:
    """Open a file of stops, or of instances with their tours."""
    return FileData(path, "tsp", read(path, settings, "tsp"))


def open_hull(path: Path, settings: InstanceSettings) -> FileData:
    """Open a file of points, or of instances with their hulls."""
    return FileData(path, "hull", read(path, settings, "hull"))


def open_delaunay(path: Path, settings: InstanceSettings) -> FileData:
    """Open a file of points."""
    return FileData(path, "delaunay", read(path, settings, "delaunay"))
