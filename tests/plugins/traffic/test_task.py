"""The task: normaliser, model, loss, checks, forecasts in a file, and its state."""

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
from torch import Tensor, nn

from polyhead.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from polyhead.nn import ReducedBatchNorm
from polyhead.protocols import Task
from polyhead_apps.sampling import Progress
from polyhead_traffic.data import SensorData
from polyhead_traffic.settings import ForecastTaskSettings, PredictSettings
from polyhead_traffic.task import ForecastTask, normaliser

Make = Callable[..., SensorData]
TINY = {"depth": 1, "heads": 2, "head_dim": 2}


class Repeat(nn.Module):
    """Repeats the last reading and counts what it is given."""

    def __init__(self, horizon: int, value: float = 0.0) -> None:
        super().__init__()
        self.horizon = horizon
        self.shift = nn.Parameter(torch.tensor(value))

    def forward(self, x: Tensor, te: Tensor) -> Tensor:
        return x[:, -1:].expand(-1, self.horizon, -1) + self.shift


@pytest.fixture
def ring(network: Make) -> SensorData:
    """A ring of sensors that came with an embedding, so that none is computed."""
    data = network(days=8)
    return replace(data, embedding=np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32))


def _prepare(data: SensorData, **values: Any) -> ForecastTask:
    return ForecastTask.prepare(data, ForecastTaskSettings(**values), seed=0)


def test_it_is_a_task(ring: SensorData) -> None:
    task = _prepare(ring)
    assert isinstance(task, Task)
    assert task.monitor == ("mae", "min")
    assert task.monitor.name in task.metric().compute()
    assert set(task.headline) <= set(task.metric().compute())


@pytest.mark.parametrize("protocol", ["gman", "dcrnn"])
def test_the_normaliser_counts_overlapping_training_windows_with_zeros(network: Make, protocol: str) -> None:
    data = network(days=8, missing=0.3, protocol=protocol)
    source = data.source("train")
    x = source.fetch(range(len(source)))["x"].double()
    assert normaliser(data) == pytest.approx((x.mean().item(), x.std(correction=0).item()), rel=1e-9)


