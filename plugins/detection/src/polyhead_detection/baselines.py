"""What can be said without looking at a picture: the usual boxes of each class."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch

from polyhead.protocols import Batch, Predictor
from polyhead_detection.boxes import to_corners
from polyhead_detection.metrics import ObjectsFound

__all__ = ["usual_boxes"]

SEEN = 2000
"""Training pictures that are looked at."""
CLUSTERS = 5
"""Usual boxes of a class."""
MOST = 100


def usual_boxes(data: Any) -> Predictor:
    """Return a predictor that answers every picture with the cluster centres of each class's training boxes.

    Scores are the shares of the boxes in a cluster. Anything that sees must be better.
    """
    from scipy.cluster.vq import kmeans2

    source = data.source("train")
    count = SEEN if getattr(source, "endless", False) else min(SEEN, len(source))
    boxes, labels = _boxes(source, count)
    rows = []
    for label in np.unique(labels):
        own = boxes[labels == label]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a cluster that stays empty is left out below
            centres, places = kmeans2(own, min(CLUSTERS, len(own)), minit="++", seed=0)
        counts = np.bincount(places, minlength=len(centres))
        rows += [(n / len(boxes), label, *centre) for n, centre in zip(counts, centres, strict=True) if n]
    rows = sorted(rows, reverse=True)[:MOST]
    table = torch.tensor(np.array(rows, dtype=np.float64).reshape(-1, 6))

    def predict(batch: Batch) -> ObjectsFound:
        sizes = batch["original_size"].double()
        count = len(sizes)
        scaled = [to_corners(table[:, 2:]) * size.flip(0).repeat(2) for size in sizes]
        return ObjectsFound(
            [table[:, 0].float()] * count,
            [table[:, 1].long()] * count,
            [boxes.float() for boxes in scaled],
            torch.zeros(count, 5),
        )

    return predict


def _boxes(source: Any, count: int) -> tuple[Any, Any]:
    """Return boxes in units of their pictures and labels, without decoding pictures where that can be had."""
    items = getattr(source, "items", None)
    if items is not None:
        own = [(item, ~item.crowd) for item in items[:count]]
        scales = [np.array([item.size[1], item.size[0]] * 2) for item, _ in own]
        boxes = np.concatenate([item.boxes[mask] / scale for (item, mask), scale in zip(own, scales, strict=True)])
        boxes[:, :2] += boxes[:, 2:] / 2
        return boxes, np.concatenate([item.labels[mask] for item, mask in own])
    batch = source.fetch(range(count), seed=0, epoch=0)
    return torch.cat(batch["boxes"]).double().numpy(), torch.cat(batch["labels"]).numpy()
