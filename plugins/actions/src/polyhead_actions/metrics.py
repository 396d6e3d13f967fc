"""The literature's figures of a split, gathered over batches and processes. Percentages, 0 to 100."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from polyhead.protocols import Batch
from polyhead_actions.data import NO_LABEL
from polyhead_actions.decoding import Decoder, Found
from polyhead_actions.evaluation import Table, average_precisions, average_recall, without_duplicates

__all__ = ["THRESHOLDS", "DetectionMetric", "Protocol"]

Protocol = Literal["activitynet", "thumos"]

THRESHOLDS: Mapping[str, tuple[float, ...]] = {
    "activitynet": tuple(float(x) for x in np.linspace(0.5, 0.95, 10)),
    "thumos": tuple(float(x) for x in np.linspace(0.3, 0.7, 5)),
}
"""Temporal IoU over which mAP is the mean."""
NAMED: Mapping[str, tuple[float, ...]] = {"activitynet": (0.5, 0.75, 0.95), "thumos": (0.3, 0.4, 0.5, 0.6, 0.7)}
"""Those that papers print."""
LOCAL = (0.5, 0.7)
"""For AP, which asks where something happens and not what."""
PROPOSALS = (1, 5, 10, 100)


class DetectionMetric:
    """Accumulates detections and the truth; implements ``polyhead.protocols.Metric``.

    - ``mAP``, ``mAP@0.5`` …: mean over classes of the average precision; ``mAP`` over the protocol's thresholds.
    - ``AP@0.5``, ``AP@0.7``: the same with all classes taken for one.
    - ``AR@1`` … ``AR@100``: share of actions found with so many proposals a video, mean over IoU 0.5 to 0.95.
    - ``AUC``: the area under AR over 1 to 100 proposals; a perfect method has 99.
    """

    def __init__(self, decoder: Decoder, protocol: Protocol = "activitynet") -> None:
        """Start without any video."""
        self.decoder, self.protocol = decoder, protocol
        self._rows: list[tuple[int, int, float, Found, np.ndarray, np.ndarray]] = []

    def update(self, prediction: Any, batch: Batch) -> None:
        """Add a batch of sequences."""
        for row, found in enumerate(self.decoder(prediction, batch)):
            labels = np.asarray(batch["truth_labels"])[row]
            truth = np.asarray(batch["truth"])[row][labels != NO_LABEL]
            video, window = int(batch["video"][row]), int(batch["window"][row])
            self._rows.append((video, window, float(batch["seconds"][row]), found, truth, labels[labels != NO_LABEL]))

    def state(self) -> list[Any]:
        """Return what ``merge`` of another process takes."""
        return self._rows

    def merge(self, states: Sequence[Any]) -> None:
        """Replace the own state by the union of ``states``."""
        self._rows = [row for state in states for row in state]

    def compute(self) -> Mapping[str, float]:
        """Return the figures by name; a split without any action has mAP and recall 0."""
        videos = self.videos()
        truth, found = self._truth(), _detections(videos)
        levels = THRESHOLDS[self.protocol]
        precisions = average_precisions(truth, found, levels)
        named = [min(range(len(levels)), key=lambda i: abs(levels[i] - level)) for level in NAMED[self.protocol]]
        mean = np.mean(list(precisions.values()), axis=0) if precisions else np.zeros(len(levels))
        figures = {"mAP": mean.mean()}
        figures |= {f"mAP@{level:g}": mean[i] for level, i in zip(NAMED[self.protocol], named, strict=True)}
        # Classes play no part from here on: each proposal counts once, with its own score.
        truth = truth._replace(labels=np.zeros_like(truth.labels))
        found = _proposals(videos)
        local = average_precisions(truth, found, LOCAL).get(0, np.zeros(len(LOCAL)))
        figures |= {f"AP@{level:g}": value for level, value in zip(LOCAL, local, strict=True)}
        recall = average_recall(truth, found, THRESHOLDS["activitynet"], most=max(PROPOSALS))
        figures |= {f"AR@{number}": recall.at(number) for number in PROPOSALS}
        figures["AUC"] = recall.area
        return {name: 100 * float(value) for name, value in figures.items()}

    def videos(self) -> dict[int, Found]:
        """Return the detections by video, windows merged."""
        parts: dict[int, list[tuple[int, Found]]] = {}
        seconds: dict[int, float] = {}
        for video, window, length, found, _, _ in self._rows:
            parts.setdefault(video, []).append((window, found))
            seconds[video] = length
        return {
            video: self.decoder.merge([one for _, one in sorted(some, key=lambda part: part[0])], seconds[video])
            for video, some in sorted(parts.items())
        }

    def tables(self) -> tuple[Table, Table]:
        """Return the actions and the proposals, classes aside: what average recall is made of."""
        truth = self._truth()
        return truth._replace(labels=np.zeros_like(truth.labels)), _proposals(self.videos())

    def _truth(self) -> Table:
        by_video = {video: (segments, labels) for video, _, _, _, segments, labels in self._rows}
        rows = [
            (video, start, end, label, 1.0)
            for video, (segments, labels) in sorted(by_video.items())
            for (start, end), label in zip(segments.tolist(), labels.tolist(), strict=True)
        ]
        return without_duplicates(Table.make(rows))


def _detections(videos: Mapping[int, Found]) -> Table:
    """Return a row for each detection and each of its classes."""
    return Table.make(
        [
            (video, start, end, label, score * weight)
            for video, found in videos.items()
            for (start, end), score, labels, weights in zip(*(part.tolist() for part in found), strict=True)
            for label, weight in zip(labels, weights, strict=True)
        ]
    )


def _proposals(videos: Mapping[int, Found]) -> Table:
    """Return a row for each detection."""
    return Table.make(
        [
            (video, start, end, 0, score)
            for video, found in videos.items()
            for (start, end), score in zip(found.segments.tolist(), found.scores.tolist(), strict=True)
        ]
    )
