"""Volumes as stacks of axial slices: read, sliced, split by subject, put together again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from polyhead.errors import DataError
from polyhead.protocols import Batch, Source, Split
from polyhead_medical.dicom import read_series
from polyhead_medical.grids import Grid
from polyhead_medical.layouts import Case, find_cases
from polyhead_medical.nifti import Scan, read_label, read_scan
from polyhead_medical.organ_settings import OrganDataSettings

__all__ = ["SliceData", "SliceSource", "Slices", "open_slices"]

FEWEST = 3


@dataclass(frozen=True)
class Slices:
    """A volume as the network sees it: axial slices from bottom to top."""

    name: str
    image: Tensor
    """(Z, 1, H, W), float32 in [0, 1]; H runs from right to left, W from back to front."""
    label: Tensor | None
    """(Z, H, W), int64 classes; None of a volume without a mask."""
    grid: Grid

    @classmethod
    def of_image(cls, name: str, image: np.ndarray[Any, Any]) -> Self:
        """Return a single image (H, W) as a volume of one slice."""
        grid = Grid.whole((*image.shape, 1), np.eye(4))
        return cls(name, torch.from_numpy(image)[None, None], None, grid)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Of the slices as the network sees them: along Z, H and W."""
        x, y, z = (extent / size for extent, size in zip(self.grid.box_mm, self.grid.size, strict=True))
        return (z, x, y)

    def stored(self, probabilities: Tensor) -> np.ndarray[Any, Any]:
        """Return probabilities (Z, K, H, W) of all slices as classes on the volume's own voxels, uint8."""
        seen = probabilities.permute(1, 2, 3, 0).float().cpu()
        found: np.ndarray[Any, Any] = self.grid.to_stored(seen).argmax(0).to(torch.uint8).numpy()
        return found


def read_slices(case: Case, settings: OrganDataSettings) -> Slices:
    """Read a volume and its mask, turn them to RAS+ and resize the slices.

    Intensities are scaled from the least to the greatest of the volume to [0, 1].

    Raises:
        DataError: a file cannot be used; see ``nifti``.
    """
    scan = _open(case, settings)
    grid = Grid.whole(scan.shape, scan.affine)
    grid = Grid.whole(scan.shape, scan.affine, (*settings.size, grid.size[2]))
    voxels = torch.from_numpy(scan.voxels())
    low, high = voxels.min(), voxels.max()
    seen = grid.to_network((voxels - low) / (high - low).clamp(min=1e-12))
    label = None
    if case.label is not None:
        known = tuple(range(1, len(settings.organs) + 1))
        stored = read_label(case.label, scan, max_voxels=settings.max_voxels, known=known)
        shares = F.one_hot(torch.from_numpy(stored).long(), len(known) + 1).movedim(-1, 0).float()
        label = grid.to_network(shares).argmax(0).permute(2, 0, 1).contiguous()
    return Slices(case.name, seen.permute(3, 0, 1, 2).contiguous(), label, grid)


def _open(case: Case, settings: OrganDataSettings) -> Scan:
    path = case.images[0]
    return (
        read_series(path, max_voxels=settings.max_voxels)
        if path.is_dir()
        else read_scan(path, max_voxels=settings.max_voxels)
    )


class SliceSource:
    """The slices of one split's volumes, all of them kept in memory at the network's size."""

    def __init__(self, volumes: Sequence[Slices], settings: OrganDataSettings, *, training: bool) -> None:
        """Keep the volumes."""
        self.volumes, self._settings, self._training = tuple(volumes), settings, training
        self._places = [(i, z) for i, volume in enumerate(volumes) for z in range(len(volume.image))]

    def __len__(self) -> int:
        """Return the number of slices."""
        return len(self._places)

    def fetch(self, indices: Sequence[int], *, seed: int, epoch: int) -> Batch:
        """Return slices; those to learn from are mirrored and turned by (seed, epoch, index)."""
        images, targets = [], []
        places = [self._places[index] for index in indices]
        for index, (volume, z) in zip(indices, places, strict=True):
            image, label = self.volumes[volume].image[z], self.volumes[volume].label
            target = torch.zeros(image.shape[1:], dtype=torch.int64) if label is None else label[z]
            if self._training:
                rng = np.random.default_rng([seed, epoch, index])
                image, target = turned(image, target, rng, self._settings)
            images.append(image.clone())
            targets.append(target.clone())
        return {
            "image": torch.stack(images),
            "target": torch.stack(targets),
            "subject": [self.volumes[volume].name for volume, _ in places],
            "slice": torch.tensor([z for _, z in places]),
            "spacing": torch.tensor([self.volumes[volume].spacing_mm for volume, _ in places]),
        }


