"""Settings of every app: typed sections, so that a file, ``--set`` and the command line mean the same thing.

This module and every plugin's ``settings.py`` import no torch: the command line is built from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from polyhead.errors import ConfigError, nearest

__all__ = [
    "ModelSettings",
    "Section",
    "TaskSettings",
    "TrainSettings",
    "UsageError",
    "flatten",
    "load_settings",
    "parse_value",
    "read_yaml",
]

MAX_FILE_BYTES = 1_000_000
MAX_ERRORS = 10


class UsageError(ConfigError):
    """The command line is wrong: the command ends with exit code 2."""


class Section(BaseModel):
    """A group of settings; unknown keys are refused. Every field has a description: it is the option's help."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, coerce_numbers_to_str=True
    )

    overflow: ClassVar[str] = ""
    """The field, a dict, that takes keys which are no fields: ``model.heads`` means ``model.config.heads``."""
    of_files: ClassVar[tuple[str, ...]] = ()
    """Fields that describe the very files of a run, such as the time of their first row: a saved model that is used
    on other data keeps all its data settings but these."""


class ModelSettings(Section):
    """Which model, and what differs from its preset."""

    overflow: ClassVar[str] = "config"

    name: Annotated[str, Field(description="registered model, see the command `models`")] = ""
    preset: Annotated[str, Field(description="named configuration of the model")] = ""
    config: Annotated[dict[str, Any], Field(description="values of the model's config, e.g. --set model.heads=4")] = {}


class TrainSettings(Section):
    """The training recipe. Sizes are global: over all processes and accumulated micro-batches."""

    epochs: Annotated[float | None, Field(gt=0, description="passes over the training split")] = None
    steps: Annotated[int | None, Field(gt=0, description="optimiser steps; the smaller of both ends the run")] = None
    batch_size: Annotated[int, Field(gt=0, description="samples per optimiser step, over all processes")] = 32
    accumulate: Annotated[int, Field(gt=0, description="micro-batches per optimiser step")] = 1
    optimizer: Annotated[Literal["adam", "adamw", "sgd"], Field(description="optimiser")] = "adamw"
    lr: Annotated[float, Field(gt=0, description="peak learning rate")] = 1e-3
    betas: Annotated[
        tuple[float, float], Field(description="Adam's decay rates; sgd takes the first as its momentum")
    ] = (0.9, 0.999)
    weight_decay: Annotated[float, Field(ge=0, description="weight decay, not on biases and norms")] = 0.0
    schedule: Annotated[
        Literal["constant", "cosine", "linear", "step", "inverse_sqrt"],
        Field(description="learning-rate schedule after warm-up"),
    ] = "constant"
    warmup_steps: Annotated[int, Field(ge=0, description="steps of linear warm-up")] = 0
    step_epochs: Annotated[float, Field(gt=0, description="schedule `step`: epochs between drops")] = 5
    step_factor: Annotated[float, Field(gt=0, le=1, description="schedule `step`: factor of each drop")] = 0.7
    lr_floor: Annotated[float, Field(ge=0, description="smallest learning rate of the schedule")] = 0.0
    clip_norm: Annotated[float | None, Field(gt=0, description="largest gradient norm")] = None
    ema_decay: Annotated[
        float | None, Field(gt=0, lt=1, description="averaged weights; evaluated and saved instead")
    ] = None
    precision: Annotated[Literal["float32", "bf16", "fp16"], Field(description="mixed precision")] = "float32"
    validate_epochs: Annotated[float, Field(gt=0, description="epochs between validations")] = 1
    patience: Annotated[int | None, Field(gt=0, description="validations without a better one before stopping")] = None
    checkpoint_steps: Annotated[
        int | None, Field(gt=0, description="steps between checkpoints; None: at validations")
    ] = None
    keep: Annotated[int, Field(ge=1, description="checkpoints kept besides the best one")] = 2
    workers: Annotated[int, Field(ge=0, description="processes that load data")] = 0
    log_steps: Annotated[int, Field(gt=0, description="steps between log lines")] = 10
    compile: Annotated[bool, Field(description="torch.compile the model")] = False


