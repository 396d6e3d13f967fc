"""MATLAB tensors (key ``tensor``), as transdim releases them: sensors x days x slots, or origin x destination x time.

Read by SciPy (MATLAB 5 files). Sizes are read before the values.

Source: github.com/xinychen/transdim, folder ``datasets``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyhead.errors import DataError
from polyhead_traffic.data import DAY_S, SensorData
from polyhead_traffic.formats.assemble import assemble
from polyhead_traffic.formats.known import with_known_times
from polyhead_traffic.formats.table import MAX_SENSORS, MAX_VALUES, Table
from polyhead_traffic.settings import SensorSettings, parse_step

__all__ = ["candidates", "read"]


def candidates(files: Sequence[Path]) -> list[Path]:
    """Return the files that could hold the readings."""
    return [file for file in files if file.suffix.lower() == ".mat"]


def read(path: Path, settings: SensorSettings) -> SensorData:
    """Read a tensor with what lies beside it; days that end before midnight leave a gap, which no window crosses."""
    tensor = _load(path)
    settings, said = with_known_times(path, len(tensor), settings)
    if not (settings.start and settings.step):
        raise DataError(
            f"{path.name} has no times. Say when its first slot is and how long one is: --start 2019-01-01T06:00 "
            "--step 10min."
        )
    step = parse_step(settings.step)
    start = np.datetime64(settings.start, "s").astype(np.int64)
    if settings.axes == "origin-destination-time":
        readings = tensor.sum(axis=1, dtype=np.float64).T
        seconds = start + np.arange(len(readings)) * step
        note = "Flows were summed over destinations: what is forecast is the outflow of each origin."
    else:
        sensors, days, slots = tensor.shape
        if slots * step > DAY_S:
            raise DataError(
                f"{path.name} has shape {tensor.shape}: {slots} slots of {settings.step} are more than a day. Mend "
                "--step, or say --axes origin-destination-time."
            )
        readings = tensor.reshape(sensors, days * slots).T
        seconds = start + np.repeat(np.arange(days) * DAY_S, slots) + np.tile(np.arange(slots) * step, days)
        note = f"{days} days of {slots} slots."
    ids = tuple(str(i) for i in range(readings.shape[1]))
    table = Table(ids, readings.astype(np.float32), np.arange(1, len(readings) + 1), seconds)
    # The times are made here, so the axis needs no start of its own.
    return assemble(table, path, settings.model_copy(update={"start": ""}), layout="mat", notes=[*said, note])


def _load(path: Path) -> NDArray[Any]:
    """Return the one tensor of rank 3.

    Raises:
        DataError: not a MATLAB 5 file, no or several tensors, another rank, text, too many values.
    """
    import zlib

    from scipy.io import loadmat, whosmat
    from scipy.io.matlab import MatReadError

    try:
        variables = whosmat(path)
        named = [variable for variable in variables if variable[0] == "tensor"] or variables
        if len(named) != 1:
            have = ", ".join(f"{name} {shape}" for name, shape, _ in variables) or "none"
            raise DataError(f'{path.name} has {len(named)} arrays ({have}). Give one called "tensor".')
        name, shape, kind = named[0]
        if len(shape) != 3 or 0 in shape:
            raise DataError(
                f"{path.name}: {name} has shape {shape}. A tensor is sensors x days x slots, or origins x "
                "destinations x time."
            )
        if shape[0] > MAX_SENSORS or np.prod(shape, dtype=np.float64) > MAX_VALUES:
            raise DataError(f"{path.name}: {name} has shape {shape}, more than is read. Give fewer sensors or days.")
        if kind in ("cell", "struct", "object", "char", "function", "opaque", "sparse"):
            raise DataError(f"{path.name}: {name} is a {kind}, not an array of numbers. Save a numeric array.")
        tensor: NDArray[Any] = loadmat(path, variable_names=[name])[name]
    except NotImplementedError as error:
        raise DataError(f"{path.name} is a MATLAB 7.3 file. Save it with save(..., '-v7').") from error
    except (
        MatReadError,
        ValueError,
        TypeError,
        KeyError,
        OSError,
        EOFError,
        IndexError,
        zlib.error,
        MemoryError,
    ) as error:
        if isinstance(error, DataError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path.name} is not a readable MATLAB file: {reason}. Get the file again.") from error
    if tensor.dtype.kind not in "iuf":
        raise DataError(f"{path.name}: {name} holds {tensor.dtype}, not numbers. Save a numeric array.")
    if tensor.dtype.kind == "f" and np.isinf(tensor).any():
        at = tuple(int(i) + 1 for i in np.argwhere(np.isinf(tensor))[0])
        raise DataError(f"{path.name}: {name}{at} is not finite. Write NaN where missing.")
    return tensor
