"""COCO: one JSON with images, annotations and categories, or one a split."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from polyhead.errors import DataError, nearest
from polyhead_detection.formats.checks import BoxCheck, apart, raise_all
from polyhead_detection.pictures import Category, Item, PictureData
from polyhead_detection.settings import PictureSettings

__all__ = ["open_coco", "read_categories"]

_SPLITS = {
    "train": ("instances_train2017.json", "instances_train.json", "train.json"),
    "validation": ("instances_val2017.json", "instances_val.json", "val.json", "valid.json", "validation.json"),
    "test": ("instances_test2017.json", "instances_test.json", "test.json"),
}
_FOLDERS = {"train": ("train",), "validation": ("valid", "val", "validation"), "test": ("test",)}
LARGEST = 2**31
"""Bytes of a JSON: COCO's own has 450 MB."""


def open_coco(path: Path, settings: PictureSettings) -> PictureData:
    """Open a JSON, or a folder with one of each split.

    Raises:
        DataError: a file is missing, is no COCO JSON, or contradicts itself; names file, entry and mend.
    """
    files = _find(path)
    folder = path.parent if path.is_file() else path
    splits: dict[Any, list[Item]] = {}
    categories: tuple[Category, ...] | None = None
    notes: dict[str, Any] = {}
    for split, file in files.items():
        items, own, found = _read(file, folder, settings)
        if categories is not None and own != categories:
            new = sorted(set(own) ^ set(categories))[:5]
            raise DataError(
                f"{file.name} has other categories than the file before it: only one of them has "
                f"{', '.join(f'{c.id} {c.name}' for c in new)}. Give all splits the same list."
            )
        categories = own
        splits[split] = items
        for key, count in found.items():
            notes[key] = notes.get(key, 0) + count
    if "all" in splits:
        splits = apart(splits["all"], path.name)
        notes["split"] = "80 : 10 : 10, drawn"
    if "train" not in splits:
        splits["train"] = []
    if "validation" not in splits and "test" not in splits:
        raise DataError(
            f"{path} has a training part alone: add a validation part, such as valid.json, or give the JSON."
        )
    for split, other in (("validation", "test"), ("test", "validation")):
        if split not in splits:
            splits[split] = splits[other]
            notes["split"] = f"{split} is {other}: there is no other"
    return PictureData(
        path.name, f"Pictures of {path.name} with COCO annotations.", splits, categories, settings, notes=notes
    )


def read_categories(file: Path) -> tuple[Category, ...]:
    """Return the categories of a COCO JSON, by their ids.

    Raises:
        DataError: it is no COCO JSON, or its categories contradict each other.
    """
    return _categories(file, _load(file)["categories"])


def _find(path: Path) -> dict[str, Path]:
    """Return the JSON of each split, or of all pictures together."""
    if path.is_file():
        return {"all": path}
    found = {}
    for split, names in _SPLITS.items():
        places = [folder / name for name in names for folder in (path / "annotations", path)]
        places += [path / folder / "_annotations.coco.json" for folder in _FOLDERS[split]]
        for place in places:
            if place.is_file():
                found[split] = place
                break
    if found:
        return found
    single = sorted([*path.glob("*.json"), *(path / "annotations").glob("*.json")])
    if len(single) == 1:
        return {"all": single[0]}
    if not single:
        raise DataError(f"{path} holds no JSON of COCO annotations.")
    raise DataError(
        f"{path} holds {len(single)} JSON files and none is called like a split (train.json, val.json, test.json): "
        "give one of them, or rename them."
    )


def _read(
    file: Path, folder: Path, settings: PictureSettings
) -> tuple[list[Item], tuple[Category, ...], dict[str, int]]:
    document = _load(file)
    categories = _categories(file, document["categories"])
    place = {category.id: number for number, category in enumerate(categories)}
    images = _images(file, document["images"])
    rows: dict[int, list[Mapping[str, Any]]] = {number: [] for number in images}
    unknown: list[str] = []
    for number, entry in enumerate(document["annotations"]):
        if not isinstance(entry, Mapping):
            raise DataError(f"{file.name}, annotation {number + 1} is no object.")
        own = f"annotation {entry.get('id', number + 1)}"
        box = entry.get("bbox")
        if entry.get("image_id") not in rows:
            unknown.append(f"{own} is of image {entry.get('image_id')}, which is not in images")
        elif entry.get("category_id") not in place:
            known = ", ".join(str(category.id) for category in categories[:8])
            unknown.append(f"{own} has category_id {entry.get('category_id')}, which is not in categories ({known}, …)")
        elif not (isinstance(box, list) and len(box) == 4 and all(_number(value) for value in box)):
            unknown.append(f"{own} has the bbox {str(box)[:60]}, which is not [left, top, width, height]")
        else:
            rows[entry["image_id"]].append(entry)
    if unknown:
        raise_all(file.name, unknown, "Correct the annotations.")
    root = _root(file, folder, images, settings)
    check = BoxCheck(settings.bad_boxes)
    items = []
    for number, entry in images.items():
        own_rows = rows[number]
        size = (entry["height"], entry["width"])
        boxes = np.array([row["bbox"] for row in own_rows], dtype=np.float64).reshape(-1, 4)
        names = [f"annotation {row.get('id', '?')} of {entry['file_name']}" for row in own_rows]
        boxes, kept = check(boxes, size, names)
        areas = [row["area"] if _number(row.get("area")) else row["bbox"][2] * row["bbox"][3] for row in own_rows]
        items.append(
            Item(
                root / entry["file_name"],
                number,
                size,
                boxes[kept],
                np.array([place[row["category_id"]] for row in own_rows], dtype=np.int64)[kept],
                np.array(areas, dtype=np.float64)[kept],
                np.array([bool(row.get("iscrowd", 0)) for row in own_rows], dtype=np.bool_)[kept],
                entry["file_name"],
            )
        )
    return items, categories, check.finish(file.name)


