"""The time axis of a table: regular steps, duplicates, disorder and gaps, mended or refused by name."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
from numpy.typing import NDArray

from polyhead.errors import ConfigError, DataError
from polyhead_traffic.formats.table import MAX_VALUES, Faults, Table
from polyhead_traffic.settings import SensorSettings, parse_step

__all__ = ["Timeline", "lay_out"]


class Timeline(NamedTuple):
    """Readings on a regular axis."""

    readings: NDArray[np.float32]
    """(T, N), NaN = missing."""
    timestamps: NDArray[np.datetime64]
    """(T,) datetime64[s], local wall time."""
    step_s: int
    breaks: tuple[int, ...]
    """Rows that do not continue the row before."""
    notes: tuple[str, ...]


def lay_out(table: Table, file: str, settings: SensorSettings) -> Timeline:
    """Put a table on a regular time axis, as ``settings`` say.

    Raises:
        DataError: one row; times missing, out of order, twice, off the step, or with gaps that are to be refused.
    """
    if len(table.rows) < 2:
        raise DataError(f"{file} has 1 row of readings. Give one row a time step, at least a day for training.")
    if table.seconds is None:
        return _from_start(table, file, settings)
    if settings.start:
        raise DataError(f"{file} has times of its own in its first column. Leave --start away.")
    notes: list[str] = []
    seconds, offsets = table.seconds, _local_offsets(table.seconds, table.offsets, file, settings, notes)
    readings, rows = table.readings, table.rows
    if (np.diff(seconds) < 0).any():
        order = _sort(seconds, rows, file, settings)
        readings, rows, seconds, offsets = readings[order], rows[order], seconds[order], offsets[order]
        notes.append("Rows were out of order and have been sorted by time.")
    if (np.diff(seconds) == 0).any():
        readings, rows, seconds, offsets = _merge(readings, rows, seconds, offsets, file, settings, notes)
        if len(seconds) < 2:
            raise DataError(f"{file} has one time only. Give one row a time step.")
    step = _step(seconds, rows, file, settings)
    gaps = np.flatnonzero(np.diff(seconds) > step) + 1
    if len(gaps) and settings.gaps == "refuse":
        faults = Faults(file)
        for row in gaps:
            missing = int(seconds[row] - seconds[row - 1]) // step - 1
            faults.add(f"row {rows[row]}", f"{missing} steps are missing before it", "Add them, or --gaps mend.")
        faults.check()
    breaks: tuple[int, ...] = ()
    if len(gaps) and settings.gaps == "ignore":
        notes.append(f"{len(gaps)} gaps in time are ignored: windows run across them.")
    elif len(gaps):
        readings, seconds, offsets, breaks = _fill(readings, seconds, offsets, step, settings, file, notes)
    return Timeline(readings, (seconds + offsets).astype("datetime64[s]"), step, breaks, tuple(notes))


def _from_start(table: Table, file: str, settings: SensorSettings) -> Timeline:
    if not (settings.start and settings.step):
        raise DataError(
            f"{file} has no times. Say when its first row is and how long a step is: --start 2012-03-01 --step 5min."
        )
    step = parse_step(settings.step)
    first = np.datetime64(settings.start, "s")
    timestamps = first + np.arange(len(table.rows)) * np.timedelta64(step, "s")
    return Timeline(table.readings, timestamps, step, (), ())


def _local_offsets(
    seconds: NDArray[np.int64],
    offsets: NDArray[np.int64] | None,
    file: str,
    settings: SensorSettings,
    notes: list[str],
) -> NDArray[np.int64]:
    """Return the seconds from the axis to local wall time."""
    if not settings.timezone:
        if offsets is None:
            return np.zeros_like(seconds)
        if (offsets != 0).any() or len(set(offsets.tolist())) > 1:
            notes.append("Times of day are those written in the file, with its offsets from UTC.")
        return offsets
    if offsets is None:
        raise DataError(
            f"{file} has times without an offset from UTC, so they are taken as local. Leave --timezone away, or write "
            "the offset: 2012-03-01T00:05+00:00."
        )
    try:
        zone = ZoneInfo(settings.timezone)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise ConfigError(
            f'data.timezone "{settings.timezone}" is not known. Give a name such as America/Los_Angeles.'
        ) from error
    notes.append(f"Times are converted to {settings.timezone}.")
    local = [datetime.fromtimestamp(second, zone).utcoffset() for second in seconds.tolist()]
    return np.array([offset.total_seconds() for offset in local if offset is not None], dtype=np.int64)


def _sort(
    seconds: NDArray[np.int64], rows: NDArray[np.int64], file: str, settings: SensorSettings
) -> NDArray[np.int64]:
    if settings.unsorted == "refuse":
        faults = Faults(file)
        for row in np.flatnonzero(np.diff(seconds) < 0) + 1:
            faults.add(
                f"row {rows[row]}", "its time is before that of the row above", "Sort the rows, or --unsorted sort."
            )
        faults.check()
    return np.argsort(seconds, kind="stable")


def _merge(
    readings: NDArray[np.float32],
    rows: NDArray[np.int64],
    seconds: NDArray[np.int64],
    offsets: NDArray[np.int64],
    file: str,
    settings: SensorSettings,
    notes: list[str],
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    again = np.flatnonzero(np.diff(seconds) == 0) + 1
    if settings.duplicates == "refuse":
        faults = Faults(file)
        for row in again:
            when = np.datetime64(int(seconds[row] + offsets[row]), "s")
            faults.add(
                f"row {rows[row]}",
                f"the time {when} comes again",
                "Remove it, or --duplicates first (or mean). Where the clock was set back, write times with an offset.",
            )
        faults.check()
    first = np.setdiff1d(np.arange(len(seconds)), again)
    notes.append(f"{len(again)} rows with a time that was there before: {settings.duplicates} was taken.")
    if settings.duplicates == "first":
        return readings[first], rows[first], seconds[first], offsets[first]
    observed = np.isfinite(readings)
    count = np.add.reduceat(observed, first, axis=0, dtype=np.int64)
    total = np.add.reduceat(np.where(observed, readings, 0), first, axis=0, dtype=np.float64)
    mean = np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)
    return mean, rows[first], seconds[first], offsets[first]


def _step(seconds: NDArray[np.int64], rows: NDArray[np.int64], file: str, settings: SensorSettings) -> int:
    """Return the step: as told, else the most frequent difference; every difference must be a multiple of it."""
    differences = np.diff(seconds)
    if settings.step:
        step = parse_step(settings.step)
    else:
        sizes, counts = np.unique(differences, return_counts=True)
        step = int(sizes[counts.argmax()])
    off = np.flatnonzero(differences % step) + 1
    if len(off):
        faults = Faults(file)
        for row in off:
            faults.add(
                f"row {rows[row]}",
                f"{differences[row - 1]} s after the row above, no multiple of the step of {step} s",
                "Resample to one step, or say the true one with --step.",
            )
        faults.check()
    return step


def _fill(
    readings: NDArray[np.float32],
    seconds: NDArray[np.int64],
    offsets: NDArray[np.int64],
    step: int,
    settings: SensorSettings,
    file: str,
    notes: list[str],
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64], tuple[int, ...]]:
    """Turn gaps of up to ``fill_gaps`` steps into missing rows and longer ones into breaks."""
    steps = np.diff(seconds) // step
    filled = np.where(steps - 1 <= settings.fill_gaps, steps, 1)
    place = np.concatenate([[0], np.cumsum(filled)])
    size = int(place[-1]) + 1
    if size * readings.shape[1] > MAX_VALUES:
        raise DataError(f"{file}: with its gaps filled it has more than {MAX_VALUES:,} readings. Use --fill-gaps 0.")
    if (added := size - len(seconds)) > 0:
        notes.append(f"{added} missing time steps in short gaps became rows without readings.")
    source = np.searchsorted(place, np.arange(size), side="right") - 1
    full = np.full((size, readings.shape[1]), np.nan, np.float32)
    full[place] = readings
    axis = seconds[source] + (np.arange(size) - place[source]) * step
    breaks = tuple(int(place[row]) for row in np.flatnonzero(steps - 1 > settings.fill_gaps) + 1)
    if breaks:
        notes.append(f"{len(breaks)} gaps longer than {settings.fill_gaps} steps: no window runs across them.")
    return full, axis, offsets[source], breaks
