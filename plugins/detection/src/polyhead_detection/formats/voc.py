"""Pascal VOC: an XML file for each picture; corners are counted from 1 and belong to the box."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from polyhead.errors import DataError
from polyhead_detection.formats.checks import BoxCheck, apart
from polyhead_detection.images import SUFFIXES, read_size
from polyhead_detection.pictures import Category, Item, PictureData
from polyhead_detection.settings import PictureSettings

__all__ = ["open_voc"]

_SETS = {"train": ("train",), "validation": ("val", "valid"), "test": ("test",)}
LARGEST = 2**22


def open_voc(path: Path, settings: PictureSettings) -> PictureData:
    """Open a folder with ``Annotations/``, ``JPEGImages/`` and, if it has them, ``ImageSets/Main/*.txt``.

    Classes are sorted by name and get the ids 1, 2, …. Objects marked as difficult are not learned from, and count
    neither as found nor as missed.

    Raises:
        DataError: a file is missing or malformed; names file and mend.
    """
    annotations = path / "Annotations"
    if not annotations.is_dir():
        raise DataError(f"{path} has no folder Annotations with XML files.")
    sets = _sets(path)
    stems = sorted({stem for own in sets.values() for stem in own})
    if not stems:
        raise DataError(f"{annotations} holds no XML files.")
    pictures = _pictures(path)
    read = {stem: _read(annotations / f"{stem}.xml") for stem in stems}
    names = sorted({name for rows in read.values() for name, *_ in rows})
    if not names:
        raise DataError(f"{path.name} has no object in its {len(stems)} XML files: there is nothing to learn.")
    check = BoxCheck(settings.bad_boxes)
    items = {}
    for number, stem in enumerate(stems, 1):
        if stem not in pictures:
            raise DataError(f"{stem}.xml has no picture: {path / 'JPEGImages'} lacks {stem}.jpg.")
        size = read_size(pictures[stem])
        rows = read[stem]
        corners = np.array([row[1] for row in rows], dtype=np.float64).reshape(-1, 4)
        boxes = np.concatenate([corners[:, :2] - 1, corners[:, 2:] - corners[:, :2] + 1], 1)
        boxes, kept = check(boxes, size, [f"{stem}.xml, object {place}" for place in range(1, len(rows) + 1)])
        labels = np.array([names.index(row[0]) for row in rows], dtype=np.int64)[kept]
        hard = np.array([row[2] for row in rows], dtype=np.bool_)[kept]
        own = boxes[kept]
        items[stem] = Item(pictures[stem], number, size, own, labels, own[:, 2] * own[:, 3], hard)
    notes: dict[str, Any] = dict(check.finish(path.name))
    splits: dict[Any, list[Item]] = {split: [items[stem] for stem in own] for split, own in sets.items()}
    if "all" in splits:
        splits = apart(splits["all"], path.name)
        notes["split"] = "80 : 10 : 10, drawn"
    for split, other in (("validation", "test"), ("test", "validation")):
        if split not in splits:
            splits[split] = splits[other]
            notes["split"] = f"{split} is {other}: there is no other"
    categories = tuple(Category(place, name) for place, name in enumerate(names, 1))
    return PictureData(
        path.name, f"Pictures of {path.name} with Pascal VOC annotations.", splits, categories, settings, notes=notes
    )


def _sets(path: Path) -> dict[str, list[str]]:
    """Return the names of each split's pictures; of all together where there are not two splits."""
    folder = path / "ImageSets" / "Main"
    found = {}
    for split, names in _SETS.items():
        for name in names:
            file = folder / f"{name}.txt"
            if file.is_file():
                lines = file.read_text(encoding="utf-8").split("\n")
                found[split] = [line.split()[0] for line in lines if line.strip()]
                missing = [stem for stem in found[split] if not (path / "Annotations" / f"{stem}.xml").is_file()]
                if missing:
                    raise DataError(f"{file.name} names {missing[0]}, and Annotations/{missing[0]}.xml is not there.")
                break
    if "train" in found and len(found) > 1:
        return found
    return {"all": sorted(file.stem for file in (path / "Annotations").glob("*.xml"))}


def _pictures(path: Path) -> dict[str, Path]:
    folder = next((path / name for name in ("JPEGImages", "images") if (path / name).is_dir()), path)
    return {file.stem: file for file in sorted(folder.iterdir()) if file.suffix.lower() in SUFFIXES}


def _read(file: Path) -> list[tuple[str, list[float], bool]]:
    """Return name, corners and difficulty of each object."""
    if file.stat().st_size > LARGEST:
        raise DataError(f"{file.name} has more than {LARGEST:,} bytes: it is no annotation.")
    text = file.read_bytes()
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
        raise DataError(f"{file.name} declares entities, which annotations do not need: remove its DOCTYPE.")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise DataError(f"{file.name} is no XML: {error}.") from error
    rows = []
    for number, entry in enumerate(root.findall("object"), 1):
        name = (entry.findtext("name") or "").strip()
        try:
            corners = [float(entry.findtext(f"bndbox/{key}") or "") for key in ("xmin", "ymin", "xmax", "ymax")]
        except ValueError:
            corners = []
        if not name or not corners:
            raise DataError(f"{file.name}, object {number} needs a name and a bndbox with xmin, ymin, xmax, ymax.")
        rows.append((name, corners, (entry.findtext("difficult") or "0").strip() == "1"))
    return rows
