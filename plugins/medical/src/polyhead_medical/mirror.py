"""Synthetic heads in which only a look at the other side tells the lesion: a function of seed and index.

A head is an ellipsoid with a bright shell. Bright spheres come in pairs, one on each side: normal anatomy. The sphere
without a twin is the lesion; it is as bright and as large as the others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from polyhead.errors import DataError
from polyhead.protocols import Batch, Source, Split
from polyhead_medical.cases import Volume, collate
from polyhead_medical.grids import Grid
from polyhead_medical.nifti import Scan
from polyhead_medical.settings import ScanSettings

__all__ = ["SIZE", "MirrorData", "MirrorSource", "mirror_lesion", "open_mirror"]

SIZE = 32
LEAST_FROM_PLANE = 4.5
"""Voxels that every centre keeps from the mid-plane."""
_SPLITS: Mapping[Split, int] = {"train": 0, "validation": 1, "test": 2}


def mirror_lesion(seed: int, index: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return image and label of a volume.

    Returns:
        tuple: image (32, 32, 32), float32 in [0, 1]; label of the same shape, uint8, 1 in the lesion. The first axis
        goes from right to left.
    """
    rng = np.random.default_rng([seed, index])
    places = np.stack(np.meshgrid(*[np.arange(SIZE) - (SIZE - 1) / 2] * 3, indexing="ij"))
    axes = rng.uniform(12.5, 14.5, 3)
    radius = np.sqrt(((places / axes[:, None, None, None]) ** 2).sum(0))
    image = np.where(radius <= 1, np.where(radius >= 0.93, 0.8, 0.4), 0.0)

    spheres: list[tuple[np.ndarray[Any, Any], float]] = []

    def place(smallest: float, largest: float) -> tuple[np.ndarray[Any, Any], float]:
        """Draw a sphere inside the head that touches neither another one nor the mid-plane's surroundings."""
        while True:
            size = rng.uniform(smallest, largest)
            centre = rng.uniform(-12, 12, 3)
            free = all(np.linalg.norm(centre - other) > size + r + 1 for other, r in spheres)
            inside = np.linalg.norm(centre / axes) + size / axes.min() < 0.9
            if free and inside and abs(centre[0]) > LEAST_FROM_PLANE:
                return centre, size

    for _ in range(rng.integers(1, 3)):
        centre, size = place(2, 4)
        spheres += [(centre, size), (centre * [-1, 1, 1], size)]
    lesion = place(2, 5)
    for centre, size in [*spheres, lesion]:
        image[((places - centre[:, None, None, None]) ** 2).sum(0) <= size**2] = 0.8
    label = ((places - lesion[0][:, None, None, None]) ** 2).sum(0) <= lesion[1] ** 2

    field = 1 + np.tensordot(rng.normal(0, 0.15, 3), places / (SIZE / 2), 1)
    image = image * field + rng.normal(0, 0.08, image.shape)
    image = (image - image.min()) / (image.max() - image.min())
    return image.astype(np.float32), label.astype(np.uint8)


class MirrorSource:
    """The volumes of one split."""

    def __init__(self, split: Split, length: int, flips: Sequence[int]) -> None:
        """Keep the split, the number of volumes and the axes along which training ones are mirrored."""
        self.split, self.length, self.flips = split, length, tuple(flips) if split == "train" else ()

    def __len__(self) -> int:
        """Return the number of volumes."""
        return self.length

    def volume(self, index: int) -> Volume:
        """Return a volume by its place in the split."""
        image, label = mirror_lesion(_SPLITS[self.split], index)
        grid = Grid.whole((SIZE, SIZE, SIZE), np.eye(4))
        return Volume(f"{self.split}-{index:04d}", torch.from_numpy(image)[None], torch.from_numpy(label), grid)

    def fetch(self, indices: Sequence[int], *, seed: int, epoch: int) -> Batch:
        """Return volumes; those to learn from are mirrored by (seed, epoch, index)."""
        volumes = []
        for index in indices:
            volume = self.volume(index)
            rng = np.random.default_rng([seed, epoch, index])
            axes = [axis for axis in self.flips if rng.random() < 0.5]
            volumes.append(volume.flipped(axes))
        return collate(volumes)


class MirrorData:
    """Mirror-lesion volumes; implements ``polyhead.protocols.Data``."""

    name = "mirror-lesion"
    provenance = "Synthetic heads of 32 × 32 × 32 voxels: the lesion is the sphere without a twin on the other side."
    licence = "Apache-2.0"
    channels = ("made up",)

    def __init__(self, settings: ScanSettings) -> None:
        """Keep the numbers of volumes."""
        self._sizes: dict[Split, int] = {
            "train": settings.train_cases,
            "validation": settings.validation_cases,
            "test": settings.test_cases,
        }
        self._flips = settings.flips
        self.size = (SIZE, SIZE, SIZE)

    def source(self, split: Split) -> Source:
        """Return the volumes of a split; each split has its own seed."""
        return MirrorSource(split, self._sizes[split], self._flips)

    def to_predict(self) -> Iterator[tuple[Volume, Scan | None]]:
        """Yield what `predict` runs on: the test volumes, which come from no file."""
        source = MirrorSource("test", self._sizes["test"], ())
        for index in range(len(source)):
            yield source.volume(index), None

    def another(self, path: Path) -> Any:
        """Refuse to compare with a file.

        Raises:
            DataError: always.
        """
        raise DataError(f"--compare {path}: generated volumes have no earlier scans. Give --data PATH.")

    def check_trainable(self) -> None:
        """Do nothing: there is always enough."""

    def summary(self) -> Mapping[str, Any]:
        """Return sizes."""
        return {"size": list(self.size), "spacing_mm": [1.0, 1.0, 1.0], "channels": list(self.channels)}

    def fingerprint(self) -> str:
        """Return a digest of the first volume and of what the settings ask for."""
        image, label = mirror_lesion(0, 0)
        content = json.dumps([dict(self._sizes), list(self._flips)]).encode()
        return hashlib.sha256(content + label.tobytes() + np.round(image, 3).tobytes()).hexdigest()


def open_mirror(path: Path | None, settings: ScanSettings) -> MirrorData:
    """Open the embedded volumes."""
    del path
    return MirrorData(settings)
