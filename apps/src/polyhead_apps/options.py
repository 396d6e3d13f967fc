"""Options of commands: the common ones, and those made from the fields of typed settings. Imports no torch."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from polyhead.errors import PluginError
from polyhead_apps.config import Section, TaskSettings, UsageError, load_settings

__all__ = ["COMMON", "Given", "SettingOption", "Target", "common_parameters", "setting_options"]

Settings = TypeVar("Settings", bound=Section)


class Target(StrEnum):
    """What `export` writes."""

    safetensors = "safetensors"
    pt2 = "pt2"
    onnx = "onnx"


@dataclass(frozen=True)
class Given:
    """The settings that the user gave: a file, options, ``--set``; what a verb lays over its own base."""

    file: Path | None = None
    sets: tuple[str, ...] = ()
    flags: Mapping[str, tuple[str, Any]] = field(default_factory=dict)
    """Dotted key to (option, value), such as ``{"train.lr": ("--lr", 0.01)}``."""
    command: str = ""
    """The whole command, as typed."""

    def arguments(self) -> list[str]:
        """Return the settings as command-line arguments, for a command that is proposed."""
        found = ["--config", str(self.file)] if self.file else []
        for option, value in self.flags.values():
            if isinstance(value, bool):
                found.append(option if value else f"--no-{option[2:]}")
            elif value is not None:
                found += [option, ",".join(value) if isinstance(value, list) else str(value)]
        for text in self.sets:
            found += ["--set", text]
        return found

    def settings(self, cls: type[Settings], base: Mapping[str, Any] | None = None, base_name: str = "") -> Settings:
        """Return validated settings; see `polyhead_apps.config.load_settings` for the order and the errors."""
        known = {key: pair for key, pair in self.flags.items() if _has(cls, key)}
        for key, (option, _) in self.flags.items():
            if key not in known:
                raise UsageError(f"{option} is no option of this task: its settings have no {key}.")
        return load_settings(cls, self.file, self.sets, known, base=base, base_name=base_name)


@dataclass(frozen=True)
class SettingOption:
    """An option made from a field of settings."""

    name: str
    """The Python parameter's name."""
    key: str
    """The setting, such as ``data.start``."""
    flag: str
    """The option, such as ``--start``."""
    parameter: inspect.Parameter
    listed: bool
    """True if the value is a list, written with commas."""

    def value(self, given: Any) -> Any:
        """Return what the settings take for the value that Typer gives."""
        return [part.strip() for part in given.split(",") if part.strip()] if self.listed else given


DATA, MODEL, TRAINING, RUN, OUTPUT = "Data", "Model", "Training", "Run", "Output"


def _option(annotation: Any, default: Any, *declarations: str, panel: str, help: str, **extra: Any) -> tuple[Any, Any]:  # noqa: A002 -- Typer's own name
    return Annotated[annotation, typer.Option(*declarations, help=help, rich_help_panel=panel, **extra)], default


COMMON: Mapping[str, tuple[Any, Any]] = {
    "data": _option(
        str | None,
        None,
        "--data",
        panel=DATA,
        metavar="PATH|NAME",
        help="Folder, file, or a dataset's name.",
    ),
    "model": _option(
        str | None,
        None,
        "--model",
        panel=MODEL,
        metavar="RUN|FOLDER",
        help="Run or model (default: the newest run).",
    ),
    "model_name": _option(
        str | None,
        None,
        "--model",
        panel=MODEL,
        metavar="NAME",
        help="Registered model; see `models`.",
    ),
    "preset": _option(str | None, None, "--preset", panel=MODEL, metavar="NAME", help="Named configuration."),
    "init_from": _option(
        str | None,
        None,
        "--init-from",
        panel=MODEL,
        metavar="RUN|FOLDER",
        help="Fine-tune: start from these weights, as far as names and shapes agree.",
    ),
    "epochs": _option(float | None, None, "--epochs", panel=TRAINING, help="Passes over the training split."),
    "steps": _option(
        int | None, None, "--steps", panel=TRAINING, help="Optimiser steps, instead of epochs or to end them early."
    ),
    "batch_size": _option(int | None, None, "--batch-size", panel=TRAINING, help="Samples per step, in all."),
    "lr": _option(float | None, None, "--lr", panel=TRAINING, help="Peak learning rate."),
    "time_limit": _option(
        str | None, None, "--time-limit", panel=TRAINING, metavar="TIME", help="Stop fitting after 90s, 20min or 1.5h."
    ),
    "resume": _option(
        str | None,
        None,
        "--resume",
        panel=RUN,
        metavar="[last|step-N]",
        help="Go on with the run --out (default: the newest unfinished one) from its last or a given checkpoint.",
    ),
    "devices": _option(
        int | None, None, "--devices", panel=RUN, min=1, metavar="N", help="Processes on this machine, one per GPU."
    ),
    "strategy": _option(
        Literal["ddp", "fsdp"], "ddp", "--strategy", panel=RUN, help="How several processes share the model."
    ),
    "num_nodes": _option(
        int, 1, "--num-nodes", panel=RUN, min=1, metavar="N", help="Machines; set MASTER_ADDR and MASTER_PORT on each."
    ),
    "device": _option(str, "auto", "--device", panel=RUN, help="auto, cpu, cuda, cuda:1 or mps."),
    "threads": _option(int | None, None, "--threads", panel=RUN, min=1, metavar="N", help="CPU threads."),
    "seed": _option(int | None, None, "--seed", panel=RUN, help="Seed of everything random."),
    "split": _option(
        Literal["train", "validation", "test"], "test", "--split", panel=DATA, help="Which part of the data."
    ),
    "targets": _option(
        list[Target] | None,
        None,
        "--to",
        panel=OUTPUT,
        help="What to write; may be repeated (default: safetensors and pt2).",
    ),
    "quick": _option(bool, False, "--quick", panel=RUN, help="The same path at toy size, in a minute; makes no claim."),
    "config": _option(
        Path | None, None, "--config", "-c", panel=RUN, metavar="FILE", help="Settings, as in a run's config.yaml."
    ),
    "sets": _option(
        list[str] | None,
        None,
        "--set",
        panel=RUN,
        metavar="KEY=VALUE",
        help="A setting, such as model.heads=4.",
    ),
    "out": _option(Path | None, None, "--out", "-o", panel=OUTPUT, metavar="PATH", help="Where to write."),
    "force": _option(bool, False, "--force", panel=OUTPUT, help="Replace what --out holds."),
    "as_json": _option(bool, False, "--json", panel=OUTPUT, help="One JSON document on stdout and nothing else."),
    "quiet": _option(bool, False, "--quiet", "-q", panel=OUTPUT, help="Results and warnings only."),
    "verbose": _option(bool, False, "--verbose", "-v", panel=OUTPUT, help="More details."),
    "debug": _option(bool, False, "--debug", panel=OUTPUT, help="Show the traceback of an error."),
}
"""Options that several verbs share: parameter name to (annotation, default)."""

