"""``check_app`` runs a command in fresh processes and says what is wrong with it."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from polyhead import plugins
from polyhead.errors import UnknownNameError
from polyhead.testing import CheckError, check_app
from polyhead.testing.apps import fresh_imports
from polyhead.testing.report import RuleError

PLUGIN = """
from polyhead import AppSpec, Plugin, TaskSpec, hookimpl
@hookimpl
def polyhead_plugin():
    task = TaskSpec("draw", "m:T", "m:S", "s", models=(), datasets=())
    return Plugin("sketch", "drawings", tasks=(task,), apps=(AppSpec("sketch-it", "{module}:app", "draw"),))
"""
APP = """
import json, pathlib, sys, types
app = types.SimpleNamespace(name="sketch-it", plugin="sketch", tasks=("draw",), commands={"trace": "m:trace"})

def fail(code, message):
    print(message, file=sys.stderr)
    sys.exit(code)

def main():
    arguments = sys.argv[1:]
    if "--help" in arguments:
        if "trace" in arguments:
            import accelerate
        print("usage: sketch-it")
    elif "--no-such-option" in arguments:
        fail(2, "no such option")
    elif arguments[0] == "data":
        fail(1, f"sketch-it: {arguments[2]} is missing")
    elif arguments[0] == "demo":
        pathlib.Path("run").mkdir()
        pathlib.Path("run", "report.html").touch()
        print("done")
    else:
        print(json.dumps([{"name": "pencil"}]))
"""
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install the app with some of its lines replaced, in this process and in those that it starts."""
    module = f"sketch_{tmp_path.name.rpartition('_')[2]}"
    info = tmp_path / "site" / "polyhead_sketch-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: polyhead-sketch\nVersion: 0.1\n")

    def install(old: str = "", new: str = "", *, script: str = "sketch-it") -> None:
        assert old in APP
        (tmp_path / "site" / f"{module}.py").write_text(APP.replace(old, new) if old else APP)
        (tmp_path / "site" / f"{module}_plugin.py").write_text(PLUGIN.format(module=module))
        points = f"[polyhead]\nsketch = {module}_plugin\n\n[console_scripts]\n{script} = {module}:main\n"
        (info / "entry_points.txt").write_text(points)
        importlib.invalidate_caches()
        plugins.reload()

    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    # Only its name counts, and an empty module is quickly imported.
    (tmp_path / "heavy").mkdir()
    (tmp_path / "heavy" / "accelerate.py").touch()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(str(tmp_path / name) for name in ("site", "heavy")))
    monkeypatch.setenv("POLYHEAD_PLUGINS", "sketch")
    yield install
    monkeypatch.undo()
    for name in (module, f"{module}_plugin"):
        sys.modules.pop(name, None)
    plugins.reload()


def test_a_sound_app_passes(install: Install) -> None:
    install()
    kept = check_app("sketch-it", demo=True)
    assert "`sketch-it data check --help` answers" in kept
    assert "`sketch-it demo --quick` ends with a report" in kept
    assert len(check_app("sketch-it")) == len(kept) - 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name="sketch-it"', 'name="other"', ':app is "other" where the manifest has "sketch-it".'),
        ('plugin="sketch"', 'plugin="other"', ':app is "other" where the manifest has "sketch".'),
        ('tasks=("draw",)', 'tasks=("paint",)', "its tasks are ['paint']; the plugin has ['draw']."),
        (
            "import json",
            "import accelerate, json",
            "`sketch-it --help` answers: it imports accelerate. Import them inside",
        ),
        ('print("usage: sketch-it")', "pass", "`sketch-it models --help` answers: it prints nothing."),
        (
            "import accelerate\n        print",
            "fail(1, 'a\\nValueError: b')\n        print",
            "`sketch-it trace --help` exits with 1, expected 0, and says: ValueError: b",
        ),
        ('print(json.dumps([{"name": "pencil"}]))', 'print("hello")', "stdout is no JSON: Expecting value"),
        ('[{"name": "pencil"}]', "[]", "`sketch-it datasets --json` prints one JSON document: it is empty."),
        (
            'fail(2, "no such',
            'fail(1, "no such',
            "`sketch-it fit --no-such-option` exits with 1, expected 2, and says: no",
        ),
        ("is missing", "is\\nmissing", "stderr is 'sketch-it: no-such-file.csv is\\nmissing\\n'"),
        ("{arguments[2]} is", "it is", "stderr is 'sketch-it: it is missing\\n'"),
        ('print("done")', "pass", "`sketch-it demo --quick` ends with a report: it prints no result."),
        ('"report.html"', '"a.html"', "it leaves no report.html."),
    ],
)
def test_what_is_wrong_is_said(install: Install, old: str, new: str, message: str) -> None:
    install(old, new)
    with pytest.raises(CheckError, match=re.escape(message)):
        check_app("sketch-it", demo=True)


def test_a_missing_command_is_named(install: Install) -> None:
    install(script="draw-it")
    with pytest.raises(
        CheckError, match=r"there is no such console script\. Add \[project\.scripts\] sketch-it = \.\.\."
    ):
        check_app("sketch-it")
    with pytest.raises(UnknownNameError, match='No app "sketch"'):
        check_app("sketch")


def test_a_hanging_command_is_stopped(install: Install) -> None:
    install("    arguments = sys", "    __import__('time').sleep(60)\n    arguments = sys")
    with pytest.raises(CheckError, match="raised TimeoutExpired: "):
        check_app("sketch-it", timeout_s=0.2)


def test_fresh_imports() -> None:
    assert fresh_imports(["json"]) == []
    assert fresh_imports(["torch"]) == ["torch"]
    with pytest.raises(RuleError, match="No module named 'no_such_module'"):
        fresh_imports(["no_such_module"])
