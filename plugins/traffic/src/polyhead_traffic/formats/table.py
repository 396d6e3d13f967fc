"""Text tables of numbers, read line by line within bounded memory, with every wrong cell named."""

from __future__ import annotations

import csv
import tempfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polyhead.errors import DataError

__all__ = [
    "MAX_SENSORS",
    "MAX_VALUES",
    "Faults",
    "Table",
    "Times",
    "check_ids",
    "find_mark",
    "first_cells",
    "lines",
    "parse_time",
    "read_table",
    "scratch",
    "split_line",
]

MAX_SENSORS = 20_000
"""Widest table that is read; the largest public network (LargeST) has 8,600 sensors."""
MAX_VALUES = 1 << 30
"""Most readings that are read: 4 GiB of float32. A year of LargeST at 5 minutes has 0.9 thousand million."""
IN_MEMORY = 1 << 26
"""From this many readings on (256 MiB) they lie in a temporary file instead of memory, where their number is known."""
MAX_LINE = 1 << 21
"""Longest line in characters: 20,000 numbers of a hundred characters each."""
SHOWN = 10
BLOCK_ROWS = 1024
FLOAT32_MAX = float(np.finfo(np.float32).max)
TIME_NAMES = frozenset({"", "date", "datetime", "date_time", "time", "timestamp", "ts"})
EPOCH = datetime(1970, 1, 1)
MISSING = frozenset({"", "nan"})


@dataclass
class Faults:
    """What is wrong in a file: the first ten places and the count."""

    file: str
    shown: list[tuple[str, str, str]] = field(default_factory=list)
    count: int = 0

    def add(self, where: str, what: str, mend: str) -> None:
        """Note one fault: place, what is wrong, how to mend it."""
        self.count += 1
        if self.count <= SHOWN:
            self.shown.append((where, what, mend))

    def check(self) -> None:
        """Raise DataError in one line if there was any fault."""
        if not self.count:
            return
        where, what, mend = self.shown[0]
        text = f"{self.file}, {where}: {what}. {mend}"
        if self.count > 1:
            others = "; ".join(f"{where}: {what}" for where, what, _ in self.shown[1:])
            text += f" Also {others}{'; …' if self.count > SHOWN else ''}. {self.count:,} faults in all."
        raise DataError(text)


@dataclass(frozen=True)
class Table:
    """A table of readings as it stands in the file."""

    ids: tuple[str, ...]
    readings: NDArray[np.float32]
    """(T, N), NaN = missing."""
    rows: NDArray[np.int64]
    """(T,): line numbers in the file, from 1, for messages."""
    seconds: NDArray[np.int64] | None
    """(T,): seconds since 1970, UTC where the file has offsets, else wall time; None without times."""
    offsets: NDArray[np.int64] | None = None
    """(T,): seconds to add for local wall time; None where the file has no offsets."""