SETTINGS = {
    "model_name": ("model.name", "--model"),
    "preset": ("model.preset", "--preset"),
    "epochs": ("train.epochs", "--epochs"),
    "steps": ("train.steps", "--steps"),
    "batch_size": ("train.batch_size", "--batch-size"),
    "lr": ("train.lr", "--lr"),
    "seed": ("seed", "--seed"),
}
"""Common options that stand for a setting."""


def common_parameters(names: Sequence[str], tasks: Sequence[str]) -> list[inspect.Parameter]:
    """Return the parameters of common options; ``task`` is made from the app's tasks."""
    parameters = []
    for name in names:
        if name == "task":
            choices = Literal[tuple(tasks)] | None  # type: ignore[valid-type]
            text = f"What the model is for (default: what the model or run given is for, else {tasks[0]})."
            annotation, default = _option(choices, None, "--task", panel=MODEL, help=text)
        else:
            annotation, default = COMMON[name]
        parameters.append(_parameter(name, annotation, default))
    return parameters


def setting_options(tasks: Sequence[type[TaskSettings]], section: str, taken: Sequence[str]) -> list[SettingOption]:
    """Make options of the fields of one section, over all tasks of an app; the first task that has a field wins.

    Args:
        tasks: the settings of the app's tasks.
        section: ``data``, ``predict`` and the like.
        taken: option names, such as ``--out``, that are not free.

    Raises:
        PluginError: a field would become an option that every app has.
    """
    options: dict[str, SettingOption] = {}
    for settings in tasks:
        model = settings.model_fields[section].annotation
        assert isinstance(model, type)  # TaskSettings declares its sections as classes
        assert issubclass(model, BaseModel)
        section_default = settings.model_fields[section].default
        for name, info in model.model_fields.items():
            flag = "--" + name.replace("_", "-")
            if flag in taken:
                raise PluginError(f"Setting {section}.{name} cannot become {flag}: the app has that option. Rename it.")
            if flag not in options:
                options[flag] = _setting_option(section, name, flag, info, getattr(section_default, name, None))
    return list(options.values())


def _setting_option(section: str, name: str, flag: str, info: FieldInfo, default: Any) -> SettingOption:
    annotation, listed = _command_line_type(info.annotation)
    text = (info.description or name).strip().rstrip(".")
    if isinstance(default, list | tuple):
        default = ",".join(str(part) for part in default)
    if default not in (None, ""):
        text += f" (default: {default})"
    typed, none = _option(
        annotation | None,
        None,
        f"{flag}/--no-{flag[2:]}" if annotation is bool else flag,
        panel=section.capitalize(),
        # Square brackets would be taken for the markup of rich.
        help=f"{text[:1].upper()}{text[1:]}.".replace("[", "\\["),
        show_default=False,
    )
    parameter = _parameter(f"{section}__{name}", typed, none)
    return SettingOption(parameter.name, f"{section}.{name}", flag, parameter, listed)


def _command_line_type(annotation: Any) -> tuple[Any, bool]:
    """Return what Typer parses for a field (text for what it lacks, left to pydantic), and whether it is a list."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _command_line_type(arguments[0])
    if origin in (typing.Union, types.UnionType):
        rest = [argument for argument in arguments if argument is not type(None)]
        return _command_line_type(rest[0]) if len(rest) == 1 else (str, False)
    if origin in (list, tuple, set, frozenset, Sequence):
        return str, True
    if origin is Literal and all(isinstance(argument, str) for argument in arguments):
        return annotation, False
    return (annotation, False) if annotation in (bool, int, float, str, Path) else (str, False)


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _has(cls: type[Section], key: str) -> bool:
    model: Any = cls
    for part in key.split("."):
        if not (isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields):
            return False
        model = model.model_fields[part].annotation
    return True
