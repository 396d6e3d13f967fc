"""A wide table: a column of times and one column a sensor, as CSV or Parquet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyhead.errors import DataError
from polyhead_traffic.data import SensorData
from polyhead_traffic.formats.assemble import assemble, is_companion
from polyhead_traffic.formats.table import (
    MAX_SENSORS,
    MAX_VALUES,
    TIME_NAMES,
    Faults,
    Table,
    check_ids,
    read_table,
    scratch,
)
from polyhead_traffic.settings import SensorSettings

__all__ = ["candidates", "read"]

PARQUET = (".parquet", ".pq")


def candidates(files: Sequence[Path]) -> list[Path]:
    """Return the files that could hold the readings: tables that are no graph and no list of places."""
    tables = [file for file in files if file.suffix.lower() in (".csv", ".tsv", *PARQUET)]
    return [file for file in tables if not is_companion(file)]


def read(path: Path, settings: SensorSettings) -> SensorData:
    """Read a wide table with what lies beside it."""
    table = read_parquet(path) if path.suffix.lower() in PARQUET else read_table(path)
    return assemble(table, path, settings, layout="wide")


def read_parquet(path: Path) -> Table:
    """Read a Parquet table, sizes checked in its footer before a value is read.

    Raises:
        DataError: not Parquet, too large, a sensor column that is not numeric, no column of times.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path.name} is not a readable Parquet file: {reason} Write it again.") from error
    schema = file.schema_arrow
    rows, width = file.metadata.num_rows, len(schema.names)
    if width > MAX_SENSORS + 1 or rows * width > MAX_VALUES:
        raise DataError(
            f"{path.name} has {rows:,} rows of {width:,} columns; at most {MAX_SENSORS:,} sensors and {MAX_VALUES:,} "
            "readings are read. Write one column a sensor, or choose fewer."
        )
    if rows == 0:
        raise DataError(f"{path.name} has no rows. Give one row a time step.")
    time = _time_column(path.name, schema)
    names = [name for name in schema.names if name != time]
    check_ids(path.name, tuple(names), offset=1)
    faults = Faults(path.name)
    for name in names:
        kind = schema.field(name).type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            faults.add(
                f'column "{name}"', f"holds {kind}, not numbers", "Write readings as floats, missing ones as null."
            )
    faults.check()
    readings = scratch(path.name, rows, len(names))
    seconds, offsets = np.empty(rows, np.int64), np.zeros(rows, np.int64)
    first = 0
    try:
        for batch in file.iter_batches(batch_size=1024):
            stop = first + len(batch)
            for column, name in enumerate(names):
                values = batch.column(name).cast(pa.float64()).to_numpy(zero_copy_only=False)
                _check_range(path.name, name, values, first)
                readings[first:stop, column] = values
            seconds[first:stop], offsets[first:stop] = _times(path.name, batch.column(time), first)
            first = stop
    except DataError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{path.name} is damaged near row {first + 1}: {str(error).splitlines()[0]}. Write it again."
        ) from error
    aware = schema.field(time).type.tz is not None
    return Table(tuple(names), readings, np.arange(1, rows + 1), seconds, offsets if aware else None)


def _time_column(file: str, schema: Any) -> str:
    import pyarrow as pa

    stamps = [field.name for field in schema if pa.types.is_timestamp(field.type)]
    named = [name for name in stamps if name.lower() in TIME_NAMES]
    if len(stamps) == 1 or len(named) == 1:
        return str((named or stamps)[0])
    have = f"{len(stamps)} columns of times ({', '.join(stamps[:5])})" if stamps else "no column of times"
    raise DataError(f'{file} has {have}. Give one column "timestamp" of type timestamp.')


def _times(file: str, column: Any, first: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return seconds since 1970 in UTC, and the offsets of the column's zone."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if column.null_count:
        row = first + 1 + column.is_null().to_pylist().index(True)
        raise DataError(f"{file}, row {row}: the time is missing. Give every row its time.")
    stamp = column.cast(pa.timestamp("ns", column.type.tz), safe=False)
    seconds = stamp.cast(pa.int64()).to_numpy() // 1_000_000_000
    if column.type.tz is None:
        return seconds, np.zeros_like(seconds)
    wall = pc.local_timestamp(stamp).cast(pa.int64()).to_numpy() // 1_000_000_000
    return seconds, wall - seconds


def _check_range(file: str, name: str, values: NDArray[np.float64], first: int) -> None:
    bad = np.flatnonzero(np.abs(values) > np.finfo(np.float32).max)
    faults = Faults(file)
    for row in bad:
        faults.add(
            f'row {first + row + 1}, column "{name}"', f"{values[row]} is not finite", "Write null where missing."
        )
    faults.check()
