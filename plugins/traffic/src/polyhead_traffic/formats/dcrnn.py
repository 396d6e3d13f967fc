"""DCRNN's windows, put together again: ``{train,val,test}.npz``, ``x`` and ``y`` (windows, steps, sensors, values).

Windows that follow each other by one step hold every row of the series many times; each is taken once, and all others
are compared with it. Graph WaveNet, MTGNN and many others read the same files.

Source: github.com/liyaguang/DCRNN, ``scripts/generate_training_data.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polyhead.errors import DataError
from polyhead_traffic.data import SensorData
from polyhead_traffic.formats.arrays import members, open_member
from polyhead_traffic.formats.assemble import assemble
from polyhead_traffic.formats.known import with_known_times
from polyhead_traffic.formats.npz import check_clock, shared_clock
from polyhead_traffic.formats.table import MAX_SENSORS, Table, check_ids, lines, scratch
from polyhead_traffic.settings import SensorSettings
from polyhead_traffic.windows import PROTOCOLS, split_starts

__all__ = ["candidates", "read"]

PARTS = ("train", "val", "test")


def candidates(files: Sequence[Path]) -> list[Path]:
    """Return the file that stands for the readings: the first part."""
    return [file for file in files if file.name == "train.npz" and {"x", "y"} <= set(members(file))]


def read(path: Path, settings: SensorSettings) -> SensorData:
    """Read all parts in their order; the split is that of ``--protocol``.

    Raises:
        DataError: a part is missing, shapes differ, or windows do not follow each other by one step.
    """
    parts = [path.with_name(f"{part}.npz") for part in PARTS]
    if lost := [part.name for part in parts if not part.is_file()]:
        raise DataError(f"{path.parent.name} has train.npz but not {', '.join(lost)}. Give all three parts.")
    shapes = [_shape(part, "x") for part in parts]
    if len({shape[1:] for shape in shapes}) > 1:
        listed = ", ".join(f"{part.name} {shape}" for part, shape in zip(parts, shapes, strict=True))
        raise DataError(f"{path.parent.name}: the parts have other shapes: {listed}. Give parts of one network.")
    _, past, sensors, values = shapes[0]
    if sensors > MAX_SENSORS:
        raise DataError(f"{path.name}, key x has {sensors:,} sensors, more than {MAX_SENSORS:,}. Give fewer.")
    if settings.channel >= values:
        raise DataError(
            f"{path.name}, key x has {values} values a reading, no number {settings.channel}. Use a smaller --channel."
        )
    windows = [shape[0] for shape in shapes]
    future = _shape(path, "y")[1]
    readings = scratch(path.parent.name, sum(windows) + past + future - 1, sensors)
    filled, clock = 0, None
    for key, offset in (("x", 0), ("y", past)):
        first = 0
        for part in parts:
            _check_offsets(part)
            for block in _blocks(part, key, _shape(parts[0], key)[1:]):
                if key == "x" and first == 0:
                    clock = shared_clock(block[0, :2, :, 1:].astype(np.float64)) if past > 1 and values > 1 else None
                filled = _lay(part.name, key, block[..., settings.channel], readings, first + offset, filled)
                first += len(block)
    settings, said = with_known_times(path, sensors, settings)
    if clock is not None:
        settings = check_clock(path.name, clock, settings)
    notes = [*said, f"{sum(windows):,} windows of {past} past and {future} future steps were put together again."]
    notes.append(_compare(windows, past, future))
    table = Table(_ids(path, sensors), readings, np.arange(1, len(readings) + 1), None)
    return assemble(table, path, settings, layout="dcrnn", notes=notes)


def _shape(part: Path, key: str) -> tuple[int, ...]:
    with open_member(part, key) as array:
        if len(array.shape) != 4 or 0 in array.shape:
            raise DataError(f"{array.name} has shape {array.shape}. Windows are (windows, steps, sensors, values).")
        return array.shape


def _check_offsets(part: Path) -> None:
    """Refuse windows whose steps leave some out, or whose future does not begin one step after their past."""
    if not {"x_offsets", "y_offsets"} <= set(members(part)):
        return
    offsets = []
    for key in ("x_offsets", "y_offsets"):
        with open_member(part, key) as array:
            if np.prod(array.shape, dtype=np.float64) > 1 << 16:
                raise DataError(f"{array.name} has shape {array.shape}. It is one number a step.")
            offsets.append(array.all().ravel())
    steps = np.concatenate(offsets)
    if (np.diff(steps) != 1).any():
        raise DataError(
            f"{part.name}: its windows have the steps {', '.join(f'{step:g}' for step in steps[:30])}, which leave "
            "some out. Give the series that the windows were cut from."
        )


def _blocks(part: Path, key: str, shape: tuple[int, ...]) -> Iterator[NDArray[np.floating]]:
    with open_member(part, key) as array:
        if array.shape[1:] != shape:
            raise DataError(f"{array.name} has shape {array.shape}, not (windows, {', '.join(map(str, shape))}).")
        yield from array.blocks()


def _lay(
    file: str, key: str, block: NDArray[np.floating], readings: NDArray[np.float32], first: int, filled: int
) -> int:
    """Put windows (B, steps, N), the first of which begins at row ``first``, onto the series; return its end.

    Rows before ``filled`` are there already and have to be the same.
    """
    for window, rows in enumerate(block):
        begin = first + window
        with np.errstate(over="ignore"):
            values = rows.astype(np.float32)
        if np.isinf(values).any():
            step, sensor = np.argwhere(np.isinf(values))[0]
            raise DataError(
                f"{file}, key {key}, window {window + 1}, step {step + 1}, sensor {sensor}: not finite. Write NaN "
                "where missing."
            )
        known = max(min(filled - begin, len(values)), 0)
        if not np.array_equal(readings[begin : begin + known], values[:known], equal_nan=True):
            raise DataError(
                f"{file}, key {key}: the window of row {begin + 1} is not the one before it, moved by one step. "
                "Windows that were shuffled, thinned out or normalised cannot be put together: give the series that "
                "they were cut from."
            )
        readings[begin + known : begin + len(values)] = values[known:]
        filled = max(filled, begin + len(values))
    return filled


def _compare(windows: Sequence[int], past: int, future: int) -> str:
    rows = sum(windows) + past + future - 1
    for protocol in PROTOCOLS:
        starts = split_starts(rows, (), past, future, protocol)
        if [len(starts[split]) for split in ("train", "validation", "test")] == list(windows):
            return f"The split of the files is that of --protocol {protocol}."
    return "The split of the files is that of no protocol here and was not taken."


def _ids(path: Path, sensors: int) -> tuple[str, ...]:
    """Return the ids of ``graph_sensor_ids.txt`` beside the files, else the sensors' numbers."""
    listing = path.with_name("graph_sensor_ids.txt")
    if not listing.exists():
        return tuple(str(i) for i in range(sensors))
    ids = tuple(name.strip() for _, line in lines(listing) for name in line.split(",") if name.strip())
    if len(ids) != sensors:
        raise DataError(f"{listing.name} lists {len(ids)} sensors, {path.name} has {sensors}. Give the list of these.")
    check_ids(listing.name, ids, offset=1)
    return ids
