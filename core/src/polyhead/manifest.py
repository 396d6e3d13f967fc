"""The manifest of a plugin: plain data, so that listing plugins imports no model.

References are strings ``"module:attribute"`` that are imported when they are used, never before.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from polyhead.errors import PluginError

__all__ = ["AppSpec", "DatasetSpec", "ModelSpec", "Plugin", "RemoteFile", "TaskSpec", "resolve"]


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
class RemoteFile:
    """A public file that ``datasets get`` fetches, known to the byte.

    Raises:
        PluginError: the name is no plain file name, the address is not http(s), digest or size cannot be right.
    """

    name: str
    """What it is called in the dataset's folder."""
    url: str
    sha256: str
    """64 hexadecimal digits."""
    bytes: int

    def __post_init__(self) -> None:
        """Refuse what would write elsewhere or could never arrive."""
        if not re.fullmatch(r"[\w()-][\w.() -]*", self.name):
            raise PluginError(f'RemoteFile "{self.name}": give a plain file name, without a folder.')
        if not re.match(r"https?://", self.url):
            raise PluginError(f'RemoteFile "{self.name}": the address "{self.url}" does not begin with https://.')
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256) or self.bytes < 1:
            raise PluginError(
                f'RemoteFile "{self.name}": sha256 "{self.sha256}" must be 64 digits 0-9a-f, and bytes ({self.bytes}) '
                "positive."
            )


@dataclass(frozen=True)
class DatasetSpec:
    """A dataset adapter, an embedded dataset that needs no files, or a public one that ``datasets get`` fetches."""

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
    files: tuple[RemoteFile, ...] = ()
    """Of a public dataset: ``target`` opens the folder they are fetched into, and ``--data NAME`` means that folder."""


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
class MixerSpec:
    """A token mixer that ``polyhead.nn.Stack(mixer=name)`` takes."""

    name: str
    target: str
    """``"module:Class"``: a ``polyhead.nn.TokenMixer``, built as ``Class(dim, heads, **settings)``."""
    summary: str
    paper: str = ""
    causal: bool = True
    """Whether it can be causal, and then streamed; False for one that always sees every token."""


@dataclass(frozen=True)
class Plugin:
    """Everything a plugin offers, by name."""

    name: str
    summary: str
    models: tuple[ModelSpec, ...] = ()
    datasets: tuple[DatasetSpec, ...] = ()
    tasks: tuple[TaskSpec, ...] = ()
    apps: tuple[AppSpec, ...] = ()
    mixers: tuple[MixerSpec, ...] = ()


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
