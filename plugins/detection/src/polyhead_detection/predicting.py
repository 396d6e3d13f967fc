"""What `predict` writes: detections as COCO JSON, YOLO or Pascal VOC, annotated pictures, and keep-maps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from polyhead.artifacts import write_atomic
from polyhead.errors import DataError, NonFiniteError
from polyhead_detection.drawing import annotated, keep_map, png
from polyhead_detection.inference import best_boxes
from polyhead_detection.settings import PredictSettings
from polyhead_detection.transforms import Sample, fit_size, resize

if TYPE_CHECKING:
    from torch import nn

    from polyhead_detection.pictures import Item
    from polyhead_detection.task import DetectTask

__all__ = ["Detection", "detect", "write"]


class Detection(NamedTuple):
    """What was found in a picture."""

    scores: Tensor
    labels: Tensor
    boxes: Tensor
    """x0, y0, x1, y1 in pixels of the picture, inside of it, (K, 4)."""
    image: Tensor
    """The picture as the model saw it, uint8 (3, h, w)."""
    kept: Sequence[Tensor]
    """Of each encoder layer bool (N,)."""
    places: Tensor
    token_mask: Tensor
    strides: Sequence[int]


def detect(task: DetectTask, model: nn.Module, image: Tensor, *, top: int, threshold: float) -> Detection:
    """Find objects in one picture.

    Args:
        task: knows the size that pictures are brought to.
        model: in evaluation mode.
        image: uint8 (3, H, W).
        top: most detections.
        threshold: least score.

    Raises:
        NonFiniteError: the model gives NaN or Inf.
    """
    size = (image.shape[-2], image.shape[-1])
    nothing = Sample(image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    seen = resize(nothing, fit_size(size, task.short_side, task.long_side)).image if task.short_side else image
    device = next(model.parameters()).device
    with torch.inference_mode():
        detected = model([seen.to(device)])
        if not (detected.logits.isfinite().all() and detected.boxes.isfinite().all()):
            raise NonFiniteError("The model's scores or boxes are NaN or infinite. The weights are damaged: fit again.")
        found = best_boxes(detected, [size], count=top)[0]
    kept = found.scores >= threshold
    limits = found.boxes.new_tensor([size[1], size[0]] * 2)
    boxes = torch.minimum(found.boxes.clamp(min=0), limits)
    kept &= ((boxes[:, 2:] - boxes[:, :2]) > 0).all(-1)
    strides: Any = model.strides
    return Detection(
        found.scores[kept].float().cpu(),
        found.labels[kept].cpu(),
        boxes[kept].float().cpu(),
        seen,
        [layer[0].cpu() for layer in detected.kept],
        detected.places[0].cpu(),
        detected.token_mask[0].cpu(),
        tuple(strides),
    )


def write(task: DetectTask, model: nn.Module, data: Any, out: Path, settings: PredictSettings) -> Sequence[Path]:
    """Write what was found in every picture; one picture at a time is in memory.

    ``detections.json``: a whole COCO document, with file names. ``results.json``: COCO's list of results, with the ids
    of the data. ``yolo/NAME.txt`` and ``classes.txt``; ``voc/NAME.xml``; ``pictures/NAME.png``; ``keep-maps/NAME.png``.

    Raises:
        DataError: two pictures have the same name, so that their files would be the same.
    """
    made: list[Path] = []
    results: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    stems: set[str] = set()
    for item, image in data.pictures(settings.split):
        found = detect(task, model, image, top=settings.top, threshold=settings.threshold)
        stem = _stem(item, stems)
        height, width = image.shape[-2:]
        images.append({"id": item.id, "file_name": item.file_name, "width": int(width), "height": int(height)})
        results += _results(task, item, found)
        if "yolo" in settings.files:
            made.append(_write(out / "yolo" / f"{stem}.txt", _yolo(found, height, width)))
        if "voc" in settings.files:
            made.append(_write(out / "voc" / f"{stem}.xml", _voc(task, item, found, height, width)))
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        if "pictures" in settings.files:
            texts = [
                f"{task.categories[label].name} {score:.2f}"
                for label, score in zip(found.labels.tolist(), found.scores.tolist(), strict=True)
            ]
            scale = max(1, 256 // max(height, width))
            drawn = annotated(pixels, found.boxes.tolist(), found.labels.tolist(), texts, scale=scale)
            made.append(_write(out / "pictures" / f"{stem}.png", png(drawn)))
        if "keep-maps" in settings.files and found.kept:
            seen = np.ascontiguousarray(found.image.permute(1, 2, 0).numpy())
            picture = keep_map(seen, found.kept, found.places, found.token_mask, found.strides)
            made.append(_write(out / "keep-maps" / f"{stem}.png", png(picture)))
    if "yolo" in settings.files:
        names = "".join(f"{category.name}\n" for category in task.categories)
        made.append(_write(out / "yolo" / "classes.txt", names.encode()))
    if "results" in settings.files:
        made.append(_write(out / "results.json", _json(results)))
    if "coco" in settings.files:
        made.append(_write(out / "detections.json", _json(_document(task, images, results))))
    return made


def _stem(item: Item, known: set[str]) -> str:
    """Return a file name for what is written of a picture: its own without folders, once only."""
    name = item.file_name.replace("\\", "/").rpartition("/")[2]
    base = name.rpartition(".")[0] or name
    stem = base if base not in known else f"{base}-{item.id}"
    if stem in known:
        raise DataError(f'Two pictures are called "{item.file_name}" and have the id {item.id}: give them other names.')
    known.add(stem)
    return stem


def _results(task: DetectTask, item: Item, found: Detection) -> list[dict[str, Any]]:
    rows = []
    for score, label, (x0, y0, x1, y1) in zip(
        found.scores.tolist(), found.labels.tolist(), found.boxes.tolist(), strict=True
    ):
        box = [round(value, 3) for value in (x0, y0, x1 - x0, y1 - y0)]
        category = task.categories[label].id
        rows.append({"image_id": item.id, "category_id": category, "bbox": box, "score": round(score, 6)})
    return rows


def _document(task: DetectTask, images: list[dict[str, Any]], results: list[dict[str, Any]]) -> dict[str, Any]:
    annotations = [
        {"id": number, **row, "area": round(row["bbox"][2] * row["bbox"][3], 3), "iscrowd": 0}
        for number, row in enumerate(results, 1)
    ]
    categories = [{"id": category.id, "name": category.name} for category in task.categories]
    return {"images": images, "annotations": annotations, "categories": categories}


def _yolo(found: Detection, height: int, width: int) -> bytes:
    """Return a line a box: class, centre x, y, width, height in units of the picture, score."""
    lines = []
    for score, label, (x0, y0, x1, y1) in zip(
        found.scores.tolist(), found.labels.tolist(), found.boxes.tolist(), strict=True
    ):
        numbers = ((x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height, score)
        lines.append(" ".join([str(label), *(f"{number:.6f}" for number in numbers)]))
    return "".join(f"{line}\n" for line in lines).encode() or b"\n"


def _voc(task: DetectTask, item: Item, found: Detection, height: int, width: int) -> bytes:
    """Return Pascal VOC's XML; corners are counted from 1 and belong to the box."""
    from xml.etree import ElementTree

    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = item.file_name
    size = ElementTree.SubElement(root, "size")
    for name, value in (("width", width), ("height", height), ("depth", 3)):
        ElementTree.SubElement(size, name).text = str(int(value))
    for score, label, (x0, y0, x1, y1) in zip(
        found.scores.tolist(), found.labels.tolist(), found.boxes.tolist(), strict=True
    ):
        entry = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(entry, "name").text = task.categories[label].name
        ElementTree.SubElement(entry, "difficult").text = "0"
        ElementTree.SubElement(entry, "score").text = f"{score:.6f}"
        box = ElementTree.SubElement(entry, "bndbox")
        for name, value in (("xmin", x0 + 1), ("ymin", y0 + 1), ("xmax", x1), ("ymax", y1)):
            ElementTree.SubElement(box, name).text = f"{value:.3f}"
    ElementTree.indent(root)
    text: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return text


def _write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content)
    return path


def _json(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode()
