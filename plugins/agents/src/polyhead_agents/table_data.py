"""Tables of readings over time: CSV with a column `date`, as ETT, Weather and ECL have, and a generated one."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from polyhead.errors import DataError
from polyhead.protocols import Batch, Source, Split
from polyhead_agents import members
from polyhead_agents.settings import TableSettings

__all__ = ["TableData", "calendar", "open_made_up_load", "open_table"]

MAX_PROBLEMS = 10
MAX_NUMBERS = 2**28
MONTH_HOURS = 30 * 24
TIMES = ("date", "ds")
"""What the first column may be called."""


def calendar(times: Sequence[datetime]) -> NDArray[np.float32]:
    """Return hour of the day, day of the week, of the month and of the year, from −½ to ½, shape (N, 4).

    Source: Time-Series-Library, utils/timefeatures.py, frequency h.
    """
    rows = [
        (
            (time.hour + time.minute / 60) / 23.999 - 0.5,
            time.weekday() / 6 - 0.5,
            (time.day - 1) / 30 - 0.5,
            (time.timetuple().tm_yday - 1) / 365 - 0.5,
        )
        for time in times
    ]
    return np.asarray(rows, dtype=np.float32).reshape(len(rows), 4)


class TableSource:
    """Windows of history and horizon, one beginning at every row."""

    def __init__(
        self, values: NDArray[np.float32], marks: NDArray[np.float32], first: int, count: int, sizes: tuple[int, int]
    ) -> None:
        """Take ``count`` windows, the first of which begins at row ``first``."""
        self.values, self.marks, self.first, self.count = values, marks, first, count
        self.history, self.horizon = sizes

    def __len__(self) -> int:
        """Return the number of windows."""
        return self.count

    def fetch(self, indices: Sequence[int], *, seed: int = 0, epoch: int = 0) -> Batch:  # noqa: ARG002  # not random
        """Return ``x`` (B, history, C), ``y`` (B, horizon, C), ``marks`` (B, history + horizon, 4), all float32."""
        start = self.first + np.asarray(indices, dtype=np.int64)
        at = start[:, None] + np.arange(self.history + self.horizon)
        window = torch.from_numpy(self.values[at])
        return {
            "x": window[:, : self.history],
            "y": window[:, self.history :],
            "marks": torch.from_numpy(self.marks[at]),
        }


@dataclass(frozen=True, eq=False)
class TableData:
    """Readings at regular times, split in time order.

    Raises:
        DataError: too few rows for a window in every split.
    """

    values: NDArray[np.float32]
    """(N, C)."""
    start: datetime
    step: timedelta
    channels: tuple[str, ...]
    history: int
    horizon: int
    borders: tuple[int, int, int]
    """Rows where training, validation and test end."""
    name: str
    provenance: str
    licence: str

    def __post_init__(self) -> None:
        """Check that every split has a window."""
        parts = (self.borders[0] - self.history, self.borders[1] - self.borders[0], self.borders[2] - self.borders[1])
        if min(parts) < self.horizon:
            need = round((self.history + self.horizon) / 0.1)
            raise DataError(
                f"{self.name} has {len(self.values)} rows: too few for a history of {self.history} and a horizon of "
                f"{self.horizon}, which need some {need}. Give shorter ones by --history and --horizon."
            )

    @cached_property
    def marks(self) -> NDArray[np.float32]:
        """(N, 4): the calendar of all rows."""
        return calendar([self.start + row * self.step for row in range(len(self.values))])

    @property
    def day(self) -> int:
        """Rows of a day, at least 1."""
        return max(1, round(timedelta(days=1) / self.step))

    def source(self, split: Split) -> Source:
        """Return the windows of a split; those of validation and test look back into the part before."""
        train, validation, test = self.borders
        first, last = {
            "train": (0, train),
            "validation": (train - self.history, validation),
            "test": (validation - self.history, test),
        }[split]
        count = last - first - self.history - self.horizon + 1
        return TableSource(self.values, self.marks, first, count, (self.history, self.horizon))

    def summary(self) -> Mapping[str, Any]:
        """Return sizes."""
        return {
            "rows": len(self.values),
            "channels": len(self.channels),
            "first": self.start.isoformat(sep=" "),
            "step": str(self.step),
            "training rows": self.borders[0],
            "validation rows": self.borders[1] - self.borders[0],
            "test rows": self.borders[2] - self.borders[1],
        }

    def fingerprint(self) -> str:
        """Return a digest of the readings."""
        digest = hashlib.sha256(repr((self.channels, self.start, self.step, self.borders, self.values.shape)).encode())
        digest.update(np.ascontiguousarray(self.values).tobytes())
        return digest.hexdigest()


def open_table(path: Path | None, settings: TableSettings) -> TableData:
    """Open a CSV file, alone, in a folder, a zip or a wheel: ``date`` (or ``ds``), then a column a channel.

    Raises:
        DataError: no such file, rows that cannot be read or are not at regular times; names them and the mend.
    """
    place = Path(path or "")
    names = members.find_names(place, ".csv")
    if not names:
        place = members.archive_in(place)
        names = members.find_names(place, ".csv")
    chosen = [name for name in names if not settings.table or Path(name).name == settings.table]
    if len(chosen) != 1:
        has = ", ".join(names[:MAX_PROBLEMS]) or "none"
        raise DataError(f"{place}: CSV files: {has}. Give one by --table NAME.csv.")
    name = Path(chosen[0]).name
    times, channels, values = _read(members.read_text(place, chosen[0]), name)
    step = _step(times, name)
    return _table(values, times[0], step, channels, settings, name, f"{name}, of the user.", "that of the file")


def _table(
    values: NDArray[np.float32],
    start: datetime,
    step: timedelta,
    channels: tuple[str, ...],
    settings: TableSettings,
    name: str,
    provenance: str,
    licence: str,
) -> TableData:
    rows = len(values)
    if settings.split == "ett":
        month = round(timedelta(hours=MONTH_HOURS) / step)
        borders = (12 * month, 16 * month, 20 * month)
        if borders[2] > rows:
            raise DataError(f"{name} has {rows} rows, ETT's split needs {borders[2]}. Take --split ratio.")
    else:
        borders = (int(0.7 * rows), rows - int(0.2 * rows), rows)
    return TableData(
        values, start, step, channels, settings.history, settings.horizon, borders, name, provenance, licence
    )


def _read(text: str, name: str) -> tuple[list[datetime], tuple[str, ...], NDArray[np.float32]]:
    rows = csv.reader(io.StringIO(text))
    head = [column.strip() for column in next(rows, [])]
    if len(head) < 2 or head[0].lower() not in TIMES:
        raise DataError(
            f"{name}: its first line is {', '.join(head[:5]) or 'empty'}, expected date, then the channels."
        )
    times: list[datetime] = []
    values: list[list[float]] = []
    problems: list[str] = []
    for row in rows:
        try:
            if len(row) != len(head):
                raise ValueError(f"{len(row)} columns, not {len(head)}")
            times.append(datetime.fromisoformat(row[0].strip().replace("/", "-")))
            numbers = [float(value) for value in row[1:]]
            if not np.isfinite(numbers).all():
                raise ValueError("a reading that is not finite")
            values.append(numbers)
        except ValueError as error:
            problems.append(f"row {rows.line_num}: {error}")
        if len(values) * len(head) > MAX_NUMBERS:
            raise DataError(f"{name} holds more than the {MAX_NUMBERS:,} numbers that are read. Give a part.")
    if problems:
        more = f"; and {len(problems) - MAX_PROBLEMS} more" if len(problems) > MAX_PROBLEMS else ""
        raise DataError(f"{name}, {'; '.join(problems[:MAX_PROBLEMS])}{more}. Fill or remove such rows.")
    return times, tuple(head[1:]), np.asarray(values, dtype=np.float32).reshape(len(values), len(head) - 1)


def _step(times: list[datetime], name: str) -> timedelta:
    if len(times) < 3:
        raise DataError(f"{name} has {len(times)} rows of readings: too few.")
    steps = [b - a for a, b in pairwise(times)]
    usual = max(set(steps), key=steps.count)
    if usual <= timedelta(0):
        raise DataError(f"{name}: its rows are not in the order of time. Sort them.")
    odd = [row for row, step in enumerate(steps) if step != usual]
    # Summer time gives one doubled and one missing hour a year; the literature reads over both.
    if len(odd) > max(4, len(times) // 1000):
        shown = ", ".join(times[row + 1].isoformat(sep=" ") for row in odd[:MAX_PROBLEMS])
        raise DataError(f"{name}: rows are {usual} apart, but {len(odd)} are not: {shown}, …. Fill the gaps.")
    return usual


HOURS = 4000


def open_made_up_load(path: Path | None, settings: TableSettings) -> TableData:  # noqa: ARG001  # embedded
    """Open the embedded table: two channels by the hour, with a day, a week and noise that lingers."""
    rng = np.random.default_rng(0)
    hours = np.arange(HOURS)
    noise = np.zeros((HOURS, 2))
    for hour in range(1, HOURS):
        noise[hour] = 0.9 * noise[hour - 1] + rng.normal(0, 0.2, 2)
    day, week = 2 * np.pi * hours / 24, hours // 24 % 7 < 5
    values = np.stack([np.sin(day) + 0.6 * week, 0.5 * np.sin(2 * day + 1) - 0.4 * week], 1) + noise
    return _table(
        values.astype(np.float32),
        datetime(2024, 1, 1),
        timedelta(hours=1),
        ("load", "price"),
        settings,
        "made-up-load",
        "Generated: days, weeks and noise that lingers.",
        "Apache-2.0",
    )
