"""A small plugin for the shell's tests, in this process and in others."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from polyhead import plugins

FAKES = Path(__file__).parent / "fakes"


class Said(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


@pytest.fixture
def fake_plugin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Register the plugin ``fake`` beside the installed ones, and work in an empty folder."""
    monkeypatch.syspath_prepend(str(FAKES))
    monkeypatch.chdir(tmp_path)
    import polyhead_fake.plugin

    plugins.reload()
    plugins.register(polyhead_fake.plugin)
    yield
    plugins.reload()


@pytest.fixture
def line_fit(fake_plugin: None, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run the command `line-fit` in this process: ``line_fit("fit", "--data", "toy-lines")``."""
    from polyhead_fake.app import app

    from polyhead_apps.shell import main

    def call(*arguments: object) -> Said:
        capsys.readouterr()
        code = main(app, [str(argument) for argument in arguments])
        return Said(code, *capsys.readouterr())

    return call


@pytest.fixture
def site(tmp_path: Path) -> Mapping[str, str]:
    """The environment of a process that has the plugin ``fake`` installed."""
    folder = tmp_path / "site"
    info = folder / "polyhead_fake-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: polyhead-fake\nVersion: 0.1\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[polyhead]\nfake = polyhead_fake.plugin\n", encoding="utf-8")
    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{FAKES}", "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


@pytest.fixture
def fresh(site: Mapping[str, str], tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run Python in a fresh process that has the plugin ``fake`` installed."""

    def call(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            env={**site, **variables},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    return call


@pytest.fixture
def points(tmp_path: Path) -> Path:
    """A file of 32 points."""
    path = tmp_path / "points.csv"
    rows = [f"{i / 32},{(i * 7 % 32) / 32},{i / 16 - (i * 7 % 32) / 32}" for i in range(32)]
    path.write_text("\n".join(["a,b,y", *rows]) + "\n", encoding="utf-8")
    return path
