"""A few made-up videos in a folder: features, and annotations in ActivityNet's JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Make a folder: ``folder(rows=40, **features_json)``; a raised channel is the action "wave" or "jump"."""

    def make(rows: int = 40, channels: int = 3, *, seconds: float = 20.0, meta: dict[str, Any] | None = None) -> Path:
        rng = np.random.default_rng(0)
        path = tmp_path / "videos"
        (path / "feats").mkdir(parents=True)
        database: dict[str, Any] = {}
        for number in range(14):
            subset = "training" if number < 9 else "validation"
            name = f"clip{number}"
            features = rng.normal(0, 0.3, (rows, channels)).astype(np.float32)
            start = int(rng.integers(0, max(1, rows // 2)))
            size = max(1, rows // 4)
            features[start : start + size, number % 2] += 3
            np.save(path / "feats" / f"{name}.npy", features)
            step = seconds / rows
            segment = [start * step, (start + size) * step]
            database[name] = {
                "subset": subset,
                "duration": seconds,
                "annotations": [{"label": ["wave", "jump"][number % 2], "segment": segment}],
            }
        (path / "annotations.json").write_text(json.dumps({"version": "1", "database": database}))
        if meta is not None:
            (path / "feats" / "features.json").write_text(json.dumps(meta))
        return path

    return make


@pytest.fixture
def change() -> Callable[[Path, Callable[[dict[str, Any]], None]], None]:
    """Change the annotations of such a folder."""

    def apply(path: Path, how: Callable[[dict[str, Any]], None]) -> None:
        file = path / "annotations.json"
        content = json.loads(file.read_text())
        how(content["database"])
        file.write_text(json.dumps(content))

    return apply
