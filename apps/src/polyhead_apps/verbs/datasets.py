"""The verb `datasets`: what is embedded, what can be read, where public data are; and `datasets get`, to fetch them."""

from __future__ import annotations

import json
from pathlib import Path

from polyhead.errors import UnknownNameError
from polyhead.manifest import DatasetSpec
from polyhead_apps.app import App
from polyhead_apps.console import Console
from polyhead_apps.fetching import data_folder, fetch
from polyhead_apps.opening import dataset_specs, task_spec
from polyhead_apps.options import Given
from polyhead_apps.runs import command_line

__all__ = ["datasets", "get"]


def datasets(app: App, given: Given, console: Console, *, as_json: bool = False) -> None:  # noqa: ARG001 -- every verb takes the settings
    """List the datasets of the app's tasks."""
    specs = _specs(app)
    if as_json:
        keys = ("name", "summary", "embedded", "formats", "source", "licence")
        listed = [
            {
                **{key: getattr(spec, key) for key in keys},
                "files": [{"url": file.url, "sha256": file.sha256, "bytes": file.bytes} for file in spec.files],
            }
            for spec in specs.values()
        ]
        console.result(json.dumps(listed, indent=2))
        return
    for name, spec in specs.items():
        console.result(f"{name}  {spec.summary}")
        if spec.files:
            console.result(f"  get: {app.name} datasets get {name}  ({_size(spec):.1f} MB)")
        console.result(f"  use: --data {name}" if spec.embedded or spec.files else "  use: --data PATH")
        for form in spec.formats:
            console.result(f"  reads {form}")
        if spec.source:
            console.result(f"  source: {spec.source}")
        if spec.licence:
            console.result(f"  licence: {spec.licence}")
    console.line(f"Next: {app.name} data check PATH")


def get(
    app: App,
    given: Given,  # noqa: ARG001 -- every verb takes the settings
    console: Console,
    *,
    name: str,
    out: Path | None = None,
    as_json: bool = False,
) -> None:
    """Fetch a public dataset into ``out``, or to where ``--data NAME`` finds it.

    Raises:
        UnknownNameError: no public dataset has that name.
    """
    public = {known: spec for known, spec in _specs(app).items() if spec.files}
    if name not in public:
        raise UnknownNameError("public dataset", name, public)
    spec = public[name]
    folder = out or data_folder(spec)
    console.line(f"{name}: {spec.summary}. Source: {spec.source}. Licence: {spec.licence}.")
    files = fetch(spec, folder, console)
    if as_json:
        document = {
            "name": name,
            "folder": str(folder),
            "files": [str(file) for file in files],
            "licence": spec.licence,
        }
        console.result(json.dumps(document, indent=2))
    else:
        console.result(str(folder))
    data = str(out) if out is not None else name
    console.line(f"made {folder}. Next: {command_line(app.name, ['fit', '--data', data])}")


def _specs(app: App) -> dict[str, DatasetSpec]:
    return {name: spec for task in app.tasks for name, spec in dataset_specs(task_spec(app, task)).items()}


def _size(spec: DatasetSpec) -> float:
    return sum(file.bytes for file in spec.files) / 1e6
