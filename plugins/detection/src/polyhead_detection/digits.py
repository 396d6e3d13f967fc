"""Synthetic scenes with real handwritten digits: a function of seed and index, for demos and tests."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from polyhead.protocols import Batch, Source, Split
from polyhead_detection.pictures import Category, Item, collate, truth_rows
from polyhead_detection.settings import PictureSettings
from polyhead_detection.transforms import Sample

__all__ = ["DigitData", "Scene", "draw_scene", "open_digits"]

VERSION = 1
"""Counts up when the same seed and index give another scene."""
SIDE = 64
GLYPHS: Mapping[Split, tuple[int, int]] = {"train": (0, 1300), "validation": (1300, 1400), "test": (1400, 1797)}
"""Which of scikit-learn's digits a split takes: no glyph is in two."""
SHOWN = 4
"""Test scenes that `predict` answers."""
_STREAMS: Mapping[Split, int] = {"train": 0, "validation": 1, "test": 2}
BLACK, GAIN = 48.0, 120.0
"""Grey value of an empty pixel, and of a full stroke above it."""


class Scene(NamedTuple):
    """A picture with digits."""

    image: NDArray[np.uint8]
    """(64, 64)."""
    boxes: NDArray[np.float64]
    """Left, top, width, height in pixels, (n, 4)."""
    labels: NDArray[np.int64]


def draw_scene(split: Split, seed: int, index: int) -> Scene:
    """Return a scene: one to four digits of 10 to 30 pixels on noise, with six strokes that are none.

    A box is the tight one around the pixels of more than a quarter of the full value.
    """
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([_STREAMS[split], seed, index])))
    glyphs, classes = _glyphs()
    canvas = generator.normal(0, 0.08, (SIDE, SIDE))
    for _ in range(6):
        across = generator.random() < 0.5
        y, x = generator.integers(0, SIDE - 8, 2)
        if across:
            canvas[y, x : x + 8] += 0.6
        else:
            canvas[y : y + 8, x] += 0.6
    taken: list[tuple[int, int, int]] = []
    boxes, labels = [], []
    for _ in range(int(generator.integers(1, 5))):
        side = int(generator.integers(10, 31))
        chosen = int(generator.integers(*GLYPHS[split]))
        for _ in range(20):
            y, x = (int(place) for place in generator.integers(0, SIDE - side + 1, 2))
            if all(y + side <= b or b + s <= y or x + side <= a or a + s <= x for b, a, s in taken):
                break
        else:
            continue
        taken.append((y, x, side))
        resized = Image.fromarray(glyphs[chosen]).resize((side, side), Image.Resampling.BILINEAR)
        glyph = np.asarray(resized, dtype=np.float64)
        canvas[y : y + side, x : x + side] += glyph
        rows, columns = np.nonzero(glyph > 0.25)
        top, left = int(rows.min()), int(columns.min())
        boxes.append([x + left, y + top, int(columns.max()) - left + 1, int(rows.max()) - top + 1])
        labels.append(classes[chosen])
    pixels = np.clip(np.round(BLACK + GAIN * canvas), 0, 255).astype(np.uint8)
    return Scene(pixels, np.array(boxes, dtype=np.float64).reshape(-1, 4), np.array(labels, dtype=np.int64))


@functools.cache
def _glyphs() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return scikit-learn's 1,797 digits in [0, 1], (n, 8, 8), and their classes."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return (digits.images / 16).astype(np.float32), digits.target.astype(np.int64)


def _item(scene: Scene, split: Split, index: int) -> Item:
    name = f"{split}-{index:04d}.png"
    area = scene.boxes[:, 2] * scene.boxes[:, 3]
    crowd = np.zeros(len(area), np.bool_)
    return Item(Path(name), index + 1, (SIDE, SIDE), scene.boxes, scene.labels, area, crowd)


class _Scenes:
    """The scenes of a split; for training without end."""

    def __init__(self, split: Split, count: int) -> None:
        self.split, self.count = split, count
        self.endless = split == "train"

    def __len__(self) -> int:
        return self.count

    def fetch(self, indices: Sequence[int], *, seed: int, epoch: int) -> Batch:
        """Return a batch; an endless stream has no passes, so ``epoch`` changes nothing."""
        del epoch
        scenes = [draw_scene(self.split, seed if self.endless else 0, index) for index in indices]
        items = [_item(scene, self.split, index) for scene, index in zip(scenes, indices, strict=True)]
        samples = [self._sample(scene) for scene in scenes]
        return collate(
            samples, [item.id for item in items], [truth_rows(item) for item in items], [item.size for item in items]
        )

    def _sample(self, scene: Scene) -> Sample:
        boxes = scene.boxes.copy()
        boxes[:, :2] += boxes[:, 2:] / 2
        relative = torch.from_numpy((boxes / SIDE).astype(np.float32))
        return Sample(_pixels(scene), relative, torch.from_numpy(scene.labels.copy()))


def _pixels(scene: Scene) -> Tensor:
    return torch.from_numpy(scene.image).expand(3, -1, -1).contiguous()


class DigitData:
    """Digit scenes; implements ``polyhead.protocols.Data``."""

    name = "digit-scenes"
    provenance = (
        "Synthetic scenes of 64 × 64 pixels with handwritten digits of scikit-learn, a function of seed and index."
    )
    licence = "Apache-2.0; the digits: CC BY 4.0 (E. Alpaydin, C. Kaynak, UCI Machine Learning Repository)"
    categories = tuple(Category(digit, str(digit)) for digit in range(10))

    def __init__(self, settings: PictureSettings) -> None:
        """Open the generator."""
        self.settings = settings
        self._counts: Mapping[Split, int] = {
            "train": 0,
            "validation": max(1, settings.scenes // 5),
            "test": settings.scenes,
        }

    def source(self, split: Split) -> Source:
        """Return the scenes of a split; those for training are endless."""
        return _Scenes(split, self._counts[split])

    def pictures(self, split: Split) -> Iterator[tuple[Item, Tensor]]:
        """Yield the first scenes of a split, for ``predict``."""
        for index in range(min(SHOWN, self._counts[split] or SHOWN)):
            scene = draw_scene(split, 0, index)
            yield _item(scene, split, index), _pixels(scene)

    def summary(self) -> Mapping[str, Any]:
        """Return the sizes."""
        glyphs = {split: high - low for split, (low, high) in GLYPHS.items()}
        return {"test scenes": self._counts["test"], "classes": 10, "glyphs": glyphs, "pixels": [SIDE, SIDE]}

    def fingerprint(self) -> str:
        """Return a digest of what the scenes are a function of."""
        return hashlib.sha256(f"{VERSION} {self.settings.scenes}".encode()).hexdigest()


def open_digits(path: Path | None, settings: PictureSettings) -> DigitData:
    """Open the generated scenes; ``path`` is None."""
    del path
    return DigitData(settings)
