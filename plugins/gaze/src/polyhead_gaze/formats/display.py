"""One display in JSON, to predict scanpaths on: a picture or a size, boxes, names, a target."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from polyhead.errors import DataError
from polyhead_gaze.formats.boxes import picture_path, picture_size
from polyhead_gaze.formats.checks import Read, Scene, listed, load_json, number
from polyhead_gaze.settings import DisplaySettings

__all__ = ["matches", "read"]

KEYS = ("boxes", "ids", "image", "size", "target", "categories")


def matches(path: Path) -> bool:
    """Return whether a file looks like this layout."""
    if path.suffix.lower() != ".json":
        return False
    with path.open(encoding="utf-8", errors="replace") as stream:
        head = stream.read(2**16)
    return '"boxes"' in head and '"annotations"' not in head


def read(files: Sequence[Path], settings: DisplaySettings) -> Read:
    """Read displays, one a file: ``{"boxes": [[left, top, right, bottom], …], "ids": […], "image": …, "target": …}``.

    ``boxes`` are needed; ``ids`` are numbers from 1 if missing; ``size``, [width, height] in pixels, is that of the
    picture, else as far as the boxes reach; ``categories`` of the objects are for models that know objects by them.

    Raises:
        DataError: a key is unknown or of another form; names file and key.
    """
    scenes, targets = [], {}
    for path in files:
        content = load_json(path)
        if not isinstance(content, dict) or "boxes" not in content:
            raise DataError(f'{path.name} has no "boxes": expected {{"boxes": [[left, top, right, bottom], …], …}}.')
        if unknown := sorted(set(content) - set(KEYS)):
            raise DataError(f'{path.name} has the key "{unknown[0]}"; known are {", ".join(KEYS)}.')
        boxes = []
        for order, box in enumerate(listed(content["boxes"], f"{path.name}: boxes"), 1):
            if not isinstance(box, list) or len(box) != 4:
                raise DataError(f"{path.name}, box {order} is {box!r}, expected [left, top, right, bottom].")
            boxes.append([number(value, f"{path.name}, box {order}") for value in box])
        names = {}
        for key in ("ids", "categories"):
            names[key] = tuple(map(str, listed(content.get(key, []), f"{path.name}: {key}")))
            if names[key] and len(names[key]) != len(boxes):
                raise DataError(f"{path.name} has {len(names[key])} {key} for {len(boxes)} boxes.")
        ids = names["ids"] or tuple(str(order + 1) for order in range(len(boxes)))
        image = picture_path(str(content["image"]), path, settings) if content.get("image") else None
        size = None
        if "size" in content:
            sides = content["size"]
            if not isinstance(sides, list) or len(sides) != 2:
                raise DataError(f"{path.name}: size is {sides!r}, expected [width, height] in pixels.")
            size = (number(sides[0], f"{path.name}, size"), number(sides[1], f"{path.name}, size"))
        elif image is not None:
            size = picture_size(image)
        corners = np.array(boxes, dtype=float).reshape(-1, 4)
        scenes.append(Scene(path.stem, corners, ids, size, image, categories=names["categories"]))
        if "target" in content:
            targets[path.stem] = str(content["target"])
    return Read(scenes, (), targets)
