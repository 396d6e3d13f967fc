"""The verb `models`: what the plugin offers."""

from __future__ import annotations

import json
from typing import Any

from polyhead import plugins
from polyhead.errors import PolyheadError
from polyhead.manifest import ModelSpec
from polyhead_apps.app import App
from polyhead_apps.console import Console, format_figure
from polyhead_apps.opening import task_spec
from polyhead_apps.options import Given

__all__ = ["models"]


def models(app: App, given: Given, console: Console, *, as_json: bool = False) -> None:  # noqa: ARG001 -- every verb takes the settings
    """List the models of the app's tasks; ``--verbose`` counts their parameters, for which it imports torch."""
    specs = {name: plugins.find_model(name)[1] for task in app.tasks for name in task_spec(app, task).models}
    entries = []
    for name, spec in specs.items():
        entry: dict[str, Any] = {
            "name": name,
            "summary": spec.summary,
            "paper": spec.paper,
            "presets": {preset: dict(values) for preset, values in spec.presets.items()},
        }
        if console.verbose:
            entry["parameters"] = {preset or "default": _count(spec, preset) for preset in ("", *spec.presets)}
        entries.append(entry)
    if as_json:
        console.result(json.dumps(entries, indent=2))
        return
    for entry in entries:
        console.result(f"{entry['name']}  {entry['summary']}")
        if entry["paper"]:
            console.result(f"  paper: {entry['paper']}")
        for preset, values in entry["presets"].items():
            console.result(f"  --preset {preset}: " + ", ".join(f"{key} {value}" for key, value in values.items()))
        for preset, count in entry.get("parameters", {}).items():
            shown = "set by the data" if count is None else f"{format_figure(count)} parameters"
            console.result(f"  {preset}: {shown}")
    console.line(f"Next: {app.name} fit --data PATH --model NAME --preset PRESET")


def _count(spec: ModelSpec, preset: str) -> int | None:
    """Return a model's number of parameters; None where its size is determined by the data."""
    from polyhead import load

    try:
        model = load(spec.name, preset=preset)
    except PolyheadError:
        return None
    return sum(parameter.numel() for parameter in model.parameters())
