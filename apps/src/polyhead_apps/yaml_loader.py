"""A stricter YAML: the part that settings need, so that a hostile or careless file ends in a clear error."""

from __future__ import annotations

import re
from typing import Any

import yaml

__all__ = ["SettingsLoader"]


class SettingsLoader(yaml.SafeLoader):
    """Safe YAML without tags, aliases and duplicate keys; scalars resolve as in YAML 1.2.

    PyYAML's defaults read ``12:30`` as 750, ``no`` as False, ``2012-03-01`` as a date and ``1e-3`` as text.
    """

    yaml_implicit_resolvers = {}  # noqa: RUF012 -- PyYAML's own name; its stubs call it an instance variable

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse aliases: a file of 1 kB could stand for gigabytes."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            problem = f'alias "*{event.anchor}" is not allowed in settings: write the value out'
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Refuse keys that are no text and keys that come twice."""
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be text", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f'key "{key.value}" comes twice', problem_mark=key.start_mark)
            seen.add(key.value)
            key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep)


def _int(_loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(node.value, 16 if node.value.startswith("0x") else 10)


def _float(_loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    text = node.value.lower()
    return float(text.replace(".", "") if text.endswith(("inf", "nan")) else text)


# A number with leading zeros stays text: it is more often a sensor's name than a number.
_RESOLVERS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}
for _name, (_pattern, _first) in _RESOLVERS.items():
    SettingsLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"^(?:{_pattern})$"), _first)
SettingsLoader.add_constructor("tag:yaml.org,2002:int", _int)
SettingsLoader.add_constructor("tag:yaml.org,2002:float", _float)
