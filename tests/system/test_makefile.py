"""The set-up behind `make demo` and `make test`, without installing anything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from scripts import check, setup
from scripts.setup import SetupError

PYPROJECT = """
[dependency-groups]
dev = ["pytest"]

[tool.polyhead.setup]
demo = { distributions = ["core"], dependency-groups = [] }
test = { distributions = ["core[hub]", "apps"], dependency-groups = ["dev"] }
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text(PYPROJECT, encoding="utf-8")
    for name in ("core", "apps"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "pyproject.toml").write_text(f'[project]\nname = "{name}"\n', encoding="utf-8")
    return tmp_path


class Calls:
    """Stands in for pip and for the probe of the environment."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, pip: str | None = "26.0", torch: str | None = "2.14.1") -> None:
        self.commands: list[list[str]] = []
        self.state = {"python": [3, 12], "pip": pip, "torch": torch}
        monkeypatch.setattr(setup, "call", lambda command, root: self.commands.append(command[1:]))
        monkeypatch.setattr(setup, "probe", lambda python: self.state)
        monkeypatch.setattr(setup, "make_venv", self._make)

    def _make(self, folder: Path) -> None:
        (folder / "bin").mkdir(parents=True)
        (folder / "bin" / "python").touch()


def test_old_python_is_refused() -> None:
    with pytest.raises(SetupError, match=r"Python 3\.9 is too old: Polyhead needs 3\.11 or newer.*PYTHON=python3\.12"):
        setup.check_python((3, 9, 2))


def test_full_disk_is_refused_before_anything_is_installed(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch, torch=None)
    monkeypatch.setattr(setup, "check_disk", lambda folder, need, check=setup.check_disk: check(folder, need, 1.25))
    with pytest.raises(SetupError, match=r"has 1\.2 GB free; installing needs [29]\.5 GB\. .*VENV=/path"):
        setup.set_up("demo", workspace / ".venv", workspace)
    assert calls.commands == []


def test_what_it_takes_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert setup.announce({"torch": None}, "linux", "x86_64") == 9.5
    said = "takes about 6.5 GB of disk, a download of up to 3.0 GB and two minutes besides it"
    assert said in capsys.readouterr().err
    assert setup.announce({"torch": None}, "darwin", "arm64") == 2.5
    assert "about 2.0 GB of disk" in capsys.readouterr().err


def test_torch_that_is_there_stays(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = Calls(monkeypatch, torch="2.13.0+cpu")
    setup.set_up("test", workspace / ".venv", workspace)
    assert "torch 2.13.0+cpu is there and stays" in capsys.readouterr().err
    assert not any("--upgrade" in command for command in calls.commands)


def test_second_run_installs_nothing(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch)
    assert setup.set_up("test", workspace / ".venv", workspace)
    (command,) = calls.commands
    assert command[command.index("--editable") :] == [
        "--editable",
        "./core[hub]",
        "--editable",
        "./apps",
        "--group",
        "dev",
    ]
    assert not setup.set_up("test", workspace / ".venv", workspace)
    assert not setup.set_up("demo", workspace / ".venv", workspace), "demo is part of test"
    assert len(calls.commands) == 1


def test_demo_first_then_test_installs_the_rest(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch)
    assert setup.set_up("demo", workspace / ".venv", workspace)
    assert calls.commands[0][-2:] == ["--editable", "./core"]
    assert setup.set_up("test", workspace / ".venv", workspace)
    assert not setup.set_up("demo", workspace / ".venv", workspace)


def test_changed_dependency_is_installed(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Calls(monkeypatch)
    setup.set_up("demo", workspace / ".venv", workspace)
    (workspace / "core" / "pyproject.toml").write_text(
        '[project]\nname = "core"\ndependencies = []\n', encoding="utf-8"
    )
    assert setup.set_up("demo", workspace / ".venv", workspace)


def test_moved_workspace_is_installed_again(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Calls(monkeypatch)
    setup.set_up("demo", workspace / ".venv", workspace)
    stamp = workspace / ".venv" / setup.STAMP
    stamp.write_text(stamp.read_text(encoding="utf-8").replace(str(workspace), "/elsewhere"), encoding="utf-8")
    assert setup.set_up("demo", workspace / ".venv", workspace)
    assert json.loads(stamp.read_text(encoding="utf-8"))["root"] == str(workspace)


def test_damaged_stamp_is_installed_again(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Calls(monkeypatch)
    setup.set_up("demo", workspace / ".venv", workspace)
    (workspace / ".venv" / setup.STAMP).write_text("{", encoding="utf-8")
    assert setup.set_up("demo", workspace / ".venv", workspace)


@pytest.mark.parametrize(("pip", "upgrades"), [("23.2.1", True), ("25.0.1", True), ("25.1", False), ("26.3", False)])
def test_pip_without_groups_is_upgraded_once(
    pip: str, upgrades: bool, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(monkeypatch, pip=pip)
    setup.set_up("test", workspace / ".venv", workspace)
    assert [command[-1] for command in calls.commands[:-1]] == (["pip>=25.1"] if upgrades else [])


def test_failed_installation_leaves_no_stamp(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Calls(monkeypatch)

    def fail(command: list[str], root: Path) -> None:
        raise SetupError("no network")

    monkeypatch.setattr(setup, "call", fail)
    with pytest.raises(SetupError, match="no network"):
        setup.set_up("demo", workspace / ".venv", workspace)
    assert not (workspace / ".venv" / setup.STAMP).exists()


def test_failed_command_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"This command failed, exit 3; read its message above:\n  .* -c raise"):
        setup.call([sys.executable, "-c", "raise SystemExit(3)"], tmp_path)


def test_broken_environment_is_named(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.touch()
    with pytest.raises(SetupError, match=rf"{python} does not start\. .*rm -r {tmp_path}"):
        setup.probe(python)


def test_missing_venv_module_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    with pytest.raises(
        SetupError, match=r"no module ensurepip\. On Debian and Ubuntu: apt-get install python3\.\d+-venv"
    ):
        setup.make_venv(tmp_path / "venv")


def test_environment_in_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SetupError, match="file/venv: cannot make an environment there"):
        setup.make_venv(tmp_path / "file" / "venv")


def test_unknown_group_is_named(workspace: Path) -> None:
    with pytest.raises(
        SetupError, match=r'No group "dmeo" in pyproject\.toml, tool\.polyhead\.setup\. Groups: demo, test'
    ):
        setup.wanted(workspace, "dmeo")


def test_set_up_needs_the_standard_library_only(root: Path) -> None:
    command = [sys.executable, "-I", "-S", str(root / "scripts" / "setup.py"), "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("target", "steps"),
    [
        ("demo", ['scripts/setup.py --venv "/v" demo', "/v/bin/traffic-forecast demo"]),
        ("test", ['scripts/setup.py --venv "/v" test', "/v/bin/python -m scripts.check test"]),
        ("ci", ['scripts/setup.py --venv "/v" test', "/v/bin/python -m scripts.check lint test"]),
        ("acceptance", ['scripts/setup.py --venv "/v" test', '/v/bin/python -m scripts.acceptance --app "gman"']),
        ("bench", ['scripts/setup.py --venv "/v" test', "/v/bin/python -m benchmarks.run"]),
    ],
)
def test_targets_set_up_first(root: Path, target: str, steps: list[str]) -> None:
    command = ["make", "--dry-run", "--no-print-directory", target, "VENV=/v", "PYTHON=python3", "APP=gman"]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert [line.removeprefix("python3 ") for line in lines] == steps


def test_help_names_every_target(root: Path) -> None:
    text = (root / "Makefile").read_text(encoding="utf-8")
    (phony,) = [line for line in text.splitlines() if line.startswith(".PHONY:")]
    shown = subprocess.run(["make", "help"], cwd=root, capture_output=True, text=True, check=True).stdout
    targets = {line.split()[1] for line in shown.splitlines() if line.startswith("make ")}
    assert targets == set(phony.split()[1:]) - {"help"}


def test_steps_all_run_and_one_failure_counts(capsys: pytest.CaptureFixture[str]) -> None:
    codes = {"a": 0, "b": 1, "c": 5, "d": 5}
    steps = [check.Step(name, [name], passing=(0, 5) if name == "c" else (0,)) for name in codes]
    assert check.run(steps, lambda command, **_: codes[command[0]]) == 1
    ends = [line.split("s  ")[-1] for line in capsys.readouterr().out.splitlines()[-4:]]
    assert ends == ["passed", "FAILED, exit 1", "passed", "FAILED, exit 5"]
    assert check.run(steps[:1], lambda command, **_: 0) == 0


def test_steps_see_none_of_the_shells_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYHEAD_KERNEL", "reference")
    monkeypatch.setenv("POLYHEAD_SHARED", "/data")
    seen: dict[str, str] = {}
    check.run([check.Step("a", ["a"])], lambda command, env, **_: seen.update(env) or 0)
    assert {name: value for name, value in seen.items() if name.startswith("POLYHEAD_")} == {"POLYHEAD_SHARED": "/data"}
