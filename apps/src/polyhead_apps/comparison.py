"""Train several arms with several seeds each, and compare them in one table: what demos and claims are made of."""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from polyhead.artifacts import json_bytes, read_json, write_atomic
from polyhead.errors import PolyheadError
from polyhead.manifest import TaskSpec
from polyhead_apps.app import App, Arm
from polyhead_apps.config import TaskSettings, UsageError, flatten
from polyhead_apps.console import Console, format_figure
from polyhead_apps.opening import model_config, settings_class, task_spec
from polyhead_apps.options import Given
from polyhead_apps.report import Block, Table, write_report
from polyhead_apps.runs import RUNS, Run, safe_name
from polyhead_apps.runtime import parse_duration
from polyhead_apps.verbs.fit import train

__all__ = ["FILE", "Comparison", "compare", "present"]

_NOTHING: Mapping[str, Any] = MappingProxyType({})

FILE = "comparison.json"
"""The document of a comparison, in its folder."""


@dataclass(frozen=True)
class Comparison:
    """The figures of all arms on the test split."""

    folder: Path
    document: Mapping[str, Any]
    """What `FILE` holds."""

    @property
    def main(self) -> Path:
        """The first run of the first arm, the plugin's own model."""
        return Path(self.document["arms"][0]["runs"][0]["run"])

    def table(self) -> tuple[list[str], list[list[Any]], list[tuple[int, int]]]:
        """Return columns, rows and the best cells: a mean, and the standard deviation over seeds where several ran."""
        arms = {arm["name"]: arm for arm in self.document["arms"]}
        baselines = self.document["baselines"]
        known = next(iter(arms.values()))["mean"]
        names = [name for name in self.document["headline"] if name in known] or list(known)
        means = {**{name: arm["mean"] for name, arm in arms.items()}, **baselines}
        rows: list[list[Any]] = []
        for model, figures in means.items():
            spread = arms[model]["deviation"] if model in arms and len(arms[model]["runs"]) > 1 else {}
            rows.append([model, *(_cell(figures.get(name), spread.get(name)) for name in names)])
        best = []
        for column, name in enumerate(names, 1):
            figures = [value.get(name) for value in means.values()]
            finite = [x for x in figures if x is not None]
            if finite:
                top = min(finite) if self.document["directions"].get(name, "min") == "min" else max(finite)
                best += [(row, column) for row, x in enumerate(figures) if x == top]
        return ["model", *names], rows, best


def compare(
    app: App,
    given: Given,
    console: Console,
    arms: Sequence[Arm],
    *,
    task: str,
    data: str,
    seeds: int,
    base: Mapping[str, Any],
    over: Mapping[str, Any] = _NOTHING,
    note: str = "",
    time_limit: str | None = None,
    out: Path | None = None,
    force: bool = False,
    device: str = "auto",
    threads: int | None = None,
) -> Comparison:
    """Train every arm with every seed; on a folder that holds part of the same comparison, go on with it.

    Each run is a run like any other, in ``FOLDER/ARM-seed-N``. Baselines are measured once, with the first run.

    Args:
        app: the command.
        given: settings of the user, over those of every arm.
        console: to speak to.
        arms: what is compared.
        task: the app's task.
        data: path or name of the data.
        seeds: runs of each arm; the first has the user's seed, the others count up.
        base: dotted settings of all arms, below those of each.
        over: dotted settings of all arms, over those of each and below the user's, such as those of a quick demo.
        note: a sentence that every output carries.
        time_limit: such as "20min", for all runs together; what is left is shared equally by the runs still to come.
        out: the folder; ``runs/APP/TIME-comparison`` if None.
        force: begin again.
        device: such as "auto".
        threads: CPU threads of a process.

    Raises:
        PolyheadError: whatever is wrong with settings, data or checkpoints, each with its mend.
        StoppedError: Ctrl-C.
    """
    spec = task_spec(app, task)
    cls = settings_class(spec)
    first = given.settings(cls, {**base, **over}, "demo").seed
    limit = parse_duration(time_limit)
    folder = out or _free(app)
    _check(folder)
    began = time.monotonic()
    planned = [(arm, seed) for seed in range(first, first + seeds) for arm in arms]
    documents: dict[str, list[Mapping[str, Any]]] = {arm.name: [] for arm in arms}
    for number, (arm, seed) in enumerate(planned):
        console.line(f"{arm.name}, seed {seed} ({number + 1} of {len(planned)})")
        run = Run(folder / f"{safe_name(arm.name)}-seed-{seed}")
        seeded = replace(given, flags={**given.flags, "seed": ("--seed", seed)})
        settings = {**base, **arm.settings, **over}
        same = not force and _holds(run, seeded.settings(cls, settings, "demo"), spec)
        if same and run.finished:
            console.line(f"run: {run.folder} (finished before)")
            documents[arm.name].append(read_json(run.folder / "metrics.json"))
            continue
        left = None if limit is None else max(1.0, (limit - time.monotonic() + began) / (len(planned) - number))
        fitted = train(
            app,
            seeded,
            console,
            data=data,
            task=task,
            resume="last" if same and any(run.folder.glob("checkpoints/step-*")) else None,
            time_limit=None if left is None else f"{left:.3f}s",
            out=run.folder,
            force=True,
            device=device,
            threads=threads,
            base=settings,
            note=note,
            baselines=number == 0,
        )
        documents[arm.name].append(fitted.document)
    comparison = Comparison(folder, _document(app, arms, documents))
    write_atomic(folder / FILE, json_bytes(comparison.document))
    _report(comparison, given)
    return comparison


