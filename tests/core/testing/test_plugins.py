"""``check_plugin`` checks the manifest, and with the other checks all that it names."""

from __future__ import annotations

import dataclasses
import re
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from polyhead import AppSpec, DatasetSpec, ModelSpec, Plugin, TaskSpec, hookimpl, plugins
from polyhead.errors import PluginError, UnknownNameError
from polyhead.testing import CheckError, check_plugin

HERE = __name__


class Net:
    """A model that is never built here."""

    @dataclasses.dataclass(frozen=True)
    class Config:
        dim: int
        heads: int = 4


class Loose:
    """A model without a config."""


class Undocumented(Net):
    pass


def open_data(path: Any, settings: Any) -> Any:
    """Open nothing."""
    raise OSError("the disk is gone")


class Section:
    def __init__(self, description: str) -> None:
        kind = type("Section", (), {"model_fields": {"step": types.SimpleNamespace(description=description)}})
        self.data = self.task = self.predict = kind()


class Settings(Section):
    def __init__(self) -> None:
        super().__init__("seconds between rows")


class Terse(Section):
    def __init__(self) -> None:
        super().__init__("")


MODEL = ModelSpec("net", f"{HERE}:Net", "a net", presets={"tiny": {"heads": 2}})
DATASET = DatasetSpec("waves", f"{HERE}:open_data", "waves", embedded=True, source="drawn", licence="CC0-1.0")
TASK = TaskSpec("guess", f"{HERE}:Net", f"{HERE}:Settings", "guesses", models=("net",), datasets=("waves",))
PLUGIN = Plugin("tides", "tides", models=(MODEL,), datasets=(DATASET,))


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Plugin], None]]:
    monkeypatch.setenv("POLYHEAD_PLUGINS", "")
    plugins.reload()

    def register(plugin: Plugin) -> None:
        class Module:
            @hookimpl
            def polyhead_plugin(self) -> Plugin:
                return plugin

        plugins.register(Module(), "tides")

    yield register
    monkeypatch.undo()
    plugins.reload()


def changed(**fields: Any) -> Plugin:
    return dataclasses.replace(PLUGIN, **fields)


def model(**fields: Any) -> Plugin:
    return changed(models=(dataclasses.replace(MODEL, **fields),), datasets=())


def dataset(**fields: Any) -> Plugin:
    return changed(datasets=(dataclasses.replace(DATASET, **fields),))


def task(**fields: Any) -> Plugin:
    return changed(tasks=(dataclasses.replace(TASK, **fields),))


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        (changed(summary=" "), "everything has a summary: not these: tides. Say in one line what each is."),
        (model(summary=""), "everything has a summary: not these: net."),
        (dataset(licence=""), '"waves" has licence "" and source "drawn".'),
        (dataset(source=""), '"waves" has licence "CC0-1.0" and source "".'),
        (dataset(embedded=False), '"waves" reads files but lists no formats.'),
        (task(settings="torch:Settings"), "with torch come torch. Import them inside functions."),
        (task(settings="no_such_module:S"), "nothing heavy: ModuleNotFoundError: No module named 'no_such_module'"),
        (model(target=f"{HERE}:Undocumented"), "it has no docstring. Begin one with a sentence that says what it is."),
        (model(target=f"{HERE}:Nothing"), 'raised PluginError: Module "'),
        (model(target=f"{HERE}:Loose"), "has Config None. Set it to a frozen dataclass."),
        (model(presets={"tiny": {"head": 2}}), 'preset "tiny": no setting "head". Did you mean "heads"?'),
        (model(presets={"tiny": {"heads": "2"}}), 'preset "tiny": "heads" is \'2\' (str); expected int.'),
        (PLUGIN, 'dataset "waves": it opens, twice with the same fingerprint: raised OSError: the disk is gone'),
        (task(settings=f"{HERE}:Terse"), "data does not describe step. Field(description=...) is the help."),
        (task(models=("nett",)), 'raised UnknownNameError: No model "nett". Did you mean "net"?'),
        (task(models=()), "it needs at least one model, and one embedded dataset for `demo`."),
        (task(), 'task "guess": its default dataset opens: raised OSError: the disk is gone'),
        (
            changed(apps=(AppSpec("tide-it", f"{HERE}:Net", "tides"),)),
            'app "tide-it": its distribution installs the command: there is no such console script.',
        ),
    ],
)
def test_what_is_wrong_is_said(register: Callable[[Plugin], None], plugin: Plugin, message: str) -> None:
    register(plugin)
    with pytest.raises(CheckError, match=re.escape(message)) as caught:
        check_plugin("tides")
    assert str(caught.value).startswith('plugin "tides": ')


def test_a_sound_manifest_passes(register: Callable[[Plugin], None]) -> None:
    register(changed(datasets=()))
    assert check_plugin("tides") == [
        "its entry point has its name",
        "everything has a summary",
        "its datasets name their licence and where public data are",
        "its manifest and its settings import nothing heavy",
        f'"net": {HERE}:Net exists and has a docstring',
        'model "net" has a frozen config, and its presets fit',
    ]


def test_the_entry_points_name_is_the_plugins(
    register: Callable[[Plugin], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    register(changed(datasets=()))
    origin = plugins.Origin("waves", "polyhead-tides", "0.1")
    monkeypatch.setattr(plugins.Manager, "origin", lambda self, name: origin)
    with pytest.raises(CheckError, match=r'the entry point is "waves"\. Give both one name, so that POLYHEAD_PLUGINS'):
        check_plugin("tides")


def test_a_plugin_that_failed_to_load_is_named_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    failure = plugins.Failure("gaze", "polyhead-gaze", "0.3.0", PluginError("it is broken"))
    monkeypatch.setattr(plugins, "failures", lambda: (failure,))
    with pytest.raises(CheckError, match=r'Plugin "gaze" \(polyhead-gaze 0\.3\.0\) failed to load: it is broken'):
        check_plugin("gaze")
    with pytest.raises(UnknownNameError, match='No plugin "gazes"'):
        check_plugin("gazes")
