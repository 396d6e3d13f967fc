"""The tutorial's commands run as they stand there, at toy size, and leave what it says."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from polyhead_apps.shell import main
from polyhead_gaze.app import app

TOY = ("--steps", "2", "--preset", "tiny", "--threads", "1", "--set", "task.samples=2", "--set", "train.warmup_steps=0")


def _run(command: str) -> None:
    """Run our command in this process, which has imported everything, and others by the shell."""
    if not command.startswith("gaze-scanpath "):
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
    page = root / "docs" / "tutorials" / "gaze-scanpath.md"
    text = page.read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```(python|bash)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    for language, block in blocks:
        if language == "python":
            exec(compile(block, page.name, "exec"), {})
            continue
        for command in block.strip().splitlines():
            _run(command)

    said = capsys.readouterr().out
    for name in ("uniform", "centre", "nearest neighbour", "distance-Markov"):
        assert f"`{name}`" in text
        assert name in said
    for file in ("study/fixations.csv", "study/boxes.csv", "scanpaths.csv"):
        assert f"    {(tmp_path / file).read_text().splitlines()[0]}\n" in text
    header = (tmp_path / "areas.csv").read_text().splitlines()[0].split(",")
    for column in ("reach_rate", "mean_order", "fixations", "first_rate"):
        assert column in header
        assert f"`{column}`" in text
    for made in ("my-run/report.html", "out.png"):
        assert (tmp_path / made).is_file()
