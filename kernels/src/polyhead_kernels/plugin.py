"""The plugin of the Triton kernels: which ones there are, as references; nothing here imports triton or torch."""

from __future__ import annotations

from typing import Any

from polyhead.hookspecs import hookimpl
from polyhead.manifest import Plugin, resolve

__all__ = ["KERNELS", "polyhead_plugin", "polyhead_register_kernels"]

KERNELS: tuple[str, ...] = ()
"""``"module:attribute"`` of every kernel's ``polyhead.ops.KernelSpec``, one file an operator."""


@hookimpl
def polyhead_plugin() -> Plugin:
    """Return the manifest, so that `polyhead plugins` lists this distribution."""
    return Plugin(name="kernels", summary=f"Triton kernels for Polyhead's operators: {len(KERNELS) or 'none yet'}")


@hookimpl
def polyhead_register_kernels(registry: Any) -> None:
    """Add the kernels to the operator registry."""
    for reference in KERNELS:
        registry.register(resolve(reference))
