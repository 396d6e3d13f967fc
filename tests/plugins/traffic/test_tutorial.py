"""The tutorial's commands run as they stand there, at toy size, and leave what it says."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from polyhead_apps.shell import main
from polyhead_traffic.app import app

TOY = ("--steps", "2", "--preset", "tiny", "--set", "task.embedding=laplacian", "--threads", "1", "-q")


def _blocks(page: Path) -> list[tuple[str, str]]:
    return re.findall(r"^```(python|bash)\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def _run(command: str) -> None:
    """Run our command in this process, which has imported everything, and others by the shell."""
    if not command.startswith("traffic-forecast "):
        subprocess.run(["bash", "-ec", command], check=True)
        return
    arguments = shlex.split(command)[1:]
    if arguments[0] == "fit":
        at = arguments.index("--time-limit")
        arguments[at : at + 2] = TOY
    assert main(app, arguments) == 0, command


def test_the_tutorial_runs(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = root / "docs" / "tutorials" / "forecast-my-own-sensors.md"
    text = page.read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for language, block in _blocks(page):
        if language == "python":
            exec(compile(block, page.name, "exec"), {})
            continue
        for command in block.strip().splitlines():
            _run(command)

    said = capsys.readouterr().out
    assert "coverage_80" in said
    for name in ("slot mean", "slot median", "last value"):
        assert f"`{name}`" in text
        assert name in said
    header = (tmp_path / "next.csv").read_text().splitlines()[0]
    assert f"    {header}\n" in text
    assert (tmp_path / "tomorrow.csv").read_text() == (tmp_path / "next.csv").read_text()
    assert (tmp_path / "backtest.csv").read_text().splitlines()[0] == f"{header},observed"
    assert (tmp_path / "my-sensors" / "readings.csv").read_text().splitlines()[0] in text
    assert "days-off.txt" in (tmp_path / "with-days-off" / "config.yaml").read_text()
    for made in ("my-run/report.html", "whole/filled.csv", "whole/filled-marks.csv", "second-run/metrics.json"):
        assert (tmp_path / made).is_file()
