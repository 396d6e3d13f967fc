"""A folder of scans as a dataset: read, checked, brought to the network's size, split by patient."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from polyhead.errors import DataError
from polyhead.protocols import Batch, Source, Split
from polyhead_medical.cases import Volume, collate
from polyhead_medical.dicom import read_series
from polyhead_medical.grids import Grid, head_box
from polyhead_medical.layouts import Case, find_cases
from polyhead_medical.nifti import Scan, read_label, read_scan
from polyhead_medical.settings import ScanSettings

__all__ = ["ScanData", "ScanSource", "open_scans", "read_volume"]

FEWEST = 3
"""Cases with masks, from which on a folder can be split."""
_SAMPLED = 1_000_000
"""Voxels that percentiles are taken from, at most."""


def read_volume(case: Case, settings: ScanSettings, labels: Sequence[int] = ()) -> Volume:
    """Read the files of a case and bring them to the network's size.

    Intensities of each channel are clipped at percentiles and scaled to [0, 1]; the scan is turned to RAS+, cut to the
    box around the head and resized. Memory: a few times the voxels of one scan.

    Raises:
        DataError: a file cannot be used; see ``nifti``.
    """
    scans = open_case(case, settings)
    first = scans[0]
    grid = Grid.whole(first.shape, first.affine, settings.size)
    channels = [channel for scan in scans for channel in scan.voxels()]
    scaled = torch.stack([torch.from_numpy(_scaled(channel, settings.percentiles)) for channel in channels])
    if settings.crop:
        grid = grid.cut_to(head_box(grid.turn(scaled[:1])[0]))
    label = None
    if case.label is not None:
        mask = read_label(case.label, first, max_voxels=settings.max_voxels, known=tuple(labels))
        wanted = np.isin(mask, settings.labels) if settings.labels else mask > 0
        label = torch.from_numpy(wanted.astype(np.uint8))
    return Volume(case.name, grid.to_network(scaled), label, grid)


def open_case(case: Case, settings: ScanSettings) -> list[Scan]:
    """Open the files of a case and check that they lie on one grid; no voxel is read.

    Raises:
        DataError: they do not, or one cannot be used.
    """
    several = len(case.images) == 1
    scans: list[Scan] = [
        read_series(path, max_voxels=settings.max_voxels)
        if path.is_dir()
        else read_scan(path, max_voxels=settings.max_voxels, several=several)
        for path in case.images
    ]
    for scan in scans[1:]:
        if scan.shape != scans[0].shape or not np.allclose(scan.affine, scans[0].affine, atol=1e-2):
            raise DataError(
                f"{scan.path} and {scans[0].path} lie on different grids: the sequences of a case are resampled to one "
                f"grid first."
            )
    return scans


class ScanSource:
    """The cases of one split."""

    def __init__(self, cases: Sequence[Case], settings: ScanSettings, labels: Sequence[int], *, training: bool) -> None:
        """Keep the cases; those to learn from are augmented, and measured on the network's grid."""
        self.cases, self._settings, self._labels = tuple(cases), settings, tuple(labels)
        self._training = training
        self._kept: OrderedDict[int, tuple[Volume, Tensor]] = OrderedDict()
        self._kept_bytes = 0

    def __len__(self) -> int:
        """Return the number of cases."""
        return len(self.cases)

    def fetch(self, indices: Sequence[int], *, seed: int, epoch: int) -> Batch:
        """Return cases; those to learn from are mirrored, turned and shifted by (seed, epoch, index).

        Raises:
            DataError: a file cannot be used.
        """
        read = [self._read(index) for index in indices]
        if not self._training:
            return collate([volume for volume, _ in read])
        pairs = [
            augmented(volume.image, target, np.random.default_rng([seed, epoch, index]), self._settings)
            for index, (volume, target) in zip(indices, read, strict=True)
        ]
        return {
            "image": torch.stack([image for image, _ in pairs]),
            "target": torch.stack([target for _, target in pairs]),
            "label": [(target >= 0.5).to(torch.uint8) for _, target in pairs],
            "grid": [volume.grid.seen() for volume, _ in read],
        }

    def _read(self, index: int) -> tuple[Volume, Tensor]:
        """Return a case and its target, from memory if it was read before and there is room."""
        if index in self._kept:
            self._kept.move_to_end(index)
            return self._kept[index]
        volume = read_volume(self.cases[index], self._settings, self._labels)
        target = volume.target
        if self._training:  # its own mask is not needed any more
            volume = Volume(volume.name, volume.image, None, volume.grid)
        self._kept[index] = (volume, target)
        self._kept_bytes += _bytes(volume, target)
        while self._kept_bytes > self._settings.cache_mb * 1e6 and self._kept:
            _, gone = self._kept.popitem(last=False)
            self._kept_bytes -= _bytes(*gone)
        return volume, target

    def __getstate__(self) -> dict[str, Any]:
        """Leave what was read behind: a loader's worker reads its own share."""
        return {**self.__dict__, "_kept": OrderedDict(), "_kept_bytes": 0}


