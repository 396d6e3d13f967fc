"""Synthetic abdomens in which only the liver, far away, tells what the two discs are: a function of seed and index.

A body disc holds a liver at its top, dim or bright by the toss of a coin, and two like discs at its bottom. The discs
are of one class where the liver is dim and of another where it is bright; nothing about themselves tells which.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from polyhead.protocols import Batch, Source, Split
from polyhead_medical.organ_settings import OrganDataSettings
from polyhead_medical.slices import Slices

__all__ = ["ORGANS", "SIZE", "RemoteData", "RemoteSource", "open_remote", "remote_attribute"]

SIZE = 64
ORGANS = ("liver", "discs by a dim liver", "discs by a bright liver")
_SPLITS: Mapping[Split, int] = {"train": 0, "validation": 1, "test": 2}


def remote_attribute(seed: int, index: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return image (64, 64), float32 in [0, 1], and classes of the same shape, int64: 0 to 3, see `ORGANS`."""
    rng = np.random.default_rng([seed, index])
    middle = (SIZE - 1) / 2
    y, x = np.meshgrid(np.arange(SIZE) - middle, np.arange(SIZE) - middle, indexing="ij")
    bright = int(rng.integers(2))
    image = np.where(x**2 + y**2 <= 29**2, 0.35, 0.0)
    label = np.zeros((SIZE, SIZE), dtype=np.int64)
    centre = rng.uniform(-3, 3), -rng.uniform(19, 22)
    liver = ((x - centre[0]) / rng.uniform(9, 12)) ** 2 + ((y - centre[1]) / rng.uniform(4, 5)) ** 2 <= 1
    image[liver], label[liver] = (0.95 if bright else 0.55), 1
    apart, low = rng.uniform(7, 12), rng.uniform(15, 20)
    wide, high = rng.uniform(3, 4.5), rng.uniform(3, 5)
    for side in (-1, 1):
        disc = ((x - side * apart) / wide) ** 2 + ((y - low) / high) ** 2 <= 1
        image[disc], label[disc] = 0.75, 3 if bright else 2
    slope = rng.normal(0, 0.1, 2)
    image = image * (1 + (slope[0] * x + slope[1] * y) / (SIZE / 2)) + rng.normal(0, 0.1, image.shape)
    image = (image - image.min()) / (image.max() - image.min())
    return image.astype(np.float32), label


class RemoteSource:
    """The images of one split; each is a subject of its own."""

    def __init__(self, split: Split, length: int) -> None:
        """Keep the split and the number of images."""
        self.split, self.length = split, length

    def __len__(self) -> int:
        """Return the number of images."""
        return self.length

    def fetch(self, indices: Sequence[int], *, seed: int, epoch: int) -> Batch:
        """Return images and classes; the same whatever the seed and epoch."""
        del seed, epoch
        made = [remote_attribute(_SPLITS[self.split], index) for index in indices]
        return {
            "image": torch.from_numpy(np.stack([image for image, _ in made]))[:, None],
            "target": torch.from_numpy(np.stack([label for _, label in made])),
            "subject": [f"{self.split}-{index:04d}" for index in indices],
            "slice": torch.zeros(len(made), dtype=torch.int64),
            "spacing": torch.ones(len(made), 3),
        }


class RemoteData:
    """Remote-attribute images; implements ``polyhead.protocols.Data``."""

    name = "remote-attribute"
    provenance = "Synthetic abdomens of 64 × 64 pixels: what the two discs are is told by the liver's brightness alone."
    licence = "Apache-2.0"
    channels = ("made up",)
    organs = ORGANS
    size = (SIZE, SIZE)

    def __init__(self, settings: OrganDataSettings) -> None:
        """Keep the numbers of images."""
        self._sizes: dict[Split, int] = {
            "train": settings.train_cases,
            "validation": settings.validation_cases,
            "test": settings.test_cases,
        }

    def source(self, split: Split) -> Source:
        """Return the images of a split; each split has its own seed."""
        return RemoteSource(split, self._sizes[split])

    def to_predict(self) -> Iterator[tuple[Slices, None]]:
        """Yield what `predict` runs on: the test images, which come from no file."""
        for index in range(self._sizes["test"]):
            image, _ = remote_attribute(_SPLITS["test"], index)
            yield Slices.of_image(f"test-{index:04d}", image), None

    def check_trainable(self) -> None:
        """Do nothing: there is always enough."""

    def summary(self) -> Mapping[str, Any]:
        """Return sizes."""
        return {"size": list(self.size), "classes": ["background", *ORGANS]}

    def fingerprint(self) -> str:
        """Return a digest of the first image and of what the settings ask for."""
        image, label = remote_attribute(0, 0)
        content = json.dumps(dict(self._sizes)).encode()
        return hashlib.sha256(content + label.tobytes() + np.round(image, 3).tobytes()).hexdigest()


def open_remote(path: Path | None, settings: OrganDataSettings) -> RemoteData:
    """Open the embedded images."""
    del path
    return RemoteData(settings)
