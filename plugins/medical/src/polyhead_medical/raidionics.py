"""Overlap, object-wise and patient-wise figures and the search for a threshold, as `raidionicsval` defines them.

Its quirks are kept: Dice is 0 where the intersection is empty, even if both masks are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

__all__ = [
    "Objects",
    "Overlap",
    "PatientWise",
    "Score",
    "best_threshold",
    "components",
    "objectwise",
    "overlap",
    "patientwise",
]

Arrays = np.ndarray[Any, Any]
_TINY = 1e-6
_MATCHED = 0.1
"""Dice above which two objects are taken for the same one."""


class Overlap(NamedTuple):
    """Of the voxels of two masks."""

    dice: float
    """2|P ∩ G| / (|P| + |G|); 0 if the intersection is empty."""
    recall: float
    precision: float
    f1: float


class Objects(NamedTuple):
    """Of the connected parts of two masks."""

    truth: int
    found: int
    pairs: tuple[tuple[int, int, float], ...]
    """(true object, found object, Dice), each counted from 1 in the order of its first voxel."""
    recall: float
    precision: float
    f1: float


class PatientWise(NamedTuple):
    """Of the patients of a fold."""

    recall: float
    precision: float
    specificity: float
    f1: float
    accuracy: float
    balanced_accuracy: float


class Score(NamedTuple):
    """One patient at one threshold."""

    threshold: float
    dice: float
    truth_ml: float
    found_ml: float


def overlap(found: Arrays, truth: Arrays) -> Overlap:
    """Return how well two bool masks of one shape agree."""
    both = int(np.count_nonzero(found & truth))
    extra, missed = int(np.count_nonzero(found)) - both, int(np.count_nonzero(truth)) - both
    return Overlap(
        dice=2 * both / (2 * both + extra + missed) if both else 0.0,
        recall=both / (both + missed + _TINY),
        precision=both / (both + extra + _TINY),
        f1=2 * both / (2 * both + extra + missed + _TINY),
    )


def components(mask: Arrays, smallest: int = 0) -> tuple[Arrays, int]:
    """Return the connected parts (by faces) of a bool mask, numbered from 1, and how many there are.

    Parts of fewer than ``smallest`` voxels are dropped, and the others numbered anew.
    """
    from scipy import ndimage

    parts, count = ndimage.label(mask)
    if count and smallest:
        sizes = np.bincount(parts.ravel(), minlength=count + 1)
        keep = sizes >= smallest
        keep[0] = False
        numbers = np.where(keep, np.cumsum(keep), 0)
        parts, count = numbers[parts], int(keep.sum())
    return parts, int(count)


def objectwise(found: Arrays, truth: Arrays, *, smallest: int = 50) -> Objects:
    """Return which true objects were found: pairs that maximise the sum of their Dice, kept above 0.1.

    Args:
        found: bool.
        truth: bool, the same shape.
        smallest: objects of fewer voxels are dropped on both sides.

    Without objects on both sides recall, precision and F1 are 1; on one side, 0 for what is missing, 1 for the other
    and 0.5 for F1. Objects on both sides, none of which match, have recall 0, precision 1 and F1 0, as published.
    """
    from scipy.optimize import linear_sum_assignment

    a, true_count = components(truth, smallest)
    b, found_count = components(found, smallest)
    if not true_count or not found_count:
        empty = not true_count and not found_count
        recall = 1.0 if not true_count else 0.0
        precision = 1.0 if not found_count else 0.0
        return Objects(true_count, found_count, (), recall, precision, 1.0 if empty else 0.5)
    joint = np.zeros((true_count + 1, found_count + 1))
    np.add.at(joint, (a.ravel(), b.ravel()), 1)
    sizes = joint.sum(1)[1:, None] + joint.sum(0)[None, 1:]
    dice = 2 * joint[1:, 1:] / sizes
    rows, columns = linear_sum_assignment(dice, maximize=True)
    pairs = tuple(
        (int(i) + 1, int(j) + 1, float(dice[i, j])) for i, j in zip(rows, columns, strict=True) if dice[i, j] > _MATCHED
    )
    if not pairs:
        return Objects(true_count, found_count, (), 0.0, 1.0, 0.0)
    recall, precision = len(pairs) / true_count, len(pairs) / found_count
    return Objects(true_count, found_count, pairs, recall, precision, 2 * recall * precision / (recall + precision))


def patientwise(
    scores: Sequence[Score],
    *,
    overlap: float,
    condition: Literal["All", "Positive", "TP"] = "All",
    smallest_ml: float = 0.0,
) -> PatientWise:
    """Return detection figures over patients.

    Args:
        scores: one of each patient, at one threshold.
        overlap: the Dice above which a tumour counts as found; for "TP" only.
        condition: "All": found if anything was marked; "Positive": if more than ``smallest_ml`` was; "TP": if Dice is
            above ``overlap``.
        smallest_ml: what was marked is taken for nothing up to this volume, but for "All".
    """
    hit = false = missed = right = 0
    for score in scores:
        marked = score.found_ml > (0.0 if condition == "All" else smallest_ml)
        if score.truth_ml > 0:
            seen = score.dice > overlap if condition == "TP" else marked
            hit, missed = hit + seen, missed + (not seen)
        else:
            false, right = false + marked, right + (not marked)
    recall = hit / (hit + missed + _TINY)
    precision = hit / (hit + false + _TINY)
    specificity = right / (right + false + _TINY) if right + false else 1.0
    f1 = 2 * hit / (2 * hit + false + missed + _TINY)
    accuracy = (hit + right) / max(len(scores), 1)
    return PatientWise(recall, precision, specificity, f1, accuracy, (recall + specificity) / 2)


def best_threshold(
    scores: Mapping[str, Sequence[Score]], *, overlaps: Sequence[float] = (0.0, 0.1, 0.25, 0.5)
) -> tuple[float, float]:
    """Return (overlap, threshold) at which found tumours are best and most are found.

    Over all thresholds of the scores and all overlaps o: the largest (mean Dice of the patients with Dice of at least
    o + their share) / 2.
    Dice is rounded to three digits where it is compared, as in the library's tables.

    Args:
        scores: those of each patient at all thresholds.
        overlaps: what is tried.
    """
    thresholds = sorted({score.threshold for each in scores.values() for score in each})
    best, chosen = -math.inf, (overlaps[0], thresholds[0])
    for least in overlaps:
        for threshold in thresholds:
            dice = [score.dice for each in scores.values() for score in each if score.threshold == threshold]
            found = [value for value in dice if round(value, 3) >= least]
            value = (float(np.mean(found)) + len(found) / len(dice)) / 2 if found else -math.inf
            if value > best:
                best, chosen = value, (least, threshold)
    return chosen
