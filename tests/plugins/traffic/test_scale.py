"""Thousands of sensors: memory stays near that of the readings, or below where they lie in a file."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from polyhead_traffic import graphs, task
from polyhead_traffic.data import SensorData
from polyhead_traffic.graphs import graph_from_coordinates, graph_from_readings
from polyhead_traffic.settings import ForecastTaskSettings

ROWS, SENSORS = 10_000, 5_000
READINGS_MB = ROWS * SENSORS * 4 / 2**20
MASK_MB = ROWS * SENSORS / 2**20

PROBE = """
import json, sys
from pathlib import Path
import numpy as np
import h5py, scipy.sparse, torch
import polyhead_traffic.task as tasks
from polyhead_traffic.formats import open_folder, table
from polyhead_traffic.settings import SensorSettings

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024

folder, in_memory = Path(sys.argv[1]), int(sys.argv[2])
if in_memory == 0:
    table.IN_MEMORY = 0
peak, own = status("VmHWM"), status("RssAnon")
start = "2024-01-01" if (folder / "data.dat").exists() else ""
data = open_folder(folder, SensorSettings(start=start, graph="edges.csv"))
data.fingerprint()
data.summary()
mean, std = tasks.normaliser(data)
batch = data.source("train").fetch(range(0, 6000, 400))
assert batch["x"].shape == (15, 12, 5000), batch["x"].shape
assert 49 < mean < 51 and 0 < std < 2, (mean, std)
print(json.dumps({"peak": status("VmHWM") - peak, "own": status("RssAnon") - own}))
"""


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return 50 + np.random.default_rng(0).standard_normal((500, SENSORS), dtype=np.float32)


@pytest.fixture(params=["dat", "h5"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, rows: np.ndarray) -> Path:
    """200 MB of readings with a graph."""
    if request.param == "dat":
        with (tmp_path / "data.dat").open("wb") as file:
            for _ in range(0, ROWS, len(rows)):
                file.write(rows.tobytes())
        (tmp_path / "desc.json").write_text(json.dumps({"shape": [ROWS, SENSORS, 1], "frequency (minutes)": 5}))
    else:
        import h5py

        with h5py.File(tmp_path / "readings.h5", "w") as file:
            group = file.create_group("df")
            group["axis0"] = group["block0_items"] = np.arange(SENSORS)
            stamps = np.datetime64("2024-01-01", "ns") + np.arange(ROWS) * np.timedelta64(300, "s")
            group["axis1"] = stamps.astype(np.int64)
            group["axis1"].attrs["kind"] = "datetime64"
            values = group.create_dataset("block0_values", (ROWS, SENSORS), np.float32, chunks=(100, SENSORS))
            for first in range(0, ROWS, len(rows)):
                values[first : first + len(rows)] = rows
    edges = [f"{i},{(i + 1) % SENSORS},1" for i in range(SENSORS)]
    (tmp_path / "edges.csv").write_text("from,to,weight\n" + "\n".join(edges) + "\n")
    return tmp_path


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_five_thousand_sensors_need_little_more_than_their_readings(folder: Path) -> None:
    found = {}
    for in_memory in (1, 0):
        done = subprocess.run(
            [sys.executable, "-c", PROBE, str(folder), str(in_memory)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        found[in_memory] = json.loads(done.stdout)
    assert found[1]["peak"] < 1.5 * (READINGS_MB + MASK_MB)
    # In a file: what is the process's own is the mask and a few blocks.
    assert found[0]["own"] < MASK_MB + 64


def test_graphs_made_in_blocks_are_those_made_at_once(
    network: Callable[..., SensorData], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = network(days=9, sensors=23, missing=0.1)
    places = np.random.default_rng(0).uniform(34, 35, (23, 2))
    whole = graph_from_readings(data), graph_from_coordinates(places)
    monkeypatch.setattr(graphs, "BLOCK", 5)
    parts = graph_from_readings(data), graph_from_coordinates(places)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one.edges, other.edges)
        np.testing.assert_allclose(one.weights, other.weights, rtol=1e-4)


def test_a_large_networks_embedding_is_spectral_unless_asked_for(
    network: Callable[..., SensorData], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = network(days=8, sensors=6)
    monkeypatch.setattr(task, "WALKED", 5)
    source = task.ForecastTask.prepare(data, ForecastTaskSettings(), seed=0).embedding_source
    assert source == "Laplacian of the graph of the data"
    source = task.ForecastTask.prepare(data, ForecastTaskSettings(embedding="node2vec"), seed=0).embedding_source
    assert source == "node2vec of the graph of the data"
