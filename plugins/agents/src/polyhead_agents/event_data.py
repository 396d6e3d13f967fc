"""Sequences of events: NPZ files of neural point processes, the CDNOW purchases, and a generated Hawkes process."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from polyhead.artifacts import json_bytes
from polyhead.errors import DataError
from polyhead.protocols import Batch, Source, Split
from polyhead_agents import members
from polyhead_agents.settings import EventSettings

__all__ = ["EventData", "hawkes", "open_events", "open_hawkes"]

MAX_PROBLEMS = 10
MAX_NUMBERS = 2**28
CDNOW_DAYS = 546
"""Days from the first to the last of the CDNOW file, 1 January 1997 to 30 June 1998, both included."""


@dataclass(frozen=True, eq=False)
class EventData:
    """Sequences of events, split 60/20/20 in their order.

    Raises:
        DataError: too few sequences.
    """

    intervals: list[NDArray[np.float64]]
    """Of each sequence, since the event before or the beginning; positive."""
    marks: list[NDArray[np.int64]]
    """Kinds, from 0."""
    tails: NDArray[np.float64]
    """(S,): how long nothing came behind the last event, until the end of observation; 0 where that is unknown."""
    kinds: int
    name: str
    provenance: str
    licence: str
    raised: int = 0
    """Intervals of 0 that were raised to the smallest positive one."""

    def __post_init__(self) -> None:
        """Check that every split has a sequence."""
        if len(self.intervals) < 5:
            raise DataError(f"{self.name} has {len(self.intervals)} sequences with events: at least 5 are needed.")

    @cached_property
    def longest(self) -> int:
        """Events of the longest sequence."""
        return max(len(each) for each in self.intervals)

    def chosen(self, split: Split) -> NDArray[np.int64]:
        """Return the numbers of the sequences of a split."""
        count = len(self.intervals)
        train, validation = int(0.6 * count), int(0.8 * count)
        return np.arange(count)[
            {"train": slice(train), "validation": slice(train, validation), "test": slice(validation, None)}[split]
        ]

    def source(self, split: Split) -> Source:
        """Return the sequences of a split."""
        return EventSource(self, self.chosen(split))

    def summary(self) -> Mapping[str, Any]:
        """Return sizes."""
        lengths = [len(each) for each in self.intervals]
        return {
            "sequences": len(lengths),
            "events": sum(lengths),
            "shortest": min(lengths),
            "longest": max(lengths),
            "kinds": self.kinds,
            "interval, mean": round(float(np.concatenate(self.intervals).mean()), 6),
            "intervals of 0, raised": self.raised,
        }

    def fingerprint(self) -> str:
        """Return a digest of all events."""
        digest = hashlib.sha256(json_bytes([self.kinds, [len(each) for each in self.intervals]]))
        for arrays in (self.intervals, self.marks, [self.tails]):
            for array in arrays:
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


class EventSource:
    """Sequences, padded behind their ends to the longest of the whole dataset."""

    def __init__(self, data: EventData, chosen: NDArray[np.int64]) -> None:
        """Take the sequences ``chosen``."""
        self.data, self.chosen = data, chosen

    def __len__(self) -> int:
        """Return the number of sequences."""
        return len(self.chosen)

    def fetch(self, indices: Sequence[int], *, seed: int = 0, epoch: int = 0) -> Batch:  # noqa: ARG002  # not random
        """Return ``intervals`` float32, ``marks`` int64, ``mask`` bool, each (B, L); ``tail`` float32 (B,)."""
        data, at = self.data, self.chosen[np.asarray(indices, dtype=np.int64)]
        length = data.longest
        # Padding is 1, whose logarithm is finite.
        intervals = np.ones((len(at), length), dtype=np.float32)
        marks = np.zeros((len(at), length), dtype=np.int64)
        mask = np.zeros((len(at), length), dtype=bool)
        for row, number in enumerate(at):
            own = len(data.intervals[number])
            intervals[row, :own], marks[row, :own], mask[row, :own] = data.intervals[number], data.marks[number], True
        tail = torch.from_numpy(data.tails[at].astype(np.float32))
        return {
            "intervals": torch.from_numpy(intervals),
            "marks": torch.from_numpy(marks),
            "mask": torch.from_numpy(mask),
            "tail": tail,
        }


def open_events(path: Path | None, settings: EventSettings) -> EventData:  # noqa: ARG001  # nothing to be set
    """Open an NPZ file of the point-process literature, or CDNOW's purchases (text, also in a folder, zip or wheel).

    Raises:
        DataError: no such file, or events that cannot be learned from; names them and the mend.
    """
    place = Path(path or "")
    if not place.exists():
        raise DataError(f"There is no {place}. Give an NPZ file with times, marks and masks, or CDNOW_master.txt.")
    found = sorted(place.rglob("*.npz")) if place.is_dir() else [place] * (place.suffix == ".npz")
    if len(found) == 1:
        return _read_npz(found[0])
    inner = place if found else members.archive_in(place)
    texts = members.find_names(inner, "CDNOW_master.txt")
    if len(found) > 1 or len(texts) != 1:
        raise DataError(
            f"{place} holds {len(found)} NPZ files and {len(texts)} CDNOW_master.txt, expected one. Give the file."
        )
    return _read_cdnow(members.read_text(inner, texts[0]))


def _read_npz(file: Path) -> EventData:
    name = file.name
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            missing = [key for key in ("times", "marks", "masks") if key not in arrays]
            if missing:
                raise DataError(f"{name} has no {' and no '.join(missing)}. It has {', '.join(arrays.files[:8])}.")
            sizes = [_size(arrays, key) for key in ("times", "marks", "masks")]
            if sum(sizes) > MAX_NUMBERS:
                raise DataError(f"{name} holds {sum(sizes):,} numbers, more than the {MAX_NUMBERS:,} that are read.")
            times, marks, masks = (arrays[key] for key in ("times", "marks", "masks"))
    except DataError:
        raise
    except Exception as error:  # numpy and zipfile raise errors of several kinds for damaged files
        raise DataError(f"{name} cannot be read as NPZ: {error}. Get another copy.") from error
    if times.ndim != 2 or not times.shape == marks.shape == masks.shape:
        raise DataError(
            f"{name}: times {times.shape}, marks {marks.shape} and masks {masks.shape} are not the same (S, L)."
        )
    real = masks.astype(bool)
    if (np.diff(real.astype(np.int8), axis=1) > 0).any():
        raise DataError(f"{name}: padding stands before events. Put it behind them.")
    kinds = int(marks[real].max(initial=1))
    if marks[real].min(initial=1) < 1:
        raise DataError(f"{name}: marks of events count from 1, 0 is padding; there is a {marks[real].min()}.")
    rows = [row for row in range(len(times)) if real[row].any()]
    return _events(
        [times[row][real[row]] for row in rows],
        [marks[row][real[row]].astype(np.int64) - 1 for row in rows],
        np.zeros(len(rows)),
        kinds,
        name,
        f"{name}, of the user.",
    )


def _size(arrays: Any, key: str) -> int:
    """Return the numbers in an array from its header, before it is read."""
    with arrays.zip.open(f"{key}.npy") as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, _ = read(member)
    return int(np.prod(shape, dtype=np.int64))


def _read_cdnow(text: str) -> EventData:
    """Read rows of customer, date, number, dollars: days between purchases; kinds are up to and above the median."""
    customers: dict[str, dict[int, float]] = {}
    origin = np.datetime64("1997-01-01")
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or (number == 1 and words[0] == "customer_id"):
            continue
        try:
            customer, date, _, dollars = words
            day = int((np.datetime64(f"{date[:4]}-{date[4:6]}-{date[6:]}") - origin).astype(int))
            spent = customers.setdefault(customer, {})
            spent[day] = spent.get(day, 0.0) + float(dollars)  # several on a day are one
        except ValueError as error:
            raise DataError(
                f"CDNOW_master.txt, line {number}: {error}. Expected customer, YYYYMMDD, number, dollars."
            ) from error
    again = [sorted(spent.items()) for spent in customers.values() if len(spent) > 1]
    if not again:
        raise DataError("CDNOW_master.txt has no customer who came again.")
    median = float(np.median([dollars for visits in again for _, dollars in visits]))
    days = [np.array([day for day, _ in visits], dtype=np.float64) for visits in again]
    return _events(
        [np.diff(each) for each in days],
        [np.array([dollars > median for _, dollars in visits[1:]], dtype=np.int64) for visits in again],
        np.array([CDNOW_DAYS - 1 - each[-1] for each in days]),
        2,
        "cdnow",
        f"CDNOW: days between purchases of those who came again; kinds: up to and above {median:g} dollars.",
    )


def _events(
    intervals: Sequence[NDArray[Any]],
    marks: list[NDArray[np.int64]],
    tails: NDArray[np.float64],
    kinds: int,
    name: str,
    provenance: str,
    licence: str = "that of the file",
) -> EventData:
    problems = [
        f"sequence {number}, event {int(event)}"
        for number, each in enumerate(intervals)
        for event in np.flatnonzero(~np.isfinite(each) | (each < 0))
    ]
    if problems:
        more = f"; and {len(problems) - MAX_PROBLEMS} more" if len(problems) > MAX_PROBLEMS else ""
        raise DataError(
            f"{name}: intervals that are negative or not finite: {'; '.join(problems[:MAX_PROBLEMS])}{more}."
        )
    together = np.concatenate(intervals) if intervals else np.zeros(0)
    positive = together[together > 0]
    if not len(positive):
        raise DataError(f"{name} has no events at different times.")
    least = float(positive.min())
    return EventData(
        [np.maximum(each.astype(np.float64), least) for each in intervals],
        marks,
        np.maximum(tails, 0),
        kinds,
        name,
        provenance,
        licence,
        raised=int((together == 0).sum()),
    )


BASE = np.array([0.2, 0.1])
EXCITES = np.array([[0.3, 0.4], [0.5, 0.1]])
"""[i, j]: how much an event of kind j raises the rate of kind i."""
DECAY = 1.0
END = 60.0
SEQUENCES = 500


def hawkes(seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64], float]:
    """Draw a Hawkes process of two kinds that excite each other; return intervals, kinds and the tail until 60.

    By thinning (Ogata 1981): rates fall between events, so the rate now bounds those to come.
    """
    rng = np.random.default_rng((7, seed))
    raised, time, last = np.zeros(2), 0.0, 0.0
    intervals: list[float] = []
    marks: list[int] = []
    while True:
        bound = float((BASE + raised).sum())
        wait = float(rng.exponential(1 / bound))
        time += wait
        if time > END:
            return np.array(intervals), np.array(marks, dtype=np.int64), END - last
        raised = raised * np.exp(-DECAY * wait)
        rates = BASE + raised
        drawn = rng.uniform(0, bound)
        if drawn < rates.sum():
            kind = int(drawn >= rates[0])
            raised = raised + EXCITES[:, kind]
            intervals.append(time - last)
            marks.append(kind)
            last = time


def open_hawkes(path: Path | None, settings: EventSettings) -> EventData:  # noqa: ARG001  # embedded
    """Open the embedded set: 500 sequences of the Hawkes process of `hawkes`."""
    drawn = [each for each in (hawkes(seed) for seed in range(SEQUENCES)) if len(each[0])]
    intervals, marks, tails = zip(*drawn, strict=True)
    return _events(
        intervals,
        list(marks),
        np.array(tails),
        2,
        "hawkes",
        "Generated: a Hawkes process of two kinds that excite each other.",
        "Apache-2.0",
    )
