"""Built wheels, and processes that cannot import what they should not need."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import pytest
from scripts.workspace import ROOT, distributions

# Distributions to be installed; what is broken in one of them is meant to be.
collect_ignore = ["broken_plugin", "outsider"]

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


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel of each distribution, built from a copy so that nothing is left in the tree."""
    folder = tmp_path_factory.mktemp("wheels")
    built = {}
    (folder / "source").mkdir()
    shutil.copy(ROOT / ".gitignore", folder / "source")  # hatchling leaves out what git ignores
    for distribution in distributions():
        copy = folder / "source" / distribution.folder.relative_to(ROOT)
        ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
        shutil.copytree(distribution.folder, copy, ignore=ignored)
        command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
        result = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        (built[distribution.name],) = folder.glob(f"{distribution.name.replace('-', '_')}-*.whl")
    return built


@pytest.fixture(scope="session")
def environment_with(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """A function that builds a distribution and installs it beside this environment's packages.

    It returns the folder of the new environment's commands.
    """

    @cache
    def install(distribution: Path) -> Path:
        folder = tmp_path_factory.mktemp(distribution.name)
        source, made = folder / "source", folder / "wheel"
        shutil.copytree(distribution, source, ignore=shutil.ignore_patterns("__pycache__"))
        build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(made)]
        subprocess.run(build, cwd=source, check=True, capture_output=True)
        (wheel,) = made.glob("*.whl")
        venv.create(folder / "venv", with_pip=False)
        (site,) = (folder / "venv").glob("lib/*/site-packages")
        # addsitedir follows the editable installations of this environment too.
        outer = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
        (site / "outer.pth").write_text(outer, encoding="utf-8")
        python = folder / "venv" / "bin" / "python"
        install = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(python),
            "install",
            "--no-deps",
            "--no-index",
            "--quiet",
        ]
        subprocess.run([*install, str(wheel)], check=True)
        return python.parent

    return install


@pytest.fixture
def outsider(
    environment_with: Callable[[Path], Path], tmp_path: Path
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A function that runs a command of the environment in which the outsider's plugin is installed."""
    commands = environment_with(Path(__file__).parent / "outsider")
    variables = {**os.environ, "NO_COLOR": "1", "COLUMNS": "160", "OMP_NUM_THREADS": "1"}

    def run(name: str, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(commands / name), *map(str, arguments)],
            cwd=tmp_path,
            env=variables,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        assert done.returncode == code, done.stderr
        return done

    return run


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table for the outsider's plugin, in which the sum of two columns decides the middle one."""
    path = tmp_path / "mine.csv"
    numbers = [((7 * i) % 11, (5 * i) % 13) for i in range(143)]
    lines = [f"{a},{'low' if a + b < 11 else 'high'},{b}" for a, b in numbers]
    path.write_text("\n".join(["a,level,b", *lines]) + "\n", encoding="utf-8")
    return path
