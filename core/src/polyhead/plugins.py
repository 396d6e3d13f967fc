"""Find plugins, keep the broken ones from breaking the others, and look up names.

Plugins are installed distributions with an entry point of group ``polyhead`` that names a module with hook
implementations (``polyhead.hookimpl``). The first question loads them all, one by one; nothing here imports torch.

Environment:
    POLYHEAD_PLUGINS: load only these entry points, separated by commas; empty loads none.
    POLYHEAD_STRICT_PLUGINS: 1 makes a plugin that fails to load an error instead of an entry in ``failures()``.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import re
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import pluggy

from polyhead import hookspecs
from polyhead.errors import PluginError, UnknownNameError, nearest
from polyhead.hookspecs import hookimpl
from polyhead.manifest import AppSpec, DatasetSpec, MixerSpec, ModelSpec, Plugin, TaskSpec
from polyhead.nn.mixers import BUILT_IN

__all__ = [
    "GROUP",
    "Failure",
    "Manager",
    "Origin",
    "compile_programs",
    "failures",
    "find_app",
    "find_dataset",
    "find_mixer",
    "find_model",
    "find_plugin",
    "find_task",
    "hookimpl",
    "manager",
    "plugins",
    "register",
    "register_kernels",
    "reload",
]

GROUP = "polyhead"
_NAME = re.compile(r"[a-z0-9]([a-z0-9_.-]*[a-z0-9])?")
_Spec = TypeVar("_Spec", ModelSpec, DatasetSpec, AppSpec, TaskSpec, MixerSpec)
_CORE = Plugin(name="polyhead", summary="what core brings", mixers=BUILT_IN)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """Where a plugin comes from."""

    name: str
    """The name of its entry point."""
    distribution: str = ""
    """The name of its distribution; empty for a plugin registered in this process."""
    version: str = ""
    requires: tuple[str, ...] = ()
    """The requirements of its distribution, extras included."""

    def __str__(self) -> str:
        """Return the name and where it comes from, for messages."""
        return f'"{self.name}" ({f"{self.distribution} {self.version}".strip() or "this process"})'


@dataclass(frozen=True)
class Failure:
    """A plugin that could not be loaded, and why. ``str()`` gives the sentence for people."""

    name: str
    distribution: str
    version: str
    error: BaseException
    hint: str = ""
    """The command that mends it, if known."""

    def __str__(self) -> str:
        """Return one line: the plugin, the error, the mend if known."""
        origin = Origin(self.name, self.distribution, self.version)
        what = " ".join(str(self.error).split()) or type(self.error).__name__
        return f"Plugin {origin} failed to load: {what}" + (f"  {self.hint}" if self.hint else "")


class Manager:
    """The plugins of one process. ``manager()`` gives the shared one."""

    def __init__(self) -> None:
        """Make a manager that knows no plugin."""
        self._hooks = pluggy.PluginManager(GROUP)
        self._hooks.add_hookspecs(hookspecs)
        self._origins: dict[str, Origin] = {}
        self._modules: dict[str, Any] = {}
        self._plugins: dict[str, tuple[Origin, Plugin]] = {}
        self._failures: list[Failure] = []

    @property
    def plugins(self) -> tuple[Plugin, ...]:
        """The manifests, in the order they were loaded."""
        return tuple(plugin for _, plugin in self._plugins.values())

    @property
    def failures(self) -> tuple[Failure, ...]:
        """The plugins that could not be loaded."""
        return tuple(self._failures)

    def origin(self, plugin: str) -> Origin:
        """Return where the plugin of this name comes from.

        Raises:
            UnknownNameError: no such plugin is loaded.
        """
        if plugin not in self._plugins:
            raise self._unknown("plugin", plugin, self._plugins)
        return self._plugins[plugin][0]

    def load(self, only: Iterable[str] | None = None) -> None:
        """Load the entry points of all installed distributions, those named in ``only`` if given.

        Their order is that of the distributions' names, so that of two plugins that clash always the same one is kept.
        A plugin that fails is stored in ``failures`` and leaves the others working.
        """
        found = sorted(importlib.metadata.entry_points(group=GROUP), key=_order)
        names = {entry.name for entry in found}
        for name in sorted(set(only or ()) - names):
            guess = nearest(name, names)
            text = "POLYHEAD_PLUGINS names it." + (f' Did you mean "{guess}"?' if guess else "")
            self._fail(Origin(name, "not installed"), PluginError(text))
        for entry in found:
            if only is not None and entry.name not in only:
                continue
            dist = entry.dist
            origin = (
                Origin(entry.name, dist.metadata["Name"], dist.version, tuple(dist.requires or ()))
                if dist is not None
                else Origin(entry.name)
            )
            try:
                self._add(entry.load(), origin)
            except (Exception, SystemExit) as error:  # whatever a foreign module does must not reach the other plugins
                self._fail(origin, error)

    def register(self, module: Any, name: str = "") -> None:
        """Register a module or object with hook implementations by hand: for notebooks and tests.

        Args:
            module: what carries functions marked with ``hookimpl``.
            name: its name in messages; the module's own name if empty.

        Raises:
            PluginError: it implements no hook, a hook wrongly, or clashes with a loaded plugin.
        """
        origin = Origin(name or getattr(module, "__name__", type(module).__name__))
        try:
            self._add(module, origin)
        except PluginError:
            raise
        except Exception as error:
            raise PluginError(f"Plugin {origin} failed to load: {error}") from error

    def register_kernels(self, registry: Any) -> None:
        """Let every plugin add its kernels to ``registry``; one that fails is stored in ``failures``."""
        for key, module in list(self._modules.items()):
            try:
                self._call("polyhead_register_kernels", module, registry=registry)
            except (Exception, SystemExit) as error:  # as in load: the other plugins' kernels stay available
                self._fail(self._origins[key], error)

    def compile_programs(self, **arguments: Any) -> list[Any] | None:
        """Let every plugin compile its programs and return all builds; None if no plugin has any."""
        found = None
        for module in self._modules.values():
            for builds in self._call("polyhead_compile_kernels", module, **arguments):
                found = [*(found or ()), *builds]
        return found

    def find_plugin(self, name: str) -> Plugin:
        """Return a manifest by its name.

        Raises:
            UnknownNameError: no such plugin; suggests the nearest one.
        """
        if name not in self._plugins:
            raise self._unknown("plugin", name, self._plugins)
        return self._plugins[name][1]

    def find_model(self, name: str) -> tuple[Plugin, ModelSpec]:
        """Return a model and its plugin. Raises UnknownNameError."""
        return self._find("model", name, ((plugin, spec) for plugin in self.plugins for spec in plugin.models))

    def find_dataset(self, name: str) -> tuple[Plugin, DatasetSpec]:
        """Return a dataset and its plugin. Raises UnknownNameError."""
        return self._find("dataset", name, ((plugin, spec) for plugin in self.plugins for spec in plugin.datasets))

    def find_app(self, name: str) -> tuple[Plugin, AppSpec]:
        """Return a command and its plugin. Raises UnknownNameError."""
        return self._find("app", name, ((plugin, spec) for plugin in self.plugins for spec in plugin.apps))

    def find_mixer(self, name: str) -> tuple[Plugin, MixerSpec]:
        """Return a token mixer and its plugin, named "polyhead" for those of core. Raises UnknownNameError."""
        plugins = (_CORE, *self.plugins)
        return self._find("token mixer", name, ((plugin, spec) for plugin in plugins for spec in plugin.mixers))

    def find_task(self, plugin: str, name: str) -> tuple[Plugin, TaskSpec]:
        """Return a task of a plugin, and the plugin. Raises UnknownNameError."""
        owner = self.find_plugin(plugin)
        return self._find(f'task of plugin "{plugin}"', name, ((owner, spec) for spec in owner.tasks))

    def _find(self, kind: str, name: str, pairs: Iterator[tuple[Plugin, _Spec]]) -> tuple[Plugin, _Spec]:
        known = {spec.name: (plugin, spec) for plugin, spec in pairs}
        if name not in known:
            raise self._unknown(kind, name, known)
        return known[name]

    def _unknown(self, kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
        names = sorted(known)
        listing = ""
        if self._failures:
            failed = ", ".join(failure.name for failure in self._failures)
            listing = f"{', '.join(names) or 'none'}  (failed to load: {failed}; see: polyhead plugins)"
        return UnknownNameError(kind, name, names, listing)

    def _add(self, module: Any, origin: Origin) -> None:
        """Register one module; on failure the manager is what it was before."""
        key = f"{origin.distribution}:{origin.name}"
        try:
            if key in self._modules:
                where = origin.distribution or "this process"
                raise PluginError(f'There are two plugins "{origin.name}" in {where}. Rename one.')
            self._hooks.register(module, name=key)
            self._hooks.check_pending()
            if not self._hooks.get_hookcallers(module):
                raise PluginError("It implements no hook: mark a function polyhead_plugin with polyhead.hookimpl.")
            manifests = self._call("polyhead_plugin", module)
            for plugin in manifests:
                self._check_manifest(plugin, origin)
        except BaseException:
            if self._hooks.get_plugin(key) is module:
                self._hooks.unregister(name=key)
            raise
        self._modules[key] = module
        self._origins[key] = origin
        for plugin in manifests:
            self._plugins[plugin.name] = (origin, plugin)

    def _call(self, hook: str, module: Any, **arguments: Any) -> list[Any]:
        """Call a hook of one plugin only, so that a failure has an owner."""
        others = [plugin for plugin in self._hooks.get_plugins() if plugin is not module]
        return self._hooks.subset_hook_caller(hook, remove_plugins=others)(**arguments)

    def _check_manifest(self, plugin: Plugin, origin: Origin) -> None:
        """Refuse what is no manifest, and names that are malformed or taken."""
        if not isinstance(plugin, Plugin):
            raise PluginError(f"polyhead_plugin returned {type(plugin).__name__}; expected a polyhead.Plugin.")
        if plugin.name in self._plugins:
            other = self._plugins[plugin.name][0]
            raise PluginError(f'Plugin name "{plugin.name}" belongs to both {other} and {origin}. Uninstall one.')
        for kind in ("model", "dataset", "app", "task", "mixer"):
            taken = {} if kind == "task" else self._owners(kind)
            for spec in getattr(plugin, f"{kind}s"):
                if taken.get(spec.name) is origin:
                    raise PluginError(f'Its manifest names the {kind} "{spec.name}" twice. Rename one.')
                if spec.name in taken:
                    raise PluginError(
                        f'{kind.capitalize()} "{spec.name}" belongs to both {taken[spec.name]} and {origin}. '
                        f"Rename or uninstall one."
                    )
                taken[spec.name] = origin
        groups: tuple[tuple[ModelSpec | DatasetSpec | TaskSpec | AppSpec | MixerSpec, ...], ...]
        groups = (plugin.models, plugin.datasets, plugin.tasks, plugin.apps, plugin.mixers)
        for name in (plugin.name, *(spec.name for group in groups for spec in group)):
            if not _NAME.fullmatch(name):
                raise PluginError(f'Name "{name}" is not made of a-z, 0-9, "-", "_" and ".". Rename it.')

    def _owners(self, kind: str) -> dict[str, Origin]:
        every = ((Origin(_CORE.name, _CORE.name), _CORE), *self._plugins.values())
        return {spec.name: origin for origin, plugin in every for spec in getattr(plugin, f"{kind}s")}

    def _fail(self, origin: Origin, error: BaseException) -> None:
        failure = Failure(origin.name, origin.distribution, origin.version, error, _hint(origin, error))
        self._failures.append(failure)
        _log.debug("%s", failure, exc_info=error)
        if os.environ.get("POLYHEAD_STRICT_PLUGINS", "0") not in ("", "0"):
            raise PluginError(str(failure)) from error


def _order(entry: importlib.metadata.EntryPoint) -> tuple[str, str, str]:
    return (_normalised(entry.dist.metadata["Name"]) if entry.dist is not None else "", entry.name, entry.value)


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _hint(origin: Origin, error: BaseException) -> str:
    """Return the pip command that brings a missing module, if the distribution's metadata name it."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return ""
    missing = _normalised(error.name.split(".")[0])
    for requirement in origin.requires:
        name = re.match(r"[A-Za-z0-9._-]+", requirement)
        if name and _normalised(name[0]) == missing:
            extra = re.search(r"""extra\s*==\s*["']([^"']+)["']""", requirement)
            return f"pip install '{origin.distribution}[{extra[1]}]'" if extra else f"pip install {name[0]}"
    return ""


