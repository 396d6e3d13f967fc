"""The verb `fit`, end to end, with the plugin ``fake``."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polyhead_apps.config import load_settings

SHORT = ("--steps", "8", "--device", "cpu", "--threads", "1")
PROVENANCE = "Points drawn by a generator; they measure nothing."


@pytest.fixture
def run(line_fit: Callable[..., Any], tmp_path: Path) -> Path:
    """A finished run on the embedded data."""
    said = line_fit("fit", "--data", "toy-lines", "--out", "run", *SHORT)
    assert said.code == 0, said.err
    return tmp_path / "run"


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_fit_leaves_a_run_that_says_what_made_it(line_fit: Callable[..., Any], tmp_path: Path) -> None:
    said = line_fit("fit", "--data", "toy-lines", "--set", "model.hidden=3", "--seed", "7", *SHORT)
    assert said.code == 0, said.err
    (folder,) = (tmp_path / "runs" / "line-fit").iterdir()
    assert folder.name.endswith("-line")
    assert {path.name for path in folder.iterdir()} >= {
        *("run.json", "config.yaml", "versions.json", "log.txt", "log.jsonl"),
        *("checkpoints", "model", "metrics.json", "report.html"),
    }
    record = read(folder / "run.json")
    assert (record["plugin"], record["task"], record["model"]) == ("fake", "line-fit", "line")
    assert record["data"]["provenance"] == PROVENANCE
    assert read(folder / "versions.json")["commands"] == [
        "line-fit fit --data toy-lines --set model.hidden=3 --seed 7 --steps 8 --device cpu --threads 1"
    ]
    from polyhead_fake.settings import LineSettings

    settings = load_settings(LineSettings, folder / "config.yaml")
    assert (settings.seed, settings.train.steps, settings.data.scale) == (7, 8, 1.5)
    assert (settings.model.name, settings.model.config) == ("line", {"hidden": 3})
    assert read(folder / "model" / "task.json")["state"]["width"] == 2
    columns, *rows, last = said.out.splitlines()
    assert columns.split() == ["model", "mae", "rmse"]
    assert [row.split()[0] for row in rows] == ["line", "mean", "first"]
    assert last == f"test split. {PROVENANCE}"
    shown = folder.relative_to(tmp_path)
    assert said.err.splitlines()[-1] == (
        f"made {shown} (report.html, model/, metrics.json). Next: line-fit predict --model {shown}"
    )
    log = [line.split("  ", 1)[1] for line in (folder / "log.txt").read_text(encoding="utf-8").splitlines()]
    assert (
        log[0]
        == "command: line-fit fit --data toy-lines --set model.hidden=3 --seed 7 --steps 8 --device cpu --threads 1"
    )
    assert log[1] == f"data: toy lines. {PROVENANCE}"
    assert log[2] == f"run: {shown}"
    assert log[-1].startswith("On the test split line has mae ")
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert PROVENANCE in report
    assert "line-fit fit --data toy-lines" in report
    assert "Line &lt;fit&gt;" in report


def test_fit_as_json_is_one_document(line_fit: Callable[..., Any], tmp_path: Path) -> None:
    said = line_fit("fit", "--data", "toy-lines", "--out", "run", "--json", *SHORT)
    document = json.loads(said.out)
    assert document == read(tmp_path / "run" / "metrics.json")
    assert document["data"] == {"name": "toy lines", "provenance": PROVENANCE, "licence": "CC0"}
    assert (document["split"], document["model"], document["steps"]) == ("test", "line", 8)
    assert set(document["metrics"]) == {"mae", "rmse"}
    assert set(document["baselines"]) == {"mean", "first column"}


def test_the_same_command_gives_the_same_run(line_fit: Callable[..., Any], run: Path, tmp_path: Path) -> None:
    said = line_fit("fit", "--data", "toy-lines", "--out", "again", *SHORT)
    assert said.code == 0, said.err
    same, other = read(run / "metrics.json"), read(tmp_path / "again" / "metrics.json")
    assert same["metrics"] == other["metrics"]
    weights = "model/model.safetensors"
    assert (run / weights).read_bytes() == (tmp_path / "again" / weights).read_bytes()


def test_steps_and_epochs_replace_each_other(line_fit: Callable[..., Any], tmp_path: Path) -> None:
    def steps(name: str, *options: object) -> int:
        said = line_fit("fit", "--data", "toy-lines", "--out", name, "--threads", 1, "--json", *options)
        return int(json.loads(said.out)["steps"])

    assert steps("default") == 8
    assert steps("steps", "--steps", 11) == 11
    assert steps("both", "--steps", 11, "--epochs", 1) == 4
    (tmp_path / "my.yaml").write_text("train: {steps: 3}", encoding="utf-8")
    assert steps("epochs", "--config", "my.yaml", "--epochs", 1) == 4


@pytest.mark.parametrize(
    ("options", "stopped", "line"),
    [
        (("--time-limit", "0.000001s"), "time", "stopped at step 1: the time limit is reached"),
        (("--lr", "1e-30", "--set", "train.patience=2"), "patience", "stopped at step 12: validation gets no better"),
    ],
)
def test_an_early_stop_says_why(
    line_fit: Callable[..., Any], options: tuple[str, ...], stopped: str, line: str
) -> None:
    said = line_fit("fit", "--data", "toy-lines", "--steps", 40, "--threads", 1, "--json", *options)
    assert said.code == 0, said.err
    assert json.loads(said.out)["stopped"] == stopped
    assert line in said.err.splitlines()


def test_written_settings_make_the_same_run(line_fit: Callable[..., Any], run: Path, tmp_path: Path) -> None:
    said = line_fit("fit", "--data", "toy-lines", "--out", "again", "--config", run / "config.yaml", "--threads", 1)
    assert said.code == 0, said.err
    assert read(run / "metrics.json")["metrics"] == read(tmp_path / "again" / "metrics.json")["metrics"]


def test_a_run_is_not_overwritten_without_force(line_fit: Callable[..., Any], run: Path) -> None:
    before = (run / "metrics.json").read_bytes()
    said = line_fit("fit", "--data", "toy-lines", "--out", "run", *SHORT)
    assert said.code == 2
    assert said.err == (
        "line-fit: --out run holds a run: go on with it (--resume), replace it (--force) or name another.\n"
    )
    assert (run / "metrics.json").read_bytes() == before
    assert line_fit("fit", "--data", "toy-lines", "--out", "run", "--force", *SHORT).code == 0


def test_data_errors_leave_nothing_behind(line_fit: Callable[..., Any], points: Path, tmp_path: Path) -> None:
    points.write_text(points.read_text(encoding="utf-8").replace("\n0.125,", "\nmuch,"), encoding="utf-8")
    said = line_fit("fit", "--data", points, *SHORT)
    assert (said.code, said.out) == (1, "")
    assert said.err == f"line-fit: {points}, row 6: could not convert string to float: 'much'.\n"
    assert not (tmp_path / "runs").exists()


def test_fine_tuning_says_what_it_does_not_load(line_fit: Callable[..., Any], run: Path) -> None:
    said = line_fit("fit", "--data", "toy-lines", "--init-from", "run", "--preset", "wide", "--out", "wide", *SHORT)
    assert said.code == 0, said.err
    assert "weights: 1 of 4 tensors from run/model" in said.err
    assert "weights not loaded: inner.bias, inner.weight, outer.weight" in said.err
    assert "weights not used: inner.bias, inner.weight, outer.weight" in said.err


def test_fine_tuning_from_something_else_is_refused(line_fit: Callable[..., Any], run: Path, tmp_path: Path) -> None:
    import torch

    from polyhead.artifacts import save_tensors, write_manifest

    save_tensors(run / "model" / "model.safetensors", {"other": torch.zeros(1)})
    write_manifest(run / "model")
    said = line_fit("fit", "--data", "toy-lines", "--init-from", "run", "--out", "new", *SHORT)
    assert said.code == 1
    assert said.err.splitlines()[-1] == (
        "line-fit: --init-from run/model: no tensor there has the name and shape of one of this model."
    )
    assert not (tmp_path / "new").exists()


# Interruption and resumption


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Press Ctrl-C in the loss of the given step."""
    import polyhead_fake.task

    loss, calls = polyhead_fake.task.LineTask.loss, [0]

    def pressed(self: Any, model: Any, batch: Any) -> Any:
        calls[0] += 1
        if calls[0] == step:
            signal.raise_signal(signal.SIGINT)
        return loss(self, model, batch)

    monkeypatch.setattr(polyhead_fake.task.LineTask, "loss", pressed)


