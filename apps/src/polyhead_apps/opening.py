"""Open what the command line names: tasks, datasets, saved models. What imports torch does so when called."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyhead import plugins
from polyhead.configs import config_problems
from polyhead.errors import CheckpointError, ConfigError, DataError, PluginError, UnknownNameError, nearest
from polyhead.manifest import DatasetSpec, ModelSpec, TaskSpec, resolve
from polyhead.protocols import Data, Task
from polyhead_apps.app import App
from polyhead_apps.config import ModelSettings, Section, TaskSettings, UsageError
from polyhead_apps.runs import Run

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "TASK_FILE",
    "Loaded",
    "data_arguments",
    "dataset_specs",
    "embedded_default",
    "find_data",
    "load_model",
    "model_config",
    "open_data",
    "settings_class",
    "task_spec",
]

TASK_FILE = "task.json"
"""Beside the weights: plugin, task and the task's state."""


def task_spec(app: App, name: str) -> TaskSpec:
    """Return the manifest of one of the app's tasks."""
    return plugins.find_task(app.plugin, name)[1]


def settings_class(spec: TaskSpec) -> type[TaskSettings]:
    """Return the settings of a task.

    Raises:
        PluginError: the manifest names something else.
    """
    found = resolve(spec.settings)
    if not (isinstance(found, type) and issubclass(found, TaskSettings)):
        raise PluginError(f'Settings of task "{spec.name}" ({spec.settings}) are no polyhead_apps.config.TaskSettings.')
    return found


def dataset_specs(spec: TaskSpec) -> dict[str, DatasetSpec]:
    """Return the datasets that a task takes, by name."""
    return {name: plugins.find_dataset(name)[1] for name in spec.datasets}


def embedded_default(spec: TaskSpec) -> str:
    """Return the name of the embedded dataset that ``demo`` runs on.

    Raises:
        PluginError: the task has none.
    """
    for name, dataset in dataset_specs(spec).items():
        if dataset.embedded:
            return name
    raise PluginError(f'Task "{spec.name}" has no embedded dataset: give --data PATH.')


def find_data(spec: TaskSpec, given: str | None) -> tuple[DatasetSpec, Path | None]:
    """Return the dataset that ``--data`` means, and the path of its files; None for one that is meant by its name.

    A file or folder here of the same name as a public dataset is what is meant.

    Raises:
        UsageError: nothing is given, or the name of a dataset that reads files.
        DataError: there is no such file, folder or dataset; suggests the nearest name.
    """
    known = dataset_specs(spec)
    embedded = [name for name, dataset in known.items() if dataset.embedded]
    public = [name for name, dataset in known.items() if dataset.files]
    if given is None:
        also = f", or an embedded dataset: {', '.join(embedded)}" if embedded else ""
        raise UsageError(f"Which data? Give --data PATH{also}. The command `datasets` lists what can be read.")
    if given in known and known[given].embedded:
        return known[given], None
    path = Path(given)
    if path.exists():
        for dataset in known.values():
            if not dataset.embedded and not dataset.files:
                return dataset, path
        raise UsageError(f'Task "{spec.name}" reads no files: --data takes {", ".join(embedded)}.')
    if given in public:
        return known[given], None
    if given in known:
        raise UsageError(f'Dataset "{given}" reads your files: give their path, --data PATH.')
    text = f"--data {given}: no such file, folder or dataset."
    if guess := nearest(given, known):
        text += f' Did you mean "{guess}"?'
    fetched = f"; public: {', '.join(public)}" if public else ""
    raise DataError(f"{text}  Embedded: {', '.join(embedded) or 'none'}{fetched}")


def open_data(spec: TaskSpec, given: str | None, settings: Section) -> Data:
    """Open a dataset; see `find_data` for what ``given`` means. Errors are those of the adapter.

    Raises:
        DataError: a public dataset has not been fetched; names the command that does it.
    """
    from polyhead_apps.fetching import fetched

    dataset, path = find_data(spec, given)
    if dataset.files and path is None:
        path = fetched(dataset)
    opened: Data = resolve(dataset.target)(path, settings)
    return opened


def model_config(spec: TaskSpec, settings: ModelSettings) -> tuple[str, dict[str, Any]]:
    """Return the model's name and its config values: those of the preset under those of the user.

    What the data determine is added by the task later. Imports the model's module, and with it torch.

    Raises:
        UnknownNameError: no such model of this task, or no such preset.
        ConfigError: the model has no such config key, or the value is of another type; suggests the nearest.
    """
    name = settings.name or spec.models[0]
    if name not in spec.models:
        raise UnknownNameError(f'model of task "{spec.name}"', name, spec.models)
    model: ModelSpec = plugins.find_model(name)[1]
    if settings.preset and settings.preset not in model.presets:
        raise UnknownNameError(f'preset of model "{name}"', settings.preset, model.presets)
    config = {**model.presets.get(settings.preset, {}), **settings.config}
    if problems := config_problems(resolve(model.target).Config, config):
        raise ConfigError(f'Model "{name}": {" ".join(problems)}  (--set model.KEY=VALUE)')
    return name, config


@dataclass(frozen=True)
class Loaded:
    """A saved model, ready to use."""

    model: nn.Module
    name: str
    """The registered name of the model."""
    spec: TaskSpec
    task: Task


def load_model(app: App, task: str | None, folder: Path) -> Loaded:
    """Load a model folder and its task, for which ``task`` may name what the user expects.

    Raises:
        CheckpointError: it is damaged, or was fitted by another plugin or for another task.
    """
    from polyhead.models import from_pretrained, read_config, read_extra

    if not (folder / TASK_FILE).is_file():
        raise CheckpointError(
            f"{folder} has no {TASK_FILE}: it does not say what the model is for. Make it with `fit`."
        )
    saved = read_extra(folder, TASK_FILE)
    if not (isinstance(saved, dict) and isinstance(saved.get("state"), dict)):
        raise CheckpointError(f"{folder / TASK_FILE} is damaged: it holds no task. Use another copy of {folder}.")
    if saved.get("plugin") != app.plugin or saved.get("task") not in app.tasks:
        raise CheckpointError(
            f'{folder} was fitted for task "{saved.get("task")}" of plugin "{saved.get("plugin")}"; '
            f'{app.name} runs {", ".join(app.tasks)} of plugin "{app.plugin}".'
        )
    if task is not None and saved["task"] != task:
        raise CheckpointError(f'{folder} was fitted for task "{saved["task"]}", not "{task}": leave --task out.')
    name = read_config(folder).model
    spec = task_spec(app, saved["task"])
    model = from_pretrained(folder)
    return Loaded(model, name, spec, resolve(spec.target).restore(saved["state"]))


def data_arguments(given: str | None, run: Run | None, cls: type[TaskSettings]) -> tuple[str | None, dict[str, Any]]:
    """Return the data a saved model is used on, and the dotted settings it starts from.

    Without ``--data`` both are the run's. On other data the settings that describe the run's very files
    (``Section.of_files``) go back to their defaults.
    """
    if run is None:
        return given, {}
    record, settings = run.record["data"], run.settings()
    ran_on = record.get("path") or record.get("dataset")
    if given is None:
        return ran_on, settings
    same = given == ran_on or (record.get("path") is not None and str(Path(given).resolve()) == ran_on)
    section = cls.model_fields["data"].annotation
    local = () if same or not isinstance(section, type) else getattr(section, "of_files", ())
    return given, {key: value for key, value in settings.items() if key not in {f"data.{name}" for name in local}}