class ScanData:
    """The scans of a folder; implements ``polyhead.protocols.Data``."""

    licence = "that of the files"

    def __init__(self, path: Path, settings: ScanSettings) -> None:
        """Find the cases and check the headers of all files.

        Raises:
            DataError: see ``layouts`` and ``nifti``.
        """
        if settings.fold >= settings.folds:
            raise DataError(
                f"--fold {settings.fold}: with --folds {settings.folds} they are 0 to {settings.folds - 1}."
            )
        self._settings, self._path = settings, path
        self._folder = find_cases(path, settings.layout, settings.channels)
        self.name = path.name if path.is_dir() else self._folder.cases[0].name
        self.size = settings.size
        self._scans = [open_case(case, settings) for case in self._folder.cases]
        counts = {sum(scan.channels for scan in scans) for scans in self._scans}
        if len(counts) > 1:
            raise DataError(f"{path}: cases have {' and '.join(map(str, sorted(counts)))} channels; all need as many.")
        count = counts.pop()
        names = self._folder.channels
        self.channels = names if len(names) == count else tuple(f"channel {i}" for i in range(count))
        self._labelled = [case for case in self._folder.cases if case.label is not None]
        total = len(self._folder.cases)
        self.provenance = f"{path.name}: {total:,} scan{'s' * (total != 1)}, {len(self._labelled):,} with a mask."

    def source(self, split: Split) -> Source:
        """Return the cases of a split that have masks: a fold is tested, the next one validates, the others train."""
        return ScanSource(
            self._parts()[split],
            self._settings,
            self._folder.labels,
            training=split == "train",
        )

    def to_predict(self) -> Iterator[tuple[Volume, Scan | None]]:
        """Yield what `predict` runs on: all cases, one at a time, with the file that predictions are written like.

        Raises:
            DataError: a file cannot be used.
        """
        for case in self._folder.cases:
            yield read_volume(Case(case.name, case.images), self._settings), open_case(case, self._settings)[0]

    def another(self, path: Path) -> ScanData:
        """Open another scan in the same way.

        Raises:
            DataError: it cannot be used.
        """
        if len(self.channels) > 1 and path.is_file():
            raise DataError(f"{path}: the network takes the channels {', '.join(self.channels)}: name their folder.")
        return ScanData(path, self._settings)

    def check_trainable(self) -> None:
        """Refuse a folder that there is too little to learn from.

        Raises:
            DataError: too few cases have masks.
        """
        if len(self._labelled) < FEWEST:
            raise DataError(
                f"{self._path} has {len(self._labelled)} cases with masks, at least {FEWEST} are needed to train, "
                f"validate and test."
            )

    def summary(self) -> Mapping[str, Any]:
        """Return layout, sizes and geometry."""
        scans = [scans[0] for scans in self._scans]
        grids = [Grid.whole(scan.shape, scan.affine) for scan in scans]
        spacing = np.array([grid.spacing_mm for grid in grids])
        shapes = np.array([scan.shape for scan in scans])
        return {
            "layout": self._folder.layout,
            "cases": len(scans),
            "with masks": len(self._labelled),
            "channels": list(self.channels),
            "smallest shape": shapes.min(0).tolist(),
            "largest shape": shapes.max(0).tolist(),
            "smallest spacing_mm": [round(float(value), 4) for value in spacing.min(0)],
            "largest spacing_mm": [round(float(value), 4) for value in spacing.max(0)],
            "orientations": sorted({grid.orientation for grid in grids}),
        }

    def fingerprint(self) -> str:
        """Return a digest of names and file sizes, of headers, and of the settings that shape samples."""
        digest = hashlib.sha256(self._settings.model_dump_json(exclude={"cache_mb", "max_voxels"}).encode())
        for case, scans in zip(self._folder.cases, self._scans, strict=True):
            digest.update(case.name.encode())
            for scan in scans:
                digest.update(f"{scan.path.stat().st_size} {scan.shape}".encode() + scan.affine.tobytes())
            if case.label is not None:
                digest.update(str(case.label.stat().st_size).encode())
        return digest.hexdigest()

    def _parts(self) -> dict[Split, list[Case]]:
        names = sorted(case.name for case in self._labelled)
        order = np.random.default_rng(0).permutation(len(names))
        folds = min(self._settings.folds, max(FEWEST, len(names)))
        part = {names[i]: place % folds for place, i in enumerate(order)}
        test, validation = self._settings.fold % folds, (self._settings.fold + 1) % folds
        found: dict[Split, list[Case]] = {"train": [], "validation": [], "test": []}
        for case in self._labelled:
            which = part[case.name]
            found["test" if which == test else "validation" if which == validation else "train"].append(case)
        return found


