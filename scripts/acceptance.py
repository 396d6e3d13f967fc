"""Run what is too long for every day, step by step, and go on where it stopped.

    .venv/bin/python -m scripts.acceptance [--app NAME] [--list] [--again]

Steps are each app's full demo, the scripts in acceptance/APP/ (each prints one JSON document and exits 0 if what it
claims holds), and each file of tests with the marker `slow`. A step that passed leaves a JSON file in
build/acceptance/ with a digest of the source it depends on; it is skipped until that source changes. Documents of demos
and claims are copied to docs/results/, from where the docs quote them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.machine import machine, versions
from scripts.workspace import ROOT, distributions

BUILD = ROOT / "build" / "acceptance"
RESULTS = ROOT / "docs" / "results"
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Step:
    """One command, run in the repository's root."""

    name: str
    """Such as "traffic-forecast/demo"; its file in build/acceptance/ is named after it."""
    command: tuple[str, ...]
    sources: tuple[Path, ...]
    """Files and folders: a change in one makes the step run again."""
    document: bool = False
    """True if its stdout is one JSON document."""
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def slug(self) -> str:
        """The name as a file name."""
        return re.sub(r"[^A-Za-z0-9_.-]+", "-", self.name)

    def digest(self) -> str:
        """Return a digest of the names and contents of all sources."""
        digest = hashlib.sha256(json.dumps(self.command).encode())
        for path in sorted(_files(self.sources)):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(ROOT)} {content}\n".encode())
        return digest.hexdigest()


