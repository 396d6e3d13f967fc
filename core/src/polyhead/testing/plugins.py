"""Check a whole plugin: manifest, and everything that it names."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polyhead import plugins
from polyhead.configs import config_problems
from polyhead.manifest import AppSpec, DatasetSpec, MixerSpec, ModelSpec, Plugin, TaskSpec, resolve
from polyhead.testing.apps import fresh_imports, report_app
from polyhead.testing.datasets import open_dataset, report_registered
from polyhead.testing.report import CheckError, Report, RuleError
from polyhead.testing.tasks import report_task, smallest_preset

__all__ = ["check_plugin"]

_MANIFEST = "polyhead.manifest"


def check_plugin(
    name: str, *, demo: bool = False, path: str | Path | None = None, settings: Mapping[str, Any] | None = None
) -> list[str]:
    """Check a plugin: what its manifest says, and every model, dataset, task, app and token mixer that it names.

    Args:
        name: the plugin's name.
        demo: run each app's ``demo --quick`` too.
        path: files for the first adapter that reads files, to be checked as a dataset.
        settings: values of the ``data`` section for ``path``, such as ``{"start": "2012-03-01"}``.

    Returns:
        list[str]: what was checked, a sentence each.

    Raises:
        CheckError: a rule is broken, or the plugin failed to load; names everything.
        UnknownNameError: there is no such plugin.
    """
    for failure in plugins.failures():
        if failure.name == name:
            raise CheckError(str(failure))
    plugin = plugins.find_plugin(name)
    report = Report(f'plugin "{name}"')
    _check_manifest(report, plugin)
    for model in plugin.models:
        _check_model(report, model)
    adapters = [dataset.name for dataset in plugin.datasets if not dataset.embedded]
    for dataset in plugin.datasets:
        given = dataset.name in adapters[:1]
        report.include(report_registered(dataset.name, path if given else None, settings=settings if given else None))
    for task in plugin.tasks:
        _check_task(report, task)
    for app in plugin.apps:
        report.include(report_app(app.name, demo=demo))
    for mixer in plugin.mixers:
        _check_mixer(report, mixer)
    return report.finish()


def _check_manifest(report: Report, plugin: Plugin) -> None:
    origin = plugins.manager().origin(plugin.name)
    specs: list[ModelSpec | DatasetSpec | TaskSpec | AppSpec | MixerSpec]
    specs = [*plugin.models, *plugin.datasets, *plugin.tasks, *plugin.apps, *plugin.mixers]
    with report.check("its entry point has its name", f"{_MANIFEST}.Plugin.name"):
        if origin.distribution and origin.name != plugin.name:
            raise RuleError(
                f'the entry point is "{origin.name}". Give both one name, so that POLYHEAD_PLUGINS finds it.'
            )
    with report.check("everything has a summary", f"{_MANIFEST}.Plugin.summary"):
        silent = [spec.name for spec in specs if not spec.summary.strip()]
        silent += [] if plugin.summary.strip() else [plugin.name]
        if silent:
            raise RuleError(f"not these: {', '.join(silent)}. Say in one line what each is.")
    with report.check("its datasets name their licence and where public data are", f"{_MANIFEST}.DatasetSpec"):
        for dataset in plugin.datasets:
            if not dataset.licence or not dataset.source:
                raise RuleError(f'"{dataset.name}" has licence "{dataset.licence}" and source "{dataset.source}".')
            if not dataset.embedded and not dataset.formats:
                raise RuleError(f'"{dataset.name}" reads files but lists no formats.')
    with report.check("its manifest and its settings import nothing heavy", "polyhead.testing.apps.HEAVY"):
        modules = [task.settings.partition(":")[0] for task in plugin.tasks]
        modules += [app.target.partition(":")[0] for app in plugin.apps]
        modules += [module] if (module := _module(origin)) else []
        if heavy := fresh_imports(modules):
            raise RuleError(f"with {', '.join(modules)} come {', '.join(heavy)}. Import them inside functions.")
    for spec in specs:
        with report.check(f'"{spec.name}": {spec.target} exists and has a docstring', f"{_MANIFEST}.resolve"):
            found = resolve(spec.target)
            # An app is an instance, whose own text is its summary.
            if callable(found) and not (inspect.getdoc(found) if not inspect.isclass(found) else found.__doc__):
                raise RuleError("it has no docstring. Begin one with a sentence that says what it is.")


def _module(origin: plugins.Origin) -> str:
    """Return the module that the plugin's entry point names; empty for a plugin of this process."""
    for entry in importlib.metadata.entry_points(group=plugins.GROUP, name=origin.name):
        if entry.dist is not None and entry.dist.metadata["Name"] == origin.distribution:
            return entry.module
    return ""


def _check_mixer(report: Report, spec: MixerSpec) -> None:
    from polyhead.testing.mixers import report_mixer

    with report.check(f'mixer "{spec.name}" is made of dim and heads', f"{_MANIFEST}.MixerSpec.target"):
        report.include(report_mixer(spec.name, causal=spec.causal))


def _check_model(report: Report, spec: ModelSpec) -> None:
    with report.check(
        f'model "{spec.name}" has a frozen config, and its presets fit', f"{_MANIFEST}.ModelSpec.presets"
    ):
        config = getattr(resolve(spec.target), "Config", None)
        if not (isinstance(config, type) and dataclasses.is_dataclass(config)):
            raise RuleError(f"{spec.target} has Config {config!r}. Set it to a frozen dataclass.")
        for name, values in spec.presets.items():
            if problems := config_problems(config, values):
                raise RuleError(f'preset "{name}": {" ".join(problems)}')


def _check_task(report: Report, spec: TaskSpec) -> None:
    subject = f'task "{spec.name}"'
    settings: Any = None
    with report.check(f"{subject}: its settings have defaults and describe each field", "polyhead_apps.config.Section"):
        settings = resolve(spec.settings)()
        for section in ("data", "task", "predict"):
            silent = [n for n, field in type(getattr(settings, section)).model_fields.items() if not field.description]
            if silent:
                raise RuleError(f"{section} does not describe {', '.join(silent)}. Field(description=...) is the help.")
    embedded: list[str] = []
    with report.check(f"{subject} names models and datasets that exist, one of them embedded", f"{_MANIFEST}.TaskSpec"):
        for name in spec.models:
            plugins.find_model(name)
        embedded = [name for name in spec.datasets if plugins.find_dataset(name)[1].embedded]
        if not spec.models or not embedded:
            raise RuleError("it needs at least one model, and one embedded dataset for `demo`.")
    if settings is None or not embedded:
        return
    data: Any = None
    with report.check(f"{subject}: its default dataset opens", f"{_MANIFEST}.TaskSpec.datasets"):
        data = open_dataset(plugins.find_dataset(embedded[0])[1], None, settings.data)
    for model in spec.models if data is not None else ():
        report.include(
            report_task(
                resolve(spec.target),
                data,
                settings=settings.task,
                model=model,
                config=smallest_preset(model),
                predict_settings=settings.predict,
            )
        )
