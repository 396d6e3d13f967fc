from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from polyhead.errors import DataError
from polyhead.protocols import Batch, Data, Monitor, Picture, Predictor, Ratio


class Errors:
    def __init__(self) -> None:
        self.sums = torch.zeros(3, dtype=torch.float64)

    def update(self, prediction: Tensor, batch: Batch) -> None:
        error = (prediction - batch["y"]).double()
        self.sums += torch.stack([error.abs().sum(), error.square().sum(), torch.tensor(float(len(error)))])

    def state(self) -> Tensor:
        return self.sums

    def merge(self, states: Sequence[Tensor]) -> None:
        self.sums = torch.stack(list(states)).sum(0)

    def compute(self) -> Mapping[str, float]:
        total, square, count = self.sums.tolist()
        return {"mae": total / count, "rmse": (square / count) ** 0.5}


class LineTask:
    monitor = Monitor("mae", "min")

    def __init__(self, mean: float, width: int) -> None:
        self.mean, self.width = mean, width

    @classmethod
    def prepare(cls, data: Data, settings: Any, *, seed: int) -> Self:
        source = data.source("train")
        return cls(float(source.y.mean()), source.x.shape[1])  # type: ignore[attr-defined]

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Self:
        return cls(state["mean"], state["width"])

    def state(self) -> Mapping[str, Any]:
        return {"mean": self.mean, "width": self.width}

    def build_model(self, name: str, config: Mapping[str, Any]) -> nn.Module:
        from polyhead import load

        return load(name, width=self.width, **config)

    def check(self, data: Data) -> None:
        width = data.source("test").x.shape[1]  # type: ignore[attr-defined]
        if width != self.width:
            raise DataError(f"{data.name} has {width} columns, the model was fitted on {self.width}.")

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Ratio]:
        error = (model(batch["x"]) - batch["y"]).square()
        return {"mse": Ratio(error.sum(), torch.tensor(float(error.numel())))}

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch["x"])

    def metric(self) -> Errors:
        return Errors()

    def baselines(self, data: Data) -> Mapping[str, Predictor]:
        return {
            "mean": lambda batch: torch.full_like(batch["y"], self.mean),
            "first column": lambda batch: batch["x"][:, 0],
        }

    def pictures(self, model: nn.Module, data: Data) -> Sequence[Picture]:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4, 3))
        figure.subplots().plot([0, 1], [0, 1])
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        return [Picture("Line <fit>", 'A line & its "points".', buffer.getvalue())]

    def write_predictions(self, model: nn.Module, data: Data, out: Path, settings: Any) -> Sequence[Path]:
        source = data.source("test")
        batch = source.fetch(range(len(source)), seed=0, epoch=0)  # type: ignore[arg-type]
        with torch.no_grad():
            values = model(batch["x"]).tolist()
        files = []
        for part in range(settings.parts):
            files.append(out / f"part-{part}.csv")
            lines = [f"{value:.{settings.digits}f}" for value in values[part :: settings.parts]]
            files[-1].write_text("\n".join(["y", *lines]) + "\n", encoding="utf-8")
        return files


class SignTask(LineTask):
    """The same under another name."""