def open_scans(path: Path | None, settings: ScanSettings) -> ScanData:
    """Open a file or folder of scans."""
    if path is None:
        raise DataError("The dataset scans reads your files: give --data PATH.")
    return ScanData(path, settings)


def augmented(image: Tensor, target: Tensor, rng: np.random.Generator, settings: ScanSettings) -> tuple[Tensor, Tensor]:
    """Mirror, turn and shift an image (C, D, H, W) and its target (D, H, W) alike, each with probability 1/2.

    Source: the recipe of the paper's group; turns and shifts are one linear interpolation, with 0 from outside.
    """
    both = torch.cat([image, target[None]])
    axes = [axis for axis in settings.flips if rng.random() < 0.5]
    if axes:
        both = both.flip([1 + axis for axis in axes])
    turn = settings.rotation_deg > 0 and rng.random() < 0.5
    shift = settings.translation > 0 and rng.random() < 0.5
    if turn or shift:
        angles = np.radians(rng.uniform(-1, 1, 3) * settings.rotation_deg * turn)
        matrix = np.eye(3)
        for axis, angle in enumerate(angles):
            a, b = [other for other in range(3) if other != axis]
            step = np.eye(3)
            step[a, a] = step[b, b] = np.cos(angle)
            step[a, b], step[b, a] = -np.sin(angle), np.sin(angle)
            matrix = matrix @ step
        moved = rng.uniform(-2, 2, 3) * settings.translation * shift
        theta = torch.from_numpy(np.column_stack([matrix, moved])).to(both.dtype)[None]
        places = F.affine_grid(theta, [1, *both.shape], align_corners=False)
        both = F.grid_sample(both[None], places, align_corners=False)[0]
    return both[:-1].contiguous(), both[-1].contiguous()


def _scaled(channel: np.ndarray[Any, Any], percentiles: tuple[float, float]) -> np.ndarray[Any, Any]:
    step = max(1, round((channel.size / _SAMPLED) ** (1 / 3)))
    low, high = np.percentile(channel[::step, ::step, ::step], percentiles)
    if high <= low:
        return np.zeros_like(channel)
    scaled: np.ndarray[Any, Any] = np.clip((channel - low) / (high - low), 0, 1)
    return scaled.astype(np.float32)


def _bytes(volume: Volume, target: Tensor) -> int:
    label = 0 if volume.label is None else volume.label.nbytes
    return volume.image.nbytes + target.nbytes + label
