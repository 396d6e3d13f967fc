"""NPZ files with an array ``data`` (T, N[, C]): PEMS03/04/07/08, STAEformer's and LargeST's layout.

STAEformer and LargeST store the time of day (a fraction) and the day of the week as further values of each reading,
which are checked against ``--start``; LargeST's ``his.npz`` is normalised and carries ``mean`` and ``std``.

Source: github.com/guoshnBJTU/ASTGNN, github.com/XDZhelheim/STAEformer (``lib/data_prepare.py``),
github.com/liuxu77/LargeST (``data/generate_data_for_training.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polyhead.errors import DataError
from polyhead_traffic.data import DAY_S, SensorData
from polyhead_traffic.formats.arrays import members, open_member
from polyhead_traffic.formats.assemble import assemble
from polyhead_traffic.formats.known import with_known_times
from polyhead_traffic.formats.table import MAX_SENSORS, Table, check_ids, lines
from polyhead_traffic.settings import SensorSettings, parse_step
from polyhead_traffic.windows import PROTOCOLS, split_starts

__all__ = ["candidates", "check_clock", "read", "shared_clock"]

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def candidates(files: Sequence[Path]) -> list[Path]:
    """Return the files that could hold the readings."""
    return [file for file in files if file.suffix.lower() == ".npz" and "data" in members(file)]


def read(path: Path, settings: SensorSettings) -> SensorData:
    """Read the array with what lies beside it."""
    with open_member(path, "data") as array:
        if len(array.shape) > 1 and array.shape[1] > MAX_SENSORS:
            raise DataError(f"{array.name} has {array.shape[1]:,} sensors, more than {MAX_SENSORS:,}. Give fewer.")
        readings = array.readings(settings.channel)
        head = _head(path) if len(array.shape) == 3 and array.shape[2] > 1 else None
    if {"mean", "std"} <= set(members(path)):
        readings *= _scalar(path, "std")
        readings += _scalar(path, "mean")
    ids = _ids(path, readings.shape[1])
    settings, said = with_known_times(path, readings.shape[1], settings)
    notes = list(said)
    if not said and head is not None:
        settings = check_clock(path.name, head, settings)
    index = path.with_name("index.npz")
    if index.exists():
        notes.append(_compare_index(index, len(readings), settings))
    own = path.with_suffix(".csv")
    table = Table(ids, readings, np.arange(1, len(readings) + 1), None)
    return assemble(table, path, settings, layout="npz", graph=own if own.exists() else None, notes=notes)


def _ids(path: Path, nodes: int) -> tuple[str, ...]:
    """Return the ids of ``NAME.txt`` beside the file, one a line, else the sensors' numbers."""
    listing = path.with_suffix(".txt")
    if not listing.exists():
        return tuple(str(i) for i in range(nodes))
    ids = tuple(line.strip() for _, line in lines(listing))
    if len(ids) != nodes:
        raise DataError(
            f"{listing.name} lists {len(ids)} sensors, {path.name} has {nodes}. Give the list of these sensors."
        )
    check_ids(listing.name, ids, offset=1)
    return ids


def _head(path: Path) -> NDArray[np.float64] | None:
    """Return the further values of the first two rows, (2, C - 1), if all sensors share them: then they are a clock."""
    with open_member(path, "data") as array:
        return shared_clock(next(array.blocks())[:2, :, 1:].astype(np.float64))


def shared_clock(head: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Return (2, C): values of the first two rows, (2, N, C), if all sensors share them and the first is a clock."""
    shared = len(head) == 2 and np.ptp(head, axis=1).max() == 0
    return head[:, 0] if shared and 0 <= head[0, 0, 0] < 1 and head[1, 0, 0] != head[0, 0, 0] else None


def check_clock(file: str, head: NDArray[np.float64], settings: SensorSettings) -> SensorSettings:
    """Hold ``--start`` and ``--step`` against the time of day and day of the week in the file."""
    step_s = round(((head[1, 0] - head[0, 0]) % 1) * DAY_S)
    second = round(head[0, 0] * DAY_S)
    clock = f"{second // 3600:02}:{second // 60 % 60:02}"
    day = None
    if head.shape[1] > 1 and 0 <= head[0, 1] < 7:
        day = round(head[0, 1] * 7) if head[0, 1] < 1 else round(head[0, 1])  # LargeST divides it by 7
    name = "" if day is None else f" on a {WEEKDAYS[day % 7]}"
    if not settings.start:
        raise DataError(
            f"{file} has no dates; its first row is at {clock}{name}, a step is {step_s} s. Say which day: "
            f"--start 2012-03-01T{clock}."
        )
    start = np.datetime64(settings.start, "s").astype(np.int64)
    weekday = WEEKDAYS[int(start // DAY_S + 3) % 7]
    if int(start) % DAY_S != second or (day is not None and WEEKDAYS[day % 7] != weekday):
        raise DataError(
            f"{file} says its first row is at {clock}{name}, --start {settings.start} is a {weekday}. Mend --start."
        )
    if settings.step and parse_step(settings.step) != step_s:
        raise DataError(f"{file} says a step is {step_s} s, --step is {settings.step}. Leave --step away.")
    return settings.model_copy(update={"step": f"{step_s}s"})


def _scalar(path: Path, key: str) -> float:
    with open_member(path, key) as array:
        value = array.all()
    if value.size != 1 or not np.isfinite(value).all():
        raise DataError(f"{path.name}, key {key}: {value.size} numbers where one is expected. Get the file again.")
    return float(value.reshape(()))


def _compare_index(index: Path, rows: int, settings: SensorSettings) -> str:
    """Say which protocol has the split that ``index.npz`` lists: triples of first row, first future row, end."""
    own = []
    for key in ("train", "val", "test"):
        with open_member(index, key) as array:
            triples = array.all()
        if triples.ndim != 2 or triples.shape[1] != 3:
            raise DataError(f"{index.name}, key {key} has shape {triples.shape}. Windows are rows of three numbers.")
        own.append(triples[:, 0])
    for protocol in PROTOCOLS:
        starts = split_starts(rows, (), settings.history, settings.horizon, protocol)
        parts = (starts["train"], starts["validation"], starts["test"])
        if all(np.array_equal(a, b) for a, b in zip(own, parts, strict=True)):
            return f"The split of {index.name} is that of --protocol {protocol}."
    return f"The split of {index.name} is that of no protocol here and was not taken."
