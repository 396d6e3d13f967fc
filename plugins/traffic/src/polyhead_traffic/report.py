"""Pictures of a forecast: series of a few sensors, error by horizon, on the map and by time of day.

All of them are drawn for a phone's width, tell colours apart for colour-blind eyes, and carry the data's provenance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from polyhead.errors import ShapeError
from polyhead.protocols import Batch, Picture, Predictor
from polyhead_traffic.data import SensorData
from polyhead_traffic.drawing import MODEL, TRUTH, canvas, captioned, legend, short, unit
from polyhead_traffic.maps import attention_of_sensor, attention_picture, error_of_sensors

if TYPE_CHECKING:
    from torch import nn

    from polyhead_traffic.task import ForecastTask

__all__ = [
    "Tally",
    "error_by_horizon",
    "error_by_time_of_day",
    "forecast_series",
    "pictures",
]

# Okabe and Ito's palette; lines differ by dashes and markers too.
_STYLES = (
    ("#D55E00", "--", "s"),
    ("#009E73", "-.", "^"),
    ("#CC79A7", ":", "D"),
    ("#E69F00", (0, (5, 1)), "v"),
    ("#56B4E9", (0, (3, 1, 1, 1)), "P"),
)
_SHOWN = np.timedelta64(3, "D")
_BASELINES = len(_STYLES)
_BATCH = 32


def pictures(task: ForecastTask, model: nn.Module, data: SensorData) -> list[Picture]:
    """Return all pictures of a model's forecasts on the test split, beside the baselines.

    Args:
        task: gives forecasts and baselines.
        model: in any mode; it is evaluated.
        data: the sensors.

    Complexity: one pass over the test windows; memory O(days shown · N), whatever the length of the split.
    """
    import torch

    source = data.source("test")
    device = next(model.parameters()).device

    def forecast(batch: Batch) -> Any:
        return task.predict(model, {name: tensor.to(device) for name, tensor in batch.items()})

    name = type(model).__name__
    methods: dict[str, Predictor] = {name: forecast, **task.baselines(data)}
    step = int(np.clip(round(3600 / data.step_s), 1, data.horizon))
    tallies = {method: Tally(data, step) for method in methods}
    intervals = getattr(task, "intervals", None)
    series: list[NDArray[np.float32]] = []
    bands: list[NDArray[np.float64]] = []
    shown = int((data.timestamps[source.starts] < data.timestamps[source.starts[0]] + _SHOWN).sum())
    training = model.training
    model.eval()
    try:
        for first in range(0, len(source), _BATCH):
            batch = source.fetch(range(first, min(first + _BATCH, len(source))), seed=0, epoch=0)
            with torch.inference_mode():
                made = {method: predict(batch).cpu().numpy() for method, predict in methods.items()}
            start, truth, mask = (batch[key].numpy() for key in ("start", "y", "y_mask"))
            for method, values in made.items():
                tallies[method].add(start, truth, mask, values)
            if first < shown:
                series.append(made[name][:, step - 1])
                if intervals is not None:
                    slots = batch["te"].numpy()[:, data.history :, 1]
                    bounds = intervals.bounds(made[name], slots, data.step_s)
                    bands.append(np.stack([bound[:, step - 1] for bound in bounds]))
        hardest = _hardest(tallies[name].by_sensor)
        sample = source.fetch(np.unique(np.linspace(0, len(source) - 1, _BATCH).astype(int)).tolist())
        attention = attention_of_sensor(task, model, sample, hardest)
    finally:
        model.train(training)
    ranked = sorted((method for method in methods if method != name), key=lambda method: tallies[method].mae)
    drawn = {method: tallies[method] for method in (name, *ranked[:_BASELINES])}
    left_out = len(ranked) - len(drawn) + 1
    note = f" {left_out} baselines with larger errors are left out." if left_out > 0 else ""
    return [
        forecast_series(
            data,
            source.starts[:shown],
            np.concatenate(series)[:shown],
            tallies[name].by_sensor_at_step,
            step=step,
            model=name,
            band=np.concatenate(bands, axis=1)[:, :shown] if bands else None,
        ),
        error_by_horizon(data, {method: tally.by_step for method, tally in drawn.items()}, note=note),
        error_of_sensors(data, tallies[name].by_sensor, model=name),
        error_by_time_of_day(data, {method: tally.by_hour for method, tally in drawn.items()}, note=note),
        *(
            []
            if attention is None
            else [
                attention_picture(
                    data, attention, hardest, model=name, note=" It is the sensor with the largest error."
                )
            ]
        ),
    ]


def _hardest(mae: NDArray[np.floating]) -> int:
    """Return the sensor with the largest error; the first one if none is known."""
    return int(np.argmax(np.where(np.isfinite(mae), mae, -1)))


class Tally:
    """Absolute errors of one method, summed up window by window; what was not observed is not counted."""

    def __init__(self, data: SensorData, step: int) -> None:
        """Start with nothing; ``step`` (1 to Q) is the horizon of ``by_sensor_at_step``."""
        self._data, self._step = data, step
        self._parts = {
            name: (np.zeros(size), np.zeros(size))
            for name, size in (
                ("step", data.horizon),
                ("hour", 24),
                ("sensor", len(data.ids)),
                ("at_step", len(data.ids)),
            )
        }

    def add(
        self,
        starts: NDArray[np.int64],
        truth: NDArray[np.float32],
        mask: NDArray[np.bool_],
        forecast: NDArray[np.float32],
    ) -> None:
        """Add windows: first rows (B,), readings, True = observed, and forecasts, each (B, Q, N).

        Raises:
            ShapeError: the arrays do not fit each other.
        """
        if not truth.shape == mask.shape == forecast.shape == (len(starts), self._data.horizon, len(self._data.ids)):
            raise ShapeError(
                f"truth {truth.shape}, mask {mask.shape} and forecast {forecast.shape} must all be (windows, steps, "
                f"sensors) = ({len(starts)}, {self._data.horizon}, {len(self._data.ids)})."
            )
        rows = starts[:, None] + self._data.history + np.arange(self._data.horizon)
        hour = (self._data.calendar[rows, 1] * self._data.step_s // 3600).ravel()
        for place, part in enumerate((np.abs(forecast - truth) * mask, mask)):
            by_window_and_step = part.sum(axis=2, dtype=np.float64)
            self._parts["step"][place][:] += by_window_and_step.sum(axis=0)
            self._parts["hour"][place][:] += np.bincount(hour, by_window_and_step.ravel(), minlength=24)
            self._parts["sensor"][place][:] += part.sum(axis=(0, 1), dtype=np.float64)
            self._parts["at_step"][place][:] += part[:, self._step - 1].sum(axis=0, dtype=np.float64)

    def _mean(self, name: str) -> NDArray[np.float64]:
        total, count = self._parts[name]
        return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)

    @property
    def mae(self) -> float:
        """Over everything; infinite where nothing was observed."""
        total, count = (part.sum() for part in self._parts["step"])
        return float(total / count) if count else float("inf")

    @property
    def by_step(self) -> NDArray[np.float64]:
        """(Q,), NaN where nothing was observed."""
        return self._mean("step")

    @property
    def by_hour(self) -> NDArray[np.float64]:
        """(24,): by the hour of the day that is forecast."""
        return self._mean("hour")

    @property
    def by_sensor(self) -> NDArray[np.float64]:
        """(N,)."""
        return self._mean("sensor")

    @property
    def by_sensor_at_step(self) -> NDArray[np.float64]:
        """(N,): at one horizon only."""
        return self._mean("at_step")


def forecast_series(
    data: SensorData,
    starts: NDArray[np.int64],
    forecast: NDArray[np.float32],
    mae: NDArray[np.floating],
    *,
    step: int,
    model: str = "forecast",
    band: NDArray[np.floating] | None = None,
) -> Picture:
    """Draw readings and the forecast made ``step`` steps before, for the best, median and worst sensor.

    Args:
        data: the sensors.
        starts: first rows of the S windows that are drawn, shape (S,), rising.
        forecast: of their step ``step``, shape (S, N), in the data's unit.
        mae: of that step over all windows, shape (N,); picks the sensors.
        step: horizon, 1 to Q.
        model: what made the forecast.
        band: lower and upper bounds of its intervals, shape (2, S, N).
    """
    known = np.flatnonzero(np.isfinite(mae))
    order = known[np.argsort(mae[known], kind="stable")]
    ranks = ("best", "median", "worst")
    picks = dict(zip(ranks, order[[0, len(order) // 2, -1]], strict=True)) if len(order) else {}
    rows = starts + data.history + step - 1
    # A jump in time breaks the line.
    jumps = np.flatnonzero(np.diff(rows) != 1) + 1
    when = np.insert(data.timestamps[rows], jumps, np.datetime64("NaT"))
    hours = _minutes(step * data.step_s)
    with canvas(data, 1.2 + 1.75 * max(len(picks), 1)) as (figure, finish):
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        panels = figure.subplots(max(len(picks), 1), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (rank, sensor) in zip(panels, picks.items(), strict=False):
            readings = np.insert(np.where(data.mask[rows, sensor], data.values[rows, sensor], np.nan), jumps, np.nan)
            axes.plot(when, readings, color=TRUTH, lw=1.0, label="reading")
            values = np.insert(forecast[:, sensor].astype(np.float64), jumps, np.nan)
            axes.plot(when, values, color=MODEL, lw=1.6, alpha=0.9, label=f"{model}, {hours} before")
            if band is not None:
                low, high = (np.insert(bound[:, sensor], jumps, np.nan) for bound in band)
                axes.fill_between(when, low, high, color=MODEL, alpha=0.18, lw=0, label="80 % interval")
            axes.set_title(f"{rank}: sensor {short(data.ids[sensor])}, MAE {mae[sensor]:.3g}{unit(data)}", loc="left")
            axes.set_ylabel(data.unit or "reading")
            if np.nanmin(np.concatenate([readings, values, [0]])) >= 0:
                axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
        locator = AutoDateLocator(minticks=3, maxticks=6)
        panels[-1].xaxis.set_major_locator(locator)
        panels[-1].xaxis.set_major_formatter(ConciseDateFormatter(locator))
        panels[-1].set_xlabel("local time")
        legend(figure, panels[0])
        png = finish()
    caption = (
        f"Readings and the forecast made {hours} before, the first days of the test split, for the sensors with the "
        "least, the median and the largest mean absolute error at that horizon."
    )
    return captioned("Forecast against readings", caption, data, png)


def error_by_horizon(data: SensorData, errors: Mapping[str, NDArray[np.floating]], *, note: str = "") -> Picture:
    """Draw the mean absolute error at each of the Q steps ahead.

    Args:
        data: the sensors.
        errors: by method, each of shape (Q,), in the data's unit; the first is the model.
        note: ends the caption.
    """
    steps = max(len(error) for error in errors.values())
    scale, word = (60, "minutes") if steps * data.step_s <= 3 * 3600 else (3600, "hours")
    with canvas(data, 3.9) as (figure, finish):
        axes = figure.subplots()
        for name, error, style in _styled(errors):
            axes.plot(np.arange(1, len(error) + 1) * data.step_s / scale, error, label=name, ms=4.5, **style)
        axes.set_ylim(bottom=0)
        stride = -(-steps // 6)
        axes.set_xticks(np.arange(stride, steps + 1, stride) * data.step_s / scale)
        axes.set_xlabel(f"{word} ahead")
        axes.set_ylabel(f"MAE{unit(data, ', ')}")
        axes.grid(alpha=0.3)
        legend(figure, axes, last_first=True)
        png = finish()
    caption = f"Mean absolute error over all windows and sensors, for each step ahead.{note}"
    return captioned("Error by horizon", caption, data, png)


def error_by_time_of_day(data: SensorData, errors: Mapping[str, NDArray[np.floating]], *, note: str = "") -> Picture:
    """Draw the mean absolute error by the hour that is forecast.

    Args:
        data: the sensors.
        errors: by method, each of shape (24,), NaN where nothing was observed; the first is the model.
        note: ends the caption.
    """
    with canvas(data, 3.9) as (figure, finish):
        axes = figure.subplots()
        for name, error, style in _styled(errors):
            axes.plot(np.arange(len(error)) + 0.5, error, label=name, ms=3.5, **style)
        axes.set_ylim(bottom=0)
        axes.set_xlim(0, 24)
        axes.set_xticks(range(0, 25, 4))
        axes.set_xlabel("hour of day (local)")
        axes.set_ylabel(f"MAE{unit(data, ', ')}")
        axes.grid(alpha=0.3)
        legend(figure, axes, last_first=True)
        png = finish()
    caption = f"Mean absolute error over all windows, sensors and steps ahead, by the hour that is forecast.{note}"
    return captioned("Error by time of day", caption, data, png)


def _styled(errors: Mapping[str, NDArray[np.floating]]) -> Iterator[tuple[str, NDArray[np.floating], dict[str, Any]]]:
    """Yield name, values and line style; baselines first, so that the model's line lies on top."""
    for number, (name, error) in reversed(list(enumerate(errors.items()))):
        if number == 0:
            yield name, error, {"color": MODEL, "lw": 2.4, "marker": "o", "ls": "-", "zorder": 3}
        else:
            color, dashes, marker = _STYLES[(number - 1) % len(_STYLES)]
            yield name, error, {"color": color, "lw": 1.4, "marker": marker, "ls": dashes}


def _minutes(seconds: int) -> str:
    return f"{seconds / 60:g} min" if seconds < 7200 else f"{seconds / 3600:g} h"
