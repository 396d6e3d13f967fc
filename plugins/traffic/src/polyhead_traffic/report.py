"""Pictures of a forecast: series of a few sensors, error by horizon, on the map and by time of day.

All of them are drawn for a phone's width, tell colours apart for colour-blind eyes, and carry the data's provenance.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from polyhead.errors import ShapeError
from polyhead.protocols import Batch, Picture, Predictor
from polyhead_traffic.data import SensorData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import nn

    from polyhead_traffic.task import ForecastTask

__all__ = [
    "Tally",
    "error_by_horizon",
    "error_by_time_of_day",
    "error_of_sensors",
    "forecast_series",
    "graph_layout",
    "pictures",
]

# Okabe and Ito's palette; lines differ by dashes and markers too.
_MODEL, _TRUTH = "#0072B2", "#222222"
_STYLES = (
    ("#D55E00", "--", "s"),
    ("#009E73", "-.", "^"),
    ("#CC79A7", ":", "D"),
    ("#E69F00", (0, (5, 1)), "v"),
    ("#56B4E9", (0, (3, 1, 1, 1)), "P"),
)
_WIDTH_IN, _DPI = 4.8, 200
_SHOWN = np.timedelta64(3, "D")
_BASELINES = len(_STYLES)
_BATCH = 32
_LARGEST_LAYOUT = 1500


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
    series: list[NDArray[np.float32]] = []
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
        ),
        error_by_horizon(data, {method: tally.by_step for method, tally in drawn.items()}, note=note),
        error_of_sensors(data, tallies[name].by_sensor, model=name),
        error_by_time_of_day(data, {method: tally.by_hour for method, tally in drawn.items()}, note=note),
    ]


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
) -> Picture:
    """Draw readings and the forecast made ``step`` steps before, for the best, median and worst sensor.

    Args:
        data: the sensors.
        starts: first rows of the S windows that are drawn, shape (S,), rising.
        forecast: of their step ``step``, shape (S, N), in the data's unit.
        mae: of that step over all windows, shape (N,); picks the sensors.
        step: horizon, 1 to Q.
        model: what made the forecast.
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
    with _figure(data, 1.2 + 1.75 * max(len(picks), 1)) as (figure, finish):
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        panels = figure.subplots(max(len(picks), 1), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (rank, sensor) in zip(panels, picks.items(), strict=False):
            readings = np.insert(np.where(data.mask[rows, sensor], data.values[rows, sensor], np.nan), jumps, np.nan)
            axes.plot(when, readings, color=_TRUTH, lw=1.0, label="reading")
            values = np.insert(forecast[:, sensor].astype(np.float64), jumps, np.nan)
            axes.plot(when, values, color=_MODEL, lw=1.6, alpha=0.9, label=f"{model}, {hours} before")
            axes.set_title(f"{rank}: sensor {_short(data.ids[sensor])}, MAE {mae[sensor]:.3g}{_unit(data)}", loc="left")
            axes.set_ylabel(data.unit or "reading")
            if np.nanmin(np.concatenate([readings, values, [0]])) >= 0:
                axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
        locator = AutoDateLocator(minticks=3, maxticks=6)
        panels[-1].xaxis.set_major_locator(locator)
        panels[-1].xaxis.set_major_formatter(ConciseDateFormatter(locator))
        panels[-1].set_xlabel("local time")
        _legend(figure, panels[0])
        png = finish()
    caption = (
        f"Readings and the forecast made {hours} before, the first days of the test split, for the sensors with the "
        "least, the median and the largest mean absolute error at that horizon."
    )
    return _picture("Forecast against readings", caption, data, png)


def error_by_horizon(data: SensorData, errors: Mapping[str, NDArray[np.floating]], *, note: str = "") -> Picture:
    """Draw the mean absolute error at each of the Q steps ahead.

    Args:
        data: the sensors.
        errors: by method, each of shape (Q,), in the data's unit; the first is the model.
        note: ends the caption.
    """
    steps = max(len(error) for error in errors.values())
    scale, word = (60, "minutes") if steps * data.step_s <= 3 * 3600 else (3600, "hours")
    with _figure(data, 3.9) as (figure, finish):
        axes = figure.subplots()
        for name, error, style in _styled(errors):
            axes.plot(np.arange(1, len(error) + 1) * data.step_s / scale, error, label=name, ms=4.5, **style)
        axes.set_ylim(bottom=0)
        stride = -(-steps // 6)
        axes.set_xticks(np.arange(stride, steps + 1, stride) * data.step_s / scale)
        axes.set_xlabel(f"{word} ahead")
        axes.set_ylabel(f"MAE{_unit(data, ', ')}")
        axes.grid(alpha=0.3)
        _legend(figure, axes, last_first=True)
        png = finish()
    caption = f"Mean absolute error over all windows and sensors, for each step ahead.{note}"
    return _picture("Error by horizon", caption, data, png)


def error_by_time_of_day(data: SensorData, errors: Mapping[str, NDArray[np.floating]], *, note: str = "") -> Picture:
    """Draw the mean absolute error by the hour that is forecast.

    Args:
        data: the sensors.
        errors: by method, each of shape (24,), NaN where nothing was observed; the first is the model.
        note: ends the caption.
    """
    with _figure(data, 3.9) as (figure, finish):
        axes = figure.subplots()
        for name, error, style in _styled(errors):
            axes.plot(np.arange(len(error)) + 0.5, error, label=name, ms=3.5, **style)
        axes.set_ylim(bottom=0)
        axes.set_xlim(0, 24)
        axes.set_xticks(range(0, 25, 4))
        axes.set_xlabel("hour of day (local)")
        axes.set_ylabel(f"MAE{_unit(data, ', ')}")
        axes.grid(alpha=0.3)
        _legend(figure, axes, last_first=True)
        png = finish()
    caption = f"Mean absolute error over all windows, sensors and steps ahead, by the hour that is forecast.{note}"
    return _picture("Error by time of day", caption, data, png)


def error_of_sensors(data: SensorData, mae: NDArray[np.floating], *, model: str = "forecast") -> Picture:
    """Draw the mean absolute error of each sensor: on the map, on the graph's layout, or in order of size.

    Args:
        data: the sensors; with ``coordinates`` a map is drawn, else its graph is laid out if it has one.
        mae: shape (N,), in the data's unit; NaN for a sensor without an observed reading.
        model: what made the forecast.
    """
    nodes = len(data.ids)
    laid_out = data.coordinates is None and data.graph is not None and nodes <= _LARGEST_LAYOUT
    if data.coordinates is None and not laid_out:
        return _error_in_order(data, mae, model)
    with _figure(data, 4.6) as (figure, finish):
        axes = figure.subplots()
        if data.coordinates is not None:
            places = data.coordinates[:, ::-1]
            axes.set_aspect(1 / max(np.cos(np.deg2rad(places[:, 1].mean())), 0.05), adjustable="datalim")
            axes.set_xlabel("longitude, °")
            axes.set_ylabel("latitude, °")
            axes.ticklabel_format(useOffset=False)
            axes.locator_params(nbins=4)
        else:
            places = graph_layout(data)
            axes.set_aspect("equal", adjustable="datalim")
            axes.set_xticks([])
            axes.set_yticks([])
        _draw_edges(axes, data, places)
        unseen = ~np.isfinite(mae)
        size = float(np.clip(3000 / nodes, 8, 46))
        axes.scatter(places[unseen, 0], places[unseen, 1], s=size, facecolors="none", edgecolors="0.5", linewidths=0.8)
        # The largest errors come last, on top of their neighbours.
        order = np.flatnonzero(~unseen)[np.argsort(mae[~unseen])]
        points = axes.scatter(
            places[order, 0],
            places[order, 1],
            c=mae[order],
            s=size,
            cmap="cividis",
            edgecolors="white",
            linewidths=0.4,
            zorder=3,
        )
        figure.colorbar(points, ax=axes, label=f"MAE{_unit(data, ', ')}", shrink=0.85)
        png = finish()
    where = "on the map" if data.coordinates is not None else "on a layout of the graph (positions mean nothing else)"
    caption = f"Mean absolute error of {model} at each sensor, all steps ahead, {where}. Grey lines: the graph."
    if unseen.any():
        caption += f" Hollow: without an observed reading ({int(unseen.sum())})."
    return _picture("Where the error is", caption, data, png)


def _error_in_order(data: SensorData, mae: NDArray[np.floating], model: str) -> Picture:
    known = np.sort(mae[np.isfinite(mae)])
    with _figure(data, 3.4) as (figure, finish):
        axes = figure.subplots()
        axes.step(np.arange(1, len(known) + 1), known, color=_MODEL, lw=1.8, where="mid")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("sensors, in order of their error")
        axes.set_ylabel(f"MAE{_unit(data, ', ')}")
        axes.grid(alpha=0.3)
        png = finish()
    caption = (
        f"Mean absolute error of {model} at each of {len(known):,} sensors, all steps ahead, from least to largest."
    )
    return _picture("Where the error is", caption, data, png)


def graph_layout(data: SensorData, *, rounds: int = 60) -> NDArray[np.float64]:
    """Lay out the sensors in the plane so that neighbours are near: positions (N, 2), the same at every call.

    Starts from the graph's two slowest Laplacian eigenvectors and moves the nodes by springs and repulsion.
    Complexity: O(N³) once and O(rounds · N²).
    Source: Fruchterman and Reingold 1991.
    """
    nodes = len(data.ids)
    weights = data.graph.dense(nodes) if data.graph is not None else np.zeros((nodes, nodes))
    near = np.minimum(weights + weights.T, 1.0)
    np.fill_diagonal(near, 0)
    # A touch of weight everywhere joins the parts of a graph that is in pieces.
    joined = near + 1e-3 / nodes
    degree = joined.sum(axis=1)
    _, vectors = np.linalg.eigh(np.eye(nodes) - joined / np.sqrt(np.outer(degree, degree)))
    places = vectors[:, [1, min(2, nodes - 1)]] * np.sqrt(nodes)
    # Sensors that the graph cannot tell apart would stay on top of each other.
    places = places + 1e-3 * np.random.default_rng(0).standard_normal(places.shape)
    ideal = 1 / np.sqrt(nodes)
    for reach in np.linspace(0.1, 0.005, rounds):
        offset = places[:, None] - places[None]
        distance = np.maximum(np.sqrt((offset**2).sum(-1)), 1e-3)
        force = ideal**2 / distance**2 - near * distance / ideal
        move = (offset * force[..., None]).sum(axis=1)
        length = np.maximum(np.sqrt((move**2).sum(-1, keepdims=True)), 1e-9)
        places = places + move / length * np.minimum(length, reach)
    return places


def _draw_edges(axes: Axes, data: SensorData, places: NDArray[np.float64]) -> None:
    if data.graph is None:
        return
    from matplotlib.collections import LineCollection

    tail, head = data.graph.edges[:, data.graph.edges[0] != data.graph.edges[1]]
    alpha = float(np.clip(400 / max(len(tail), 1), 0.08, 0.5))
    axes.add_collection(
        LineCollection(
            list(np.stack([places[tail], places[head]], axis=1)), colors="0.5", lw=0.6, alpha=alpha, zorder=1
        )
    )


@contextmanager
def _figure(data: SensorData, height_in: float) -> Iterator[tuple[Figure, Any]]:
    """Give a figure and the function that ends it with the provenance at its foot and returns it as PNG."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    foot = textwrap.wrap(f"{data.name}: {data.origin}", 98)
    # Text outside of all axes is unknown to the layout: keep a strip free for it.
    strip = (0.14 * len(foot) + 0.06) / height_in
    engine = ConstrainedLayoutEngine(rect=(0, strip, 1, 1 - strip))
    with matplotlib.rc_context(
        {"font.size": 10, "axes.titlesize": 10, "legend.fontsize": 9, "font.family": "DejaVu Sans"}
    ):
        figure = Figure(figsize=(_WIDTH_IN, height_in), dpi=_DPI, layout=engine)
        FigureCanvasAgg(figure)

        def finish() -> bytes:
            figure.text(0.02, 0.04 / height_in, "\n".join(foot), fontsize=6.5, color="0.35", va="bottom")
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", metadata={"Software": None})
            return buffer.getvalue()

        yield figure, finish


def _picture(title: str, caption: str, data: SensorData, png: bytes) -> Picture:
    return Picture(title, f"{caption} {data.origin}", png)


def _legend(figure: Figure, axes: Axes, *, last_first: bool = False) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if last_first:
        handles, labels = handles[::-1], labels[::-1]
    figure.legend(
        handles, labels, loc="outside upper left", ncols=2, frameon=False, handlelength=2.6, columnspacing=1.2
    )


def _styled(errors: Mapping[str, NDArray[np.floating]]) -> Iterator[tuple[str, NDArray[np.floating], dict[str, Any]]]:
    """Yield name, values and line style; baselines first, so that the model's line lies on top."""
    for number, (name, error) in reversed(list(enumerate(errors.items()))):
        if number == 0:
            yield name, error, {"color": _MODEL, "lw": 2.4, "marker": "o", "ls": "-", "zorder": 3}
        else:
            color, dashes, marker = _STYLES[(number - 1) % len(_STYLES)]
            yield name, error, {"color": color, "lw": 1.4, "marker": marker, "ls": dashes}


def _minutes(seconds: int) -> str:
    return f"{seconds / 60:g} min" if seconds < 7200 else f"{seconds / 3600:g} h"


def _unit(data: SensorData, before: str = " ") -> str:
    return f"{before}{data.unit}" if data.unit else ""


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}…"
