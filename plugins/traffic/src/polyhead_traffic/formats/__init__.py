"""Readers of the field's on-disk formats: one module a format, found by looking at the files."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from polyhead.errors import DataError
from polyhead_traffic.data import SensorData
from polyhead_traffic.formats.assemble import visible_files
from polyhead_traffic.settings import SensorSettings

__all__ = ["FORMATS", "open_embedded", "open_folder"]

FORMATS: Mapping[str, str] = {
    "h5": "pandas HDF5 (METR-LA, PEMS-BAY, LargeST)",
    "npz": "NPZ with an array data (PEMS03/04/07/08, STAEformer, LargeST)",
    "dcrnn": "{train,val,test}.npz with windows x and y (DCRNN, Graph WaveNet)",
    "basicts": "{train,val,test}_data.npy with meta.json, or data.dat with desc.json",
    "tgcn": "NAME_speed.csv without times, with NAME_adj.csv",
    "mat": "MATLAB tensor (transdim)",
    "long": "CSV timestamp,sensor_id,value",
    "wide": "CSV or Parquet, a column of times and one column a sensor",
}
"""Names and contents, in the order they are looked for; each is a module here with ``candidates`` and ``read``."""


def open_folder(path: Path, settings: SensorSettings) -> SensorData:
    """Open a file, or the one file of a folder that holds readings, with the graph and the like beside it.

    Raises:
        DataError: there is nothing to read, several files could be meant, or a file is wrong: names it and the mend.
    """
    path = Path(path)
    if path.is_dir():
        name, file = _find(path, settings.format)
    elif path.is_file():
        name, file = _guess(path, settings.format), path
    else:
        raise DataError(f"{path}: no such file or folder. Give the path of your readings.")
    return _reader(name).read(file, settings)


def open_embedded(path: Path | None, settings: SensorSettings) -> SensorData:
    """Open the simulated road network that ships with this plugin, cut into windows as ``settings`` say."""
    from polyhead_traffic.embedded import load_embedded
    from polyhead_traffic.holidays import read_holidays

    del path
    data = load_embedded(
        history=settings.history,
        horizon=settings.horizon,
        protocol=settings.protocol,
        fill=settings.fill,
        sigma=settings.sigma,
        threshold=settings.threshold,
    )
    return (
        replace(data, holidays=read_holidays(settings.holidays, None, data.timestamps)) if settings.holidays else data
    )


def _reader(name: str) -> ModuleType:
    return importlib.import_module(f"polyhead_traffic.formats.{name}")


def _find(folder: Path, wanted: str) -> tuple[str, Path]:
    """Return format and file of the readings in a folder."""
    files = visible_files(folder)
    if not files:
        raise DataError(f"{folder.name} has no files. Give the folder of your readings.")
    for name in FORMATS if wanted == "auto" else [wanted]:
        found = _reader(name).candidates(files)
        if len(found) > 1:
            names = ", ".join(file.name for file in found[:5]) + (", …" if len(found) > 5 else "")
            raise DataError(
                f"{folder.name} has {len(found)} files that could hold the readings: {names}. Give the file: "
                f"--data {folder.name}/{found[0].name}."
            )
        if found:
            return name, found[0]
    layouts = "; ".join(f"{name}: {text}" for name, text in FORMATS.items() if wanted in ("auto", name))
    raise DataError(f"{folder.name} has no readings in a layout that is known ({layouts}). Files: {_listing(files)}.")


def _guess(file: Path, wanted: str) -> str:
    if wanted != "auto":
        return wanted
    for name in FORMATS:
        if _reader(name).candidates([file]):
            return name
    return "wide"


def _listing(files: list[Path]) -> str:
    return ", ".join(file.name for file in files[:8]) + (", …" if len(files) > 8 else "")