def test_ctrl_c_leaves_a_run_that_goes_on(
    line_fit: Callable[..., Any], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        said = line_fit("fit", "--data", "toy-lines", "--out", "broken", *SHORT)
    assert (said.code, said.out) == (1, "")
    last = said.err.splitlines()[-1]
    assert last == "line-fit: stopped. Go on: line-fit fit --resume --out broken"
    assert not (tmp_path / "broken" / "model").exists()
    refused = line_fit("evaluate", "--model", "broken")
    assert refused.err == ("line-fit: Run broken has no model yet. Go on with it: line-fit fit --resume --out broken\n")
    said = line_fit("fit", "--resume", "--out", "broken", "--device", "cpu", "--threads", 1)
    assert said.code == 0, said.err
    assert read(tmp_path / "broken" / "metrics.json")["metrics"] == read(run / "metrics.json")["metrics"]
    assert len(read(tmp_path / "broken" / "versions.json")["commands"]) == 2


def test_the_newest_unfinished_run_is_resumed(
    line_fit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        assert line_fit("fit", "--data", "toy-lines", *SHORT).code == 1
    said = line_fit("fit", "--resume")
    assert said.code == 0, said.err
    (folder,) = (tmp_path / "runs" / "line-fit").iterdir()
    assert f"run: {folder.relative_to(tmp_path)} (goes on from last)" in said.err


def test_a_run_is_not_resumed_on_other_data_or_for_another_task(
    line_fit: Callable[..., Any], points: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        assert line_fit("fit", "--data", points, "--out", "run", *SHORT).code == 1
    said = line_fit("fit", "--resume", "--out", "run", "--task", "sign")
    assert said.code == 1
    assert said.err == (
        'line-fit: Run run is of task "line-fit" of plugin "fake": it cannot go on as task "sign" of plugin "fake".\n'
    )
    points.write_text(points.read_text(encoding="utf-8") + "1,1,1\n", encoding="utf-8")
    said = line_fit("fit", "--resume", "--out", "run")
    assert said.code == 1
    assert said.err.splitlines()[-1] == (
        f"line-fit: The data of run run have changed since it started ({points}): it cannot be resumed on them. "
        "Fit a new run, or bring the data back."
    )
