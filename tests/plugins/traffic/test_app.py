"""The command: manifest, app, and a run on small data from the first verb to the last."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from polyhead import plugins
from polyhead.manifest import resolve
from polyhead_apps import run
from polyhead_traffic.app import app
from polyhead_traffic.plugin import polyhead_plugin
from polyhead_traffic.settings import ForecastSettings

TINY = ("--preset", "tiny", "--set", "train.log_steps=1", "--threads", "1")


def _call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exited:
        run(app, arguments)
    assert isinstance(exited.value.code, int)
    return exited.value.code


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five sensors, hourly for twelve days, with a graph and a spatial embedding."""
    rng = np.random.default_rng(0)
    path = tmp_path / "city"
    path.mkdir()
    lines = ["timestamp,n1,n2,n3,n4,n5"]
    for hour in range(12 * 24):
        course = 50 + 15 * np.cos(2 * np.pi * hour / 24) + rng.normal(0, 2, 5)
        when = np.datetime64("2024-03-04T00:00") + np.timedelta64(hour, "h")
        lines.append(",".join([str(when), *(f"{value:.1f}" for value in course)]))
    (path / "readings.csv").write_text("\n".join(lines) + "\n")
    edges = [f"n{i},n{i % 5 + 1},{100 + i}" for i in range(1, 6)]
    (path / "edges.csv").write_text("from,to,distance\n" + "\n".join(edges) + "\n")
    (path / "SE.txt").write_text("5 8\n" + "\n".join(f"{i} " + " ".join(map(str, rng.random(8))) for i in range(5)))
    return path


def test_every_reference_of_the_manifest_resolves() -> None:
    plugin = polyhead_plugin()
    for target in [spec.target for specs in (plugin.datasets, plugin.tasks, plugin.apps) for spec in specs]:
        assert resolve(target) is not None
    for task in plugin.tasks:
        assert resolve(task.settings) is ForecastSettings
        assert set(task.models) <= {model.name for model in plugin.models}
        assert set(task.datasets) <= {data.name for data in plugin.datasets}
    for spec in plugin.models:
        for preset in spec.presets.values():
            resolve(spec.target).Config(nodes=4, **preset)
    for target in app.commands.values():
        assert callable(resolve(target))


def test_the_installed_plugin_is_this_one() -> None:
    assert plugins.find_app("traffic-forecast")[0].name == "traffic"
    assert plugins.find_model("gman")[0].name == "traffic"


def test_manifest_app_and_settings_import_nothing_heavy() -> None:
    code = (
        "import sys, polyhead_traffic.plugin, polyhead_traffic.settings, polyhead_traffic.app\n"
        "polyhead_traffic.plugin.polyhead_plugin()\n"
        "print([name for name in ('torch', 'pandas', 'matplotlib', 'pyarrow', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_fit_evaluate_predict_on_a_folder(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    windows = ("--history", "4", "--horizon", "3")
    assert _call("fit", "--data", str(folder), *windows, *TINY, "--set", "train.steps=3", "--out", "first") == 0
    said = capsys.readouterr()
    assert "slot median + residual" in said.out
    assert "coverage_80" in said.out
    assert "Readings from readings.csv" in said.out
    assert "Protocol gman: time axis cut 70/10/20" in said.out

    assert _call("evaluate", "--model", "first", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert {"mae", "rmse_180min", "mape_60min", "coverage_80", "width_80_60min"} <= set(document["metrics"])
    assert "coverage_80" not in document["baselines"]["last value"]
    assert set(document["baselines"]) >= {"last value", "slot mean", "slot median", "ridge"}
    recorded = json.loads((tmp_path / "first" / "metrics.json").read_text())
    assert document["metrics"] == pytest.approx(recorded["metrics"])

    assert _call("predict", "--model", "first", "--out", "next.csv") == 0
    with (tmp_path / "next.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 3 * 5
    assert lines[0]["timestamp"] == "2024-03-16 00:00:00"
    assert {line["sensor_id"] for line in lines} == {"n1", "n2", "n3", "n4", "n5"}

    assert _call("predict", "--model", "first", "--split", "test", "--out", "backtest.csv") == 0
    assert (
        (tmp_path / "backtest.csv")
        .read_text()
        .startswith("timestamp,sensor_id,horizon_min,forecast,lower,upper,observed\n")
    )


def test_a_run_is_used_on_later_readings_of_the_same_sensors_only(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    windows = ("--history", "4", "--horizon", "3")
    assert _call("fit", "--data", str(folder), *windows, *TINY, "--set", "train.steps=1", "--out", "first", "-q") == 0
    later = tmp_path / "today.csv"
    lines = (folder / "readings.csv").read_text().splitlines()
    later.write_text("\n".join([lines[0], *lines[-4:]]) + "\n")
    capsys.readouterr()
    assert _call("predict", "--model", "first", "--data", str(later), "--out", "today-forecast.csv") == 0
    later.write_text(later.read_text().replace("n5", "n6"))
    assert _call("predict", "--model", "first", "--data", str(later), "--out", "again.csv") == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert 'today has 1 that the model does not know ("n6") and not 1 that it does ("n5")' in said
    assert not (tmp_path / "again.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--data", "{folder}/nowhere"), 1, "no such file, folder or dataset"),
        (
            ("--data", "{folder}", "--horizon", "300"),
            1,
            "readings has 288 rows, too few for a train window of 12 past and 300",
        ),
        (("--data", "{folder}", "--start", "2024-01-01"), 1, "readings.csv has times of its own in its first column"),
        (("--data", "{folder}", "--step", "5 parsecs"), 2, "not a number with a unit: write it as 30s, 5min, 1h or 1d"),
        (("--data", "{folder}", "--set", "model.nodes=7"), 1, "model.nodes is 7, but the data have 5. Leave it out."),
        (("--data", "{folder}", "--set", "data.histroy=3"), 2, 'Did you mean "data.history"?'),
    ],
)
def test_what_is_wrong_ends_in_one_line_and_leaves_nothing(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [argument.format(folder=folder) for argument in arguments]
    assert _call("fit", *given, *TINY, "--out", "first") == code
    lines = capsys.readouterr().err.splitlines()
    assert message in lines[-1]
    assert not (tmp_path / "first").exists()


def test_data_check_says_what_was_picked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _call("data", "check", str(folder)) == 0
    said = capsys.readouterr().out
    assert "readings.csv, edges.csv, SE.txt" in said
    assert "5 distances, made weights by a Gaussian kernel" in said