def _load(file: Path) -> Mapping[str, Any]:
    size = file.stat().st_size
    if size > LARGEST:
        raise DataError(f"{file.name} has {size:,} bytes; at most {LARGEST:,} are read.")
    try:
        document = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file.name} is no JSON: {str(error)[:120]}.") from error
    if isinstance(document, list) and document and isinstance(document[0], Mapping) and "score" in document[0]:
        raise DataError(f"{file.name} is a list of results, not of annotations: give the annotations' JSON.")
    keys = ("images", "annotations", "categories")
    if not isinstance(document, Mapping) or not all(isinstance(document.get(key), list) for key in keys):
        have = ", ".join(list(document)[:6]) if isinstance(document, Mapping) else type(document).__name__
        raise DataError(
            f"{file.name} is no COCO JSON: it needs the lists images, annotations and categories; has {have}."
        )
    return document


def _categories(file: Path, entries: list[Any]) -> tuple[Category, ...]:
    found = []
    for entry in entries:
        if (
            not isinstance(entry, Mapping)
            or not isinstance(entry.get("id"), int)
            or not str(entry.get("name", "")).strip()
        ):
            raise DataError(f"{file.name}: the category {str(entry)[:80]} needs an integer id and a name.")
        found.append(Category(entry["id"], str(entry["name"])))
    columns: tuple[tuple[str, list[Any]], ...] = (("id", [c.id for c in found]), ("name", [c.name for c in found]))
    for what, values in columns:
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice is not None:
            raise DataError(f'{file.name}: two categories have the {what} "{twice}". Rename one.')
    if not found:
        raise DataError(f"{file.name} has no categories. List those of the objects, with id and name.")
    return tuple(sorted(found))


def _images(file: Path, entries: list[Any]) -> dict[int, Mapping[str, Any]]:
    images: dict[int, Mapping[str, Any]] = {}
    for number, entry in enumerate(entries, 1):
        whole = isinstance(entry, Mapping) and all(isinstance(entry.get(key), int) for key in ("id", "height", "width"))
        if not whole or not isinstance(entry.get("file_name"), str) or min(entry["height"], entry["width"]) < 1:
            raise DataError(f"{file.name}, image {number}: {str(entry)[:100]} needs id, file_name, height and width.")
        if entry["id"] in images:
            raise DataError(f"{file.name}: two images have the id {entry['id']}. Give each its own.")
        name = Path(entry["file_name"])
        if name.is_absolute() or ".." in name.parts:
            raise DataError(f'{file.name}: the file_name "{name}" leads out of the folder of the pictures.')
        images[entry["id"]] = entry
    if not images:
        raise DataError(f"{file.name} has no images.")
    return images


def _root(file: Path, folder: Path, images: Mapping[int, Mapping[str, Any]], settings: PictureSettings) -> Path:
    """Return the folder of a JSON's pictures, all of which must be there."""
    names = [str(entry["file_name"]) for entry in images.values()]
    if settings.images:
        places = [Path(settings.images)]
    else:
        stem = file.stem.removeprefix("instances_")
        base = file.parent.parent if file.parent.name == "annotations" else file.parent
        places = [
            base / stem,
            base / "images" / stem,
            base / "images",
            file.parent / "images",
            file.parent,
            base,
            folder,
        ]
    best = max(places, key=lambda place: sum((place / name).is_file() for name in names[:50]))
    missing = [name for name in names if not (best / name).is_file()]
    if len(missing) == len(names):
        looked = ", ".join(dict.fromkeys(str(place) for place in places))
        raise DataError(f"{file.name}: none of its {len(names)} pictures was found in {looked}. Give --images FOLDER.")
    if missing:
        there = [path.name for path in best.iterdir()] if best.is_dir() else []
        guess = nearest(missing[0], there)
        raise DataError(
            f"{file.name}: {len(missing)} of its {len(names)} pictures are not in {best}, such as "
            f"{', '.join(missing[:5])}." + (f' Is "{guess}" the first one?' if guess else "")
        )
    return best


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
