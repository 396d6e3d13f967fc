"""The hooks that a plugin may implement, one function each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from polyhead.manifest import Plugin
    from polyhead.ops.builds import Build

__all__ = [
    "hookimpl",
    "hookspec",
    "polyhead_compile_kernels",
    "polyhead_plugin",
    "polyhead_register_kernels",
]

hookspec = pluggy.HookspecMarker("polyhead")
hookimpl = pluggy.HookimplMarker("polyhead")


@hookspec
def polyhead_plugin() -> Plugin:  # type: ignore[empty-body]  # a specification has no body
    """Return the manifest: what this plugin offers, as names and lazy references."""


@hookspec
def polyhead_register_kernels(registry: Any) -> None:
    """Add kernels to the operator registry; called when the first operator is looked up, not before."""


@hookspec
def polyhead_compile_kernels(  # type: ignore[empty-body]
    operators: tuple[str, ...], targets: tuple[str, ...], every: bool, workers: int
) -> list[Build]:
    """Compile this plugin's programs ahead of time, and return a ``polyhead.ops.builds.Build`` of each."""
