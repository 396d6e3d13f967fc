"""COCO-Search18: fixations in its JSON files, objects from COCO's annotations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyhead.errors import DataError
from polyhead_gaze.displays import Floats
from polyhead_gaze.formats.boxes import find_boxes, numbered, read_coco_boxes
from polyhead_gaze.formats.checks import Fixations, Read, Scene, listed, load_json, number
from polyhead_gaze.settings import DisplaySettings

__all__ = ["SCREEN", "SMALL_SCREEN", "matches", "on_screen", "read"]

SCREEN = (1680.0, 1050.0)
SMALL_SCREEN = (512.0, 320.0)
"""Of the older release, which was scaled down."""
KEYS = ("name", "subject", "task", "X", "Y", "bbox")
SAME = 0.5
"""Overlap from which on an annotation is the target."""
LICENCE = "as COCO-Search18 and COCO state"


def matches(path: Path) -> bool:
    """Return whether a file looks like this layout."""
    if path.suffix.lower() != ".json":
        return False
    with path.open(encoding="utf-8", errors="replace") as stream:
        head = stream.read(2**14)
    return head.lstrip()[:1] == "[" and '"X"' in head and '"task"' in head


def on_screen(boxes: Floats, image: tuple[float, float], screen: tuple[float, float]) -> Floats:
    """Return boxes of an image on the screen, which shows it as large as it fits, in the middle.

    >>> on_screen(np.array([[0.0, 0, 640, 480]]), (640, 480), (1680, 1050))
    array([[ 140.,    0., 1540., 1050.]])
    """
    scale = min(screen[0] / image[0], screen[1] / image[1])
    shift = np.array([(screen[axis] - image[axis] * scale) / 2 for axis in (0, 1)] * 2)
    moved: Floats = boxes * scale + shift
    return moved


def read(files: Sequence[Path], settings: DisplaySettings) -> Read:
    """Read fixations, with boxes from a file of COCO's annotations (``--boxes``, or beside them).

    The first fixation is the forced one in the middle of the screen and is left out. The target is the annotation of
    its category that overlaps its box most, else an object of its own. Trials without a target in view are left out.

    Raises:
        DataError: a trial lacks a key, an image has no annotations, or a number is none; names file and trial.
    """
    scenes: dict[str, Scene] = {}
    trials = []
    known: Mapping[str, Scene] | None = None
    for path in files:
        content = listed(load_json(path), path.name)
        if known is None:
            known = {Path(scene.name).name: scene for scene in read_coco_boxes(find_boxes(path, settings), settings)}
        screen = _screen(content)
        for order, trial in enumerate(content, 1):
            where = f"{path.name}, trial {order}"
            missing = [key for key in KEYS if key not in trial] if isinstance(trial, dict) else list(KEYS)
            if missing:
                raise DataError(f'{where} has no "{missing[0]}".')
            if trial.get("condition", "present") != "present":
                continue
            name = str(trial["name"])
            if name not in known:
                raise DataError(f'{where}: no annotations of the image "{name}". Name their file: --boxes FILE.')
            scene = scenes.get(name) or _scaled(known[name], screen)
            scenes[name], target = _with_target(scene, trial, where)
            points = _points(trial, where)
            durations = [number(value, f"{where}, T") for value in listed(trial.get("T", []), f"{where}: T")]
            if durations and len(durations) != len(points):
                raise DataError(f"{where}: T has another length than X and Y.")
            viewer = str(trial["subject"])
            trials.append(Fixations(f"{where} ({name})", name, target, viewer, points[1:], tuple(durations[1:])))
    return Read(list(scenes.values()), [trial for trial in trials if len(trial.points)], licence=LICENCE)


def _screen(content: list[Any]) -> tuple[float, float]:
    """Return the screen that coordinates are on: the older release was scaled to 512 × 320."""
    found = [trial["X"] for trial in content if isinstance(trial, dict) and isinstance(trial.get("X"), list)]
    known = [x for xs in found for x in xs if isinstance(x, int | float) and not isinstance(x, bool)]
    return SMALL_SCREEN if max(known, default=0) <= SMALL_SCREEN[0] else SCREEN


def _scaled(scene: Scene, screen: tuple[float, float]) -> Scene:
    assert scene.size is not None
    boxes = on_screen(scene.boxes, scene.size, screen)
    return Scene(scene.name, boxes, scene.ids, screen, scene.image, categories=scene.categories)


def _points(trial: Mapping[str, Any], where: str) -> Floats:
    xs, ys = trial["X"], trial["Y"]
    if not isinstance(xs, list) or not isinstance(ys, list) or len(xs) != len(ys):
        raise DataError(f"{where}: X and Y are no lists of the same length.")
    pairs = [[number(x, f"{where}, X"), number(y, f"{where}, Y")] for x, y in zip(xs, ys, strict=True)]
    return np.array(pairs, dtype=float).reshape(-1, 2)


def _with_target(scene: Scene, trial: Mapping[str, Any], where: str) -> tuple[Scene, str]:
    """Return the display, with the target's own box added where no annotation is the target, and the target's name."""
    box = trial["bbox"]
    if not isinstance(box, list) or len(box) != 4:
        raise DataError(f"{where}: bbox is {box!r}, expected [x, y, width, height].")
    x, y, width, height = (number(value, f"{where}, bbox") for value in box)
    corners = np.array([x, y, x + width, y + height])
    task = str(trial["task"])
    low, high = np.maximum(scene.boxes[:, :2], corners[:2]), np.minimum(scene.boxes[:, 2:], corners[2:])
    shared = np.maximum(high - low, 0).prod(1)
    areas = (scene.boxes[:, 2:] - scene.boxes[:, :2]).prod(1) + width * height - shared
    overlap = np.where(np.array(scene.categories) == task, shared / areas, 0)
    best = int(overlap.argmax())
    if overlap[best] >= SAME:
        return scene, scene.ids[best]
    categories = (*scene.categories, task)
    grown = Scene(
        scene.name,
        np.concatenate([scene.boxes, corners[None]]),
        (*scene.ids, f"{task} searched for" if task in scene.ids else numbered(categories)[-1]),
        scene.size,
        scene.image,
        categories=categories,
    )
    return grown, grown.ids[-1]
