"""Small folders of pictures in the layouts that people have, made of digit scenes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from polyhead_detection.digits import draw_scene


@pytest.fixture
def document() -> Callable[..., dict[str, Any]]:
    """Make a COCO document of the scenes ``range(count)``, with ids 3, 6, 9, … for digits."""
    return coco_document


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """A folder with ``train.json``, ``val.json`` and ``images/``: 12 and 4 pictures; the last one has no box."""
    return coco_folder(tmp_path / "scenes")


def coco_document(count: int, first: int = 0) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(first, first + count):
        scene = draw_scene("train", 0, index)
        images.append({"id": index + 1, "file_name": f"{index:03d}.png", "height": 64, "width": 64})
        for box, label in zip(scene.boxes.tolist(), scene.labels.tolist(), strict=True):
            row = {"image_id": index + 1, "category_id": 3 + 3 * label, "bbox": box, "area": box[2] * box[3] * 0.8}
            annotations.append({"id": len(annotations) + 1, "iscrowd": 0, **row})
    categories = [{"id": 3 + 3 * digit, "name": f"digit {digit}"} for digit in range(10)]
    return {"images": images, "annotations": annotations, "categories": categories}


def coco_folder(folder: Path) -> Path:
    images = folder / "images"
    images.mkdir(parents=True)
    for index in range(16):
        Image.fromarray(draw_scene("train", 0, index).image).save(images / f"{index:03d}.png")
    (folder / "train.json").write_text(json.dumps(coco_document(12)))
    held_out = coco_document(4, 12)
    last = held_out["images"][-1]["id"]
    held_out["annotations"] = [row for row in held_out["annotations"] if row["image_id"] != last]
    (folder / "val.json").write_text(json.dumps(held_out))
    return folder
