"""The command `traffic-forecast fill`: a series without gaps, in which every filled reading is marked."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import typer
from numpy.typing import NDArray

from polyhead.artifacts import JSON, atomic_folder, json_bytes, write_manifest
from polyhead.errors import DataError

if TYPE_CHECKING:
    from polyhead_traffic.data import SensorData

__all__ = ["fill", "write_filled"]

SERIES, MARKS = "filled.csv", "filled-marks.csv"


def fill(
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="PATH|NAME", help="Folder, file, or a dataset's name (default: the run's)."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="RUN|FOLDER", help="Fill by its forecasts too (default: without a model)."),
    ] = None,
    method: Annotated[
        Literal["auto", "interpolation", "usual", "forecast"],
        typer.Option(
            help="interpolation: a line across the gap; usual: the usual day, bent to both ends; forecast: from the "
            "rows before, where the model reaches; auto: what is nearest to hidden readings."
        ),
    ] = "auto",
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where to write.")] = Path("filled"),
    force: Annotated[bool, typer.Option("--force", help="Replace what --out holds.")] = False,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", metavar="FILE", help="Settings, as in a run's config.yaml.")
    ] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting, such as data.missing=zero.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON document.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Results and warnings only.")] = False,
) -> None:
    """Fill missing readings, mark them, and say how far off such values are. Observed readings stay as they are."""
    from polyhead_apps.config import UsageError
    from polyhead_apps.console import Console
    from polyhead_apps.opening import data_arguments, load_model, open_data, settings_class, task_spec
    from polyhead_apps.options import Given
    from polyhead_apps.runs import command_line, find_model
    from polyhead_traffic.app import app

    console = Console(quiet=quiet)
    if method == "forecast" and model is None:
        raise UsageError("--method forecast needs a model: name a run with --model RUN.")
    if data is None and model is None:
        raise UsageError("Which data? Give --data PATH, or a run with --model RUN.")
    spec = task_spec(app, "forecast")
    base: Mapping[str, Any] = {}
    loaded = None
    if model is not None:
        folder, run = find_model(app.name, model)
        loaded = load_model(app, None, folder)
        data, base = data_arguments(data, run, settings_class(spec))
    settings = Given(config, tuple(sets or ())).settings(settings_class(spec), base, "the run's config.yaml")
    opened: Any = open_data(spec, data, settings.data)
    console.line(f"data: {opened.name}. {opened.provenance}")
    if loaded is not None:
        loaded.task.check(opened)

    def candidates(part: SensorData) -> dict[str, NDArray[np.float32]]:
        from polyhead_traffic.gaps import by_forecast, by_interpolation, by_usual_day

        found = {"interpolation": by_interpolation(part), "usual": by_usual_day(part)}
        if loaded is not None:
            found["forecast"] = by_forecast(loaded.task, loaded.model, part)  # type: ignore[arg-type]  # the only task
        return found

    errors = _errors_of_hidden(opened, candidates)
    made = candidates(opened)
    # Where nothing could be hidden, all are alike and the first one is taken.
    without_model = min(("interpolation", "usual"), key=lambda name: errors.get(name, 0.0))
    chosen = min(made, key=lambda name: errors.get(name, 0.0)) if method == "auto" else method
    reached = np.isfinite(made[chosen])
    filled = np.where(reached, made[chosen], made[without_model])
    marks = np.where(opened.mask, "", np.where(reached, chosen, without_model))
    document: dict[str, JSON] = {
        "data": {"name": opened.name, "provenance": opened.provenance, "licence": opened.licence},
        "method": chosen,
        "missing": int((~opened.mask).sum()),
        "missing_percent": round(100 * float((~opened.mask).mean()), 3),
        "filled_by": {name: int((marks == name).sum()) for name in made},
        "gaps_in_time_left": len(opened.breaks),
        "mae_of_hidden_readings": errors,
    }
    with atomic_folder(out, replace=force) as folder:
        write_filled(opened, filled, marks, folder)
        (folder / "about.json").write_bytes(json_bytes(document))
        write_manifest(folder)
    if as_json:
        console.result(json_bytes(document).decode().rstrip())
    else:
        unit = f", {opened.unit}" if opened.unit else ""
        console.table(["filled by", f"MAE of hidden readings{unit}"], [[*item] for item in errors.items()])
        console.result(
            f"{int(np.sum(~opened.mask)):,} readings were missing ({document['missing_percent']} %). Filled by "
            + ", ".join(f"{name}: {int(np.sum(marks == name)):,}" for name in made)
            + "."
        )
    if opened.breaks:
        console.line(f"{len(opened.breaks)} gaps in time are longer than --set data.fill_gaps and stay.")
    console.line(
        f"made {out / SERIES}, {out / MARKS}. Next: {command_line(app.name, ['data', 'check', str(out / SERIES)])}"
    )


def write_filled(data: SensorData, filled: NDArray[np.float32], marks: NDArray[Any], folder: Path) -> None:
    """Write ``filled.csv``, a column a sensor, and ``filled-marks.csv``: ``timestamp,sensor_id,value,method``.

    Numbers are written such that reading them gives the same float32.

    Raises:
        DataError: an hour comes twice, as when a clock is set back, so that the file could not be read again.
    """
    if (np.diff(data.timestamps) <= np.timedelta64(0, "s")).any():
        raise DataError(
            f"{data.name}: an hour of local time comes twice, so a file without offsets would be ambiguous. Use --set "
            "data.timezone=UTC."
        )
    stamps = [str(stamp).replace("T", " ") for stamp in data.timestamps]
    with (
        (folder / SERIES).open("w", newline="", encoding="utf-8") as series,
        (folder / MARKS).open("w", newline="", encoding="utf-8") as listing,
    ):
        rows, lines = (csv.writer(stream, lineterminator="\n") for stream in (series, listing))
        rows.writerow(["timestamp", *data.ids])
        lines.writerow(["timestamp", "sensor_id", "value", "method"])
        for stamp, values, methods in zip(stamps, filled, marks, strict=True):
            texts = values.astype(str)
            rows.writerow([stamp, *texts])
            for sensor in np.flatnonzero(methods != ""):
                lines.writerow([stamp, data.ids[sensor], texts[sensor], methods[sensor]])


def _errors_of_hidden(data: SensorData, candidates: Any) -> dict[str, float]:
    """Return the mean absolute error of each method on readings that were hidden from it, all on the same ones.

    Nothing, if no observed reading after the training rows is reached by all of them.
    """
    from polyhead_traffic.gaps import hide

    without, hidden = hide(data)
    found = candidates(without)
    hidden &= np.all([np.isfinite(made) for made in found.values()], axis=0)
    if not hidden.any():
        return {}
    truth = data.values[hidden].astype(np.float64)
    return {name: float(np.abs(made[hidden] - truth).mean()) for name, made in found.items()}
