"""Processes that cannot import what they should not need."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

_BLOCKER = """
import os, sys

class Blocker:
    names = frozenset({names!r})

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] in self.names:
            with open({log!r}, "a", encoding="utf-8") as log:
                log.write(fullname + "\\n")
            raise ModuleNotFoundError(f"No module named {{fullname!r}}", name=fullname)

sys.meta_path.insert(0, Blocker())
"""


class Blocked:
    """An environment for subprocesses in which some modules cannot be imported."""

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        folder.mkdir()
        self._log = folder / "log"
        text = _BLOCKER.format(names=sorted(names), log=str(self._log))
        (folder / "sitecustomize.py").write_text(text, encoding="utf-8")
        self.environment = {**os.environ, "PYTHONPATH": str(folder), "NO_COLOR": "1", "COLUMNS": "120"}

    @property
    def tried(self) -> list[str]:
        """The blocked modules that a process asked for, whether or not it went on without them."""
        return self._log.read_text(encoding="utf-8").split() if self._log.exists() else []


@pytest.fixture
def without(tmp_path: Path) -> Callable[..., Blocked]:
    """A function that blocks the modules named to it."""
    return lambda *names: Blocked(tmp_path / "blocked", names)
