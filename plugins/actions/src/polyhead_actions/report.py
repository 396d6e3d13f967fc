"""Pictures: what was found in a video over its time, and recall against the number of proposals."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from polyhead.protocols import Picture
from polyhead_actions.data import Sequences, VideoData
from polyhead_actions.decoding import Found
from polyhead_actions.evaluation import average_recall
from polyhead_actions.metrics import THRESHOLDS, DetectionMetric

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn

    from polyhead_actions.task import DetectTask

__all__ = ["pictures", "seen", "timeline"]

BATCH = 32
TIMELINES = 4
"""Test videos in a report."""
DRAWN = 12
"""Detections of a video that a timeline shows."""
# Okabe and Ito's palette.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
TRUTH = "#222222"
_WIDTH_IN, _DPI = 4.8, 200


def seen(task: DetectTask, model: nn.Module, source: Sequences) -> dict[int, Found]:
    """Return what a model finds, by video; in evaluation mode, on the model's device."""
    return _gathered(task, model, source).videos()


def _gathered(task: DetectTask, model: nn.Module, source: Sequences) -> DetectionMetric:
    metric, device = task.metric(), next(model.parameters()).device
    training = model.training
    model.eval()
    try:
        for first in range(0, len(source), BATCH):
            batch = source.fetch(range(first, min(first + BATCH, len(source))), seed=0, epoch=0)
            with torch.no_grad():
                maps = task.predict(model, {name: tensor.to(device) for name, tensor in batch.items()})
            metric.update({name: tensor.cpu() for name, tensor in maps.items()}, batch)
    finally:
        model.train(training)
    return metric


def pictures(task: DetectTask, model: nn.Module, data: VideoData) -> Sequence[Picture]:
    """Return the report's figures of the test videos."""
    metric = _gathered(task, model, data.source("test"))
    found = metric.videos()
    busiest = sorted(found, key=lambda video: -len(data.videos[video].labels))[:TIMELINES]
    drawn = [
        Picture(
            f"What was found in {_short(data.videos[video].name)}",
            "Above, the annotations; below, the best detections, the surest on top; the darker, the surer. "
            + data.provenance,
            timeline(data, video, found[video], task.classes),
        )
        for video in sorted(busiest)
    ]
    return [_recall(task, metric, data), *drawn]


def timeline(data: VideoData, video: int, found: Found, classes: Sequence[str]) -> bytes:
    """Return a PNG of a video's time with its annotations and the best detections."""
    shown = data.videos[video]
    best = min(DRAWN, len(found.scores))
    names = list(shown.labels) + [int(label) for label in found.labels[:best, 0]]
    colours = {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(dict.fromkeys(names))}
    with _canvas(data, 1.3 + 0.13 * max(best, 3)) as (figure, finish):
        axes = figure.subplots()
        for segment, label in zip(np.asarray(shown.segments).tolist(), shown.labels, strict=True):
            _bar(axes, segment, 0.0, colours[label], 1.0)
        top = max(float(found.scores[0]), 1e-9) if best else 1.0
        for line in range(best):
            alpha = 0.15 + 0.85 * float(found.scores[line]) / top
            _bar(axes, found.segments[line].tolist(), line + 1.5, colours[int(found.labels[line, 0])], alpha)
        axes.set(xlim=(0, shown.seconds), ylim=(best + 2.2, -0.8), xlabel="s", yticks=[0, 1.5 + max(best - 1, 0) / 2])
        axes.set_yticklabels(["annotated", "found"])
        axes.set_title(_short(shown.name), loc="left")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        from matplotlib.patches import Patch

        handles = [Patch(color=colours[label], label=_short(classes[label])) for label in list(colours)[: len(COLOURS)]]
        if handles:
            figure.legend(handles=handles, loc="outside upper left", ncols=3, frameon=False)
        return finish()


def _bar(axes: Any, segment: Sequence[float], line: float, colour: str, alpha: float) -> None:
    start, end = segment
    axes.barh(line, end - start, left=start, height=0.8, color=colour, alpha=alpha, edgecolor="none")


def _recall(task: DetectTask, metric: DetectionMetric, data: VideoData) -> Picture:
    """Draw recall against proposals, of the model and of the baselines."""
    methods: dict[str, DetectionMetric] = {"model": metric}
    source = data.source("test")
    for name, predict in task.baselines(data).items():
        methods[name] = task.metric()
        for first in range(0, len(source), BATCH):
            batch = source.fetch(range(first, min(first + BATCH, len(source))), seed=0, epoch=0)
            methods[name].update(predict(batch), batch)
    with _canvas(data, 3.0) as (figure, finish):
        axes = figure.subplots()
        for colour, (name, one) in zip((TRUTH, *COLOURS), methods.items(), strict=False):
            truth, proposals = one.tables()
            recall = average_recall(truth, proposals, THRESHOLDS["activitynet"])
            axes.plot(recall.per_video, 100 * recall.recall.mean(0), color=colour, label=name, linewidth=1.6)
        axes.set(xlabel="proposals a video", ylabel="average recall, %", ylim=(0, 100), xlim=(1, 100), xscale="log")
        axes.legend(frameon=False)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        png = finish()
    text = (
        "Share of the test actions that are found with so many proposals a video, mean over temporal IoU 0.5 to 0.95."
    )
    return Picture("Recall against the number of proposals", f"{text} {data.provenance}", png)


def _short(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:27]}…"


@contextmanager
def _canvas(data: VideoData, height_in: float) -> Iterator[tuple[Figure, Any]]:
    """Give a figure and the function that ends it with the provenance at its foot and returns it as PNG."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    foot = textwrap.wrap(f"{data.name}: {data.provenance}", 98)
    # Text outside of all axes is unknown to the layout: keep a strip free for it.
    strip = (0.14 * len(foot) + 0.06) / height_in
    with matplotlib.rc_context(
        {"font.size": 9, "axes.titlesize": 9, "legend.fontsize": 8, "font.family": "DejaVu Sans"}
    ):
        engine = ConstrainedLayoutEngine(rect=(0, strip, 1, 1 - strip))
        figure = Figure(figsize=(_WIDTH_IN, height_in), dpi=_DPI, layout=engine)
        FigureCanvasAgg(figure)

        def finish() -> bytes:
            figure.text(0.02, 0.04 / height_in, "\n".join(foot), fontsize=6.5, color="0.35", va="bottom")
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", metadata={"Software": None})
            return buffer.getvalue()

        yield figure, finish
