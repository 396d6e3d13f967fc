"""How much forecasts suffer where readings are lost."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from polyhead.models import from_pretrained, read_extra
from polyhead.protocols import Batch, Predictor
from polyhead_traffic.baselines import fit_baselines
from polyhead_traffic.data import SensorData
from polyhead_traffic.metrics import ForecastMetric
from polyhead_traffic.task import ForecastTask

BATCH = 32
RIDGES = ("ridge", "ridge + weekday mean")


def lose(batch: Batch, share: float) -> Batch:
    """Return a batch without a share of its past readings: 0 and not observed. The same ones in every call."""
    generator = torch.Generator().manual_seed(int(batch["start"][0]))
    kept = torch.rand(batch["x"].shape, generator=generator) >= share
    return {**batch, "x": batch["x"].where(kept, 0.0), "x_mask": batch["x_mask"] & kept}


def fill(batch: Batch, data: SensorData) -> Batch:
    """Return a batch whose missing readings repeat the sensor's last one."""
    x, seen = batch["x"], batch["x_mask"]
    steps = torch.arange(1, x.shape[1] + 1)[:, None] * seen
    last = steps.cummax(1).values
    values = x.gather(1, (last - 1).clamp(min=0))
    return {**batch, "x": values.where(last > 0, torch.from_numpy(data.sensor_means))}


def suffer(predictor: Predictor, data: SensorData, share: float, name: str) -> dict[str, float]:
    """Return the test metric ``name`` with all readings and without a share of them, and the difference."""
    source = data.source("test")
    intact, lossy = (ForecastMetric(data.horizon, data.step_s) for _ in range(2))
    with torch.inference_mode():
        for first in range(0, len(source), BATCH):
            batch = source.fetch(range(len(source))[first : first + BATCH])
            intact.update(predictor(batch), batch)
            lossy.update(predictor(lose(batch, share)), batch)
    before, after = intact.compute()[name], lossy.compute()[name]
    return {"all": before, "lossy": after, "increase": after - before}


def compare(runs: Mapping[str, Path], data: SensorData, share: float, name: str) -> dict[str, dict[str, float]]:
    """Return the figures of `suffer` for fitted runs by name and for the ridges, as given and with gaps filled."""
    figures = {}
    for label, folder in runs.items():
        task = ForecastTask.restore(read_extra(folder / "model", "task.json")["state"])
        model = from_pretrained(folder / "model").eval()
        figures[label] = suffer(partial(task.predict, model), data, share, name)
    for label, ridge in fit_baselines(data, RIDGES).items():
        figures[label] = suffer(ridge, data, share, name)
        figures[f"{label}, gaps filled"] = suffer(partial(_filled, ridge, data), data, share, name)
    return figures


def _filled(predictor: Predictor, data: SensorData, batch: Batch) -> Tensor:
    forecast: Tensor = predictor(fill(batch, data))
    return forecast
