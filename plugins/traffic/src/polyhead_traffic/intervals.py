"""Intervals around forecasts: split-conformal, one width for each step ahead, scaled by sensor and time of day."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from polyhead.errors import ConfigError
from polyhead.protocols import Batch, Predictor
from polyhead_traffic.metrics import ForecastMetric, Sums, figure_name, headline_steps

if TYPE_CHECKING:
    from torch import Tensor

    from polyhead_traffic.data import SensorData
    from polyhead_traffic.windows import WindowSource

__all__ = ["LEVEL", "LEVELS", "IntervalMetric", "Intervals"]

LEVEL = 0.8
"""The level whose coverage is measured and that `predict` writes unless told otherwise."""
LEVELS = tuple(round(0.5 + 0.01 * i, 2) for i in range(50))
"""Levels whose bounds are kept, 0.50 to 0.99."""
HOURS = 24
SHRUNK = 0.05
"""Share of the mean error that is added to every scale, so that a sensor which never erred keeps a width."""
RESIDUALS = 1 << 24
"""Most residuals that are looked at: 64 MB. A sample of the windows beyond that."""
BATCH = 32


@dataclass(frozen=True, eq=False)
class Intervals:
    r"""Intervals :math:`[\hat y + s_{n,t}\, l_h,\ \hat y + s_{n,t}\, u_h]` around the forecast of step h, sensor n.

    ``l`` and ``u`` are quantiles of the validation windows' residuals over their scale, all sensors together and each
    step ahead by itself. The scale is the geometric mean of a sensor's mean absolute error and that at the hour of the
    day, both of training windows: errors of a rush hour are spread wider than those of a night.

    If validation and test windows were exchangeable, a share of at least ``level`` of the readings would lie inside, on
    average over sensors and times. Traffic changes, so the share on the test part is measured and printed.

    Source: Vovk et al. 2005; Lei et al. 2018, "Distribution-free predictive inference for regression", sections 2.2 and
    5.2 (locally weighted).
    """

    scale: NDArray[np.float64]
    """(24, N), in the unit of the readings, positive."""
    lower: NDArray[np.float64]
    """(50, Q): by level, then step; not above ``upper``."""
    upper: NDArray[np.float64]
    """(50, Q)."""
    least: float | None
    """No bound is below; None where readings may be negative."""

    @classmethod
    def fit(cls, predictor: Predictor, data: SensorData) -> Intervals | None:
        """Return the intervals of a predictor; None if nothing was observed in the validation windows.

        Complexity: one pass over the validation windows and over as many training windows.
        """
        validation = data.source("validation")
        scale = _scale(predictor, data, len(validation))
        scores: list[list[NDArray[np.float64]]] = [[] for _ in range(data.horizon)]
        for batch, residual in _residuals(predictor, validation):
            relative = residual / scale[_hours(batch["te"].numpy()[:, data.history :, 1], data.step_s)]
            mask = batch["y_mask"].numpy()
            for step, parts in enumerate(scores):
                parts.append(relative[:, step][mask[:, step]])
        ordered = [np.sort(np.concatenate(parts)) for parts in scores]
        if min(map(len, ordered)) == 0:
            return None
        tail = (1 - np.array(LEVELS)) / 2
        lower = np.stack([_quantile(part, tail, down=True) for part in ordered], axis=1)
        upper = np.stack([_quantile(part, 1 - tail, down=False) for part in ordered], axis=1)
        rows = slice(0, data.train_rows)
        negative = bool((data.values[rows] < 0).any())
        # As they will be restored, so that figures of a run and of its saved model are the same.
        return cls.restore(cls(scale, lower, upper, None if negative else 0.0).state())

    def bounds(
        self, forecast: NDArray[np.floating], slots: NDArray[np.int64], step_s: int, level: float = LEVEL
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return lower and upper bounds, (B, Q, N) each, in the unit of the readings.

        Args:
            forecast: (B, Q, N).
            slots: slot of the day of the steps that are forecast, (B, Q).
            step_s: seconds between steps.
            level: share of readings that are to lie inside, 0.5 to 0.99.

        Raises:
            ConfigError: another level.
        """
        if not LEVELS[0] <= level <= LEVELS[-1]:
            raise ConfigError(f"level is {level}: intervals are kept for {LEVELS[0]} to {LEVELS[-1]}.")
        scale = self.scale[_hours(slots, step_s)]
        low, high = (
            forecast + scale * np.array([np.interp(level, LEVELS, column) for column in table.T])[:, None]
            for table in (self.lower, self.upper)
        )
        return (low, high) if self.least is None else (np.maximum(low, self.least), np.maximum(high, self.least))

    def state(self) -> Mapping[str, Any]:
        """Return JSON values, four digits each."""
        arrays = {name: _rounded(getattr(self, name)) for name in ("scale", "lower", "upper")}
        return {**arrays, "least": self.least}

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Intervals:
        """Make the intervals that ``state`` returned."""
        scale, lower, upper = (np.array(state[name], np.float64) for name in ("scale", "lower", "upper"))
        return cls(scale, lower, upper, state["least"])


