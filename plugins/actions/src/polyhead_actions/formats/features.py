"""Read features: a file a video (NPY, NPZ, CSV, HDF5), or one HDF5 file with a dataset a video."""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyhead.errors import DataError
from polyhead_actions.data import Video
from polyhead_actions.formats.annotations import read_json

__all__ = ["FeatureFiles", "Meta", "find_features", "read_meta"]

Floats = NDArray[np.floating]

SUFFIXES = (".npy", ".npz", ".csv", ".h5", ".hdf5")
LIMIT_VALUES = 2**29
"""Of the features of one video: 2 GiB as float32."""
KEPT_BYTES = 2**28
"""Features that are kept in memory."""
EDGE = 2**16
"""Bytes at both ends of a file that its digest is made of."""
KEYS = ("feats", "features", "data", "c3d_features")
"""Names of the array in files that hold several."""


@dataclass
class FeatureFiles:
    """The features of many videos, read when they are asked for."""

    folder: Path
    """Where they are; the file, if it is one."""
    names: Mapping[str, Path]
    """Files by video, without the prefix v_."""
    inside: Mapping[str, str]
    """Of one HDF5 file: the path of each video's dataset in it."""
    channels: int = 0
    _rows: dict[str, int] = field(default_factory=dict)
    _kept: OrderedDict[str, Floats] = field(default_factory=OrderedDict)

    def rows(self, name: str) -> int:
        """Return how many rows the features of a video have; checks their width.

        Raises:
            DataError: they cannot be read, have no rows, or another width than those before.
        """
        if name not in self._rows:
            rows, channels = self._shape(name)
            file = self.names[name].name
            if rows < 1 or channels < 1:
                raise DataError(f"{file}: the features of {name} have the shape {(rows, channels)}. Leave it out.")
            if rows * channels > LIMIT_VALUES:
                raise DataError(f"{file}: {rows:,} x {channels:,} values are more than the {LIMIT_VALUES:,} allowed.")
            if self.channels and channels != self.channels:
                raise DataError(
                    f"{file} has {channels} channels, the files before it {self.channels}. Make all by the same model."
                )
            self.channels = channels
            self._rows[name] = rows
        return self._rows[name]

    def load_video(self, video: Video) -> Floats:
        """Return the features of a video, (rows, channels), float32.

        Raises:
            DataError: a value is NaN or infinite, or the file has changed.
        """
        name = video.name
        if name in self._kept:
            self._kept.move_to_end(name)
            return self._kept[name]
        array = self._read(name)
        if array.ndim != 2 or array.shape != (self.rows(name), self.channels):
            raise DataError(f"{self.names[name].name} has changed: its shape is {array.shape} now.")
        bad = np.argwhere(~np.isfinite(array))
        if len(bad):
            row, channel = bad[0].tolist()
            raise DataError(
                f"{self.names[name].name}, row {row + 1}, channel {channel + 1}: {array[row, channel]} is not finite "
                f"({len(bad)} such values). Make the features of {name} again, or list it in --blocked."
            )
        array = np.ascontiguousarray(array, dtype=np.float32)
        self._kept[name] = array
        while sum(each.nbytes for each in self._kept.values()) > KEPT_BYTES and len(self._kept) > 1:
            self._kept.popitem(last=False)
        return array

    def digest(self) -> str:
        """Return a digest of names, sizes and both ends of every file."""
        digest = hashlib.sha256()
        for file in sorted(set(self.names.values())):
            size = file.stat().st_size
            with file.open("rb") as stream:
                head = stream.read(EDGE)
                stream.seek(max(0, size - EDGE))
                digest.update(repr((file.name, size)).encode() + head + stream.read(EDGE))
        return digest.hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        """Leave what is kept in memory behind when sent to another process."""
        return {**self.__dict__, "_kept": OrderedDict()}

    def _shape(self, name: str) -> tuple[int, int]:
        file = self.names[name]
        try:
            if file.suffix == ".npy":
                array = np.load(file, mmap_mode="r", allow_pickle=False)
                shape = array.shape
            elif file.suffix in (".h5", ".hdf5"):
                import h5py

                with h5py.File(file, "r") as stream:
                    shape = stream[self.inside[name]].shape
            else:
                shape = self._read(name).shape
        except (OSError, ValueError, EOFError, KeyError) as error:
            raise DataError(f"{file.name} cannot be read: {error}. Make it again.") from error
        if len(shape) != 2:
            raise DataError(f"{file.name}: the features of {name} have the shape {shape}: (rows, channels) is needed.")
        return int(shape[0]), int(shape[1])

    def _read(self, name: str) -> Floats:
        file = self.names[name]
        try:
            if file.suffix == ".npy":
                array: Any = np.load(file, allow_pickle=False)
            elif file.suffix == ".npz":
                with np.load(file, allow_pickle=False) as stored:
                    array = stored[_key(list(stored.files), file)]
            elif file.suffix == ".csv":
                array = _read_csv(file)
            else:
                import h5py

                with h5py.File(file, "r") as stream:
                    array = stream[self.inside[name]][...]
        except DataError:
            raise
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{file.name} cannot be read: {error}. Make it again.") from error
        if array.dtype.kind not in "fiu":
            raise DataError(f"{file.name} holds {array.dtype}: numbers are needed.")
        found: Floats = array.astype(np.float32, copy=False)
        return found


