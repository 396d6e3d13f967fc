"""Time two sides fairly."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

__all__ = ["Compared", "compare"]


class Compared(NamedTuple):
    """Medians of both sides, in seconds."""

    ours_s: float
    peer_s: float
    repeats: int


def compare(
    ours: Callable[[], Any], peer: Callable[[], Any], *, repeats: int = 15, warmup: int = 2, budget_s: float = 20.0
) -> Compared:
    """Run both sides in turn and return the medians of their times.

    The side that starts changes every round. Rounds end after ``repeats``, or after ``budget_s`` once there are three.

    >>> compare(lambda: None, lambda: None, repeats=5).repeats
    5
    """
    for _ in range(warmup):
        ours()
        peer()
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    start = time.perf_counter()
    for count in range(repeats):
        sides = [("ours", ours), ("peer", peer)]
        for name, side in sides if count % 2 == 0 else reversed(sides):
            begin = time.perf_counter()
            side()
            times[name].append(time.perf_counter() - begin)
        if count >= 2 and time.perf_counter() - start > budget_s:
            break
    return Compared(statistics.median(times["ours"]), statistics.median(times["peer"]), len(times["ours"]))
