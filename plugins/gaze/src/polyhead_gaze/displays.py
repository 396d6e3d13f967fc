"""Displays with objects, and trials: the objects that a viewer fixated, one after the other."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from polyhead.errors import DataError

if TYPE_CHECKING:
    from polyhead.protocols import Batch

__all__ = ["Display", "Floats", "Trial", "assign", "check_display", "collate", "grid_of", "spacing", "stream_of"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Display:
    """Objects on a screen."""

    name: str
    boxes: Floats
    """Left, top, right, bottom of each object in pixels, shape (N, 4)."""
    size: tuple[float, float]
    """Width and height of the screen, pixels."""
    ids: tuple[str, ...]
    """What the objects are called."""
    place: Floats
    """Row and column of each object in object spacings, not negative, shape (N, 2)."""
    appearance: NDArray[Any] | None = None
    """Features (N, F), float32, or crops (N, height, width, 3), uint8."""
    image: str = ""
    """Path of the picture, if there is one."""
    degree_px: float = 0.0
    """Pixels of one degree of visual angle, if the geometry is known."""

    @property
    def centres(self) -> Floats:
        """Return x and y of the objects' centres in pixels, shape (N, 2)."""
        return (self.boxes[:, :2] + self.boxes[:, 2:]) / 2

    @property
    def start(self) -> Floats:
        """Return row and column of the middle of all objects, where viewers start."""
        middle: Floats = (self.place.min(0) + self.place.max(0)) / 2
        return middle

    def degrees(self, points: Floats) -> Floats:
        """Return where points (…, 2) in pixels are, in degrees of visual angle right of and below the middle.

        Needs ``degree_px``; the eyes are in front of the middle of the screen.
        """
        distance_px = self.degree_px / math.tan(math.radians(1))
        angles: Floats = np.degrees(np.arctan((points - np.array(self.size) / 2) / distance_px))
        return angles


@dataclass(frozen=True)
class Trial:
    """One viewer's search for one object on one display."""

    display: int
    """Index of the display."""
    target: int
    """Index of the object that is searched for."""
    path: tuple[int, ...]
    """Indices of the fixated objects, in order; at least one."""
    viewer: str = ""
    name: str = ""
    durations: tuple[float, ...] = field(default=(), compare=False)
    """Of the fixations, milliseconds; not modelled."""


def spacing(centres: Floats) -> float:
    """Return how far objects are apart: the median distance to the nearest other one, 1 where there is only one.

    >>> spacing(np.array([[0.0, 0.0], [10.0, 0.0], [20.0, 0.0], [50.0, 0.0]]))
    10.0
    """
    if len(centres) < 2:
        return 1.0
    distances = np.sqrt(((centres[:, None] - centres[None]) ** 2).sum(-1))
    np.fill_diagonal(distances, np.inf)
    return float(np.median(distances.min(1)))


def grid_of(boxes: Floats) -> Floats:
    """Return row and column of boxes in object spacings, measured from the topmost and the leftmost centre.

    >>> grid_of(np.array([[0.0, 0, 2, 2], [4, 0, 6, 2], [0, 4, 2, 6]])).tolist()
    [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
    """
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    placed: Floats = (centres - centres.min(0))[:, ::-1] / spacing(centres)
    return placed


def assign(points: Floats, boxes: Floats, nearest_px: float = np.inf) -> NDArray[np.int64]:
    """Return the object that each point is on: the smallest box around it, else the nearest within ``nearest_px``.

    Args:
        points: x and y, shape (T, 2).
        boxes: shape (N, 4).
        nearest_px: distance to a box from which on a point is on no object.

    Returns:
        int64, shape (T,); -1 where a point is on none.

    >>> assign(np.array([[1.0, 1.0], [5.0, 1.0]]), np.array([[0.0, 0, 2, 2], [0, 0, 9, 9]])).tolist()
    [0, 1]
    """
    x, y = points[:, None, 0], points[:, None, 1]
    left, top, right, bottom = boxes.T
    away = np.hypot(np.maximum(np.maximum(left - x, x - right), 0), np.maximum(np.maximum(top - y, y - bottom), 0))
    areas = (right - left) * (bottom - top)
    inside = away == 0
    smallest = np.where(inside, areas, np.inf).argmin(1)
    nearest = away.argmin(1)
    chosen = np.where(inside.any(1), smallest, np.where(away.min(1) <= nearest_px, nearest, -1))
    return chosen.astype(np.int64)


