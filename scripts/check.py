"""Run the checks of `make lint` and `make test`, one after the other, and say how long each took.

    .venv/bin/python -m scripts.check lint|test ... [--workers N]

All steps run even if one fails; the exit status is 1 then.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
TREES = ("core", "kernels", "apps", "plugins", "tests", "scripts", "benchmarks")
NO_TESTS = 5
"""pytest's exit status when nothing was collected."""


@dataclass(frozen=True)
class Step:
    """One command, run in the repository's root."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    passing: tuple[int, ...] = (0,)


def lint() -> list[Step]:
    """Return the steps that read the code without running it."""
    trees = [tree for tree in TREES if (ROOT / tree).is_dir()]
    return [
        Step("ruff check", [str(BIN / "ruff"), "check", *trees]),
        Step("ruff format", [str(BIN / "ruff"), "format", "--check", *trees]),
        Step("mypy", [str(BIN / "mypy"), *trees]),
        Step("import contracts", [str(BIN / "lint-imports"), "--no-logo"]),
    ]


def test(workers: int) -> list[Step]:
    """Return the steps that run the code: each app's quick demo, then the tests, whose summary ends the output."""
    # One thread a worker: two workers with two threads each would fight for two cores, and results must repeat.
    quiet = {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "HF_HUB_OFFLINE": "1"}
    pytest = [sys.executable, "-m", "pytest", "-q", "--timeout=600"]
    steps = [
        Step(
            f"{app} demo --quick",
            [str(BIN / app), "demo", "--quick", "-q", "--force", "--out", str(ROOT / "build" / "demo" / app)],
            {"MPLBACKEND": "Agg"},
        )
        for app in apps()
    ]
    files = (ROOT / "tests" / "kernels").rglob("test_*.py")
    if any("mark.interpret" in path.read_text(encoding="utf-8") for path in files):
        # Triton reads the switch when it is imported, so its interpreter needs a process of its own.
        command = [*pytest, "-m", "interpret and not slow", "tests/kernels", "-n", str(workers), "--dist", "loadfile"]
        steps.append(Step("tests, interpreter", command, {**quiet, "TRITON_INTERPRET": "1"}, (0, NO_TESTS)))
    kernels = [sys.executable, "-m", "polyhead", "kernels"]
    kept = {**quiet, "POLYHEAD_CACHE": str(ROOT / "build" / "cache")}
    steps += [
        Step("kernels, broken on purpose", [*kernels, "verify", "--self-test", "--changed"], kept),
        Step("kernels, compiled ahead of time", [*kernels, "compile", "--workers", str(workers)], kept),
    ]
    command = [*pytest, "-m", "not slow and not interpret and not gpu", "-n", str(workers), "--dist", "loadfile"]
    steps.append(Step("tests", [*command, "--durations=10", "--durations-min=5"], quiet))
    return steps


def apps() -> list[str]:
    """Return the commands of the installed plugins; one that does not load is an error here."""
    os.environ["POLYHEAD_STRICT_PLUGINS"] = "1"
    from polyhead.plugins import plugins

    return [app.name for plugin in plugins() for app in plugin.apps]


def run(steps: Sequence[Step], call: Callable[..., int] = subprocess.call) -> int:
    """Run the steps, print what each took, and return 1 if any failed."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("POLYHEAD_")}
    if shared := os.environ.get("POLYHEAD_SHARED"):
        clean["POLYHEAD_SHARED"] = shared
    lines, failed = [], False
    for step in steps:
        print(f"\n== {step.name}: {' '.join(step.command)}", flush=True)
        start = time.monotonic()
        code = call(step.command, cwd=ROOT, env={**clean, **step.environment}, stdin=subprocess.DEVNULL)
        passed = code in step.passing
        failed |= not passed
        result = "passed" if passed else f"FAILED, exit {code}"
        lines.append(f"   {step.name:<32} {time.monotonic() - start:7.1f} s  {result}")
    print("\n== all steps", *lines, sep="\n", flush=True)
    return int(failed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("groups", nargs="+", choices=["lint", "test"])
    parser.add_argument("--workers", type=int, default=min(os.cpu_count() or 1, 4), help="processes of the test run")
    options = parser.parse_args(arguments)
    steps = []
    for group in options.groups:
        steps += lint() if group == "lint" else test(options.workers)
    return run(steps)


if __name__ == "__main__":
    sys.exit(main())
