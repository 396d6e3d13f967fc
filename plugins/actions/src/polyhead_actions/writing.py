"""Detections in the formats people use: ActivityNet's results JSON, CSV, subtitles, and a picture of each timeline."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polyhead.errors import NonFiniteError
from polyhead_actions.data import VideoData
from polyhead_actions.decoding import Found
from polyhead_actions.report import seen, timeline
from polyhead_actions.settings import PredictSettings

if TYPE_CHECKING:
    from torch import nn

    from polyhead_actions.task import DetectTask

__all__ = ["results", "subtitles", "write"]

VERSION = "VERSION 1.3"
"""Of ActivityNet, whose evaluators ask for it."""


def write(task: DetectTask, model: nn.Module, data: VideoData, out: Path, settings: PredictSettings) -> Sequence[Path]:
    """Write ``results.json``, ``detections.csv``, ``subtitles/NAME.srt`` and ``timelines/NAME.png``, or one file alone.

    Raises:
        NonFiniteError: the model gives NaN or Inf.
    """
    found = seen(task, model, data.chosen(settings.split))
    for video, one in found.items():
        if not (np.isfinite(one.scores).all() and np.isfinite(one.segments).all()):
            raise NonFiniteError(
                f'The detections in "{data.videos[video].name}" are not finite. The weights are damaged: fit again.'
            )
    least = settings.least_score
    found = {video: one.take(one.scores * one.weights[:, 0] >= least) for video, one in found.items()}
    files = []
    if settings.files in ("all", "json"):
        files.append(out / "results.json")
        files[-1].write_text(json.dumps(results(data, found, task.classes), indent=1) + "\n", encoding="utf-8")
    if settings.files in ("all", "csv"):
        files.append(out / "detections.csv")
        _write_csv(files[-1], data, found, task.classes)
    if settings.files == "all":
        names = _file_names([data.videos[video].name for video in found])
        for one, name in zip(found.values(), names, strict=True):
            text = subtitles(one, task.classes, settings.subtitles)
            if text:
                files.append(out / "subtitles" / f"{name}.srt")
                files[-1].parent.mkdir(exist_ok=True)
                files[-1].write_text(text, encoding="utf-8")
        for (video, one), name in list(zip(found.items(), names, strict=True))[: settings.pictures]:
            files.append(out / "timelines" / f"{name}.png")
            files[-1].parent.mkdir(exist_ok=True)
            files[-1].write_bytes(timeline(data, video, one, task.classes))
    return files


def results(data: VideoData, found: Mapping[int, Found], classes: Sequence[str]) -> Mapping[str, Any]:
    """Return the document that ActivityNet's evaluators read: detections by video, best first, times in s."""
    return {
        "version": VERSION,
        "results": {
            data.videos[video].name: [
                {"label": classes[label], "score": round(score, 6), "segment": [round(end, 3) for end in segment]}
                for segment, score, label in _rows(one)
            ]
            for video, one in found.items()
        },
        "external_data": {"used": False, "details": data.backbone},
    }


def _rows(found: Found) -> list[tuple[list[float], float, int]]:
    """Return a row for each detection and class, best first."""
    rows = [
        (segment, score * weight, label)
        for segment, score, labels, weights in zip(*(part.tolist() for part in found), strict=True)
        for label, weight in zip(labels, weights, strict=True)
    ]
    return sorted(rows, key=lambda row: -row[1])


def _write_csv(file: Path, data: VideoData, found: Mapping[int, Found], classes: Sequence[str]) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["video", "start_s", "end_s", "label", "score"])
        for video, one in found.items():
            for (start, end), score, label in _rows(one):
                writer.writerow([data.videos[video].name, f"{start:.3f}", f"{end:.3f}", classes[label], f"{score:.6f}"])


def subtitles(found: Found, classes: Sequence[str], least: float) -> str:
    """Return SRT of the best detections, in order of time; empty without any.

    A detection is left out if its score is below ``least`` of the best one's, or if a better one covers half of it.
    """
    kept: list[tuple[float, float, int, float]] = []
    best = float(found.scores[0]) if len(found.scores) else 0.0
    for (start, end), score, labels, _ in zip(*(part.tolist() for part in found), strict=True):
        covered = any(min(end, b) - max(start, a) > 0.5 * (end - start) for a, b, _, _ in kept)
        if score >= least * best and not covered:
            kept.append((start, end, labels[0], score))
    lines = []
    for number, (start, end, label, score) in enumerate(sorted(kept), 1):
        lines += [
            str(number),
            f"{_clock(start)} --> {_clock(end)}",
            f"{classes[label]} ({100 * score / best:.0f} %)",
            "",
        ]
    return "\n".join(lines) + "\n" if lines else ""


def _clock(seconds: float) -> str:
    """Return a time as SRT has it.

    >>> _clock(3661.5)
    '01:01:01,500'
    """
    thousandths = round(seconds * 1000)
    minutes, rest = divmod(thousandths, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d},{rest % 1000:03d}"


def _file_names(names: Sequence[str]) -> list[str]:
    """Return names that are safe for files, each once."""
    made: list[str] = []
    for name in names:
        safe = re.sub(r"[^\w.-]+", "_", name).strip(".") or "video"
        number, free = 1, safe
        while free in made:
            number += 1
            free = f"{safe}-{number}"
        made.append(free)
    return made