def present(comparison: Comparison, console: Console, *, as_json: bool) -> None:
    """Write the figures to stdout: a table with what the data are, or one JSON document."""
    document = comparison.document
    if as_json:
        console.result(json.dumps(document, indent=2))
        return
    columns, rows, best = comparison.table()
    console.table(columns, rows, bold=best)
    console.result(" ".join(filter(None, (_caption(document), document["data"]["provenance"], document["note"]))))


def _free(app: App) -> Path:
    stamp = f"{datetime.now():%Y%m%d-%H%M%S}-comparison"
    return next(
        folder
        for number in itertools.count(1)
        if not (folder := RUNS / app.name / (stamp if number == 1 else f"{stamp}-{number}")).exists()
    )


def _check(folder: Path) -> None:
    """Refuse a folder that holds something else than runs of a comparison."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out {folder} is a file: name a folder for the runs.")
    if folder.is_dir() and any(folder.iterdir()) and not any(folder.glob("*-seed-*/run.json")):
        raise UsageError(f"--out {folder} is not empty and holds no comparison: name another folder.")


def _holds(run: Run, settings: TaskSettings, spec: TaskSpec) -> bool:
    """Whether a run in this folder has these settings."""
    if not (run.folder / "run.json").is_file():
        return False
    name, _ = model_config(spec, settings.model)
    settings = settings.model_copy(update={"model": settings.model.model_copy(update={"name": name})})
    try:
        return run.settings() == flatten(settings.model_dump(mode="json")) and run.record["task"] == spec.name
    except PolyheadError:
        return False


def _document(app: App, arms: Sequence[Arm], documents: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    first = documents[arms[0].name][0]
    found = []
    for arm in arms:
        runs = documents[arm.name]
        figures = {name: [run["metrics"].get(name) for run in runs] for name in runs[0]["metrics"]}
        whole = {name: values for name, values in figures.items() if None not in values}
        found.append(
            {
                "name": arm.name,
                "settings": dict(arm.settings),
                "runs": [{key: run[key] for key in ("run", "seed", "steps", "stopped", "metrics")} for run in runs],
                "mean": {name: statistics.fmean(whole[name]) if name in whole else None for name in figures},
                "deviation": {name: statistics.stdev(x) if len(x) > 1 else None for name, x in whole.items()},
            }
        )
    shared = ("task", "data", "note", "split", "monitor", "directions", "headline", "baselines")
    return {"app": app.name, **{key: first[key] for key in shared}, "arms": found}


def _report(comparison: Comparison, given: Given) -> None:
    document = comparison.document
    columns, rows, best = comparison.table()
    write_report(
        comparison.folder / "report.html",
        title=f"{document['app']}: {document['task']} on {document['data']['name']}",
        summary=_caption(document),
        notes=[f"Data: {document['data']['provenance']}", document["note"]],
        tables=[Table(f"Metrics on the {document['split']} split", columns, rows, best, note="Bold is best.")],
        blocks=[
            Block("Command", given.command),
            Block("Runs", "\n".join(run["run"] for arm in document["arms"] for run in arm["runs"])),
        ],
    )


def _caption(document: Mapping[str, Any]) -> str:
    runs = len(document["arms"][0]["runs"])
    over = f" Mean ± standard deviation over {runs} seeds." if runs > 1 else ""
    return f"{document['split'].capitalize()} split.{over}"


def _cell(mean: float | None, deviation: float | None) -> Any:
    return mean if mean is None or deviation is None else f"{format_figure(mean)} ± {format_figure(deviation)}"
