"""The task `events`: when the next event comes, and of which kind."""

from __future__ import annotations

import csv
import math
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
from polyhead_agents.event_data import EventData
from polyhead_agents.event_model import EventForecast
from polyhead_agents.task_state import fields_of, state_of, with_data

__all__ = ["EventMetric", "EventTask"]

SHOWN = 64
"""Test sequences in the report's picture."""


class EventMetric:
    """``nll`` a real event (intervals, kinds and the silence behind the last), ``rmse`` of intervals, ``accuracy``.

    ``rmse`` is the root of the mean of all squared errors. (The published code squares the sum of the errors of each
    sequence, in which early and late forecasts cancel.) ``accuracy`` of kinds is in percent of all events.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self.sums = np.zeros(4)

    def update(self, prediction: Mapping[str, Tensor], batch: Batch) -> None:
        """Add a batch."""
        mask = batch["mask"].cpu()
        logs = (prediction["log_density"] + prediction["log_kind"]).cpu().double()[mask].sum()
        logs = logs + prediction["log_survival"].cpu().double().sum()
        error = (prediction["interval"].cpu().double() - batch["intervals"].cpu().double())[mask]
        right = (prediction["kind"].cpu() == batch["marks"].cpu())[mask].sum()
        self.sums += (-float(logs), float(error.square().sum()), float(right), int(mask.sum()))

    def state(self) -> Any:
        """Return the sums."""
        return self.sums

    def merge(self, states: Sequence[Any]) -> None:
        """Replace the own state by the union of all."""
        self.sums = np.sum(states, axis=0)

    def compute(self) -> Mapping[str, float]:
        """Return the figures."""
        loss, squared, right, count = self.sums.tolist()
        return {"nll": loss / count, "rmse": math.sqrt(squared / count), "accuracy": 100 * right / count}


@dataclass(frozen=True)
class EventTask:
    """The log likelihood of sequences: of intervals, kinds, and of nothing until the end of observation."""

    kinds: int
    scale: float
    log_mean: float
    log_std: float
    monitor: ClassVar[Monitor] = Monitor("nll", "min")
    directions: ClassVar[Mapping[str, Direction]] = {"accuracy": "max"}
    headline: ClassVar[Sequence[str]] = ("nll", "rmse", "accuracy")

    @classmethod
    def prepare(cls, data: EventData, settings: Any, *, seed: int) -> Self:  # noqa: ARG003  # nothing is random
        """Measure the training sequences."""
        intervals = np.concatenate([data.intervals[i] for i in data.chosen("train")])
        logs = np.log(intervals)
        return cls(data.kinds, float(intervals.mean()), float(logs.mean()), float(logs.std()) or 1.0)

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Self:
        """Make the task of a saved model.

        Raises:
            CheckpointError: the state is that of another version.
        """
        return cls(**fields_of(cls, state, "events"))

    def state(self) -> Mapping[str, Any]:
        """Return what ``restore`` needs, as JSON values."""
        return state_of(self)

    def build_model(self, name: str, config: Mapping[str, Any]) -> nn.Module:
        """Build a fresh model for these kinds.

        Raises:
            ConfigError: ``config`` sets their number to another.
        """
        model: Any = load(name, **with_data({"marks": self.kinds}, config))
        model.set_data(self.scale, self.log_mean, self.log_std)
        built: nn.Module = model
        return built

    def check(self, data: EventData) -> None:
        """Refuse more kinds.

        Raises:
            DataError: there are more than the model knows.
        """
        if data.kinds > self.kinds:
            raise DataError(f"{data.name} has {data.kinds} kinds of events, the model knows {self.kinds}. Fit again.")

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Ratio]:
        """Return the negative log likelihood a real event, in its three parts."""
        figures = self._terms(model, batch)
        mask = batch["mask"]
        count = mask.sum()
        return {
            "interval": Ratio(-(figures["log_density"] * mask).sum(), count),
            "kind": Ratio(-(figures["log_kind"] * mask).sum(), count),
            "silence": Ratio(-figures["log_survival"].sum(), count),
        }

    def predict(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Return, for every event from those before: ``interval`` (expected), ``kind`` (likeliest), each (B, L).

        And what was likely of it: ``log_density`` and ``log_kind`` (B, L), ``log_survival`` (B,) of the silence behind.
        """
        return self._terms(model, batch)

    def metric(self) -> EventMetric:
        """Return a fresh accumulator."""
        return EventMetric()

    def baselines(self, data: EventData) -> Mapping[str, Predictor]:
        """Return processes that forget: intervals exponential (Poisson) or log-normal, kinds as often as usual."""
        chosen = data.chosen("train")
        shares = np.bincount(np.concatenate([data.marks[i] for i in chosen]), minlength=self.kinds) + 1.0
        log_kinds = torch.from_numpy(np.log(shares / shares.sum()))
        mean, log_mean, log_std = self.scale, self.log_mean, self.log_std

        def poisson(batch: Batch) -> Mapping[str, Tensor]:
            logs = -batch["intervals"].double() / mean - math.log(mean)
            return self._forgetful(batch, logs, -batch["tail"].double() / mean, mean, log_kinds)

        def renewal(batch: Batch) -> Mapping[str, Tensor]:
            length = batch["intervals"].shape[1] + 1
            log_weights, location, deviation = (
                torch.full((len(batch["intervals"]), length, 1), value, dtype=torch.float64)
                for value in (0.0, log_mean, log_std)
            )
            logits = log_kinds.expand(len(batch["intervals"]), length, -1)
            one = EventForecast(log_weights, location, deviation, logits)
            logs, silence = _logs(one, batch)
            return self._forgetful(batch, logs, silence, math.exp(log_mean + log_std**2 / 2), log_kinds)

        return {"Poisson": poisson, "log-normal renewal": renewal}

    def pictures(self, model: nn.Module, data: EventData) -> Sequence[Picture]:
        """Return true intervals against expected ones."""
        from polyhead_agents.drawing import COLOURS, draw

        source: Any = data.source("test")
        batch = source.fetch(range(min(len(source), SHOWN)))
        mask = batch["mask"].numpy()
        expected = self._run(model, batch)["interval"].numpy(force=True)[mask]
        true = batch["intervals"].numpy()[mask]

        def paint(axes: Any) -> None:
            axes.plot(expected, true, ".", color=COLOURS[0], markersize=2, alpha=0.5)
            bounds = [min(expected.min(), true.min()), max(expected.max(), true.max())]
            axes.plot(bounds, bounds, ":", color="0.5")
            axes.set(xscale="log", yscale="log", xlabel="expected interval", ylabel="true interval")

        caption = f"Events of {len(mask)} test sequences. {data.provenance}"
        return [Picture("Intervals expected and true", caption, draw(paint))]

    def write_predictions(self, model: nn.Module, data: EventData, out: Path, settings: Any) -> Sequence[Path]:  # noqa: ARG002
        """Write ``next-events.csv``: for each test sequence the expected interval to the next event, and its kind."""
        source: Any = data.source("test")
        device = next(model.parameters()).device
        file = out / "next-events.csv"
        with atomic_file(file) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
            rows = csv.writer(stream, lineterminator="\n")
            rows.writerow(["sequence", "events", "interval", "kind", "probability"])
            for at, number in enumerate(source.chosen):
                batch = {name: value.to(device) for name, value in source.fetch([at]).items()}
                with torch.no_grad():
                    forecast = model(batch["intervals"], batch["marks"], batch["mask"])
                probability, kind = forecast.logits[0, -1].softmax(-1).max(-1)
                rows.writerow(
                    [
                        int(number),
                        int(batch["mask"].sum()),
                        f"{float(forecast.mean()[0, -1]):.6g}",
                        int(kind) + 1,
                        f"{float(probability):.6g}",
                    ]
                )
        return [file]

    def _terms(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        forecast = model(batch["intervals"], batch["marks"], batch["mask"])
        logs, silence = _logs(forecast, batch)
        logits, mask = forecast.logits[:, :-1], batch["mask"]
        kinds = logits.log_softmax(-1).gather(-1, batch["marks"].unsqueeze(-1)).squeeze(-1)
        return {
            "interval": forecast.mean()[:, :-1].masked_fill(~mask, 0),
            "kind": logits.argmax(-1).masked_fill(~mask, 0),
            "log_density": logs.masked_fill(~mask, 0),
            "log_kind": kinds.masked_fill(~mask, 0),
            "log_survival": silence,
        }

    def _run(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        device = next(model.parameters()).device
        with torch.no_grad():
            return self.predict(model, {name: value.to(device) for name, value in batch.items()})

    def _forgetful(
        self, batch: Batch, logs: Tensor, silence: Tensor, mean: float, log_kinds: Tensor
    ) -> Mapping[str, Tensor]:
        return {
            "interval": torch.full_like(logs, mean),
            "kind": torch.full_like(batch["marks"], int(log_kinds.argmax())),
            "log_density": logs,
            "log_kind": log_kinds[batch["marks"]],
            "log_survival": silence.masked_fill(batch["tail"] == 0, 0),
        }


def _logs(forecast: EventForecast, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return log densities of the intervals, (B, L), and of the silence behind the last events, (B,)."""
    logs = forecast.log_density(batch["intervals"].to(forecast.location.dtype))
    tail = batch["tail"].to(forecast.location.dtype)
    known = tail > 0
    silence = forecast.log_survival(torch.where(known, tail, 1.0), batch["mask"].sum(1))
    return logs, torch.where(known, silence, 0.0)
