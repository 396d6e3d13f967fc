"""The task `classify`: the class of a series."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyhead.artifacts import atomic_file
from polyhead.errors import DataError
from polyhead.models import load
from polyhead.protocols import Batch, Direction, Monitor, Picture, Predictor, Ratio
from polyhead_agents.series_data import SeriesData
from polyhead_agents.task_state import fields_of, state_of, with_data

__all__ = ["ClassifyMetric", "ClassifyTask"]

SMOOTH = 0.05
"""Share of the spread of all series in that of a class: a class of few series has no certain one of its own."""
SHOWN = 500
"""Series whose predictions are counted in the report's picture."""


class ClassifyMetric:
    """Counts right answers, and the cross-entropy of the true class: ``accuracy`` in percent, ``cross_entropy``."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.sums = np.zeros(3)

    def update(self, prediction: Tensor, batch: Batch) -> None:
        """Add a batch: logits or log probabilities (B, classes)."""
        label = batch["label"].to(prediction.device)
        right = (prediction.argmax(-1) == label).sum()
        loss = F.cross_entropy(prediction.double(), label, reduction="sum")
        self.sums += (float(right), float(loss), len(label))

    def state(self) -> Any:
        """Return the sums."""
        return self.sums

    def merge(self, states: Sequence[Any]) -> None:
        """Replace the own state by the union of all."""
        self.sums = np.sum(states, axis=0)

    def compute(self) -> Mapping[str, float]:
        """Return the figures."""
        right, loss, count = self.sums.tolist()
        return {"accuracy": 100 * right / count, "cross_entropy": loss / count}


@dataclass(frozen=True)
class ClassifyTask:
    """Cross-entropy of the class; the best checkpoint is that of the most right answers on the validation series."""

    channels: int
    length: int
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    monitor: ClassVar[Monitor] = Monitor("accuracy", "max")
    directions: ClassVar[Mapping[str, Direction]] = {"accuracy": "max"}
    headline: ClassVar[Sequence[str]] = ("accuracy", "cross_entropy")

    @classmethod
    def prepare(cls, data: SeriesData, settings: Any, *, seed: int) -> Self:  # noqa: ARG003  # nothing is random
        """Measure the training series: mean and deviation of each channel over all their readings."""
        values = np.concatenate([data.train.values[i] for i in data.source("train").chosen]).astype(np.float64)  # type: ignore[attr-defined]  # our source
        std = values.std(axis=0)
        return cls(
            data.channels,
            data.length,
            data.classes,
            tuple(values.mean(axis=0).tolist()),
            tuple(np.where(std > 0, std, 1.0).tolist()),
        )

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Self:
        """Make the task of a saved model.

        Raises:
            CheckpointError: the state is that of another version.
        """
        return cls(**fields_of(cls, state, "classify"))

    def state(self) -> Mapping[str, Any]:
        """Return what ``restore`` needs, as JSON values."""
        return state_of(self)

    def build_model(self, name: str, config: Mapping[str, Any]) -> nn.Module:
        """Build a fresh model for these channels, lengths and classes.

        Raises:
            ConfigError: ``config`` sets what the data determine to something else.
        """
        determined = {"channels": self.channels, "length": self.length, "classes": len(self.classes)}
        model: Any = load(name, **with_data(determined, config))
        model.set_data(torch.tensor(self.mean), torch.tensor(self.std))
        built: nn.Module = model
        return built

    def check(self, data: SeriesData) -> None:
        """Refuse series of other channels or classes, or longer ones.

        Raises:
            DataError: names what differs.
        """
        if data.channels != self.channels or data.classes != self.classes or data.length > self.length:
            raise DataError(
                f"{data.name} has {data.channels} channels, {len(data.classes)} classes and up to {data.length} "
                f"readings; the model knows {self.channels}, {len(self.classes)} and {self.length}. Fit again."
            )

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Ratio]:
        """Return the cross-entropy."""
        logits = model(batch["x"], batch["mask"])
        total = F.cross_entropy(logits, batch["label"], reduction="sum")
        return {"cross_entropy": Ratio(total, torch.tensor(len(logits), device=total.device))}

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return log probabilities (B, classes)."""
        logits: Tensor = model(batch["x"], batch["mask"])
        return logits.log_softmax(-1)

    def metric(self) -> ClassifyMetric:
        """Return a fresh accumulator."""
        return ClassifyMetric()

    def baselines(self, data: SeriesData) -> Mapping[str, Predictor]:
        """Return the largest class, and the nearest class by mean and deviation of each channel."""
        source: Any = data.source("train")
        labels = data.train.classes[source.chosen]
        shares = np.bincount(labels, minlength=len(self.classes)) / len(labels)
        largest = torch.tensor(np.log(shares + 1e-9), dtype=torch.float32)
        features = np.stack([_features(data.train.values[i]) for i in source.chosen])
        centres = np.stack([features[labels == number].mean(axis=0) for number in range(len(self.classes))])
        within = np.stack(
            [(features[labels == number] - centres[number]).var(axis=0) for number in range(len(self.classes))]
        )
        spread = np.sqrt(within.mean(axis=0) + SMOOTH * features.var(axis=0) + 1e-12)

        def nearest(batch: Batch) -> Tensor:
            seen = np.stack(
                [_features(x[m].numpy()) for x, m in zip(batch["x"].cpu(), batch["mask"].cpu(), strict=True)]
            )
            far = np.square((seen[:, None] - centres) / spread).sum(axis=-1)
            return torch.from_numpy(-far / 2).log_softmax(-1)

        return {
            "largest class": lambda batch: largest.expand(len(batch["x"]), -1),
            "nearest mean and deviation": nearest,
        }

    def pictures(self, model: nn.Module, data: SeriesData) -> Sequence[Picture]:
        """Return the confusion of classes on the test."""
        from polyhead_agents.drawing import draw

        source: Any = data.source("test")
        batch = source.fetch(range(min(len(source), SHOWN)))
        device = next(model.parameters()).device
        with torch.no_grad():
            moved = {name: value.to(device) for name, value in batch.items()}
            told = self.predict(model, moved).argmax(-1).cpu()
        counts = np.zeros((len(self.classes),) * 2, dtype=int)
        np.add.at(counts, (batch["label"].numpy(), told.numpy()), 1)

        def paint(axes: Any) -> None:
            axes.imshow(counts, cmap="Blues")
            axes.set(xlabel="told", ylabel="true")
            for (true, other), count in np.ndenumerate(counts):
                if count:
                    dark = count > counts.max() / 2
                    axes.text(other, true, count, ha="center", va="center", color="white" if dark else "black")
            names = [name[:12] for name in self.classes]
            axes.set_xticks(range(len(names)), names, rotation=90)
            axes.set_yticks(range(len(names)), names)

        caption = f"Counts of test series, at most {SHOWN}. {data.provenance}"
        return [Picture("Classes told and true", caption, draw(paint))]

    def write_predictions(self, model: nn.Module, data: SeriesData, out: Path, settings: Any) -> Sequence[Path]:  # noqa: ARG002
        """Write ``classes.csv`` of the test series: number, class, its probability, and the true class."""
        source: Any = data.source("test")
        device = next(model.parameters()).device
        file = out / "classes.csv"
        with atomic_file(file) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
            rows = csv.writer(stream, lineterminator="\n")
            rows.writerow(["series", "class", "probability", "true"])
            for first in range(0, len(source), 64):
                batch = source.fetch(range(first, min(first + 64, len(source))))
                with torch.no_grad():
                    logs = self.predict(model, {name: value.to(device) for name, value in batch.items()}).cpu()
                for row, (probability, told) in enumerate(zip(*logs.exp().max(-1), strict=True)):
                    true = self.classes[int(batch["label"][row])]
                    rows.writerow([first + row, self.classes[int(told)], f"{float(probability):.6g}", true])
        return [file]


def _features(values: Any) -> Any:
    return np.concatenate([values.mean(axis=0), values.std(axis=0)])
