"""The verb `evaluate`: the literature's metrics of a saved model, beside the baselines."""

from __future__ import annotations

import json
from pathlib import Path

from polyhead.artifacts import json_bytes, write_atomic
from polyhead.protocols import Split
from polyhead_apps.app import App
from polyhead_apps.config import UsageError
from polyhead_apps.console import Console
from polyhead_apps.opening import data_arguments, load_model, open_data, settings_class
from polyhead_apps.options import Given
from polyhead_apps.runs import command_line, find_model
from polyhead_apps.runtime import pick_device, prepare_process
from polyhead_apps.scoring import score

__all__ = ["evaluate"]


def evaluate(
    app: App,
    given: Given,
    console: Console,
    *,
    data: str | None = None,
    split: Split = "test",
    task: str | None = None,
    model: str | None = None,
    out: Path | None = None,
    force: bool = False,
    device: str = "auto",
    threads: int | None = None,
    as_json: bool = False,
) -> None:
    """Measure a saved model and the baselines; ``out`` takes the JSON document as a file."""
    if out is not None and out.exists() and not force:
        raise UsageError(f"--out {out} exists: name another file, or replace it with --force.")
    folder, run = find_model(app.name, model)
    loaded = load_model(app, task, folder)
    cls = settings_class(loaded.spec)
    data, base = data_arguments(data, run, cls)
    settings = given.settings(cls, base, f"{folder.parent / 'config.yaml'}")
    where = pick_device(device)
    prepare_process(settings.seed, threads)
    console.line(f"model: {folder}")

    opened = open_data(loaded.spec, data, settings.data)
    loaded.task.check(opened)
    scores = score(
        loaded.model, loaded.name, loaded.task, opened, split=split, settings=settings, device=where, console=console
    )

    document = {
        "app": app.name,
        "task": loaded.spec.name,
        "run": str(run.folder) if run else str(folder),
        "data": {"name": opened.name, "provenance": opened.provenance, "licence": opened.licence},
        **scores.document(),
    }
    if out is not None:
        write_atomic(out, json_bytes(document))
    if as_json:
        console.result(json.dumps(document, indent=2))
    else:
        scores.print(console, opened.provenance)
    made = f"made {out}. " if out is not None else ""
    console.line(f"{made}Next: {command_line(app.name, ['predict', '--model', str(run.folder if run else folder)])}")
