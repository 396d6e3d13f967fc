"""Configs of models: frozen dataclasses that travel as JSON, checked by their annotations."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from polyhead.errors import ConfigError, nearest

__all__ = ["config_from_dict", "config_problems", "config_to_dict"]

C = TypeVar("C")


def config_from_dict(config: type[C], values: Mapping[str, Any], *, what: str = "") -> C:
    """Build the dataclass ``config`` from JSON values, checked against its annotations.

    Lists become tuples where annotated so, integers become floats, nested dataclasses are built from objects. A bool
    is no integer and a string is no number. Known annotations: bool, int, float, str, None, Literal, unions, tuples,
    lists, string-keyed dicts, dataclasses and Any.

    Args:
        config: a dataclass.
        values: by field name.
        what: begins the message, such as ``Model "gman"``; the dataclass's name if empty.

    Raises:
        ConfigError: keys are unknown (suggests the nearest), missing, or have values of the wrong type; names them all.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Config:
    ...     heads: int = 4
    ...     widths: tuple[int, ...] = (64, 128)
    >>> config_from_dict(Config, {"widths": [32]})
    Config(heads=4, widths=(32,))
    >>> config_from_dict(Config, {"head": 8})
    Traceback (most recent call last):
    polyhead.errors.ConfigError: Config: no setting "head". Did you mean "heads"?
    """
    what = what or config.__qualname__
    if not (isinstance(config, type) and dataclasses.is_dataclass(config)):
        raise ConfigError(f"{what}: its config class is {config!r}; expected a dataclass.")
    result, problems = _build(config, values, "")
    problems += _missing(config, values, "")
    if not problems:
        try:
            return typing.cast(C, config(**result))
        except ConfigError:
            raise
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{what}: {error}") from error
    raise ConfigError(f"{what}: " + " ".join(problems))


def config_problems(config: type, values: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with values that are only a part of a config, such as a preset; empty if they fit."""
    return _build(config, values, "")[1]


def config_to_dict(config: Any) -> dict[str, Any]:
    """Return a config dataclass as JSON values; ``config_from_dict`` gives it back equal.

    Raises:
        ConfigError: a value is not a bool, finite number, string, None, or list, tuple, string-keyed dict or dataclass
            of these; names the key.
    """
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise ConfigError(f"The config is {config!r}; expected an instance of a dataclass.")
    return {f.name: _plain(getattr(config, f.name), f.name) for f in dataclasses.fields(config) if f.init}


def _plain(value: Any, key: str) -> Any:
    if value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value)):
        return value
    if isinstance(value, tuple | list):
        return [_plain(item, f"{key}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Mapping) and all(type(name) is str for name in value):
        return {name: _plain(item, f"{key}.{name}") for name, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name), f"{key}.{f.name}") for f in dataclasses.fields(value) if f.init}
    raise ConfigError(f'Config value "{key}" is {value!r} ({type(value).__name__}), which JSON cannot carry.')


def _build(config: type, values: Mapping[str, Any], prefix: str) -> tuple[dict[str, Any], list[str]]:
    """Return checked keyword arguments and the problems found, each a sentence."""
    fields = {f.name: f for f in dataclasses.fields(config) if f.init}
    hints = typing.get_type_hints(config)
    result: dict[str, Any] = {}
    problems: list[str] = []
    for key, value in values.items():
        if key not in fields:
            guess = nearest(str(key), fields)
            mend = f'Did you mean "{prefix}{guess}"?' if guess else f"All: {', '.join(sorted(fields)) or 'none'}."
            problems.append(f'no setting "{prefix}{key}". {mend}')
            continue
        result[key], problem = _coerce(hints[key], value, f"{prefix}{key}")
        problems.extend(problem)
    return result, problems


def _missing(config: type, values: Mapping[str, Any], prefix: str) -> list[str]:
    """Return a sentence for each field without a default that has no value."""
    hints = typing.get_type_hints(config)
    return [
        f'"{prefix}{f.name}" ({_describe(hints[f.name])}) is missing.'
        for f in dataclasses.fields(config)
        if f.init
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
        and f.name not in values
    ]


def _coerce(annotation: Any, value: Any, key: str) -> tuple[Any, list[str]]:
    """Return the value as the annotation wants it, and the problems found."""
    wrong = [f'"{key}" is {value!r} ({type(value).__name__}); expected {_describe(annotation)}.']
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return value, []
    if annotation is None or annotation is type(None):
        return value, [] if value is None else wrong
    if annotation is float:
        if type(value) in (int, float) and math.isfinite(value):
            return float(value), []
        return value, wrong
    if annotation in (bool, int, str):
        return value, [] if type(value) is annotation else wrong
    if origin is typing.Literal:
        allowed = any(type(value) is type(choice) and value == choice for choice in arguments)
        if not allowed and isinstance(value, str):
            guess = nearest(value, [choice for choice in arguments if isinstance(choice, str)])
            wrong = [wrong[0] + f' Did you mean "{guess}"?'] if guess else wrong
        return value, [] if allowed else wrong
    if origin in (typing.Union, types.UnionType):
        # An exact match first, so that 1 stays an int in `float | int`.
        options = [_coerce(option, value, key) for option in arguments]
        fitting = [result for result, problems in options if not problems]
        exact = [result for result in fitting if type(result) is type(value)]
        return (exact or fitting or [value])[0], [] if fitting else wrong
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return _coerce_dataclass(annotation, value, key, wrong)
    if origin in (tuple, list) or annotation in (tuple, list):
        return _coerce_items(origin or annotation, arguments, value, key, wrong)
    if origin in (dict, Mapping) or annotation is dict:
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            return value, wrong
        inner = arguments[1] if arguments else Any
        pairs = {name: _coerce(inner, item, f"{key}.{name}") for name, item in value.items()}
        return {name: result for name, (result, _) in pairs.items()}, [
            p for _, problems in pairs.values() for p in problems
        ]
    return value, [f'"{key}" is annotated {_describe(annotation)}, which a config file cannot carry.']


def _coerce_dataclass(annotation: type, value: Any, key: str, wrong: list[str]) -> tuple[Any, list[str]]:
    if isinstance(value, annotation):
        return value, []
    if not isinstance(value, Mapping):
        return value, wrong
    result, problems = _build(annotation, value, f"{key}.")
    problems += _missing(annotation, value, f"{key}.")
    if problems:
        return value, problems
    try:
        return annotation(**result), []
    except (TypeError, ValueError) as error:
        return value, [f'"{key}": {error}']


def _coerce_items(
    kind: type, arguments: tuple[Any, ...], value: Any, key: str, wrong: list[str]
) -> tuple[Any, list[str]]:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        return value, wrong
    if not arguments:
        return kind(value), []
    if kind is list or arguments[-1] is Ellipsis:
        inner: Sequence[Any] = [arguments[0]] * len(value)
    elif len(arguments) == len(value):
        inner = arguments
    else:
        return value, wrong
    items = [_coerce(option, item, f"{key}[{i}]") for i, (option, item) in enumerate(zip(inner, value, strict=True))]
    return kind(result for result, _ in items), [problem for _, problems in items for problem in problems]


def _describe(annotation: Any) -> str:
    """Return an annotation in words that fit into a message."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(choice) for choice in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(option) for option in arguments)
    if annotation is type(None):
        return "None"
    if origin in (tuple, list):
        if origin is tuple and arguments[-1] is not Ellipsis:
            return f"a list of {len(arguments)}: {', '.join(_describe(option) for option in arguments)}"
        return f"a list of {_describe(arguments[0])}"
    if origin is None and isinstance(annotation, type):
        return annotation.__name__
    return str(annotation)
