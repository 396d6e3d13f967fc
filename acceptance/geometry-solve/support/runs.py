"""Fit runs for claims: each is made once, goes on where it was stopped, and is used again until the source changes."""

from __future__ import annotations

import hashlib
import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[3]
BUILD = ROOT / "build" / "acceptance" / "geometry-solve"
COMMAND = Path(sys.executable).with_name("geometry-solve")
SOURCES = ("core/src", "apps/src", "plugins/combinatorics/src")
SEEDS = (0, 1, 2)


class Fit(NamedTuple):
    """A finished run."""

    folder: Path
    document: Mapping[str, Any]
    """What ``metrics.json`` holds."""
    cpu_s: float
    """Processor seconds of all its processes, interrupted ones included."""


def fit(name: str, task: str, *options: str, seed: int) -> Fit:
    """Return the run ``name`` with a seed, fitted by the command on one thread unless that was done before.

    Raises:
        SystemExit: the command failed; its message is on the screen.
    """
    arguments = ["--data", f"uniform-{task}", *options, "--seed", str(seed)]
    folder = BUILD / f"{name}-seed-{seed}-{_digest(arguments)[:12]}"
    spent, metrics = folder.with_suffix(".cpu.json"), folder / "metrics.json"
    while not metrics.is_file():
        begun = (folder / "config.yaml").is_file()
        what = ["--resume"] if begun else [*arguments, "--force"]
        command = [str(COMMAND), "fit", "--task", task, *what, "--threads", "1", "--out", str(folder)]
        print(f"{name}, seed {seed}: {'goes on' if begun else 'is fitted'} in {folder}", file=sys.stderr, flush=True)
        before = _children_cpu_s()
        try:
            status = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False
            ).returncode
        finally:
            folder.parent.mkdir(parents=True, exist_ok=True)
            spent.write_text(json.dumps(_spent(spent) + _children_cpu_s() - before), encoding="utf-8")
        if status:
            raise SystemExit(f"{name}, seed {seed}: the command failed: {' '.join(command)}")
    return Fit(folder, json.loads(metrics.read_text(encoding="utf-8")), _spent(spent))


def options(settings: Mapping[str, Any]) -> list[str]:
    """Return dotted settings as options of the command."""
    return [part for key, value in settings.items() for part in ("--set", f"{key}={json.dumps(value)}")]


def figures(fits: Sequence[Fit], names: Sequence[str]) -> dict[str, Any]:
    """Return metrics of several seeds: mean, spread and each; None where a seed has none, as of an area that fails."""
    found = {}
    for name in names:
        values = [run.document["metrics"].get(name) for run in fits]
        known = [value for value in values if value is not None]
        whole = len(known) == len(values)
        found[name] = {
            "mean": statistics.fmean(known) if whole else None,
            "standard_deviation": statistics.stdev(known) if whole and len(known) > 1 else None,
            "seeds": values,
        }
    return found


def cost(fits: Sequence[Fit]) -> dict[str, list[float]]:
    """Return steps and processor seconds of the runs."""
    return {"steps": [run.document["steps"] for run in fits], "cpu_s": [round(run.cpu_s) for run in fits]}


def claim(
    text: str, value: float | None, *, at_most: float | None = None, at_least: float | None = None
) -> dict[str, Any]:
    """Return one claim with its figures; one without a figure does not hold."""
    holds = value is not None and (at_most is None or value <= at_most) and (at_least is None or value >= at_least)
    bounds = {name: bound for name, bound in (("at_most", at_most), ("at_least", at_least)) if bound is not None}
    return {"claim": text, "value": value, **bounds, "holds": holds}


def finish(document: Mapping[str, Any]) -> int:
    """Print the document; return the exit status: 0 if all its claims hold."""
    print(json.dumps(document, indent=2))
    broken = [entry["claim"] for entry in document["claims"] if not entry["holds"]]
    for text in broken:
        print(f"does not hold: {text}", file=sys.stderr)
    return int(bool(broken))


def _digest(arguments: Sequence[str]) -> str:
    digest = hashlib.sha256(json.dumps(list(arguments)).encode())
    for path in sorted(path for source in SOURCES for path in (ROOT / source).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _spent(file: Path) -> float:
    return float(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else 0.0


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