def scratch(name: str, rows: int, sensors: int) -> NDArray[np.float32]:
    """Return an array (rows, sensors) to be filled; a large one lies in a temporary file that nobody sees.

    Raises:
        DataError: it would hold more than ``MAX_VALUES`` numbers.
    """
    if rows * sensors > MAX_VALUES:
        raise DataError(
            f"{name} has {rows:,} rows of {sensors:,} sensors, more than {MAX_VALUES:,} readings. Give fewer of them."
        )
    if rows * sensors < IN_MEMORY:
        return np.empty((rows, sensors), np.float32)
    with tempfile.TemporaryFile() as file:
        # The mapping keeps the space on the disk until the last reference to it is gone.
        return np.memmap(file, np.float32, "w+", shape=(rows, sensors))


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number, line) of a text file without blank lines, never holding more than one line.

    Raises:
        DataError: the file is empty, not UTF-8, binary, or has a line of more than two million characters.
    """
    number = 0
    empty = True
    try:
        with path.open(encoding="utf-8-sig") as file:
            while line := file.readline(MAX_LINE):
                number += 1
                if len(line) == MAX_LINE and not line.endswith("\n"):
                    columns = max(line.count(mark) for mark in ",;\t ") + 1
                    raise DataError(
                        f"{path.name}, row {number}: a line of more than {MAX_LINE:,} characters and {columns:,} "
                        f"columns. Write one row a time step and at most {MAX_SENSORS:,} sensors."
                    )
                if "\0" in line:
                    raise DataError(f"{path.name}, row {number}: not a text file (it has a NUL byte). Save it as CSV.")
                if line.strip():
                    empty = False
                    yield number, line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise DataError(
            f"{path.name}, near row {number + 1}: byte 0x{byte:02x} is not UTF-8. Save the file as UTF-8 text."
        ) from error
    except OSError as error:
        raise DataError(
            f"{path.name} cannot be read: {error.strerror or error}. Check the path and its rights."
        ) from error
    if empty:
        raise DataError(f"{path.name} is empty. Give a file with a header and one row a time step.")


def split_line(line: str, mark: str) -> list[str]:
    """Return the cells of one line of a CSV; a quoted cell may hold the mark."""
    if '"' not in line:
        return line.split(mark)
    try:
        return next(csv.reader([line], delimiter=mark))
    except csv.Error as error:
        raise DataError(f"a line is no CSV: {error}. Mend its quotes.") from error


def find_mark(line: str) -> str:
    """Return the delimiter of a header: the most frequent of comma, semicolon and tab."""
    return max(",;\t", key=line.count)


def first_cells(path: Path, rows: int = 2) -> list[list[str]]:
    """Return the cells of the first rows of a CSV; fewer if the file is shorter."""
    found = []
    for _, line in lines(path):
        found.append([cell.strip() for cell in split_line(line, find_mark(line))])
        if len(found) == rows:
            break
    return found


def parse_time(text: str) -> datetime:
    """Return a time written in ISO 8601; "/" may stand for "-" after a four-digit year.

    Raises:
        ValueError: it is not.
    """
    text = text.strip()
    if text.isdigit():  # "20120301" is a number as well; a column of ids or counts must not pass as times.
        raise ValueError(text)
    if text[4:5] == "/":
        text = text.replace("/", "-")
    return datetime.fromisoformat(text)


class Times:
    """The times of a file, collected row by row in eight bytes each."""

    def __init__(self, file: str) -> None:
        """Take the file's name, for messages."""
        self.file = file
        self._seconds, self._offsets = array("q"), array("i")
        self._aware: bool | None = None
        self._last = ("", 0, 0)

    def add(self, text: str, number: int, faults: Faults) -> bool:
        """Add the time of row ``number``; what is no time goes to ``faults`` and gives False.

        Raises:
            DataError: it has an offset from UTC and those before it have none, or the reverse.
        """
        if text != self._last[0]:
            try:
                time = parse_time(text)
            except ValueError:
                faults.add(f"row {number}", f'"{text[:40]}" is not a time', "Write times as 2012-03-01 00:05.")
                return False
            offset = time.utcoffset()
            if self._aware is not None and self._aware != (offset is not None):
                raise DataError(
                    f"{self.file}, row {number}: the time has {'no' if offset is None else 'an'} offset from UTC, "
                    f"those before it have {'none' if offset is not None else 'one'}. Write all times in one way."
                )
            self._aware = offset is not None
            shift = 0 if offset is None else round(offset.total_seconds())
            since = time.replace(tzinfo=None) - EPOCH
            self._last = (text, since.days * 86400 + since.seconds - shift, shift)
        self._seconds.append(self._last[1])
        self._offsets.append(self._last[2])
        return True

    def arrays(self) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
        """Return UTC seconds since 1970 and offsets; wall seconds and None where the file has no offsets."""
        seconds = np.frombuffer(self._seconds, np.int64)
        return seconds, np.frombuffer(self._offsets, np.int32).astype(np.int64) if self._aware else None