class TaskSettings(Section):
    """One typed config per task: a plugin subclasses it and replaces ``data``, ``task``, ``predict`` and defaults.

    Fields of ``data`` become options of every verb that opens data, fields of ``predict`` options of ``predict``.
    """

    seed: Annotated[int, Field(ge=0, description="seed of everything random")] = 0
    data: Section = Section()
    task: Section = Section()
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()
    predict: Section = Section()


Settings = TypeVar("Settings", bound=Section)


def load_settings(
    cls: type[Settings],
    file: Path | None = None,
    sets: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    *,
    base: Mapping[str, Any] | None = None,
    base_name: str = "defaults",
) -> Settings:
    """Put together the settings of a command: ``base``, then the file, then flags, then ``--set``; and validate them.

    Args:
        cls: the settings of the task.
        file: YAML, at most 1 MB; the layout is that of a run's ``config.yaml``.
        sets: ``"train.lr=0.01"`` as given to ``--set``; the value is YAML.
        flags: dotted key to ``(option, value)``, for options that the user gave: ``{"train.lr": ("--lr", 0.01)}``.
        base: dotted settings below all others, such as those of a demo or of a run that is resumed.
        base_name: what messages call ``base``.

    Raises:
        ConfigError: the file is unreadable, or one of its keys or values is wrong; names file, key and nearest name.
        UsageError: the same for flags and ``--set``.
    """
    tree: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for key, value in (base or {}).items():
        _put(cls, tree, origins, key, value, base_name)
    if file is not None:
        for key, value in flatten(_read_mapping(file)).items():
            _put(cls, tree, origins, key, value, str(file))
    for key, (option, value) in (flags or {}).items():
        _put(cls, tree, origins, key, value, option)
    for text in sets:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--set {text}: write --set KEY=VALUE, such as --set train.lr=0.01.")
        _put(cls, tree, origins, key.strip(), parse_value(value, where=f"--set {key.strip()}"), f"--set {text}")
    try:
        return cls.model_validate(tree)
    except ValidationError as error:
        raise _explain(error, origins) from error


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping with dotted keys; empty mappings vanish.

    >>> flatten({"train": {"lr": 0.1, "steps": 3}, "seed": 0})
    {'train.lr': 0.1, 'train.steps': 3, 'seed': 0}
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def parse_value(text: str, *, where: str) -> Any:
    """Parse the value of ``--set`` as YAML: numbers, true/false, null, lists, else text.

    Raises:
        UsageError: the text is not YAML; names ``where``.
    """
    try:
        return read_yaml(text, where)
    except ConfigError as error:
        raise UsageError(str(error)) from error


def read_yaml(text: str, name: str) -> Any:
    """Parse YAML safely: no tags, no aliases (so no alias bombs), no duplicate keys, dates and times left as text.

    Raises:
        ConfigError: the text is not such YAML; names ``name``, line and column.
    """
    import yaml

    from polyhead_apps.yaml_loader import SettingsLoader

    try:
        return yaml.load(text, Loader=SettingsLoader)  # a stricter SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}, line {mark.line + 1}, column {mark.column + 1}" if mark else name
        raise ConfigError(f"{place}: {error.problem or error.context}.") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{name} is not readable YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigError(f"{name} is nested too deeply to be settings.") from error


def _read_mapping(file: Path) -> Mapping[str, Any]:
    try:
        size = file.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ConfigError(f"{file} has {size:,} bytes: settings are at most {MAX_FILE_BYTES:,}. Is it a data file?")
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 text (byte {error.start}). Settings are YAML.") from error
    except OSError as error:
        raise ConfigError(f"Cannot read settings {file}: {error.strerror or error}.") from error
    tree = read_yaml(text, str(file))
    if tree is None:
        return {}
    if not isinstance(tree, Mapping):
        raise ConfigError(f'{file} holds a {type(tree).__name__}: settings are keys and values, such as "seed: 0".')
    return tree


