"""The task `forecast`: the next steps of a table of readings."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from polyhead.artifacts import atomic_file
from polyhead.errors import DataError
from polyhead.models import load
from polyhead.protocols import Batch, Direction, Monitor, Picture, Predictor, Ratio
from polyhead_agents.table_data import TableData, calendar
from polyhead_agents.task_state import fields_of, state_of, with_data

__all__ = ["ForecastMetric", "ForecastTask"]


class ForecastMetric:
    """Mean squared and absolute error over windows, steps and channels, of standardised readings: ``mse``, ``mae``.

    Standardised by mean and deviation of the training rows, as the literature does.
    """

    def __init__(self, std: Sequence[float]) -> None:
        """Begin with nothing."""
        self.std = torch.tensor(std, dtype=torch.float64)
        self.sums = np.zeros(3)

    def update(self, prediction: Tensor, batch: Batch) -> None:
        """Add a batch: forecasts (B, horizon, C)."""
        error = (prediction.cpu().double() - batch["y"].cpu().double()) / self.std
        self.sums += (float(error.square().sum()), float(error.abs().sum()), error.numel())

    def state(self) -> Any:
        """Return the sums."""
        return self.sums

    def merge(self, states: Sequence[Any]) -> None:
        """Replace the own state by the union of all."""
        self.sums = np.sum(states, axis=0)

    def compute(self) -> Mapping[str, float]:
        """Return the figures."""
        squared, absolute, count = self.sums.tolist()
        return {"mse": squared / count, "mae": absolute / count}


@dataclass(frozen=True)
class ForecastTask:
    """The squared error of standardised readings."""

    channels: tuple[str, ...]
    history: int
    horizon: int
    std: tuple[float, ...]
    monitor: ClassVar[Monitor] = Monitor("mse", "min")
    directions: ClassVar[Mapping[str, Direction]] = {}
    headline: ClassVar[Sequence[str]] = ("mse", "mae")

    @classmethod
    def prepare(cls, data: TableData, settings: Any, *, seed: int) -> Self:  # noqa: ARG003  # nothing is random
        """Measure the training rows."""
        std = data.values[: data.borders[0]].astype(np.float64).std(axis=0)
        return cls(data.channels, data.history, data.horizon, tuple(np.where(std > 0, std, 1.0).tolist()))

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Self:
        """Make the task of a saved model.

        Raises:
            CheckpointError: the state is that of another version.
        """
        return cls(**fields_of(cls, state, "forecast"))

    def state(self) -> Mapping[str, Any]:
        """Return what ``restore`` needs, as JSON values."""
        return state_of(self)

    def build_model(self, name: str, config: Mapping[str, Any]) -> nn.Module:
        """Build a fresh model for these channels and windows.

        Raises:
            ConfigError: ``config`` sets what the data determine to something else.
        """
        determined = {"channels": len(self.channels), "history": self.history, "horizon": self.horizon}
        return load(name, **with_data(determined, config))

    def check(self, data: TableData) -> None:
        """Refuse other channels or windows.

        Raises:
            DataError: names what differs.
        """
        for what, have, want in (
            ("channels", data.channels, self.channels),
            ("history", data.history, self.history),
            ("horizon", data.horizon, self.horizon),
        ):
            if have != want:
                raise DataError(f"{data.name}: {what} {have}, but the model was fitted with {want}. Fit again.")

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Ratio]:
        """Return the mean squared error."""
        forecast = model(batch["x"], batch["marks"])
        std = torch.tensor(self.std, device=forecast.device, dtype=forecast.dtype)
        error = ((forecast - batch["y"]) / std).square()
        return {"mse": Ratio(error.sum(), torch.tensor(error.numel(), device=error.device))}

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return forecasts (B, horizon, C)."""
        forecast: Tensor = model(batch["x"], batch["marks"])
        return forecast

    def metric(self) -> ForecastMetric:
        """Return a fresh accumulator."""
        return ForecastMetric(self.std)

    def baselines(self, data: TableData) -> Mapping[str, Predictor]:
        """Return the last reading, the mean of the history, and where it fits the day before."""
        horizon, day = self.horizon, data.day
        found: dict[str, Predictor] = {
            "last value": lambda batch: batch["x"][:, -1:].expand(-1, horizon, -1),
            "mean of the history": lambda batch: batch["x"].mean(1, keepdim=True).expand(-1, horizon, -1),
        }
        if 1 < day <= self.history:
            at = self.history - day + torch.arange(horizon) % day
            found["day before"] = lambda batch: batch["x"][:, at]
        return found

    def pictures(self, model: nn.Module, data: TableData) -> Sequence[Picture]:
        """Return a forecast of the first test window."""
        from polyhead_agents.drawing import COLOURS, draw

        batch = data.source("test").fetch([0], seed=0, epoch=0)
        forecast = self._run(model, batch["x"], batch["marks"])[0, :, 0]
        history, truth = batch["x"][0, :, 0].numpy(), batch["y"][0, :, 0].numpy()

        def paint(axes: Any) -> None:
            ahead = np.arange(1, self.horizon + 1)
            axes.plot(np.arange(1 - self.history, 1), history, color="0.5", label="history")
            axes.plot(ahead, truth, color=COLOURS[1], label="true")
            axes.plot(ahead, forecast, color=COLOURS[0], label="forecast")
            axes.set(xlabel="steps ahead", ylabel=data.channels[0])
            axes.legend(frameon=False)

        return [Picture("A forecast", f"The first test window, {data.channels[0]}. {data.provenance}", draw(paint))]

    def write_predictions(self, model: nn.Module, data: TableData, out: Path, settings: Any) -> Sequence[Path]:  # noqa: ARG002
        """Write ``forecast.csv``: the steps behind the last row, as the table is written: date, then the channels."""
        rows = len(data.values)
        times = [data.start + row * data.step for row in range(rows - self.history, rows + self.horizon)]
        x = torch.from_numpy(data.values[-self.history :])[None]
        forecast = self._run(model, x, torch.from_numpy(calendar(times))[None])[0]
        file = out / "forecast.csv"
        with atomic_file(file) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(["date", *data.channels])
            for time, values in zip(times[self.history :], forecast, strict=True):
                writer.writerow([time.isoformat(sep=" "), *(f"{value:.6g}" for value in values)])
        return [file]

    def _run(self, model: nn.Module, x: Tensor, marks: Tensor) -> Any:
        device = next(model.parameters()).device
        with torch.no_grad():
            return self.predict(model, {"x": x.to(device), "marks": marks.to(device)}).numpy(force=True)
