"""Recorded episodes, in memory and in files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from polyhead_agents.episodes import Episodes


@pytest.fixture
def episodes() -> Callable[..., Episodes]:
    """Make episodes: ``episodes(lengths=(3, 1, 5), discrete=True)``; rewards count up, so that returns are known."""

    def make(lengths: tuple[int, ...] = (3, 1, 5), *, discrete: bool = True, **fields: Any) -> Episodes:
        rng = np.random.default_rng(0)
        steps = sum(lengths)
        values: dict[str, Any] = {
            "observations": rng.normal(size=(steps, 4)).astype(np.float32),
            "actions": np.arange(steps) % 2 if discrete else rng.uniform(-1, 1, (steps, 1)).astype(np.float32),
            "rewards": np.arange(steps, dtype=np.float32),
            "lengths": np.asarray(lengths, dtype=np.int64),
            "name": "made-up",
            "act_dim": 2 if discrete else 1,
        }
        return Episodes(**{**values, **fields})

    return make


@pytest.fixture
def minari(tmp_path: Path) -> Callable[..., Path]:
    """Write a file as Minari does: ``minari(lengths=(30, 20), discrete=True, width=4)``."""

    def make(lengths: tuple[int, ...] = (30, 20, 25), *, discrete: bool = True, width: int = 4) -> Path:
        rng = np.random.default_rng(0)
        path = tmp_path / "main_data.hdf5"
        with h5py.File(path, "w") as file:
            for number, length in enumerate(lengths):
                group = file.create_group(f"episode_{number}")
                group["observations"] = rng.normal(size=(length + 1, width)).astype(np.float32)
                group["actions"] = rng.integers(2, size=length) if discrete else rng.uniform(-2, 2, (length, 1))
                group["rewards"] = np.ones(length)
                group["terminations"] = np.arange(length) == length - 1
                group["truncations"] = np.zeros(length, dtype=bool)
        return path

    return make
