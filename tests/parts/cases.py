"""What system tests of the recipe train, by name; the traffic plugin is imported only where it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from tests.parts.training import Numbers, Regression, make_net
from torch import nn

from polyhead.protocols import Batch, Source


class Case(NamedTuple):
    task: Any
    model: nn.Module
    train: Source
    validation: Source


def in_float64(case: Case) -> Case:
    """The same in float64, where rounding stays too small to be grown by fifty steps of Adam."""
    return case._replace(task=_Float64(case.task), model=case.model.double())


class _Float64:
    def __init__(self, task: Any) -> None:
        self._task = task

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def loss(self, model: nn.Module, batch: Batch) -> Any:
        return self._task.loss(model, _float64(batch))

    def predict(self, model: nn.Module, batch: Batch) -> Any:
        return self._task.predict(model, _float64(batch))


def _float64(batch: Batch) -> Batch:
    floating = {name for name, value in batch.items() if torch.is_tensor(value) and value.is_floating_point()}
    return {name: value.double() if name in floating else value for name, value in batch.items()}


class First:
    """The first samples of a source."""

    def __init__(self, source: Source, length: int) -> None:
        self.source, self.length = source, length

    def __len__(self) -> int:
        return self.length

    def fetch(self, indices: Sequence[int], *, seed: int, epoch: int) -> Batch:
        return self.source.fetch(indices, seed=seed, epoch=epoch)


def plain(*, dropout: float = 0.0) -> Case:
    return Case(Regression(terms=2), make_net(dropout=dropout), Numbers(21), Numbers(9))


def batch_norm(*, dropout: float = 0.0) -> Case:
    return Case(Regression(), make_net(dropout=dropout, batch_norm=True), Numbers(21), Numbers(9))


def gman(*, dropout: float = 0.0) -> Case:
    """GMAN on four made-up sensors with missing readings."""
    from polyhead_traffic.data import SensorData
    from polyhead_traffic.settings import ForecastTaskSettings
    from polyhead_traffic.task import ForecastTask

    sensors, rows = 4, 100
    rng = np.random.default_rng(0)
    hour = np.arange(rows)[:, None] % 24
    readings = 50 + 10 * np.cos(2 * np.pi * hour / 24) + np.arange(sensors) + rng.normal(0, 1, (rows, sensors))
    readings[rng.random((rows, sensors)) < 0.1] = np.nan
    data = SensorData.from_readings(
        readings,
        np.datetime64("2024-01-01T00:00:00") + np.arange(rows) * np.timedelta64(1, "h"),
        step_s=3600,
        ids=tuple("abcd"),
        name="ring",
        origin="A ring of made-up sensors.",
        unit="km/h",
        embedding=rng.normal(0, 1, (sensors, 8)).astype(np.float32),
        history=4,
        horizon=3,
    )
    task = ForecastTask.prepare(data, ForecastTaskSettings(), seed=0)
    torch.manual_seed(0)
    model = task.build_model("gman", {"depth": 1, "heads": 2, "head_dim": 4, "dropout": dropout})
    return Case(task, model, First(data.source("train"), 21), data.source("validation"))


CASES: dict[str, Callable[..., Case]] = {"plain": plain, "batch norm": batch_norm, "gman": gman}
