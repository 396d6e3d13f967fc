"""The attention that one sensor pays to others, and that pictures fit nothing anew."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import image

from polyhead.protocols import Picture
from polyhead_traffic import maps, task
from polyhead_traffic.attention import attend_sensors
from polyhead_traffic.baselines import fit_baselines
from polyhead_traffic.data import SensorData
from polyhead_traffic.maps import attention_of_sensor, attention_picture
from polyhead_traffic.settings import ForecastTaskSettings
from polyhead_traffic.task import ForecastTask

Network = Callable[..., SensorData]


def _model(data: SensorData, **config: Any) -> tuple[ForecastTask, Any]:
    torch.manual_seed(0)
    prepared = ForecastTask.prepare(data, ForecastTaskSettings(embedding="laplacian"), seed=0)
    values = {"depth": 1, "heads": 2, "head_dim": 4, **config}
    return prepared, prepared.build_model("gman", values).eval()


def _batch(data: SensorData, windows: int = 3) -> Any:
    return data.source("test").fetch(range(windows))


def _readable(picture: Picture) -> bool:
    pixels = image.imread(io.BytesIO(picture.png), format="png")
    return pixels.shape[1] == 960 and 0.01 < (pixels[..., :3].min(axis=2) < 0.9).mean() < 0.6


def test_weights_are_those_that_make_the_attentions_result(network: Network) -> None:
    data = network(days=8, sensors=6, history=1)
    prepared, model = _model(data, heads=1, head_dim=8)
    kept: list[Any] = []
    model.encoder[0].spatial.project.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    weights = attention_of_sensor(prepared, model, _batch(data, 1), 4)
    assert weights is not None
    assert weights.sum() == pytest.approx(1)
    q, k, v = kept[0]
    expected = attend_sensors(q, k, v)[0, 0, 4]
    assert torch.from_numpy(weights).float() @ v[0, 0, :, 0] == pytest.approx(expected.detach(), abs=1e-5)


def test_the_hook_is_taken_off_again(network: Network) -> None:
    data = network(days=8, sensors=5)
    prepared, model = _model(data)
    attention_of_sensor(prepared, model, _batch(data), 0)
    assert not model.encoder[0].spatial.project._forward_hooks


def test_in_groups_it_stays_within_the_own_group(network: Network) -> None:
    data = network(days=8, sensors=7)
    prepared, model = _model(data, group_size=3)
    order, groups = model.order.tolist(), model.config.groups
    for sensor in range(7):
        weights = attention_of_sensor(prepared, model, _batch(data), sensor)
        assert weights is not None
        first = 0
        for size in groups:
            members = order[first : first + size]
            first += size
            if sensor in members:
                break
        assert sorted(np.flatnonzero(np.isfinite(weights)).tolist()) == sorted(members)
        assert np.nansum(weights) == pytest.approx(1)


def test_a_model_without_spatial_attention_has_none(network: Network) -> None:
    data = network(days=8, sensors=4)
    prepared, model = _model(data, spatial=False)
    assert attention_of_sensor(prepared, model, _batch(data), 0) is None
    titles = [picture.title for picture in prepared.pictures(model, data)]
    assert "What one sensor attends to" not in titles


@pytest.mark.parametrize("place", ["map", "graph", "bars"])
def test_it_is_drawn_on_the_map_the_graph_or_as_bars(
    network: Network, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    data = network(days=3, sensors=8)
    if place == "map":
        data = replace(data, coordinates=np.random.default_rng(0).uniform(34, 35, (8, 2)))
    if place == "bars":
        monkeypatch.setattr(maps, "_LARGEST_LAYOUT", 3)
    weights = np.arange(8) / 28.0
    weights[:2] = np.nan
    picture = attention_picture(data, weights, 5, model="GMAN")
    assert _readable(picture)
    assert "What sensor s5 attends to in the first spatial attention of GMAN" in picture.caption
    assert {"map": "on the map", "graph": "layout of the graph", "bars": "the 8 that it attends to most"}[
        place
    ] in picture.caption
    assert "Hollow: sensors of other groups (2), seen through one common feature." in picture.caption


def test_even_attention_is_drawn_too(network: Network) -> None:
    assert _readable(attention_picture(network(days=3, sensors=4), np.full(4, 0.25), 0))


def test_tables_and_pictures_share_their_baselines(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    data = network(days=8, sensors=4)
    calls: list[SensorData] = []

    def count(data: SensorData) -> Any:
        calls.append(data)
        return fit_baselines(data, ["last value", "slot mean"])

    monkeypatch.setattr(task, "fit_baselines", count)
    prepared, model = _model(data)
    calibrated = prepared.calibrate(model, data)
    assert set(calibrated.baselines(data)) == {"last value", "slot mean"}
    made = calibrated.pictures(model, data)
    assert len(calls) == 1
    prepared.baselines(replace(data))
    assert len(calls) == 2, "other data, other baselines"
    assert [picture.title for picture in made] == [
        "Forecast against readings",
        "Error by horizon",
        "Where the error is",
        "Error by time of day",
        "What one sensor attends to",
    ]
    assert all(_readable(picture) for picture in made)


def test_baselines_are_forgotten_with_their_data(network: Network) -> None:
    before = len(task._BASELINES)
    data = network(days=8, sensors=4)
    ForecastTask.prepare(data, ForecastTaskSettings(embedding="laplacian"), seed=0).baselines(data)
    assert len(task._BASELINES) == before + 1
    del data
    assert len(task._BASELINES) == before