class IntervalMetric:
    """Accumulate what `ForecastMetric` does, and the share of readings inside the intervals, in percent.

    ``coverage_80`` and ``width_80`` are means over the steps; those of a step are named by its minutes.
    """

    def __init__(self, horizon: int, step_s: int, intervals: Intervals) -> None:
        """Take the number of steps, their length in seconds, and the intervals."""
        import torch

        self._errors, self._intervals = ForecastMetric(horizon, step_s), intervals
        self._inside = torch.zeros(horizon, dtype=torch.float64)
        self._width = torch.zeros(horizon, dtype=torch.float64)

    def update(self, prediction: Tensor, batch: Batch) -> None:
        """Add a batch: ``prediction`` (B, Q, N) against the batch's ``y`` and ``y_mask``."""
        import torch

        self._errors.update(prediction, batch)
        horizon, step_s = self._errors.horizon, self._errors.step_s
        slots = batch["te"][:, -horizon:, 1].cpu().numpy()
        bounds = self._intervals.bounds(prediction.double().numpy(), slots, step_s)
        low, high = (torch.from_numpy(bound) for bound in bounds)
        y, mask = batch["y"].double(), batch["y_mask"]
        self._inside += ((y >= low) & (y <= high) & mask).sum(dim=(0, 2)).cpu()
        self._width += (high - low).where(mask, 0.0).sum(dim=(0, 2)).cpu()

    def state(self) -> tuple[Sums, Tensor, Tensor]:
        """Return the sums."""
        return self._errors.state(), self._inside, self._width

    def merge(self, states: Sequence[tuple[Sums, Tensor, Tensor]]) -> None:
        """Replace the own sums by those of all ``states``."""
        self._errors.merge([errors for errors, _, _ in states])
        self._inside = sum((inside for _, inside, _ in states[1:]), start=states[0][1])
        self._width = sum((width for _, _, width in states[1:]), start=states[0][2])

    def compute(self) -> Mapping[str, float]:
        """Return the figures; see `ForecastMetric.compute`."""
        figures = dict(self._errors.compute())
        observed = self._errors.state().observed
        percent = f"{100 * LEVEL:.0f}"
        for name, values in (
            (f"coverage_{percent}", 100 * self._inside / observed),
            (f"width_{percent}", self._width / observed),
        ):
            figures[name] = float(values.nanmean())
            for step in dict.fromkeys([*headline_steps(self._errors.horizon), *range(1, self._errors.horizon + 1)]):
                figures[figure_name(name, step, self._errors.step_s)] = float(values[step - 1])
        return figures


def _scale(predictor: Predictor, data: SensorData, windows: int) -> NDArray[np.float64]:
    """Return (24, N): how far forecasts are off at each hour and sensor, from at most ``windows`` training windows."""
    nodes = len(data.ids)
    total, count = np.zeros((HOURS, nodes)), np.zeros((HOURS, nodes))
    for batch, residual in _residuals(predictor, data.source("train"), windows):
        hours = _hours(batch["te"].numpy()[:, data.history :, 1], data.step_s)
        mask = batch["y_mask"].numpy()
        np.add.at(total, hours, np.where(mask, np.abs(residual), 0))
        np.add.at(count, hours, mask)
    seen = max(count.sum(), 1)
    overall = total.sum() / seen or 1.0
    sensor = np.where(count.any(axis=0), total.sum(axis=0) / np.maximum(count.sum(axis=0), 1), overall)
    hour = np.where(count > 0, total / np.maximum(count, 1), sensor)
    return np.sqrt(sensor * hour) + SHRUNK * overall


def _residuals(
    predictor: Predictor, source: WindowSource, windows: int | None = None
) -> Iterator[tuple[Batch, NDArray[np.float64]]]:
    """Yield batches of windows, drawn if not all of them are to be seen, with their residuals, (B, Q, N) float64."""
    data = source.data
    most = max(RESIDUALS // (data.horizon * len(data.ids)), BATCH)
    size = min(most, windows or len(source), len(source))
    # Drawn: evenly spaced ones could meet the same hours of every day.
    chosen = np.sort(np.random.default_rng(0).permutation(len(source))[:size]).tolist()
    for first in range(0, len(chosen), BATCH):
        batch = source.fetch(chosen[first : first + BATCH])
        forecast = predictor(batch).double().cpu().numpy()
        yield batch, batch["y"].numpy() - forecast


def _hours(slots: NDArray[np.int64], step_s: int) -> NDArray[np.int64]:
    return slots * step_s // 3600


def _quantile(ordered: NDArray[np.float64], share: NDArray[np.float64], *, down: bool) -> NDArray[np.float64]:
    """Return the order statistics that hold at least these shares of n + 1 draws; the extreme ones where n is small."""
    rank = (len(ordered) + 1) * share
    place = np.floor(rank) if down else np.ceil(rank)
    return ordered[np.clip(place.astype(np.int64) - 1, 0, len(ordered) - 1)]


def _rounded(array: NDArray[np.float64]) -> list[list[float]]:
    return [[float(f"{value:.4g}") for value in row] for row in array]
