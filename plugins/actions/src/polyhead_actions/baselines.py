"""Honest guesses: where actions usually are, a threshold on one channel, and a classifier of single steps.

All are fitted on the training videos and give finished detections, see `decoding.Decoder`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from polyhead.protocols import Batch, Predictor
from polyhead_actions.data import NO_LABEL, VideoData
from polyhead_actions.evaluation import Table, average_precisions
from polyhead_actions.nms import segment_iou, soft_nms

__all__ = ["Threshold", "fit_baselines", "runs"]

Floats = NDArray[np.floating]

MOST = 100
"""Detections of a sequence."""
GRID = 24
"""Ends of the usual segments, over a video."""
SEQUENCES = 400
"""Training sequences that are looked at."""
QUANTILES = np.linspace(0.05, 0.95, 19)
SMOOTH = (1, 3, 7)
GAPS, LEAST = (0, 1, 3), (1, 2, 4)
"""Steps between runs that are joined, and of the shortest run that counts."""
LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def fit_baselines(data: VideoData) -> Mapping[str, Predictor]:
    """Return the baselines by name."""
    source = data.source("train")
    some = np.unique(np.linspace(0, len(source) - 1, min(len(source), SEQUENCES)).astype(int)).tolist()
    batch = {name: tensor.numpy() for name, tensor in source.fetch(some, seed=0, epoch=0).items()}
    return {
        "usual segments": _Usual(data),
        "threshold": Threshold.fit(batch),
        "step classifier": _Classifier(batch, len(data.classes)),
    }


class _Usual:
    """The segments that overlap most training actions, whatever the video shows."""

    def __init__(self, data: VideoData) -> None:
        actions, labels = [], []
        for video in (data.videos[number] for number in data.splits["train"]):
            actions += (np.asarray(video.segments).reshape(-1, 2) / video.seconds).tolist()
            labels += list(video.labels)
        ends = np.linspace(0, 1, GRID + 1)
        grid = np.array([(a, b) for a, b in product(ends, ends) if b > a])
        hits = (segment_iou(grid[:, None], np.array(actions)[None]) >= 0.5).mean(1)
        taken, scores = soft_nms(grid, hits, keep=MOST)
        self.segments, self.scores = grid[taken], scores
        self.label = int(np.bincount(labels).argmax())

    def __call__(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        # A video that is cut into windows gets them once, with its first window.
        first = np.asarray(batch["window"]) == 0
        seconds = np.asarray(batch["seconds"])
        segments = self.segments[None] * seconds[:, None, None]
        scores = np.where(first[:, None], self.scores[None], -1.0)
        return _prediction(segments, scores, np.full(scores.shape, self.label))


class _Choice(NamedTuple):
    """What the threshold is put on."""

    channel: int
    sign: int
    smooth: int
    level: float
    gap: int
    least: int


class Threshold:
    """Above, or below, a level of one channel something happens.

    Channel, direction, smoothing, level, the gap that is bridged and the shortest run are those with the best AP@0.5
    on the training sequences, whatever the class; the class is the commonest one.
    """

    def __init__(self, choice: _Choice, label: int) -> None:
        """Keep what was chosen."""
        self.choice, self.label = choice, label

    @classmethod
    def fit(cls, batch: Mapping[str, Any]) -> Threshold:
        """Choose on a batch of training sequences."""
        features, mask = batch["features"], batch["mask"]
        active = _active(batch)[mask]
        coarse = []
        for channel, smooth in product(range(features.shape[1]), SMOOTH):
            values = _smoothed(features[:, channel], mask, smooth)[mask]
            for level in np.quantile(values, QUANTILES):
                above = values > level
                # Balanced accuracy; the sign says which side is the action's.
                gain = above[active].mean() - above[~active].mean() if active.any() and not active.all() else 0.0
                coarse.append((abs(gain), channel, 1 if gain >= 0 else -1, smooth, float(level)))
        truth = _truth(batch)
        best, found = -1.0, None
        for _, channel, sign, smooth, level in sorted(coarse, reverse=True)[:12]:
            values = sign * _smoothed(features[:, channel], mask, smooth)
            for gap, least in product(GAPS, LEAST):
                choice = _Choice(channel, sign, smooth, sign * level, gap, least)
                rows = []
                for number, (row, valid) in enumerate(zip(values, mask, strict=True)):
                    segments, scores = runs(row[valid], choice.level, gap, least)
                    rows += [
                        (number, *s, 0, score) for s, score in zip(segments.tolist(), scores.tolist(), strict=True)
                    ]
                reached = float(average_precisions(truth, Table.make(rows), (0.5,)).get(0, np.zeros(1))[0])
                if reached > best:
                    best, found = reached, choice
        assert found is not None  # there is a channel, and so a choice
        labels = batch["labels"][batch["labels"] != NO_LABEL]
        return cls(found, int(np.bincount(labels).argmax()) if len(labels) else 0)

    def __call__(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        """Return the runs beyond the threshold."""
        channel, sign, smooth, level, gap, least = self.choice
        features, mask = np.asarray(batch["features"]), np.asarray(batch["mask"])
        values = sign * _smoothed(features[:, channel], mask, smooth)
        rows = [runs(row[valid], level, gap, least) for row, valid in zip(values, mask, strict=True)]
        return _in_seconds(rows, [np.full(len(scores), self.label) for _, scores in rows], batch)


class _Classifier:
    """Multinomial regression of each step on its features, and runs above every level of "something happens"."""

    def __init__(self, batch: Mapping[str, Any], classes: int) -> None:
        features, mask = batch["features"], batch["mask"]
        rows = features.transpose(0, 2, 1)[mask]
        self.mean, self.std = rows.mean(0), rows.std(0) + 1e-6
        labels = torch.from_numpy(_labels(batch)[mask] + 1)
        x = torch.from_numpy((rows - self.mean) / self.std)
        weight = torch.zeros(x.shape[1], classes + 1, requires_grad=True)
        bias = torch.zeros(classes + 1, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=30, line_search_fn="strong_wolfe")

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(x @ weight + bias, labels) + 1e-3 * weight.square().sum()
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)
        self.weight, self.bias = weight.detach(), bias.detach()

    def __call__(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        features, mask = np.asarray(batch["features"]), np.asarray(batch["mask"])
        x = torch.from_numpy((features.transpose(0, 2, 1) - self.mean) / self.std).float()
        shares = torch.softmax(x @ self.weight + self.bias, -1).numpy()
        found, labels = [], []
        for row, valid in zip(shares, mask, strict=True):
            happens = 1 - row[valid, 0]
            parts = [runs(happens, level, gap, 1, mean=True) for level in LEVELS for gap in (0, 1)]
            segments = np.concatenate([part[0] for part in parts])
            segments, first = np.unique(segments, axis=0, return_index=True)
            scores = np.concatenate([part[1] for part in parts])[first]
            taken, lowered = soft_nms(segments / max(len(happens), 1), scores, keep=MOST)
            found.append((segments[taken], lowered))
            summed = np.concatenate([np.zeros((1, row.shape[1] - 1)), np.cumsum(row[valid, 1:], 0)])
            ends = segments[taken].astype(int)
            labels.append((summed[ends[:, 1]] - summed[ends[:, 0]]).argmax(1))
        return _in_seconds(found, labels, batch)


def runs(values: Floats, level: float, gap: int, least: int, *, mean: bool = False) -> tuple[Floats, Floats]:
    """Return the runs of values above a level: segments (P, 2) in steps, and scores (P,), not negative.

    Runs at most ``gap`` steps apart are joined; those of fewer than ``least`` steps are dropped. The score is the mean
    height above the level, or, with ``mean``, the mean itself.

    >>> segments, scores = runs(np.array([0.0, 2.0, 0.0, 3.0, 0.0]), 1.0, 1, 1)
    >>> segments.tolist(), scores.round(2).tolist()
    ([[1.0, 4.0]], [0.67])
    """
    above = np.concatenate([[0], (values > level).astype(np.int8), [0]])
    starts, ends = np.flatnonzero(np.diff(above) == 1), np.flatnonzero(np.diff(above) == -1)
    apart = starts[1:] - ends[:-1] > gap
    starts = starts[np.concatenate([[True], apart])] if len(starts) else starts
    ends = ends[np.concatenate([apart, [True]])] if len(ends) else ends
    long = ends - starts >= least
    starts, ends = starts[long], ends[long]
    summed = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    height = (summed[ends] - summed[starts]) / np.maximum(ends - starts, 1)
    scores = height if mean else np.maximum(height - level, 0.0)
    return np.stack([starts, ends], -1).astype(np.float64), scores


def _smoothed(values: Floats, mask: NDArray[np.bool_], width: int) -> Floats:
    """Return the moving mean of rows (B, T) over ``width`` steps that are no padding."""
    if width == 1:
        return values
    kernel = np.ones(width)
    total = np.stack([np.convolve(row, kernel, "same")[: len(row)] for row in values * mask])
    count = np.stack([np.convolve(row, kernel, "same")[: len(row)] for row in mask.astype(float)])
    smoothed: Floats = total / np.maximum(count, 1)
    return smoothed


def _labels(batch: Mapping[str, Any]) -> NDArray[np.int64]:
    """Return the class of each step whose middle lies in an action, (B, T); -1 elsewhere."""
    middle = np.arange(batch["mask"].shape[1]) + 0.5
    labels = np.full(batch["mask"].shape, NO_LABEL)
    for number in range(batch["labels"].shape[1]):
        start, end = (batch["segments"][:, number, side, None] for side in (0, 1))
        inside = (batch["labels"][:, number, None] != NO_LABEL) & (middle >= start) & (middle < end)
        labels = np.where(inside, batch["labels"][:, number, None], labels)
    return labels


def _active(batch: Mapping[str, Any]) -> NDArray[np.bool_]:
    active: NDArray[np.bool_] = _labels(batch) != NO_LABEL
    return active


def _truth(batch: Mapping[str, Any]) -> Table:
    """Return the actions in training sequences, each a video of its own, in steps and of one class."""
    row, number = np.nonzero(batch["labels"] != NO_LABEL)
    segments = batch["segments"][row, number].astype(np.float64)
    return Table(row, segments, np.zeros(len(row), dtype=np.int64), np.ones(len(row)))


def _in_seconds(
    rows: Sequence[tuple[Floats, Floats]], labels: Sequence[Floats], batch: Batch
) -> Mapping[str, torch.Tensor]:
    """Return detections in steps as a prediction, the best MOST of each sequence."""
    size = len(rows)
    segments, scores = np.zeros((size, MOST, 2)), np.full((size, MOST), -1.0)
    chosen = np.zeros((size, MOST), dtype=np.int64)
    time = np.asarray(batch["time"])
    for number, ((found, height), label) in enumerate(zip(rows, labels, strict=True)):
        best = np.argsort(-height, kind="stable")[:MOST]
        segments[number, : len(best)] = time[number, 0] + found[best] * time[number, 1]
        scores[number, : len(best)], chosen[number, : len(best)] = height[best], label[best]
    return _prediction(segments, scores, chosen)


def _prediction(segments: Floats, scores: Floats, labels: NDArray[np.int64]) -> Mapping[str, torch.Tensor]:
    arrays = {"segments": segments, "scores": scores, "labels": labels}
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
