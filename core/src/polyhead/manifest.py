"""The manifest of a plugin: plain data, so that listing plugins imports no model.

References are strings ``"module:attribute"`` that are imported when they are used, never before.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from polyhead.errors import PluginError

__all__ = ["AppSpec", "DatasetSpec", "ModelSpec", "Plugin", "TaskSpec", "resolve"]


@dataclass(frozen=True)
class ModelSpec:
    """A model that ``polyhead.load(name)`` builds."""

    name: str
    target: str
    """``"module:Class"``: an ``nn.Module`` with a frozen dataclass ``Config``, built as ``Class(config)``."""
    summary: str
    paper: str = ""
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: MappingProxyType({}))
    """Named sets of config values, such as "tiny" and "paper"."""


@dataclass(frozen=True)
class DatasetSpec:
    """A dataset adapter, or an embedded dataset that needs no files."""

    name: str
    target: str
    """``"module:callable"``: ``open(path, settings) -> Data``; ``path`` is None for an embedded dataset."""
    summary: str
    embedded: bool = False
    formats: tuple[str, ...] = ()
    """The on-disk layouts it reads, as ``datasets`` prints them."""
    source: str = ""
    """Where to get public data in these formats."""
    licence: str = ""


@dataclass(frozen=True)
class TaskSpec:
    """What models of this plugin are trained for. Task names need to be unique within their plugin only."""

    name: str
    target: str
    """``"module:Class"``: a ``polyhead.protocols.Task``."""
    settings: str
    """``"module:Class"``: a ``polyhead_apps.config.TaskSettings``; this module must not import torch."""
    summary: str
    models: tuple[str, ...]
    """The first is the default."""
    datasets: tuple[str, ...]
    """The first embedded one is the default of ``demo``; the first other one reads ``--data PATH``."""


@dataclass(frozen=True)
class AppSpec:
    """A command."""

    name: str
    target: str
    """``"module:attribute"``: a ``polyhead_apps.App``."""
    summary: str


@dataclass(frozen=True)
class Plugin:
    """Everything a plugin offers, by name."""

    name: str
    summary: str
    models: tuple[ModelSpec, ...] = ()
    datasets: tuple[DatasetSpec, ...] = ()
    tasks: tuple[TaskSpec, ...] = ()
    apps: tuple[AppSpec, ...] = ()


def resolve(reference: str) -> Any:
    """Import ``"module:attribute"`` and return the attribute.

    Raises:
        PluginError: the reference is malformed, or the module has no such attribute.
    """
    module, _, attribute = reference.partition(":")
    if not module or not attribute:
        raise PluginError(f'Reference "{reference}" is not of the form "module:attribute".')
    try:
        return getattr(importlib.import_module(module), attribute)
    except AttributeError as error:
        raise PluginError(f'Module "{module}" has no "{attribute}" (reference "{reference}").') from error
