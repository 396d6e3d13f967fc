"""The verb `predict`: from files to files."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyhead.artifacts import atomic_file, atomic_folder, write_manifest
from polyhead.protocols import Files
from polyhead_apps.app import App
from polyhead_apps.config import UsageError
from polyhead_apps.console import Console
from polyhead_apps.opening import data_arguments, load_model, open_data, settings_class
from polyhead_apps.options import Given
from polyhead_apps.runs import Run, command_line, find_model
from polyhead_apps.runtime import pick_device, prepare_process

__all__ = ["Written", "predict", "write"]


@dataclass(frozen=True)
class Written:
    """The files that predictions were written to."""

    files: list[Path]
    lines: Sequence[str]
    """What the task says of them."""
    document: dict[str, Any]


def predict(
    app: App,
    given: Given,
    console: Console,
    *,
    data: str | None = None,
    task: str | None = None,
    model: str | None = None,
    out: Path | None = None,
    force: bool = False,
    device: str = "auto",
    threads: int | None = None,
    as_json: bool = False,
) -> None:
    """Write predictions and say where; see `write`."""
    written = write(
        app, given, console, data=data, task=task, model=model, out=out, force=force, device=device, threads=threads
    )
    if as_json:
        console.result(json.dumps(written.document, indent=2))
    else:
        for line in [*written.lines, *map(str, written.files)]:
            console.result(line)
    again = command_line(app.name, ["evaluate", "--model", written.document["run"]])
    console.line(f"made {len(written.files)} file{'s' if len(written.files) != 1 else ''}. Next: {again}")


def write(
    app: App,
    given: Given,
    console: Console,
    *,
    data: str | None = None,
    task: str | None = None,
    model: str | None = None,
    out: Path | None = None,
    force: bool = False,
    device: str = "auto",
    threads: int | None = None,
) -> Written:
    """Write predictions to a folder, or to one file where ``out`` has a suffix such as ``.csv``.

    They appear whole or not at all. A folder also gets ``about.txt``: model, data and their provenance, command.

    Raises:
        UsageError: ``out`` exists and ``force`` is not set, or one file is asked for and several are made.
    """
    single = out is not None and bool(out.suffix) and not out.is_dir()
    if out is not None and not force and (out.is_file() or (out.is_dir() and any(out.iterdir()))):
        raise UsageError(f"--out {out} exists: name another place, or replace it with --force.")
    folder, run = find_model(app.name, model)
    loaded = load_model(app, task, folder)
    cls = settings_class(loaded.spec)
    data, base = data_arguments(data, run, cls)
    settings = given.settings(cls, base, f"{folder.parent / 'config.yaml'}")
    where = pick_device(device)
    prepare_process(settings.seed, threads)
    console.line(f"model: {folder}")

    opened = open_data(loaded.spec, data, settings.data)
    console.line(f"data: {opened.name}. {opened.provenance}")
    loaded.task.check(opened)
    network = loaded.model.to(where).eval()
    if single and out is not None:
        with tempfile.TemporaryDirectory() as temporary:
            made = loaded.task.write_predictions(network, opened, Path(temporary), settings.predict)
            if len(made) != 1:
                names = ", ".join(file.name for file in made)
                raise UsageError(f"--out {out}: this makes {len(made)} files ({names}): name a folder.")
            with atomic_file(out) as file:
                file.write_bytes(made[0].read_bytes())
        files = [out]
    else:
        target = out or _free(run)
        if target.is_dir() and not any(target.iterdir()):
            target.rmdir()
        with atomic_folder(target, replace=force) as temporary_folder:
            made = loaded.task.write_predictions(network, opened, temporary_folder, settings.predict)
            note = run.record.get("note", "") if run else ""
            about = [f"Made by: {given.command}", f"Model: {folder}", f"Data: {opened.name}", opened.provenance, note]
            (temporary_folder / "about.txt").write_text("\n".join(filter(None, about)) + "\n", encoding="utf-8")
            write_manifest(temporary_folder)
            files = [target / os.path.relpath(file, temporary_folder) for file in made]

    said = made if isinstance(made, Files) else Files(made)
    document = {
        "app": app.name,
        "task": loaded.spec.name,
        "run": str(run.folder) if run else str(folder),
        "data": {"name": opened.name, "provenance": opened.provenance, "licence": opened.licence},
        "files": [str(file) for file in files],
        **said.figures,
    }
    return Written(files, said.lines, document)


def _free(run: Run | None) -> Path:
    """Return the first free place for predictions: in the run, or in the folder the command is called in."""
    parent = run.folder if run else Path()
    number = 1
    while (target := parent / ("predictions" if number == 1 else f"predictions-{number}")).exists():
        number += 1
    return target
