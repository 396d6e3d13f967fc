"""Several processes: `fit` starts them itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

SHORT = ("--steps", "8", "--device", "cpu", "--threads", "1")


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_several_processes_need_a_folder(line_fit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    said = line_fit("fit", "--data", "toy-lines", "--devices", 2)
    assert (said.code, said.err) == (
        2,
        "line-fit: Several processes need one folder for the run: name it with --out RUN.\n",
    )
    said = line_fit("fit", "--data", "toy-lines", "--num-nodes", 2, "--out", "run")
    assert said.err == (
        "line-fit: --num-nodes: set MASTER_ADDR and MASTER_PORT to those of the first machine, on every machine.\n"
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert line_fit("fit", "--data", "toy-lines").err.startswith("line-fit: Several processes need one folder")


def test_two_processes_fit_one_run(fresh: Callable[..., Any], tmp_path: Path) -> None:
    command = ("-m", "polyhead_apps", "line-fit", "fit", "--data", "toy-lines", *SHORT)
    two = fresh(*command, "--devices", "2", "--out", "two")
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("test split.") == two.stderr.count("run: two") == 1
    one = fresh(*command, "--out", "one")
    assert one.returncode == 0, one.stderr
    ours, theirs = (read(tmp_path / name / "metrics.json")["metrics"] for name in ("one", "two"))
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_a_failing_process_is_named_once(fresh: Callable[..., Any], tmp_path: Path) -> None:
    result = fresh(
        *("-m", "polyhead_apps", "line-fit", "fit", "--data", "toy-lines", "--devices", "2", "--out", "run"),
        *("--set", "model.hidden=0.5", "--device", "cpu"),
    )
    assert (result.returncode, result.stdout) == (1, "")
    *said, last = sorted(result.stderr.splitlines(), key=lambda line: line.startswith("line-fit: process"))
    problem = 'Model "line": "hidden" is 0.5 (float); expected int.  (--set model.KEY=VALUE)'
    assert set(said) <= {f"line-fit: {problem}", f"line-fit (process 1): {problem}"}
    assert said
    assert last.endswith("failed with exit code 1; its message is above.")
    assert not (tmp_path / "run").exists()


def test_ctrl_c_reaches_every_process(site: Mapping[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "polyhead_apps", "line-fit", "fit", "--data", "toy-lines", "--devices", "2"]
    process = subprocess.Popen(
        [*command, "--out", "run", "--steps", "1000000", "--device", "cpu"],
        env=site,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    for line in process.stderr:  # until the loop tells of its progress, however slow the machine is
        if line.startswith("fit: "):
            break
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate()[1].splitlines()
    assert process.returncode == 1
    assert [line for line in said if "stopped" in line] == ["line-fit: stopped. Go on: line-fit fit --resume --out run"]
    assert "Traceback" not in "".join(said)
