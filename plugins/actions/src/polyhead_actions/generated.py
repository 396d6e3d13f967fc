"""Made-up sequences in which a burst is an action only where its context goes on; a function of seed and index.

Every sequence has a class, whose context channels are a little raised all along. Bursts of that class are its actions;
bursts of other classes look the same and are none. What a burst is can be told from the whole sequence only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polyhead.protocols import Split
from polyhead_actions.data import Video, VideoData
from polyhead_actions.settings import VideoSettings

__all__ = ["CLASSES", "LENGTH", "made", "open_generated"]

VERSION = 1
"""Counts up when the same seed and index give another sequence."""
LENGTH, CLASSES, CHANNELS = 32, 8, 4
"""Steps; classes; channels of a class that show bursts, and as many that show context."""
BURST, CONTEXT = 1.5, 0.4
"""How far channels are raised; the noise has a deviation of 1."""
SHOWN = 20
"""Test sequences that `predict` answers."""
STEP_S = 1.0
_STREAMS: dict[Split, int] = {"train": 0, "validation": 1, "test": 2}


def made(seed: int, stream: int, index: int) -> tuple[NDArray[np.float32], NDArray[np.float64], int]:
    """Return features (steps, channels), the actions (n, 2) in steps, and their class.

    >>> features, actions, label = made(0, 2, 0)
    >>> features.shape, 1 <= len(actions) <= 2, 0 <= label < 8
    ((32, 64), True, True)
    """
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, stream, index])))
    features = generator.standard_normal((LENGTH, CLASSES * 2 * CHANNELS), dtype=np.float32)
    label = int(generator.integers(CLASSES))
    first = 2 * CHANNELS * label
    features[:, first + CHANNELS : first + 2 * CHANNELS] += CONTEXT
    actions: list[tuple[int, int]] = []
    wanted = int(generator.integers(1, 3))
    while len(actions) < wanted:
        start, end = _segment(generator, 3, 10)
        # One step between two actions, so that each has ends of its own.
        if all(end < other_start or start > other_end for other_start, other_end in actions):
            actions.append((start, end))
            features[start:end, first : first + CHANNELS] += BURST
    for _ in range(int(generator.integers(2, 5))):
        other = (label + int(generator.integers(1, CLASSES))) % CLASSES
        start, end = _segment(generator, 3, 8)
        features[start:end, 2 * CHANNELS * other : 2 * CHANNELS * other + CHANNELS] += BURST
    return features, np.array(sorted(actions), dtype=np.float64), label


def _segment(generator: np.random.Generator, shortest: int, longest: int) -> tuple[int, int]:
    size = int(generator.integers(shortest, longest + 1))
    start = int(generator.integers(0, LENGTH - size + 1))
    return start, start + size


def _load(seed: int, video: Video) -> NDArray[np.float32]:
    split, _, index = video.name.partition("-")
    streams: dict[str, int] = {str(name): stream for name, stream in _STREAMS.items()}
    return made(seed, streams[split], int(index))[0]


def open_generated(path: Path | None, settings: VideoSettings) -> VideoData:
    """Make the sequences; ``path`` is None. ``settings.length`` plays no part: all have 32 steps of one second."""
    del path
    sizes: dict[Split, int] = {
        "train": settings.train_videos,
        "validation": max(1, settings.test_videos // 2),
        "test": settings.test_videos,
    }
    videos: list[Video] = []
    splits: dict[Split, tuple[int, ...]] = {}
    for split, count in sizes.items():
        splits[split] = tuple(range(len(videos), len(videos) + count))
        for index in range(count):
            _, actions, label = made(settings.content_seed, _STREAMS[split], index)
            videos.append(
                Video(
                    name=f"{split}-{index}",
                    seconds=LENGTH * STEP_S,
                    rows=LENGTH,
                    step_s=STEP_S,
                    segments=actions * STEP_S,
                    labels=(label,) * len(actions),
                )
            )
    content: Sequence[object] = (VERSION, settings.content_seed)
    return VideoData(
        name="context-gated-actions",
        provenance="Made-up sequences: noise with bursts, which are actions only in the context of their class.",
        licence="Apache-2.0",
        videos=videos,
        classes=tuple(f"action {number}" for number in range(1, CLASSES + 1)),
        splits=splits,
        load=partial(_load, settings.content_seed),
        channels=CLASSES * 2 * CHANNELS,
        content=hashlib.sha256(repr(content).encode()).hexdigest(),
        length=LENGTH,
        durations=min(settings.durations or LENGTH, LENGTH),
        sampling="window",
        shown=splits["test"][:SHOWN],
        class_top=settings.class_top,
    )
