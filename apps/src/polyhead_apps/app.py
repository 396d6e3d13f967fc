"""What an app is: data that the shell turns into a command. Imports no torch.

A plugin's ``app.py`` holds no more than this::

    from polyhead_apps import App, Demo, run

    app = App(
        name="traffic-forecast",
        plugin="traffic",
        summary="Forecast road sensors.",
        tasks=("forecast",),
        demo=Demo(settings={"train.epochs": 20}, quick={"train.steps": 20}, note="Simulated roads."),
    )


    def main() -> None:
        run(app)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NoReturn

__all__ = ["App", "Arm", "Demo", "run"]


def _nothing() -> Mapping[str, Any]:
    return MappingProxyType({})


@dataclass(frozen=True)
class Arm:
    """One of several models, or settings, that a demo trains and compares."""

    name: str
    """What tables call it."""
    settings: Mapping[str, Any] = field(default_factory=_nothing)
    """Dotted settings over those of the demo: ``{"model.name": "seq2seq"}``."""


@dataclass(frozen=True)
class Demo:
    """How the verb ``demo`` runs on the task's embedded dataset, or on a real folder with ``--data``."""

    settings: Mapping[str, Any] = field(default_factory=_nothing)
    """Dotted settings of the full demo, at most ten minutes on two CPU cores: ``{"train.epochs": 20}``."""
    quick: Mapping[str, Any] = field(default_factory=_nothing)
    """Dotted settings that ``--quick`` puts over ``settings``: the same path at toy size in at most 60 s."""
    note: str = ""
    """One sentence that every output of the demo carries."""
    arms: tuple[Arm, ...] = ()
    """What is compared, the plugin's own model first; none: one run with ``settings``."""
    seeds: int = 1
    """Runs of each arm, with seeds that count up from the user's; the quick demo makes one."""
    function: str = ""
    """``"module:function"`` that replaces the demo; it takes the arguments of `polyhead_apps.verbs.demo.demo`."""


@dataclass(frozen=True)
class App:
    """A command: the shell gives it the same verbs as every other app."""

    name: str
    """The command, as a person types it."""
    plugin: str
    """The plugin whose tasks it runs."""
    summary: str
    """One sentence: the first line of ``--help``."""
    tasks: tuple[str, ...]
    """Names of the plugin's tasks; the first is the default of ``--task``."""
    demo: Demo = field(default_factory=Demo)
    """That of every task which has none in ``demos``."""
    demos: Mapping[str, Demo] = field(default_factory=lambda: MappingProxyType({}))
    """Demos by task."""
    commands: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Further verbs: ``{"simulate": "module:function"}``, plain annotated functions given to Typer.

    The module is imported when the command runs or its help is shown, so ``--help`` of the app stays quick.
    """
    epilog: str = ""
    """What ``--help`` says at its end."""


def run(app: App, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run ``app`` on the command line's arguments (or ``arguments``) and exit: 0 done, 1 failed, 2 wrong usage."""
    from polyhead_apps.shell import main

    raise SystemExit(main(app, arguments))