@dataclass(frozen=True)
class Meta:
    """What ``features.json`` says of how features were made; 0 or empty where it does not."""

    fps: float = 0.0
    """Frames per second of the videos as they were read."""
    stride: float = 0.0
    """Frames from row to row."""
    offset: float = 0.0
    """Frames before the first row's time."""
    backbone: str = ""


def read_meta(*folders: Path) -> Meta:
    """Read ``features.json`` from the first of the folders that has it.

    Raises:
        DataError: a value is of another kind.
    """
    for folder in folders:
        file = (folder if folder.is_dir() else folder.parent) / "features.json"
        if not file.is_file():
            continue
        content = read_json(file)
        if not isinstance(content, dict):
            raise DataError(f"{file.name} is no JSON object with fps, stride and backbone.")
        for key in ("fps", "stride", "offset"):
            value = content.get(key, 0)
            if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
                raise DataError(f'{file.name}: "{key}" is {value!r}, not a number of 0 or more.')
        fps, stride, offset = (float(content.get(key, 0)) for key in ("fps", "stride", "offset"))
        return Meta(fps, stride, offset, str(content.get("backbone", "")))
    return Meta()


def find_features(path: Path, named: str, wanted: Collection[str] | None) -> FeatureFiles:
    """Return the feature files of a folder; ``wanted`` are the annotated videos, if there are annotations.

    Raises:
        DataError: there are none, or several folders have some.
    """
    folder = path if path.is_dir() else path.parent
    if named != "auto":
        place = Path(named) if Path(named).exists() else folder / named
        if not place.exists():
            raise DataError(f"--features {named}: there is no such file or folder.")
        found = _files(place, wanted)
        if found is None:
            raise DataError(f"--features {named}: there are no features in it ({', '.join(SUFFIXES)}).")
        return found
    if path.is_file() and path.suffix in SUFFIXES:
        found = _files(path, wanted)
    else:
        found = _files(folder, wanted)
        if found is None:
            inner = [each for each in sorted(folder.iterdir()) if each.is_dir() and _files(each, wanted) is not None]
            if len(inner) > 1:
                names = ", ".join(each.name for each in inner)
                raise DataError(f"{folder} has features in several folders ({names}): name one by --features.")
            found = _files(inner[0], wanted) if inner else None
    if found is None:
        raise DataError(
            f"{path} has no features: files {', '.join(SUFFIXES)}, a row for each piece of time, are needed."
        )
    return found


def _files(place: Path, wanted: Collection[str] | None) -> FeatureFiles | None:
    if place.is_file():
        if place.suffix in (".h5", ".hdf5"):
            return _one_file(place)
        if place.suffix not in SUFFIXES:
            return None
        return FeatureFiles(place.parent, {place.stem.removeprefix("v_"): place}, {})
    files = [file for file in sorted(place.iterdir()) if file.suffix in SUFFIXES and file.name != "video_info_new.csv"]
    stems = {file.stem.removeprefix("v_") for file in files}
    containers = [file for file in files if file.suffix in (".h5", ".hdf5")]
    if len(files) == 1 and containers and not (wanted and stems & set(wanted)):
        return _one_file(containers[0])
    if not files:
        return None
    names = {file.stem.removeprefix("v_"): file for file in files}
    inside = {file.stem.removeprefix("v_"): _only_dataset(file) for file in containers}
    return FeatureFiles(place, names, inside)


def _one_file(file: Path) -> FeatureFiles:
    """Open a file with a dataset, or a group with one, for each video."""
    import h5py

    try:
        with h5py.File(file, "r") as stream:
            inside = {}
            for name, item in stream.items():
                if isinstance(item, h5py.Dataset):
                    inside[name.removeprefix("v_")] = name
                else:
                    inside[name.removeprefix("v_")] = f"{name}/{_key(list(item), file)}"
    except OSError as error:
        raise DataError(f"{file.name} cannot be read: {error}. Make it again.") from error
    if not inside:
        raise DataError(f"{file.name} has no datasets: one a video is needed.")
    return FeatureFiles(file, dict.fromkeys(inside, file), inside)


def _only_dataset(file: Path) -> str:
    import h5py

    try:
        with h5py.File(file, "r") as stream:
            return _key(list(stream), file)
    except OSError as error:
        raise DataError(f"{file.name} cannot be read: {error}. Make it again.") from error


def _key(keys: list[str], file: Path) -> str:
    for key in (*KEYS, *(keys if len(keys) == 1 else ())):
        if key in keys:
            return key
    raise DataError(f"{file.name} has the arrays {', '.join(keys) or 'none'}: call that of the features feats.")


def _read_csv(file: Path) -> Floats:
    """Read rows of numbers, with or without a line of names."""
    with file.open(encoding="utf-8") as stream:
        first = stream.readline()
    if not first.strip():
        raise DataError(f"{file.name} is empty. Leave it out.")
    try:
        [float(part) for part in first.split(",")]
        names = 0
    except ValueError:
        names = 1
    try:
        return np.loadtxt(file, delimiter=",", skiprows=names, ndmin=2, dtype=np.float32)
    except ValueError as error:
        raise DataError(f"{file.name}: {error}. Every row needs a number in each column.") from error
