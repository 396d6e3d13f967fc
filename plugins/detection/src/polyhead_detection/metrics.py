"""COCO's twelve figures, by faster-coco-eval, and how well tokens were chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from polyhead.protocols import Batch
from polyhead_detection.pictures import Category

__all__ = ["FIGURES", "CocoMetric", "ObjectsFound", "TokenMetric", "coco_figures"]

FIGURES = (
    "ap",
    "ap50",
    "ap75",
    "ap_small",
    "ap_medium",
    "ap_large",
    "ar1",
    "ar10",
    "ar100",
    "ar_small",
    "ar_medium",
    "ar_large",
)
"""In COCO's order. Each is in [0, 1]; -1 where no object counts, as COCO prints it."""


class ObjectsFound(NamedTuple):
    """Predictions for a batch."""

    scores: list[Tensor]
    """Of each picture, best first, (K,)."""
    labels: list[Tensor]
    """int64 (K,)."""
    boxes: list[Tensor]
    """x0, y0, x1, y1 in pixels of the original picture, (K, 4)."""
    tokens: Tensor
    """Foreground tokens that the encoder's first layer updates, foreground tokens, token updates, those of an encoder
    that updates all, and millions of the encoder's multiply-accumulates, (B, 5); zeros where there are no tokens."""


class _Rows(NamedTuple):
    ids: list[int]
    sizes: list[tuple[int, int]]
    truth: list[NDArray[np.float64]]
    """Left, top, width, height, area, crowd, label; (n, 7)."""
    found: list[NDArray[np.float64]]
    """Left, top, width, height, score, label; (K, 6)."""


class CocoMetric:
    """Accumulates pictures; implements ``polyhead.protocols.Metric``."""

    def __init__(self, categories: Sequence[Category]) -> None:
        """Start empty."""
        self.categories = tuple(categories)
        self._rows = _Rows([], [], [], [])

    def update(self, prediction: ObjectsFound, batch: Batch) -> None:
        """Add one batch."""
        self._rows.ids.extend(batch["image_id"].tolist())
        self._rows.sizes.extend((int(h), int(w)) for h, w in batch["original_size"].tolist())
        self._rows.truth.extend(np.asarray(each, dtype=np.float64) for each in batch["truth"])
        for scores, labels, boxes in zip(prediction.scores, prediction.labels, prediction.boxes, strict=True):
            corners = boxes.double().numpy()
            columns = [corners[:, :2], corners[:, 2:] - corners[:, :2], scores.double().numpy()[:, None]]
            self._rows.found.append(np.concatenate([*columns, labels.numpy()[:, None]], 1))

    def state(self) -> Any:
        """Return the pictures."""
        return tuple(self._rows)

    def merge(self, states: Sequence[Any]) -> None:
        """Replace the own pictures by those of all states; one that several have counts once."""
        merged: dict[int, tuple[Any, ...]] = {}
        for state in states:
            for row in zip(*state, strict=True):
                merged.setdefault(row[0], row)
        rows = list(merged.values())
        self._rows = _Rows(*([row[i] for row in rows] for i in range(4)))

    def compute(self) -> Mapping[str, float]:
        """Return the twelve figures, and ``ap_NAME`` of each class."""
        rows = self._rows
        names = [category.name for category in self.categories]
        return coco_figures(rows.ids, rows.sizes, rows.truth, rows.found, names)


class TokenMetric:
    """`CocoMetric`, the recall of foreground tokens, the share of token updates and the encoder's work, of a model."""

    def __init__(self, categories: Sequence[Category]) -> None:
        """Start empty."""
        self._coco = CocoMetric(categories)
        self._sums, self._pictures = np.zeros(5), 0

    def update(self, prediction: ObjectsFound, batch: Batch) -> None:
        """Add one batch."""
        self._coco.update(prediction, batch)
        self._sums += prediction.tokens.double().sum(0).numpy()
        self._pictures += len(prediction.tokens)

    def state(self) -> Any:
        """Return pictures and sums."""
        return self._coco.state(), self._sums.tolist(), self._pictures

    def merge(self, states: Sequence[Any]) -> None:
        """Replace the own state by the union of ``states``."""
        self._coco.merge([coco for coco, _, _ in states])
        self._sums = np.sum([sums for _, sums, _ in states], axis=0)
        self._pictures = sum(pictures for _, _, pictures in states)

    def compute(self) -> Mapping[str, float]:
        """Return the figures; a recall of no foreground token at all is NaN."""
        kept, foreground, updated, everything, macs = self._sums.tolist()
        tokens = {
            "token_recall": kept / foreground if foreground else float("nan"),
            "token_share": updated / everything if everything else float("nan"),
            "encoder_mmac": macs / self._pictures if self._pictures else float("nan"),
        }
        figures = dict(self._coco.compute())
        first = {name: figures.pop(name) for name in FIGURES}
        return {**first, **tokens, **figures}


def coco_figures(
    ids: Sequence[int],
    sizes: Sequence[tuple[int, int]],
    truth: Sequence[NDArray[np.float64]],
    found: Sequence[NDArray[np.float64]],
    names: Sequence[str],
) -> dict[str, float]:
    """Return COCO's figures of pictures.

    Args:
        ids: of the pictures, all different.
        sizes: height and width.
        truth: of each picture left, top, width, height, area, crowd, label, (n, 7).
        found: of each picture left, top, width, height, score, label, (K, 6).
        names: of the classes.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    annotations = [
        {
            "image_id": image,
            "bbox": row[:4].tolist(),
            "area": float(row[4]),
            "iscrowd": int(row[5]),
            "category_id": int(row[6]) + 1,
        }
        for image, rows in zip(ids, truth, strict=True)
        for row in rows
    ]
    document = {
        "images": [{"id": image, "height": h, "width": w} for image, (h, w) in zip(ids, sizes, strict=True)],
        "annotations": [{"id": number, **each} for number, each in enumerate(annotations, 1)],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names, 1)],
    }
    results = [
        {"image_id": image, "bbox": row[:4].tolist(), "score": float(row[4]), "category_id": int(row[5]) + 1}
        for image, rows in zip(ids, found, strict=True)
        for row in rows
    ]
    known = COCO(document)
    evaluation = COCOeval_faster(known, known.loadRes(results), iouType="bbox", print_function=_silent)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    figures = dict(zip(FIGURES, (float(value) for value in evaluation.stats[: len(FIGURES)]), strict=True))
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    for place, name in enumerate(names):
        own = precision[:, :, place]
        own = own[own > -1]
        figures[f"ap_{name}"] = float(own.mean()) if own.size else -1.0
    return figures


def _silent(*_: Any, **__: Any) -> None:
    """Print nothing."""