def _files(sources: Sequence[Path]) -> Iterator[Path]:
    for source in sources:
        if source.is_dir():
            yield from (p for p in source.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
        else:
            yield source


def steps(app: str | None = None) -> list[Step]:
    """Return all steps, or those of one app."""
    os.environ["POLYHEAD_STRICT_PLUGINS"] = "1"
    from polyhead.plugins import find_app, plugins

    if app is not None:
        find_app(app)  # refuses an unknown name with the nearest one
    found = []
    for plugin in plugins():
        folders = [d.folder for d in distributions() if plugin.name in d.plugins]
        sources = _sources(ROOT / "core", ROOT / "kernels", ROOT / "apps", *folders)
        chosen = [spec for spec in plugin.apps if app in (None, spec.name)]
        for spec in chosen:
            out = BUILD / spec.name / "demo"
            demo = (str(BIN / spec.name), "demo", "--json", "--force", "--out", str(out))
            found.append(Step(f"{spec.name}/demo", demo, sources, document=True))
            for script in sorted((ROOT / "acceptance" / spec.name).glob("*.py")):
                claim = (sys.executable, str(script.relative_to(ROOT)))
                found.append(Step(f"{spec.name}/{script.stem}", claim, (*sources, script), document=True))
        if app is not None and chosen:
            found += _slow_tests([str(folder.relative_to(ROOT)) for folder in folders])
    return found if app is not None else [*found, *_kernels(), *_slow_tests(None)]


def _kernels() -> list[Step]:
    """Return the steps of the operators: every kernel on every case, broken on purpose, compiled in every way."""
    sources = _sources(ROOT / "core", ROOT / "kernels")
    environment = {"POLYHEAD_CACHE": str(ROOT / "build" / "cache")}
    found = []
    for name, arguments in (
        ("verify", ("verify",)),
        ("self-test", ("verify", "--self-test")),
        ("compile", ("compile", "--all")),
    ):
        command = (sys.executable, "-m", "polyhead", "kernels", *arguments, "--json")
        found.append(Step(f"kernels/{name}", command, sources, document=True, environment=environment))
    return found


def _sources(*folders: Path) -> tuple[Path, ...]:
    return tuple(path for folder in folders for path in (folder / "src", folder / "pyproject.toml"))


def _slow_tests(folders: list[str] | None) -> list[Step]:
    """Return a step for each file with slow tests; those for Triton's interpreter apart."""
    sources = _sources(*(distribution.folder for distribution in distributions()))
    trees = ["tests"] if folders is None else [f"tests/{name}" for name in folders if (ROOT / "tests" / name).is_dir()]
    found = []
    for kind, marker, environment in (
        ("", "slow and not interpret and not gpu", {}),
        (" (interpreter)", "slow and interpret", {"TRITON_INTERPRET": "1"}),
    ):
        for path in _collect(trees, marker, environment):
            command = (sys.executable, "-m", "pytest", "-q", "-m", marker, path)
            own = (*sources, ROOT / path, ROOT / "tests" / "conftest.py")
            found.append(Step(path + kind, command, own, environment=environment))
    return found


def _collect(trees: list[str], marker: str, environment: dict[str, str]) -> list[str]:
    """Return the test files that have tests with a marker."""
    if not trees:
        return []
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", marker, *trees]
    result = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    if result.returncode not in (0, 5):  # 5: none found
        raise SystemExit(f"The slow tests cannot be collected: {' '.join(command)}\n{result.stdout[-2000:]}")
    names = [line.partition("::")[0] for line in result.stdout.splitlines() if "::" in line]
    return list(dict.fromkeys(names))


def run(step: Step) -> dict[str, Any]:
    """Run a step and return its record."""
    environment = {**os.environ, "MPLBACKEND": "Agg", **step.environment}
    digest = step.digest()
    start = time.monotonic()
    # Messages go to the screen as they come; a document is kept, other output goes to the screen too.
    result = subprocess.run(
        step.command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if step.document else None,
        text=True,
        check=False,
    )
    status, document = result.returncode, None
    if step.document:
        try:
            document = json.loads(result.stdout)
        except ValueError:
            print(f"   its output is no JSON document: {result.stdout[-500:]!r}")
            status = status or 1
    return {
        "step": step.name,
        "command": " ".join(step.command).replace(f"{BIN}/", "").replace(f"{ROOT}/", ""),
        "digest": digest,
        "exit": status,
        "seconds": round(time.monotonic() - start, 1),
        "machine": machine(),
        "versions": versions(),
        "result": document,
    }


def done(step: Step) -> dict[str, Any] | None:
    """Return the record of a step that passed with the present source, or None."""
    try:
        record = json.loads((BUILD / f"{step.slug}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if record["exit"] == 0 and record["digest"] == step.digest() else None


def save(step: Step, record: dict[str, Any]) -> None:
    """Write a record, and where the docs find it if it passed and has a document."""
    BUILD.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=2) + "\n"
    beside = BUILD / f"{step.slug}.tmp"
    beside.write_text(text, encoding="utf-8")
    beside.replace(BUILD / f"{step.slug}.json")
    if record["exit"] == 0 and step.document:
        RESULTS.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(BUILD / f"{step.slug}.json", RESULTS / f"{step.slug}.json")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--app", help="one app only: its demo, its claims, its plugin's slow tests")
    parser.add_argument("--list", action="store_true", help="say what there is and what is done, run nothing")
    parser.add_argument("--again", action="store_true", help="run what has passed as well")
    options = parser.parse_args(arguments)
    from polyhead.errors import UnknownNameError

    try:
        todo = steps(options.app)
    except UnknownNameError as error:
        print(error, file=sys.stderr)
        return 1
    failed = []
    for step in todo:
        record = None if options.again else done(step)
        if record is not None:
            print(f"== {step.name}: passed before, {record['seconds']} s")
            continue
        if options.list:
            print(f"== {step.name}: to do: {' '.join(step.command)}")
            continue
        print(f"== {step.name}: {' '.join(step.command)}", flush=True)
        record = run(step)
        save(step, record)
        print(f"   {'passed' if record['exit'] == 0 else 'FAILED'} after {record['seconds']} s", flush=True)
        if record["exit"]:
            failed.append(step.name)
    if not options.list:
        print(f"== {len(todo) - len(failed)} of {len(todo)} steps passed; records in {BUILD.relative_to(ROOT)}/")
    for name in failed:
        print(f"   FAILED: {name}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
