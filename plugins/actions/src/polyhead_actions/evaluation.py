"""The official measures of temporal action detection: mAP over temporal IoU, average recall, and its area.

Truth and predictions are tables: arrays with a row for each segment. Numbers are those of the evaluators of ActivityNet
and OpenTAD.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyhead_actions.nms import segment_iou

__all__ = ["AverageRecall", "Table", "average_precisions", "average_recall", "without_duplicates"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SAME_S = 1e-3
"""Annotations of one label whose ends are no farther apart, in seconds, are one."""


class Table(NamedTuple):
    """Segments of many videos."""

    videos: Ints
    """(R,): which video."""
    segments: Floats
    """(R, 2): starts and ends, s."""
    labels: Ints
    """(R,): which class."""
    scores: Floats
    """(R,); of the truth, ones."""

    @classmethod
    def make(cls, rows: Sequence[tuple[int, float, float, int, float]]) -> Table:
        """Make a table of (video, start, end, label, score)."""
        array = np.array(rows, dtype=np.float64).reshape(-1, 5)
        return cls(array[:, 0].astype(np.int64), array[:, 1:3], array[:, 3].astype(np.int64), array[:, 4])

    def take(self, rows: NDArray[np.bool_] | Ints) -> Table:
        """Return some rows."""
        return Table(self.videos[rows], self.segments[rows], self.labels[rows], self.scores[rows])


def without_duplicates(truth: Table) -> Table:
    """Return the annotations without those of no length and those that repeat an earlier one of their video."""
    kept: list[int] = []
    for row in np.flatnonzero(truth.segments[:, 1] > truth.segments[:, 0]):
        same = [k for k in kept if truth.videos[k] == truth.videos[row] and truth.labels[k] == truth.labels[row]]
        if not any((np.abs(truth.segments[k] - truth.segments[row]) <= SAME_S).all() for k in same):
            kept.append(int(row))
    return truth.take(np.array(kept, dtype=np.int64))


def average_precisions(truth: Table, found: Table, thresholds: Sequence[float]) -> dict[int, Floats]:
    """Return the average precision of every class of the truth, at every threshold.

    Predictions of a class are taken by score; each takes the action of its video with the largest IoU that no better
    one took, if that is at least the threshold. AP is the area under the interpolated precision, over all points.
    A class that is not in the truth is not counted; a prediction for a video without truth is a false positive.

    Args:
        truth: what happened; duplicates are the caller's to remove.
        found: predictions.
        thresholds: of temporal IoU.

    Returns:
        dict[int, Floats]: class -> (thresholds,), in [0, 1].

    Complexity: O(R log R + pairs in one video and class).
    Source: ActivityNet, Evaluation/eval_detection.py; OpenTAD, evaluations/mAP.py.
    """
    levels = np.asarray(thresholds, dtype=np.float64)
    return {
        int(label): _class_precision(truth.take(truth.labels == label), found.take(found.labels == label), levels)
        for label in np.unique(truth.labels)
    }


def _class_precision(truth: Table, found: Table, levels: Floats) -> Floats:
    hits = np.zeros((len(levels), len(found.scores)), dtype=bool)
    order = np.argsort(found.scores, kind="stable")[::-1]
    found = found.take(order)
    by_video = np.argsort(found.videos, kind="stable")
    names = found.videos[by_video]
    for video in np.unique(truth.videos):
        rows = by_video[np.searchsorted(names, video) : np.searchsorted(names, video, side="right")]
        if len(rows):
            iou = segment_iou(found.segments[rows, None], truth.segments[None, truth.videos == video])
            hits[:, rows] = _matches(iou, levels)
    true = np.cumsum(hits, 1, dtype=np.float64)
    precision = true / np.arange(1, hits.shape[1] + 1)
    recall = true / len(truth.scores)
    return np.array([_area(*pair) for pair in zip(precision, recall, strict=True)])


def _matches(iou: NDArray[np.floating], levels: Floats) -> NDArray[np.bool_]:
    """Return which predictions (best first) of a video hit, (levels, P), from their IoU with its actions, (P, A)."""
    hits = np.zeros((len(levels), len(iou)), dtype=bool)
    able = iou >= levels[:, None, None]
    if iou.shape[1] == 1:
        first = able[:, :, 0].argmax(1)
        hits[np.arange(len(levels)), first] = able[np.arange(len(levels)), first, 0]
        return hits
    locked = np.zeros((len(levels), iou.shape[1]), dtype=bool)
    for row in np.flatnonzero(able.any((0, 2))):
        open_ = able[:, row] & ~locked
        for action in np.argsort(iou[row], kind="stable")[::-1]:
            new = open_[:, action] & ~hits[:, row]
            hits[new, row] = True
            locked[new, action] = True
        if locked.all():
            break
    return hits


def _area(precision: Floats, recall: Floats) -> float:
    """Return the area under the precision's envelope."""
    envelope = np.concatenate([[0.0], precision, [0.0]])
    envelope = np.maximum.accumulate(envelope[::-1])[::-1]
    steps = np.concatenate([[0.0], recall, [1.0]])
    moved = np.flatnonzero(steps[1:] != steps[:-1]) + 1
    return float(((steps[moved] - steps[moved - 1]) * envelope[moved]).sum())


