"""Small files of displays and fixations without fault."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Write = Callable[..., Path]


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows under the columns of the first."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def grid_boxes(displays: int, rows: int = 3, columns: int = 4) -> list[dict[str, Any]]:
    return [
        {
            "display": f"d{display}",
            "object": f"o{row}{column}",
            "xmin": 100 * column + 10,
            "ymin": 100 * row + 10,
            "xmax": 100 * column + 90,
            "ymax": 100 * row + 90,
            "screen_width": 100 * columns,
            "screen_height": 100 * rows,
        }
        for display in range(displays)
        for row in range(rows)
        for column in range(columns)
    ]


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """Twelve displays of 3 × 4 objects, three viewers each: fixations.csv and boxes.csv."""
    random = np.random.default_rng(0)
    folder = tmp_path / "study"
    folder.mkdir()
    write_csv(folder / "boxes.csv", grid_boxes(12))
    rows = []
    for display in range(12):
        target = int(random.integers(12))
        for viewer in range(3):
            path = [*random.integers(0, 12, random.integers(1, 6)).tolist(), target]
            for order, index in enumerate(path, 1):
                x, y = 100 * (index % 4) + 50, 100 * (index // 4) + 50
                rows.append(
                    {
                        "trial": display * 3 + viewer,
                        "viewer": f"v{viewer}",
                        "order": order,
                        "x": x + int(random.integers(-30, 30)),
                        "y": y + int(random.integers(-30, 30)),
                        "duration": 200,
                        "display": f"d{display}",
                        "target": f"o{target // 4}{target % 4}",
                    }
                )
    write_csv(folder / "fixations.csv", rows)
    return folder


@pytest.fixture
def display_file(tmp_path: Path) -> Path:
    """A display to predict on: 2 × 3 objects."""
    boxes = [[100 * c + 10, 100 * r + 10, 100 * c + 90, 100 * r + 90] for r in range(2) for c in range(3)]
    path = tmp_path / "display.json"
    path.write_text(json.dumps({"boxes": boxes, "ids": list("abcdef"), "size": [300, 200], "target": "e"}))
    return path
