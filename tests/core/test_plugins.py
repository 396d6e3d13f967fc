"""Plugins load one by one: a broken one is named and the others work; two owners of a name are refused."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from polyhead import ModelSpec, Plugin, TaskSpec, hookimpl, plugins
from polyhead.errors import PluginError, UnknownNameError

Install = Callable[..., None]

GOOD = """
from polyhead import AppSpec, DatasetSpec, ModelSpec, Plugin, TaskSpec, hookimpl

@hookimpl
def polyhead_plugin():
    return Plugin(
        name="{name}", summary="a plugin",
        models=(ModelSpec(name="{name}-net", target="{name}_m:Net", summary="a model"),),
        datasets=(DatasetSpec(name="{name}-data", target="{name}_m:open", summary="a dataset"),),
        tasks=(TaskSpec(name="guess", target="{name}_m:Task", settings="{name}_m:Settings", summary="a task",
                        models=("{name}-net",), datasets=("{name}-data",)),),
        apps=(AppSpec(name="{name}-app", target="{name}_m:app", summary="an app"),),
    )
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put a distribution with one entry point on the path, as pip would leave it."""
    made: list[str] = []

    def install(distribution: str, entry: str, code: str, *, version: str = "0.1", metadata: str = "") -> None:
        module = f"{distribution.replace('-', '_')}_{entry}_plugin"
        folder = tmp_path / "site"
        info = folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        (folder / f"{module}.py").write_text(code)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n{metadata}")
        with open(info / "entry_points.txt", "a") as file:
            file.write(f"{'' if file.tell() else '[polyhead]'}\n{entry} = {module}\n")
        made.append(module)
        importlib.invalidate_caches()

    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    yield install
    for module in made:
        sys.modules.pop(module, None)


@pytest.fixture
def shared_manager(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield
    monkeypatch.undo()  # before loading anew, or the next file's tests find what this one's variables allow
    plugins.reload()


def load(*only: str) -> plugins.Manager:
    manager = plugins.Manager()
    manager.load(only)
    return manager


def test_a_broken_plugin_is_named_and_the_others_work(install: Install) -> None:
    install("polyhead-fine", "fine", GOOD.format(name="fine"))
    install("polyhead-gaze", "gaze", "import timmm", version="0.3.0")
    install("polyhead-exit", "exit", "raise SystemExit(3)")
    install("polyhead-zero", "zero", "1 / 0")
    manager = load("fine", "gaze", "exit", "zero")
    assert [plugin.name for plugin in manager.plugins] == ["fine"]
    assert [str(failure) for failure in manager.failures] == [
        'Plugin "exit" (polyhead-exit 0.1) failed to load: 3',
        "Plugin \"gaze\" (polyhead-gaze 0.3.0) failed to load: No module named 'timmm'",
        'Plugin "zero" (polyhead-zero 0.1) failed to load: division by zero',
    ]
    assert isinstance(manager.failures[1].error, ModuleNotFoundError)
    plugin, spec = manager.find_model("fine-net")
    assert (plugin.name, spec.target) == ("fine", "fine_m:Net")
    assert manager.find_dataset("fine-data")[1].name == "fine-data"
    assert manager.find_app("fine-app")[1].name == "fine-app"
    assert manager.find_task("fine", "guess")[1].models == ("fine-net",)
    assert manager.find_plugin("fine").summary == "a plugin"
    assert str(manager.origin("fine")) == '"fine" (polyhead-fine 0.1)'


@pytest.mark.parametrize(
    ("requirement", "hint"),
    [
        ('timmm>=1.0; extra == "timm"', "  pip install 'polyhead-gaze[timm]'"),
        ("timmm >= 1.0", "  pip install timmm"),
        ("other", ""),
    ],
)
def test_a_missing_module_comes_with_the_command_that_brings_it(install: Install, requirement: str, hint: str) -> None:
    install("polyhead-gaze", "gaze", "import timmm.layers", metadata=f"Requires-Dist: {requirement}\n")
    (failure,) = load("gaze").failures
    assert str(failure) == f"Plugin \"gaze\" (polyhead-gaze 0.1) failed to load: No module named 'timmm'{hint}"


def test_an_error_without_a_message_is_named_by_its_type(install: Install) -> None:
    install("polyhead-gaze", "gaze", "raise RuntimeError")
    assert str(load("gaze").failures[0]).endswith("failed to load: RuntimeError")


def test_a_clash_names_both_owners_and_the_first_by_distribution_is_kept(install: Install) -> None:
    code = GOOD.format(name="fine")
    install("polyhead-b", "late", code, version="2.0")
    install("polyhead-a", "zearly", code, version="1.0")
    for _ in range(2):
        manager = load("late", "zearly")
        assert str(manager.origin("fine")) == '"zearly" (polyhead-a 1.0)'
        assert [str(failure) for failure in manager.failures] == [
            'Plugin "late" (polyhead-b 2.0) failed to load: Plugin name "fine" belongs to both '
            '"zearly" (polyhead-a 1.0) and "late" (polyhead-b 2.0). Uninstall one.'
        ]
        assert manager.find_model("fine-net")[0].name == "fine"


@pytest.mark.parametrize("kind", ["model", "dataset", "app"])
def test_clashing_names_inside_two_plugins_are_refused(install: Install, kind: str) -> None:
    suffix = {"model": "net", "dataset": "data", "app": "app"}[kind]
    install("polyhead-a", "fine", GOOD.format(name="fine"))
    install(
        "polyhead-b",
        "other",
        GOOD.format(name="other").replace(f'"other-{suffix}", target', f'"fine-{suffix}", target'),
    )
    manager = load("fine", "other")
    assert [plugin.name for plugin in manager.plugins] == ["fine"]
    assert str(manager.failures[0].error) == (
        f'{kind.capitalize()} "fine-{suffix}" belongs to both "fine" (polyhead-a 0.1) and "other" (polyhead-b 0.1). '
        f"Rename or uninstall one."
    )


def test_a_refused_plugin_leaves_no_kernels_behind(install: Install) -> None:
    code = (
        GOOD.format(name="fine") + "\n@hookimpl\ndef polyhead_register_kernels(registry):\n    registry.append({!r})\n"
    )
    install("polyhead-a", "one", code.format("a"))
    install("polyhead-b", "two", code.format("b"))
    registry: list[str] = []
    manager = load("one", "two")
    manager.register_kernels(registry)
    assert registry == ["a"]


def test_one_plugins_broken_kernels_leave_the_others(install: Install) -> None:
    code = "from polyhead import hookimpl\n@hookimpl\ndef polyhead_register_kernels(registry):\n    {}\n"
    install("polyhead-a", "slow", code.format("1 / 0"))
    install("polyhead-b", "fast", code.format("registry.append(1)"))
    manager = load("slow", "fast")
    assert not manager.failures
    assert not manager.plugins
    registry: list[int] = []
    manager.register_kernels(registry)
    assert registry == [1]
    assert str(manager.failures[0]) == 'Plugin "slow" (polyhead-a 0.1) failed to load: division by zero'


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = 1", "It implements no hook: mark a function polyhead_plugin with polyhead.hookimpl."),
        (
            "from polyhead import hookimpl\n@hookimpl\ndef polyhead_plugn():\n    pass",
            "unknown hook 'polyhead_plugn'",
        ),
        (
            "from polyhead import hookimpl\n@hookimpl\ndef polyhead_plugin(registry):\n    pass",
            "Argument(s) {'registry'} are declared in the hookimpl but can not be found in the hookspec",
        ),
        (
            "from polyhead import hookimpl\n@hookimpl\ndef polyhead_plugin():\n    return 'gaze'",
            "polyhead_plugin returned str; expected a polyhead.Plugin.",
        ),
        (
            "from polyhead import Plugin, hookimpl\n@hookimpl\ndef polyhead_plugin():\n    return Plugin('../x', '')",
            'Name "../x" is not made of a-z, 0-9, "-", "_" and ".". Rename it.',
        ),
    ],
)
def test_wrong_plugins_are_refused_with_the_reason(install: Install, code: str, message: str) -> None:
    install("polyhead-gaze", "gaze", code)
    manager = load("gaze")
    assert manager.plugins == ()
    assert message in str(manager.failures[0])


def test_two_tasks_of_one_name_are_refused_inside_a_plugin_only(install: Install) -> None:
    install("polyhead-a", "a", GOOD.format(name="a"))
    install("polyhead-b", "b", GOOD.format(name="b"))
    assert len(load("a", "b").plugins) == 2
    task = TaskSpec(name="t", target="m:T", settings="m:S", summary="", models=(), datasets=())

    class Twice:
        @hookimpl
        def polyhead_plugin(self) -> Plugin:
            return Plugin("twice", "", tasks=(task, task))

    with pytest.raises(PluginError, match='Its manifest names the task "t" twice\\. Rename one\\.'):
        plugins.Manager().register(Twice(), "twice")


def test_unknown_names_suggest_the_nearest_and_mention_what_failed(install: Install) -> None:
    install("polyhead-a", "fine", GOOD.format(name="fine"))
    install("polyhead-gaze", "gaze", "import timmm")
    with pytest.raises(UnknownNameError) as caught:
        load("fine").find_model("fine-nett")
    assert str(caught.value) == 'No model "fine-nett". Did you mean "fine-net"?  All: fine-net'
    manager = load("fine", "gaze")
    with pytest.raises(UnknownNameError) as caught:
        manager.find_dataset("eyes")
    assert str(caught.value) == 'No dataset "eyes".  All: fine-data  (failed to load: gaze; see: polyhead plugins)'
    with pytest.raises(UnknownNameError, match='No app "x"'):
        manager.find_app("x")
    with pytest.raises(UnknownNameError, match='No plugin "x"'):
        manager.find_plugin("x")
    with pytest.raises(UnknownNameError, match='No plugin "x"'):
        manager.origin("x")
    with pytest.raises(UnknownNameError, match='No task of plugin "fine" "x"'):
        manager.find_task("fine", "x")


@pytest.mark.usefixtures("shared_manager")
def test_polyhead_plugins_chooses(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("polyhead-a", "fine", GOOD.format(name="fine"))
    install("polyhead-b", "other", GOOD.format(name="other"))
    monkeypatch.setenv("POLYHEAD_PLUGINS", "other, ")
    assert [plugin.name for plugin in plugins.reload().plugins] == ["other"]
    monkeypatch.setenv("POLYHEAD_PLUGINS", "")
    assert plugins.reload().plugins == ()
    monkeypatch.setenv("POLYHEAD_PLUGINS", "othr")
    (failure,) = plugins.reload().failures
    assert str(failure) == (
        'Plugin "othr" (not installed) failed to load: POLYHEAD_PLUGINS names it. Did you mean "other"?'
    )


@pytest.mark.usefixtures("shared_manager")
def test_strict_makes_a_failure_an_error(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("polyhead-gaze", "gaze", "import timmm")
    monkeypatch.setenv("POLYHEAD_PLUGINS", "gaze")
    monkeypatch.setenv("POLYHEAD_STRICT_PLUGINS", "0")
    assert len(plugins.reload().failures) == 1
    monkeypatch.setenv("POLYHEAD_STRICT_PLUGINS", "1")
    with pytest.raises(PluginError, match=r'Plugin "gaze" \(polyhead-gaze 0\.1\) failed to load'):
        plugins.reload()
    # Asked again it fails again, instead of going on with what there is.
    with pytest.raises(PluginError, match=r'Plugin "gaze"'):
        plugins.plugins()
    monkeypatch.delenv("POLYHEAD_STRICT_PLUGINS")


@pytest.mark.usefixtures("shared_manager")
def test_a_plugin_module_may_not_ask_for_plugins_while_loading(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("polyhead-gaze", "gaze", "from polyhead import plugins\nplugins.find_model('gman')")
    monkeypatch.setenv("POLYHEAD_PLUGINS", "gaze")
    plugins.reload()
    assert "A plugin.py asked for plugins while they are being loaded. Move it into a function." in str(
        plugins.failures()[0]
    )


@pytest.mark.usefixtures("shared_manager")
def test_plugins_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYHEAD_PLUGINS", "")
    plugins.reload()

    class Notebook:
        @hookimpl
        def polyhead_plugin(self) -> Plugin:
            return Plugin("mine", "a trial", models=(ModelSpec(name="try", target="x:Y", summary="s"),))

        @hookimpl
        def polyhead_register_kernels(self, registry: list[str]) -> None:
            registry.append("mine")

    plugins.register(Notebook(), "notebook")
    assert plugins.find_model("try")[0].name == plugins.find_plugin("mine").name == "mine"
    assert str(plugins.manager().origin("mine")) == '"notebook" (this process)'
    registry: list[str] = []
    plugins.register_kernels(registry)
    assert registry == ["mine"]
    with pytest.raises(PluginError, match=r'There are two plugins "notebook" in this process\. Rename one\.'):
        plugins.register(Notebook(), "notebook")
    with pytest.raises(
        PluginError, match=r'Plugin name "mine" belongs to both "notebook" \(this process\) and "again"'
    ):
        plugins.register(Notebook(), "again")
    for find in (plugins.find_dataset, plugins.find_app):
        with pytest.raises(UnknownNameError, match="All: none"):
            find("x")
    with pytest.raises(UnknownNameError, match="All: none"):
        plugins.find_task("mine", "x")
    assert plugins.reload().plugins == ()


def test_registering_what_pluggy_refuses_is_our_error() -> None:
    class Wrong:
        @hookimpl
        def polyhead_plugin(self, registry: object) -> None: ...

    with pytest.raises(PluginError, match=r'Plugin "wrong" \(this process\) failed to load: '):
        plugins.Manager().register(Wrong(), "wrong")


def test_every_hook_is_documented_once() -> None:
    from polyhead import hookspecs

    hooks = [name for name in hookspecs.__all__ if name.startswith("polyhead_")]
    assert hooks == ["polyhead_compile_kernels", "polyhead_plugin", "polyhead_register_kernels"]
    for name in hooks:
        assert getattr(hookspecs, name).__doc__


def test_nothing_is_loaded_before_the_first_question() -> None:
    code = "import polyhead, polyhead.plugins as p; assert p._shared is None; p.plugins(); assert p._shared is not None"
    subprocess.run([sys.executable, "-c", code], check=True)
