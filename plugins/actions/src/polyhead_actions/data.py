"""Videos in memory or on disk, cut into sequences of one length: what the formats make and the task learns from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from polyhead.errors import DataError
from polyhead.protocols import Batch, Split

__all__ = ["NO_LABEL", "Sequences", "Video", "VideoData", "Window", "resized"]

Floats = NDArray[np.floating]

NO_LABEL = -1
"""Stands for an action that is not there, in padded rows."""
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Video:
    """A video, or any other signal: where its features are and what happens in it."""

    name: str
    seconds: float
    """How long it is."""
    rows: int
    """Rows of its features."""
    step_s: float
    """Seconds from row to row."""
    first_s: float = 0.0
    """When the first row begins."""
    segments: Floats = field(default_factory=lambda: np.zeros((0, 2)))
    """(n, 2), s."""
    labels: tuple[int, ...] = ()
    """(n,), positions in ``VideoData.classes``."""


class Window(NamedTuple):
    """A sequence: a piece of a video, or all of it."""

    video: int
    first: int
    """Its first row."""
    rows: int
    number: int
    """Which window of its video this is."""
    windows: int
    """How many its video has."""


@dataclass(frozen=True, eq=False)
class VideoData:
    """Videos with features of one width, split for training; implements ``polyhead.protocols.Data``."""

    name: str
    provenance: str
    licence: str
    videos: Sequence[Video]
    classes: tuple[str, ...]
    splits: Mapping[Split, tuple[int, ...]]
    """Positions in ``videos``."""
    load: Callable[[Video], Floats]
    """Returns the features of a video, (rows, channels), float32 and finite."""
    channels: int
    content: str
    """A digest of the features."""
    length: int = 100
    durations: int = 100
    sampling: Literal["rescale", "window"] = "rescale"
    overlap: float = 0.5
    least_inside: float = 0.9
    shown: tuple[int, ...] | None = None
    """The videos that `predict` looks at unless told otherwise; None for all."""
    class_scores: Mapping[str, Floats] = field(default_factory=dict)
    """Scores (classes,) of whole videos, by name."""
    class_top: int = 2
    backbone: str = ""
    """What made the features, if known."""
    timing: tuple[float, float] = (0.0, 0.0)
    """fps and stride of the features, if known."""
    notes: tuple[str, ...] = ()
    """What a reader chose or mended, one sentence each."""

    def windows(self, videos: Sequence[int]) -> list[Window]:
        """Return the sequences of some videos."""
        found = []
        for video in videos:
            rows = self.videos[video].rows
            if self.sampling == "rescale" or rows <= self.length:
                found.append(Window(video, 0, rows, 0, 1))
                continue
            hop = max(1, round(self.length * (1 - self.overlap)))
            firsts = list(range(0, rows - self.length, hop))
            firsts.append(rows - self.length)
            found += [Window(video, first, self.length, number, len(firsts)) for number, first in enumerate(firsts)]
        return found

    def source(self, split: Split) -> Sequences:
        """Return the sequences of a split.

        Raises:
            DataError: it has none.
        """
        if not self.splits[split]:
            parts = ", ".join(f"{name}: {len(self.splits[name])}" for name in SPLITS)
            raise DataError(
                f"{self.name} has no {split} videos ({parts}). Give videos of other subsets in the annotations; "
                "training and testing (or validation) are needed."
            )
        return Sequences(self, self.splits[split])

    def chosen(self, split: Split | Literal["all"]) -> Sequences:
        """Return the sequences that `predict` looks at."""
        if split != "all":
            return self.source(split)
        return Sequences(self, tuple(range(len(self.videos))) if self.shown is None else self.shown)

    @cached_property
    def most_actions(self) -> int:
        """The most actions of a video, at least 1: the width of the padded tables."""
        return max([1, *(len(video.labels) for video in self.videos)])

    def normaliser(self, most: int = 1000) -> tuple[Floats, Floats]:
        """Return mean and deviation (channels,) of the features of the training videos, of at most ``most`` of them."""
        train = self.splits["train"]
        total, squares, count = np.zeros(self.channels), np.zeros(self.channels), 0
        for video in train[:: max(1, len(train) // most)]:
            rows = self.load(self.videos[video]).astype(np.float64)
            total, squares, count = total + rows.sum(0), squares + np.square(rows).sum(0), count + len(rows)
        mean = total / max(count, 1)
        std = np.sqrt(np.maximum(squares / max(count, 1) - np.square(mean), 0))
        # A channel that never changes says nothing; dividing by 1 keeps it at 0.
        return mean, np.where(std > 1e-8, std, 1.0)

    def summary(self) -> Mapping[str, Any]:
        """Return sizes, lengths and what happens how often; reads all features."""
        for video in self.videos:
            self.load(video)
        seconds = [video.seconds for video in self.videos]
        widths = [float(end - start) for video in self.videos for start, end in video.segments]
        counts = dict.fromkeys(self.classes, 0)
        for video in self.videos:
            for label in video.labels:
                counts[self.classes[label]] += 1
        return {
            "videos": {name: len(self.splits[name]) for name in SPLITS},
            "all videos": len(self.videos),
            "classes": len(self.classes),
            "actions": len(widths),
            "actions by class": dict(sorted(counts.items(), key=lambda item: -item[1])[:10]),
            "channels": self.channels,
            "seconds": [min(seconds), max(seconds)],
            "action seconds": [min(widths), max(widths)] if widths else [],
            "sampling": self.sampling,
            "length": self.length,
            "durations": self.durations,
            "step_s": next(self.step_s(video) for video in (min(self.videos, key=self.step_s),)),
            "backbone": self.backbone or None,
            "notes": list(self.notes),
        }

    def step_s(self, video: Video) -> float:
        """Return the seconds of a step of a sequence."""
        rescaled = self.sampling == "rescale"
        return video.rows * video.step_s / self.length if rescaled else video.step_s

    def fingerprint(self) -> str:
        """Return a digest of features, annotations, splits and everything that decides the sequences."""
        digest = hashlib.sha256(self.content.encode())
        rule = (self.classes, dict(self.splits), self.length, self.durations, self.sampling, self.overlap)
        digest.update(repr((rule, self.least_inside, self.class_top)).encode())
        for video in self.videos:
            digest.update(repr((video.name, video.seconds, video.rows, video.step_s, video.first_s)).encode())
            digest.update(repr((video.labels, np.asarray(video.segments).tolist())).encode())
        for name in sorted(self.class_scores):
            digest.update(repr((name, self.class_scores[name].tolist())).encode())
        return digest.hexdigest()


class Sequences:
    """The sequences of some videos. A batch of them has

    - ``features`` (B, C, T), ``mask`` (B, T) True = no padding,
    - ``segments`` (B, M, 2) in steps and ``labels`` (B, M), the actions that lie in the sequence, -1 = none,
    - ``time`` (B, 2): when step 0 begins and how long a step is, s,
    - ``video``, ``window``, ``windows`` (B,): position of the video, number of the sequence in it, and of how many,
    - ``truth`` (B, M, 2) s and ``truth_labels`` (B, M): all actions of the video, and ``seconds`` (B,), its length,
    - ``class_scores`` (B, K), where the data have them.
    """

    def __init__(self, data: VideoData, videos: Sequence[int]) -> None:
        """Cut videos into sequences."""
        self.data = data
        self.windows = data.windows(videos)

    def __len__(self) -> int:
        """Return the number of sequences."""
        return len(self.windows)

    def fetch(self, indices: Sequence[int], *, seed: int, epoch: int) -> Batch:
        """Return some sequences as one batch; nothing in it is random."""
        del seed, epoch
        data, most = self.data, self.data.most_actions
        chosen = [self.windows[index] for index in indices]
        size, length = len(chosen), data.length
        features = np.zeros((size, data.channels, length), dtype=np.float32)
        mask = np.zeros((size, length), dtype=bool)
        time = np.zeros((size, 2))
        segments, truth = np.zeros((size, most, 2), dtype=np.float32), np.zeros((size, most, 2))
        labels, truth_labels = (np.full((size, most), NO_LABEL) for _ in range(2))
        for row, window in enumerate(chosen):
            video = data.videos[window.video]
            piece = data.load(video)[window.first : window.first + window.rows]
            if data.sampling == "rescale":
                piece = resized(piece, length)
            features[row, :, : len(piece)], mask[row, : len(piece)] = piece.T, True
            step = data.step_s(video)
            time[row] = video.first_s + window.first * video.step_s, step
            inside, kept = self._inside(video, time[row, 0], step, len(piece))
            segments[row, : len(kept)], labels[row, : len(kept)] = inside, np.array(video.labels, dtype=np.int64)[kept]
            truth[row, : len(video.labels)], truth_labels[row, : len(video.labels)] = video.segments, video.labels
        batch = {
            "features": features,
            "mask": mask,
            "segments": segments,
            "labels": labels,
            "time": time,
            "truth": truth,
            "truth_labels": truth_labels,
            "seconds": np.array([data.videos[window.video].seconds for window in chosen], dtype=np.float64),
        }
        for name in ("video", "number", "windows"):
            batch["window" if name == "number" else name] = np.array(
                [getattr(window, name) for window in chosen], dtype=np.int64
            )
        if data.class_scores:
            none = np.zeros(len(data.classes))
            rows = [data.class_scores.get(data.videos[window.video].name, none) for window in chosen]
            batch["class_scores"] = np.array(rows, dtype=np.float64).reshape(size, len(data.classes))
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in batch.items()}

    def _inside(self, video: Video, begin: float, step: float, steps: int) -> tuple[Floats, NDArray[np.int64]]:
        """Return the actions in a sequence, cut to it and in steps, and which of the video's they are."""
        if not len(video.labels):
            return np.zeros((0, 2)), np.zeros(0, dtype=np.int64)
        where = (np.asarray(video.segments, dtype=np.float64) - begin) / step
        cut = np.clip(where, 0, steps)
        share = (cut[:, 1] - cut[:, 0]) / np.maximum(where[:, 1] - where[:, 0], 1e-9)
        kept = np.flatnonzero((share >= self.data.least_inside - 1e-9) & (cut[:, 1] > cut[:, 0]))
        return cut[kept], kept


def resized(rows: Floats, length: int) -> Floats:
    """Return features (L, C) as (length, C): three points of each step, interpolated linearly, and their mean.

    >>> resized(np.arange(12.0)[:, None], 4).round(2).ravel().tolist()
    [1.0, 4.0, 7.0, 10.0]
    """
    count = len(rows)
    if count == length:
        return rows
    where = (np.arange(3 * length) + 0.5) / (3 * length) * count - 0.5
    where = np.clip(where, 0, count - 1)
    low = np.minimum(np.floor(where).astype(np.int64), max(count - 2, 0))
    high = np.minimum(low + 1, count - 1)
    share = (where - low)[:, None]
    points = rows[low] * (1 - share) + rows[high] * share
    mean: Floats = points.reshape(length, 3, -1).mean(1)
    return mean.astype(rows.dtype)