def read_table(path: Path) -> Table:
    """Read a CSV with a header of sensor ids, one row a step and, optionally, the times in its first column.

    An empty cell or "nan" is a missing reading.

    Raises:
        DataError: names file, row, column and the mend, for up to ten wrong cells and their count.
    """
    stream = lines(path)
    _, header = next(stream)
    mark = find_mark(header)
    if (width := header.count(mark) + 1) > MAX_SENSORS + 1:
        raise DataError(
            f"{path.name}, row 1: {width:,} columns, more than {MAX_SENSORS:,}. Write one row a time step and one "
            "column a sensor (transpose the table), or choose fewer sensors."
        )
    names = [name.strip() for name in split_line(header, mark)]
    first = next(stream, None)
    if first is None:
        raise DataError(f"{path.name} has a header and no rows. Give one row a time step.")
    timed = _has_times(names, split_line(first[1], mark))
    ids = tuple(names[1:] if timed else names)
    check_ids(path.name, ids, offset=1 + timed)
    faults = Faults(path.name)
    blocks: list[NDArray[np.float32]] = []
    block = np.empty((BLOCK_ROWS, len(ids)), np.float32)
    rows: list[int] = []
    times = Times(path.name)
    for number, line in _chain(first, stream):
        cells = split_line(line, mark)
        if len(cells) != len(names):
            faults.add(
                f"row {number}", f"{len(cells)} cells, the header has {len(names)}", "Give every row one cell a column."
            )
            continue
        if timed and not times.add(cells[0], number, faults):
            continue
        row = len(rows) % BLOCK_ROWS
        _parse_row(cells[timed:], ids, number, block[row], faults)
        rows.append(number)
        if row == BLOCK_ROWS - 1:
            blocks.append(block)
            block = np.empty_like(block)
        if len(rows) * len(ids) > MAX_VALUES:
            raise DataError(
                f"{path.name} has more than {MAX_VALUES:,} readings. Give fewer sensors or a shorter time, or a "
                "memory-mapped format."
            )
    faults.check()
    blocks.append(block[: len(rows) % BLOCK_ROWS])
    seconds, offsets = times.arrays() if timed else (None, None)
    return Table(ids, np.concatenate(blocks), np.array(rows), seconds, offsets)


def _chain(first: tuple[int, str], rest: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    yield first
    yield from rest


def _has_times(names: list[str], cells: list[str]) -> bool:
    """Tell whether the first column is meant for times: by its name, or because its first cell is no number."""
    if names[0].lower() in TIME_NAMES:
        return True
    text = cells[0].strip()
    try:
        return text.lower() not in MISSING and not np.isfinite(float(text))
    except ValueError:
        return True


def check_ids(file: str, ids: tuple[str, ...], offset: int) -> None:
    """Refuse empty and repeated ids and fewer than two; ``offset`` is the number of the first id's column."""
    faults = Faults(file)
    seen: dict[str, int] = {}
    for column, name in enumerate(ids, start=offset):
        if not name:
            faults.add(f"row 1, column {column}", "the sensor has no name", "Give every sensor an id in the header.")
        elif name in seen:
            faults.add(
                f"row 1, column {column}", f'"{name}" is also column {seen[name]}', "Give every sensor its own id."
            )
        seen.setdefault(name, column)
    faults.check()
    if len(ids) < 2:
        raise DataError(f"{file}, row 1: {len(ids)} sensor. A network needs at least 2: add sensors as columns.")


def _parse_row(cells: list[str], ids: tuple[str, ...], number: int, out: NDArray[np.float32], faults: Faults) -> None:
    """Write one row's numbers to ``out``; wrong cells go to ``faults``."""
    try:
        values = [float(cell) if cell else np.nan for cell in cells]
        # Python reads "1_0" as 10 and NumPy would turn 1e39 into infinity; neither is a reading.
        if "_" not in "".join(cells):
            with np.errstate(over="ignore"):
                out[:] = values
            if not np.isinf(out).any():
                return
    except ValueError:
        pass
    for column, (name, cell) in enumerate(zip(ids, cells, strict=True)):
        text = cell.strip()
        try:
            value = np.nan if text.lower() in MISSING else float(text)
            if "_" in text:
                raise ValueError(text)
        except ValueError:
            what = f'"{text[:40]}" is not a number'
            faults.add(f'row {number}, column "{name}"', what, "Leave missing readings empty, use a decimal point.")
            continue
        if abs(value) > FLOAT32_MAX:
            faults.add(
                f'row {number}, column "{name}"', f'"{text[:40]}" is not finite', "Leave missing readings empty."
            )
            continue
        out[column] = value
