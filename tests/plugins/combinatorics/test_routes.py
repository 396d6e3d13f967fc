"""Two instances of a size that people have, by one command each: a public benchmark, and 300 stops in degrees."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest

from polyhead_apps.shell import main
from polyhead_combinatorics.app import app

TINY = ("--threads", "1", "--preset", "tiny", "--steps", "3", "--set", "data.held_out=8", "-q")
BERLIN52 = Path(__file__).with_name("berlin52.tsp")
SHORTEST = 7542
"""Of berlin52, proved by its authors."""


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fitted") / "run"
    assert main(app, ("fit", "--data", "uniform-tsp", *TINY, "--out", str(out))) == 0
    return out


def _route(fitted: Path, stops: Path, out: Path, *options: str) -> list[dict[str, str]]:
    arguments = ("predict", "--model", str(fitted), "--data", str(stops), "--threads", "1", "--out", str(out), *options)
    assert main(app, arguments) == 0
    return list(csv.DictReader(out.read_text().splitlines()))


def test_berlin52_is_solved_and_the_gap_is_said(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = _route(fitted, BERLIN52, tmp_path / "route.csv")
    assert len({row["id"] for row in rows}) == 52
    assert float(rows[-1]["cumulative"]) == SHORTEST
    said = capsys.readouterr().out
    assert "52 stops, 7,542 by PyVRP." in said
    gap = re.search(r"PyVRP 7,542: gap \+(\d+\.\d+) %", said)
    assert gap is not None
    polished = _route(fitted, BERLIN52, tmp_path / "own.csv", "--solver", "network", "--polish", "2opt")
    assert SHORTEST < float(polished[-1]["cumulative"]) < 1.2 * SHORTEST


def test_300_stops_in_degrees_are_solved_in_km(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    stops = tmp_path / "stops.csv"
    places = np.array([52.52, 13.4]) + rng.normal(0, (0.05, 0.08), (300, 2))
    lines = [f"stop {number},{lat:.6f},{lon:.6f}" for number, (lat, lon) in enumerate(places)]
    stops.write_text("\n".join(["id,lat,lon", *lines]) + "\n")
    rows = _route(fitted, stops, tmp_path / "route.csv", "--search-steps", "50")
    assert {row["id"] for row in rows} == {f"stop {number}" for number in range(300)}
    assert rows[0]["id"] == rows[-1]["id"] == "stop 0"
    length = float(rows[-1]["cumulative"])
    assert 300 < length < 500
    said = capsys.readouterr().out
    assert f"300 stops, {length:,.6g} km by PyVRP." in said
    assert "gap +" in said
