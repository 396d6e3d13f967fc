from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polyhead import plugins

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
            "mixers": [],
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


@pytest.fixture
def umbrella(
    fake_plugin: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run the command `polyhead` in this process, which has imported torch already."""
    from polyhead_apps import cli
    from polyhead_apps.shell import guard

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = guard("polyhead", lambda: cli.cli, arguments)
        return code, *capsys.readouterr()

    return call


def test_doctor_says_what_there_is(
    umbrella: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polyhead.ops import registry

    monkeypatch.setenv("POLYHEAD_SHARED", "here")
    monkeypatch.setattr(type(registry), "operators", lambda self: ("softmax_attention",))
    code, out, err = umbrella("doctor", "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert {"python", "polyhead", "torch", "accelerate"} <= set(document["versions"])
    assert document["machine"]["devices"].startswith("cpu")
    assert document["machine"]["free disk"].endswith(f"GiB in {tmp_path}")
    assert document["environment"] == {"POLYHEAD_SHARED": "here"}
    assert "fake (this process)" in document["plugins"]
    assert document["kernels"]["softmax_attention"].endswith("torch, reference")
    assert document["failures"] == []
    text = umbrella("doctor")[1]
    for word in ("versions", "threads", "free disk", "fake (this process)", "softmax_attention"):
        assert word in text


def test_doctor_fails_where_a_plugin_does(umbrella: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYHEAD_PLUGINS", "fakee")
    plugins.reload()
    code, out, _ = umbrella("doctor")
    assert code == 1
    assert 'Plugin "fakee" (not installed) failed to load' in out


def test_doctor_names_operators_that_do_not_load(umbrella: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from polyhead.ops import registry

    monkeypatch.setattr(type(registry), "operators", lambda self: ("softmax_attention", "lost"))
    code, out, _ = umbrella("doctor", "--json")
    assert code == 1
    assert list(json.loads(out)["kernels"]) == ["softmax_attention"]
    assert any(failure.startswith('Operator "lost" failed to load: ') for failure in json.loads(out)["failures"])


def test_kernels_are_listed_explained_and_verified(
    umbrella: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = umbrella("kernels", "list", "--op", "softmax_attention", "--json")[1]
    assert [each["name"] for each in json.loads(listed)["operators"]] == ["softmax_attention"]
    call = ("softmax_attention", "--shape", "2,8,128,64")
    code, out, _ = umbrella("kernels", "explain", *call, "--set", "causal=true")
    assert code == 0
    assert "chosen: torch" in out
    code, out, err = umbrella("kernels", "explain", "softmax", "--shape", "2,8,128,64")
    assert (code, out) == (1, "")
    assert err.startswith('polyhead: No operator "softmax".')
    verify = ("kernels", "verify", "--op", "softmax_attention", "--kernel", "reference", "--dtype", "float32")
    code, out, err = umbrella(*verify)
    assert (code, err) == (0, "")
    assert "no failures" in out
    monkeypatch.setenv("POLYHEAD_KERNEL", "reference")
    assert json.loads(umbrella("kernels", "explain", *call, "--json")[1])["chosen"] == "reference"


def test_kernels_that_fail_are_exit_code_1(umbrella: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from polyhead.ops import commands

    monkeypatch.setattr(commands, "verify_kernels", lambda *_, changed: commands.Said({}, "1 failure", passed=False))
    assert umbrella("kernels", "verify") == (1, "1 failure\n", "")


def test_plugins_are_checked_by_the_kit(umbrella: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from polyhead import testing

    monkeypatch.setattr(testing, "check_plugin", lambda name: [f"{name} has a summary"], raising=False)
    assert umbrella("check-plugin", "fake") == (0, "fake has a summary\n", "")
    monkeypatch.undo()
    code, out, err = umbrella("check-plugin", "fak")
    assert (code, out) == (1, "")
    assert err.startswith('polyhead: No plugin "fak". Did you mean "fake"?')


def test_wrong_usage_is_one_line(fresh: Callable[..., Any]) -> None:
    result = fresh(*MAIN, "doctr")
    assert result.returncode == 2
    assert result.stderr == "polyhead: No such command 'doctr'. Did you mean 'doctor'?  See: polyhead --help\n"


def test_registered_apps_run_as_a_module(fresh: Callable[..., Any]) -> None:
    result = fresh("-m", "polyhead_apps", "line-fit", "models", "-q")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("line  a straight line")
    result = fresh("-m", "polyhead_apps", "line-fi", "models", POLYHEAD_PLUGINS="fake")
    assert result.returncode == 1
    assert result.stderr == 'polyhead_apps: No app "line-fi". Did you mean "line-fit"?  All: line-fit\n'


def test_kernels_are_broken_compiled_and_timed(umbrella: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from polyhead.ops import commands

    asked: dict[str, Any] = {}
    for name in ("break_kernels", "compile_kernels", "bench_kernels"):

        def answer(*given: Any, name: str = name, **named: Any) -> commands.Said:
            asked[name] = given, named
            return commands.Said({"by": name}, name)

        monkeypatch.setattr(commands, name, answer)
    assert umbrella("kernels", "verify", "--self-test", "--changed", "--op", "sums") == (0, "break_kernels\n", "")
    assert json.loads(umbrella("kernels", "compile", "--target", "sm_90", "--all", "--json")[1]) == {
        "by": "compile_kernels"
    }
    assert umbrella("kernels", "bench", "--dtype", "bfloat16", "--threads", "1", "--no-claims")[0] == 0
    assert asked == {
        "break_kernels": (("sums", None, "cpu"), {"changed": True}),
        "compile_kernels": ((None, ["sm_90"]), {"every": True, "workers": 0}),
        "bench_kernels": ((None, ["bfloat16"], "cpu"), {"threads": 1, "repeats": 9, "claims": False}),
    }
