from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import image
from torch import Tensor, nn

from polyhead.errors import ShapeError
from polyhead.protocols import Batch, Picture, Predictor
from polyhead_traffic import maps, report
from polyhead_traffic.data import SensorData
from polyhead_traffic.maps import error_of_sensors, graph_layout
from polyhead_traffic.report import Tally, error_by_horizon, error_by_time_of_day, forecast_series, pictures

Network = Callable[..., SensorData]


class Offset(nn.Module):
    """Forecasts the truth and a constant more."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.tensor(offset))

    def forward(self, batch: Batch) -> Tensor:
        assert not self.training
        truth: Tensor = batch["y"]
        return truth + self.offset


class Task:
    """The part of a task that pictures need."""

    def __init__(self, baselines: Mapping[str, float]) -> None:
        self.offsets = baselines

    def predict(self, model: nn.Module, batch: Batch) -> Any:
        return model(batch)

    def baselines(self, data: SensorData) -> Mapping[str, Predictor]:
        return {name: Offset(offset).eval() for name, offset in self.offsets.items()}


def pixels(picture: Picture) -> np.ndarray:
    return image.imread(io.BytesIO(picture.png), format="png")


def assert_readable(picture: Picture, data: SensorData) -> None:
    """A PNG of a phone's width with something drawn on it, and words that carry the provenance."""
    height, width, _ = pixels(picture).shape
    assert width == 960
    assert 0.5 < height / width < 1.6
    assert 0.01 < (pixels(picture)[..., :3].min(axis=2) < 0.9).mean() < 0.6
    assert picture.title
    assert picture.caption.endswith(data.origin)


@pytest.mark.parametrize("step_s", [900, 3600])
def test_pictures_of_a_run(network: Network, step_s: int) -> None:
    data = network(days=5, sensors=5, step_s=step_s, missing=0.1)
    model = Offset(1.0).train()
    made = pictures(Task({"last value": 2.0, "slot mean": 3.0}), model, data)  # type: ignore[arg-type]
    assert [picture.title for picture in made] == [
        "Forecast against readings",
        "Error by horizon",
        "Where the error is",
        "Error by time of day",
    ]
    for picture in made:
        assert_readable(picture, data)
    assert "left out" not in made[1].caption
    assert model.training, "the model is given back as it was"


