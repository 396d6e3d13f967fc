# /// script
# dependencies = ["multimatch-gaze==0.1.3"]
# ///
"""MultiMatch of 1,000 pairs of scanpaths in one call against `multimatch-gaze`, which takes them one by one.

    .venv/bin/python -m benchmarks.run multimatch

Claim: a hundred times as fast on fixations in pixels. Both sides start from arrays of x, y and duration; the peer's
record arrays are made before the clock starts. Results are equal to 1e-9 in every row. On object centres, where
alignments tie, each pair with a tie is given to the search that the peer uses, so the gain is smaller there.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from benchmarks.timing import compare

from polyhead_gaze.multimatch import multimatch

PAIRS = 1000
SIZE = (1680.0, 1050.0)
TOLERANCE = 1e-9
Path_ = np.ndarray[Any, Any]


def pixels(random: np.random.Generator, length: int) -> Path_:
    return random.uniform(0, SIZE, (length, 2))


def centres(random: np.random.Generator, length: int) -> Path_:
    """Return centres of objects in a grid of 5 by 9."""
    return (random.integers(0, (9, 5), (length, 2)) + 0.5) * 180


CASES: tuple[tuple[str, Callable[[np.random.Generator, int], Path_], tuple[int, int], float | None], ...] = (
    ("pixels, 20 to 40 fixations", pixels, (20, 40), 100.0),
    ("pixels, 5 to 20 fixations", pixels, (5, 20), None),
    ("object centres, 5 to 20 fixations", centres, (5, 20), None),
)


def draw(kind: Callable[[np.random.Generator, int], Path_], lengths: tuple[int, int], seed: int) -> list[Path_]:
    random = np.random.default_rng(seed)
    paths = []
    for length in random.integers(lengths[0], lengths[1] + 1, PAIRS):
        paths.append(np.column_stack([kind(random, int(length)), random.uniform(100, 400, length)]))
    return paths


def records(paths: list[Path_]) -> list[Path_]:
    """Return the form that the peer takes."""
    made = []
    for path in paths:
        rows = np.zeros(len(path), dtype=[("start_x", "f8"), ("start_y", "f8"), ("duration", "f8")])
        rows["start_x"], rows["start_y"], rows["duration"] = path.T
        made.append(rows)
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.parse_args()
    import multimatch_gaze

    rows, largest = [], 0.0
    for case, kind, lengths, bar in CASES:
        first, second = draw(kind, lengths, 0), draw(kind, lengths, 1)
        theirs = list(zip(records(first), records(second), strict=True))

        def ours(first: list[Path_] = first, second: list[Path_] = second) -> Path_:
            return multimatch(first, second, SIZE)

        def peer(pairs: list[tuple[Path_, Path_]] = theirs) -> list[Any]:
            return [multimatch_gaze.docomparison(a, b, list(SIZE)) for a, b in pairs]

        largest = max(largest, float(np.abs(ours() - np.array(peer(), dtype=float)).max()))
        if largest > TOLERANCE:
            raise SystemExit(f"{case}: results differ by {largest:.1e}, no figure counts")
        times = compare(ours, peer, repeats=7, warmup=1)
        row: dict[str, Any] = {"case": f"{PAIRS} pairs, {case}", "peer": "multimatch-gaze", **times._asdict()}
        rows.append(row if bar is None else {**row, "at_least": bar})
    document = {
        "title": "MultiMatch against multimatch-gaze",
        "threads": int(os.environ.get("OMP_NUM_THREADS", 1)),
        "correct": f"largest difference {largest:.1e}",
        "rows": rows,
    }
    print(json.dumps(document, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
