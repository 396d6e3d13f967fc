"""Plain CSV: a row a fixation, with boxes of the objects in a file beside it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from polyhead.errors import DataError
from polyhead_gaze.formats.boxes import find_boxes, read_boxes
from polyhead_gaze.formats.checks import Fixations, Read, number, rows
from polyhead_gaze.settings import DisplaySettings

__all__ = ["matches", "read"]

NEEDED = ("trial", "x", "y", "target")
KNOWN = (*NEEDED, "viewer", "order", "duration", "display")


def matches(path: Path) -> bool:
    """Return whether a file looks like this layout."""
    if path.suffix.lower() not in (".csv", ".tsv", ".txt"):
        return False
    with path.open(encoding="utf-8-sig", errors="replace") as stream:
        head = stream.readline(2**16)
    delimiter = max(",;\t", key=head.count)
    columns = {cell.strip().strip('"').lower() for cell in head.split(delimiter)}
    return {"trial", "x", "y"} <= columns


def read(files: Sequence[Path], settings: DisplaySettings) -> Read:
    """Read fixations: ``trial,x,y,target``, and if known ``viewer``, ``order``, ``display``, ``duration`` in ms.

    Rows of a trial are sorted by ``order``; without it they are as they stand. Without ``display`` there is one.

    Raises:
        DataError: names file, row and column, and the mend.
    """
    if len(files) > 1:
        raise DataError(
            f"{', '.join(file.name for file in files[:5])} could hold the fixations. Give one of them: --data FILE."
        )
    path = files[0]
    boxes = find_boxes(path, settings)
    scenes = read_boxes(boxes, settings)
    found: dict[tuple[str, str], list[tuple[float, float, float, float, str]]] = {}
    about: dict[tuple[str, str], tuple[str, str]] = {}
    timed = False
    for at, (where, row) in enumerate(rows(path, NEEDED, KNOWN)):
        if not row["trial"]:
            raise DataError(f'{where}, column "trial" is empty. Number the trials.')
        key = (row["trial"], row.get("viewer", ""))
        display = row.get("display") or _only(scenes, path.name, boxes.name)
        if about.setdefault(key, (display, row["target"])) != (display, row["target"]):
            raise DataError(
                f"{where}: trial {key[0]} of viewer {key[1] or '?'} has another display or target than its rows before."
            )
        timed = timed or bool(row.get("duration"))
        order = number(row["order"], f'{where}, column "order"') if "order" in row else float(at)
        duration = number(row["duration"], f'{where}, column "duration"') if row.get("duration") else 0.0
        if duration < 0:
            raise DataError(f'{where}, column "duration": {duration:g} is negative.')
        x, y = (number(row[name], f'{where}, column "{name}"') for name in ("x", "y"))
        found.setdefault(key, []).append((order, x, y, duration, where))
    if not found:
        raise DataError(f"{path.name} has no fixations.")
    trials = []
    for key, fixations in found.items():
        fixations.sort(key=lambda each: each[0])
        for one, other in itertools.pairwise(fixations):
            if one[0] == other[0]:
                raise DataError(f"{other[4]}: trial {key[0]} has two fixations of order {one[0]:g}.")
        table = np.array([each[1:4] for each in fixations])
        durations = tuple(table[:, 2].tolist()) if timed else ()
        name = f"{path.name}, trial {key[0]}" + (f", viewer {key[1]}" if key[1] else "")
        trials.append(Fixations(name, *about[key], key[1], table[:, :2], durations))
    return Read(scenes, trials)


def _only(scenes: Sequence[object], name: str, boxes: str) -> str:
    if len(scenes) != 1:
        raise DataError(f'{name} has no column "display", and {boxes} has {len(scenes)} displays: say which is meant.')
    return str(getattr(scenes[0], "name", ""))
