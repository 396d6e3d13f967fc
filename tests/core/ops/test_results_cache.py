"""Results kept by a digest of the source."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from polyhead.ops.commands.cache import folder, load, source_digest, store


def test_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert folder() == tmp_path / "polyhead"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert folder() == Path.home() / ".cache" / "polyhead"
    monkeypatch.setenv("POLYHEAD_CACHE", str(tmp_path / "mine"))
    assert folder() == tmp_path / "mine"


def test_what_is_stored_is_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POLYHEAD_CACHE", str(tmp_path))
    assert load("verify", "abc") is None
    store("verify", "abc", {"cases": 3})
    assert load("verify", "abc") == {"cases": 3}
    (tmp_path / "verify" / "abc.json").write_text("{", encoding="utf-8")
    assert load("verify", "abc") is None


def test_a_folder_that_cannot_be_written_keeps_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("POLYHEAD_CACHE", str(tmp_path / "file"))
    store("verify", "abc", {})
    assert load("verify", "abc") is None


def test_a_digest_follows_imports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "digested"
    package.mkdir()
    sources = {
        "__init__": "",
        "kernel": "import os\nfrom digested import shared\n",
        "shared": "def f():\n    from digested.deep import g\n",
        "deep": "g = 1\n",
        "other": "from digested import kernel\n",
    }
    for name, text in sources.items():
        (package / f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))

    def digest(*facts: str, without: tuple[str, ...] = ()) -> str | None:
        return source_digest(["digested.kernel"], facts, without)

    first = digest()
    assert digest() == first
    assert digest("torch 3") != first
    (package / "other.py").write_text("changed = 1\n", encoding="utf-8")
    assert digest() == first
    (package / "deep.py").write_text("g = 2\n", encoding="utf-8")
    assert digest() != first
    left_out = digest(without=("digested.deep",))
    (package / "deep.py").write_text("g = 3\n", encoding="utf-8")
    assert digest(without=("digested.deep",)) == left_out


def test_a_module_without_source_has_no_digest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "made_by_hand", types.ModuleType("made_by_hand"))
    monkeypatch.setenv("POLYHEAD_CACHE", str(tmp_path))
    assert source_digest(["made_by_hand"], []) is None
    store("verify", None, {})
    assert load("verify", None) is None
    assert not list(tmp_path.iterdir())
