"""Recorded gaze as a dataset: displays and trials of files, split into training, validation and test."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polyhead.errors import DataError
from polyhead.protocols import Batch, Split
from polyhead_gaze.displays import Display, Trial, collate
from polyhead_gaze.scores import BEHAVIOUR, behaviour, pack
from polyhead_gaze.searchers import flips
from polyhead_gaze.settings import DisplaySettings

__all__ = ["RecordedData", "RecordedSource"]

TEST, VALIDATION = 0.2, 0.1
OFFICIAL = 0.1
"""Share of the trials in test and in validation, where single trials are split."""
FEWEST_DISPLAYS, FEWEST_TRIALS = 5, 20


class RecordedSource:
    """The trials of one split."""

    def __init__(self, data: RecordedData, chosen: Sequence[int], *, flip: bool) -> None:
        """Take trials of ``data``."""
        self._data, self._chosen, self._flip = data, list(chosen), flip

    def __len__(self) -> int:
        """Return the number of trials."""
        return len(self._chosen)

    def trials(self) -> Sequence[Trial]:
        """Return all trials."""
        return [self._data.trials[index] for index in self._chosen]

    def fetch(self, indices: Sequence[int], *, seed: int, epoch: int) -> Batch:
        """Return trials, see `polyhead_gaze.displays.collate`; training displays are turned at random."""
        import torch

        data = self._data
        chosen = [self._chosen[index] for index in indices]
        turned = flips(seed, epoch, indices) if self._flip else None
        row_of = {index: row for row, index in enumerate(chosen)}
        batch = collate(
            data.displays,
            data.trials,
            chosen,
            most_objects=data.most_objects,
            most_steps=data.longest,
            flip=(lambda index: turned(row_of[index])) if turned else None,
        )
        return {**batch, "trial": torch.as_tensor(list(indices), dtype=torch.int64)}


class RecordedData:
    """Displays and trials of files; implements ``polyhead.protocols.Data``."""

    def __init__(
        self,
        name: str,
        origin: str,
        licence: str,
        displays: Sequence[Display],
        trials: Sequence[Trial],
        aims: Mapping[int, int],
        settings: DisplaySettings,
    ) -> None:
        """Keep what was read, without the trials that are far longer than the others; split them."""
        self.name, self.licence, self.settings = name, licence, settings
        self.displays, self.aims = displays, aims
        lengths = np.array([len(trial.path) for trial in trials])
        self.left_out = 0
        if settings.longest_sd and len(trials) > 1:
            keep = lengths <= lengths.mean() + settings.longest_sd * lengths.std()
            self.left_out = int((~keep).sum())
            trials = [trial for trial, kept in zip(trials, keep, strict=True) if kept]
        self.trials = list(trials)
        self._splits = self._split()
        seen = self._splits["train"] or range(len(self.trials))
        self.most_steps = max((len(self.trials[index].path) for index in seen), default=40)
        self.longest = max((len(trial.path) for trial in self.trials), default=1)
        self.most_objects = max(len(display.boxes) for display in displays)
        self.cells = max(math.ceil(float(display.place.max())) + 1 for display in displays)
        first = displays[0].appearance
        self.appearance = "none" if first is None else "crops" if first.ndim == 4 else "features"
        self.features = first.shape[1] if first is not None and first.ndim == 2 else 0
        self.crop = first.shape[1:3] if first is not None and first.ndim == 4 else (0, 0)
        self.provenance = (
            f"{origin} {len(displays):,} displays, {len(self.trials):,} trials; "
            + (
                "tests are on displays that training has not seen."
                if settings.split == "display"
                else "single trials are split, so that tests are on displays that training has seen."
            )
            if self.trials
            else f"{origin} {len(displays):,} display{'s' * (len(displays) > 1)}, no trials."
        )

    def source(self, split: Split) -> RecordedSource:
        """Return the trials of a split."""
        return RecordedSource(self, self._splits[split], flip=split == "train" and self.settings.flip)

    def scenes(self) -> Sequence[tuple[Display, int | None, Sequence[Trial]]]:
        """Return displays with their targets and viewers, for ``predict``: of the test split where there are trials."""
        if not self.trials:
            return [(display, self.aims.get(number), ()) for number, display in enumerate(self.displays)]
        found: dict[tuple[int, int], list[Trial]] = {}
        for index in self._splits["test"] or range(len(self.trials)):
            trial = self.trials[index]
            found.setdefault((trial.display, trial.target), []).append(trial)
        return [(self.displays[display], target, viewers) for (display, target), viewers in sorted(found.items())]

    def check_trainable(self) -> None:
        """Refuse what there is too little to learn from.

        Raises:
            DataError: too few trials, or too few displays to keep some for testing.
        """
        if len(self.trials) < FEWEST_TRIALS:
            raise DataError(
                f"{self.name} has {len(self.trials)} trials, at least {FEWEST_TRIALS} are needed to train and measure. "
                "Use predict on it with a model that was fitted on others."
            )
        used = len({trial.display for trial in self.trials})
        if self.settings.split == "display" and used < FEWEST_DISPLAYS:
            raise DataError(
                f"{self.name} has trials on {used} display{'s' * (used > 1)}, and tests are to be on displays that "
                f"training has not seen: at least {FEWEST_DISPLAYS} are needed. Or split single trials: --split trial."
            )

    def summary(self) -> Mapping[str, Any]:
        """Return sizes, what viewers do, and what may be looked at twice."""
        counts = [len(display.boxes) for display in self.displays]
        found: dict[str, Any] = {
            "displays": len(self.displays),
            "objects": [min(counts), max(counts)],
            "overlapping boxes": sum(_overlaps(display) for display in self.displays),
            "appearance": self.appearance,
            "trials": len(self.trials),
        }
        if self.trials:
            paths = pack([trial.path for trial in self.trials])
            rates = behaviour(paths, np.array([trial.target for trial in self.trials])).mean(0)
            found |= {
                "left out as too long": self.left_out,
                "viewers": len({trial.viewer for trial in self.trials}),
                "split": {name: len(chosen) for name, chosen in self._splits.items()},
                "longest": self.longest,
                "behaviour": {name: round(float(rate), 4) for name, rate in zip(BEHAVIOUR, rates, strict=True)},
            }
        if degree := self.displays[0].degree_px:
            found["degrees of visual angle"] = [round(side / degree, 2) for side in self.displays[0].size]
        return found

    def fingerprint(self) -> str:
        """Return a digest of boxes, appearance and trials, and of how they are split."""
        digest = hashlib.sha256(repr((self.settings.split, self.settings.flip)).encode())
        for display in self.displays:
            digest.update(repr((display.name, display.ids, display.size)).encode())
            digest.update(display.boxes.tobytes() + display.place.tobytes())
            digest.update(b"" if display.appearance is None else display.appearance.tobytes())
        for trial in self.trials:
            digest.update(repr((trial.display, trial.target, trial.path, trial.viewer)).encode())
        return digest.hexdigest()

    def _split(self) -> dict[Split, list[int]]:
        """Return the trials of each split: displays, or trials, in an order that a digest of their names decides."""
        if self.settings.split == "display":
            names = sorted({trial.display for trial in self.trials}, key=lambda at: _digest(self.displays[at].name))
            test = max(1, round(TEST * len(names))) if len(names) > 1 else 0
            held = max(1, round(VALIDATION * len(names))) if len(names) > 2 else 0
            part = dict.fromkeys(names[:test], "test") | dict.fromkeys(names[test : test + held], "validation")
            chosen = [part.get(trial.display, "train") for trial in self.trials]
        else:
            order = sorted(range(len(self.trials)), key=lambda at: _digest(f"{at} {self.trials[at].name}"))
            share = max(1, round(OFFICIAL * len(order))) if len(order) > 2 else 0
            of = dict.fromkeys(order[:share], "test") | dict.fromkeys(order[share : 2 * share], "validation")
            chosen = [of.get(at, "train") for at in range(len(self.trials))]
        names_: tuple[Split, ...] = ("train", "validation", "test")
        return {split: [at for at, name in enumerate(chosen) if name == split] for split in names_}


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def _overlaps(display: Display) -> int:
    """Return how many pairs of boxes overlap; a fixation on both counts as on the smaller one."""
    low = np.maximum(display.boxes[:, None, :2], display.boxes[None, :, :2])
    high = np.minimum(display.boxes[:, None, 2:], display.boxes[None, :, 2:])
    overlap = (low < high).all(-1)
    return int(np.triu(overlap, 1).sum())
