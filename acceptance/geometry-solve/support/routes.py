"""Order the stops of a public benchmark and of a file in degrees by the command, with each solver."""

from __future__ import annotations

import csv
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from support import runs

BERLIN52 = runs.ROOT / "tests" / "plugins" / "combinatorics" / "berlin52.tsp"
STOPS = 300
SOLVERS = {
    "auto": ("--solver", "auto"),
    "network": ("--solver", "network", "--beam", "16"),
    "network, polished": ("--solver", "network", "--beam", "16", "--polish", "2opt"),
    "warm": ("--solver", "warm", "--beam", "16", "--polish", "2opt"),
}


def measure(model: Path) -> dict[str, Any]:
    """Return length, unit, gap to PyVRP's and seconds of each solver on both files."""
    with tempfile.TemporaryDirectory() as temporary:
        stops = Path(temporary) / "stops.csv"
        _write_stops(stops)
        files = {"berlin52": BERLIN52, f"{STOPS} stops": stops}
        return {name: _solve(model, file, Path(temporary) / "route.csv") for name, file in files.items()}


def _write_stops(path: Path) -> None:
    """Write stops that lie about a town as addresses do: denser in the middle."""
    places = np.array([52.52, 13.405]) + np.random.default_rng(0).normal(0, (0.05, 0.08), (STOPS, 2))
    rows = [f"stop {number},{lat:.6f},{lon:.6f}" for number, (lat, lon) in enumerate(places, 1)]
    path.write_text("\n".join(["id,lat,lon", *rows]) + "\n", encoding="utf-8")


def _solve(model: Path, file: Path, out: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, options in SOLVERS.items():
        command = [str(runs.COMMAND), "predict", "--model", str(model), "--data", str(file), *options]
        began = time.perf_counter()
        done = subprocess.run(
            [*command, "--out", str(out), "--force", "--json"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"the command failed: {' '.join(command)}")
        seconds = time.perf_counter() - began
        rows = list(csv.DictReader(out.read_text(encoding="utf-8").splitlines()))
        (facts,) = json.loads(done.stdout)["tours"]
        found[name] = {**facts, "stops": len({row["id"] for row in rows}), "seconds": round(seconds, 1)}
    return found
