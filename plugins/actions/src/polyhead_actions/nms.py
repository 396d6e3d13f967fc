"""Suppress proposals that overlap better ones: softly, hard, and by votes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["hard_nms", "segment_iou", "soft_nms", "vote"]

Floats = NDArray[np.floating]

_FIRST_BLOCK = 256
"""Proposals that are looked at before any other."""
_FEW = 1024
"""Proposals, up to which it costs less to look at all than to find those near."""
_TINY = 1e-300


def segment_iou(one: Floats, others: Floats) -> Floats:
    """Return the IoU of segments (..., 2) with segments (..., 2), broadcast; 0 where both are empty.

    >>> segment_iou(np.array([0.0, 2.0]), np.array([[1.0, 3.0], [4.0, 5.0]])).round(3).tolist()
    [0.333, 0.0]
    """
    overlap = np.minimum(one[..., 1], others[..., 1]) - np.maximum(one[..., 0], others[..., 0])
    overlap = np.maximum(overlap, 0.0)
    union = (one[..., 1] - one[..., 0]) + (others[..., 1] - others[..., 0]) - overlap
    iou: Floats = np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)
    return iou


def soft_nms(
    segments: Floats,
    scores: Floats,
    *,
    alpha: float = 0.4,
    low: float = 0.5,
    high: float = 0.9,
    keep: int | None = 100,
    least: float = 0.0,
) -> tuple[NDArray[np.int64], Floats]:
    """Take the best proposal again and again, and each time lower the scores of those that overlap it.

    A score is multiplied by exp(-IoU² / alpha) where the IoU is above ``low + (high - low) * width``, with the width
    of the chosen proposal. ``low = high = 0`` is the plain Gaussian form, ``alpha = 0`` hard suppression.

    Args:
        segments: (P, 2), starts and ends; in [0, 1] of a video for the default thresholds.
        scores: (P,), not negative.
        alpha: how softly.
        low: threshold for a proposal of no width.
        high: threshold for one of width 1.
        keep: how many to take; None for all.
        least: a score below which a proposal is not taken.

    Returns:
        tuple[NDArray[np.int64], Floats]: what was taken, best first, and the lowered scores.

    Complexity: O(keep · P) at worst. Proposals whose score cannot win yet are not looked at, so that a few of many
        cost little more than those few.
    Source: Bodla et al. 2017, arXiv:1704.04503; the width in the threshold is that of Lin et al. 2018 (BSN).
    """
    count = len(scores)
    wanted = count if keep is None else min(keep, count)
    order = np.argsort(-scores, kind="stable")
    all_starts, all_ends = (segments[order, side].astype(np.float64) for side in (0, 1))
    all_scores = scores[order].astype(np.float64)
    taken = np.empty(wanted, dtype=np.int64)
    lowered = np.empty(wanted)
    # What was looked at, ordered by start: positions in `order`, with scores as they are now. The rest has its first
    # scores, none above that of position `seen`.
    ids = np.empty(0, dtype=np.int64)
    starts = ends = now = np.empty(0)
    seen = gone = number = 0
    while number < wanted:
        best = int(now.argmax()) if len(now) else -1
        if seen < count and (best < 0 or now[best] < all_scores[seen]):
            more = slice(seen, min(count, seen + max(_FIRST_BLOCK, seen)))
            fresh = all_scores[more].copy()
            block = (all_starts[more], all_ends[more])
            for chosen in taken[:number]:
                _lower(all_starts[chosen], all_ends[chosen], *block, fresh, alpha, low, high)
            alive = ~(now < 0)  # NaN stays, for the caller to find
            ids = np.concatenate([ids[alive], np.arange(more.start, more.stop)])
            pairs = zip((starts, ends, now), (*block, fresh), strict=True)
            columns = [np.concatenate([old[alive], new]) for old, new in pairs]
            by_start = np.argsort(columns[0], kind="stable")
            ids = ids[by_start]
            starts, ends, now = (column[by_start] for column in columns)
            seen, gone = more.stop, 0
            continue
        if now[best] < least:
            break
        start, end = starts[best], ends[best]
        taken[number], lowered[number] = ids[best], now[best]
        number += 1
        # Without a length it overlaps nothing any more.
        ends[best], now[best] = start, -1.0
        near: Any = slice(None)
        if len(now) > _FEW:
            # Only what starts near it can overlap it enough.
            width, threshold = end - start, max(low + (high - low) * (end - start), 1e-12)
            first = starts.searchsorted(start - width * (1 / threshold - 1) - 1e-9)
            last = starts.searchsorted(start + width * (1 - min(threshold, 1.0)) + 1e-9, side="right")
            near = slice(first, last)
        _lower(start, end, starts[near], ends[near], now[near], alpha, low, high)
        gone += 1
        if 2 * gone > len(now):
            alive = ~(now < 0)  # NaN stays, for the caller to find
            ids = ids[alive]
            starts, ends, now = (part[alive] for part in (starts, ends, now))
            gone = 0
    return order[taken[:number]], lowered[:number]


def _lower(
    start: float,
    end: float,
    starts: Floats,
    ends: Floats,
    scores: Floats,
    alpha: float,
    low: float,
    high: float,
) -> None:
    """Lower, in place, the scores of those that overlap a chosen proposal."""
    width = end - start
    overlap = np.minimum(ends, end)
    overlap -= np.maximum(starts, start)
    # In the order of the released code: on a grid, IoUs equal the threshold up to rounding.
    union = width - overlap
    union += ends
    union -= starts
    # Two segments of no width at one place: 0 / 0 is not above any threshold.
    overlap /= np.maximum(union, _TINY)
    hit = (overlap > max(low + (high - low) * width, 0.0)).nonzero()[0]
    if len(hit):
        scores[hit] *= np.exp(-np.square(overlap[hit]) / alpha) if alpha > 0 else 0.0


def hard_nms(segments: Floats, scores: Floats, *, threshold: float, keep: int | None = None) -> NDArray[np.int64]:
    """Return the proposals, best first, that no better one overlaps with an IoU of ``threshold`` or more.

    Complexity: O(taken · P).
    """
    left = np.argsort(-scores, kind="stable")
    taken: list[int] = []
    while len(left) and (keep is None or len(taken) < keep):
        best, left = left[0], left[1:]
        taken.append(int(best))
        left = left[segment_iou(segments[best], segments[left]) < threshold]
    return np.array(taken, dtype=np.int64)


def vote(segments: Floats, candidates: Floats, scores: Floats, *, threshold: float) -> Floats:
    """Return each segment as the mean of the candidates that overlap it, weighed by their scores.

    Args:
        segments: (S, 2), what suppression left.
        candidates: (P, 2), what it was given.
        scores: (P,).
        threshold: least IoU of a candidate that has a vote.

    Returns:
        Floats: (S, 2); a segment without a vote stays as it is.
    """
    weights = np.where(segment_iou(segments[:, None], candidates[None]) >= threshold, scores, 0.0)
    total = weights.sum(1, keepdims=True)
    mean = weights @ candidates / np.where(total > 0, total, 1.0)
    voted: Floats = np.where(total > 0, mean, segments)
    return voted
