"""Loss, prediction and metrics of classification."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyhead import load
from polyhead.errors import DataError
from polyhead.protocols import Batch, Data, Metric, Monitor, Picture, Predictor, Ratio
from polyhead_outsider.data import Table
from polyhead_outsider.settings import WriteSettings


class Scores:
    """Accuracy and log loss."""

    def __init__(self) -> None:
        """Begin with no rows."""
        self.sums = torch.zeros(3, dtype=torch.float64)

    def update(self, prediction: Tensor, batch: Batch) -> None:
        """Add probabilities (B, classes)."""
        y = batch["y"].to(prediction.device)
        right = (prediction.argmax(-1) == y).sum()
        surprise = -prediction.gather(-1, y[:, None]).clamp(min=1e-12).log().sum()
        self.sums += torch.stack([right, surprise, torch.tensor(len(y))]).double().cpu()

    def state(self) -> list[float]:
        """Return right answers, summed surprise and rows."""
        return self.sums.tolist()

    def merge(self, states: Sequence[list[float]]) -> None:
        """Add up the processes."""
        self.sums = torch.tensor(states, dtype=torch.float64).sum(0)

    def compute(self) -> Mapping[str, float]:
        """Return the shares."""
        right, surprise, count = self.sums.tolist()
        return {"accuracy": right / count, "log_loss": surprise / count}


class ClassifyTask:
    """Cross-entropy on the classes of a table."""

    monitor = Monitor("log_loss", "min")

    def __init__(self, columns: list[str], classes: list[str], mean: list[float], std: list[float]) -> None:
        """Keep what a saved model must find again in other data."""
        self.columns, self.classes, self.mean, self.std = columns, classes, mean, std

    @classmethod
    def prepare(cls, data: Data, settings: Any, *, seed: int) -> Self:
        """Take the columns' mean and deviation from the training rows."""
        table, x = _table(data), _table(data).source("train").x
        return cls(table.columns, table.classes, x.mean(0).tolist(), x.std(0).clamp(min=1e-6).tolist())

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Self:
        """Make the task of a saved model."""
        return cls(**state)

    def state(self) -> Mapping[str, Any]:
        """Return what ``restore`` needs."""
        return {"columns": self.columns, "classes": self.classes, "mean": self.mean, "std": self.std}

    def build_model(self, name: str, config: Mapping[str, Any]) -> nn.Module:
        """Build the model for the table's columns and classes."""
        model = load(name, columns=len(self.columns), classes=len(self.classes), **config)
        model.mean.copy_(torch.tensor(self.mean))  # type: ignore[operator]  # a buffer of the model
        model.std.copy_(torch.tensor(self.std))  # type: ignore[operator]
        return model

    def check(self, data: Data) -> None:
        """Refuse a table with other columns or classes."""
        table = _table(data)
        for what, mine, theirs in (("columns", self.columns, table.columns), ("classes", self.classes, table.classes)):
            if mine != theirs:
                raise DataError(f"{data.name} has the {what} {', '.join(theirs)}; the model has {', '.join(mine)}.")

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Ratio]:
        """Return the cross-entropy."""
        total = F.cross_entropy(model(batch["x"]), batch["y"], reduction="sum")
        return {"cross_entropy": Ratio(total, torch.tensor(float(len(batch["y"])), device=total.device))}

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return probabilities (B, classes)."""
        return model(batch["x"]).softmax(-1)

    def metric(self) -> Metric:
        """Return accuracy and log loss."""
        return Scores()

    def baselines(self, data: Data) -> Mapping[str, Predictor]:
        """Return the share of each class, and the classes of the 10 nearest training rows."""
        train = _table(data).source("train")
        answers = F.one_hot(train.y, len(self.classes)).float()
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)

        def neighbours(batch: Batch) -> Tensor:
            distances = torch.cdist((batch["x"].cpu() - mean) / std, (train.x - mean) / std)
            return answers[distances.topk(min(10, len(answers)), largest=False).indices].mean(1)

        return {
            "share of each class": lambda batch: answers.mean(0).expand(len(batch["y"]), -1),
            "10 nearest rows": neighbours,
        }

    def pictures(self, model: nn.Module, data: Data) -> Sequence[Picture]:
        """Draw which classes are taken for which."""
        from matplotlib.figure import Figure

        rows, size = _table(data).source("test"), len(self.classes)
        guesses = self._probabilities(model, rows.x).argmax(-1)
        counts = torch.bincount(rows.y * size + guesses, minlength=size**2).reshape(size, size)
        figure = Figure(figsize=(4, 4), layout="constrained")
        axes = figure.subplots()
        axes.imshow(counts.numpy(), cmap="Blues")
        for (row, column), count in zip(torch.cartesian_prod(*2 * [torch.arange(size)]), counts.flatten(), strict=True):
            axes.text(int(column), int(row), str(int(count)), ha="center", va="center")
        axes.set(xticks=range(size), yticks=range(size), xlabel="predicted", ylabel="true")
        axes.set_xticklabels(self.classes)
        axes.set_yticklabels(self.classes)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        return [Picture("Confusions", "Test rows by their class and the one predicted.", buffer.getvalue())]

    def write_predictions(self, model: nn.Module, data: Data, out: Path, settings: WriteSettings) -> Sequence[Path]:
        """Write a CSV file with the class and the probabilities of every row, in the table's order."""
        path = out / "classes.csv"
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["row", "class", *(f"p({name})" for name in self.classes)])
            for row, chances in enumerate(self._probabilities(model, _table(data).x).tolist(), start=1):
                best = self.classes[max(range(len(chances)), key=chances.__getitem__)]
                writer.writerow([row, best, *(f"{chance:.{settings.digits}f}" for chance in chances)])
        return [path]

    def _probabilities(self, model: nn.Module, x: Tensor) -> Tensor:
        where = next(model.parameters()).device
        with torch.no_grad():
            parts = [self.predict(model, {"x": part.to(where)}).cpu() for part in x.split(1024)]
        return torch.cat(parts)


def _table(data: Data) -> Table:
    if not isinstance(data, Table):
        raise DataError(f"{data.name} is no table.")
    return data
