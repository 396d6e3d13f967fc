"""Pictures of a report: test pictures with what was found, and the tokens that were kept."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from polyhead.protocols import Picture
from polyhead_detection.drawing import annotated, keep_map, montage, png
from polyhead_detection.predicting import detect

if TYPE_CHECKING:
    from torch import nn

    from polyhead_detection.task import DetectTask

__all__ = ["pictures"]

SHOWN = 6
LEAST = 0.3
SMALL = 256
MOST = 100


def pictures(task: DetectTask, model: nn.Module, data: Any) -> Sequence[Picture]:
    """Return test pictures with the truth in white and detections in colour, and the tokens each layer updated."""
    found, kept = [], []
    for item, image in islice(data.pictures("test"), SHOWN):
        result = detect(task, model, image, top=MOST, threshold=LEAST)
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        truth = np.concatenate([item.boxes[:, :2], item.boxes[:, :2] + item.boxes[:, 2:]], 1)
        names = [task.categories[label].name for label in result.labels.tolist()]
        texts = [f"{name} {score:.2f}" for name, score in zip(names, result.scores.tolist(), strict=True)]
        scale = max(1, SMALL // max(pixels.shape[:2]))
        found.append(
            annotated(
                pixels,
                [*truth.tolist(), *result.boxes.tolist()],
                [-1] * len(truth) + result.labels.tolist(),
                [""] * len(truth) + texts,
                scale=scale,
            )
        )
        if result.kept:
            seen = np.ascontiguousarray(result.image.permute(1, 2, 0).numpy())
            picture = keep_map(seen, result.kept, result.places, result.token_mask, result.strides)
            repeat = max(1, 128 // max(seen.shape[:2]))
            kept.append(picture.repeat(repeat, 0).repeat(repeat, 1))
    result_pictures = [
        Picture(
            "Detections",
            f"The first test pictures: true boxes in white, detections of a score above {LEAST} in colour.",
            png(montage(found, columns=3)),
        )
    ]
    if kept:
        result_pictures.append(
            Picture(
                "Tokens",
                "The same pictures, a column for each encoder layer: bright where it updated tokens, else dark.",
                png(montage(kept, columns=1)),
            )
        )
    return result_pictures