class SliceData:
    """The volumes of a folder; implements ``polyhead.protocols.Data``."""

    licence = "that of the files"
    channels = ("scan",)

    def __init__(self, path: Path, settings: OrganDataSettings) -> None:
        """Find the volumes and check their headers.

        Raises:
            DataError: see ``layouts`` and ``nifti``.
        """
        if settings.fold >= settings.folds:
            raise DataError(
                f"--fold {settings.fold}: with --folds {settings.folds} they are 0 to {settings.folds - 1}."
            )
        self._settings, self._path = settings, path
        self._folder = find_cases(path, settings.layout, ())
        self._scans = [_open(case, settings) for case in self._folder.cases]
        self.name = path.name if path.is_dir() else self._folder.cases[0].name
        self.size, self.organs = settings.size, settings.organs
        self._labelled = [case for case in self._folder.cases if case.label is not None]
        total = len(self._folder.cases)
        self.provenance = f"{path.name}: {total:,} volume{'s' * (total != 1)}, {len(self._labelled):,} with a mask."

    def source(self, split: Split) -> Source:
        """Return the slices of a split: a fold of subjects is tested, the next one validates, the others train."""
        names = sorted(case.name for case in self._labelled)
        order = np.random.default_rng(0).permutation(len(names))
        folds = min(self._settings.folds, max(FEWEST, len(names)))
        part = {names[i]: place % folds for place, i in enumerate(order)}
        test, validation = self._settings.fold % folds, (self._settings.fold + 1) % folds
        which = {"test": {test}, "validation": {validation}, "train": set(range(folds)) - {test, validation}}[split]
        volumes = [read_slices(case, self._settings) for case in self._labelled if part[case.name] in which]
        return SliceSource(volumes, self._settings, training=split == "train")

    def to_predict(self) -> Iterator[tuple[Slices, Scan]]:
        """Yield what `predict` runs on: all volumes, one at a time, with the file that predictions are written like."""
        for case in self._folder.cases:
            yield read_slices(Case(case.name, case.images), self._settings), _open(case, self._settings)

    def check_trainable(self) -> None:
        """Refuse a folder that there is too little to learn from.

        Raises:
            DataError: too few volumes have masks.
        """
        if len(self._labelled) < FEWEST:
            raise DataError(
                f"{self._path} has {len(self._labelled)} volumes with masks, at least {FEWEST} are needed to train, "
                f"validate and test."
            )

    def summary(self) -> Mapping[str, Any]:
        """Return layout, sizes and classes."""
        shapes = np.array([scan.shape for scan in self._scans])
        return {
            "layout": self._folder.layout,
            "volumes": len(self._scans),
            "with masks": len(self._labelled),
            "smallest shape": shapes.min(0).tolist(),
            "largest shape": shapes.max(0).tolist(),
            "classes": ["background", *self.organs],
        }

    def fingerprint(self) -> str:
        """Return a digest of names, file sizes and headers, and of the settings that shape samples."""
        digest = hashlib.sha256(self._settings.model_dump_json(exclude={"max_voxels"}).encode())
        for case, scan in zip(self._folder.cases, self._scans, strict=True):
            sizes = [file.stat().st_size for file in (*case.images, case.label) if file is not None]
            digest.update(f"{case.name} {sizes} {scan.shape}".encode() + scan.affine.tobytes())
        return digest.hexdigest()


def open_slices(path: Path | None, settings: OrganDataSettings) -> SliceData:
    """Open a file or folder of volumes."""
    if path is None:
        raise DataError("The dataset slices reads your files: give --data PATH.")
    return SliceData(path, settings)


def turned(
    image: Tensor, target: Tensor, rng: np.random.Generator, settings: OrganDataSettings
) -> tuple[Tensor, Tensor]:
    """Mirror and rotate a slice (1, H, W) and its classes (H, W) alike, each with probability 1/2.

    Source: the paper's augmentation. Differs: images are interpolated linearly, classes by nearest neighbours (the
    release takes neighbours for both).
    """
    for axis in (0, 1) if settings.flip else ():
        if rng.random() < 0.5:
            image, target = image.flip(1 + axis), target.flip(axis)
    if settings.rotation_deg > 0 and rng.random() < 0.5:
        angle = np.radians(rng.uniform(-settings.rotation_deg, settings.rotation_deg))
        rows = [[np.cos(angle), -np.sin(angle), 0.0], [np.sin(angle), np.cos(angle), 0.0]]
        places = F.affine_grid(torch.tensor([rows], dtype=torch.float32), [1, *image.shape], align_corners=False)
        image = F.grid_sample(image[None], places, align_corners=False)[0]
        moved = F.grid_sample(target[None, None].float(), places, mode="nearest", align_corners=False)
        target = moved[0, 0].round().long()
    return image, target
