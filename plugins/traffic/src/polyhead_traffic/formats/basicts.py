"""BasicTS: ``{train,val,test}_data.npy`` with ``meta.json`` (version 1), ``data.dat`` with ``desc.json`` (0.5).

Source: github.com/GestaltCogTeam/BasicTS, ``docs/dataset_design.md``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyhead.errors import DataError
from polyhead_traffic.data import SensorData
from polyhead_traffic.formats.arrays import ArrayFile, open_npy
from polyhead_traffic.formats.assemble import assemble
from polyhead_traffic.formats.known import recognise
from polyhead_traffic.formats.table import MAX_SENSORS, Table, scratch
from polyhead_traffic.settings import SensorSettings

__all__ = ["candidates", "read"]

PARTS = ("train", "val", "test")
JSON_LIMIT = 1 << 20


def candidates(files: Sequence[Path]) -> list[Path]:
    """Return the file that stands for the readings: the first part, or ``data.dat``."""
    names = {file.name for file in files}
    if {f"{part}_data.npy" for part in PARTS} <= names:
        return [file for file in files if file.name == "train_data.npy"]
    return [file for file in files if file.name == "data.dat"] if "desc.json" in names else []


def read(path: Path, settings: SensorSettings) -> SensorData:
    """Read all parts in their order; the split is that of ``--protocol``."""
    version_1 = path.suffix == ".npy"
    meta_path = path.with_name("meta.json" if version_1 else "desc.json")
    meta = _read_json(meta_path)
    readings = _read_parts(path, settings) if version_1 else _read_dat(path, meta, settings)
    known = recognise(path, readings.shape[1])
    notes = []
    if known and known.start and not settings.start:
        settings = settings.model_copy(update={"start": known.start})
        notes.append(f"The files have no dates: {known.start}, as published for {known.name}.")
    minutes = meta.get("frequency (minutes)")
    if not settings.step and isinstance(minutes, int | float) and 0 < minutes <= 1440:
        settings = settings.model_copy(update={"step": f"{round(60 * minutes)}s"})
    ids = tuple(str(i) for i in range(readings.shape[1]))
    table = Table(ids, readings, np.arange(1, len(readings) + 1), None)
    return assemble(table, path, settings, layout="basicts", notes=notes)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(JSON_LIMIT + 1)
        found = json.loads(content) if len(content) <= JSON_LIMIT else None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path.name} is not readable JSON: {error}. Get the file again.") from error
    if not isinstance(found, dict):
        raise DataError(f"{path.name} holds no object of at most {JSON_LIMIT:,} bytes. Get the file again.")
    return found


def _read_parts(path: Path, settings: SensorSettings) -> NDArray[np.float32]:
    parts = []
    for part in PARTS:
        array = open_npy(path.with_name(f"{part}_data.npy"))
        with array.stream:
            parts.append(array.readings(settings.channel))
    if len({part.shape[1] for part in parts}) > 1:
        sizes = ", ".join(str(part.shape[1]) for part in parts)
        raise DataError(f"{path.parent.name}: train, val and test have {sizes} sensors. Give parts of one network.")
    result = scratch(path.parent.name, sum(map(len, parts)), parts[0].shape[1])
    np.concatenate(parts, out=result)
    return result


def _read_dat(path: Path, meta: dict[str, Any], settings: SensorSettings) -> NDArray[np.float32]:
    shape = meta.get("shape")
    if not (isinstance(shape, list) and len(shape) == 3 and all(isinstance(size, int) and size > 0 for size in shape)):
        raise DataError(f'desc.json, key "shape": {shape} is not [steps, sensors, values]. Get the file again.')
    size, want = path.stat().st_size, 4 * int(np.prod(shape, dtype=np.int64))
    if size != want or shape[1] > MAX_SENSORS:
        raise DataError(f"data.dat has {size:,} bytes, shape {shape} in desc.json needs {want:,}. Get the files again.")
    with path.open("rb") as stream:
        return ArrayFile(path.name, tuple(shape), np.dtype("<f4"), stream).readings(settings.channel)
