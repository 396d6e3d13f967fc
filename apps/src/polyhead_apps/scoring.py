"""Measure a model and its baselines on a split: one table, one document."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from polyhead.protocols import Data, Direction, Split, Task
from polyhead_apps.config import TaskSettings
from polyhead_apps.console import Console

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Scores", "score"]

WIDE = 6
"""With more metrics than this, metrics are rows and models are columns."""


@dataclass(frozen=True)
class Scores:
    """The figures of a model and of the baselines on one split."""

    split: str
    model: str
    metrics: Mapping[str, float]
    baselines: Mapping[str, Mapping[str, float]]
    monitor: str
    """The metric that picked the checkpoint."""
    directions: Mapping[str, Direction]
    """What is better for each metric."""
    headline: Sequence[str] = ()
    """The metrics that the table shows, in this order; none: all. The document has all of them."""

    def table(self) -> tuple[list[str], list[list[Any]], list[tuple[int, int]]]:
        """Return columns, rows and the best cells."""
        models = {self.model: self.metrics, **self.baselines}
        names = [name for name in self.headline if name in self.metrics] or list(self.metrics)
        best = {name: self._best([figures.get(name) for figures in models.values()], name) for name in names}
        if len(names) <= WIDE:
            rows = [[model, *(figures.get(name) for name in names)] for model, figures in models.items()]
            cells = [(row, i + 1) for i, name in enumerate(names) for row in best[name]]
            return ["model", *names], rows, cells
        rows = [[name, *(figures.get(name) for figures in models.values())] for name in names]
        cells = [(i, column + 1) for i, name in enumerate(names) for column in best[name]]
        return ["metric", *models], rows, cells

    def document(self) -> dict[str, Any]:
        """Return the figures as JSON values; what is not finite becomes None."""
        return {
            "split": self.split,
            "model": self.model,
            "monitor": self.monitor,
            "directions": dict(self.directions),
            "headline": list(self.headline),
            "metrics": _finite(self.metrics),
            "baselines": {name: _finite(figures) for name, figures in self.baselines.items()},
        }

    def sentence(self) -> str:
        """Return how the model compares with the best baseline, by the metric that picked the checkpoint."""
        name = self.monitor if self.monitor in self.metrics else next(iter(self.metrics), "")
        if not name:
            return "There are no metrics."
        text = f"On the {self.split} split {self.model} has {name} {_short(self.metrics[name])}"
        figures = {model: values[name] for model, values in self.baselines.items() if name in values}
        best = self._best(list(figures.values()), name)
        if not best:
            return f"{text}."
        baseline = list(figures)[best[0]]
        return f"{text}; the best baseline, {baseline}, has {_short(figures[baseline])}."

    def print(self, console: Console, provenance: str, note: str = "") -> None:
        """Write the table to stdout, and under it the split and what the data are."""
        columns, rows, best = self.table()
        console.table(columns, rows, bold=best)
        console.result(" ".join(part for part in (f"{self.split} split.", provenance, note) if part))

    def _best(self, figures: Sequence[float | None], name: str) -> list[int]:
        known = [figure for figure in figures if figure is not None and math.isfinite(figure)]
        if not known:
            return []
        top = min(known) if self.directions[name] == "min" else max(known)
        return [i for i, figure in enumerate(figures) if figure == top]


def score(
    model: nn.Module,
    name: str,
    task: Task,
    data: Data,
    *,
    split: Split,
    settings: TaskSettings,
    device: torch.device,
    console: Console,
    baselines: bool = True,
) -> Scores:
    """Return the metrics of the model and, if asked, of every baseline on a split; the same in all processes.

    Which direction is better is the task's attribute ``directions`` (metric to "min" or "max") where it has one, and
    that of its monitor for every other metric. A task with many metrics names those of the table in ``headline``. With
    ``model_metric`` it measures more of the model than of the baselines.
    """
    from polyhead_apps import recipe

    source = data.source(split)
    options: dict[str, Any] = {
        "batch_size": settings.train.batch_size,
        "seed": settings.seed,
        "workers": settings.train.workers,
        "console": console,
    }

    own_metric = getattr(task, "model_metric", None)
    metrics = recipe.evaluate(
        recipe.predictor(model.to(device), task), task, source, metric=own_metric() if own_metric else None, **options
    )
    others = {
        baseline: recipe.evaluate(predictor, task, source, label=baseline, **options)
        for baseline, predictor in (task.baselines(data) if baselines else {}).items()
    }
    own: Mapping[str, Direction] = getattr(task, "directions", {})
    directions = {metric: own.get(metric, task.monitor.direction) for metric in metrics}
    headline = tuple(getattr(task, "headline", ()))
    return Scores(split, name, metrics, others, task.monitor.name, directions, headline)


def _finite(figures: Mapping[str, float]) -> dict[str, float | None]:
    return {name: float(figure) if math.isfinite(figure) else None for name, figure in figures.items()}


def _short(figure: float) -> str:
    return f"{figure:.4g}"
