"""Demos of several arms, with the plugin ``fake``."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from polyhead_apps import Arm, Demo


class Said(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


ARMS = (Arm("bent", {"model.name": "bent"}), Arm("straight line", {"train.lr": 0.01}))


@pytest.fixture
def demo(fake_plugin: None, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run `line-fit demo` as one of two arms and two seeds."""
    from polyhead_fake.app import app

    from polyhead_apps.shell import main

    arms = Demo(
        arms=ARMS, seeds=2, settings={"train.steps": 6, "train.epochs": None}, quick={"train.steps": 2}, note="Drawn."
    )
    changed = replace(app, demos={"line-fit": arms})

    def call(*arguments: object) -> Said:
        capsys.readouterr()
        code = main(changed, ["demo", "--threads", "1", "--device", "cpu", *map(str, arguments)])
        return Said(code, *capsys.readouterr())

    return call


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_every_arm_runs_with_every_seed(demo: Callable[..., Any]) -> None:
    said = demo("--out", "demo", "--json", "--seed", 5)
    assert said.code == 0, said.err
    document = json.loads(said.out)
    assert read(Path("demo/comparison.json")) == document
    assert [arm["name"] for arm in document["arms"]] == ["bent", "straight line"]
    for arm, folder in zip(document["arms"], ("bent", "straight-line"), strict=True):
        assert [run["seed"] for run in arm["runs"]] == [5, 6]
        assert [run["run"] for run in arm["runs"]] == [f"demo/{folder}-seed-{seed}" for seed in (5, 6)]
        values = [run["metrics"]["mae"] for run in arm["runs"]]
        assert arm["mean"]["mae"] == pytest.approx(sum(values) / 2)
        assert arm["deviation"]["mae"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
        for run in arm["runs"]:
            assert read(Path(run["run"]) / "metrics.json")["metrics"] == run["metrics"]
    assert document["arms"][0]["runs"][0]["metrics"] != document["arms"][1]["runs"][0]["metrics"]
    assert set(document["baselines"]) == {"mean", "first column"}
    assert read(Path("demo/straight-line-seed-5/metrics.json"))["baselines"] == {}
    assert document["note"] == "Drawn."


def test_the_table_has_means_and_deviations(demo: Callable[..., Any]) -> None:
    said = demo("--out", "demo")
    lines = said.out.splitlines()
    assert lines[0].split() == ["model", "mae", "rmse"]
    assert [line.split("  ")[0] for line in lines[1:5]] == ["bent", "straight line", "mean", "first column"]
    assert lines[1].count(" ± ") == 2
    assert "±" not in lines[3]
    assert lines[5].startswith("Test split. Mean ± standard deviation over 2 seeds.")
    assert "predictions: demo/bent-seed-0/predictions/part-0.csv" in said.err
    assert said.err.splitlines()[-1].startswith("made demo: open demo/report.html.")
    page = Path("demo/report.html").read_text(encoding="utf-8")
    assert "straight line" in page
    assert "demo/bent-seed-1" in page


def test_the_quick_demo_has_one_seed_and_its_own_size(demo: Callable[..., Any]) -> None:
    document = json.loads(demo("--quick", "--json").out)
    assert [[run["steps"] for run in arm["runs"]] for arm in document["arms"]] == [[2], [2]]
    assert [arm["deviation"]["mae"] for arm in document["arms"]] == [None, None]
    assert document["arms"][0]["runs"][0]["run"].startswith("runs/line-fit/")


def test_a_comparison_goes_on_where_it_stopped(demo: Callable[..., Any]) -> None:
    first = json.loads(demo("--out", "demo", "--json").out)
    Path("demo/bent-seed-1/metrics.json").unlink()
    kept = Path("demo/bent-seed-0/metrics.json").stat().st_mtime_ns
    said = demo("--out", "demo", "--json")
    assert json.loads(said.out) == first
    assert said.err.count("(finished before)") == 3
    assert Path("demo/bent-seed-0/metrics.json").stat().st_mtime_ns == kept
    assert "finished before" not in demo("--out", "demo", "--force").err


def test_other_settings_begin_again(demo: Callable[..., Any]) -> None:
    demo("--out", "demo", "--quick")
    said = demo("--out", "demo", "--quick", "--set", "train.lr=0.02")
    assert "finished before" not in said.err


def test_predict_finds_a_run_of_a_comparison(demo: Callable[..., Any], line_fit: Callable[..., Any]) -> None:
    demo("--quick", "-q")
    said = line_fit("evaluate", "--json")
    assert json.loads(said.out)["run"].endswith("straight-line-seed-0")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_text("x", encoding="utf-8"), "--out demo is a file: name a folder for the runs."),
        (
            lambda path: (path.mkdir(), (path / "notes").write_text("x", encoding="utf-8")),
            "--out demo is not empty and holds no comparison: name another folder.",
        ),
    ],
)
def test_a_folder_of_something_else_is_refused(demo: Callable[..., Any], make: Any, message: str) -> None:
    make(Path("demo"))
    said = demo("--out", "demo")
    assert (said.code, said.err.splitlines()[-1]) == (2, f"line-fit: {message}")


def test_the_time_limit_is_shared(demo: Callable[..., Any]) -> None:
    document = json.loads(demo("--out", "demo", "--json", "--time-limit", "1h").out)
    assert {run["stopped"] for arm in document["arms"] for run in arm["runs"]} == {"done"}
