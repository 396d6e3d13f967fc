"""The tutorial's commands run as they stand there, at toy size, and leave what it says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from polyhead_actions.app import app
from polyhead_apps.shell import main

TOY = ("--steps", "2", "--preset", "tiny", "--threads", "1", "-q")


def test_the_tutorial_runs(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = root / "docs" / "tutorials" / "action-detect.md"
    text = page.read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```(python|bash)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert [language for language, _ in blocks] == ["python", "bash", "bash", "bash"]
    for language, block in blocks:
        if language == "python":
            exec(compile(block, page.name, "exec"), {})
            continue
        for command in block.strip().splitlines():
            arguments = shlex.split(command)[1:]
            if arguments[0] == "fit":
                at = arguments.index("--time-limit")
                arguments[at : at + 2] = TOY
                del arguments[arguments.index("small") - 1 : arguments.index("small") + 1]
            assert main(app, arguments) == 0, command
    said = capsys.readouterr().out
    for name in ("usual segments", "threshold", "step classifier", "mAP@0.5", "AP@0.5"):
        assert name in said
        assert f"`{name}`" in text or name in text
    header = (tmp_path / "found" / "detections.csv").read_text().splitlines()[0]
    assert f"    {header}\n" in text
    for made in ("my-run/report.html", "found/results.json", "found/subtitles", "found/timelines"):
        assert (tmp_path / made).exists()
