"""What every test gets: shared data by fixture, and an environment that no person's shell leaks into."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest

# Before matplotlib, torch or triton are imported by any test: no display, no kernel cache outside the workspace.
os.environ["MPLBACKEND"] = "Agg"
ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("TRITON_CACHE_DIR", str(ROOT / "build" / "triton"))


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of public data and golden values, beside the repository or at ``POLYHEAD_SHARED``."""
    folder = Path(os.environ.get("POLYHEAD_SHARED") or ROOT.parent / "shared")
    if not folder.is_dir():
        pytest.skip("shared data not present: set POLYHEAD_SHARED to their folder")
    return folder


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drop settings of the caller's shell that change what Polyhead does."""
    for name in [name for name in os.environ if name.startswith("POLYHEAD_") and name != "POLYHEAD_SHARED"]:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Seed the global generators, so that a test which forgot its own generator repeats, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, by name, what this process or this machine cannot run."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    gpu = any(item.get_closest_marker("gpu") for item in items) and _has_gpu()
    for item in items:
        if item.get_closest_marker("interpret") and not interpreted:
            item.add_marker(pytest.mark.skip(reason="needs TRITON_INTERPRET=1 set before Python starts"))
        if item.get_closest_marker("gpu") and not gpu:
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
