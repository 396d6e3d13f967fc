"""Pictures: what was asked, the true answer and the network's."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from polyhead.protocols import Picture
from polyhead_combinatorics.instances import Floats, Kind
from polyhead_combinatorics.metrics import tokens_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import nn

    from polyhead_combinatorics.task import SolveTask

__all__ = ["draw_answer", "picture_of", "pictures"]

SHOWN = 4
_TITLES = {"tsp": "Tours", "hull": "Hulls", "delaunay": "Triangulations"}


def draw_answer(axes: Axes, kind: Kind, points: Floats, tokens: Sequence[int], *, closed: bool = True) -> None:
    """Draw points, and an answer as lines between them; tokens are 1-based."""
    places = np.asarray(tokens, dtype=int) - 1
    if kind == "delaunay":
        for triangle in places[: len(places) // 3 * 3].reshape(-1, 3):
            axes.fill(*points[triangle].T, facecolor="tab:blue", edgecolor="tab:blue", alpha=0.25)
    elif len(places):
        line = points[[*places, places[0]] if closed else places]
        axes.plot(*line.T, color="tab:blue", linewidth=1.5)
    axes.plot(*points.T, "o", color="black", markersize=3)
    axes.set_aspect("equal")
    axes.tick_params(labelsize=7)


def picture_of(kind: Kind, points: Floats, tokens: Sequence[int], title: str, *, closed: bool = True) -> bytes:
    """Return one answer as PNG; the first point is marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.add_subplot()
    draw_answer(axes, kind, points, tokens, closed=closed)
    if len(tokens) and kind == "tsp":
        axes.plot(*points[tokens[0] - 1], "s", color="tab:red", markersize=7)
    axes.set_title(title, fontsize=10)
    return _png(figure)


def pictures(task: SolveTask, model: nn.Module, data: Any) -> Sequence[Picture]:
    """Return test instances with the known answer above and the network's below."""
    import torch
    from matplotlib.figure import Figure

    source = data.source("test")
    batch = source.fetch(range(min(SHOWN, len(source))), seed=0, epoch=0)
    device = next(model.parameters()).device
    with torch.inference_mode():
        answers = task.predict(model.eval(), {name: tensor.to(device) for name, tensor in batch.items()}).cpu().numpy()
    shown = len(answers)
    figure = Figure(figsize=(2.6 * shown, 5.4), layout="constrained")
    for column in range(shown):
        points = batch["points"][column, : int(batch["lengths"][column])].double().numpy()
        for row, tokens in enumerate((batch["target"].numpy()[column], answers[column])):
            axes = figure.add_subplot(2, shown, row * shown + column + 1)
            draw_answer(axes, task.kind, points, tokens_of(tokens))
            if column == 0:
                axes.set_ylabel(("known", "network")[row])
    caption = f"The first {shown} test instances: the known answer above, the network's below."
    return [Picture(_TITLES[task.kind], caption, _png(figure))]


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
