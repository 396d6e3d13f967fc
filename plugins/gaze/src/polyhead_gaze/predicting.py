"""What `predict` writes: drawn scanpaths as CSV, a table of areas of interest, a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyhead.artifacts import write_atomic
from polyhead.errors import DataError, nearest
from polyhead_apps.console import Console
from polyhead_gaze.displays import Display, Floats, Trial, collate, stream_of
from polyhead_gaze.scores import pack
from polyhead_gaze.settings import PredictSettings

if TYPE_CHECKING:
    from torch import nn

    from polyhead_gaze.task import ScanpathTask

__all__ = ["Drawn", "areas", "draw", "write"]

NOT_MODELLED = "How long each fixation lasts is not modelled: the files have no durations."


class Drawn(NamedTuple):
    """Scanpaths drawn for one display."""

    display: Display
    target: int
    paths: NDArray[np.int64]
    """Shape (samples, L), padded with -1."""
    human: NDArray[np.int64]
    """Those of the viewers that are known, shape (V, T); none: V is 0."""
    log_probability: Floats
    """Of each scanpath, its stop included, shape (samples,)."""


def write(task: ScanpathTask, model: nn.Module, data: Any, out: Path, settings: PredictSettings) -> Sequence[Path]:
    """Write what is asked for: one file of each kind for all displays, a picture of each.

    ``scanpaths.csv``: ``display,target,sample,order,object,x,y``, a row a fixation, x and y of the object's centre in
    pixels, and ``x_deg,y_deg`` where the geometry is known, see `Display.degrees`. ``areas.csv``: see `areas`.

    Raises:
        DataError: no display has an object of the target's name; one picture is asked for and there are several
            displays; or the picture exists.
    """
    if settings.plot and Path(settings.plot).exists():
        raise DataError(f"--plot {settings.plot} exists: name another place, or remove it.")
    scenes = _chosen(data.scenes(), settings.target, data.name)
    if settings.plot and len(scenes) > 1:
        raise DataError(
            f"--plot {settings.plot}: {data.name} has {len(scenes)} displays, and one picture shows one. Ask for "
            "--files picture and a folder."
        )
    drawn = [draw(task, model, display, target, viewers, settings) for display, target, viewers in scenes]
    Console().line(NOT_MODELLED)
    made = []
    for kind in dict.fromkeys(settings.files):
        if kind == "picture":
            made += _pictures(drawn, out)
            continue
        rows = _scanpath_rows(drawn) if kind == "scanpaths" else _area_rows(drawn)
        made.append(out / f"{kind}.csv")
        write_atomic(made[-1], _csv(rows))
    if settings.plot:
        from polyhead_gaze.report import over_display

        write_atomic(Path(settings.plot), over_display(drawn[0]))
    return made


def _chosen(
    scenes: Sequence[tuple[Display, int | None, Sequence[Trial]]], target: str, name: str
) -> list[tuple[Display, int, Sequence[Trial]]]:
    """Return displays with their targets: as the data say, or the object of this name wherever there is one."""
    if target:
        found = [
            (display, display.ids.index(target), trials if own == display.ids.index(target) else ())
            for display, own, trials in scenes
            if target in display.ids
        ]
        if not found:
            known = sorted({each for display, _, _ in scenes for each in display.ids})
            guess = nearest(target, known)
            mend = f'Did you mean "{guess}"?' if guess else f"Objects: {', '.join(known[:10])}."
            raise DataError(f'No object of {name} is called "{target}". {mend}')
        return found
    aimless = [display.name for display, own, _ in scenes if own is None]
    if aimless:
        raise DataError(f"{aimless[0]} names no target: say by --target what is searched for.")
    return [(display, own, trials) for display, own, trials in scenes if own is not None]


def draw(
    task: ScanpathTask,
    model: nn.Module,
    display: Display,
    target: int,
    viewers: Sequence[Trial],
    settings: PredictSettings,
) -> Drawn:
    """Draw scanpaths for one display: a function of display, target, ``settings.draw`` and the model."""
    import torch

    from polyhead_gaze.decoding import scanpaths

    batch = collate([display], [Trial(0, target, (target,))], [0], most_objects=len(display.boxes), most_steps=1)
    names = ["place", "objects", "target", "start", *(["appearance"] if task.appearance != "none" else [])]
    inner: Any = model
    device = next(model.parameters()).device
    with torch.no_grad():
        scene = inner.encode(**{name: batch[name].to(device) for name in names})
        found = scanpaths(
            inner,
            scene,
            most=task.most_steps,
            samples=settings.samples,
            streams=torch.tensor([stream_of(display.name, target, "predict", settings.draw)], device=device),
            temperature=settings.temperature,
        )
    paths, score = found.paths[0].cpu().numpy(), found.log_probability[0].cpu().numpy()
    return Drawn(display, target, paths, pack([trial.path for trial in viewers]), score)


def areas(drawn: Drawn) -> list[dict[str, Any]]:
    """Return a row for each object: how many reach it, when, and how often it is fixated.

    ``reach_rate``: share of scanpaths with a fixation on it; ``mean_order``: number of its first fixation, over the
    scanpaths that reach it; ``fixations``: mean number a scanpath; ``first_rate``: share that begin with it. The same
    of the viewers, with ``human_`` before, where there are any.
    """
    sides = {"": _area_columns(drawn.paths, len(drawn.display.boxes))}
    if len(drawn.human):
        sides["human_"] = _area_columns(drawn.human, len(drawn.display.boxes))
    rows = []
    for number, name in enumerate(drawn.display.ids):
        row: dict[str, Any] = {"object": name, "is_target": int(number == drawn.target)}
        for prefix, columns in sides.items():
            row |= {f"{prefix}{key}": column[number] for key, column in columns.items()}
        rows.append(row)
    return rows


def _area_columns(paths: NDArray[np.int64], count: int) -> dict[str, list[Any]]:
    hit = paths[:, :, None] == np.arange(count)
    reached = hit.any(1)
    order = np.where(reached, hit.argmax(1) + 1, 0).sum(0) / np.maximum(reached.sum(0), 1)
    return {
        "reach_rate": [f"{value:.4f}" for value in reached.mean(0)],
        "mean_order": [f"{value:.2f}" if some else "" for value, some in zip(order, reached.any(0), strict=True)],
        "fixations": [f"{value:.4f}" for value in hit.sum(1).mean(0)],
        "first_rate": [f"{value:.4f}" for value in hit[:, 0].mean(0)],
    }


def _scanpath_rows(drawn: Sequence[Drawn]) -> list[dict[str, Any]]:
    rows = []
    for each in drawn:
        centres = each.display.centres
        for sample, path in enumerate(each.paths, 1):
            for order, index in enumerate(path[path >= 0], 1):
                x, y = centres[index]
                angles = {}
                if each.display.degree_px:
                    right, down = each.display.degrees(centres[index])
                    angles = {"x_deg": f"{right:.2f}", "y_deg": f"{down:.2f}"}
                rows.append(
                    {
                        "display": each.display.name,
                        "target": each.display.ids[each.target],
                        "sample": sample,
                        "order": order,
                        "object": each.display.ids[index],
                        "x": f"{x:.1f}",
                        "y": f"{y:.1f}",
                        **angles,
                    }
                )
    return rows


def _area_rows(drawn: Sequence[Drawn]) -> list[dict[str, Any]]:
    return [
        {"display": each.display.name, "target": each.display.ids[each.target], **row}
        for each in drawn
        for row in areas(each)
    ]


def _csv(rows: Sequence[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _pictures(drawn: Sequence[Drawn], out: Path) -> list[Path]:
    from polyhead_gaze.report import over_display

    made = []
    for number, each in enumerate(drawn, 1):
        made.append(out / ("picture.png" if len(drawn) == 1 else f"picture-{number}.png"))
        write_atomic(made[-1], over_display(each))
    return made