def test_other_protocols_have_their_own_normaliser(network: Make) -> None:
    data = network(days=10, protocol="pems-6-2-2")
    rows = data.values[: int(0.6 * len(data.values))].astype(np.float64)
    assert normaliser(data) == pytest.approx((rows.mean(), rows.std()), rel=1e-6)
    data = network(days=10, protocol="tgcn")
    assert normaliser(data) == (0.0, data.values[: 240 * 7 // 10].max())


def test_constant_readings_are_not_divided_by_zero(network: Make) -> None:
    data = network(days=8)
    assert normaliser(replace(data, values=np.full_like(data.values, 7))) == (7.0, 1.0)


@pytest.mark.parametrize(
    ("days", "setting", "expected"), [(20, "auto", True), (8, "auto", False), (8, "on", True), (20, "off", False)]
)
def test_the_day_of_the_week_needs_a_week_of_training(network: Make, days: int, setting: str, expected: bool) -> None:
    data = replace(network(days=days), embedding=np.ones((4, 2), np.float32))
    task = _prepare(data, use_day_of_week=setting)
    assert task.use_day_of_week == expected
    model: Any = task.build_model("gman", TINY)
    assert model.config.use_day_of_week == expected
    assert task.build_model("gman", {**TINY, "use_day_of_week": False}).config.use_day_of_week is False  # type: ignore[union-attr]


def test_the_model_gets_what_the_data_determine(ring: SensorData) -> None:
    task = _prepare(ring)
    model: Any = task.build_model("gman", TINY)
    config = model.config
    assert (config.nodes, config.history, config.horizon, config.slots_per_day, config.embedding_dim) == (
        4,
        4,
        3,
        24,
        6,
    )
    assert model.mean.item() == pytest.approx(task.mean)
    assert model.std.item() == pytest.approx(task.std)
    assert ring.embedding is not None
    assert torch.equal(model.spatial_embedding, torch.from_numpy(ring.embedding))
    batch = ring.source("test").fetch([0, 1])
    assert task.predict(model.eval(), batch).shape == (2, 3, 4)


def test_settings_that_contradict_the_data_are_refused(ring: SensorData) -> None:
    with pytest.raises(ConfigError, match=r"model\.nodes is 7, but the data have 4\. Leave it out\."):
        _prepare(ring).build_model("gman", {"nodes": 7})


def test_a_model_that_takes_the_mask_gets_it(ring: SensorData) -> None:
    task = _prepare(ring)
    model = task.build_model("gman", {**TINY, "input_mask": True}).eval()
    batch = dict(ring.source("test").fetch([0]))
    seen = task.predict(model, batch)
    batch["x_mask"] = torch.zeros_like(batch["x_mask"])
    assert not torch.allclose(seen, task.predict(model, batch))


def test_the_loss_is_the_masked_error_in_the_unit_of_the_readings(ring: SensorData) -> None:
    task = _prepare(ring)
    batch = ring.source("train").fetch([0, 5])
    total, count = task.loss(Repeat(3), batch)["mae"]
    expected = (batch["x"][:, -1:] - batch["y"]).abs()
    assert (total / count).item() == pytest.approx(expected.mean().item(), rel=1e-6)
    assert count.item() == expected.numel()


def test_a_share_of_no_windows_has_no_loss(ring: SensorData) -> None:
    total, count = _prepare(ring).loss(Repeat(3), ring.source("train").fetch([]))["mae"]
    assert (total.item(), count.item()) == (0, 0)


def test_the_momentum_of_batch_norms_is_halved_every_few_epochs(ring: SensorData) -> None:
    task = _prepare(ring, norm_epochs=2)
    model = task.build_model("gman", TINY)
    norms = [module for module in model.modules() if isinstance(module, ReducedBatchNorm)]
    assert norms
    for epoch, momentum in ((0, 0.5), (1, 0.5), (2, 0.25), (5, 0.125), (40, 0.01)):
        task.before_step(model, Progress(step=epoch * 10, epoch=epoch, steps_total=500, steps_per_epoch=10))
        assert {norm.momentum for norm in norms} == {momentum}


def test_the_state_makes_the_task_again(ring: SensorData) -> None:
    task = _prepare(ring)
    restored = ForecastTask.restore(json.loads(json.dumps(task.state())))
    assert restored == replace(task, embedding=None, medians=None)
    restored.check(ring)


def test_a_state_of_another_version_is_refused(ring: SensorData) -> None:
    state = dict(_prepare(ring).state())
    state["speed"] = state.pop("std")
    with pytest.raises(
        CheckpointError, match=r"task forecast does not fit this version: speed, std\. Fit the model again"
    ):
        ForecastTask.restore(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"ids": ("s0", "s1", "s2", "new")},
            r'ring has 1 that the model does not know \("new"\) and not 1 that it does \("s3"\): a model',
        ),
        (
            {"ids": ("s0", "s2", "s1", "s3")},
            r'another order: column 2 is "s2" and was "s1"\. Put the columns in the order',
        ),
        (
            {"step_s": 1800},
            r"ring has a step of 1800, the model was fitted with 3600\. Resample the readings to 3600 s",
        ),
        ({"history": 5}, r"ring has a history of 5, the model was fitted with 4\. Use --history 4, or fit again"),
        ({"horizon": 2}, r"ring has a horizon of 2, the model was fitted with 3\. Use --horizon 3, or fit again"),
        ({"unit": "mph"}, r"ring is in mph, the model was fitted in km/h\. Convert the readings\."),
    ],
)
def test_other_data_are_refused(ring: SensorData, change: dict[str, Any], message: str) -> None:
    task = _prepare(ring)
    task.check(ring)
    with pytest.raises(DataError, match=message):
        task.check(replace(ring, **change))


