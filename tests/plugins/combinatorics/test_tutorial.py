"""The tutorial's commands run as they stand there, at toy size, and leave what it says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from polyhead_apps.shell import main
from polyhead_combinatorics.app import app

TOY = ("--steps", "3", "--preset", "tiny", "--set", "data.held_out=8", "--threads", "1", "-q")


def _run(command: str) -> None:
    arguments = shlex.split(command)[1:]
    if arguments[0] == "fit":
        at = arguments.index("--time-limit")
        arguments[at : at + 2] = TOY
    assert main(app, arguments) == 0, command


def test_the_tutorial_runs(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = root / "docs" / "tutorials" / "geometry-solve.md"
    text = page.read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for language, block in re.findall(r"^```(python|bash)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        if language == "python":
            exec(compile(block, page.name, "exec"), {})
            continue
        for command in block.replace("\\\n", " ").strip().splitlines():
            _run(command)

    said = capsys.readouterr().out
    for name in ("nearest neighbour", "2-opt"):
        assert f"**{name}**" in text
        assert name in said
    assert "gap +" in said
    stops = (tmp_path / "stops.csv").read_text().splitlines()
    assert all(f"    {line}\n" in text for line in stops[:4])
    route = (tmp_path / "route.csv").read_text().splitlines()
    assert f"    {route[0]}\n" in text
    assert route[1].startswith("1,depot,")
    assert route[12].startswith("12,home,")
    assert len(route) == 13
    assert (tmp_path / "classical.csv").is_file()
    assert {"route.csv", "route.geojson", "route.png"} <= {path.name for path in (tmp_path / "routes").iterdir()}
