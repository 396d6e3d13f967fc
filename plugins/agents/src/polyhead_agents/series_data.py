"""Labelled series: UEA's `.ts` files, and a generated set."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from polyhead.errors import DataError
from polyhead.protocols import Batch, Source, Split
from polyhead_agents import members
from polyhead_agents.settings import SeriesSettings

__all__ = ["SeriesData", "open_made_up_tones", "open_uea", "read_ts"]

MAX_PROBLEMS = 10
MAX_LENGTH = 100_000
VALIDATE_EVERY = 5
"""Of the training series of each class one in five is for validation."""


@dataclass(frozen=True, eq=False)
class Series:
    """Series with their classes."""

    values: list[NDArray[np.float32]]
    """(length, channels) each."""
    classes: NDArray[np.int64]
    """(S,): indices into the names."""


class SeriesSource:
    """Series, padded behind their ends to the longest of the whole dataset."""

    def __init__(self, series: Series, chosen: NDArray[np.int64], length: int) -> None:
        """Take the series ``chosen``."""
        self.series, self.chosen, self.length = series, chosen, length

    def __len__(self) -> int:
        """Return the number of series."""
        return len(self.chosen)

    def fetch(self, indices: Sequence[int], *, seed: int = 0, epoch: int = 0) -> Batch:  # noqa: ARG002  # not random
        """Return ``x`` float32 (B, N, channels), ``mask`` bool (B, N), ``label`` int64 (B,)."""
        at = self.chosen[np.asarray(indices, dtype=np.int64)]
        channels = self.series.values[0].shape[1]
        x = np.zeros((len(at), self.length, channels), dtype=np.float32)
        mask = np.zeros((len(at), self.length), dtype=bool)
        for row, number in enumerate(at):
            values = self.series.values[number]
            x[row, : len(values)], mask[row, : len(values)] = values, True
        return {
            "x": torch.from_numpy(x),
            "mask": torch.from_numpy(mask),
            "label": torch.from_numpy(self.series.classes[at]),
        }


@dataclass(frozen=True, eq=False)
class SeriesData:
    """Training and test series as the archive splits them; every fifth training series of a class is for validation.

    Raises:
        DataError: a class has too few series to train on and to validate.
    """

    train: Series
    test: Series
    classes: tuple[str, ...]
    name: str
    provenance: str
    licence: str

    def __post_init__(self) -> None:
        """Check that every class can be learned."""
        counts = np.bincount(self.train.classes, minlength=len(self.classes))
        few = [name for name, count in zip(self.classes, counts, strict=True) if count < 2]
        if few:
            raise DataError(f"{self.name}: fewer than 2 training series of class {', '.join(few[:MAX_PROBLEMS])}.")

    @property
    def channels(self) -> int:
        """Readings at a time."""
        return self.train.values[0].shape[1]

    @cached_property
    def length(self) -> int:
        """The longest series of training and test."""
        return max(len(values) for part in (self.train, self.test) for values in part.values)

    @cached_property
    def _validation(self) -> NDArray[np.bool_]:
        held = np.zeros(len(self.train.classes), dtype=bool)
        for number in range(len(self.classes)):
            own = np.flatnonzero(self.train.classes == number)
            held[own[VALIDATE_EVERY - 1 :: VALIDATE_EVERY] if len(own) >= VALIDATE_EVERY else own[-1:]] = True
        return held

    def source(self, split: Split) -> Source:
        """Return the series of a split."""
        if split == "test":
            return SeriesSource(self.test, np.arange(len(self.test.classes)), self.length)
        held = self._validation
        return SeriesSource(self.train, np.flatnonzero(held if split == "validation" else ~held), self.length)

    def summary(self) -> Mapping[str, Any]:
        """Return sizes."""
        lengths = [len(values) for part in (self.train, self.test) for values in part.values]
        return {
            "training series": int((~self._validation).sum()),
            "validation series": int(self._validation.sum()),
            "test series": len(self.test.classes),
            "channels": self.channels,
            "shortest": min(lengths),
            "longest": max(lengths),
            "classes": len(self.classes),
            "largest class, share of the test": round(
                float(np.bincount(self.test.classes).max() / len(self.test.classes)), 3
            ),
        }

    def fingerprint(self) -> str:
        """Return a digest of all series."""
        digest = hashlib.sha256(repr(self.classes).encode())
        for part in (self.train, self.test):
            digest.update(part.classes.tobytes())
            for values in part.values:
                digest.update(str(values.shape).encode() + values.tobytes())
        return digest.hexdigest()


def open_uea(path: Path | None, settings: SeriesSettings) -> SeriesData:
    """Open ``NAME_TRAIN.ts`` and ``NAME_TEST.ts``, in a folder, a zip or a wheel; ``settings.series`` is the name.

    Raises:
        DataError: there are no such files or several, or they cannot be read; names file, line and mend.
    """
    place = Path(path or "")
    names = members.find_names(place, "_TRAIN.ts")
    if not names:
        place = members.archive_in(place)
        names = members.find_names(place, "_TRAIN.ts")
    found = {Path(name).name.removesuffix("_TRAIN.ts"): name for name in names}
    wanted = settings.series or (next(iter(found)) if len(found) == 1 else "")
    if wanted not in found:
        has = ", ".join(list(found)[:MAX_PROBLEMS]) or "none"
        which = f'"{wanted}" is not there' if wanted else "give one by --series"
        raise DataError(f"{place}: files ending in _TRAIN.ts: {has}; {which}.")
    train_name = found[wanted]
    test_name = train_name.removesuffix("_TRAIN.ts") + "_TEST.ts"
    if test_name not in members.find_names(place, "_TEST.ts"):
        raise DataError(f"{place} has {train_name} and no {Path(test_name).name}. Put it beside.")
    parts, names_of_classes = [], None
    for name in (train_name, test_name):
        series, classes = read_ts(members.read_text(place, name), Path(name).name, names_of_classes)
        names_of_classes = classes
        parts.append(series)
    if names_of_classes is None or parts[0].values[0].shape[1] != parts[1].values[0].shape[1]:
        raise DataError(f"{wanted}: training and test series have different channels.")
    return SeriesData(parts[0], parts[1], names_of_classes, wanted, f"{wanted}, of {place.name}.", "that of the files")


def read_ts(text: str, name: str, classes: tuple[str, ...] | None = None) -> tuple[Series, tuple[str, ...]]:
    """Read a `.ts` file: a header of ``@`` lines, then a series a line, channels divided by ``:``, the class last.

    Missing readings, ``?`` or ``NaN``, are filled by a line between their neighbours.

    Args:
        text: the file.
        name: what messages call it.
        classes: those of the training file, if this is the test; else those that the header names.

    Raises:
        DataError: no header, no series, or lines that cannot be read: up to ten of them.
    """
    head, marker, body = text.partition("@data")
    if not marker:
        raise DataError(f"{name} has no @data line: it is no .ts file.")
    stated: tuple[str, ...] = ()
    for line in head.lower().splitlines():
        if line.startswith("@timestamps") and "true" in line:
            raise DataError(f"{name} has time stamps, which are not read. Write it with @timeStamps false.")
    for line in head.splitlines():
        words = line.split()
        if words and words[0].lower() == "@classlabel" and len(words) > 2:
            stated = tuple(words[2:])
    if not stated:
        raise DataError(f"{name} names no classes: its header has no line @classLabel true A B ….")
    known = classes or stated
    before = head.count("\n")
    values: list[NDArray[np.float32]] = []
    labels: list[int] = []
    problems: list[str] = []
    for number, line in enumerate(body.splitlines()):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            *channels, label = line.strip().split(":")
            if label not in known:
                raise ValueError(f'class "{label}" is none of {", ".join(known)}')
            values.append(_channels(channels))
            labels.append(known.index(label))
        except ValueError as error:
            problems.append(f"line {before + number + 1}: {error}")
    if problems:
        more = f"; and {len(problems) - MAX_PROBLEMS} more" if len(problems) > MAX_PROBLEMS else ""
        raise DataError(f"{name}, {'; '.join(problems[:MAX_PROBLEMS])}{more}.")
    if not values:
        raise DataError(f"{name} has no series behind @data.")
    widths = {each.shape[1] for each in values}
    if len(widths) > 1:
        raise DataError(f"{name} has series of {min(widths)} to {max(widths)} channels: all need the same.")
    return Series(values, np.asarray(labels, dtype=np.int64)), known


def _channels(texts: list[str]) -> NDArray[np.float32]:
    columns = [np.array([math.nan if x in ("?", "NaN") else float(x) for x in text.split(",")]) for text in texts]
    lengths = {len(column) for column in columns}
    if not columns or len(lengths) > 1:
        raise ValueError(f"channels of {min(lengths, default=0)} to {max(lengths, default=0)} readings")
    if max(lengths) > MAX_LENGTH:
        raise ValueError(f"{max(lengths):,} readings, more than the {MAX_LENGTH:,} that are read")
    for column in columns:
        known = np.isfinite(column)
        if np.isinf(column).any():
            raise ValueError("a reading that is infinite")
        if not known.any():
            raise ValueError("a channel without any reading")
        column[~known] = np.interp(np.flatnonzero(~known), np.flatnonzero(known), column[known])
    return np.stack(columns, 1).astype(np.float32)


TONES, CHANNELS = 6, 3
SIZES = (180, 120)
"""Generated series for training and for the test."""


def open_made_up_tones(path: Path | None, settings: SeriesSettings) -> SeriesData:  # noqa: ARG001  # embedded
    """Open the embedded set: swelling tones in three channels with noise; what differs is pitch and onset."""
    parts = []
    for part, size in enumerate(SIZES):
        values, labels = [], np.arange(size) % TONES
        for number in range(size):
            rng = np.random.default_rng((part, number))
            length = int(rng.integers(12, 31))
            time = np.arange(length)[:, None]
            kind = labels[number]
            phase = rng.uniform(0, 2 * np.pi, CHANNELS)
            tone = np.sin((0.5 + 0.25 * (kind % 3)) * time + phase) * np.exp(
                -((time / length - 0.3 - 0.4 * (kind // 3)) ** 2) * 8
            )
            values.append((tone + rng.normal(0, 0.6, (length, CHANNELS))).astype(np.float32))
        parts.append(Series(values, labels.astype(np.int64)))
    names = tuple(f"pitch {kind % 3 + 1}, {'late' if kind // 3 else 'early'}" for kind in range(TONES))
    return SeriesData(parts[0], parts[1], names, "made-up-tones", "Generated: swelling tones with noise.", "Apache-2.0")