def test_a_sensor_added_after_training_is_named(ring: SensorData, network: Make) -> None:
    with pytest.raises(DataError, match=r'ring has 1 that the model does not know \("s4"\): .* Fit on these data\.'):
        _prepare(ring).check(network(days=8, sensors=5))


def test_an_embedding_file_that_is_not_there_is_refused(network: Make) -> None:
    with pytest.raises(
        DataError, match=r"ring came without an embedding file\. Put SE\.txt beside the readings, or use"
    ):
        _prepare(network(days=8), embedding="file")


def test_too_few_rows_are_refused_before_anything_is_fitted(network: Make) -> None:
    with pytest.raises(DataError, match="too few for a validation window of 4 past and 3 future steps"):
        _prepare(network(days=1))


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_steps_after_the_last_row_are_written(ring: SensorData, tmp_path: Path) -> None:
    (file,) = _prepare(ring).write_predictions(Repeat(3, 0.5), ring, tmp_path, PredictSettings())
    assert file.name == "forecast.csv"
    lines = _read(file)
    assert len(lines) == 3 * 4
    assert list(lines[0]) == ["timestamp", "sensor_id", "horizon_min", "forecast"]
    assert lines[0]["timestamp"] == "2024-01-09 00:00:00"
    assert [line["sensor_id"] for line in lines[:4]] == ["s0", "s1", "s2", "s3"]
    assert [line["horizon_min"] for line in lines[::4]] == ["60", "120", "180"]
    assert [float(line["forecast"]) for line in lines[:4]] == pytest.approx(ring.values[-1] + 0.5, rel=1e-5)


def test_a_forecast_needs_no_more_rows_than_its_window(ring: SensorData, tmp_path: Path) -> None:
    task = _prepare(ring)
    rows = slice(-4, None)
    short = replace(ring, values=ring.values[rows], mask=ring.mask[rows], timestamps=ring.timestamps[rows])
    whole, part = [tmp_path / name for name in ("whole", "part")]
    for folder, data in ((whole, ring), (part, short)):
        folder.mkdir()
        task.check(data)
        task.write_predictions(Repeat(3), data, folder, PredictSettings())
    assert (whole / "forecast.csv").read_bytes() == (part / "forecast.csv").read_bytes()


def test_a_split_is_written_with_its_truth(ring: SensorData, tmp_path: Path) -> None:
    mask = ring.mask.copy()
    first = int(ring.starts["test"][0])
    mask[first + 4, 1] = False
    data = replace(ring, mask=mask, values=np.where(mask, ring.values, 0))
    (file,) = _prepare(ring).write_predictions(Repeat(3), data, tmp_path, PredictSettings(split="test"))
    lines = _read(file)
    assert len(lines) == len(data.starts["test"]) * 3 * 4
    assert lines[0]["timestamp"] == str(data.timestamps[first + 4]).replace("T", " ")
    assert float(lines[0]["observed"]) == pytest.approx(float(data.values[first + 4, 0]), rel=1e-5)
    assert lines[1]["observed"] == ""


def test_forecasts_that_are_not_finite_are_named_and_not_written(ring: SensorData, tmp_path: Path) -> None:
    with pytest.raises(
        NonFiniteError, match=r'forecast of sensor "s0", step 1, from the window at 2024-01-08T20:00:00 is nan'
    ):
        _prepare(ring).write_predictions(Repeat(3, float("nan")), ring, tmp_path, PredictSettings())
    assert list(tmp_path.iterdir()) == []


def test_training_lowers_the_loss(ring: SensorData) -> None:
    torch.manual_seed(0)
    task = _prepare(ring)
    model = task.build_model("gman", {**TINY, "dropout": 0.0})
    batch = ring.source("train").fetch(range(32))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(25):
        total, count = task.loss(model, batch)["mae"]
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
        losses.append((total / count).item())
    assert losses[-1] < 0.6 * losses[0]
