"""The verb `fit`: open data, train a model, save it, measure it, report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import typer

from polyhead.artifacts import read_json
from polyhead.errors import CheckpointError, DataError, PolyheadError
from polyhead.manifest import resolve
from polyhead.protocols import Picture
from polyhead_apps.app import App
from polyhead_apps.config import UsageError
from polyhead_apps.console import Console
from polyhead_apps.curves import loss_curve
from polyhead_apps.opening import TASK_FILE, find_data, model_config, open_data, settings_class, task_spec
from polyhead_apps.options import Given
from polyhead_apps.report import Block, Table, figures_block, write_report
from polyhead_apps.runs import Run, check_out, command_line, find_model, find_run, new_run, now, safe_name, versions
from polyhead_apps.runtime import parse_duration, pick_device, prepare_process, rank, world_size
from polyhead_apps.scoring import Scores, score

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Fitted", "StoppedError", "fit", "present", "start_from", "train"]

_NO_BASE: Mapping[str, Any] = MappingProxyType({})


class StoppedError(PolyheadError):
    """Fitting was stopped by Ctrl-C or a signal; the run can be resumed."""


@dataclass(frozen=True)
class Fitted:
    """A finished run."""

    run: Run
    scores: Scores
    document: Mapping[str, Any]
    """What ``metrics.json`` holds."""


def fit(
    app: App,
    given: Given,
    console: Console,
    *,
    data: str | None = None,
    task: str | None = None,
    init_from: str | None = None,
    time_limit: str | None = None,
    resume: str | None = None,
    devices: int | None = None,
    strategy: str = "ddp",
    num_nodes: int = 1,
    out: Path | None = None,
    force: bool = False,
    device: str = "auto",
    threads: int | None = None,
    as_json: bool = False,
) -> None:
    """Train a model, save it, measure it against the baselines and write a report; see `train`.

    With ``devices`` or ``num_nodes`` above 1 this process starts the others by torchrun and waits.
    """
    if (devices or 1) * num_nodes > 1 and world_size() == 1:
        from polyhead_apps.launch import launch

        if resume:
            out = find_run(app.name, out).folder
        launch(app.name, given, devices=devices or 1, strategy=strategy, num_nodes=num_nodes, out=out)
        return
    fitted = train(
        app,
        given,
        console,
        data=data,
        task=task,
        init_from=init_from,
        time_limit=time_limit,
        resume=resume,
        out=out,
        force=force,
        device=device,
        threads=threads,
    )
    if rank() != 0:
        return
    present(fitted, console, as_json=as_json)
    again = command_line(app.name, ["predict", "--model", str(fitted.run.folder)])
    console.line(f"made {fitted.run.folder} (report.html, model/, metrics.json). Next: {again}")


def train(
    app: App,
    given: Given,
    console: Console,
    *,
    data: str | None = None,
    task: str | None = None,
    init_from: str | None = None,
    time_limit: str | None = None,
    resume: str | None = None,
    out: Path | None = None,
    force: bool = False,
    device: str = "auto",
    threads: int | None = None,
    base: Mapping[str, Any] = _NO_BASE,
    note: str = "",
    name: str = "",
    baselines: bool = True,
) -> Fitted:
    """Do what `fit` does, up to the report, and print no result.

    Args:
        app: the command.
        given: settings of the user.
        console: to speak to.
        data: path or name of the data; a resumed run knows its own.
        task: the app's task; the first one, or that of the resumed run, if None.
        init_from: a run or model folder whose weights to start from.
        time_limit: such as "20min".
        resume: "last" or "step-N".
        out: the run's folder.
        force: replace a run in ``out``.
        device: such as "auto".
        threads: CPU threads of a process.
        base: dotted settings below the user's, such as those of a demo.
        note: a sentence that every output carries.
        name: what the run is called after its time; the model's name if empty.
        baselines: measure them too.

    Raises:
        PolyheadError: whatever is wrong with settings, data or checkpoints, each with its mend.
        StoppedError: Ctrl-C; the message has the command that goes on.
    """
    console.detail(f"command: {given.command}")

    # Everything the user asked for is checked before data or model are touched.
    seconds = parse_duration(time_limit)
    run = find_run(app.name, out) if resume else None
    record = run.record if run else {}
    if run and (record.get("plugin") != app.plugin or task not in (None, record.get("task"))):
        raise CheckpointError(
            f'Run {run.folder} is of task "{record.get("task")}" of plugin "{record.get("plugin")}": it cannot go on '
            f'as task "{task or app.tasks[0]}" of plugin "{app.plugin}".'
        )
    spec = task_spec(app, task or record.get("task") or app.tasks[0])
    data = data or record.get("data", {}).get("path") or record.get("data", {}).get("dataset")
    settings = (
        given.settings(settings_class(spec), run.settings(), str(run.folder / "config.yaml"))
        if run
        else given.settings(settings_class(spec), base, "demo")
    )
    dataset, path = find_data(spec, data)
    if run is None and world_size() > 1 and out is None:
        raise UsageError("Several processes need one folder for the run: name it with --out RUN.")
    if run is None and out is not None and rank() == 0:
        check_out(out, force=force)
    weights = find_model(app.name, init_from, "--init-from")[0] if init_from else None
    model_name, config = model_config(spec, settings.model)
    settings = settings.model_copy(update={"model": settings.model.model_copy(update={"name": model_name})})
    from polyhead.models import save_pretrained
    from polyhead_apps import recipe

    where = pick_device(device)
    prepare_process(settings.seed, threads)

    # Data, task, model.
    opened = open_data(spec, data, settings.data)
    fingerprint = opened.fingerprint()
    console.line(f"data: {opened.name}. {opened.provenance}")
    if run and record["data"].get("fingerprint") != fingerprint:
        raise DataError(
            f"The data of run {run.folder} have changed since it started ({data}): it cannot be resumed on them. "
            f"Fit a new run, or bring the data back."
        )
    learner = resolve(spec.target).prepare(opened, settings.task, seed=settings.seed)
    model = learner.build_model(model_name, config)
    if weights is not None and run is None:
        start_from(model, weights, console)

    # The run's folder.
    resumed = run is not None
    if run is None:
        run = new_run(app.name, safe_name(name or model_name), out, force=force) if rank() == 0 else Run(Path(str(out)))
    if rank() == 0:
        run.write_settings(settings)
        if not resumed:
            identity = {
                "app": app.name,
                "plugin": app.plugin,
                "task": spec.name,
                "model": model_name,
                "started": now(),
                "data": {
                    "dataset": dataset.name,
                    "path": str(path.resolve()) if path else None,
                    "name": opened.name,
                    "provenance": opened.provenance,
                    "licence": opened.licence,
                    "fingerprint": fingerprint,
                },
                "note": note,
            }
            run.write_json("run.json", identity)
        earlier = (
            read_json(run.folder / "versions.json")["commands"] if (run.folder / "versions.json").is_file() else []
        )
        run.write_json("versions.json", {"commands": [*earlier, given.command], "versions": versions()})
    console.line(f"run: {run.folder}" + (f" (goes on from {resume})" if resumed else ""))

    # Training, measuring, reporting.
    with console.log_to(run.folder / "log.txt") if rank() == 0 else nullcontext(), resumable(app, run):
        result = recipe.fit(
            model,
            learner,
            train=opened.source("train"),
            validation=opened.source("validation"),
            settings=settings.train,
            seed=settings.seed,
            folder=run.folder,
            resume=resume,
            fingerprint=fingerprint,
            time_limit=seconds,
            console=console,
            device=device,
        )
        if result.stopped == "interrupted":
            raise KeyboardInterrupt
        if result.stopped != "done":
            why = "the time limit is reached" if result.stopped == "time" else "validation gets no better"
            console.line(f"stopped at step {result.steps:,}: {why}")
        calibrate = getattr(learner, "calibrate", None)
        if calibrate is not None:
            learner = calibrate(result.model.to(where), opened)
        if rank() == 0:
            state = {"plugin": app.plugin, "task": spec.name, "state": learner.state()}
            save_pretrained(result.model, run.model, extra={TASK_FILE: state})
        scores = score(
            result.model,
            model_name,
            learner,
            opened,
            split="test",
            settings=settings,
            device=where,
            console=console,
            baselines=baselines,
        )
        console.line(scores.sentence())
        record = run.record
        document = {
            "app": app.name,
            "task": spec.name,
            "run": str(run.folder),
            "data": {key: record["data"][key] for key in ("name", "provenance", "licence")},
            "note": record["note"],
            "seed": settings.seed,
            "steps": result.steps,
            "stopped": result.stopped,
            "best": {learner.monitor.name: result.best_metric},
            **scores.document(),
        }
        if rank() == 0:
            report(run, app.name, scores, learner.pictures(result.model, opened))
            run.write_json("metrics.json", document)
    return Fitted(run, scores, document)


@contextmanager
def resumable(app: App, run: Run) -> Iterator[None]:
    """Answer Ctrl-C in the block with the command that goes on with the run.

    Raises:
        StoppedError: Ctrl-C.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        if rank() != 0:
            raise typer.Exit(1) from error
        again = command_line(app.name, ["fit", "--resume", "--out", str(run.folder)])
        raise StoppedError(f"stopped. Go on: {again}") from error


