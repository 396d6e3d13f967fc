"""The wheels hold the package, all of it, and nothing else."""

from __future__ import annotations

import email
import zipfile
from pathlib import Path

import pytest
from scripts.workspace import ROOT, Distribution, distributions


@pytest.mark.parametrize("distribution", distributions(), ids=lambda d: d.name)
def test_wheel_holds_the_package(distribution: Distribution, wheels: dict[str, Path]) -> None:
    with zipfile.ZipFile(wheels[distribution.name]) as wheel:
        names = set(wheel.namelist())
        (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        info = metadata.rpartition("/")[0]
        fields = email.message_from_bytes(wheel.read(metadata))
        licence = wheel.read(f"{info}/licenses/LICENSE")
    package = {str(path.relative_to(distribution.folder / "src")) for path in package_files(distribution)}
    assert {name for name in names if not name.startswith(f"{info}/")} == package
    assert f"{distribution.package}/py.typed" in package
    assert fields["Name"] == distribution.name
    assert fields["License-Expression"] == "Apache-2.0"
    assert fields["Requires-Python"] == ">=3.11"
    assert licence == (ROOT / "LICENSE").read_bytes()


def package_files(distribution: Distribution) -> list[Path]:
    return [
        path
        for path in distribution.source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    ]


@pytest.mark.parametrize("distribution", distributions(), ids=lambda d: d.name)
def test_wheel_stays_small(distribution: Distribution, wheels: dict[str, Path]) -> None:
    # Embedded data are below 1 MB a plugin; more in a wheel is a file that slipped in.
    assert wheels[distribution.name].stat().st_size < 1.5e6


@pytest.mark.parametrize("distribution", distributions(), ids=lambda d: d.name)
def test_entry_points_name_what_exists(distribution: Distribution, wheels: dict[str, Path]) -> None:
    with zipfile.ZipFile(wheels[distribution.name]) as wheel:
        names = set(wheel.namelist())
    for reference in [*distribution.commands.values(), *distribution.plugins.values()]:
        module = reference.partition(":")[0].replace(".", "/")
        assert names & {f"{module}.py", f"{module}/__init__.py"}, reference
