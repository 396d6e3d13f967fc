"""Metrics of predicted scanpaths, with confidence intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyhead.protocols import Batch
from polyhead_gaze.displays import Floats
from polyhead_gaze.multimatch import MULTIMATCH, multimatch
from polyhead_gaze.scores import (
    BEHAVIOUR,
    behaviour,
    behaviour_delta,
    interval,
    levenshtein,
    nss,
    scanmatch,
    sequence_score,
)

__all__ = ["COLUMNS", "ScanpathMetric"]

COLUMNS = (
    "display",
    "nll",
    "tokens",
    "probability",
    "sequence_score",
    *(f"multimatch_{name}" for name in MULTIMATCH[:4]),
    "scanmatch",
    "levenshtein",
    "nss",
    *BEHAVIOUR,
    *(f"human_{name}" for name in BEHAVIOUR),
)
"""What is kept of each trial."""
_PAIRWISE = COLUMNS[4:11]
Ints = NDArray[np.int64]


class ScanpathMetric:
    """Accumulates a row of figures for each trial; implements ``polyhead.protocols.Metric``.

    A prediction is a mapping: ``paths`` (B, S, L), drawn scanpaths padded with -1, where one that is empty stands for
    none; and, of a predictor that has probabilities, ``nll`` (B,), the negative log probability of the viewer's
    scanpath and its stop in nats, and ``probability`` (B,), the sum of the probabilities of its steps.

    Figures: ``nll`` per fixation and stop; ``probability``, mean of the truth's at each step; pair scores, means over
    scanpaths, then trials; the five rates of behaviour and ``delta``. ``NAME_low`` and ``NAME_high`` are 95 % bootstrap
    intervals over displays.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._rows: list[Floats] = []

    def update(self, prediction: Any, batch: Batch) -> None:
        """Add one batch."""
        paths = np.asarray(prediction["paths"])
        if not len(paths):
            return
        human, target, display = (np.asarray(batch[name]) for name in ("fixations", "target", "display"))
        count, samples = paths.shape[:2]
        owners = np.repeat(np.arange(count), samples)
        flat = paths.reshape(count * samples, -1)
        real = (flat >= 0).any(1)
        flat, owners = flat[real], owners[real]
        pairs = _compare(flat, owners, human, batch)
        drawn = np.bincount(owners, minlength=count)

        def per_trial(values: Floats) -> Floats:
            known = np.isfinite(values)
            total = np.bincount(owners[known], values[known], count)
            number = np.bincount(owners[known], minlength=count)
            mean: Floats = np.where(number > 0, total / np.maximum(number, 1), np.nan)
            return mean

        nothing = np.full(count, np.nan)
        columns = [
            display.astype(float),
            np.asarray(prediction.get("nll", nothing), dtype=float),
            (human >= 0).sum(1) + 1.0,
            np.asarray(prediction.get("probability", nothing), dtype=float),
            *(per_trial(values) for values in pairs),
            np.where(drawn > 0, nss(flat, owners, human, np.asarray(batch["objects"])), np.nan),
            *(per_trial(values) for values in behaviour(flat, target[owners]).T),
            *behaviour(human, target).T,
        ]
        self._rows.append(np.stack(columns, -1))

    def state(self) -> list[Floats]:
        """Return what ``merge`` of another process takes."""
        return self._rows

    def merge(self, states: Sequence[Any]) -> None:
        """Replace the own state by the union of ``states``."""
        self._rows = [rows for state in states for rows in state]

    def compute(self) -> Mapping[str, float]:
        """Return the figures by name; those that are not known are left out."""
        if not self._rows:
            return {}
        rows = np.concatenate(self._rows)
        column = {name: rows[:, number] for number, name in enumerate(COLUMNS)}
        groups = column["display"].astype(np.int64)
        figures: dict[str, float] = {}
        tokens = column["tokens"]
        for name in ("nll", "probability"):
            figures[name] = float(column[name].sum() / tokens.sum())
            share = tokens.mean()
            figures |= _interval(name, column[name] / share, groups)
        for name in (*_PAIRWISE, "nss"):
            figures[name] = _mean(column[name])
            figures |= _interval(name, column[name], groups)
        model = np.array([_mean(column[name]) for name in BEHAVIOUR])
        human = np.array([_mean(column[f"human_{name}"]) for name in BEHAVIOUR])
        figures["delta"] = behaviour_delta(model, human)
        figures |= dict(zip(BEHAVIOUR, model.tolist(), strict=True))
        figures |= {f"human_{name}": float(value) for name, value in zip(BEHAVIOUR, human, strict=True)}
        return {name: value for name, value in figures.items() if np.isfinite(value)}


def _compare(flat: Ints, owners: Ints, human: Ints, batch: Batch) -> list[Floats]:
    """Return the pair scores of scanpaths with those of the viewers of their trials, in the order of `COLUMNS`."""
    truth = human[owners]
    centres, size, place = (np.asarray(batch[name], dtype=np.float64) for name in ("centres", "size", "place"))
    points = [centres[owner][path[path >= 0]] for owner, path in zip(owners, flat, strict=True)]
    seen = [of[path[path >= 0]] for of, path in zip(centres, human, strict=True)]
    similar = multimatch(points, [seen[owner] for owner in owners], size[owners])
    return [
        sequence_score(flat, truth),
        *similar.T[:4],
        scanmatch(flat, truth, place[owners]),
        levenshtein(flat, truth).astype(float),
    ]


def _mean(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def _interval(name: str, values: Floats, groups: Ints) -> dict[str, float]:
    low, high = interval(values, groups)
    return {f"{name}_low": low, f"{name}_high": high}
