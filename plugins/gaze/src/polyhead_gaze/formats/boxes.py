"""Boxes of objects: a CSV file, or annotations in COCO's JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyhead.errors import DataError
from polyhead_gaze.formats.checks import Scene, listed, load_json, mapping, number, rows
from polyhead_gaze.settings import DisplaySettings

__all__ = ["find_boxes", "is_boxes", "numbered", "picture_path", "picture_size", "read_boxes", "read_coco_boxes"]

_SIDES = ("xmin", "ymin", "xmax", "ymax")
_SIZES = ("x", "y", "width", "height")


def is_boxes(path: Path) -> bool:
    """Return whether a file is one of boxes: a CSV with their sides, or COCO's JSON."""
    with path.open(encoding="utf-8", errors="replace") as stream:
        head = stream.read(2**14)
    if path.suffix.lower() == ".json":
        return '"annotations"' in head or '"images"' in head
    columns = (
        {cell.strip().strip('"').lower() for cell in head.splitlines()[0].replace(";", ",").split(",")}
        if head
        else set()
    )
    return "object" in columns and (set(_SIDES) <= columns or set(_SIZES) <= columns)


def find_boxes(fixations: Path, settings: DisplaySettings) -> Path:
    """Return the file of boxes: as --boxes says, else the one beside the fixations.

    Raises:
        DataError: there is none, or several could be meant.
    """
    if settings.boxes:
        named = Path(settings.boxes)
        found = named if named.exists() else fixations.parent / named
        if not found.is_file():
            raise DataError(f"--boxes {settings.boxes}: no such file.")
        return found
    beside = [
        file
        for file in sorted(fixations.parent.iterdir())
        if file != fixations and file.suffix.lower() in (".csv", ".tsv", ".json") and is_boxes(file)
    ]
    if not beside:
        raise DataError(
            f"{fixations.name}: no boxes of objects beside it. Name their file, --boxes FILE: a CSV "
            "display,object,xmin,ymin,xmax,ymax, or COCO JSON."
        )
    if len(beside) > 1:
        raise DataError(f"{', '.join(file.name for file in beside)} could hold the boxes. Name one: --boxes FILE.")
    return beside[0]


def read_boxes(path: Path, settings: DisplaySettings) -> list[Scene]:
    """Read displays with the boxes of their objects.

    A CSV has the columns ``object`` and ``xmin,ymin,xmax,ymax`` or ``x,y,width,height``, pixels; where there are
    several displays ``display``; and, if known, ``image``, ``category``, ``screen_width`` and ``screen_height``.

    Raises:
        DataError: a column is missing or a number is none; names file, row and column.
    """
    if path.suffix.lower() == ".json":
        return read_coco_boxes(path, settings)
    found: dict[str, dict[str, Any]] = {}
    sided: bool | None = None
    for where, row in rows(path, ["object"], ["object", "display", *_SIDES, *_SIZES]):
        if sided is None:
            sided = set(_SIDES) <= set(row)
            if not sided and not set(_SIZES) <= set(row):
                raise DataError(f"{path.name} needs the columns {', '.join(_SIDES)}, or {', '.join(_SIZES)}.")
        names = _SIDES if sided else _SIZES
        box = [number(row[name], f'{where}, column "{name}"') for name in names]
        if not sided:
            box = [box[0], box[1], box[0] + box[2], box[1] + box[3]]
        if not row["object"]:
            raise DataError(f'{where}, column "object" is empty. Give each object a name.')
        scene = found.setdefault(row.get("display") or path.stem, {"boxes": [], "ids": [], "categories": []})
        scene["boxes"].append(box)
        scene["ids"].append(row["object"])
        if row.get("category"):
            scene["categories"].append(row["category"])
        for name in ("image", "screen_width", "screen_height"):
            if row.get(name):
                scene[name] = row[name]
    if not found:
        raise DataError(f"{path.name} has no boxes.")
    scenes = []
    for name, scene in found.items():
        image = picture_path(scene.get("image", name), path, settings)
        size = None
        if "screen_width" in scene and "screen_height" in scene:
            width, height = (
                number(scene[side], f'{path.name}, column "{side}"') for side in ("screen_width", "screen_height")
            )
            size = (width, height)
        elif image is not None and image.is_file():
            size = picture_size(image)
        categories = tuple(scene["categories"]) if len(scene["categories"]) == len(scene["ids"]) else ()
        boxes = np.array(scene["boxes"], dtype=float)
        scenes.append(Scene(name, boxes, tuple(scene["ids"]), size, image, categories=categories))
    kinds = {bool(scene.categories) for scene in scenes}
    if len(kinds) > 1:
        raise DataError(
            f'{path.name}: the column "category" is filled on some displays only. Fill it, or leave it out.'
        )
    return scenes


