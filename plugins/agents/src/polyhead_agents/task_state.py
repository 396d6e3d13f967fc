"""What the tasks of this plugin share: their state as JSON values, and configs that the data determine."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from polyhead.errors import CheckpointError, ConfigError

__all__ = ["fields_of", "state_of", "with_data"]


def state_of(task: Any) -> dict[str, Any]:
    """Return the fields of a task, a dataclass, as JSON values."""
    return {
        field.name: list(value) if isinstance(value := getattr(task, field.name), tuple) else value
        for field in dataclasses.fields(task)
    }


def fields_of(cls: type, state: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Return a task's fields from its state.

    Raises:
        CheckpointError: the state is that of another version.
    """
    names = {field.name for field in dataclasses.fields(cls)}
    if set(state) != names:
        odd = ", ".join(sorted(set(state) ^ names))
        raise CheckpointError(f"The state of the task {task} does not fit this version: {odd}. Fit the model again.")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in state.items()}


def with_data(determined: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's config with what the data determine.

    Raises:
        ConfigError: ``config`` sets it to something else.
    """
    for key, value in determined.items():
        if config.get(key, value) != value:
            raise ConfigError(f"model.{key} is {config[key]}, but the data have {value}. Leave it out.")
    return {**config, **determined}