def test_only_the_five_best_baselines_are_drawn(network: Network) -> None:
    drawn: dict[str, np.ndarray] = {}

    def note_names(data: SensorData, errors: Mapping[str, np.ndarray], *, note: str = "") -> Picture:
        drawn.update(errors)
        return error_by_horizon(data, errors, note=note)

    task = Task({f"offset {offset}": float(offset) for offset in (9, 2, 8, 3, 7, 4, 6)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "error_by_horizon", note_names)
        made = pictures(task, Offset(5.0), network())  # type: ignore[arg-type]
    assert list(drawn) == ["Offset", "offset 2", "offset 3", "offset 4", "offset 6", "offset 7"]
    assert "2 baselines with larger errors are left out." in made[1].caption
    assert "2 baselines with larger errors are left out." in made[3].caption


def test_the_same_call_gives_the_same_bytes(network: Network) -> None:
    data = network()
    first, second = (pictures(Task({"a": 2.0}), Offset(1.0), data) for _ in range(2))  # type: ignore[arg-type]
    assert first == second


def test_tally_against_a_double_loop(network: Network) -> None:
    data = network(days=4, sensors=3, missing=0.3, step_s=1800)
    starts = data.starts["test"]
    rows = starts[:, None] + data.history + np.arange(data.horizon)
    truth, mask = data.values[rows], data.mask[rows]
    forecast = truth + np.random.default_rng(1).normal(0, 3, truth.shape).astype(np.float32)
    tally = Tally(data, step=2)
    for part in np.array_split(np.arange(len(starts)), 3):
        tally.add(starts[part], truth[part], mask[part], forecast[part])
    lists: dict[str, list[list[float]]] = {
        "by_step": [[] for _ in range(data.horizon)],
        "by_hour": [[] for _ in range(24)],
        "by_sensor": [[] for _ in data.ids],
        "by_sensor_at_step": [[] for _ in data.ids],
    }
    for window, start in enumerate(starts):
        for step in range(data.horizon):
            for sensor in range(len(data.ids)):
                if not mask[window, step, sensor]:
                    continue
                error = float(abs(forecast[window, step, sensor] - truth[window, step, sensor]))
                hour = int(str(data.timestamps[start + data.history + step])[11:13])
                lists["by_step"][step].append(error)
                lists["by_hour"][hour].append(error)
                lists["by_sensor"][sensor].append(error)
                if step == 1:
                    lists["by_sensor_at_step"][sensor].append(error)
    for name, parts in lists.items():
        expected = np.array([np.mean(part) if part else np.nan for part in parts])
        np.testing.assert_allclose(getattr(tally, name), expected, rtol=1e-5, err_msg=name)
    assert tally.mae == pytest.approx(np.mean([error for part in lists["by_step"] for error in part]), rel=1e-5)


def test_nothing_observed_is_no_error(network: Network) -> None:
    data = network(sensors=2)
    tally = Tally(data, step=1)
    assert tally.mae == float("inf")
    assert np.isnan(tally.by_step).all()


def test_tally_refuses_other_shapes(network: Network) -> None:
    data = network(sensors=2)
    truth = np.zeros((5, 3, 2), np.float32)
    with pytest.raises(ShapeError, match=r"forecast \(5, 3, 1\) must all be \(windows, steps, sensors\) = \(5, 3, 2\)"):
        Tally(data, step=1).add(np.arange(5), truth, truth > -1, truth[..., :1])


def test_series_breaks_at_a_gap_and_at_missing_readings(network: Network) -> None:
    data = network(days=6, sensors=3, missing=0.2, breaks=(130,))
    starts = data.starts["test"]
    assert (np.diff(starts) > 1).any()
    forecast = np.full((len(starts), 3), 55.0, np.float32)
    picture = forecast_series(data, starts, forecast, np.array([3.0, np.nan, 1.0]), step=1, model="held value")
    assert_readable(picture, data)
    assert "60 min before" in picture.caption


def test_series_of_sensors_without_readings(network: Network) -> None:
    data = network(sensors=2)
    starts = data.starts["test"]
    forecast = np.zeros((len(starts), 2), np.float32)
    picture = forecast_series(data, starts, forecast, np.full(2, np.nan), step=1)
    assert picture.png.startswith(b"\x89PNG")


def test_negative_readings_are_not_cut_off(network: Network) -> None:
    data = network(sensors=2, unit="°C")
    shifted = SensorData.from_readings(
        data.values - 55, data.timestamps, step_s=data.step_s, ids=data.ids, name="cold", origin="Made up.", history=4
    )
    starts = shifted.starts["test"]
    forecast = np.full((len(starts), 2), -5.0, np.float32)
    assert_readable(forecast_series(shifted, starts, forecast, np.ones(2), step=1), shifted)


@pytest.mark.parametrize("steps", [1, 3, 12, 24])
def test_error_by_horizon_for_any_number_of_steps(network: Network, steps: int) -> None:
    data = network(step_s=300)
    errors = {"GMAN": np.linspace(1, 2, steps), "last value": np.linspace(1, 4, steps)}
    assert_readable(error_by_horizon(data, errors), data)


def test_error_by_time_of_day_with_unseen_hours(network: Network) -> None:
    data = network()
    errors = np.where(np.arange(24) < 6, np.nan, 2.0)
    assert_readable(error_by_time_of_day(data, {"GMAN": errors}), data)


def test_where_the_error_is(network: Network) -> None:
    mae = np.array([1.0, 2.0, np.nan, 4.0])
    coordinates = np.array([[34.1, -118.2], [34.2, -118.3], [34.15, -118.25], [34.0, -118.1]])
    on_map = error_of_sensors(network(coordinates=coordinates), mae, model="GMAN")
    assert "GMAN at each sensor, all steps ahead, on the map" in on_map.caption
    assert "Hollow: without an observed reading (1)." in on_map.caption
    on_graph = error_of_sensors(network(), mae)
    assert "on a layout of the graph" in on_graph.caption
    in_order = error_of_sensors(network(graph=None), mae)
    assert "each of 3 sensors, all steps ahead, from least to largest" in in_order.caption
    for picture in (on_map, on_graph, in_order):
        assert_readable(picture, network())


def test_a_large_graph_is_not_laid_out(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "_LARGEST_LAYOUT", 3)
    assert "from least to largest" in error_of_sensors(network(), np.ones(4)).caption


def test_layout_puts_neighbours_near(network: Network) -> None:
    data = network(sensors=12)
    places = graph_layout(data)
    assert places.shape == (12, 2)
    assert np.isfinite(places).all()
    np.testing.assert_array_equal(places, graph_layout(data))
    distance = np.linalg.norm(places[:, None] - places[None], axis=-1)
    along_ring = distance[np.arange(12), (np.arange(12) + 1) % 12]
    across_ring = distance[np.arange(12), (np.arange(12) + 6) % 12]
    assert along_ring.max() < across_ring.min()


@pytest.mark.parametrize("sensors", [2, 3])
def test_layout_of_sensors_without_edges(network: Network, sensors: int) -> None:
    places = graph_layout(network(sensors=sensors, graph=None))
    assert np.isfinite(places).all()
    assert np.linalg.norm(places[0] - places[1]) > 1e-3


def test_long_names_are_cut(network: Network) -> None:
    data = network(sensors=2)
    named = SensorData(**{**vars(data), "ids": ("a" * 200, "b" * 200)})
    starts = named.starts["test"]
    forecast = np.full((len(starts), 2), 50.0, np.float32)
    assert_readable(forecast_series(named, starts, forecast, np.ones(2), step=1), named)
