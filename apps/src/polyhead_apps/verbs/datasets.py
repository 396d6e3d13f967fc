"""The verb `datasets`: what is embedded, what can be read, where to get public data."""

from __future__ import annotations

import json

from polyhead_apps.app import App
from polyhead_apps.console import Console
from polyhead_apps.opening import dataset_specs, task_spec
from polyhead_apps.options import Given

__all__ = ["datasets"]


def datasets(app: App, given: Given, console: Console, *, as_json: bool = False) -> None:  # noqa: ARG001 -- every verb takes the settings
    """List the datasets of the app's tasks."""
    specs = {name: spec for task in app.tasks for name, spec in dataset_specs(task_spec(app, task)).items()}
    if as_json:
        keys = ("name", "summary", "embedded", "formats", "source", "licence")
        console.result(json.dumps([{key: getattr(spec, key) for key in keys} for spec in specs.values()], indent=2))
        return
    for name, spec in specs.items():
        console.result(f"{name}  {spec.summary}")
        console.result(f"  use: --data {name}" if spec.embedded else "  use: --data PATH")
        for form in spec.formats:
            console.result(f"  reads {form}")
        if spec.source:
            console.result(f"  source: {spec.source}")
        if spec.licence:
            console.result(f"  licence: {spec.licence}")
    console.line(f"Next: {app.name} data check PATH")
