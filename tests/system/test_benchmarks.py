"""The harness of `make bench`; it is run on a benchmark of no content, since tests assert no time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks import run as bench
from benchmarks.run import Roofline

DOCUMENT = {
    "title": "ours against theirs",
    "threads": 1,
    "correct": "largest difference 0",
    "rows": [
        {"case": "small", "peer": "theirs", "ours_s": 0.002, "peer_s": 0.001, "at_least": 0.95},
        {"case": "large", "peer": "theirs", "ours_s": 0.5, "peer_s": 1.0, "flops": 1e9, "bytes": 1e6, "at_least": 2},
    ],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    monkeypatch.setattr(bench, "BUILD", tmp_path / "build")
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "docs")
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "benchmarks" / "run.py"))
    monkeypatch.setattr(bench, "measure_roofline", lambda threads: Roofline(4e9, 1e9))
    (tmp_path / "benchmarks").mkdir()
    return tmp_path


def write(folder: Path, name: str, code: str) -> None:
    (folder / "benchmarks" / f"{name}.py").write_text(code, encoding="utf-8")


def test_table_and_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder, "ours", f"import json; print(json.dumps({DOCUMENT!r}))\n")
    assert bench.main([]) == 0
    small, large = capsys.readouterr().out.splitlines()[-2:]
    assert small.split() == ["small", "theirs", "2", "ms", "1", "ms", "0.50", "!0.95"]
    assert large.split() == ["large", "theirs", "500", "ms", "1e+03", "ms", "2.00", "2.00", "50", "%"]
    record = json.loads((folder / "docs" / "bench-ours.json").read_text(encoding="utf-8"))
    assert record["rows"] == DOCUMENT["rows"]
    assert {"machine", "versions", "roofline"} <= set(record)


def test_wrong_results_give_no_figure(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder, "wrong", "raise SystemExit(1)\n")
    write(folder, "chatty", "print('hello')\n")
    assert bench.main([]) == 1
    said = capsys.readouterr()
    assert "wrong: failed, exit 1; no figure of it counts" in said.err
    assert "chatty: its output is no JSON document: 'hello\\n'" in said.err
    assert not (folder / "docs").exists()


def test_unknown_name_lists_the_known(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder, "ours", "")
    assert bench.main(["mine"]) == 1
    assert "No benchmark mine.  All: ours" in capsys.readouterr().err


def test_peers_get_an_environment_that_sees_ours(folder: Path) -> None:
    asked: list[list[str]] = []

    def install(command: list[str], **_: object) -> int:
        asked.append(command)
        return 0

    python = bench.environment(["einops>=0.8"], install)
    assert asked[0][-1] == "einops>=0.8"
    assert bench.environment(["einops>=0.8"], install) == python
    assert len(asked) == 1
    code = "import polyhead, pluggy, sys; print(sys.prefix)"
    result = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()) == python.parents[1]


def test_peers_that_cannot_be_installed_are_named(folder: Path) -> None:
    with pytest.raises(SystemExit, match=r"The peers cannot be installed: .*install --quiet no-such-peer"):
        bench.environment(["no-such-peer"], lambda command, **_: 1)
    assert bench.environment([]) == Path(sys.executable)
