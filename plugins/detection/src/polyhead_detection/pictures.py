"""Annotated pictures as the task takes them: items, splits, and batches with boxes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyhead.errors import DataError
from polyhead.protocols import Batch, Source, Split
from polyhead_detection.images import read_image
from polyhead_detection.settings import PictureSettings
from polyhead_detection.transforms import Sample, augment, fit_size, resize

__all__ = ["Category", "Item", "PictureData", "PictureSource", "collate", "truth_rows"]

Floats = NDArray[np.float64]


class Category(NamedTuple):
    """A class of objects."""

    id: int
    """That of the user's files."""
    name: str


@dataclass(frozen=True)
class Item:
    """A picture and its objects."""

    path: Path
    id: int
    size: tuple[int, int]
    """Height and width in pixels."""
    boxes: Floats = field(default_factory=lambda: np.zeros((0, 4)))
    """Left, top, width, height in pixels, (n, 4)."""
    labels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """Places in the categories, (n,)."""
    area: Floats = field(default_factory=lambda: np.zeros(0))
    """Pixels of the objects, which may be less than their boxes, (n,)."""
    crowd: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    """Whether a box is of many objects: not learned from, and found or not it does not count."""
    name: str = ""
    """How outputs call the picture; its file name if empty."""

    @property
    def file_name(self) -> str:
        """How outputs call the picture."""
        return self.name or self.path.name


def truth_rows(item: Item) -> Tensor:
    """Return what evaluation needs, float64 (n, 7): left, top, width, height, area, crowd, label."""
    columns = [item.boxes, item.area[:, None], item.crowd[:, None], item.labels[:, None]]
    return torch.from_numpy(np.concatenate(columns, 1).astype(np.float64))


def collate(samples: Sequence[Sample], ids: Sequence[int], truth: Sequence[Tensor], sizes: Sequence[Any]) -> Batch:
    """Return a batch.

    Its entries: ``image``, a list of uint8 (3, h, w); ``boxes``, a list of (n, 4), centre x, y, width, height in units
    of the picture; ``labels``, a list of int64 (n,); ``image_id`` (B,); ``original_size`` (B, 2), height and width
    before resizing; ``truth``, a list of `truth_rows`.
    """
    return {
        "image": [sample.image for sample in samples],
        "boxes": [sample.boxes for sample in samples],
        "labels": [sample.labels for sample in samples],
        "image_id": torch.tensor(list(ids), dtype=torch.int64),
        "original_size": torch.tensor(list(sizes), dtype=torch.int64).view(-1, 2),
        "truth": list(truth),
    }


class PictureSource:
    """Pictures by index, resized, and for training augmented."""

    def __init__(self, items: Sequence[Item], settings: PictureSettings, *, training: bool) -> None:
        """Take the items of a split."""
        self.items, self.settings, self.training = items, settings, training

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.items)

    def fetch(self, indices: Sequence[int], *, seed: int, epoch: int) -> Batch:
        """Return a batch, see `collate`; training samples depend on (seed, epoch, index)."""
        items = [self.items[index] for index in indices]
        samples = [self._sample(item, (seed, epoch, index)) for item, index in zip(items, indices, strict=True)]
        return collate(
            samples, [item.id for item in items], [truth_rows(item) for item in items], [item.size for item in items]
        )

    def _sample(self, item: Item, key: tuple[int, int, int]) -> Sample:
        image = read_image(item.path, item.size)
        own = ~item.crowd
        boxes = item.boxes[own].copy()
        boxes[:, :2] += boxes[:, 2:] / 2
        boxes /= np.array([item.size[1], item.size[0]] * 2)
        sample = Sample(image, torch.from_numpy(boxes.astype(np.float32)), torch.from_numpy(item.labels[own].copy()))
        settings = self.settings
        if not self.training:
            return resize(sample, fit_size(item.size, settings.short_side, settings.long_side))
        return augment(
            sample,
            np.random.Generator(np.random.PCG64(np.random.SeedSequence(key))),
            sides=settings.train_sides or (settings.short_side,),
            long_side=settings.long_side,
            flip=settings.flip,
            crop=settings.crop,
        )


@dataclass(eq=False)
class PictureData:
    """Pictures in a folder; implements ``polyhead.protocols.Data``."""

    name: str
    provenance: str
    splits: Mapping[Split, Sequence[Item]]
    """Those that there are; of pictures without annotations only "test"."""
    categories: tuple[Category, ...] | None
    """None: pictures without annotations."""
    settings: PictureSettings
    licence: str = "that of the files"
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What reading them found, for ``data check``."""

    def source(self, split: Split) -> Source:
        """Return the pictures of a split.

        Raises:
            DataError: they have no annotations, or none of the training pictures has a box.
        """
        if self.categories is None and split != "test":
            raise DataError(
                f"{self.name} holds pictures without annotations: predict takes them, training needs boxes (COCO JSON, "
                "YOLO or Pascal VOC)."
            )
        items = self.splits[split]
        if split == "train":
            if not any(len(item.labels) and not item.crowd.all() for item in items):
                raise DataError(
                    f"{self.name} has no box in its {len(items):,} training pictures: there is nothing to learn."
                )
            if self.settings.empty == "drop":
                items = [item for item in items if len(item.labels) and not item.crowd.all()]
        return PictureSource(items, self.settings, training=split == "train")

    def pictures(self, split: Split) -> Iterator[tuple[Item, Tensor]]:
        """Yield pictures one after the other, as uint8 (3, H, W), at their own size."""
        for item in self.splits[split]:
            yield item, read_image(item.path, item.size)

    def summary(self) -> Mapping[str, Any]:
        """Return the sizes, and boxes of each class."""
        items = [item for part in {id(part): part for part in self.splits.values()}.values() for item in part]
        figures: dict[str, Any] = {
            "pictures": {split: len(part) for split, part in self.splits.items()},
            "boxes": int(sum(len(item.labels) for item in items)),
            "crowds": int(sum(item.crowd.sum() for item in items)),
            "pictures without a box": sum(1 for item in items if not len(item.labels)),
        }
        if self.categories is not None:
            counts = np.zeros(len(self.categories), np.int64)
            for item in items:
                np.add.at(counts, item.labels, 1)
            figures["classes"] = len(self.categories)
            shown = zip(self.categories, counts.tolist(), strict=True)
            figures["boxes of class"] = {f"{each.id} {each.name}": count for each, count in shown}
        return {**figures, **self.notes}

    def fingerprint(self) -> str:
        """Return a digest of annotations, file names and sizes."""
        digest = hashlib.sha256(repr(self.categories).encode())
        for split, items in self.splits.items():
            digest.update(split.encode())
            for item in items:
                digest.update(f"{item.path.name} {item.id} {item.size}".encode())
                digest.update(item.boxes.tobytes() + item.labels.tobytes() + item.crowd.tobytes())
        return digest.hexdigest()
