"""Make or complete the workspace's environment; `make demo` and `make test` start with it.

    python3 scripts/setup.py demo|test [--venv .venv]

Needs Python's standard library and nothing else. The groups stand in the root's pyproject.toml under
`tool.polyhead.setup`. A stamp in the environment holds a digest of every pyproject.toml that was installed from, so a
second run installs nothing. A torch that is already there stays: who wants a CPU-only one installs it first.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OLDEST = (3, 11)
STAMP = "polyhead-setup.json"
# GB in the environment and GB to download, rounded up from what was measured on Linux x86-64 with Python 3.11: PyPI's
# torch for it brings CUDA's libraries (6.2 GB in all), a CPU-only one does not (1.6 GB; 0.7 GB of it besides torch).
CUDA, PLAIN, REST = (6.5, 3.0), (2.0, 0.5), (1.0, 0.3)
_PROBE = """
import importlib.metadata, json, sys
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
print(json.dumps({"python": list(sys.version_info[:2]), "pip": version("pip"), "torch": version("torch")}))
"""


class SetupError(Exception):
    """What is wrong and how to mend it, for a person."""


def check_python(version: Sequence[int] = sys.version_info[:2]) -> None:
    """Refuse a Python that is too old, naming the way to choose another."""
    if tuple(version[:2]) < OLDEST:
        raise SetupError(
            f"Python {version[0]}.{version[1]} is too old: Polyhead needs {OLDEST[0]}.{OLDEST[1]} or newer. "
            "Choose one with PYTHON, such as: make demo PYTHON=python3.12"
        )


def wanted(root: Path, group: str) -> dict[str, str]:
    """Return what a group installs, each with the digest of the file that declares it.

    A distribution with extras is listed without them as well: having more than asked for is enough.
    """
    import tomllib

    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    groups = settings["tool"]["polyhead"]["setup"]
    if group not in groups:
        raise SetupError(f'No group "{group}" in pyproject.toml, tool.polyhead.setup. Groups: {", ".join(groups)}')
    items = {}
    for item in groups[group]["distributions"]:
        folder = item.partition("[")[0]
        digest = hashlib.sha256((root / folder / "pyproject.toml").read_bytes()).hexdigest()
        items[folder] = items[item] = digest
    for name in groups[group]["dependency-groups"]:
        declared = json.dumps(settings["dependency-groups"][name])
        items[f"group:{name}"] = hashlib.sha256(declared.encode()).hexdigest()
    return items


def missing(items: dict[str, str], stamp: Path, root: Path) -> list[str]:
    """Return the items that the environment lacks or has of another state of the workspace.

    Installations are editable, so they hold the workspace's path: a copied or moved one starts afresh.
    """
    try:
        done = json.loads(stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return list(items)
    if done.get("root") != str(root):
        return list(items)
    return [item for item, digest in items.items() if done["items"].get(item) != digest]


def write_stamp(items: dict[str, str], stamp: Path, root: Path) -> None:
    """Add what was installed to the stamp; a stamp of another workspace is replaced."""
    try:
        done = json.loads(stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        done = {}
    kept = done["items"] if done.get("root") == str(root) else {}
    text = json.dumps({"root": str(root), "items": kept | items}, indent=1)
    beside = stamp.with_suffix(".tmp")
    beside.write_text(text, encoding="utf-8")
    beside.replace(stamp)


def probe(python: Path) -> dict:
    """Return the versions of Python, pip and torch in an environment; pip and torch may be None."""
    try:
        run = subprocess.run([python, "-c", _PROBE], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        folder = python.parents[1]
        raise SetupError(f"{python} does not start. Remove the environment and try again: rm -r {folder}") from error
    return json.loads(run.stdout)


def make_venv(folder: Path) -> None:
    """Make an environment, or say which module of Python's is missing; Debian packages venv apart."""
    try:
        import ensurepip  # noqa: F401  # Debian's Python has venv without it, and then fails half-way
        import venv
    except ImportError as error:
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        raise SetupError(
            f"This Python has no module {error.name}. On Debian and Ubuntu: apt-get install python{version}-venv"
        ) from error
    say(f"making the environment {folder}")
    try:
        venv.create(folder, with_pip=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SetupError(f"{folder}: cannot make an environment there: {error}") from error


def check_disk(folder: Path, need_gb: float, free_gb: float | None = None) -> None:
    """Refuse to start what the disk cannot hold."""
    free_gb = shutil.disk_usage(folder).free / 1e9 if free_gb is None else free_gb
    if free_gb < need_gb:
        raise SetupError(
            f"{folder} has {free_gb:.1f} GB free; installing needs {need_gb:.1f} GB. "
            "Free some, choose another disk with VENV=/path, or install a CPU-only torch first (docs/install.md)."
        )


def announce(state: dict, system: str = sys.platform, machine: str = "") -> float:
    """Say what the installation takes and return the disk space in GB, the downloads' included."""
    machine = machine or platform.machine()
    if state["torch"]:
        (disk, download), what = REST, f"torch {state['torch']} is there and stays; the rest"
        minutes = "a minute"
    elif system == "linux" and machine in ("x86_64", "AMD64"):
        (disk, download), what = CUDA, "torch comes with CUDA (docs/install.md says how to do without); installing"
        minutes = "two minutes"
    else:
        (disk, download), what = PLAIN, "installing"
        minutes = "two minutes"
    say(f"{what} takes about {disk} GB of disk, a download of up to {download} GB and {minutes} besides it")
    return disk + download


def install(python: Path, root: Path, items: list[str], pip_version: str | None) -> None:
    """Install distributions, editable, and dependency groups in one call, so that they find each other."""
    quiet = [] if sys.stdout.isatty() else ["--quiet"]
    pip = [str(python), "-m", "pip"]
    common = ["--disable-pip-version-check", "--no-input", *quiet]
    if pip_version is None:
        call([str(python), "-m", "ensurepip", "--upgrade"], root)
    groups = [item.removeprefix("group:") for item in items if item.startswith("group:")]
    if groups and (pip_version is None or tuple(int(part) for part in pip_version.split(".")[:2]) < (25, 1)):
        # pip before 25.1 has no --group.
        call([*pip, "install", *common, "--upgrade", "pip>=25.1"], root)
    arguments = []
    for item in items:
        if not item.startswith("group:") and not any(other.startswith(f"{item}[") for other in items):
            arguments += ["--editable", f"./{item}"]
    for group in groups:
        arguments += ["--group", group]
    call([*pip, "install", *common, *arguments], root)


def call(command: list[str], root: Path) -> None:
    """Run a command, and say which one failed."""
    code = subprocess.run(command, cwd=root, check=False).returncode
    if code:
        raise SetupError(f"This command failed, exit {code}; read its message above:\n  {' '.join(command)}")


def say(text: str) -> None:
    """Print a line for a person; stdout is left to the command that follows."""
    print(f"setup: {text}", file=sys.stderr, flush=True)


def set_up(group: str, folder: Path, root: Path = ROOT) -> bool:
    """Bring an environment to a group's state; return whether anything was installed."""
    check_python()
    items = wanted(root, group)
    stamp = folder / STAMP
    python = folder / "bin" / "python"
    absent = missing(items, stamp, root) if python.exists() else list(items)
    if not absent:
        return False
    start = time.monotonic()
    if not python.exists():
        make_venv(folder)
    state = probe(python)
    check_python(state["python"])
    check_disk(folder, announce(state))
    install(python, root, list(items), state["pip"])
    write_stamp(items, stamp, root)
    say(f"{folder} is ready for `{group}` after {time.monotonic() - start:.0f} s")
    return True


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("group", help="which part of the workspace: demo, test")
    parser.add_argument("--venv", type=Path, default=Path(".venv"), help="folder of the environment")
    options = parser.parse_args(arguments)
    try:
        set_up(options.group, (ROOT / options.venv).absolute())
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
