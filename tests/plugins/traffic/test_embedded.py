from __future__ import annotations

import json
import re
import shutil
from datetime import date
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from polyhead.errors import DataError
from polyhead_traffic.data import SensorData
from polyhead_traffic.embedded import NAME, embedded_record, freeze, load_embedded
from polyhead_traffic.formats import open_embedded
from polyhead_traffic.grid import Recipe, build_network
from polyhead_traffic.plugin import polyhead_plugin
from polyhead_traffic.settings import SensorSettings
from polyhead_traffic.simulate import CONGESTED, GENERATOR_VERSION, Day, Simulation, realism, simulate_day, versions

ASSETS = resources.files("polyhead_traffic").joinpath("assets")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the shipped files that a test may damage."""
    with resources.as_file(ASSETS) as folder:
        shutil.copytree(folder, tmp_path / "assets")
    return tmp_path / "assets"


@pytest.fixture(scope="module")
def data() -> SensorData:
    return load_embedded()


def test_what_ships(data: SensorData) -> None:
    assert data.name == NAME
    assert NAME in {spec.name for spec in polyhead_plugin().datasets if spec.embedded}
    assert "simulated with uxsim" in data.provenance.lower()
    assert "not measured traffic" in data.provenance
    assert (data.licence, data.unit) == ("Apache-2.0", "km/h")
    assert data.values.shape == (28 * 96, 80)
    assert data.mask.all()
    assert data.values.min() >= 1
    assert data.values.max() <= 72
    assert (data.timestamps[0], data.timestamps[-1]) == (
        np.datetime64("2024-01-01T00:00:00"),
        np.datetime64("2024-01-28T23:45:00"),
    )
    assert data.calendar[0].tolist() == [0, 0]
    assert data.coordinates is not None
    assert data.coordinates.shape == (80, 2)


def test_the_files_are_frozen() -> None:
    # Published figures are of these bytes: a new dataset needs a new name.
    record = embedded_record()
    assert record["sha256"] == "25642a553993c3a4fe35a6d0d91370fb6f8dadcbb9f4f9b02de5fd9046c9c501"
    assert record["generator"] == GENERATOR_VERSION
    sizes = [len(ASSETS.joinpath(f"{NAME}.{suffix}").read_bytes()) for suffix in ("npz", "json")]
    assert sum(sizes) < 1_000_000


def test_the_graph_joins_links_that_follow_each_other(data: SensorData) -> None:
    assert data.graph is not None
    network = build_network(Recipe())
    assert data.ids == network.ids
    assert {(int(t), int(h)) for t, h in data.graph.edges.T} == {
        (int(t), int(h)) for t, h in network.edges[:, network.distance_m <= 1000].T
    }
    own = data.graph.edges[0] == data.graph.edges[1]
    assert (data.graph.weights[own] == 1).all()
    assert own.sum() == 80


def test_windows_and_graph_follow_the_settings() -> None:
    settings = SensorSettings(history=4, horizon=3, protocol="dcrnn", fill="last", sigma=5000.0, threshold=0.0)
    data = open_embedded(None, settings)
    assert (data.history, data.horizon, data.protocol, data.fill) == (4, 3, "dcrnn", "last")
    assert data.graph is not None
    assert len(data.graph.weights) == len(build_network(Recipe()).distance_m)
    assert load_embedded().fingerprint() == load_embedded().fingerprint() != data.fingerprint()


def test_speeds_behave_like_a_road_network(data: SensorData) -> None:
    record = embedded_record()
    figures = realism(data.values, build_network(Recipe()).free_flow_kmh, date(2024, 1, 1))
    for name, value in figures.items():
        assert value == pytest.approx(record["figures"][name], abs=1e-3), name
    assert CONGESTED[0] <= record["figures"]["speed_ratio_morning"] <= CONGESTED[1]
    assert record["figures"]["speed_ratio_evening"] < 0.9 < record["figures"]["speed_ratio_off_peak"]
    assert record["figures"]["day_to_day_correlation"] > 0.8
    assert record["figures"]["lag1_autocorrelation"] > 0.8
    # There is something to forecast: the calendar beats the last reading an hour ahead.
    assert record["figures"]["slot_mean_mae"] < record["figures"]["copy_last_mae_60min"]


def documented(root: Path, column: int) -> dict[str, float]:
    """Figures of the docs page by name; column 0 is the simulation, 1 the real week."""
    page = (root / "docs" / "explanation" / "simulated-data.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([a-z0-9 ]+) \| ([\d.]+) \| ([\d.]+) \|$", page, flags=re.MULTILINE)
    return {name.replace(" ", "_"): float(values[column]) for name, *values in rows}


def test_the_docs_give_the_figures_of_the_shipped_data(root: Path) -> None:
    figures = documented(root, 0)
    record = embedded_record()["figures"]
    assert set(figures) == set(record) - {"unfinished_percent"}
    assert figures == {name: pytest.approx(record[name], abs=6e-4) for name in figures}


def test_the_docs_give_the_figures_of_the_real_week(root: Path, shared: Path) -> None:
    file = shared / "data" / "traffic" / "metr-la-week" / "los_speed.csv"
    speed = np.loadtxt(file, delimiter=",", skiprows=1).reshape(7 * 96, 3, 207).mean(axis=1) * 1.609344
    measured = realism(speed, np.percentile(speed, 95, axis=0), date(2012, 3, 1))
    assert documented(root, 1) == {name: pytest.approx(value, abs=6e-4) for name, value in measured.items()}


def test_the_generator_makes_a_shipped_day_again(data: SensorData) -> None:
    pytest.importorskip("uxsim", reason="needs uxsim: pip install 'polyhead-traffic[simulate]'")
    record = embedded_record()
    recipe = Recipe()
    number = 9  # a Wednesday with more traffic than usual
    network = build_network(recipe)
    day = simulate_day(recipe, network, seed=record["seed"], day=number, weekday=2)
    shipped = data.values[number * 96 : (number + 1) * 96]
    assert day.speed_kmh.shape == shipped.shape
    if versions() == record["versions"]:
        np.testing.assert_array_equal(day.speed_kmh.astype(np.float32), shipped)
        assert round(day.factor, 4) == record["factors"][number]
    else:
        # Another version draws other trips: the same network, not the same cars.
        assert abs(day.speed_kmh.mean() - shipped.mean()) < 5
        assert np.corrcoef(day.speed_kmh.mean(axis=1), shipped.mean(axis=1))[0, 1] > 0.7


def test_freezing_keeps_every_reading(tmp_path: Path) -> None:
    pytest.importorskip("uxsim", reason="needs uxsim: pip install 'polyhead-traffic[simulate]'")
    network = build_network(Recipe(side=3))
    rng = np.random.default_rng(0)
    days = tuple(Day(np.round(rng.uniform(1, 72, (96, 24)), 2), 1.0, None, 1, 0) for _ in range(7))
    simulation = Simulation(Recipe(side=3), network, 7, date(2024, 3, 4), days)
    freeze(simulation, tmp_path)
    data = load_embedded(folder=tmp_path)
    np.testing.assert_array_equal(data.values, simulation.speed_kmh.astype(np.float32))
    np.testing.assert_array_equal(data.timestamps, simulation.timestamps)
    assert "a 3x3 grid" in data.provenance
    assert "seed 7" in data.provenance
    with np.load(tmp_path / f"{NAME}.npz", allow_pickle=False) as archive:
        np.testing.assert_allclose(archive["free_flow"] / 100, network.free_flow_kmh, atol=0.005)


@pytest.mark.parametrize("where", [0, 1000, -1])
def test_a_flipped_byte_is_named(copy: Path, where: int) -> None:
    file = copy / f"{NAME}.npz"
    content = bytearray(file.read_bytes())
    content[where] ^= 1
    file.write_bytes(content)
    with pytest.raises(
        DataError, match=rf"{NAME}.npz is damaged: it does not match its digest.*Install polyhead-traffic again"
    ):
        load_embedded(folder=copy)


def test_a_truncated_file_is_named(copy: Path) -> None:
    file = copy / f"{NAME}.npz"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match="does not match its digest"):
        embedded_record(copy)


@pytest.mark.parametrize("suffix", ["npz", "json"])
def test_a_missing_file_is_named(copy: Path, suffix: str) -> None:
    (copy / f"{NAME}.{suffix}").unlink()
    with pytest.raises(DataError, match=rf"dataset {NAME} is incomplete: .*{NAME}.{suffix}"):
        load_embedded(folder=copy)


@pytest.mark.parametrize("text", ["{", "17", "\x00"])
def test_a_damaged_record_is_named(copy: Path, text: str) -> None:
    (copy / f"{NAME}.json").write_text(text)
    with pytest.raises(DataError, match=rf"{NAME}.json is damaged: .*Install polyhead-traffic again"):
        load_embedded(folder=copy)


def test_a_record_without_a_digest_is_not_believed(copy: Path) -> None:
    (copy / f"{NAME}.json").write_text(json.dumps({"name": NAME}))
    with pytest.raises(DataError, match="does not match its digest"):
        load_embedded(folder=copy)
