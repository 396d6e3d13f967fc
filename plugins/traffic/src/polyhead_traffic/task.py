"""The task `forecast`: what a model is trained for, measured by and asked for."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray

from polyhead.artifacts import atomic_file
from polyhead.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from polyhead.manifest import resolve
from polyhead.models import load
from polyhead.plugins import find_model
from polyhead.protocols import Batch, Metric, Monitor, Picture, Predictor, Ratio
from polyhead_traffic.baselines import fit_baselines
from polyhead_traffic.data import SensorData, blocks
from polyhead_traffic.gman import batch_norm_momentum, set_batch_norm_momentum
from polyhead_traffic.graphs import find_graph
from polyhead_traffic.held_out import HeldOutMedian
from polyhead_traffic.intervals import LEVEL, IntervalMetric, Intervals
from polyhead_traffic.metrics import ForecastMetric, figure_name, headline_steps, masked_absolute_error
from polyhead_traffic.settings import ForecastTaskSettings, PredictSettings
from polyhead_traffic.windows import WindowSource

if TYPE_CHECKING:
    from torch import Tensor, nn

    from polyhead_apps.sampling import Progress

__all__ = ["ForecastTask", "normaliser"]

PREDICT_BATCH = 32
WALKED = 2000
"""Most sensors whose embedding is node2vec's unless it is asked for: the walks of 5,000 take minutes, the Laplacian
four seconds."""
NAMED = 5
_BASELINES: MutableMapping[SensorData, Mapping[str, Predictor]] = WeakKeyDictionary()
"""Fitted once for the data they belong to: tables and pictures ask for the same ones."""


@dataclass(frozen=True)
class ForecastTask:
    """Forecast every sensor for the next ``horizon`` steps; implements ``polyhead.protocols.Task``.

    A model takes ``x`` (B, P, N), raw readings with 0 where missing, ``te`` (B, P+Q, 2), the calendar, and, if its
    config says ``input_mask``, ``x_mask`` (B, P, N); it returns (B, Q, N) in the unit of the readings. What the data
    determine is put into its config, as far as it has the fields (``nodes``, ``history``, ``horizon``,
    ``slots_per_day``, ``use_day_of_week``, ``embedding_dim``), and given to its method ``set_data(mean, std,
    spatial_embedding)``, and ``profile`` besides if its config says so.
    """

    monitor: ClassVar[Monitor] = Monitor("mae", "min")

    ids: tuple[str, ...]
    step_s: int
    history: int
    horizon: int
    unit: str
    zero_is_missing: bool
    mean: float
    """What is subtracted from readings before the model, and ``std`` divides them."""
    std: float
    use_day_of_week: bool
    norm_epochs: float
    embedding_source: str
    """What the spatial embedding was made from, in words."""
    embedding: NDArray[np.float32] | None = None
    """(N, D): where sensors are; None in a restored task, whose model carries it."""
    medians: HeldOutMedian | None = None
    """Each sensor's usual day; None in a restored task, whose model carries it."""
    intervals: Intervals | None = None
    """How far readings lie from forecasts; None before `calibrate`."""

    @property
    def headline(self) -> Sequence[str]:
        """The figures of the table: MAE where papers report it, RMSE and MAPE at the last step, mean MAE, coverage."""
        steps = headline_steps(self.horizon)
        names = [figure_name("mae", step, self.step_s) for step in steps]
        last = [figure_name(name, steps[-1], self.step_s) for name in ("rmse", "mape")]
        return [*names, *last, "mae", *([] if self.intervals is None else [f"coverage_{100 * LEVEL:.0f}"])]

    @classmethod
    def prepare(cls, data: SensorData, settings: ForecastTaskSettings, *, seed: int) -> Self:
        """Fit normaliser and spatial embedding.

        Raises:
            DataError: a split is shorter than one window, or the embedding that was asked for needs a file that is not
                there.
        """
        for split in ("train", "validation", "test"):
            data.source(split)
        mean, std = normaliser(data)
        days = np.unique(data.calendar[: data.train_rows, 0])
        embedding, source = _spatial_embedding(data, settings.embedding, seed)
        return cls(
            ids=data.ids,
            step_s=data.step_s,
            history=data.history,
            horizon=data.horizon,
            unit=data.unit,
            zero_is_missing=data.zero_is_missing,
            mean=mean,
            std=std,
            # The embedding of a day that training never saw would stay untrained and disturb its forecasts.
            use_day_of_week=len(days) == 7 if settings.use_day_of_week == "auto" else settings.use_day_of_week == "on",
            norm_epochs=settings.norm_epochs,
            embedding_source=source,
            embedding=embedding,
            medians=HeldOutMedian.fit(data),
        )

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Self:
        """Make the task of a saved model.

        Raises:
            CheckpointError: the state is that of another version.
        """
        names = {field.name for field in dataclasses.fields(cls)} - {"embedding", "medians"}
        state = {"intervals": None, **state}
        if set(state) != names:
            odd = ", ".join(sorted(set(state) ^ names))
            raise CheckpointError(
                f"The state of the task forecast does not fit this version: {odd}. Fit the model again."
            )
        kept = state["intervals"]
        intervals = None if kept is None else Intervals.restore(kept)
        return cls(**{**state, "ids": tuple(state["ids"]), "intervals": intervals})

    def state(self) -> Mapping[str, Any]:
        """Return what ``restore`` needs, as JSON values."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del fields["embedding"], fields["medians"]
        kept = None if self.intervals is None else self.intervals.state()
        return {**fields, "ids": list(self.ids), "intervals": kept}

    def build_model(self, name: str, config: Mapping[str, Any]) -> nn.Module:
        """Build a fresh model for these sensors.

        Raises:
            ConfigError: ``config`` sets what the data determine to something else.
        """
        cls = resolve(find_model(name)[1].target)
        known = {field.name for field in dataclasses.fields(cls.Config)}
        determined = {
            "nodes": len(self.ids),
            "history": self.history,
            "horizon": self.horizon,
            "slots_per_day": 24 * 60 * 60 // self.step_s,
        }
        if self.embedding is not None:
            determined["embedding_dim"] = self.embedding.shape[1]
        for key, value in determined.items():
            if config.get(key, value) != value:
                raise ConfigError(f"model.{key} is {config[key]}, but the data have {value}. Leave it out.")
        values = {"use_day_of_week": self.use_day_of_week, **config, **determined}
        model = load(name, **{key: value for key, value in values.items() if key in known or key in config})
        set_data: Any = getattr(model, "set_data", None)
        if set_data is not None:
            where = None if self.embedding is None else torch.from_numpy(self.embedding)
            usual = {}
            if self.medians is not None and getattr(getattr(model, "config", None), "profile", False):
                usual["profile"] = torch.from_numpy(self.medians.profile.table)
            set_data(mean=self.mean, std=self.std, spatial_embedding=where, **usual)
        return model

    def check(self, data: SensorData) -> None:
        """Refuse data of other sensors, steps or windows.

        Raises:
            DataError: names what differs.
        """
        if data.ids != self.ids:
            raise DataError(_difference(data, self.ids))
        for what, have, want, mend in (
            ("a step of", data.step_s, self.step_s, f"Resample the readings to {self.step_s} s"),
            ("a history of", data.history, self.history, f"Use --history {self.history}"),
            ("a horizon of", data.horizon, self.horizon, f"Use --horizon {self.horizon}"),
        ):
            if have != want:
                raise DataError(
                    f"{data.name} has {what} {have}, the model was fitted with {want}. {mend}, or fit again."
                )
        if data.unit and self.unit and data.unit != self.unit:
            raise DataError(
                f"{data.name} is in {data.unit}, the model was fitted in {self.unit}. Convert the readings."
            )

    def before_step(self, model: nn.Module, progress: Progress) -> None:
        """Set the momentum of batch norms: 0.5, halved every ``norm_epochs`` epochs, at least 0.01."""
        decay_steps = self.norm_epochs * progress.steps_per_epoch
        set_batch_norm_momentum(model, batch_norm_momentum(progress.step, decay_steps))

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Ratio]:
        """Return the masked MAE in the unit of the readings.

        A model with a profile is shown that of the other days: in its own the targets take part.
        """
        config = getattr(getattr(model, "module", model), "config", None)
        if self.medians is not None and getattr(config, "profile", False):
            forecast = model(batch["x"], batch["te"], batch["x_mask"], self.medians.without(batch))
        else:
            forecast = self.predict(model, batch)
        return {"mae": masked_absolute_error(forecast, batch["y"], batch["y_mask"])}

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return forecasts (B, Q, N) in the unit of the readings."""
        config = getattr(getattr(model, "module", model), "config", None)
        observed = (batch["x_mask"],) if getattr(config, "input_mask", False) else ()
        forecast: Tensor = model(batch["x"], batch["te"], *observed)
        return forecast

    def metric(self) -> ForecastMetric:
        """Return a fresh accumulator of masked MAE, RMSE and MAPE."""
        return ForecastMetric(self.horizon, self.step_s)

    def model_metric(self) -> Metric:
        """Return a fresh accumulator for the model's own forecasts, with the coverage of its intervals, if any."""
        return self.metric() if self.intervals is None else IntervalMetric(self.horizon, self.step_s, self.intervals)

    def calibrate(self, model: nn.Module, data: SensorData) -> Self:
        """Return the task with intervals for a trained model, from its errors on training and validation windows."""
        model.eval()

        def predict(batch: Batch) -> Tensor:
            return torch.from_numpy(self._forecast(model, data, batch))

        return dataclasses.replace(self, intervals=Intervals.fit(predict, data))

    def baselines(self, data: SensorData) -> Mapping[str, Predictor]:
        """Return last value, slot profiles, ridges and the shrunk residual, fitted on the training windows.

        Asked again for the same data they are those of before.
        """
        if data not in _BASELINES:
            _BASELINES[data] = fit_baselines(data)
        return _BASELINES[data]

    def pictures(self, model: nn.Module, data: SensorData) -> Sequence[Picture]:
        """Return the report's figures: forecasts of the test windows against readings and baselines."""
        from polyhead_traffic.report import pictures

        return pictures(self, model, data)

    def write_predictions(
        self, model: nn.Module, data: SensorData, out: Path, settings: PredictSettings
    ) -> Sequence[Path]:
        """Write ``forecast.csv``, one line a sensor and step: the steps after the last row, or a split's windows.

        Columns: ``timestamp`` (the time forecast), ``sensor_id``, ``horizon_min`` (minutes ahead), ``forecast``, of a
        calibrated task ``lower`` and ``upper``, and for a split ``observed``, empty where missing.

        Raises:
            DataError: too few rows for the window.
            NonFiniteError: the model gives NaN or Inf.
        """
        past = settings.split == "latest"
        file = out / "forecast.csv"
        with atomic_file(file) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
            rows = csv.writer(stream, lineterminator="\n")
            bounds = [] if self.intervals is None else ["lower", "upper"]
            rows.writerow(
                ["timestamp", "sensor_id", "horizon_min", "forecast", *bounds, *([] if past else ["observed"])]
            )
            for batch in [data.latest()] if settings.split == "latest" else _batches(data.source(settings.split)):
                rows.writerows(self._lines(model, data, batch, settings.level))
        return [file]

    def _forecast(self, model: nn.Module, data: SensorData, batch: Batch) -> NDArray[np.float32]:
        """Return (B, Q, N) on the CPU, every number finite."""
        device = next(model.parameters()).device
        with torch.inference_mode():
            moved = {name: tensor.to(device) for name, tensor in batch.items()}
            forecast: NDArray[np.float32] = self.predict(model, moved).float().cpu().numpy()
        if not np.isfinite(forecast).all():
            window, step, sensor = np.argwhere(~np.isfinite(forecast))[0]
            when = data.timestamps[int(batch["start"][window])]
            raise NonFiniteError(
                f'The forecast of sensor "{self.ids[sensor]}", step {step + 1}, from the window at {when} is '
                f"{forecast[window, step, sensor]}. The weights are damaged: fit again."
            )
        return forecast

    def _lines(self, model: nn.Module, data: SensorData, batch: Batch, level: float) -> Iterator[Sequence[str]]:
        forecast = self._forecast(model, data, batch)
        columns: list[NDArray[Any]] = [forecast]
        if self.intervals is not None:
            slots = batch["te"].numpy()[:, self.history :, 1]
            columns += self.intervals.bounds(forecast, slots, self.step_s, level)
        ahead = np.arange(1, self.horizon + 1)
        minutes = [f"{step * self.step_s / 60:g}" for step in ahead]
        for window, start in enumerate(batch["start"].tolist()):
            last = data.timestamps[start + self.history - 1]
            for step, when in enumerate(last + ahead * np.timedelta64(self.step_s, "s")):
                stamp = str(when).replace("T", " ")
                texts = [[f"{value:.6g}" for value in column[window, step].tolist()] for column in columns]
                if "y" in batch:
                    readings = zip(
                        batch["y"][window, step].tolist(), batch["y_mask"][window, step].tolist(), strict=True
                    )
                    texts.append([f"{reading:.6g}" if seen else "" for reading, seen in readings])
                for name, *cells in zip(self.ids, *texts, strict=True):
                    yield stamp, name, minutes[step], *cells


