"""The command from end to end: the kit, the quick demo, and tours of a user's stops."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from polyhead.testing import check_plugin
from polyhead_apps.shell import main
from polyhead_combinatorics.app import app

TINY = ("--threads", "1", "--preset", "tiny", "--steps", "3", "--set", "data.held_out=8", "-q")
STOPS = "id,x,y\ndepot,0,0\na,0,3\nb,4,3\nc,4,0\nhome,2,1\n"


def _call(*arguments: str) -> int:
    return main(app, arguments)


def test_the_plugin_passes_the_kit() -> None:
    assert check_plugin("combinatorics")


@pytest.mark.parametrize("task", ["tsp", "hull", "delaunay"])
def test_the_quick_demo_ends_with_a_report_and_answers(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _call("demo", "--quick", "--task", task, "--threads", "1", "--out", "run", "--set", "train.steps=5") == 0
    assert "it makes no claim" in capsys.readouterr().out
    assert (tmp_path / "run" / "report.html").is_file()
    name = {"tsp": "route", "hull": "hull", "delaunay": "triangles"}[task]
    (written,) = (tmp_path / "run").rglob(f"predictions/{name}.csv")
    assert written.read_text().startswith("instance,")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fitted") / "run"
    assert _call("fit", "--data", "uniform-tsp", *TINY, "--out", str(out)) == 0
    return out


def _predict(fitted: Path, stops: Path, *options: str) -> int:
    return _call("predict", "--model", str(fitted), "--data", str(stops), "--threads", "1", *options)


@pytest.mark.parametrize("solver", ["network", "classical", "warm"])
def test_stops_come_back_in_order_with_names_legs_and_a_gap(
    solver: str, fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stops, out = tmp_path / "stops.csv", tmp_path / "route.csv"
    stops.write_text(STOPS)
    options = ("--start", "depot", "--end", "home", "--open", "--beam", "16", "--polish", "2opt", "--solver", solver)
    assert _predict(fitted, stops, *options, "--out", str(out)) == 0
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [rows[0]["id"], rows[-1]["id"]] == ["depot", "home"]
    assert {row["id"] for row in rows} == {"depot", "a", "b", "c", "home"}
    assert float(rows[-1]["cumulative"]) == pytest.approx(sum(float(row["leg"]) for row in rows))
    assert "gap " in capsys.readouterr().out


def test_a_round_tour_comes_back_to_its_start(fitted: Path, tmp_path: Path) -> None:
    stops = tmp_path / "stops.csv"
    stops.write_text(STOPS)
    out = tmp_path / "route"
    assert _predict(fitted, stops, "--start", "b", "--files", "csv,geojson,png", "--out", str(out)) == 0
    rows = list(csv.DictReader((out / "route.csv").read_text().splitlines()))
    assert [rows[0]["id"], rows[-1]["id"], len(rows)] == ["b", "b", 6]
    features = json.loads((out / "route.geojson").read_text())["features"]
    line = features[0]["geometry"]["coordinates"]
    assert line[0] == line[-1] == [4, 3]
    assert [feature["properties"]["id"] for feature in features[1:]] == [row["id"] for row in rows[:-1]]
    assert (out / "route.png").read_bytes().startswith(b"\x89PNG")


def test_many_more_stops_than_in_training_go_to_the_classical_solver(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stops = tmp_path / "stops.csv"
    stops.write_text("x,y\n" + "".join(f"{i * i % 37},{i * 7 % 31}\n" for i in range(31)))
    assert _predict(fitted, stops, "--out", str(tmp_path / "a.csv")) == 0
    said = capsys.readouterr().out
    assert "by PyVRP. The model was trained on at most 10 points and 31 are more than 3 times that" in said
    assert "gap +" in said
    assert _predict(fitted, stops, "--out", str(tmp_path / "b.csv"), "--solver", "network") == 0
    assert "The classical solver is better: --solver classical takes its tour" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--start", "dept"), 'no such stop. Did you mean "depot"?'),
        (("--start", "a", "--end", "a", "--open"), "--start and --end are both a: that is a round tour"),
    ],
)
def test_stops_that_are_not_there_are_refused(
    options: tuple[str, ...], message: str, fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stops = tmp_path / "stops.csv"
    stops.write_text(STOPS)
    assert _predict(fitted, stops, *options, "--out", str(tmp_path / "a.csv")) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "a.csv").exists()


def test_a_file_of_stops_is_checked_and_not_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stops = tmp_path / "stops.csv"
    stops.write_text(STOPS)
    assert _call("data", "check", str(stops)) == 0
    assert _call("fit", "--data", str(stops), *TINY, "--out", str(tmp_path / "run")) == 1
    assert "stops has 0 instances with answers, at least 10 are needed to train" in capsys.readouterr().err


def test_instances_of_the_release_are_trained_on(tmp_path: Path) -> None:
    path = tmp_path / "tsp4.txt"
    path.write_text("0.0 0.0 0.0 1.0 1.0 1.0 1.0 0.0 output 1 2 3 4 1\n" * 12)
    assert _call("fit", "--data", str(path), *TINY, "--out", str(tmp_path / "run")) == 0
