"""From predictions of sequences to detections in videos: suppression, classes, seconds, and windows merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyhead_actions.nms import soft_nms
from polyhead_actions.proposals import Score, class_means, proposals

__all__ = ["Decoder", "Found"]

Floats = NDArray[np.floating]


class Found(NamedTuple):
    """The detections of a sequence or a video, best first."""

    segments: Floats
    """(P, 2), s."""
    scores: Floats
    """(P,): how likely something happens there, whatever it is."""
    labels: NDArray[np.int64]
    """(P, k): the likeliest classes, best first."""
    weights: Floats
    """(P, k): their probabilities."""

    def take(self, rows: Any) -> Found:
        """Return some of them."""
        return Found(*(part[rows] for part in self))

    @classmethod
    def join(cls, parts: Sequence[Found]) -> Found:
        """Return the detections of several sequences of a video as one."""
        return cls(*(np.concatenate(column) for column in zip(*parts, strict=True)))


@dataclass(frozen=True)
class Decoder:
    """How maps become detections."""

    score: Score = "all"
    alpha: float = 0.4
    keep: int = 100
    class_top: int = 2

    def __call__(self, prediction: Mapping[str, Any], batch: Mapping[str, Any]) -> list[Found]:
        """Return the detections of each sequence of a batch, in seconds, cut to its video.

        ``prediction`` has the maps of a model, see `bmn.Maps`, or, of a baseline, ``segments`` (B, P, 2) s,
        ``scores`` (B, P), below 0 where there is none, and ``labels`` (B, P).
        """
        arrays = {name: np.asarray(value, dtype=np.float64) for name, value in prediction.items()}
        found = []
        for row, seconds in enumerate(np.asarray(batch["seconds"]).tolist()):
            one = self._finished(arrays, row) if "segments" in arrays else self._decoded(arrays, batch, row)
            cut = one._replace(segments=np.clip(one.segments, 0, seconds))
            found.append(cut.take(cut.segments[:, 1] > cut.segments[:, 0]))
        return found

    def _finished(self, arrays: Mapping[str, Floats], row: int) -> Found:
        there = arrays["scores"][row] >= 0
        labels = arrays["labels"][row][there].astype(np.int64)[:, None]
        return Found(
            arrays["segments"][row][there], arrays["scores"][row][there], labels, np.ones(labels.shape, dtype=float)
        )

    def _decoded(self, arrays: Mapping[str, Floats], batch: Mapping[str, Any], row: int) -> Found:
        begin, step = np.asarray(batch["time"])[row].tolist()
        steps = int(np.asarray(batch["mask"])[row].sum())
        maps = (arrays[name][row] for name in ("start", "end", "conf"))
        segments, scores = proposals(*maps, steps=steps, score=self.score, keep=self.keep, alpha=self.alpha)
        given = np.asarray(batch["class_scores"])[row] if "class_scores" in batch else None
        labels, weights = self._classes(arrays["classes"][row], segments, given)
        return Found(begin + segments * step, scores, labels, weights)

    def _classes(self, logits: Floats, segments: Floats, given: Floats | None) -> tuple[NDArray[np.int64], Floats]:
        """Return the likeliest classes of proposals; without classes all are of class 0."""
        count = len(segments)
        if given is not None:
            best = np.argsort(-given, kind="stable")[: self.class_top]
            return np.tile(best, (count, 1)), np.tile(given[best], (count, 1))
        if not len(logits):
            return np.zeros((count, 1), dtype=np.int64), np.ones((count, 1))
        means = class_means(logits, segments)
        shifted = np.exp(means - means.max(1, keepdims=True, initial=-np.inf)) if count else means
        shares = shifted / shifted.sum(1, keepdims=True)
        best = np.argsort(-shares, axis=1, kind="stable")[:, : self.class_top]
        return best, np.take_along_axis(shares, best, 1)

    def merge(self, parts: Sequence[Found], seconds: float) -> Found:
        """Return the detections of a video from those of its windows, which overlap: suppressed once more."""
        if len(parts) == 1:
            return parts[0]
        joined = Found.join(parts)
        taken, scores = soft_nms(joined.segments / max(seconds, 1e-9), joined.scores, alpha=self.alpha, keep=self.keep)
        return joined.take(taken)._replace(scores=scores)
