"""The demo of `agent-train`: the comparison that every app has, and the streaming table behind it."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import Any

from polyhead_apps.app import App, Demo
from polyhead_apps.console import Console
from polyhead_apps.options import Given

__all__ = ["demo"]


def demo(app: App, given: Given, console: Console, *, as_json: bool = False, quick: bool = False, **rest: Any) -> None:
    """Train both models on recorded CartPole episodes, then measure what their steps cost in a stream."""
    from polyhead_agents.streaming import table
    from polyhead_apps.verbs import demo as verb

    plain: Demo = replace(app.demo, function="")
    verb.demo(
        replace(app, demo=plain, demos=MappingProxyType({})), given, console, as_json=as_json, quick=quick, **rest
    )
    if as_json:
        console.line("What a step costs in a stream: agent-train streaming --json")
        return
    rows = table(repeats=5 if quick else 20)
    console.table(["model", "steps so far", "state, bytes", "ms a step"], [list(row) for row in rows])
    console.result("A step late in a stream; caches are filled with noise. Alone: agent-train streaming")
