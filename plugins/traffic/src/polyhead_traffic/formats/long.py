"""A long table: one reading a row, ``timestamp, sensor_id, value`` in any order of rows."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from polyhead.errors import DataError
from polyhead_traffic.data import SensorData
from polyhead_traffic.formats.assemble import assemble
from polyhead_traffic.formats.table import (
    FLOAT32_MAX,
    MAX_SENSORS,
    MISSING,
    TIME_NAMES,
    Faults,
    Table,
    Times,
    find_mark,
    first_cells,
    lines,
    scratch,
    split_line,
)
from polyhead_traffic.settings import SensorSettings

__all__ = ["candidates", "read"]

SENSOR_NAMES = frozenset({"sensor_id", "sensor", "id", "station", "station_id", "detector", "detector_id", "node"})
VALUE_NAMES = frozenset({"value", "speed", "flow", "volume", "count", "occupancy", "reading"})


def candidates(files: Sequence[Path]) -> list[Path]:
    """Return the tables whose header is a time, a sensor and a value."""
    return [file for file in files if file.suffix.lower() in (".csv", ".tsv") and _is_long(file)]


def _is_long(file: Path) -> bool:
    try:
        return _columns(first_cells(file, rows=1)[0]) is not None
    except DataError:
        return False  # let another format's reader say what is wrong with it


def _columns(header: Sequence[str]) -> tuple[int, int, int] | None:
    """Return the columns of time, sensor and value; None if the header is another one."""
    names = [name.lower() for name in header]
    found = [
        [i for i, name in enumerate(names) if name and name in known]
        for known in (TIME_NAMES, SENSOR_NAMES, VALUE_NAMES)
    ]
    return (found[0][0], found[1][0], found[2][0]) if all(len(each) == 1 for each in found) else None


def read(path: Path, settings: SensorSettings) -> SensorData:
    """Read a long table with what lies beside it."""
    return assemble(read_long(path, settings), path, settings, layout="long")


def read_long(path: Path, settings: SensorSettings) -> Table:
    """Read one reading a row; sensors are ordered by their first row, times rise.

    Raises:
        DataError: names file, row and mend: no time, no number, a sensor and time that come twice, too many sensors.
    """
    stream = lines(path)
    _, header = next(stream)
    mark = find_mark(header)
    names = [name.strip() for name in split_line(header, mark)]
    picked = _columns(names)
    if picked is None:
        raise DataError(f"{path.name}, row 1: columns {', '.join(names[:6])}. Name them timestamp,sensor_id,value.")
    time_column, sensor_column, value_column = picked
    faults, times = Faults(path.name), Times(path.name)
    column: dict[str, int] = {}
    sensors, values, numbers = array("i"), array("f"), array("q")
    for number, line in lines(path):
        if number == 1 or (not numbers and line == header):
            continue
        cells = split_line(line, mark)
        if len(cells) != len(names):
            faults.add(f"row {number}", f"{len(cells)} cells, the header has {len(names)}", "Give every row the same.")
            continue
        text, sensor = cells[value_column].strip(), cells[sensor_column].strip()
        try:
            value = np.nan if text.lower() in MISSING else float(text)
            if "_" in text or abs(value) > FLOAT32_MAX:
                raise ValueError(text)
        except ValueError:
            faults.add(f"row {number}", f'value "{text[:40]}" is not a finite number', "Leave missing readings empty.")
            continue
        if not sensor:
            faults.add(f"row {number}", "the sensor has no name", "Give every reading its sensor.")
            continue
        if not times.add(cells[time_column], number, faults):
            continue
        sensors.append(column.setdefault(sensor, len(column)))
        values.append(value)
        numbers.append(number)
        if len(column) > MAX_SENSORS:
            raise DataError(f"{path.name}, row {number}: more than {MAX_SENSORS:,} sensors. Give fewer.")
    faults.check()
    if not numbers:
        raise DataError(f"{path.name} has a header and no rows. Give one reading a row.")
    if len(column) < 2:
        raise DataError(f'{path.name} has 1 sensor ("{next(iter(column))}"). A network needs at least 2: add sensors.')
    seconds, offsets = times.arrays()
    axis, first, row = np.unique(seconds, return_index=True, return_inverse=True)
    where = np.frombuffer(sensors, np.int32).astype(np.int64)
    numbers_of = np.frombuffer(numbers, np.int64)
    readings = scratch(path.name, len(axis), len(column))
    readings[:] = np.nan
    _place(path.name, row * len(column) + where, np.frombuffer(values, np.float32), numbers_of, readings, settings)
    return Table(tuple(column), readings, numbers_of[first], axis, None if offsets is None else offsets[first])


def _place(
    file: str,
    cell: np.ndarray[tuple[int], np.dtype[np.int64]],
    values: np.ndarray[tuple[int], np.dtype[np.float32]],
    numbers: np.ndarray[tuple[int], np.dtype[np.int64]],
    readings: np.ndarray[tuple[int, int], np.dtype[np.float32]],
    settings: SensorSettings,
) -> None:
    """Write every value to its cell; what comes twice is refused, or merged as the settings say."""
    order = np.argsort(cell, kind="stable")
    again = order[1:][np.diff(cell[order]) == 0]
    if len(again) and settings.duplicates == "refuse":
        faults = Faults(file)
        for position in np.sort(again):
            what = "a reading of this sensor and time was there before"
            faults.add(f"row {numbers[position]}", what, "Remove it, or --duplicates first (or mean).")
        faults.check()
    unique, first, inverse = np.unique(cell, return_index=True, return_inverse=True)
    flat = readings.reshape(-1)
    if settings.duplicates == "mean":
        seen = np.isfinite(values)
        count = np.bincount(inverse, weights=seen)
        total = np.bincount(inverse, weights=np.where(seen, values, 0))
        flat[unique] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    else:
        flat[unique] = values[first]