def normaliser(data: SensorData) -> tuple[float, float]:
    """Return what is subtracted from readings and what they are divided by, as the protocol of ``data`` says.

    ``gman`` and ``dcrnn``: mean and deviation over the inputs of all training windows, so rows in several windows count
    several times and missing readings as 0; ``pems-6-2-2``: over the training rows; ``tgcn``: 0 and the largest one.
    """
    starts = data.starts["train"]
    rows = data.train_rows
    weight = np.zeros(rows + 1)
    if data.protocol in ("gman", "dcrnn"):
        np.add.at(weight, starts, 1)
        np.add.at(weight, starts + data.history, -1)
        weight = np.cumsum(weight)
    else:
        weight[:rows] = 1
    weight = weight[:rows]
    if data.protocol == "tgcn":
        largest = float(np.abs(data.values[:rows]).max())
        return 0.0, largest or 1.0
    # Row by row in float64: the readings may be a memory map.
    count = weight.sum() * len(data.ids)
    total = sum(float(w @ part.sum(axis=1, dtype=np.float64)) for w, part in _blocks(weight, data.values))
    mean = total / count
    square = sum(
        float(w @ np.square(part.astype(np.float64) - mean).sum(axis=1)) for w, part in _blocks(weight, data.values)
    )
    return mean, float(np.sqrt(square / count)) or 1.0


