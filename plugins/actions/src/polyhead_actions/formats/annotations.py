"""Read annotations: ActivityNet's and THUMOS-14's JSON, and the form that BMN's release gave them."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyhead.errors import DataError

__all__ = ["Annotated", "Annotations", "read_annotations", "read_json"]

LIMIT_BYTES = 2**28
"""ActivityNet v1.3 has 26 MB."""
AMBIGUOUS = "Ambiguous"
"""A label of THUMOS-14 that no protocol counts."""


@dataclass(frozen=True)
class Annotated:
    """What is known of a video without its features."""

    subset: str
    seconds: float
    """0 if not known."""
    featured_s: float
    """How much of it features cover, where the release says so; else 0."""
    actions: tuple[tuple[float, float, int], ...]
    """Start s, end s, class."""


@dataclass(frozen=True)
class Annotations:
    """A file of annotations."""

    file: Path
    videos: Mapping[str, Annotated]
    classes: tuple[str, ...]


def read_json(file: Path) -> Any:
    """Read a JSON file of at most 256 MB.

    Raises:
        DataError: it is too large or no JSON.
    """
    if file.stat().st_size > LIMIT_BYTES:
        raise DataError(f"{file.name} has {file.stat().st_size:,} bytes: annotations are at most {LIMIT_BYTES:,}.")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file.name} is no JSON: {error}.") from error


def read_annotations(file: Path) -> Annotations:
    """Read a file of annotations.

    ``database`` -> video -> ``subset``, ``duration``, ``annotations`` with ``label`` and ``segment`` [start, end] in s;
    or, as BMN's release has it, video -> ``duration_second``, ``duration_frame``, ``feature_frame``, ``annotations``,
    with the subsets in ``video_info_new.csv`` beside it. ``classes``, a list, names classes that are not annotated.

    Raises:
        DataError: a key is missing or holds something else; names video and key.
    """
    content = read_json(file)
    if not isinstance(content, dict):
        raise DataError(f"{file.name} is no JSON object: annotations are {{database: {{video: …}}}}.")
    released = "database" not in content
    database = content if released else content["database"]
    if not isinstance(database, dict) or not database:
        raise DataError(f'{file.name}: "database" has no videos.')
    subsets = _released_subsets(file.with_name("video_info_new.csv")) if released else {}
    labels: dict[str, int] = {str(label): number for number, label in enumerate(content.get("classes", ()))}
    if not labels:
        labels = {label: number for number, label in enumerate(_labels(file, database))}
    videos = {}
    for name, entry in database.items():
        video = name.removeprefix("v_")
        actions = [_action(file, name, each, labels) for each in entry.get("annotations", ())]
        if released:
            seconds = _number(file, name, entry, "duration_second")
            frames = _number(file, name, entry, "duration_frame")
            featured = _number(file, name, entry, "feature_frame") / frames * seconds if frames else 0.0
            subset = subsets.get(video, entry.get("subset", ""))
        else:
            seconds = _number(file, name, entry, "duration", needed=False)
            featured, subset = 0.0, entry.get("subset", "")
        kept = tuple(action for action in actions if action is not None)
        videos[video] = Annotated(str(subset).lower(), seconds, featured, kept)
    return Annotations(file, videos, tuple(labels))


def _labels(file: Path, database: Mapping[str, Any]) -> list[str]:
    """Return the labels in alphabetical order."""
    found = set()
    for name, entry in database.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("annotations", []), list):
            raise DataError(f'{file.name}, video "{name}": it is no object with a list "annotations".')
        for each in entry.get("annotations", ()):
            if isinstance(each, dict) and each.get("label") != AMBIGUOUS:
                found.add(str(each.get("label", "action")))
    return sorted(found)


def _action(file: Path, video: str, each: Any, labels: Mapping[str, int]) -> tuple[float, float, int] | None:
    segment = each.get("segment") if isinstance(each, dict) else None
    numbers = isinstance(segment, list) and len(segment) == 2 and all(isinstance(x, int | float) for x in segment)
    if segment is None or not numbers or not all(math.isfinite(x) for x in segment):
        raise DataError(
            f'{file.name}, video "{video}": "segment" is {json.dumps(segment)}, not [start, end] in seconds.'
        )
    label = str(each.get("label", "action"))
    if label == AMBIGUOUS:
        return None
    if label not in labels:
        raise DataError(f'{file.name}, video "{video}": the label "{label}" is not among "classes".')
    return float(segment[0]), float(segment[1]), labels[label]


def _number(file: Path, video: str, entry: Mapping[str, Any], key: str, *, needed: bool = True) -> float:
    value = entry.get(key, None if needed else 0.0)
    if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise DataError(f'{file.name}, video "{video}": "{key}" is {json.dumps(value)}, not a number of seconds.')
    return float(value)


def _released_subsets(file: Path) -> Mapping[str, str]:
    if not file.is_file():
        return {}
    with file.open(newline="", encoding="utf-8") as stream:
        rows = csv.DictReader(stream)
        if not {"video", "subset"} <= set(rows.fieldnames or ()):
            raise DataError(
                f"{file.name} has the columns {', '.join(rows.fieldnames or ())}: video and subset are needed."
            )
        return {row["video"].removeprefix("v_"): row["subset"] for row in rows}