def start_from(model: nn.Module, folder: Path, console: Console) -> None:
    """Copy the weights of a saved model where names and shapes agree; say which did not.

    Raises:
        CheckpointError: none agrees, or the folder is damaged.
    """
    from polyhead.artifacts import load_tensors

    tensors = load_tensors(folder / "model.safetensors")
    own = model.state_dict()
    taken = {name: tensor for name, tensor in tensors.items() if name in own and own[name].shape == tensor.shape}
    if not taken:
        raise CheckpointError(f"--init-from {folder}: no tensor there has the name and shape of one of this model.")
    model.load_state_dict(taken, strict=False)
    console.line(f"weights: {len(taken)} of {len(own)} tensors from {folder}")
    for what, names in (("not loaded", own.keys() - taken.keys()), ("not used", tensors.keys() - taken.keys())):
        if names:
            shown = ", ".join(sorted(names)[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
            console.line(f"weights {what}: {shown}")


def present(fitted: Fitted, console: Console, *, as_json: bool) -> None:
    """Write a run's figures to stdout: a table with what the data are, or one JSON document."""
    if as_json:
        console.result(json.dumps(fitted.document, indent=2))
        return
    fitted.scores.print(console, fitted.document["data"]["provenance"], fitted.document["note"])


def report(run: Run, app: str, scores: Scores, pictures: Sequence[Picture]) -> None:
    """Write ``report.html`` of a finished run."""
    record = run.record
    columns, rows, best = scores.table()
    made = read_json(run.folder / "versions.json")
    curve = loss_curve(run.folder / "log.jsonl", scores.monitor)
    write_report(
        run.folder / "report.html",
        title=f"{app}: {record['model']} on {record['data']['name']}",
        summary=scores.sentence(),
        notes=[f"Data: {record['data']['provenance']}", record["note"]],
        tables=[Table(f"Metrics on the {scores.split} split", columns, rows, best, note="Bold is best.")],
        pictures=[*pictures, *([curve] if curve else [])],
        blocks=[
            Block("Command", "\n".join(made["commands"])),
            Block("Settings", (run.folder / "config.yaml").read_text(encoding="utf-8"), folded=True),
            figures_block("Versions", made["versions"], folded=True),
        ],
    )
