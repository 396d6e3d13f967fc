"""Open pictures in any of the layouts that people have: COCO, YOLO, Pascal VOC, plain pictures, videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polyhead.errors import DataError
from polyhead_detection.images import SUFFIXES, VIDEOS, find_images
from polyhead_detection.settings import PictureSettings

__all__ = ["open_pictures"]


def open_pictures(path: Path, settings: PictureSettings) -> Any:
    """Open a file or folder; see ``object-detect datasets`` for what is read.

    Raises:
        DataError: it is not there, is empty, or is none of the layouts.
    """
    if not path.exists():
        raise DataError(f"{path} is not there.")
    kind = _layout(path) if settings.format == "auto" else settings.format
    if kind == "coco":
        from polyhead_detection.formats.coco import open_coco

        return open_coco(path, settings)
    if kind == "yolo":
        from polyhead_detection.formats.yolo import open_yolo

        return open_yolo(path, settings)
    if kind == "voc":
        from polyhead_detection.formats.voc import open_voc

        return open_voc(path, settings)
    if kind == "video":
        from polyhead_detection.formats.video import open_video

        return open_video(path, settings)
    return _plain(path, settings)


def _layout(path: Path) -> str:
    """Say which layout a path has, by its names."""
    if path.is_file():
        suffix = path.suffix.lower()
        if suffix == ".json":
            return "coco"
        if suffix in (".yaml", ".yml"):
            return "yolo"
        return "video" if suffix in VIDEOS else "images"
    if (path / "Annotations").is_dir():
        return "voc"
    if (path / "data.yaml").is_file() or (path / "classes.txt").is_file() or (path / "labels").is_dir():
        return "yolo"
    folders = (path, path / "annotations", path / "train", path / "valid", path / "test")
    return "coco" if any(any(folder.glob("*.json")) for folder in folders) else "images"


def _plain(path: Path, settings: PictureSettings) -> Any:
    from polyhead_detection.images import read_size
    from polyhead_detection.pictures import Item, PictureData

    files = [path] if path.is_file() else find_images(path)
    if path.is_file() and path.suffix.lower() not in SUFFIXES:
        raise DataError(
            f"{path} is no picture, video, COCO JSON or data.yaml: those end in {', '.join(sorted(SUFFIXES))}, "
            f"{', '.join(sorted(VIDEOS))}, .json, .yaml."
        )
    if not files:
        raise DataError(f"{path} holds no picture ({', '.join(sorted(SUFFIXES))}) and no annotations.")
    base = path.parent if path.is_file() else path
    items = [
        Item(file, number, read_size(file), name=str(file.relative_to(base))) for number, file in enumerate(files, 1)
    ]
    return PictureData(path.name, f"Pictures of {path.name}, without boxes.", {"test": items}, None, settings)