class AverageRecall(NamedTuple):
    """Recall against the number of proposals."""

    recall: Floats
    """(thresholds, most): share of actions found with 1, 2, … proposals a video on average."""
    per_video: Floats
    """(most,): that average number."""

    def at(self, number: int) -> float:
        """Return the recall with ``number`` proposals a video, over all thresholds."""
        return float(self.recall[:, number - 1].mean())

    @property
    def area(self) -> float:
        """The area under the mean recall, over the largest number: 1 - 1 / most where everything is found at once."""
        return float(np.trapezoid(self.recall.mean(0), self.per_video) / self.per_video[-1])


def average_recall(truth: Table, found: Table, thresholds: Sequence[float], *, most: int = 100) -> AverageRecall:
    """Return recall over thresholds and numbers of proposals; labels play no part.

    Of each video the same share of its proposals is kept, such that their average number is 1, 2, … ``most``.

    Source: ActivityNet, Evaluation/eval_proposal.py; OpenTAD, evaluations/recall.py.
    """
    levels = np.asarray(thresholds, dtype=np.float64)
    videos = np.unique(truth.videos)
    grid = np.arange(1, most + 1)
    if not len(found.scores) or not len(videos):
        return AverageRecall(np.zeros((len(levels), most)), grid.astype(np.float64))
    ratio = most * float(len(videos)) / len(found.scores)
    order = np.argsort(found.scores, kind="stable")[::-1]
    by_video = order[np.argsort(found.videos[order], kind="stable")]
    names = found.videos[by_video]
    ious, total = [], 0
    for video in videos:
        actions = truth.segments[truth.videos == video]
        rows = by_video[np.searchsorted(names, video) : np.searchsorted(names, video, side="right")]
        kept = min(int(len(rows) * ratio), len(rows))
        total += kept
        iou = segment_iou(actions[:, None], found.segments[None, rows[:kept]])
        ious.append(iou if len(rows) else np.zeros((len(actions), 1)))
    if total == 0:
        return AverageRecall(np.zeros((len(levels), most)), grid.astype(np.float64))
    shares = grid / most * (most * float(len(videos)) / total)
    matches = np.zeros((len(levels), most))
    for iou in ious:
        numbers = np.minimum((iou.shape[1] * shares).astype(np.int64), iou.shape[1])
        # The best IoU among the first n proposals, for n = 0, 1, …
        best = np.concatenate([np.full((len(iou), 1), -1.0), np.maximum.accumulate(iou, 1)], 1)[:, numbers]
        matches += (best[None] >= levels[:, None, None]).sum(1)
    recall = matches / sum(len(iou) for iou in ious)
    return AverageRecall(recall, shares * (float(total) / len(videos)))
