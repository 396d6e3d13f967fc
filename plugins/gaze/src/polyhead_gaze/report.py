"""Pictures: scanpaths over the display, density of fixations, the model beside people."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from polyhead.protocols import Picture
from polyhead_gaze.displays import Display
from polyhead_gaze.predicting import Drawn, draw
from polyhead_gaze.scores import BEHAVIOUR, behaviour
from polyhead_gaze.settings import PredictSettings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import nn

    from polyhead_gaze.task import ScanpathTask

__all__ = ["over_display", "pictures"]

# Okabe and Ito's palette.
MODEL, HUMAN, TARGET = "#0072B2", "#222222", "#D55E00"
_WIDTH_IN, _DPI = 4.8, 200
SHOWN_PATHS = 3
SAMPLES = 100


def pictures(task: ScanpathTask, model: nn.Module, data: Any) -> list[Picture]:
    """Return the report's figures for the first test display, and how the model behaves on the first twenty."""
    settings = PredictSettings(samples=SAMPLES)
    scenes = [(display, target, trials) for display, target, trials in data.scenes()[:20] if target is not None]
    if not scenes:
        return []
    drawn = [draw(task, model, *scene, settings) for scene in scenes]
    first = drawn[0]
    found = [
        Picture(
            f"Scanpaths on {first.display.name}",
            f"{SHOWN_PATHS} scanpaths drawn from the model; the target is framed in orange. Durations are not "
            f"modelled. {data.provenance}",
            over_display(first),
        ),
        Picture(
            "Where fixations fall",
            f"Fixations of an object a scanpath, {SAMPLES} drawn scanpaths"
            + (f" beside {len(first.human)} viewers. " if len(first.human) else ". ")
            + data.provenance,
            _density(first),
        ),
    ]
    if any(len(each.human) for each in drawn):
        text = "Rates of behaviour over the first test displays: " + ", ".join(BEHAVIOUR) + f". {data.provenance}"
        found.append(Picture("The model beside people", text, _rates(drawn)))
    return found


def over_display(drawn: Drawn) -> bytes:
    """Return a PNG of the first scanpaths over the display, and over its picture where there is one."""
    display = drawn.display
    figure = _figure(display)
    axes = figure.add_subplot()
    _frame(axes, display, drawn.target)
    shades = ("#0072B2", "#009E73", "#CC79A7")
    shift = 0.06 * float(np.median(display.boxes[:, 2] - display.boxes[:, 0]))
    for number, path in enumerate(drawn.paths[:SHOWN_PATHS]):
        points = display.centres[path[path >= 0]] + (number - 1) * shift
        axes.plot(*points.T, color=shades[number], lw=1.2, alpha=0.8, marker="o", ms=3)
        axes.annotate("start", points[0], fontsize=6, color=shades[number])
    axes.set_title(f"search for {_short(display.ids[drawn.target])}; durations are not modelled")
    return _png(figure)


def _density(drawn: Drawn) -> bytes:
    sides = {"model": drawn.paths, **({"viewers": drawn.human} if len(drawn.human) else {})}
    figure = _figure(drawn.display, panels=len(sides))
    counts = {name: _fixations(paths, len(drawn.display.boxes)) for name, paths in sides.items()}
    most = max(float(count.max()) for count in counts.values())
    for number, (name, count) in enumerate(counts.items(), 1):
        axes = figure.add_subplot(len(sides), 1, number)
        _frame(axes, drawn.display, drawn.target, shade=count / max(most, 1e-9))
        axes.set_title(f"{name}: up to {count.max():.2f} fixations of an object")
    return _png(figure)


def _rates(drawn: Sequence[Drawn]) -> bytes:
    known = [each for each in drawn if len(each.human)]
    sides = []
    for pick in (lambda each: each.paths, lambda each: each.human):
        rows = [behaviour(pick(each), np.full(len(pick(each)), each.target)).mean(0) for each in known]
        sides.append(np.mean(rows, 0))
    figure = _blank(2.6)
    for number, name in enumerate(BEHAVIOUR, 1):
        axes = figure.add_subplot(1, len(BEHAVIOUR), number)
        values = [side[number - 1] for side in sides]
        axes.bar(["model", "people"], values, color=[MODEL, HUMAN], width=0.7)
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def _fixations(paths: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    fixated: NDArray[np.float64] = np.bincount(paths[paths >= 0], minlength=count) / len(paths)
    return fixated


def _blank(height_in: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH_IN, height_in), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _figure(display: Display, panels: int = 1) -> Figure:
    width, height = display.size
    return _blank(panels * (min(max(_WIDTH_IN * height / width, 1.0), 8.0) + 0.4))


def _frame(axes: Axes, display: Display, target: int, shade: NDArray[np.float64] | None = None) -> None:
    """Draw the picture, or else the boxes; frame the target."""
    from matplotlib.patches import Rectangle

    width, height = display.size
    if display.image and Path(display.image).is_file():
        from polyhead_gaze.images import open_image

        axes.imshow(open_image(Path(display.image)), extent=(0, width, height, 0))
    for number, (left, top, right, bottom) in enumerate(display.boxes):
        aimed = number == target
        face = (0, 0.45, 0.7, float(shade[number])) if shade is not None else "none"
        axes.add_patch(
            Rectangle(
                (left, top),
                right - left,
                bottom - top,
                facecolor=face,
                edgecolor=TARGET if aimed else "0.75",
                lw=1.6 if aimed else 0.6,
            )
        )
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.title.set_fontsize(9)


def _short(name: str) -> str:
    return textwrap.shorten(name, 30, placeholder="…") or name[:30]


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
