"""How alike two scanpaths are, and how a viewer behaves: many pairs in one call.

Scanpaths are indices of fixated objects in rows, padded with -1 at the end; see `pack`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyhead_gaze.displays import Floats

__all__ = [
    "BEHAVIOUR",
    "behaviour",
    "behaviour_delta",
    "interval",
    "levenshtein",
    "nss",
    "pack",
    "scanmatch",
    "sequence_score",
]

Paths = NDArray[np.int64]

BEHAVIOUR = ("found", "length", "search", "refixation", "revisit")
SCANMATCH_REACH = 3.5
"""Object spacings from which on two places count as no match at all."""
RESAMPLES = 1000
_CHUNK = 2048


def pack(paths: Sequence[Sequence[int]]) -> Paths:
    """Return scanpaths as rows, padded with -1.

    >>> pack([[3, 1], [2]])
    array([[ 3,  1],
           [ 2, -1]])
    """
    rows = np.full((len(paths), max(map(len, paths), default=0)), -1, np.int64)
    for row, path in enumerate(paths):
        rows[row, : len(path)] = path
    return rows


def _lengths(paths: Paths) -> NDArray[np.int64]:
    return (paths >= 0).sum(1)


def _aligned(a: Paths, b: Paths, gain: Callable[[int], NDArray[Any]]) -> Floats:
    """Return the best score of an alignment with gaps that cost nothing, one for each pair.

    ``gain(i)`` is what fixation i of a scores with each of b, (P, Lb), and 0 in padding. Without a cost of gaps the
    step to the right is a running maximum, so that a row of the table is one operation.
    """
    best = np.zeros((len(a), b.shape[1] + 1))
    for i in range(a.shape[1]):
        best[:, 1:] = np.maximum(best[:, 1:], best[:, :-1] + gain(i))
        best = np.maximum.accumulate(best, 1)
    return best[:, -1]


def sequence_score(a: Paths, b: Paths) -> Floats:
    """Return the longest common subsequence over the longer length, one number for each pair.

    That is a Needleman-Wunsch alignment with match 1, mismatch 0 and gap 0.

    Args:
        a: scanpaths, shape (P, La), padded with -1.
        b: the others, shape (P, Lb).

    Returns:
        Shape (P,), between 0 and 1; 0 where both are empty.

    Complexity: O(P·La·Lb) time, O(P·Lb) memory.
    Source: Fang et al. 2024, arXiv:2407.13335; Yang et al. 2020, arXiv:2005.14310 (there on clusters of fixations).

    >>> sequence_score(pack([[5, 25, 25, 9, 19, 11, 0]]), pack([[5, 25, 14, 6]])).round(4).tolist()
    [0.2857]
    """
    longer = np.maximum(_lengths(a), _lengths(b))
    score: Floats = _aligned(a, b, lambda i: (a[:, i : i + 1] == b) & (b >= 0)) / np.maximum(longer, 1)
    return score


def levenshtein(a: Paths, b: Paths) -> NDArray[np.int64]:
    """Return the fewest insertions, deletions and replacements between scanpaths, one number for each pair.

    >>> levenshtein(pack([[1, 2, 3], [1]]), pack([[1, 3], [2, 1]])).tolist()
    [1, 1]
    """
    columns = np.arange(b.shape[1] + 1)
    row = np.tile(columns, (len(a), 1))
    lengths, ends = _lengths(a), _lengths(b)
    found = np.where(lengths == 0, ends, 0)
    for i in range(a.shape[1]):
        replaced = row[:, :-1] + (a[:, i : i + 1] != b)
        removed = row + 1
        removed[:, 1:] = np.minimum(removed[:, 1:], replaced)
        row = np.minimum.accumulate(removed - columns, 1) + columns
        found = np.where(lengths == i + 1, row[np.arange(len(a)), ends], found)
    return found


def scanmatch(a: Paths, b: Paths, place: Floats, *, reach: float = SCANMATCH_REACH) -> Floats:
    """Return ScanMatch scores on objects as letters, one number for each pair.

    An alignment with gap 0 in which two fixations score ``reach`` minus the distance of their objects, divided by the
    most that the longer scanpath could score.

    Args:
        a: scanpaths, shape (P, La), padded with -1.
        b: the others, shape (P, Lb).
        place: of the objects, in object spacings, shape (P, N, 2).
        reach: object spacings from which on two places do not match.

    Returns:
        Shape (P,), between 0 and 1.

    Source: Cristino et al. 2010, doi:10.3758/BRM.42.3.692. Differs: toolboxes scale differently; this is 1 for equal
    scanpaths.
    """
    rows = np.arange(len(a))[:, None]
    at_a, at_b = place[rows, np.maximum(a, 0)], place[rows, np.maximum(b, 0)]

    def gain(i: int) -> Floats:
        scores = reach - np.sqrt(((at_a[:, i : i + 1] - at_b) ** 2).sum(-1))
        return np.where((b < 0) | (a[:, i : i + 1] < 0), 0.0, scores)

    longer = np.maximum(_lengths(a), _lengths(b))
    score: Floats = _aligned(a, b, gain) / (reach * np.maximum(longer, 1))
    return score


def behaviour(paths: Paths, target: NDArray[np.int64]) -> Floats:
    """Return how each viewer behaves.

    Args:
        paths: scanpaths, shape (P, L), padded with -1; none empty.
        target: index of the target, shape (P,).

    Returns:
        Shape (P, 5), see `BEHAVIOUR`: whether the last fixation is on the target; the number of fixations; and which
        share of them begins a run on an object never seen before, goes on with a run, or returns to an object.

    Source: Fang et al. 2024, arXiv:2407.13335.

    >>> behaviour(pack([[2, 7, 7, 3, 2]]), np.array([2]))[0].tolist()
    [1.0, 5.0, 0.6, 0.2, 0.2]
    """
    parts = [_behaviour(paths[i : i + _CHUNK], target[i : i + _CHUNK]) for i in range(0, len(paths), _CHUNK)]
    return np.concatenate(parts) if parts else np.zeros((0, len(BEHAVIOUR)))


def _behaviour(paths: Paths, target: NDArray[np.int64]) -> Floats:
    real = paths >= 0
    lengths = np.maximum(real.sum(1), 1)
    stays = np.zeros_like(real)
    stays[:, 1:] = (paths[:, 1:] == paths[:, :-1]) & real[:, 1:]
    earlier = np.tril(np.ones((paths.shape[1],) * 2, bool), -1)
    seen = ((paths[:, :, None] == paths[:, None, :]) & earlier).any(-1)
    last = paths[np.arange(len(paths)), lengths - 1]
    shares = [(real & ~stays & ~seen).sum(1), stays.sum(1), (real & ~stays & seen).sum(1)]
    return np.stack([(last == target).astype(float), real.sum(1), *(share / lengths for share in shares)], -1)


def behaviour_delta(model: Floats, human: Floats) -> float:
    """Return the mean relative difference of the five rates; a rate that is 0 for people is left out.

    Args:
        model: mean rates, shape (5,).
        human: mean rates, shape (5,).

    >>> behaviour_delta(np.array([0.9, 10, 0.8, 0.2, 0.0]), np.array([0.9, 8, 0.8, 0.2, 0.0]))
    0.0625
    """
    known = human > 0
    # Rounded, so that means of the same numbers in another order are no difference.
    return round(float((np.abs(model - human)[known] / human[known]).mean()), 12) if known.any() else 0.0


def nss(paths: Paths, owners: NDArray[np.int64], human: Paths, objects: NDArray[np.bool_]) -> Floats:
    """Return normalised scanpath saliency: how much more often than others the objects fixated by people are fixated.

    All sampled scanpaths of a trial make one binary map over its objects, which is z-scored and averaged at the human
    fixations; 0 where the map is constant.

    Args:
        paths: sampled scanpaths, shape (P, L), padded with -1.
        owners: the trial that each belongs to, shape (P,).
        human: scanpaths of the trials, shape (B, T), padded with -1.
        objects: which objects there are, shape (B, N).

    Returns:
        Shape (B,).
    """
    hit = np.zeros(objects.shape)
    real = paths >= 0
    hit[np.broadcast_to(owners[:, None], paths.shape)[real], paths[real]] = 1
    count = objects.sum(1)
    mean = hit.sum(1) / count
    spread = np.sqrt(np.maximum(mean * (1 - mean), 0))
    z = (hit - mean[:, None]) / np.where(spread > 0, spread, 1)[:, None]
    z[spread == 0] = 0
    there = human >= 0
    at = np.take_along_axis(z, np.maximum(human, 0), 1) * there
    score: Floats = at.sum(1) / np.maximum(there.sum(1), 1)
    return score


def interval(values: Floats, groups: NDArray[np.int64], *, level: float = 0.95) -> tuple[float, float]:
    """Return a bootstrap interval of a mean, whole groups drawn: trials on one display are no independent ones.

    Args:
        values: shape (P,); NaN is left out.
        groups: which display each belongs to, shape (P,).
        level: of confidence.

    >>> low, high = interval(np.array([0.1, 0.3, 0.2, 0.4]), np.array([0, 0, 1, 1]))
    >>> 0.19 < low <= high < 0.31
    True
    """
    known = np.isfinite(values)
    _, index = np.unique(groups[known], return_inverse=True)
    if not len(index):
        return float("nan"), float("nan")
    sums, counts = np.bincount(index, values[known]), np.bincount(index).astype(float)
    random = np.random.Generator(np.random.PCG64(0))
    drawn = random.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), RESAMPLES)
    means = (drawn @ sums) / (drawn @ counts)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
