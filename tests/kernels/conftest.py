"""What tests of the Triton kernels share: a small module of programs, and results kept apart from the user's."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def scaling(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module with two small programs, which other processes find as well."""
    pytest.importorskip("triton", reason="triton is not installed")
    folder = str(Path(__file__).with_name("fakes"))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", folder)
    yield importlib.import_module("polyhead_fake_scaling")
    sys.modules.pop("polyhead_fake_scaling", None)


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POLYHEAD_CACHE", str(tmp_path / "cache"))
