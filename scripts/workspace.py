"""The distributions of the workspace, read from their pyproject.toml files."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ROOT", "Distribution", "distributions", "normalised", "requirement_name"]

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Distribution:
    """One folder with a pyproject.toml, a README.md and a package in src/."""

    folder: Path
    name: str
    package: str
    dependencies: tuple[str, ...]
    """Requirements as declared, such as "torch>=2.10"."""
    extras: dict[str, tuple[str, ...]]
    commands: dict[str, str]
    """Console scripts: command and "module:function"."""
    plugins: dict[str, str]
    """Entry points of group polyhead: name and module."""

    @property
    def source(self) -> Path:
        """The folder of the package."""
        return self.folder / "src" / self.package


def distributions(root: Path = ROOT) -> list[Distribution]:
    """Return all distributions of the workspace, core first, plugins last."""
    folders = [root / "core", root / "kernels", root / "apps", *sorted((root / "plugins").iterdir())]
    return [_read(folder) for folder in folders if (folder / "pyproject.toml").is_file()]


def _read(folder: Path) -> Distribution:
    settings = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    project = settings["project"]
    (package,) = settings["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    return Distribution(
        folder=folder,
        name=project["name"],
        package=Path(package).name,
        dependencies=tuple(project["dependencies"]),
        extras={name: tuple(needs) for name, needs in project.get("optional-dependencies", {}).items()},
        commands=dict(project.get("scripts", {})),
        plugins=dict(project.get("entry-points", {}).get("polyhead", {})),
    )


def requirement_name(requirement: str) -> str:
    """Return the normalised name of a requirement.

    >>> requirement_name("PyYAML>=6.0; sys_platform == 'linux'")
    'pyyaml'
    """
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    if match is None:
        raise ValueError(f'"{requirement}" does not start with a name')
    return normalised(match[0])


def normalised(name: str) -> str:
    """Return a distribution's name as package indexes compare it.

    >>> normalised("Torch_Geometric")
    'torch-geometric'
    """
    return re.sub(r"[-_.]+", "-", name).lower()