_lock = threading.RLock()
_shared: Manager | None = None
_loading = False


def manager() -> Manager:
    """Return the shared manager; the first call loads the installed plugins.

    Raises:
        PluginError: a plugin asked for it while being loaded, or failed with POLYHEAD_STRICT_PLUGINS set.
    """
    global _shared, _loading
    with _lock:
        if _shared is None:
            if _loading:
                raise PluginError("A plugin.py asked for plugins while they are being loaded. Move it into a function.")
            _loading = True
            try:
                names = os.environ.get("POLYHEAD_PLUGINS")
                loaded = Manager()
                loaded.load(None if names is None else {n.strip() for n in names.split(",") if n.strip()})
                _shared = loaded
            finally:
                _loading = False
        return _shared


def reload() -> Manager:
    """Forget every plugin, the registered ones included, and load the installed ones again: for tests."""
    global _shared
    with _lock:
        _shared = None
        return manager()


def plugins() -> tuple[Plugin, ...]:
    """Return the manifests of all plugins that loaded."""
    return manager().plugins


def failures() -> tuple[Failure, ...]:
    """Return the plugins that failed to load, with their errors."""
    return manager().failures


def register(module: Any, name: str = "") -> None:
    """Register a module or object with hook implementations in this process; see ``Manager.register``."""
    manager().register(module, name)


