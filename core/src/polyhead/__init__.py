"""Polyhead: one attention core under many domains.

Names resolve when they are used, so that ``import polyhead`` imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polyhead import artifacts, errors, manifest, models, nn, ops, plugins, protocols, testing
    from polyhead.hookspecs import hookimpl
    from polyhead.manifest import AppSpec, DatasetSpec, MixerSpec, ModelSpec, Plugin, RemoteFile, TaskSpec
    from polyhead.models import Pretrained, from_pretrained, load, save_pretrained
    from polyhead.ops import use_kernel
    from polyhead.recording import record

    __version__: str

__all__ = [
    "AppSpec",
    "DatasetSpec",
    "MixerSpec",
    "ModelSpec",
    "Plugin",
    "Pretrained",
    "RemoteFile",
    "TaskSpec",
    "__version__",
    "artifacts",
    "errors",
    "from_pretrained",
    "hookimpl",
    "load",
    "manifest",
    "models",
    "nn",
    "ops",
    "plugins",
    "protocols",
    "record",
    "save_pretrained",
    "testing",
    "use_kernel",
]

_MODULES = {"artifacts", "errors", "manifest", "models", "nn", "ops", "plugins", "protocols", "testing"}
_HOMES = {
    "AppSpec": "manifest",
    "DatasetSpec": "manifest",
    "MixerSpec": "manifest",
    "ModelSpec": "manifest",
    "Plugin": "manifest",
    "Pretrained": "models",
    "RemoteFile": "manifest",
    "TaskSpec": "manifest",
    "from_pretrained": "models",
    "hookimpl": "hookspecs",
    "load": "models",
    "record": "recording",
    "save_pretrained": "models",
    "use_kernel": "ops",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for (PEP 562)."""
    if name in _MODULES:
        return importlib.import_module(f"polyhead.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"polyhead.{_HOMES[name]}"), name)
    if name == "__version__":
        from importlib.metadata import version

        return version("polyhead")
    raise AttributeError(f"module 'polyhead' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the lazy names too."""
    return sorted({*globals(), *__all__})
