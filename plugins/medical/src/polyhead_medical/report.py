"""Pictures: a tumour in three views, and volumes found against true ones."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from polyhead.protocols import Picture
from polyhead_medical.grids import Grid
from polyhead_medical.metrics import measure, on_scan
from polyhead_medical.predicting import DISCLAIMER, Measured

if TYPE_CHECKING:
    from torch import nn

__all__ = ["organ_picture", "picture", "pictures"]

_VIEWS = ("from the right", "from the front", "from above")
_SHOWN = 60
"""Test volumes that are drawn or plotted, at most."""
_COLUMNS = 4
Arrays = np.ndarray[Any, Any]


def picture(measured: Measured) -> bytes:
    """Return a scan in three views through its tumour, the mask's outline on it, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    grid = measured.grid
    found = _as_seen(measured.mask, grid)
    _draw(figure.subplots(1, 3), measured.volume.image[0].numpy(), grid, {"found": found})
    figure.suptitle(f"{measured.volume.name}: {measured.volume_ml:.2f} ml. {DISCLAIMER}", fontsize=9)
    return _png(figure)


def pictures(task: Any, model: nn.Module, data: Any) -> Sequence[Picture]:
    """Return the worst, the middle and the best test volume in three views, and all volumes against the true ones."""
    from matplotlib.figure import Figure

    from polyhead_apps.recipe import predictor

    predict = predictor(model, task)
    source = data.source("test")
    seen = []
    for index in range(min(_SHOWN, len(source))):
        batch = source.fetch([index], seed=0, epoch=0)
        grid, truth = batch["grid"][0], np.asarray(batch["label"][0])
        found = (on_scan(predict(batch)[0], grid) >= task.threshold).astype(np.uint8)
        patient = measure(found > 0, truth > 0, grid, smallest=task.smallest_voxels)
        seen.append((patient, batch["image"][0, 0].numpy(), grid, found, truth))
    seen.sort(key=lambda each: each[0].overlap.dice)
    chosen = sorted({0, len(seen) // 2, len(seen) - 1})

    figure = Figure(figsize=(9, 3.1 * len(chosen)), layout="constrained")
    rows = np.atleast_2d(figure.subplots(len(chosen), 3))
    for axes, number in zip(rows, chosen, strict=True):
        patient, image, grid, found, truth = seen[number]
        _draw(axes, image, grid, {"true": _as_seen(truth, grid), "found": _as_seen(found, grid)})
        axes[0].set_ylabel(f"Dice {patient.overlap.dice:.2f}", fontsize=9)
    views = Picture(
        "The worst, the middle and the best test volume",
        f"Green: the expert's outline; red: the network's, at threshold {task.threshold:g}. {DISCLAIMER}",
        _png(figure),
    )

    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axes = figure.add_subplot()
    volumes = np.array([[patient.truth_ml, patient.found_ml] for patient, *_ in seen])
    axes.plot([0, volumes.max() or 1], [0, volumes.max() or 1], color="grey", linewidth=1)
    axes.plot(*volumes.T, "o", markersize=4, color="tab:red")
    axes.set_xlabel("true volume, ml")
    axes.set_ylabel("volume found, ml")
    caption = f"{len(seen)} test volumes, counted on the scans' own voxels. {DISCLAIMER}"
    return [views, Picture("Volumes", caption, _png(figure))]


def _as_seen(mask: Arrays, grid: Grid) -> Arrays:
    """Return a stored mask as the network sees it, as shares of voxels."""
    import torch

    seen: Arrays = grid.to_network(torch.from_numpy(np.ascontiguousarray(mask)).float()[None])[0].numpy()
    return seen


def _draw(axes: Any, image: Arrays, grid: Grid, outlines: dict[str, Arrays]) -> None:
    """Draw three slices through the heaviest part of the first outline that holds something."""
    shown = next((share for share in outlines.values() if share.max() >= 0.5), None)
    place = [size // 2 for size in image.shape]
    if shown is not None:
        place = [int(np.argmax(shown.sum(axis=tuple(a for a in range(3) if a != axis)))) for axis in range(3)]
    extent = np.array(grid.box_mm) / np.array(image.shape)  # of a voxel of the network
    colours = {"true": "tab:green", "found": "tab:red"}
    for axis, panel in enumerate(axes):
        across, up = (other for other in range(3) if other != axis)
        panel.imshow(
            image.take(place[axis], axis=axis).T, cmap="gray", origin="lower", aspect=float(extent[up] / extent[across])
        )
        for name, share in outlines.items():
            part = share.take(place[axis], axis=axis).T
            if part.max() >= 0.5 > part.min():
                panel.contour(part, levels=[0.5], colors=colours[name], linewidths=1)
        panel.set_title(_VIEWS[axis], fontsize=8)
        panel.set_xticks([])
        panel.set_yticks([])


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def organ_picture(task: Any, model: nn.Module, data: Any) -> Picture:
    """Return test slices with the expert's classes above and the network's below."""
    from matplotlib.figure import Figure

    from polyhead_apps.recipe import predictor

    source = data.source("test")
    step = max(1, len(source) // _COLUMNS)
    batch = source.fetch(range(step // 2, len(source), step)[:_COLUMNS], seed=0, epoch=0)
    found = predictor(model, task)(batch).cpu().numpy()
    figure = Figure(figsize=(2.3 * len(found), 4.8), layout="constrained")
    rows = np.atleast_2d(figure.subplots(2, len(found), squeeze=False))
    for column in range(len(found)):
        for row, classes in enumerate((batch["target"][column].numpy(), found[column])):
            panel = rows[row][column]
            panel.imshow(batch["image"][column, 0].numpy(), cmap="gray")
            shown = np.ma.masked_equal(classes, 0)
            panel.imshow(shown, cmap="tab10", vmin=0, vmax=9, alpha=0.5, interpolation="nearest")
            panel.set_xticks([])
            panel.set_yticks([])
            if column == 0:
                panel.set_ylabel(("expert", "network")[row], fontsize=9)
    names = ", ".join(f"{number} {organ}" for number, organ in enumerate(task.organs, 1))
    return Picture("Test slices", f"Classes: {names}. {DISCLAIMER}", _png(figure))
