"""In fresh processes: what starts quickly imports nothing heavy, and a broken plugin breaks nothing but itself."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from scripts.workspace import distributions

from polyhead.manifest import AppSpec
from polyhead.plugins import plugins

HEAVY = ("torch", "accelerate", "matplotlib", "pandas", "pyarrow", "scipy", "tensorboard", "torch_geometric", "triton")
APPS = [app for plugin in plugins() for app in plugin.apps]
MODULES = sorted(
    {
        *("polyhead", "polyhead.errors", "polyhead.hookspecs", "polyhead.manifest", "polyhead.plugins"),
        *("polyhead.protocols", "polyhead_apps", "polyhead_apps.app", "polyhead_apps.cli", "polyhead_apps.config"),
        *("polyhead_apps.shell",),
        *(module for distribution in distributions() for module in distribution.plugins.values()),
        *(task.settings.partition(":")[0] for plugin in plugins() for task in plugin.tasks),
        *(app.target.partition(":")[0] for app in APPS),
    }
)


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    tool = Path(sys.executable).with_name(command[0])
    return subprocess.run(
        [str(tool), *command[1:]],
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({set(HEAVY)!r} & set(sys.modules)))"
    result = run(["python", "-c", code])
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


def quick_commands() -> list[Sequence[str]]:
    """Commands that answer from manifests and settings alone."""
    verbs = ("demo", "fit", "evaluate", "predict", "export", "data", "models", "datasets")
    helps = [(app.name, *verb, "--help") for app in APPS for verb in [(), *((name,) for name in verbs)]]
    lists = [(app.name, verb) for app in APPS for verb in ("models", "datasets")]
    return [*helps, *lists, ("polyhead", "--help"), ("polyhead", "plugins")]


@pytest.mark.parametrize("command", quick_commands(), ids=" ".join)
def test_command_answers_without_torch(command: Sequence[str], without: Callable[..., Any]) -> None:
    blocked = without(*HEAVY)
    result = run(command, blocked.environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout
    assert blocked.tried == []


def test_plugins_are_listed() -> None:
    result = run(["polyhead", "plugins"])
    assert result.returncode == 0, result.stderr
    for plugin in plugins():
        assert plugin.name in result.stdout


@pytest.fixture
def broken(tmp_path: Path) -> Mapping[str, str]:
    """An environment with an installed plugin whose module raises."""
    info = tmp_path / "polyhead_shaky-0.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: polyhead-shaky\nVersion: 0.9\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[polyhead]\nshaky = polyhead_shaky\n", encoding="utf-8")
    (tmp_path / "polyhead_shaky.py").write_text("import no_such_module_at_all\n", encoding="utf-8")
    return {**os.environ, "PYTHONPATH": str(tmp_path), "NO_COLOR": "1", "COLUMNS": "200"}


@pytest.mark.parametrize("app", APPS, ids=lambda app: app.name)
def test_broken_plugin_leaves_the_apps_working(app: AppSpec, broken: Mapping[str, str]) -> None:
    for command in ([app.name, "--help"], [app.name, "models"]):
        result = run(command, broken)
        assert result.returncode == 0, result.stderr


def test_broken_plugin_is_named(broken: Mapping[str, str]) -> None:
    result = run(["polyhead", "plugins"], broken)
    said = result.stdout + result.stderr
    assert 'Plugin "shaky" (polyhead-shaky 0.9) failed to load: No module named' in said
    assert "no_such_module_at_all" in said
    for plugin in plugins():
        assert plugin.name in result.stdout


def test_strict_plugins_refuse_a_broken_one(broken: Mapping[str, str]) -> None:
    result = run(
        ["python", "-c", "import polyhead.plugins; polyhead.plugins.plugins()"],
        {**broken, "POLYHEAD_STRICT_PLUGINS": "1"},
    )
    assert result.returncode == 1
    assert 'PluginError: Plugin "shaky" (polyhead-shaky 0.9) failed to load' in result.stderr
