"""What holds the house together: who imports whom, and that each distribution declares exactly what it imports."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from scripts.workspace import ROOT, Distribution, distributions, normalised, requirement_name

ALL = distributions()
PLUGINS = [distribution for distribution in ALL if distribution.folder.parent.name == "plugins"]
INDIRECT = {
    "onnx": "torch.onnx imports it",
    "onnxscript": "torch.onnx imports it",
    "tensorboard": "torch.utils.tensorboard imports it",
}
"""Dependencies that no line of ours imports, each with the reason."""


class Import(NamedTuple):
    package: str
    """Top-level name."""
    where: str
    lazy: bool
    """Inside a function, or for the type checker only."""


def imports(path: Path) -> Iterator[Import]:
    """Yield the absolute imports of a file."""
    yield from _walk(ast.parse(path.read_text(encoding="utf-8")), path, lazy=False)


def _walk(node: ast.AST, path: Path, lazy: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        inside = lazy or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            inside = True
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name.split(".")[0], f"{path.relative_to(ROOT)}:{child.lineno}", inside)
        elif isinstance(child, ast.ImportFrom) and child.level == 0 and child.module:
            yield Import(child.module.split(".")[0], f"{path.relative_to(ROOT)}:{child.lineno}", inside)
        yield from _walk(child, path, inside)


def foreign(distribution: Distribution) -> list[Import]:
    """Return a distribution's imports of other distributions."""
    own = {distribution.package, *sys.stdlib_module_names}
    files = sorted(distribution.source.rglob("*.py"))
    return [found for path in files for found in imports(path) if found.package not in own]


@functools.cache
def installed() -> Mapping[str, list[str]]:
    """Return the distributions of each top-level package; it reads every file list, which takes seconds."""
    return importlib.metadata.packages_distributions()


def owner(package: str) -> str:
    """Return the normalised name of the distribution that brings a top-level package."""
    ours = {distribution.package: distribution.name for distribution in ALL}
    if package in ours:
        return ours[package]
    owners = installed().get(package, [package])
    return normalised(owners[0])


@pytest.mark.parametrize("distribution", ALL, ids=lambda d: d.name)
def test_every_import_is_declared(distribution: Distribution) -> None:
    declared = {requirement_name(need) for need in distribution.dependencies}
    optional = {requirement_name(need) for needs in distribution.extras.values() for need in needs}
    undeclared = [
        f"{found.where} imports {found.package}"
        for found in foreign(distribution)
        if owner(found.package) not in (declared | optional if found.lazy else declared)
    ]
    assert not undeclared, f"{distribution.name} does not declare what it imports (extras count inside functions only)"


@pytest.mark.parametrize("distribution", ALL, ids=lambda d: d.name)
def test_every_dependency_is_imported(distribution: Distribution) -> None:
    imported = {owner(found.package) for found in foreign(distribution)}
    needs = [*distribution.dependencies, *(need for needs in distribution.extras.values() for need in needs)]
    unused = {requirement_name(need) for need in needs} - imported - set(INDIRECT)
    assert not unused, f"{distribution.name} declares what it does not import"


def test_core_depends_on_nothing_heavier_than_torch() -> None:
    core = next(distribution for distribution in ALL if distribution.name == "polyhead")
    assert {requirement_name(need) for need in core.dependencies} == {"numpy", "pluggy", "safetensors", "torch"}


@pytest.mark.parametrize("distribution", ALL, ids=lambda d: d.name)
def test_requirements_are_ranges(distribution: Distribution) -> None:
    needs = [*distribution.dependencies, *(need for needs in distribution.extras.values() for need in needs)]
    assert [need for need in needs if ">=" not in need or "==" in need.partition(";")[0] or "@" in need] == []


def test_import_contracts() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_import_contracts_know_every_distribution() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    packages = {distribution.package for distribution in ALL}
    assert set(contracts["root_packages"]) == packages
    forbidden = {
        tuple(c["forbidden_modules"]): set(c["source_modules"])
        for c in contracts["contracts"]
        if c["type"] == "forbidden"
    }
    others = packages - {"polyhead_kernels"}
    assert forbidden["polyhead_kernels",] == forbidden["triton",] == others


def test_set_up_knows_every_distribution() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["polyhead"]["setup"]
    listed = {item.partition("[")[0] for item in groups["test"]["distributions"]}
    assert listed >= {str(distribution.folder.relative_to(ROOT)) for distribution in ALL}
    assert groups["demo"]["distributions"] == ["core", "apps", "plugins/traffic"]


@pytest.mark.parametrize("distribution", PLUGINS, ids=lambda d: d.name)
def test_model_files_import_core_only(distribution: Distribution) -> None:
    from polyhead.plugins import plugins

    models = [model for plugin in plugins() if plugin.name in distribution.plugins for model in plugin.models]
    assert models
    for model in models:
        source = distribution.folder / "src" / Path(*model.target.partition(":")[0].split("."))
        path = source.with_suffix(".py") if source.with_suffix(".py").is_file() else source / "__init__.py"
        assert "polyhead_apps" not in {found.package for found in imports(path)}, path


@pytest.mark.parametrize("distribution", ALL, ids=lambda d: d.name)
def test_every_distribution_has_its_papers(distribution: Distribution) -> None:
    assert (distribution.folder / "README.md").read_text(encoding="utf-8").startswith(f"# {distribution.name}\n")
    assert (distribution.folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert (distribution.source / "py.typed").is_file()


def test_no_package_index_is_named() -> None:
    """People's pip is set up by them: no file of ours names an index or a registry's host."""
    names = ["index" + "-url", "files.pythonhosted" + ".org", "pypi" + ".org", "download.pytorch" + ".org"]
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    found = []
    for name in filter(None, tracked.stdout.split("\0")):
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".sh", ".yaml", ".cfg", ""} and path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            found += [f"{name}: {host}" for host in names if host in text]
    assert not found