def register_kernels(registry: Any) -> None:
    """Let every plugin add its kernels to ``registry``; see ``Manager.register_kernels``."""
    manager().register_kernels(registry)


def compile_programs(**arguments: Any) -> list[Any] | None:
    """Let every plugin compile its programs; see ``Manager.compile_programs``."""
    return manager().compile_programs(**arguments)


def find_plugin(name: str) -> Plugin:
    """Return a manifest by its name. Raises UnknownNameError."""
    return manager().find_plugin(name)


def find_model(name: str) -> tuple[Plugin, ModelSpec]:
    """Return a model and its plugin. Raises UnknownNameError."""
    return manager().find_model(name)


def find_dataset(name: str) -> tuple[Plugin, DatasetSpec]:
    """Return a dataset and its plugin. Raises UnknownNameError."""
    return manager().find_dataset(name)


def find_app(name: str) -> tuple[Plugin, AppSpec]:
    """Return a command and its plugin. Raises UnknownNameError."""
    return manager().find_app(name)


def find_mixer(name: str) -> tuple[Plugin, MixerSpec]:
    """Return a token mixer and its plugin, named "polyhead" for those of core. Raises UnknownNameError."""
    return manager().find_mixer(name)


def find_task(plugin: str, name: str) -> tuple[Plugin, TaskSpec]:
    """Return a task of a plugin, and the plugin. Raises UnknownNameError."""
    return manager().find_task(plugin, name)
