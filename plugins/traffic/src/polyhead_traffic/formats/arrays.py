"""NumPy files read without pickles and within bounded memory: the header first, then rows."""

from __future__ import annotations

import ast
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from polyhead.errors import DataError
from polyhead_traffic.formats.table import MAX_VALUES, scratch

__all__ = ["ArrayFile", "members", "open_member", "open_npy"]

MAX_HEADER = 10_000
BLOCK_BYTES = 1 << 24


@dataclass(frozen=True)
class ArrayFile:
    """An array in a file, its header read and checked."""

    name: str
    """As messages call it: "PEMS04.npz, key data"."""
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stream: IO[bytes]
    """Stands at the first value."""

    def blocks(self) -> Iterator[NDArray[Any]]:
        """Yield the rows in blocks, shape (rows, *shape[1:]).

        Raises:
            DataError: the file ends before its last row.
        """
        row_bytes = int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize
        rows = max(1, BLOCK_BYTES // max(row_bytes, 1))
        for first in range(0, self.shape[0], rows):
            count = min(rows, self.shape[0] - first)
            try:
                content = self.stream.read(count * row_bytes)
            except (OSError, EOFError, zipfile.BadZipFile, zlib.error, ValueError) as error:
                raise DataError(f"{self.name} is damaged near row {first + 1}: {error}. Get the file again.") from error
            if len(content) < count * row_bytes:
                raise DataError(f"{self.name} ends after row {first + len(content) // row_bytes}. Get the file again.")
            yield np.frombuffer(content, self.dtype).reshape(count, *self.shape[1:])

    def all(self) -> NDArray[Any]:
        """Return the whole array; for small ones."""
        if not self.shape:
            return next(ArrayFile(self.name, (1,), self.dtype, self.stream).blocks())[0]
        return np.concatenate([np.empty((0, *self.shape[1:]), self.dtype), *self.blocks()])

    def readings(self, channel: int) -> NDArray[np.float32]:
        """Return (T, N) float32 of an array (T, N) or one channel of (T, N, C).

        Raises:
            DataError: another rank, no such channel, too many values, or an infinite one.
        """
        if len(self.shape) not in (2, 3) or 0 in self.shape:
            raise DataError(
                f"{self.name} has shape {self.shape}. Readings are (steps, sensors) or (steps, sensors, values)."
            )
        if len(self.shape) == 3 and channel >= self.shape[2]:
            raise DataError(
                f"{self.name} has {self.shape[2]} values a reading, no number {channel}. Use a smaller --channel."
            )
        result = scratch(self.name, self.shape[0], self.shape[1])
        first = 0
        for block in self.blocks():
            part = block[..., channel] if block.ndim == 3 else block
            with np.errstate(over="ignore"):
                result[first : first + len(part)] = part
            if np.isinf(bad := result[first : first + len(part)]).any():
                row, sensor = np.argwhere(np.isinf(bad))[0]
                raise DataError(
                    f"{self.name}, row {first + row + 1}, sensor {sensor}: the reading is not finite. Write NaN where "
                    "missing."
                )
            first += len(part)
        return result


def open_npy(path: Path) -> ArrayFile:
    """Open a ``.npy`` file; the caller closes ``stream``.

    Raises:
        DataError: not such a file, or one that holds a pickle.
    """
    try:
        return _open(path.name, path.open("rb"))
    except OSError as error:
        raise DataError(
            f"{path.name} cannot be read: {error.strerror or error}. Check the path and its rights."
        ) from error


@contextmanager
def open_member(path: Path, key: str) -> Iterator[ArrayFile]:
    """Open one array of an ``.npz`` file.

    Raises:
        DataError: not such a file, no such key, or it holds a pickle, or would not fit into memory.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if f"{key}.npy" not in archive.namelist():
                have = ", ".join(name.removesuffix(".npy") for name in archive.namelist()[:8])
                raise DataError(f'{path.name} has no array "{key}", only {have}. Give the file of the readings.')
            with archive.open(f"{key}.npy") as stream:
                yield _open(f"{path.name}, key {key}", stream)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, OSError, EOFError) as error:
        raise DataError(f"{path.name} is not a readable NPZ file: {error}. Get the file again.") from error


def members(path: Path) -> list[str]:
    """Return the keys of an ``.npz`` file; none if it is not one."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    except (zipfile.BadZipFile, OSError):
        return []


def _open(name: str, stream: IO[bytes]) -> ArrayFile:
    try:
        shape, fortran, dtype = _read_header(stream)
    except (ValueError, TypeError, SyntaxError, KeyError, RecursionError, MemoryError) as error:
        reason = " ".join(str(error).split())[:100]
        raise DataError(f"{name} is not a readable NumPy array: {reason}. Get the file again.") from error
    if dtype.hasobject:
        raise DataError(
            f"{name} holds a pickle, which could run any code when opened, and is refused. Save plain numbers."
        )
    if dtype.kind not in "iufb":
        raise DataError(f"{name} holds {dtype}, not numbers. Save readings as floats, NaN where missing.")
    if fortran and len(shape) > 1:
        raise DataError(f"{name} is stored column by column. Save np.ascontiguousarray of it.")
    if np.prod(shape, dtype=np.float64) > 8 * MAX_VALUES:
        raise DataError(f"{name} has shape {shape}, more than {8 * MAX_VALUES:,} numbers. Give fewer sensors or rows.")
    return ArrayFile(name, shape, dtype, stream)


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read shape, whether columns come first, and dtype. NumPy's own reader tries to mend headers, and runs on.

    Source: NumPy Enhancement Proposal 1.
    """
    start = stream.read(8)
    if len(start) < 8 or start[:6] != b"\x93NUMPY":
        raise ValueError("it does not begin with NumPy's mark")
    width = 2 if start[6] == 1 else 4
    length = int.from_bytes(stream.read(width), "little")
    if length > MAX_HEADER:
        raise ValueError(f"its header has {length:,} bytes")
    header = ast.literal_eval(stream.read(length).decode("latin1").strip())
    shape, fortran = header["shape"], header["fortran_order"]
    if not (isinstance(shape, tuple) and all(isinstance(size, int) and size >= 0 for size in shape)):
        raise ValueError(f"its shape is {shape}")
    return shape, bool(fortran), np.dtype(header["descr"])
