"""Amazon book covers (Sattar et al. 2015) as annotated in the STI data set: 84 covers in a grid, six viewers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyhead.errors import DataError
from polyhead_gaze.displays import Floats
from polyhead_gaze.formats.checks import Fixations, Read, Scene, load_json, mapping, number
from polyhead_gaze.settings import DisplaySettings

__all__ = ["COLUMNS", "ROWS", "cover_boxes", "matches", "read"]

ROWS, COLUMNS = 6, 14
USUAL = (2557.0, 1600.0)
FIRST, PITCH = (111.0, 140.0), (179.25, 263.25)
"""Centre of the first cover and distances of the next ones on a collage of the usual size, pixels; they grow with it.
Covers are up to 18 pixels from these places in x, 10 in y."""
COVER = (160.0, 243.0)
KEYS = {"fixations", "ground_truth", "size", "target"}
LICENCE = "CC BY-NC-SA 4.0"


def matches(path: Path) -> bool:
    """Return whether a file looks like this layout."""
    if path.suffix.lower() != ".json":
        return False
    with path.open(encoding="utf-8", errors="replace") as stream:
        head = stream.read(2**16)
    return '"fixations"' in head and head.lstrip()[:1] == "{" and '"images"' not in head


def cover_boxes(size: tuple[float, float] = USUAL) -> Floats:
    """Return the boxes of the 84 covers, row by row, shape (84, 4), on a collage of this width and height."""
    at = np.arange(ROWS * COLUMNS)
    centres = np.stack([FIRST[0] + PITCH[0] * (at % COLUMNS), FIRST[1] + PITCH[1] * (at // COLUMNS)], -1)
    half = np.array(COVER) / 2
    boxes: Floats = np.concatenate([centres - half, centres + half], 1) * np.tile(np.array(size) / USUAL, 2)
    return boxes


def read(files: Sequence[Path], settings: DisplaySettings) -> Read:
    """Read the collages; fixations are on the cover whose centre is nearest, targets those of best overlap.

    Raises:
        DataError: a collage lacks a key, or has other numbers than expected; names it.
    """
    path = files[0]
    content = load_json(path)
    if not isinstance(content, dict) or not content:
        raise DataError(f"{path.name} holds no collages: expected an object with one of each picture's name.")
    at = np.arange(ROWS * COLUMNS)
    ids = tuple(f"row {cover // COLUMNS + 1} column {cover % COLUMNS + 1}" for cover in at)
    place = np.stack([at // COLUMNS, at % COLUMNS], -1).astype(float)
    scenes, trials = [], []
    folder = Path(settings.images) if settings.images else path.parent / "images"
    for name, collage in content.items():
        where = f"{path.name}, {name}"
        missing = sorted(KEYS - set(collage)) if isinstance(collage, dict) else sorted(KEYS)
        if missing:
            raise DataError(f'{where} has no "{missing[0]}": expected {", ".join(sorted(KEYS))}.')
        screen = mapping(collage["size"], f"{where}: size")
        width, height = (number(screen.get(side), f"{where}, size {side}") for side in ("width", "height"))
        boxes = cover_boxes((width, height))
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        scenes.append(Scene(name, boxes, ids, (width, height), folder / name, place))
        target = ids[_best_overlap(_truth(collage["ground_truth"], where), boxes)]
        for viewer, points in mapping(collage["fixations"], f"{where}: fixations").items():
            known = _points(points, f"{where}, viewer {viewer}")
            nearest = ((known[:, None] - centres) ** 2).sum(-1).argmin(1) if len(known) else np.zeros(0, np.int64)
            trials.append(Fixations(f"{where}, viewer {viewer}", name, target, str(viewer), known, objects=nearest))
            _check_inside(known, (width, height), f"{where}, viewer {viewer}", settings)
    return Read(scenes, trials, licence=LICENCE)


def _check_inside(points: Floats, size: tuple[float, float], where: str, settings: DisplaySettings) -> None:
    outside = ((points < 0) | (points > size)).any(1)
    if outside.any() and settings.outside == "refuse":
        x, y = points[outside][0]
        raise DataError(
            f"{where}: {int(outside.sum())} of {len(points)} fixations lie outside of the screen of {size[0]:g} × "
            f"{size[1]:g} pixels, the first at ({x:g}, {y:g})."
        )


def _points(points: Any, where: str) -> Floats:
    if not isinstance(points, list):
        raise DataError(f"{where}: fixations are {type(points).__name__}, expected a list of [x, y].")
    rows = []
    for order, point in enumerate(points, 1):
        if not isinstance(point, list) or len(point) != 2:
            raise DataError(f"{where}, fixation {order} is {point!r}, expected [x, y].")
        rows.append([number(value, f"{where}, fixation {order}") for value in point])
    return np.array(rows, dtype=float).reshape(-1, 2)


def _truth(entries: Any, where: str) -> Floats:
    if not isinstance(entries, list) or len(entries) != 1 or not isinstance(entries[0], dict):
        raise DataError(f"{where}: ground_truth is no list of one box.")
    sides = ("xmin", "ymin", "xmax", "ymax")
    return np.array([number(entries[0].get(side), f"{where}, ground_truth {side}") for side in sides])


def _best_overlap(box: Floats, boxes: Floats) -> int:
    low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
    shared = np.maximum(high - low, 0).prod(1)
    union = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod() - shared
    return int((shared / union).argmax())
