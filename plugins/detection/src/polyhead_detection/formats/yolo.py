"""YOLO: a text file for each picture, a line a box: class, centre x, y, width, height in units of the picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from polyhead.errors import ConfigError, DataError
from polyhead_detection.formats.checks import BoxCheck, apart, raise_all
from polyhead_detection.images import find_images, read_size
from polyhead_detection.pictures import Category, Item, PictureData
from polyhead_detection.settings import PictureSettings

__all__ = ["open_yolo"]

_FOLDERS = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}
LARGEST = 2**24


def open_yolo(path: Path, settings: PictureSettings) -> PictureData:
    """Open a ``data.yaml``, or a folder with it, or one with ``classes.txt``, ``images/`` and ``labels/``.

    Categories get the ids 1, 2, … in the order of their names.

    Raises:
        DataError: a file is missing or malformed; names file, line and mend.
    """
    file = path if path.is_file() else path / "data.yaml"
    base = file.parent
    if file.is_file():
        names, folders = _yaml(file)
    else:
        names, folders = _classes(base), _folders(base)
    check = BoxCheck(settings.bad_boxes)
    problems: list[str] = []
    splits: dict[Any, list[Item]] = {}
    number = 0
    for split, pictures in folders.items():
        items = []
        for picture in find_images(pictures):
            number += 1
            items.append(_item(picture, number, pictures, len(names), check, problems))
        if not items:
            raise DataError(f"{pictures} holds no pictures, and {path.name} names it for {split}.")
        splits[split] = items
    if problems:
        raise_all(path.name, problems, "Correct the lines: class, centre x, centre y, width, height, all in [0, 1].")
    notes: dict[str, Any] = dict(check.finish(path.name))
    if "all" in splits:
        splits = apart(splits["all"], path.name)
        notes["split"] = "80 : 10 : 10, drawn"
    if "train" not in splits or len(splits) == 1:
        raise DataError(f"{path.name} needs pictures to train on and others to validate with: train and val.")
    for split, other in (("validation", "test"), ("test", "validation")):
        if split not in splits:
            splits[split] = splits[other]
            notes["split"] = f"{split} is {other}: there is no other"
    categories = tuple(Category(place, name) for place, name in enumerate(names, 1))
    return PictureData(
        base.name or path.name, f"Pictures of {path.name} with YOLO labels.", splits, categories, settings, notes=notes
    )


def _yaml(file: Path) -> tuple[list[str], dict[str, Path]]:
    from polyhead_apps.config import read_yaml

    try:
        if file.stat().st_size > LARGEST:
            raise DataError(f"{file.name} is too large for a list of names.")
        document = read_yaml(file.read_text(encoding="utf-8"), file.name)
    except (ConfigError, UnicodeDecodeError) as error:
        raise DataError(f"{file.name} is not readable: {error}") from error
    if not isinstance(document, Mapping) or not document.get("names"):
        raise DataError(f"{file.name} needs names: a list of the classes, in the order of their numbers.")
    names = document["names"]
    if isinstance(names, Mapping):
        if sorted(names, key=int) != list(names) or [int(key) for key in names] != list(range(len(names))):
            raise DataError(f"{file.name}: the numbers of names are {list(names)[:5]}; count them from 0.")
        names = list(names.values())
    root = file.parent / str(document.get("path", "")) if document.get("path") else file.parent
    folders = {}
    for split, keys in _FOLDERS.items():
        given = next((document[key] for key in keys if document.get(key)), None)
        if given is None:
            continue
        if not isinstance(given, str):
            raise DataError(f"{file.name}: {split} is {str(given)[:60]}; give one folder of pictures.")
        plain = given.removeprefix("../")  # exports that count from the folder of the training script
        places = [base / name for base in (root, file.parent) for name in (given, plain)]
        found = next((place for place in places if place.is_dir()), None)
        if found is None:
            raise DataError(f"{file.name}: the folder {given} ({split}) is not there.")
        folders[split] = found
    if not folders:
        raise DataError(f"{file.name} names no folders: give train and val.")
    return [str(name) for name in names], folders


def _classes(base: Path) -> list[str]:
    for place in (base / "classes.txt", base / "labels" / "classes.txt"):
        if place.is_file():
            names = [line.strip() for line in place.read_text(encoding="utf-8").splitlines() if line.strip()]
            if names:
                return names
            raise DataError(f"{place.name} is empty: write the name of a class on each line.")
    raise DataError(f"{base} has labels and no names of classes: add data.yaml, or classes.txt with a name a line.")


def _folders(base: Path) -> dict[str, Path]:
    found = {}
    for split, names in _FOLDERS.items():
        for name in names:
            for place in (base / "images" / name, base / name / "images"):
                if place.is_dir() and split not in found:
                    found[split] = place
    if found:
        return found
    return {"all": base / "images" if (base / "images").is_dir() else base}


def _item(picture: Path, number: int, folder: Path, classes: int, check: BoxCheck, problems: list[str]) -> Item:
    size = read_size(picture)
    label = _label_file(picture)
    rows: list[list[float]] = []
    names: list[str] = []
    if label.is_file():
        for line, text in enumerate(label.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if not text.strip():
                continue
            parts = text.split()
            try:
                values = [float(part) for part in parts]
            except ValueError:
                values = []
            whole = len(values) in (5, 6) and values[0] == int(values[0]) and 0 <= values[0] < classes
            if not whole:
                why = f"there are {classes} classes" if len(values) in (5, 6) else "five numbers are needed"
                problems.append(f'{label.name}, line {line}: "{text[:60]}" ({why})')
                continue
            rows.append(values[:5])
            names.append(f"{label.name}, line {line}")
    table = np.array(rows, dtype=np.float64).reshape(-1, 5)
    scale = np.array([size[1], size[0]] * 2, dtype=np.float64)
    boxes = table[:, 1:] * scale
    boxes[:, :2] -= boxes[:, 2:] / 2
    boxes, kept = check(boxes, size, names)
    boxes, labels = boxes[kept], table[kept, 0].astype(np.int64)
    crowd = np.zeros(len(boxes), np.bool_)
    name = str(picture.relative_to(folder))
    return Item(picture, number, size, boxes, labels, boxes[:, 2] * boxes[:, 3], crowd, name)


def _label_file(picture: Path) -> Path:
    """Return where the labels of a picture are: ``images`` in its path becomes ``labels``; else beside it."""
    parts = list(picture.parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == "images":
            return Path(*parts[:place], "labels", *parts[place + 1 :]).with_suffix(".txt")
    return picture.with_suffix(".txt")