def _put(cls: type[Section], tree: dict[str, Any], origins: dict[str, str], key: str, value: Any, origin: str) -> None:
    """Set a dotted key in ``tree``; keys are checked against the fields of ``cls`` on the way."""
    model: type[Section] | None = cls
    node = tree
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if model is not None and part not in model.model_fields:
            if not model.overflow or not part:
                raise _unknown(model, parts[:depth], part, origin)
            node = node.setdefault(model.overflow, {})
            model = None
        if depth == len(parts) - 1:
            break
        inner = _section(model, part)
        if model is not None and inner is None and not _is_dict(model, part):
            raise _error(origin)(f"{_place(origin, key)}: {'.'.join(parts[: depth + 1])} has no parts.")
        if part not in node and model is not None and inner is not None:
            node[part] = _own_default(model, part)
        model = inner
        nested = node.setdefault(part, {})
        if not isinstance(nested, dict):
            nested = node[part] = {}
        node = nested
    inner = _section(model, parts[-1])
    if inner is not None:
        if value is None:
            return
        if not isinstance(value, Mapping):
            names = ", ".join(inner.model_fields) or "none"
            raise _error(origin)(f"{_place(origin, key)}: {key} is a group of settings ({names}): set one of them.")
        for name, item in flatten(value, f"{key}.").items():
            _put(cls, tree, origins, name, item, origin)
        return
    node[parts[-1]] = dict(value) if isinstance(value, Mapping) else value
    origins[key] = origin


def _section(model: type[Section] | None, name: str) -> type[Section] | None:
    annotation = model.model_fields[name].annotation if model is not None and name in model.model_fields else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def _own_default(model: type[Section], name: str) -> dict[str, Any]:
    """Return what a section's default sets apart from its class: pydantic drops it where one field is given."""
    default = model.model_fields[name].default
    return default.model_dump(exclude_unset=True) if isinstance(default, Section) else {}


def _is_dict(model: type[Section], name: str) -> bool:
    annotation = model.model_fields[name].annotation
    return annotation is dict or getattr(annotation, "__origin__", None) is dict


def _unknown(model: type[Section], parents: Sequence[str], name: str, origin: str) -> ConfigError:
    prefix = "".join(f"{parent}." for parent in parents)
    text = f'{_place(origin, prefix + name)}: no setting "{prefix}{name}".'
    if guess := nearest(name, model.model_fields):
        text += f' Did you mean "{prefix}{guess}"?'
    names = ", ".join(prefix + field for field in model.model_fields) or "none"
    return _error(origin)(f"{text}  All: {names}")


def _explain(error: ValidationError, origins: Mapping[str, str]) -> ConfigError:
    """Turn pydantic's errors into sentences that say where each value came from."""
    lines: list[str] = []
    usage = True
    problems = error.errors(include_url=False)
    for problem in problems[:MAX_ERRORS]:
        parts = [str(part) for part in problem["loc"]]
        origin = next((origins[k] for n in range(len(parts), 0, -1) if (k := ".".join(parts[:n])) in origins), "")
        key = ".".join(parts) or "settings"
        message = problem["msg"].removeprefix("Value error, ").rstrip(".")
        given = problem["input"]
        shown = "" if problem["type"] == "missing" or isinstance(given, (Mapping, BaseModel)) else f" is {given!r}"
        lines.append(f"{_place(origin, key)}: {key}{shown}: {message[:1].lower()}{message[1:]}.")
        usage = usage and origin.startswith("--")
    if len(problems) > MAX_ERRORS:
        lines.append(f"And {len(problems) - MAX_ERRORS} more.")
    return (UsageError if usage else ConfigError)("  ".join(lines))


def _place(origin: str, key: str) -> str:
    return origin or f"setting {key}"


def _error(origin: str) -> type[ConfigError]:
    return UsageError if origin.startswith("--") else ConfigError
