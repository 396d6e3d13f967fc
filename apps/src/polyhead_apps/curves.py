"""The picture of a run's training, from its ``log.jsonl``."""

from __future__ import annotations

import io
import json
from pathlib import Path

from polyhead.protocols import Picture

__all__ = ["loss_curve"]

MAX_POINTS = 1000


def loss_curve(log: Path, monitor: str) -> Picture | None:
    """Return training loss and the monitored metric over steps; None if the log has no two points.

    Args:
        log: the run's ``log.jsonl``, see `polyhead_apps.logs.RunLog`.
        monitor: the validation metric to draw.
    """
    from matplotlib.figure import Figure

    training: list[tuple[float, float]] = []
    validation: list[tuple[float, float]] = []
    if not log.is_file():
        return None
    with log.open(encoding="utf-8") as lines:
        for line in lines:
            entry = json.loads(line)
            if isinstance(entry.get("loss"), int | float):
                training.append((entry["step"], entry["loss"]))
            if isinstance(value := entry.get("validation", {}).get(monitor), int | float):
                validation.append((entry["step"], value))
    if len(training) < 2:
        return None
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    left = figure.subplots()
    left.plot(*zip(*_thin(training), strict=True), color="#4269d0", linewidth=1)
    left.set_xlabel("step")
    left.set_ylabel("training loss")
    caption = "Training loss"
    if validation:
        right = left.twinx()
        right.plot(*zip(*validation, strict=True), color="#d4652f", marker="o", markersize=3)
        right.set_ylabel(f"validation {monitor}")
        caption += f" (blue, left) and {monitor} on the validation split (orange, right)"
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return Picture("Training", f"{caption}, by optimiser step.", buffer.getvalue())


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Keep every n-th point, so that at most `MAX_POINTS` are drawn."""
    return points[:: -(-len(points) // MAX_POINTS)]
