"""Open a folder of features and annotations as `VideoData`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from polyhead.errors import DataError
from polyhead.protocols import Split
from polyhead_actions.data import Video, VideoData
from polyhead_actions.formats.annotations import Annotated, Annotations, read_annotations, read_json
from polyhead_actions.formats.features import FeatureFiles, find_features, read_meta
from polyhead_actions.settings import VideoSettings

__all__ = ["open_videos"]

MOST_SHOWN = 10
EDGE_S, EDGE_SHARE = 0.5, 0.01
"""How far, in seconds and as a share of the video, an annotation may reach beyond it by rounding."""
LENGTH_S, LENGTH_SHARE = 2.0, 0.05
"""How far features and annotations of a video may differ in length."""


def open_videos(path: Path | None, settings: VideoSettings) -> VideoData:
    """Open features and annotations; both formats are found by looking at the files.

    Raises:
        DataError: nothing to read, or files that do not fit each other; names file, video and mend.
    """
    if path is None or not path.exists():
        raise DataError(f"{path}: there is no such folder of videos. Give --data FOLDER.")
    folder = path if path.is_dir() else path.parent
    noted = _annotations(path, folder, settings)
    features = find_features(path, settings.features, [*noted.videos] if noted else None)
    meta = read_meta(features.folder, folder)
    fps, stride = settings.fps or meta.fps, settings.stride or meta.stride
    offset = settings.offset or meta.offset
    blocked = _blocked(settings.blocked)
    notes: list[str] = []
    videos, subsets = _videos(features, noted, (fps, stride, offset), blocked, settings, notes)
    rows = [video.rows for video in videos]
    sampling: Literal["rescale", "window"]
    if settings.sampling == "auto":
        sampling = "window" if fps and stride and max(rows) > settings.length else "rescale"
        notes.append(f"Sampling: {sampling}.")
    else:
        sampling = settings.sampling
    classes = noted.classes if noted else ()
    splits, rule = _splits(videos, subsets, settings.held_out)
    source = noted.file.name if noted else "no annotations"
    return VideoData(
        name=folder.name if path.is_dir() else path.stem,
        provenance=f"Features from {features.folder.name}, annotations from {source}. {rule}",
        licence="that of the files",
        videos=videos,
        classes=classes,
        splits=splits,
        load=features.load_video,
        channels=features.channels,
        content=features.digest(),
        length=settings.length,
        durations=min(settings.durations or settings.length, settings.length),
        sampling=sampling,
        overlap=settings.overlap,
        least_inside=settings.least_inside,
        class_scores=_class_scores(settings.class_scores, classes),
        class_top=settings.class_top,
        backbone=meta.backbone,
        timing=(fps, stride),
        notes=tuple(notes),
    )


def _annotations(path: Path, folder: Path, settings: VideoSettings) -> Annotations | None:
    if settings.annotations == "none":
        return None
    if settings.annotations != "auto":
        named = Path(settings.annotations)
        file = named if named.is_file() else folder / named
        if not file.is_file():
            raise DataError(f"--annotations {settings.annotations}: there is no such file.")
        return read_annotations(file)
    if path.suffix == ".json":
        return read_annotations(path)
    found = [file for file in sorted(folder.glob("*.json")) if _looks_annotated(file)]
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise DataError(f"{folder} has several files of annotations ({names}): name one by --annotations.")
    return read_annotations(found[0]) if found else None


def _looks_annotated(file: Path) -> bool:
    if file.name == "features.json":
        return False
    content = read_json(file)
    if not isinstance(content, dict):
        return False
    if "database" in content:
        return True
    return any(isinstance(value, dict) and "annotations" in value for value in content.values())


def _blocked(name: str) -> frozenset[str]:
    if not name:
        return frozenset()
    file = Path(name)
    if not file.is_file():
        raise DataError(f"--blocked {name}: there is no such file.")
    names: Sequence[Any] = read_json(file) if file.suffix == ".json" else file.read_text(encoding="utf-8").split()
    return frozenset(str(each).removeprefix("v_") for each in names)


def _videos(
    features: FeatureFiles,
    noted: Annotations | None,
    timing: tuple[float, float, float],
    blocked: frozenset[str],
    settings: VideoSettings,
    notes: list[str],
) -> tuple[list[Video], list[str]]:
    """Return the videos that have features, in the order of the annotations, and their subsets."""
    wanted: Mapping[str, Annotated] = noted.videos if noted else {}
    missing = [name for name in wanted if name not in features.names and name not in blocked]
    if wanted and len(missing) == len([name for name in wanted if name not in blocked]):
        raise DataError(
            f"{features.folder} has features of none of the {len(wanted)} annotated videos. Expected are files such as "
            f"{missing[0] if missing else 'NAME'}.npy; it has {', '.join(list(features.names)[:3])}."
        )
    if missing:
        notes.append(f"{len(missing)} annotated videos have no features: {_some(missing)}.")
    videos, subsets = [], []
    problems: list[str] = []
    mended = 0
    for name in [*(n for n in wanted if n in features.names), *(n for n in features.names if n not in wanted)]:
        if name in blocked:
            continue
        one = wanted.get(name)
        rows = features.rows(name)
        seconds, step_s, first_s = _timing(name, rows, one, timing, problems)
        segments, labels, mends = _segments(name, seconds, one, settings.segments == "mend", problems)
        mended += mends
        videos.append(Video(name, seconds, rows, step_s, first_s, segments, labels))
        subsets.append(one.subset if one else "")
    if problems:
        more = f"; and {len(problems) - MOST_SHOWN} more" if len(problems) > MOST_SHOWN else ""
        place = noted.file.name if noted else features.folder.name
        raise DataError(f"{place}: {'; '.join(problems[:MOST_SHOWN])}{more}.")
    if not videos:
        raise DataError(f"{features.folder} has no video that is not blocked.")
    if mended:
        notes.append(f"{mended} annotations were cut to their video or dropped.")
    return videos, subsets


def _timing(
    name: str, rows: int, one: Annotated | None, timing: tuple[float, float, float], problems: list[str]
) -> tuple[float, float, float]:
    """Return how long a video is, the seconds of a row, and when the first begins."""
    fps, stride, offset = timing
    known = one.seconds if one else 0.0
    if fps and stride:
        step, first = stride / fps, offset / fps
        covered = first + rows * step
        if known and abs(covered - known) > max(LENGTH_S, 2 * step, LENGTH_SHARE * known):
            problems.append(
                f'video "{name}" lasts {known:g} s, its {rows} feature rows {covered:g} s (fps {fps:g}, stride '
                f"{stride:g}): correct --fps and --stride, or the features"
            )
        return known or covered, step, first
    if not known:
        problems.append(f'video "{name}" has no duration: give it in the annotations, or --fps and --stride')
        return 1.0, 1.0, 0.0
    featured = one.featured_s if one and one.featured_s else known
    return known, featured / rows, 0.0


def _segments(
    name: str, seconds: float, one: Annotated | None, mend: bool, problems: list[str]
) -> tuple[NDArray[np.float64], tuple[int, ...], int]:
    """Return the actions of a video, cut to it, and how many had to be mended."""
    kept, labels, mended = [], [], 0
    edge = max(EDGE_S, EDGE_SHARE * seconds)
    for start, end, label in one.actions if one else ():
        outside = start < -edge or end > seconds + edge
        if (end <= start or outside) and not mend:
            what = "ends before it starts" if end <= start else f"lies outside of its {seconds:g} s"
            problems.append(
                f'video "{name}": the action from {start:g} to {end:g} s {what}: correct it, or leave such ones out '
                "by --segments mend"
            )
            continue
        cut = max(start, 0.0), min(end, seconds)
        mended += end <= start or outside
        if cut[1] > cut[0]:
            kept.append(cut)
            labels.append(label)
    return np.array(kept, dtype=np.float64).reshape(-1, 2), tuple(labels), mended


def _splits(
    videos: Sequence[Video], subsets: Sequence[str], held_out: float
) -> tuple[Mapping[Split, tuple[int, ...]], str]:
    """Return the splits as the literature has them, and the rule in words.

    ActivityNet trains on `training` and reports on `validation`, since its `testing` has no public annotations;
    THUMOS-14 trains on `validation` and reports on `testing`. What picks the best weights is then held out.
    """
    parts: dict[str, list[int]] = {"training": [], "validation": [], "testing": []}
    for number, (video, subset) in enumerate(zip(videos, subsets, strict=True)):
        known = {"train": "training", "val": "validation", "test": "testing"}.get(subset, subset)
        if known in parts and (video.labels or known != "testing"):
            parts[known].append(number)
    training, validation, testing = parts["training"], parts["validation"], parts["testing"]
    if training and validation and testing:
        train, picks, test = training, validation, testing
        return {"train": tuple(train), "validation": tuple(picks), "test": tuple(test)}, "Subsets as annotated."
    if training:
        train, test, reported = training, validation or testing, "validation" if validation else "testing"
    else:
        train, test, reported = (validation, testing, "testing") if testing else ([], validation, "validation")
    count = min(max(1, round(held_out * len(train))), len(train) - 1) if len(train) > 1 else 0
    by_digest = sorted(train, key=lambda number: hashlib.sha256(videos[number].name.encode()).hexdigest())
    picks = sorted(by_digest[:count])
    rest = tuple(number for number in train if number not in set(picks))
    splits: dict[Split, tuple[int, ...]] = {"train": rest, "validation": tuple(picks), "test": tuple(test)}
    rule = f"Reported on the subset {reported}; {count} of the {len(train)} training videos pick the weights."
    return splits, rule if train or test else "Nothing is annotated."


def _class_scores(name: str, classes: tuple[str, ...]) -> Mapping[str, NDArray[np.float64]]:
    """Read class scores of videos: {video: {class: score}}, or {"results": {video: [score of each class]}}."""
    if not name:
        return {}
    file = Path(name)
    if not file.is_file():
        raise DataError(f"--class-scores {name}: there is no such file.")
    content = read_json(file)
    if not isinstance(content, dict):
        raise DataError(f"{file.name} is no JSON object: give {{video: {{class: score}}}}.")
    named = content.get("class", list(classes))
    places = {label: number for number, label in enumerate(classes)}
    scores = {}
    for video, given in content.get("results", content).items():
        pairs = given.items() if isinstance(given, dict) else zip(named, given, strict=False)
        row = np.zeros(len(classes))
        for label, score in pairs:
            if label in places:
                row[places[label]] = float(score)
        if not row.any() or not np.isfinite(row).all():
            raise DataError(
                f'{file.name}, video "{video}": none of its classes is one of the annotations '
                f"({json.dumps(list(classes)[:3])[1:-1]}, …), or a score is not finite."
            )
        scores[video.removeprefix("v_")] = row
    return scores


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_SHOWN} more" if len(names) > MOST_SHOWN else ""
    return ", ".join(names[:MOST_SHOWN]) + more
