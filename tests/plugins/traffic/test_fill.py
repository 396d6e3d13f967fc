"""Gap filling: what it gives where the answer is known, and the command that marks what it filled."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from polyhead.errors import DataError
from polyhead_apps.shell import main
from polyhead_traffic import gaps
from polyhead_traffic.app import app
from polyhead_traffic.data import SensorData
from polyhead_traffic.fill import _errors_of_hidden, write_filled
from polyhead_traffic.formats import open_folder
from polyhead_traffic.gaps import by_forecast, by_interpolation, by_usual_day, hide
from polyhead_traffic.settings import ForecastTaskSettings, SensorSettings
from polyhead_traffic.task import ForecastTask

Network = Callable[..., SensorData]


def _without(data: SensorData, *holes: tuple[slice, int]) -> SensorData:
    mask = data.mask.copy()
    for rows, sensor in holes:
        mask[rows, sensor] = False
    return replace(data, mask=mask, values=np.where(mask, data.values, 0))


class Steps(nn.Module):
    """Forecasts 1000, 1001, … for the steps ahead."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.tensor(1000.0))

    def forward(self, x: Tensor, te: Tensor) -> Tensor:
        steps = torch.arange(te.shape[1] - x.shape[1])[None, :, None]
        return (self.first + steps).expand(len(x), -1, x.shape[2])


@pytest.mark.parametrize("method", [by_interpolation, by_usual_day])
def test_observed_readings_are_never_touched(network: Network, method: Callable[..., np.ndarray]) -> None:
    data = network(days=9, sensors=5, missing=0.3)
    filled = method(data)
    assert (filled[data.mask] == data.values[data.mask]).all()
    assert np.isfinite(filled).all()
    assert (filled >= 0).all()


def test_interpolation_draws_a_line_and_holds_the_ends(network: Network) -> None:
    data = network(days=2, sensors=2, breaks=(24,))
    data = _without(data, (slice(0, 2), 0), (slice(10, 13), 0), (slice(22, 27), 0), (slice(24, 48), 1))
    filled = by_interpolation(data)
    values = data.values[:, 0]
    assert filled[:2, 0] == pytest.approx(values[2])
    assert filled[10:13, 0] == pytest.approx(np.linspace(values[9], values[13], 5)[1:-1], rel=1e-5)
    assert filled[22:24, 0] == pytest.approx(values[21]), "the jump in time is not crossed"
    assert filled[24:27, 0] == pytest.approx(values[27])
    assert filled[24:, 1] == pytest.approx(data.sensor_means[1])


def test_the_usual_day_fills_long_gaps_better_than_a_line(network: Network) -> None:
    whole = network(days=30, sensors=4)
    data = _without(whole, (slice(400, 424), 1), (slice(500, 560), 2))
    errors = {
        method.__name__: np.abs(method(data) - whole.values)[~data.mask].mean()
        for method in (by_usual_day, by_interpolation)
    }
    assert errors["by_usual_day"] < 1.2
    assert errors["by_usual_day"] < 0.3 * errors["by_interpolation"]


@pytest.mark.parametrize("phi", [0.3, 0.9, 0.999])
def test_the_bridge_is_the_conditional_mean_of_an_autoregression(phi: float) -> None:
    rows, missing = 9, [0, 3, 4, 5, 8]
    seen = [row for row in range(rows) if row not in missing]
    covariance = phi ** np.abs(np.subtract.outer(np.arange(rows), np.arange(rows)).astype(np.float64))
    values = np.random.default_rng(0).standard_normal(rows)
    expected = covariance[np.ix_(missing, seen)] @ np.linalg.solve(covariance[np.ix_(seen, seen)], values[seen])
    mask = np.isin(np.arange(rows), seen)[:, None]
    found = gaps._bridge(np.where(mask, values[:, None], 0), mask, phi)
    assert found[missing, 0] == pytest.approx(expected, abs=1e-8)


def test_forecasts_reach_the_first_steps_of_a_gap(network: Network) -> None:
    data = network(days=8, sensors=3, breaks=(100,))
    data = _without(
        data, (slice(50, 55), 1), (slice(51, 52), 2), (slice(0, 2), 0), (slice(102, 104), 0), (slice(190, 192), 1)
    )
    task = ForecastTask.prepare(data, ForecastTaskSettings(embedding="laplacian"), seed=0)
    made = by_forecast(task, Steps(), data)
    assert made[50:55, 1].tolist()[:3] == [1000, 1001, 1002]
    assert np.isnan(made[53:55, 1]).all(), "beyond the horizon"
    assert made[51, 2] == 1000
    assert np.isnan(made[:2, 0]).all(), "no history before it"
    assert np.isnan(made[102:104, 0]).all(), "a jump in time in its history"
    assert made[190:, 1].tolist() == [1000, 1001], "the gap that the last row ends"
    assert (made[data.mask] == data.values[data.mask]).all()


