"""Fit runs for claims: each is made once, goes on where it was stopped, and is used again until the source changes."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[3]
BUILD = ROOT / "build" / "acceptance" / "traffic-forecast"
COMMAND = Path(sys.executable).with_name("traffic-forecast")
SOURCES = ("core/src", "apps/src", "plugins/traffic/src")
SEEDS = (0, 1, 2)
WEEK = tuple(
    part
    for setting in ("epochs=5", "step_epochs=1", "ema_decay=0.98", "validate_epochs=0.5")
    for part in ("--set", f"train.{setting}")
)
"""Options of the runs on one week: few epochs, since windows of one day are much alike."""


class Fit(NamedTuple):
    """A finished run."""

    folder: Path
    document: Mapping[str, Any]
    """What ``metrics.json`` holds."""
    cpu_s: float
    """Processor seconds of all its processes, interrupted ones included."""


def data_folder(name: str, fetch: str) -> Path:
    """Return the folder of the data: ``--data``, else ``data/traffic/NAME`` in $POLYHEAD_SHARED or ``../shared``.

    Raises:
        SystemExit: there is none; says how to get it.
    """
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--data", type=Path, help="folder of the data")
    options = parser.parse_args()
    shared = Path(os.environ.get("POLYHEAD_SHARED") or ROOT.parent / "shared")
    folder: Path = options.data or shared / "data" / "traffic" / name
    if not folder.is_dir():
        raise SystemExit(f"{folder} is not there. {fetch} Then name its folder by --data.")
    return folder.resolve()


def fit(name: str, data: Path, *options: str, seed: int) -> Fit:
    """Return the run ``name`` with a seed, fitted by the command unless that was done before.

    Raises:
        SystemExit: the command failed; its message is on the screen.
    """
    arguments = [*options, "--seed", str(seed)]
    key = _digest(data, arguments)
    folder = BUILD / f"{name}-seed-{seed}-{key[:12]}"
    spent, metrics = folder.with_suffix(".cpu.json"), folder / "metrics.json"
    while not metrics.is_file():
        begun = (folder / "config.yaml").is_file()
        what = ["--resume"] if begun else ["--data", str(data), *arguments, "--force"]
        command = [str(COMMAND), "fit", *what, "--out", str(folder), "--json"]
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


def table(fits: Sequence[Fit], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the metrics ``names`` of the model (mean, spread and each seed) and of every baseline."""
    model = {}
    for name in names:
        values = [run.document["metrics"][name] for run in fits]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        model[name] = {"mean": statistics.fmean(values), "standard_deviation": spread, "seeds": values}
    baselines = fits[0].document["baselines"]
    return {"gman": model, "baselines": {key: {n: value[n] for n in names} for key, value in baselines.items()}}


def cost(fits: Sequence[Fit]) -> dict[str, list[float]]:
    """Return steps and processor seconds of the runs."""
    return {"steps": [run.document["steps"] for run in fits], "cpu_s": [round(run.cpu_s) for run in fits]}


def claim(text: str, value: float, at_most: float) -> dict[str, Any]:
    """Return one claim with its figures."""
    return {"claim": text, "value": value, "at_most": at_most, "holds": value <= at_most}


def finish(document: Mapping[str, Any]) -> int:
    """Print the document; return the exit status: 0 if all its claims hold."""
    print(json.dumps(document, indent=2))
    broken = [entry["claim"] for entry in document["claims"] if not entry["holds"]]
    for text in broken:
        print(f"does not hold: {text}", file=sys.stderr)
    return int(bool(broken))


def _digest(data: Path, arguments: Sequence[str]) -> str:
    digest = hashlib.sha256(json.dumps([str(data), *arguments]).encode())
    for path in sorted(path for source in SOURCES for path in (ROOT / source).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _spent(file: Path) -> float:
    return float(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else 0.0


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
