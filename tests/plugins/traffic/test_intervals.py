"""Intervals: what they promise for exchangeable readings, what is refused, what `predict` writes."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from polyhead.errors import ConfigError
from polyhead.protocols import Batch
from polyhead_apps import recipe
from polyhead_apps.console import Console
from polyhead_traffic.baselines import fit_baselines
from polyhead_traffic.data import SensorData
from polyhead_traffic.formats import open_folder
from polyhead_traffic.intervals import LEVELS, IntervalMetric, Intervals
from polyhead_traffic.settings import ForecastTaskSettings, PredictSettings, SensorSettings
from polyhead_traffic.task import ForecastTask

Network = Callable[..., SensorData]


class Held(nn.Module):
    """Forecasts a constant."""

    def __init__(self, value: float = 55.0) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, x: Tensor, te: Tensor) -> Tensor:
        return self.value.expand(len(x), te.shape[1] - x.shape[1], x.shape[2])


def held(batch: Batch) -> Tensor:
    return Held()(batch["x"], batch["te"]).detach()


def _noise(network: Network, days: float = 120, missing: float = 0.0) -> SensorData:
    """Readings that are exchangeable in time: noise of another size at each sensor."""
    data = network(days=days, sensors=6, missing=missing)
    noise = np.random.default_rng(1).standard_normal(data.values.shape) * np.array([1, 1, 2, 4, 8, 2])
    return replace(data, values=np.where(data.mask, 55 + noise, 0).astype(np.float32))


def _coverage(data: SensorData, intervals: Intervals, level: float) -> tuple[float, np.ndarray]:
    source = data.source("test")
    batch = source.fetch(range(len(source)))
    slots = batch["te"].numpy()[:, data.history :, 1]
    low, high = intervals.bounds(held(batch).numpy(), slots, data.step_s, level)
    y, mask = batch["y"].numpy(), batch["y_mask"].numpy()
    inside = (y >= low) & (y <= high) & mask
    return inside.sum() / mask.sum(), inside.sum(axis=(0, 1)) / mask.sum(axis=(0, 1))


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_exchangeable_readings_are_covered_at_every_sensor(network: Network, level: float, missing: float) -> None:
    data = _noise(network, missing=missing)
    intervals = Intervals.fit(held, data)
    assert intervals is not None
    share, sensors = _coverage(data, intervals, level)
    assert share == pytest.approx(level, abs=0.04)
    assert np.abs(sensors - level).max() < 0.15


def test_bounds_are_order_statistics_of_scaled_residuals(network: Network) -> None:
    data = _noise(network, days=12)
    intervals = Intervals.fit(held, data)
    assert intervals is not None
    source = data.source("validation")
    batch = source.fetch(range(len(source)))
    slots = batch["te"].numpy()[:, data.history :, 1]
    scale = intervals.scale[slots * data.step_s // 3600]
    for step in range(data.horizon):
        scores = np.sort((batch["y"].numpy()[:, step] - 55.0).astype(np.float64).ravel() / scale[:, step].ravel())
        count = len(scores)
        low = scores[max(int(np.floor((count + 1) * 0.1)), 1) - 1]
        high = scores[min(int(np.ceil((count + 1) * 0.9)), count) - 1]
        position = LEVELS.index(0.8)
        assert intervals.lower[position, step] == pytest.approx(low, rel=2e-3)
        assert intervals.upper[position, step] == pytest.approx(high, rel=2e-3)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.5, 0.99), st.floats(0.5, 0.99))
def test_a_higher_level_is_never_narrower(one: float, other: float) -> None:
    table = np.linspace(0.1, 2, len(LEVELS))[:, None]
    intervals = Intervals(np.ones((24, 2)), -table, table, None)
    forecast, slots = np.zeros((1, 1, 2)), np.zeros((1, 1), np.int64)
    low, high = intervals.bounds(forecast, slots, 3600, min(one, other))
    lower, higher = intervals.bounds(forecast, slots, 3600, max(one, other))
    assert (lower <= low).all()
    assert (high <= higher).all()


def test_rush_hours_are_wider_than_nights(network: Network) -> None:
    data = network(days=40, sensors=3)
    hour = data.calendar[:, 1]
    noise = np.random.default_rng(0).standard_normal(data.values.shape) * np.where(hour == 8, 10, 1)[:, None]
    intervals = Intervals.fit(held, replace(data, values=(55 + noise).astype(np.float32)))
    assert intervals is not None
    assert (intervals.scale[8] > 2 * intervals.scale[3]).all()


def test_speeds_are_not_below_zero_and_temperatures_may_be(network: Network) -> None:
    data = _noise(network)
    batch = data.source("test").fetch(range(4))
    slots = batch["te"].numpy()[:, data.history :, 1]
    for readings, least in ((data, 0.0), (replace(data, values=data.values - 55), None)):
        intervals = Intervals.fit(held, readings)
        assert intervals is not None
        assert intervals.least == least
        low, _ = intervals.bounds(np.zeros((4, data.horizon, 6)), slots, data.step_s, 0.99)
        assert (low.min() >= 0) == (least == 0)


def test_nothing_observed_in_validation_gives_no_intervals(network: Network) -> None:
    data = network(days=8)
    mask = data.mask.copy()
    mask[data.starts["validation"][0] :] = False
    assert Intervals.fit(held, replace(data, mask=mask, values=np.where(mask, data.values, 0))) is None


def test_levels_that_are_not_kept_are_refused() -> None:
    intervals = Intervals(np.ones((24, 2)), np.zeros((50, 1)), np.zeros((50, 1)), None)
    with pytest.raises(ConfigError, match=r"level is 0\.3: intervals are kept for 0\.5 to 0\.99\."):
        intervals.bounds(np.zeros((1, 1, 2)), np.zeros((1, 1), np.int64), 3600, 0.3)


def test_they_come_back_as_they_were_saved(network: Network) -> None:
    intervals = Intervals.fit(held, _noise(network))
    assert intervals is not None
    again = Intervals.restore(json.loads(json.dumps(intervals.state())))
    for name in ("scale", "lower", "upper"):
        np.testing.assert_array_equal(getattr(again, name), getattr(intervals, name))
    assert again.least == intervals.least == 0.0


def test_the_metric_counts_what_lies_inside_in_parts_as_in_one(network: Network) -> None:
    data = _noise(network, missing=0.2)
    intervals = Intervals.fit(held, data)
    assert intervals is not None
    source = data.source("test")
    whole, *parts = (IntervalMetric(data.horizon, data.step_s, intervals) for _ in range(3))
    half = len(source) // 2
    for metric, chosen in ((whole, range(len(source))), (parts[0], range(half)), (parts[1], range(half, len(source)))):
        batch = source.fetch(chosen)
        metric.update(held(batch), batch)
    merged = IntervalMetric(data.horizon, data.step_s, intervals)
    merged.merge([part.state() for part in parts])
    assert merged.compute() == pytest.approx(whole.compute())
    figures = whole.compute()
    steps = [figures[f"coverage_80_{60 * step}min"] for step in range(1, data.horizon + 1)]
    assert figures["coverage_80"] == pytest.approx(np.mean(steps))
    share, _ = _coverage(data, intervals, 0.8)
    assert figures["coverage_80"] == pytest.approx(100 * share, abs=0.5)
    assert figures["width_80"] > 0
    assert figures["mae"] == pytest.approx(_mae(data), rel=1e-5)


def _mae(data: SensorData) -> float:
    source = data.source("test")
    batch = source.fetch(range(len(source)))
    error = (held(batch) - batch["y"]).abs()
    return float(np.mean([error[:, step][batch["y_mask"][:, step]].mean() for step in range(data.horizon)]))


@pytest.fixture
def calibrated(network: Network) -> tuple[ForecastTask, Held, SensorData]:
    data = _noise(network)
    task = ForecastTask.prepare(data, ForecastTaskSettings(embedding="laplacian"), seed=0)
    assert "coverage_80" not in task.headline
    assert type(task.model_metric()) is type(task.metric())
    model = Held()
    return task.calibrate(model, data), model, data


def test_a_calibrated_task_is_saved_with_its_intervals(calibrated: tuple[ForecastTask, Held, SensorData]) -> None:
    task, model, data = calibrated
    assert task.headline[-1] == "coverage_80"
    again = ForecastTask.restore(json.loads(json.dumps(task.state())))
    tasks: list[Any] = [task, again]
    figures = [
        recipe.evaluate(
            recipe.predictor(model, one),
            one,
            data.source("test"),
            batch_size=16,
            seed=0,
            console=Console(quiet=True),
            metric=one.model_metric(),
        )
        for one in tasks
    ]
    assert figures[0] == figures[1]
    assert 75 < figures[0]["coverage_80"] < 85
    assert ForecastTask.restore({k: v for k, v in task.state().items() if k != "intervals"}).intervals is None


def test_predictions_have_bounds_of_the_level(
    calibrated: tuple[ForecastTask, Held, SensorData], tmp_path: Path
) -> None:
    task, model, data = calibrated
    inside = {}
    for level in (0.5, 0.95):
        (file,) = task.write_predictions(model, data, tmp_path, PredictSettings(split="test", level=level))
        with file.open(newline="") as stream:
            lines = list(csv.DictReader(stream))
        assert list(lines[0]) == ["timestamp", "sensor_id", "horizon_min", "forecast", "lower", "upper", "observed"]
        assert all(float(line["lower"]) <= float(line["upper"]) for line in lines)
        inside[level] = np.mean(
            [float(line["lower"]) <= float(line["observed"]) <= float(line["upper"]) for line in lines]
        )
    assert inside[0.5] == pytest.approx(0.5, abs=0.05)
    assert inside[0.95] == pytest.approx(0.95, abs=0.04)


def test_a_baseline_on_a_real_week_is_covered(shared: Path) -> None:
    data = open_folder(shared / "data" / "traffic" / "metr-la-week", SensorSettings())
    (baseline,) = fit_baselines(data, ["slot median + residual"]).values()
    intervals = Intervals.fit(baseline, data)
    assert intervals is not None
    metric = IntervalMetric(data.horizon, data.step_s, intervals)
    source = data.source("test")
    for first in range(0, len(source), 64):
        batch = source.fetch(range(first, min(first + 64, len(source))))
        metric.update(baseline(batch), batch)
    figures = metric.compute()
    for name in ("coverage_80", "coverage_80_15min", "coverage_80_30min", "coverage_80_60min"):
        assert 75 < figures[name] < 85
