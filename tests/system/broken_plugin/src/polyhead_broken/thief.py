"""A plugin that registers a name of another one."""

from __future__ import annotations

from polyhead import ModelSpec, Plugin, hookimpl


@hookimpl
def polyhead_plugin() -> Plugin:
    """Return a manifest with a model name that is taken."""
    return Plugin("thief", "takes names", models=(ModelSpec("gman", target="polyhead_broken:nothing", summary="mine"),))