def _blocks(weight: NDArray[np.float64], values: NDArray[np.float32]) -> Iterator[tuple[Any, Any]]:
    for rows in blocks(len(weight), values.shape[1]):
        yield weight[rows], values[rows]


def _batches(source: WindowSource) -> Iterator[Batch]:
    windows = range(len(source))
    for first in range(0, len(windows), PREDICT_BATCH):
        yield source.fetch(windows[first : first + PREDICT_BATCH])


def _spatial_embedding(data: SensorData, kind: str, seed: int) -> tuple[NDArray[np.float32], str]:
    """Return (N, D) and what it was made from."""
    if kind == "file" and data.embedding is None:
        raise DataError(
            f"{data.name} came without an embedding file. Put SE.txt beside the readings, or use --set "
            "task.embedding=node2vec."
        )
    if data.embedding is not None and kind in ("auto", "file"):
        return data.embedding, "the embedding file of the data"
    from polyhead_traffic.embedding import laplacian, node2vec

    graph, source = find_graph(data)
    spectral = kind == "laplacian" or (kind == "auto" and len(data.ids) > WALKED)
    method = laplacian if spectral else node2vec
    return method(graph, len(data.ids), seed=seed), f"{'Laplacian' if spectral else 'node2vec'} of {source}"


def _difference(data: SensorData, ids: Sequence[str]) -> str:
    """Say how the sensors of ``data`` differ from those of the model."""
    new = [name for name in data.ids if name not in set(ids)]
    lost = [name for name in ids if name not in set(data.ids)]
    if not new and not lost:
        at = next(i for i, (have, want) in enumerate(zip(data.ids, ids, strict=True)) if have != want)
        return (
            f'{data.name} has the sensors of the model in another order: column {at + 1} is "{data.ids[at]}" and was '
            f'"{ids[at]}". Put the columns in the order of the training data.'
        )
    parts = []
    if new:
        parts.append(f"{len(new)} that the model does not know ({_names(new)})")
    if lost:
        parts.append(f"not {len(lost)} that it does ({_names(lost)})")
    return (
        f"{data.name} has {' and '.join(parts)}: a model forecasts the sensors it was fitted on, because where a "
        "sensor stands in the network was learned together with the others. Fit on these data. `fit --init-from RUN` "
        "starts from the weights of this model."
    )


def _names(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names[:NAMED]) + (", …" if len(names) > NAMED else "")
