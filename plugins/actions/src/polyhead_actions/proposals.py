"""From the maps of a sequence to scored segments."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from polyhead_actions.nms import soft_nms

__all__ = ["Score", "boundaries", "candidates", "class_means", "proposals"]

Floats = NDArray[np.floating]
Score = Literal["all", "conf", "boundary"]
"""What a proposal's score is the product of: start, end and both confidences; the confidences; or start and end."""


def boundaries(probability: Floats) -> NDArray[np.bool_]:
    """Return which steps may be a boundary: above half of the largest probability, or a strict local peak.

    >>> boundaries(np.array([0.1, 0.3, 0.2, 0.9, 0.8])).tolist()
    [False, True, False, True, True]
    """
    chosen: NDArray[np.bool_] = probability > 0.5 * probability.max(initial=0.0)
    chosen[1:-1] |= (probability[1:-1] > probability[:-2]) & (probability[1:-1] > probability[2:])
    return chosen


def candidates(
    start: Floats, end: Floats, conf: Floats, *, steps: int | None = None, score: Score = "all"
) -> tuple[Floats, Floats]:
    """Return the proposals between every possible start and every possible end.

    The first step may always be a start, the last one an end.

    Args:
        start: (T,) probabilities.
        end: (T,) probabilities.
        conf: (2, D, T).
        steps: how many steps are no padding; None for all.
        score: what the score is the product of.

    Returns:
        tuple[Floats, Floats]: segments (P, 2) in steps, ordered by duration and start, and scores (P,).
    """
    steps = len(start) if steps is None else steps
    if steps == 0:
        return np.zeros((0, 2)), np.zeros(0)
    may_start, may_end = boundaries(start[:steps]), boundaries(end[:steps])
    may_start[0] = may_end[-1] = True
    durations = min(conf.shape[1], steps)
    lengths, firsts = np.meshgrid(np.arange(durations), np.arange(steps), indexing="ij")
    inside = firsts + lengths < steps
    duration, first = np.nonzero(inside & may_start[firsts] & may_end[np.minimum(firsts + lengths, steps - 1)])
    last = first + duration
    scores = np.ones(len(first), dtype=conf.dtype)
    if score != "conf":
        scores = scores * start[first] * end[last]
    if score != "boundary":
        scores = scores * conf[0, duration, first] * conf[1, duration, first]
    return np.stack([first, last + 1], -1).astype(np.float64), scores


def proposals(
    start: Floats, end: Floats, conf: Floats, *, steps: int, score: Score, keep: int, alpha: float = 0.4
) -> tuple[Floats, Floats]:
    """Return the best candidates after Soft-NMS: segments (P, 2) in steps, and scores (P,), best first."""
    segments, scores = candidates(start, end, conf, steps=steps, score=score)
    chosen, lowered = soft_nms(segments / max(steps, 1), scores, alpha=alpha, keep=keep)
    return segments[chosen], lowered


def class_means(logits: Floats, segments: Floats) -> Floats:
    """Return the mean of logits (K, T) over segments (P, 2) in steps, fractions of a step included: (P, K)."""
    steps = logits.shape[1]
    summed = np.concatenate([np.zeros((len(logits), 1)), np.cumsum(logits, 1, dtype=np.float64)], 1)
    at = np.clip(segments, 0, steps)
    whole = np.minimum(np.floor(at).astype(np.int64), max(steps - 1, 0))
    ends = summed[:, whole] + (at - whole) * np.asarray(logits)[:, whole]
    width = np.maximum(at[:, 1] - at[:, 0], 1e-9)
    means: Floats = ((ends[..., 1] - ends[..., 0]) / width).T
    return means
