"""A small synthetic sensor network, in memory and in a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyhead_traffic.data import SensorData, SensorGraph


@pytest.fixture
def network() -> Callable[..., SensorData]:
    """Make a ring of sensors with a daily course: ``network(days=3, sensors=4, step_s=3600, **fields)``."""

    def make(
        days: float = 3, sensors: int = 4, step_s: int = 3600, missing: float = 0.0, seed: int = 0, **fields: Any
    ) -> SensorData:
        rng = np.random.default_rng(seed)
        rows = int(days * 86400 / step_s)
        hour = np.arange(rows) * step_s / 3600 % 24
        course = 50 + 10 * np.cos(2 * np.pi * hour / 24)[:, None] + np.arange(sensors)
        readings = course + rng.normal(0, 1, (rows, sensors))
        readings[rng.random((rows, sensors)) < missing] = np.nan
        edges = np.stack([np.arange(sensors), (np.arange(sensors) + 1) % sensors])
        start = np.datetime64("2024-01-01T00:00:00")  # a Monday
        defaults: dict[str, Any] = {
            "name": "ring",
            "origin": "A ring of made-up sensors.",
            "unit": "km/h",
            "graph": SensorGraph(edges, np.ones(sensors)),
            "history": 4,
            "horizon": 3,
        }
        return SensorData.from_readings(
            readings,
            start + np.arange(rows) * np.timedelta64(step_s, "s"),
            step_s=step_s,
            ids=tuple(f"s{i}" for i in range(sensors)),
            **(defaults | fields),
        )

    return make


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A file of readings without fault: two days, hourly, of the sensors a, b and c."""
    lines = ["timestamp,a,b,c"]
    for row in range(48):
        when = np.datetime64("2024-03-01T00:00") + np.timedelta64(row, "h")
        lines.append(",".join([str(when).replace("T", " "), *(str(10 + (row + column) % 7) for column in range(3))]))
    path = tmp_path / "sensors.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
