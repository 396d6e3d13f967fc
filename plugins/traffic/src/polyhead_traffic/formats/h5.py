"""pandas' HDF5 files, "fixed" layout: METR-LA's and PEMS-BAY's ``.h5``, LargeST's ``*_his_YEAR.h5``.

Read by h5py, so that nothing in the file is unpickled and no link leads out of it.

Source: github.com/liyaguang/DCRNN; pandas, ``io/pytables.py`` (class ``BlockManagerFixed``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyhead.errors import DataError
from polyhead_traffic.data import SensorData
from polyhead_traffic.formats.assemble import assemble
from polyhead_traffic.formats.table import MAX_SENSORS, Table, check_ids, scratch
from polyhead_traffic.settings import SensorSettings

__all__ = ["candidates", "read"]

SUFFIXES = (".h5", ".hdf5", ".hdf")
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
BLOCK_VALUES = 1 << 22


def candidates(files: Sequence[Path]) -> list[Path]:
    """Return the files that could hold the readings."""
    return [file for file in files if file.suffix.lower() in SUFFIXES]


def read(path: Path, settings: SensorSettings) -> SensorData:
    """Read the frame with what lies beside it.

    Public distance files list many more sensors than the readings have, so those are left out of the graph.
    """
    adjacency = sorted(path.parent.glob("*_rn_adj.npy"))
    graph = adjacency[0] if len(adjacency) == 1 else None
    table = read_frame(path)
    return assemble(table, path, settings.model_copy(update={"graph_ids": "common"}), layout="h5", graph=graph)


def read_frame(path: Path) -> Table:
    """Read a pandas frame (T, N) of numbers.

    Raises:
        DataError: not HDF5 or cut short, no frame or several, the "table" layout, a link out of the file, pickled
            labels, columns that are no numbers, times that are none.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return _read_group(path.name, _find_frame(path.name, file))
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path.name} is not a readable HDF5 file: {reason}. Get the file again.") from error


def _find_frame(name: str, file: Any) -> Any:
    import h5py

    groups = []
    for key in file:
        _refuse_link(name, file, key)
        if isinstance(file[key], h5py.Group):
            groups.append(file[key])
    frames = [group for group in groups if "axis0" in group and "axis1" in group]
    if len(frames) == 1:
        return frames[0]
    if any("table" in group for group in groups):
        raise DataError(
            f'{name} has pandas\' "table" layout. Write it with to_hdf(..., format="fixed"), or as Parquet.'
        )
    keys = ", ".join(list(file)[:8]) or "nothing"
    raise DataError(
        f"{name} has {len(frames)} pandas frames (it holds {keys}). Give a file with one frame of readings."
    )


def _refuse_link(name: str, group: Any, key: str) -> None:
    import h5py

    if isinstance(group.get(key, getlink=True), h5py.ExternalLink | h5py.SoftLink):
        raise DataError(
            f'{name}: "{key}" is a link to another place, which is not followed. Copy the data into the file.'
        )


def _dataset(name: str, group: Any, key: str) -> Any:
    """Return a plain dataset that lies in this very file."""
    import h5py

    if key not in group:
        raise DataError(f'{name} has no "{key}" in "{group.name}". Write it with pandas\' to_hdf(..., format="fixed").')
    _refuse_link(name, group, key)
    found = group[key]
    if not isinstance(found, h5py.Dataset):
        raise DataError(f'{name}: "{key}" is no array. Write it with pandas\' to_hdf(..., format="fixed").')
    if found.external or found.is_virtual:
        raise DataError(f'{name}: "{key}" lies in another file, which is not followed. Copy the data into the file.')
    return found


def _read_group(name: str, group: Any) -> Table:
    ids = _labels(name, _dataset(name, group, "axis0"))
    if len(ids) > MAX_SENSORS:
        raise DataError(f"{name} has {len(ids):,} sensors, more than {MAX_SENSORS:,}. Give fewer.")
    check_ids(name, ids, offset=1)
    seconds, zone = _times(name, _dataset(name, group, "axis1"))
    column = {label: position for position, label in enumerate(ids)}
    readings = scratch(name, len(seconds), len(ids))
    filled = np.zeros(len(ids), dtype=bool)
    number = 0
    while f"block{number}_values" in group:
        values = _dataset(name, group, f"block{number}_values")
        items = _labels(name, _dataset(name, group, f"block{number}_items"))
        number += 1
        if values.dtype.kind not in "iuf":
            raise DataError(f'{name}: column "{items[0]}" holds {values.dtype}, not numbers. Write readings as floats.')
        if values.shape != (len(seconds), len(items)) or not set(items) <= set(column):
            raise DataError(f"{name}: its arrays do not fit each other. Write it again with pandas.")
        place = np.array([column[item] for item in items])
        filled[place] = True
        _copy(name, values, readings, place)
    if not filled.all():
        raise DataError(f"{name}: its arrays do not fit each other. Write it again with pandas.")
    # Times with a zone are stored in UTC.
    offsets = np.zeros_like(seconds) if zone else None
    return Table(ids, readings, np.arange(1, len(seconds) + 1), seconds, offsets)


def _copy(name: str, values: Any, readings: NDArray[np.float32], place: NDArray[np.int64]) -> None:
    rows = max(1, BLOCK_VALUES // max(len(place), 1))
    for first in range(0, len(readings), rows):
        block = values[first : first + rows]
        if np.isinf(block).any():
            row, sensor = np.argwhere(np.isinf(block))[0]
            raise DataError(
                f"{name}, row {first + row + 1}, column {place[sensor] + 1}: not finite. Write NaN where missing."
            )
        with np.errstate(over="ignore"):
            readings[first : first + rows, place] = block


def _labels(name: str, labels: Any) -> tuple[str, ...]:
    if labels.ndim != 1 or labels.size > MAX_SENSORS * 4:
        raise DataError(f"{name}: {labels.size:,} column labels, more than {MAX_SENSORS:,}. Give fewer sensors.")
    if labels.dtype.kind == "S":
        return tuple(label.decode("utf-8").strip() for label in labels[:])
    if labels.dtype.kind in "iu":
        return tuple(str(label) for label in labels[:])
    raise DataError(f"{name}: its column labels are stored as {labels.dtype} (a pickle?) and are not read. Use texts.")


def _times(name: str, axis: Any) -> tuple[NDArray[np.int64], bool]:
    """Return seconds since 1970, and whether they are UTC of a zone rather than wall time."""
    kind = axis.attrs.get("kind", b"")
    kind = kind.decode() if isinstance(kind, bytes) else str(kind)
    match = re.fullmatch(r"datetime64(?:\[(s|ms|us|ns)\])?", kind)
    if match is None or axis.dtype.kind != "i" or axis.ndim != 1:
        raise DataError(f"{name}: its rows are labelled by {kind or axis.dtype}, not by times. Set a DatetimeIndex.")
    zone = axis.attrs.get("tz")
    return axis[:].astype(np.int64) // PER_SECOND[match[1] or "ns"], zone is not None
