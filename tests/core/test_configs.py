"""Configs travel as JSON and come back equal; what does not fit is named with key, value and expected type."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyhead.errors import ConfigError
from polyhead.models import config_from_dict, config_to_dict


@dataclasses.dataclass(frozen=True)
class Part:
    width: int = 2
    rate: float = 0.5

    def __post_init__(self) -> None:
        if self.width < 0:
            raise ValueError("width must not be negative")


@dataclasses.dataclass(frozen=True)
class Config:
    nodes: int
    heads: int = 4
    dropout: float = 0.0
    causal: bool = False
    name: str = "x"
    kind: Literal["add", "gate", 3] = "add"
    window: int | None = None
    scale: float | int | str | None = None
    widths: tuple[int, ...] = (1, 2)
    pair: tuple[int, float] = (1, 2.0)
    names: list[str] = dataclasses.field(default_factory=list)
    table: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    part: Part = Part()
    parts: tuple[Part, ...] = ()
    anything: Any = None

    def __post_init__(self) -> None:
        if self.heads < 1:
            raise ValueError(f"heads is {self.heads}: it must be at least 1.")


part = st.builds(Part, st.integers(0, 9), st.floats(allow_nan=False, allow_infinity=False))
configs = st.builds(
    Config,
    nodes=st.integers(),
    heads=st.integers(1),
    dropout=st.floats(allow_nan=False, allow_infinity=False),
    causal=st.booleans(),
    kind=st.sampled_from(["add", "gate", 3]),
    window=st.none() | st.integers(),
    scale=st.none() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
    widths=st.lists(st.integers()).map(tuple),
    pair=st.tuples(st.integers(), st.floats(allow_nan=False, allow_infinity=False)),
    names=st.lists(st.text()),
    table=st.dictionaries(st.text(), st.lists(st.integers()).map(tuple)),
    part=part,
    parts=st.lists(part).map(tuple),
    anything=st.none() | st.integers() | st.lists(st.text()),
)


@given(configs)
def test_round_trip_through_json(config: Config) -> None:
    again = config_from_dict(Config, json.loads(json.dumps(config_to_dict(config))))
    assert again == config
    assert {k: type(v) for k, v in vars(again).items()} == {k: type(v) for k, v in vars(config).items()}


def test_integers_become_floats_and_lists_become_tuples() -> None:
    config = config_from_dict(Config, {"nodes": 3, "dropout": 1, "pair": [1, 2], "part": {"rate": 1}, "scale": 1})
    assert type(config.dropout) is float
    assert config.pair == (1, 2.0)
    assert type(config.pair[1]) is float
    assert config.part == Part(rate=1.0)
    assert type(config.scale) is int
    assert config_from_dict(Config, {"nodes": 3, "part": Part(5)}).part == Part(5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"head": 3}, 'Config: no setting "head". Did you mean "heads"?'),
        ({"qqq": 3}, 'Config: no setting "qqq". All: anything, causal, dropout,'),
        ({"part": {"widht": 3}}, 'Config: no setting "part.widht". Did you mean "part.width"?'),
        ({"heads": "4"}, "Config: \"heads\" is '4' (str); expected int."),
        ({"heads": True}, 'Config: "heads" is True (bool); expected int.'),
        ({"heads": 4.0}, 'Config: "heads" is 4.0 (float); expected int.'),
        ({"causal": 1}, 'Config: "causal" is 1 (int); expected bool.'),
        ({"dropout": True}, 'Config: "dropout" is True (bool); expected float.'),
        ({"dropout": math.nan}, 'Config: "dropout" is nan (float); expected float.'),
        ({"name": None}, 'Config: "name" is None (NoneType); expected str.'),
        ({"kind": "gat"}, "\"kind\" is 'gat' (str); expected one of 'add', 'gate', 3. Did you mean \"gate\"?"),
        ({"kind": 4}, "\"kind\" is 4 (int); expected one of 'add', 'gate', 3."),
        ({"window": "a"}, "\"window\" is 'a' (str); expected int or None."),
        ({"widths": 3}, '"widths" is 3 (int); expected a list of int.'),
        ({"widths": "34"}, "\"widths\" is '34' (str); expected a list of int."),
        ({"widths": [1, "a"]}, "\"widths[1]\" is 'a' (str); expected int."),
        ({"pair": [1]}, '"pair" is [1] (list); expected a list of 2: int, float.'),
        ({"table": {1: []}}, '"table" is {1: []} (dict); expected dict[str, tuple[int, ...]].'),
        ({"table": {"a": [None]}}, '"table.a[0]" is None (NoneType); expected int.'),
        ({"part": 3}, '"part" is 3 (int); expected Part.'),
        ({"part": {"width": -1}}, '"part": width must not be negative'),
        ({"parts": [{"rate": "x"}]}, "\"parts[0].rate\" is 'x' (str); expected float."),
        ({"heads": 0}, "Config: heads is 0: it must be at least 1."),
    ],
)
def test_what_does_not_fit_is_named(values: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        config_from_dict(Config, {"nodes": 3, **values})


def test_all_problems_are_told_at_once_and_the_subject_is_the_callers() -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_dict(Config, {"head": 3, "causal": 1}, what='Model "gman"')
    assert str(caught.value) == (
        'Model "gman": no setting "head". Did you mean "heads"? '
        '"causal" is 1 (int); expected bool. "nodes" (int) is missing.'
    )


def test_a_config_that_is_no_dataclass_is_refused() -> None:
    with pytest.raises(ConfigError, match="its config class is <class 'dict'>; expected a dataclass"):
        config_from_dict(dict, {})
    with pytest.raises(ConfigError, match="expected an instance of a dataclass"):
        config_to_dict(Config)


def test_an_annotation_that_no_file_can_carry_is_named() -> None:
    @dataclasses.dataclass(frozen=True)
    class Odd:
        values: set = dataclasses.field(default_factory=set)

    # Local classes have no resolvable string annotations, so give the types themselves.
    Odd.__annotations__["values"] = set
    with pytest.raises(ConfigError, match='"values" is annotated set, which a config file cannot carry'):
        config_from_dict(Odd, {"values": [1]})


@pytest.mark.parametrize("value", [math.inf, {1}, {1: 2}, object, b"x"])
def test_values_that_json_cannot_carry_are_named(value: Any) -> None:
    with pytest.raises(ConfigError, match=r'Config value "anything\[0\]" is .*, which JSON cannot carry'):
        config_to_dict(Config(nodes=1, anything=[value]))
