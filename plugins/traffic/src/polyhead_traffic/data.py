"""Readings of a sensor network in memory, and their split into windows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyhead.errors import DataError
from polyhead.protocols import Split
from polyhead_traffic.windows import PROTOCOLS, WindowSource, split_starts

__all__ = ["DAY_S", "SensorData", "SensorGraph", "blocks", "calendar"]

DAY_S = 24 * 60 * 60
SUNDAY = 6
BLOCK_VALUES = 1 << 20
"""Readings that are looked at together."""


class SensorGraph(NamedTuple):
    """A directed, weighted graph over the sensors; absent edges have weight 0."""

    edges: NDArray[np.int64]
    """(2, E): row 0 = from, row 1 = to, positions in ``SensorData.ids``."""
    weights: NDArray[np.float64]
    """(E,): similarity, larger is nearer; positive and finite."""

    def dense(self, nodes: int) -> NDArray[np.float64]:
        """Return the (N, N) weight matrix, row = from."""
        matrix = np.zeros((nodes, nodes))
        matrix[self.edges[0], self.edges[1]] = self.weights
        return matrix


@dataclass(frozen=True, eq=False)
class SensorData:
    """Readings of N sensors at T times, split into windows of ``history`` past and ``horizon`` future steps.

    Implements ``polyhead.protocols.Data``. Windows are cut when they are fetched; ``values`` may be a memory map.
    Readers call :meth:`from_readings`, which takes missing readings as NaN.

    Raises:
        DataError: shapes do not fit each other, an id appears twice, fewer than two sensors, or the step does not
            divide a day.
    """

    values: NDArray[np.float32]
    """(T, N), in ``unit``; 0 where ``mask`` is False."""
    mask: NDArray[np.bool_]
    """(T, N), True = observed."""
    timestamps: NDArray[np.datetime64]
    """(T,) datetime64[s], local wall time, the start of each step."""
    step_s: int
    """Seconds between rows."""
    ids: tuple[str, ...]
    name: str
    origin: str
    """One sentence: where the readings come from; says so if they are simulated."""
    licence: str = "yours"
    unit: str = ""
    graph: SensorGraph | None = None
    coordinates: NDArray[np.float64] | None = None
    """(N, 2): latitude and longitude in degrees."""
    embedding: NDArray[np.float32] | None = None
    """(N, D): a spatial embedding that came with the data (GMAN's ``SE`` files)."""
    breaks: tuple[int, ...] = ()
    """Rows that do not continue the row before them (a night gap): no window crosses them."""
    zero_is_missing: bool = False
    """Whether a reading of 0 counts as missing, as the literature does for speeds."""
    history: int = 12
    horizon: int = 12
    protocol: Literal["gman", "dcrnn", "pems-6-2-2", "tgcn"] = "gman"
    fill: Literal["zero", "last"] = "zero"
    """What stands in for a missing input: 0 as in the literature, or the sensor's last reading in the window."""
    holidays: tuple[str, ...] = ()
    """Dates, ISO 8601, that count as Sundays wherever the day of the week matters."""
    files: tuple[str, ...] = ()
    """The files that were read."""
    notes: tuple[str, ...] = ()
    """What a reader chose or mended, one sentence each."""

    def __post_init__(self) -> None:
        """Check that the parts fit each other."""
        rows, sensors = self.values.shape
        if self.mask.shape != (rows, sensors) or self.timestamps.shape != (rows,) or len(self.ids) != sensors:
            raise DataError(
                f"{self.name}: values {self.values.shape}, mask {self.mask.shape}, {len(self.timestamps)} timestamps "
                f"and {len(self.ids)} ids do not fit each other."
            )
        if sensors < 2:
            raise DataError(f"{self.name} has {sensors} sensor: a network needs at least 2. Add sensors as columns.")
        if len(set(self.ids)) < sensors:
            twice = sorted({i for i in self.ids if self.ids.count(i) > 1})
            raise DataError(f"{self.name}: sensor id {twice[0]!r} appears twice. Give every sensor its own id.")
        if self.step_s <= 0 or DAY_S % self.step_s:
            raise DataError(
                f"{self.name}: a step of {self.step_s} s does not divide a day. Resample to 5, 10, 15 or 60 minutes."
            )

    @classmethod
    def from_readings(
        cls,
        readings: NDArray[np.floating],
        timestamps: NDArray[np.datetime64],
        *,
        zero_is_missing: bool = False,
        copy: bool = True,
        **fields: Any,
    ) -> SensorData:
        """Make the container from readings (T, N) in which NaN is missing (and 0 too, if ``zero_is_missing``).

        With ``copy=False`` and float32 readings the array is taken and written to.
        """
        values = readings.astype(np.float32, copy=copy)
        mask = np.isfinite(values)
        if zero_is_missing:
            for rows in blocks(*values.shape):
                mask[rows] &= values[rows] != 0
        for rows in blocks(*values.shape):  # a memory map is not read at once
            values[rows][~mask[rows]] = 0
        return cls(
            values=values,
            mask=mask,
            timestamps=timestamps.astype("datetime64[s]"),
            zero_is_missing=zero_is_missing,
            **fields,
        )

    @property
    def provenance(self) -> str:
        """Where the readings come from, their unit, and the protocol, which decides every figure."""
        unit = f" Unit: {self.unit}." if self.unit else ""
        return f"{self.origin}{unit} Protocol {self.protocol}: {PROTOCOLS[self.protocol]}."

    @property
    def slots_per_day(self) -> int:
        """Number of steps in a day."""
        return DAY_S // self.step_s

    @cached_property
    def calendar(self) -> NDArray[np.int64]:
        """(T, 2): day of week (Monday = 0; holidays are Sundays) and slot of day of every row."""
        return calendar(self.timestamps, self.step_s, self.holidays)

    @cached_property
    def starts(self) -> Mapping[Split, NDArray[np.int64]]:
        """First rows of the windows of each split."""
        return split_starts(len(self.timestamps), self.breaks, self.history, self.horizon, self.protocol)

    @cached_property
    def sensor_means(self) -> NDArray[np.float32]:
        """(N,): mean of the observed training readings of each sensor; the overall mean for a sensor without any."""
        rows = slice(0, self.train_rows)
        count = self.mask[rows].sum(axis=0)
        total = self.values[rows].sum(axis=0, dtype=np.float64)
        overall = total.sum() / max(count.sum(), 1)
        return np.where(count > 0, total / np.maximum(count, 1), overall).astype(np.float32)

    @property
    def train_rows(self) -> int:
        """Number of leading rows that training windows reach."""
        starts = self.starts["train"]
        return int(starts[-1]) + self.history + self.horizon if len(starts) else len(self.timestamps)

    def source(self, split: Split) -> WindowSource:
        """Return the windows of a split.

        Raises:
            DataError: the split is shorter than one window.
        """
        starts = self.starts[split]
        if not len(starts):
            raise DataError(
                f"{self.name} has {len(self.timestamps)} rows, too few for a {split} window of {self.history} past and "
                f"{self.horizon} future steps (protocol {self.protocol}). Give more rows, or a smaller --history or "
                "--horizon."
            )
        return WindowSource(self, starts)

    def latest(self) -> Mapping[str, Any]:
        """Return a batch of one window whose future is unknown: the last ``history`` rows.

        Raises:
            DataError: fewer rows than that, or a gap among them.
        """
        rows = len(self.timestamps)
        first = rows - self.history
        if first < 0 or any(first < row < rows for row in self.breaks):
            have = rows - max((row for row in self.breaks if row < rows), default=0)
            raise DataError(
                f"{self.name} ends with {have} rows without a gap: a forecast needs {self.history}. Give more rows."
            )
        return WindowSource(self, np.array([first])).latest()

    def summary(self) -> Mapping[str, Any]:
        """Return sizes, times, ranges, the share of missing readings and what the reader chose."""
        low, high, total, count = np.inf, -np.inf, 0.0, 0
        for rows in blocks(*self.values.shape):
            if len(observed := self.values[rows][self.mask[rows]]):
                low, high = min(low, float(observed.min())), max(high, float(observed.max()))
                total, count = total + float(observed.sum(dtype=np.float64)), count + len(observed)
        return {
            "files": list(self.files),
            "sensors": len(self.ids),
            "rows": len(self.timestamps),
            "first": str(self.timestamps[0]),
            "last": str(self.timestamps[-1]),
            "step_min": self.step_s / 60,
            "gaps": len(self.breaks),
            "unit": self.unit,
            "range": [low, high] if count else [],
            "mean": total / count if count else None,
            "missing_percent": round(100 * (1 - count / self.values.size), 3),
            "zero_is_missing": self.zero_is_missing,
            "holidays": int(
                np.isin(np.unique(self.timestamps.astype("datetime64[D]")).astype(str), self.holidays).sum()
            ),
            "edges": None if self.graph is None else len(self.graph.weights),
            "coordinates": self.coordinates is not None,
            "history": self.history,
            "horizon": self.horizon,
            "notes": list(self.notes),
        }

    def fingerprint(self) -> str:
        """Return the SHA-256 of readings, ids, graph and everything that decides the windows."""
        digest = hashlib.sha256()
        rule = (
            self.ids,
            self.step_s,
            self.breaks,
            self.zero_is_missing,
            self.history,
            self.horizon,
            self.protocol,
            self.fill,
        )
        digest.update(repr(rule).encode())
        if self.holidays:
            digest.update(repr(self.holidays).encode())
        for rows in blocks(*self.values.shape):
            for array in (self.values[rows], self.mask[rows], self.timestamps[rows].astype(np.int64)):
                digest.update(np.ascontiguousarray(array).tobytes())
        for part in self.graph or ():
            digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()


def blocks(rows: int, width: int) -> Iterator[slice]:
    """Yield slices of rows of some megabytes each, so that a memory map is not read into memory at once."""
    size = max(1, BLOCK_VALUES // max(width, 1))
    for first in range(0, rows, size):
        yield slice(first, min(first + size, rows))


def calendar(timestamps: NDArray[np.datetime64], step_s: int, holidays: Sequence[str] = ()) -> NDArray[np.int64]:
    """Return (T, 2): day of week (Monday = 0; 6 on holidays) and slot of day.

    >>> calendar(np.array(["2012-03-01T00:10"], dtype="datetime64[s]"), 300).tolist()
    [[3, 2]]
    """
    seconds = timestamps.astype("datetime64[s]").astype(np.int64)
    days, second_of_day = np.divmod(seconds, DAY_S)
    # 1970-01-01 was a Thursday.
    day_of_week = (days + 3) % 7
    if holidays:
        free = np.array(holidays, dtype="datetime64[D]").astype(np.int64)
        day_of_week = np.where(np.isin(days, free), SUNDAY, day_of_week)
    return np.stack([day_of_week, second_of_day // step_s], axis=-1)
