"""Wheels of core, apps and traffic in an environment that has their declared dependencies and nothing else."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from scripts.workspace import distributions, normalised

INSTALLED = ("polyhead", "polyhead-apps", "polyhead-traffic")
FOREIGN = (
    "torchvision",
    "timm",
    "torchaudio",
    "stable_baselines3",
    "gradio",
    "polyhead_kernels",
    "uxsim",
    "hypothesis",
)


def closure(requirements: Iterable[str]) -> set[str]:
    """Return the installed distributions that requirements bring, theirs included."""
    found: set[str] = set()
    seen: set[str] = set()
    queue = [Requirement(text) for text in requirements]
    while queue:
        need = queue.pop()
        if str(need) in seen or normalised(need.name) in INSTALLED:
            continue
        seen.add(str(need))
        found.add(normalised(need.name))
        for text in importlib.metadata.requires(need.name) or ():
            inner = Requirement(text)
            if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in ["", *need.extras]):
                queue.append(inner)
    return found


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory, wheels: dict[str, Path]) -> Path:
    """A new environment: the dependencies are links into this one, so that torch is not unpacked again."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(folder, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    chosen = [distribution for distribution in distributions() if distribution.name in INSTALLED]
    for name in closure(need for distribution in chosen for need in distribution.dependencies):
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(distribution.locate_file(top))))
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
    files = [str(wheels[name]) for name in INSTALLED]
    result = subprocess.run(
        [*pip, "install", "--quiet", "--no-index", "--no-deps", *files], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return folder


def run(environment: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        [str(environment / "bin" / command[0]), *command[1:]],
        env={**clean, "NO_COLOR": "1", "OMP_NUM_THREADS": "1", **variables},
        cwd=environment.parent,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def test_nothing_else_of_ours_is_installed(environment: Path) -> None:
    code = "import importlib.metadata as m; print(*(d.metadata['Name'] for d in m.distributions()))"
    names = run(environment, "python", "-c", code).stdout.split()
    assert sorted(name for name in names if name.startswith("polyhead")) == sorted(INSTALLED)


def test_dependencies_are_complete(environment: Path) -> None:
    command = [sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python"), "check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_other_domains_cannot_be_imported(environment: Path) -> None:
    code = f"import importlib.util as u; print(*(n for n in {FOREIGN!r} if u.find_spec(n)))"
    result = run(environment, "python", "-c", code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


def test_every_module_imports(environment: Path) -> None:
    packages = [distribution.package for distribution in distributions() if distribution.name in INSTALLED]
    code = f"""
import importlib, pkgutil
for package in {packages!r}:
    for found in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
"""
    result = run(environment, "python", "-W", "error", "-c", code, MPLBACKEND="Agg")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("command", ["traffic-forecast --help", "traffic-forecast datasets", "polyhead plugins"])
def test_commands_answer(environment: Path, command: str) -> None:
    result = run(environment, *command.split())
    assert result.returncode == 0, result.stderr
    assert "traffic" in result.stdout


def test_demo_runs_without_the_other_domains(environment: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = run(environment, "traffic-forecast", "demo", "--quick", "--out", str(out))
    assert result.returncode == 0, result.stderr
    assert (out / "report.html").is_file()