def stream_of(*parts: object) -> int:
    """Return a number that stands for these names: of the stream that its scanpaths are drawn from."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:6], "big")


def check_display(display: Display, where: str) -> None:
    """Refuse a display that no scanpath can be predicted on.

    Raises:
        DataError: fewer than two objects, empty boxes, or ids that are not one each; says which.
    """
    count = len(display.boxes)
    if count < 2:
        raise DataError(
            f"{where}: there is {count or 'no'} object, and with fewer than two there is nothing to predict."
        )
    if not np.isfinite(display.boxes).all():
        raise DataError(f"{where}: the boxes have numbers that are not finite.")
    empty = np.flatnonzero((display.boxes[:, 2:] <= display.boxes[:, :2]).any(1))
    if len(empty):
        shown = "; ".join(f"{display.ids[i]} {display.boxes[i].tolist()}" for i in empty[:10])
        raise DataError(
            f"{where}: {len(empty)} of the boxes are empty: {shown}. A box is left, top, right, bottom in pixels, "
            "with left < right and top < bottom."
        )
    if len(set(display.ids)) < count:
        twice = next(name for name in display.ids if display.ids.count(name) > 1)
        raise DataError(f'{where}: the object "{twice}" is there more than once. Give each a name of its own.')


def collate(
    displays: Sequence[Display],
    trials: Sequence[Trial],
    chosen: Sequence[int],
    *,
    most_objects: int,
    most_steps: int,
    flip: Callable[[int], tuple[bool, bool]] | None = None,
) -> Batch:
    """Return trials as a batch.

    Args:
        displays: all displays.
        trials: all trials.
        chosen: indices of trials.
        most_objects: N, to which objects are padded.
        most_steps: T, to which fixations are padded.
        flip: of a trial: whether its display is turned upside down, and left to right.

    Returns:
        A mapping: ``place`` (B, N, 2), ``objects`` (B, N) bool, ``target`` (B,), ``start`` (B, 2), ``fixations`` (B, T)
        int64 padded with -1, ``centres`` (B, N, 2) and ``size`` (B, 2) in pixels, ``display`` and ``trial`` (B,)
        indices, ``stream`` (B,), and ``appearance`` where the displays have one.
    """
    import torch

    count = len(chosen)
    place = np.zeros((count, most_objects, 2), np.float32)
    centres = np.zeros((count, most_objects, 2), np.float64)
    objects = np.zeros((count, most_objects), bool)
    fixations = np.full((count, most_steps), -1, np.int64)
    numbers = np.zeros((4, count), np.int64)
    start, size = np.zeros((count, 2), np.float32), np.zeros((count, 2))
    first = displays[0].appearance if displays else None
    appearance = None if first is None else np.zeros((count, most_objects, *first.shape[1:]), first.dtype)
    for row, index in enumerate(chosen):
        trial = trials[index]
        display = displays[trial.display]
        size_n = len(display.boxes)
        own = display.place
        for axis, turned in enumerate(flip(index) if flip else ()):
            if turned:
                own = own.copy()
                own[:, axis] = own[:, axis].max() - own[:, axis]
        place[row, :size_n], centres[row, :size_n], objects[row, :size_n] = own, display.centres, True
        start[row], size[row] = display.start, display.size
        fixations[row, : len(trial.path)] = trial.path
        numbers[:, row] = trial.target, trial.display, index, stream_of(display.name, trial.target, trial.viewer)
        if appearance is not None:
            appearance[row, :size_n] = display.appearance
    batch: dict[str, Any] = {
        "place": torch.from_numpy(place),
        "objects": torch.from_numpy(objects),
        "target": torch.from_numpy(numbers[0]),
        "start": torch.from_numpy(start),
        "fixations": torch.from_numpy(fixations),
        "centres": torch.from_numpy(centres),
        "size": torch.from_numpy(size),
        "display": torch.from_numpy(numbers[1]),
        "trial": torch.from_numpy(numbers[2]),
        "stream": torch.from_numpy(numbers[3]),
    }
    if appearance is not None:
        batch["appearance"] = torch.from_numpy(appearance)
    return batch
