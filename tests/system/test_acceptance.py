"""The harness of `make acceptance`: what passed is skipped until its source changes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from scripts import acceptance
from scripts.acceptance import Step

CLAIM = 'import json; print(json.dumps({"mae": 1.5}))'


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """Three steps over one source file: a claim, one that fails, one whose output is no document."""
    for name, folder in (("ROOT", ""), ("BUILD", "build/acceptance"), ("RESULTS", "docs/results")):
        monkeypatch.setattr(acceptance, name, tmp_path / folder)
    source = tmp_path / "source.py"
    source.write_text("x = 1\n", encoding="utf-8")
    commands = {"app/claim": CLAIM, "app/fails": "raise SystemExit(1)", "app/talks": "print('fine')"}
    found = [Step(name, (sys.executable, "-c", code), (source,), document=True) for name, code in commands.items()]
    monkeypatch.setattr(acceptance, "steps", lambda app: found)
    return found


def test_passed_step_is_skipped_until_its_source_changes(
    steps: list[Step], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del steps[1:]
    assert acceptance.main([]) == 0
    assert acceptance.main([]) == 0
    assert "app/claim: passed before" in capsys.readouterr().out
    (tmp_path / "source.py").write_text("x = 2\n", encoding="utf-8")
    assert acceptance.main(["--list"]) == 0
    assert "app/claim: to do" in capsys.readouterr().out


def test_record_says_how_and_where(steps: list[Step], tmp_path: Path) -> None:
    acceptance.main([])
    record: dict[str, Any] = json.loads((tmp_path / "docs/results/app-claim.json").read_text(encoding="utf-8"))
    assert record["result"] == {"mae": 1.5}
    assert record["exit"] == 0
    assert {"command", "digest", "seconds", "machine", "versions"} <= set(record)
    assert sorted(path.name for path in (tmp_path / "docs/results").iterdir()) == ["app-claim.json"]


def test_failures_are_named_and_run_again(steps: list[Step], capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert acceptance.main([]) == 1
        said = capsys.readouterr().out
        assert "== 1 of 3 steps passed" in said
        assert "FAILED: app/fails" in said
        assert "FAILED: app/talks" in said
        assert "its output is no JSON document: 'fine\\n'" in said


def test_unknown_app_gets_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert acceptance.main(["--app", "trafic-forecast"]) == 1
    assert 'No app "trafic-forecast". Did you mean "traffic-forecast"?' in capsys.readouterr().err


def test_every_app_has_its_demo_among_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    from polyhead.plugins import plugins

    monkeypatch.setattr(acceptance, "_slow_tests", lambda folders: [])
    names = [step.name for step in acceptance.steps()]
    assert {f"{app.name}/demo" for plugin in plugins() for app in plugin.apps} <= set(names)
    assert names[-3:] == ["kernels/verify", "kernels/self-test", "kernels/compile"]