def read_coco_boxes(path: Path, settings: DisplaySettings) -> list[Scene]:
    """Read annotations in COCO's JSON; objects are called by category and number.

    Raises:
        DataError: a part is missing or of another form; names it.
    """
    content = load_json(path)
    missing = [key for key in ("images", "annotations") if not isinstance(content, dict) or key not in content]
    if missing:
        raise DataError(f'{path.name} has no "{missing[0]}": expected COCO JSON with images and annotations.')
    parts = {}
    for key in ("categories", "annotations", "images"):
        entries = listed(content.get(key, []), f"{path.name}: {key}")
        parts[key] = [mapping(each, f"{path.name}, entry {at} of {key}") for at, each in enumerate(entries, 1)]
    # Ids as text: JSON has numbers and texts, and both are used.
    names = {str(each.get("id")): str(each.get("name")) for each in parts["categories"]}
    of: dict[str, list[Any]] = {}
    for each in parts["annotations"]:
        of.setdefault(str(each.get("image_id")), []).append(each)
    scenes = []
    for image in parts["images"]:
        where = f"{path.name}, image {image.get('id')}"
        own = of.get(str(image.get("id")), [])
        if not own:
            continue
        name = str(image.get("file_name") or image.get("id"))
        size = tuple(number(image.get(side), f"{where}, {side}") for side in ("width", "height"))
        boxes, categories = [], []
        for each in own:
            box = each.get("bbox")
            if not isinstance(box, list) or len(box) != 4:
                raise DataError(
                    f"{where}, annotation {each.get('id')}: bbox is {box!r}, expected [x, y, width, height]."
                )
            x, y, width, height = (number(value, f"{where}, annotation {each.get('id')}, bbox") for value in box)
            boxes.append([x, y, x + width, y + height])
            categories.append(names.get(str(each.get("category_id")), str(each.get("category_id"))))
        ids = numbered(categories)
        picture = picture_path(name, path, settings)
        scenes.append(Scene(name, np.array(boxes), ids, (size[0], size[1]), picture, categories=tuple(categories)))
    if not scenes:
        raise DataError(f"{path.name} has no image with annotations.")
    return scenes


def numbered(names: Sequence[str]) -> tuple[str, ...]:
    """Return names, numbered where there are several of one.

    >>> numbered(["cup", "fork", "cup"])
    ('cup 1', 'fork', 'cup 2')
    """
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(f"{name} {seen[name]}" if names.count(name) > 1 else name)
    return tuple(found)


def picture_size(path: Path) -> tuple[float, float]:
    """Return width and height of a picture."""
    from polyhead_gaze.images import open_image

    height, width = open_image(path).shape[:2]
    return float(width), float(height)


def picture_path(name: str, beside: Path, settings: DisplaySettings) -> Path | None:
    """Return the path of a display's picture, in the folder of the pictures or beside the boxes.

    Raises:
        DataError: the name leads out of the folder.
    """
    folder = Path(settings.images) if settings.images else beside.parent
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise DataError(f'{beside.name}: the picture "{name}" is not inside of {folder}. Name pictures within it.')
    if path.is_file():
        return path
    for suffix in (".png", ".jpg", ".jpeg"):
        if (named := path.with_name(f"{path.name}{suffix}")).is_file():
            return named
    return path if settings.images else None
