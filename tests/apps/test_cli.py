from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MAIN = ("-c", "from polyhead_apps.cli import main; main()")


def test_plugins_are_listed_with_what_they_offer(fresh: Callable[..., Any]) -> None:
    result = fresh(*MAIN, "plugins", POLYHEAD_PLUGINS="fake")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "fake  straight lines  (polyhead-fake 0.1)",
        "  apps: line-fit",
        "  models: line, bent",
        "  datasets: toy-lines, points",
        "  tasks: line-fit, sign",
    ]


def test_plugins_that_fail_are_named_on_stderr(fresh: Callable[..., Any]) -> None:
    result = fresh(*MAIN, "plugins", POLYHEAD_PLUGINS="fake,fakee")
    assert result.returncode == 0
    assert result.stdout.startswith("fake  straight lines")
    assert result.stderr == (
        'Plugin "fakee" (not installed) failed to load: POLYHEAD_PLUGINS names it. Did you mean "fake"?\n'
    )


def test_no_plugin_is_said(fresh: Callable[..., Any]) -> None:
    result = fresh(*MAIN, "plugins", POLYHEAD_PLUGINS="")
    assert (result.returncode, result.stdout) == (0, "")
    assert result.stderr == "No plugin is installed, such as polyhead-traffic.\n"


def test_plugins_as_json_is_one_document(fresh: Callable[..., Any]) -> None:
    result = fresh(*MAIN, "plugins", "--json", POLYHEAD_PLUGINS="fake,fakee")
    document = json.loads(result.stdout)
    assert document["plugins"] == [
        {
            "name": "fake",
            "summary": "straight lines",
            "distribution": "polyhead-fake",
            "version": "0.1",
            "apps": ["line-fit"],
            "models": ["line", "bent"],
            "datasets": ["toy-lines", "points"],
            "tasks": ["line-fit", "sign"],
        }
    ]
    assert [failure["name"] for failure in document["failures"]] == ["fakee"]


@pytest.mark.parametrize(
    "arguments", [["--help"], ["plugins"], ["plugins", "--json"], ["kernels", "--help"], ["--version"]]
)
def test_quick_commands_need_no_torch(fresh: Callable[..., Any], arguments: list[str]) -> None:
    probe = (
        "import atexit, sys\n"
        "atexit.register(lambda: {'torch', 'numpy', 'matplotlib'} & set(sys.modules) and print('heavy'))\n"
        "from polyhead_apps.cli import main\n"
        "main()\n"
    )
    result = fresh("-c", probe, *arguments)
    assert (result.returncode, result.stderr) == (0, "")
    assert "heavy" not in result.stdout


def test_doctor_says_what_there_is(fresh: Callable[..., Any], tmp_path: Path) -> None:
    result = fresh(*MAIN, "doctor", "--json", POLYHEAD_PLUGINS="fake")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert {"python", "polyhead", "torch", "accelerate"} <= set(document["versions"])
    assert document["machine"]["devices"].startswith("cpu")
    assert document["machine"]["free disk"].endswith(f"GiB in {tmp_path}")
    assert document["environment"] == {"POLYHEAD_PLUGINS": "fake"}
    assert document["plugins"] == ["fake (polyhead-fake)"]
    assert document["failures"] == []
    text = fresh(*MAIN, "doctor", POLYHEAD_PLUGINS="fake")
    assert text.returncode == 0, text.stderr
    for word in ("versions", "threads of torch", "free disk", "fake (polyhead-fake)", "kernels"):
        assert word in text.stdout


def test_doctor_fails_where_a_plugin_does(fresh: Callable[..., Any]) -> None:
    result = fresh(*MAIN, "doctor", POLYHEAD_PLUGINS="fakee")
    assert result.returncode == 1
    assert 'Plugin "fakee" (not installed) failed to load' in result.stdout


def test_wrong_usage_is_one_line(fresh: Callable[..., Any]) -> None:
    result = fresh(*MAIN, "doctr")
    assert result.returncode == 2
    assert result.stderr == "polyhead: No such command 'doctr'. Did you mean 'doctor'?  See: polyhead --help\n"


def test_unknown_plugins_cannot_be_checked(fresh: Callable[..., Any]) -> None:
    result = fresh(*MAIN, "check-plugin", "fak", POLYHEAD_PLUGINS="fake")
    assert result.returncode == 1
    assert result.stderr.startswith('polyhead: No plugin "fak". Did you mean "fake"?')


def test_registered_apps_run_as_a_module(fresh: Callable[..., Any]) -> None:
    result = fresh("-m", "polyhead_apps", "line-fit", "models", "-q")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("line  a straight line")
    result = fresh("-m", "polyhead_apps", "line-fi", "models", POLYHEAD_PLUGINS="fake")
    assert result.returncode == 1
    assert result.stderr == 'polyhead_apps: No app "line-fi". Did you mean "line-fit"?  All: line-fit\n'
