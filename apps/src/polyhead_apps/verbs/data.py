"""The verb `data check`: what a dataset holds, or what is wrong with it."""

from __future__ import annotations

import json
from typing import Any

from polyhead_apps.app import App
from polyhead_apps.config import flatten
from polyhead_apps.console import Console, format_figure
from polyhead_apps.opening import find_data, open_data, settings_class, task_spec
from polyhead_apps.options import Given
from polyhead_apps.runs import command_line

__all__ = ["check"]


def check(
    app: App, given: Given, console: Console, *, data: str, task: str | None = None, as_json: bool = False
) -> None:
    """Open a dataset as `fit` would and print its summary; an error is that of the adapter."""
    spec = task_spec(app, task or app.tasks[0])
    settings = given.settings(settings_class(spec))
    dataset, path = find_data(spec, data)
    opened = open_data(spec, data, settings.data)
    sizes = {split: _size(opened.source(split)) for split in ("train", "validation", "test")}
    document: dict[str, Any] = {
        "name": opened.name,
        "dataset": dataset.name,
        "path": str(path) if path else None,
        "provenance": opened.provenance,
        "licence": opened.licence,
        "fingerprint": opened.fingerprint(),
        "samples": sizes,
        "summary": dict(opened.summary()),
    }
    if as_json:
        console.result(json.dumps(document, indent=2))
    else:
        shown = {**document.pop("summary"), **document}
        rows = [[key, _words(value)] for key, value in flatten(shown).items() if value is not None]
        width = max(len(key) for key, _ in rows)
        for key, value in rows:
            console.result(f"{key:<{width}}  {value}")
    console.line(f"{data} can be used. Next: {command_line(app.name, ['fit', '--data', data, *given.arguments()])}")


def _size(source: Any) -> int | None:
    return None if getattr(source, "endless", False) else len(source)


def _words(value: Any) -> str:
    return ", ".join(format_figure(part) for part in value) if isinstance(value, list | tuple) else format_figure(value)
