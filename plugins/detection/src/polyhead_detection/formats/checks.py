"""What every layout has to hold: boxes inside their pictures, and splits with pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyhead.errors import DataError
from polyhead_detection.pictures import Floats, Item

__all__ = ["BoxCheck", "apart", "raise_all"]

SHOWN = 10
SLACK = 1.0
"""Pixels by which a box may reach out of its picture without a word: annotation tools round."""


class BoxCheck:
    """Looks at the boxes of one file after the other, and in the end says all that is wrong."""

    def __init__(self, mode: str) -> None:
        """Refuse bad boxes, or clip them and drop what is left without size."""
        self.clip = mode == "clip"
        self.problems: list[str] = []
        self.clipped = self.dropped = 0

    def __call__(self, boxes: Floats, size: tuple[int, int], where: Sequence[str]) -> tuple[Floats, Any]:
        """Return boxes clipped to the picture, and which of them are kept.

        Args:
            boxes: left, top, width, height in pixels, (n, 4).
            size: height and width of the picture.
            where: what messages call each box.
        """
        low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
        limits = np.array([size[1], size[0]], dtype=np.float64)
        inside_low, inside_high = np.clip(low, 0, limits), np.clip(high, 0, limits)
        clipped = np.concatenate([inside_low, inside_high - inside_low], 1)
        finite = np.isfinite(boxes).all(1)
        beyond: NDArray[np.bool_] = np.asarray(finite & (np.maximum(-low, high - limits).max(1, initial=0) > SLACK))
        flat: NDArray[np.bool_] = np.asarray((boxes[:, 2:] <= 0).any(1) | (clipped[:, 2:] <= 0).any(1) | ~finite)
        for place in np.flatnonzero(beyond | flat).tolist():
            box = ", ".join(f"{value:g}" for value in boxes[place])
            what = "has no size" if flat[place] else f"reaches out of the picture ({size[1]} × {size[0]})"
            self.problems.append(f"{where[place]}: the box [{box}] (left, top, width, height) {what}")
        self.clipped += int((beyond & ~flat).sum())
        self.dropped += int(flat.sum())
        return clipped, ~flat

    def finish(self, file: str) -> dict[str, int]:
        """Return how many boxes were clipped and dropped.

        Raises:
            DataError: there are bad boxes and they are refused; names the first ones.
        """
        if self.problems and not self.clip:
            raise_all(file, self.problems, "Correct them, or use --bad-boxes clip, which drops boxes without size.")
        return {"boxes clipped": self.clipped, "boxes dropped": self.dropped} if self.problems else {}


def raise_all(file: str, problems: Sequence[str], mend: str) -> None:
    """Raise DataError with up to ten problems and their number."""
    shown = "; ".join(problems[:SHOWN])
    more = f"; and {len(problems) - SHOWN:,} more" if len(problems) > SHOWN else ""
    raise DataError(f"{file}: {shown}{more}. {mend}")


def apart(items: Sequence[Item], name: str) -> dict[Any, list[Item]]:
    """Cut one set of pictures into train, validation and test, 80 : 10 : 10, always the same.

    Raises:
        DataError: there are fewer than three pictures.
    """
    if len(items) < 3:
        raise DataError(f"{name} has {len(items)} pictures; three are needed, for training, validation and test.")
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(items))
    held = max(1, len(items) // 10)
    parts = {"test": order[:held], "validation": order[held : 2 * held], "train": order[2 * held :]}
    return {split: [items[place] for place in sorted(parts[split])] for split in ("train", "validation", "test")}