def test_readings_are_hidden_after_training_in_gaps_of_the_datas_lengths(network: Network) -> None:
    data = _without(network(days=40, sensors=6), (slice(100, 107), 1))
    without, hidden = hide(data, seed=3)
    assert hidden[: data.train_rows].sum() == 0
    assert 0.03 < hidden.sum() / data.mask[data.train_rows :].sum() < 0.08
    assert (without.mask == (data.mask & ~hidden)).all()
    assert (without.values[hidden] == 0).all()
    lengths = gaps._lengths(without)
    assert np.median(lengths) == 7
    again, _ = hide(data, seed=3)
    assert (again.mask == without.mask).all()


@pytest.fixture
def readings(network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, SensorData]:
    """A wide CSV of nine days with holes."""
    monkeypatch.chdir(tmp_path)
    data = _without(network(days=9, sensors=4, missing=0.05), (slice(150, 160), 2))
    lines = ["timestamp," + ",".join(data.ids)]
    for stamp, row, seen in zip(data.timestamps, data.values, data.mask, strict=True):
        cells = [str(value) if here else "" for value, here in zip(row, seen, strict=True)]
        lines.append(",".join([str(stamp), *cells]))
    path = tmp_path / "readings.csv"
    path.write_text("\n".join(lines) + "\n")
    return path, data


def _call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(app, list(arguments))
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_command_fills_and_marks(readings: tuple[Path, SensorData], capsys: pytest.CaptureFixture[str]) -> None:
    path, data = readings
    code, out, err = _call(capsys, "fill", "--data", str(path), "--out", "whole")
    assert code == 0, err
    assert "MAE of hidden readings" in out
    missing = int((~data.mask).sum())
    assert f"{missing:,} readings were missing" in out
    filled = open_folder(Path("whole/filled.csv"), SensorSettings(history=4, horizon=3, missing="none"))
    assert filled.mask.all()
    assert filled.ids == data.ids
    assert (filled.timestamps == data.timestamps).all()
    assert (filled.values[data.mask] == data.values[data.mask]).all()
    with Path("whole/filled-marks.csv").open(newline="") as stream:
        marks = list(csv.DictReader(stream))
    assert len(marks) == missing
    for line in marks:
        row = int(np.flatnonzero(data.timestamps == np.datetime64(line["timestamp"]))[0])
        sensor = data.ids.index(line["sensor_id"])
        assert not data.mask[row, sensor]
        assert np.float32(line["value"]) == filled.values[row, sensor]
    assert {line["method"] for line in marks} <= {"interpolation", "usual"}
    assert Path("whole/manifest.json").is_file()


def test_a_runs_forecasts_fill_too(readings: tuple[Path, SensorData], capsys: pytest.CaptureFixture[str]) -> None:
    path, data = readings
    windows = ("--history", "4", "--horizon", "3", "--preset", "tiny", "--steps", "1", "--threads", "1")
    code, _, err = _call(capsys, "fit", "--data", str(path), *windows, "--out", "run", "-q")
    assert code == 0, err
    code, out, err = _call(capsys, "fill", "--model", "run", "--method", "forecast", "--out", "whole", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["method"] == "forecast"
    assert document["filled_by"]["forecast"] > 0
    assert sum(document["filled_by"].values()) == document["missing"] == int((~data.mask).sum())
    assert set(document["mae_of_hidden_readings"]) == {"interpolation", "usual", "forecast"}
    code, out, _ = _call(capsys, "fill", "--model", "run", "--out", "best", "--json")
    errors = json.loads(out)["mae_of_hidden_readings"]
    assert json.loads(out)["method"] == min(errors, key=lambda name: errors[name])


def test_what_is_missing_is_asked_for(readings: tuple[Path, SensorData], capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = readings
    code, _, err = _call(capsys, "fill")
    assert (code, err) == (2, "traffic-forecast: Which data? Give --data PATH, or a run with --model RUN.\n")
    code, _, err = _call(capsys, "fill", "--data", str(path), "--method", "forecast")
    assert code == 2
    assert "--method forecast needs a model: name a run with --model RUN." in err
    assert _call(capsys, "fill", "--data", str(path), "--out", "whole")[0] == 0
    assert _call(capsys, "fill", "--data", str(path), "--out", "whole")[0] == 1
    assert _call(capsys, "fill", "--data", str(path), "--out", "whole", "--force")[0] == 0


def test_without_readings_to_hide_there_is_no_figure(network: Network) -> None:
    data = network(days=9)
    data = _without(data, *((slice(data.train_rows, None), sensor) for sensor in range(4)))
    assert _errors_of_hidden(data, lambda part: {"interpolation": by_interpolation(part)}) == {}


def test_a_series_without_gaps_is_written_as_it_is(network: Network, tmp_path: Path) -> None:
    data = network(days=2)
    write_filled(data, data.values, np.full(data.values.shape, ""), tmp_path)
    assert (tmp_path / "filled-marks.csv").read_text() == "timestamp,sensor_id,value,method\n"


def test_an_hour_that_comes_twice_is_refused(network: Network, tmp_path: Path) -> None:
    data = network(days=2)
    stamps = data.timestamps.copy()
    stamps[30:] -= np.timedelta64(1, "h")
    with pytest.raises(DataError, match=r"ring: an hour of local time comes twice.* Use --set data\.timezone=UTC\."):
        write_filled(replace(data, timestamps=stamps), data.values, np.full(data.values.shape, ""), tmp_path)
