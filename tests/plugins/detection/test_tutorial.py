"""The tutorial's commands run as they stand there, at toy size, and leave what it says."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from polyhead_apps.shell import main
from polyhead_detection.app import app

TOY = ("--steps", "2", "--set", "train.batch_size=4", "--threads", "1", "-q")


def test_the_tutorial_runs(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = root / "docs" / "tutorials" / "object-detect.md"
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(python|bash)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for language, block in blocks:
        if language == "python":
            exec(compile(block, page.name, "exec"), {})
            continue
        for command in block.strip().splitlines():
            arguments = shlex.split(command)[1:]
            if "--time-limit" in arguments:
                at = arguments.index("--time-limit")
                arguments[at : at + 2] = TOY
                arguments[arguments.index("small")] = "tiny"
            assert main(app, arguments) == 0, command
    said = capsys.readouterr().out
    assert all(name in said for name in ("ap50", "token_recall", "usual boxes", "disc"))
    document = json.loads((tmp_path / "found" / "detections.json").read_text())
    assert len(document["images"]) == 100
    assert len(list((tmp_path / "found" / "pictures").iterdir())) == 100
    for made in ("my-run/report.html", "second-run/metrics.json"):
        assert (tmp_path / made).is_file()
