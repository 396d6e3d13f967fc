from __future__ import annotations

import csv
import importlib.util
import json
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyhead.errors import ConfigError, MissingExtraError
from polyhead_apps.shell import main
from polyhead_traffic.app import app
from polyhead_traffic.embedded import load_embedded
from polyhead_traffic.formats import open_folder
from polyhead_traffic.grid import Recipe, build_network
from polyhead_traffic.settings import SensorSettings
from polyhead_traffic.simulate import (
    Day,
    Incident,
    Simulation,
    _draw_trips,
    _speeds,
    realism,
    simulate_day,
    simulate_days,
    write_folder,
)

needs_uxsim = pytest.mark.skipif(
    importlib.util.find_spec("uxsim") is None, reason="needs uxsim: pip install 'polyhead-traffic[simulate]'"
)
QUIET_RECIPE = Recipe(side=3, vehicles=2_000)
MONDAY = date(2024, 1, 1)


def test_a_link_leads_to_the_links_that_start_at_its_head_and_not_back() -> None:
    network = build_network(Recipe())
    ids = np.array(network.ids)
    near = network.edges[:, network.distance_m == 1000]
    followers = set(ids[near[1, ids[near[0]] == "B2-C2"]])
    assert followers == {"C2-D2", "C2-C1", "C2-C3"}
    # Of d ways out of a crossing d - 1 lead on, for each of its d ways in: 4 corners, 12 on the edge, 9 inside.
    assert near.shape[1] == 4 * 2 * 1 + 12 * 3 * 2 + 9 * 4 * 3
    assert (network.edges[0][network.distance_m == 0] == network.edges[1][network.distance_m == 0]).all()
    assert set(network.distance_m) == {0, 1000, 2000, 3000}


def test_both_directions_of_a_road_share_its_speed_but_not_its_place() -> None:
    network = build_network(Recipe())
    forth, back = network.ids.index("A1-B1"), network.ids.index("B1-A1")
    assert network.free_flow_kmh[forth] == network.free_flow_kmh[back]
    # Eastwards, the right-hand side is the south.
    np.testing.assert_allclose(network.position_m[forth], [500, -120])
    np.testing.assert_allclose(network.position_m[back], [500, 120])
    assert 14 * 3.6 <= network.free_flow_kmh.min() < network.free_flow_kmh.max() <= 20 * 3.6


@pytest.mark.parametrize("side", [2, 27])
def test_a_grid_without_a_centre_is_refused(side: int) -> None:
    with pytest.raises(ConfigError, match=f"side is {side}: a grid has 3 to 26 crossings in a row"):
        build_network(Recipe(side=side))


def test_speed_is_way_driven_over_time_spent() -> None:
    steps = 86_400 // 10
    arrivals, departures = np.zeros((steps, 3)), np.zeros((steps, 3))
    # In the second slot link 0 takes 45 vehicles, one every 20 s, that stay for 80 s; link 1 is empty; link 2 is full
    # and stands still.
    clock = 10 * (np.arange(steps) + 1)
    for vehicle in range(45):
        entry = 900 + 20 * vehicle
        arrivals[:, 0] += clock > entry
        departures[:, 0] += clock > entry + 80
    arrivals[90:, 2] = 150
    speed = _speeds(arrivals, departures, np.array([72.0, 60.0, 60.0]), 1000.0, 10.0)
    assert speed.shape == (96, 3)
    # By hand: 45 enter and 41 leave, so 43 km are driven; 41 spend 80 s and the last four 80, 60, 40 and 20 s.
    spent_s = 41 * 80 + 80 + 60 + 40 + 20
    np.testing.assert_allclose(speed[1, 0], 43 * 1000 / spent_s * 3.6, rtol=0.03)
    assert (speed[[0, 2, 3], 1] == 60).all(), "an empty link has its free-flow speed"
    assert speed[5, 2] == 1.0, "0 would mark a missing reading"


@needs_uxsim
def test_no_trip_is_lost_between_demand_and_simulation(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def draw(*arguments: Any) -> Iterator[tuple[float, str, str]]:
        for trip in _draw_trips(*arguments):
            asked.append(trip)
            yield trip

    monkeypatch.setattr("polyhead_traffic.simulate._draw_trips", draw)
    day = simulate_day(QUIET_RECIPE, build_network(QUIET_RECIPE), seed=0, day=0, weekday=0)
    assert day.trips == len(asked) * QUIET_RECIPE.platoon
    # A Poisson number of platoons.
    mean = QUIET_RECIPE.vehicles * day.factor
    assert abs(day.trips - mean) < 5 * np.sqrt(mean * QUIET_RECIPE.platoon)
    assert day.unfinished <= 0.02 * day.trips


def test_commuters_go_in_in_the_morning_and_out_in_the_evening() -> None:
    recipe, network = Recipe(), build_network(Recipe())
    trips = list(_draw_trips(np.random.default_rng(3), recipe, network, 1.0))
    hours = np.array([departure for departure, _, _ in trips]) / 3600
    assert (np.diff(hours) >= 0).all()
    assert 0 <= hours.min() < hours.max() < 24
    centre = {f"{column}{row}" for column in "BCD" for row in "234"}
    inwards = np.array([origin not in centre and goal in centre for _, origin, goal in trips])
    outwards = np.array([origin in centre and goal not in centre for _, origin, goal in trips])
    morning, evening = (hours > 7) & (hours < 9), (hours > 16) & (hours < 19)
    assert inwards[morning].mean() > 0.7
    assert outwards[evening].mean() > 0.7
    assert all(origin != goal for _, origin, goal in trips)


@needs_uxsim
def test_a_day_is_a_function_of_seed_and_day() -> None:
    network = build_network(QUIET_RECIPE)
    first, again, other_day, other_seed = (
        simulate_day(QUIET_RECIPE, network, seed=seed, day=day, weekday=0).speed_kmh
        for seed, day in ((5, 2), (5, 2), (5, 3), (6, 2))
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other_day).any()
    assert (first != other_seed).any()


@needs_uxsim
def test_an_incident_slows_its_link_while_it_lasts() -> None:
    recipe = Recipe(incident_share=1.0)
    network = build_network(recipe)
    # Incidents are drawn before the demand, so an empty network has the same ones: take one that begins in a peak.
    empty = Recipe(incident_share=1.0, vehicles=1)
    for day in range(40):
        incident = simulate_day(empty, network, seed=1, day=day, weekday=0).incident
        assert incident is not None
        if 7 <= incident.start_h <= 8 or 16.5 <= incident.start_h <= 18:
            break
    assert incident is not None
    with_one = simulate_day(recipe, network, seed=1, day=day, weekday=0)
    assert with_one.incident == incident
    without = simulate_day(Recipe(incident_share=0.0), network, seed=1, day=day, weekday=0)
    assert without.incident is None
    assert without.trips == with_one.trips
    link = network.ids.index(incident.link)
    before = slice(0, int(incident.start_h * 4))
    during = slice(int(incident.start_h * 4) + 1, int(incident.end_h * 4))
    np.testing.assert_array_equal(with_one.speed_kmh[before], without.speed_kmh[before])
    assert with_one.speed_kmh[during, link].mean() < without.speed_kmh[during, link].mean() - 5


@needs_uxsim
def test_weekends_are_quieter() -> None:
    network = build_network(QUIET_RECIPE)
    factors = [simulate_day(QUIET_RECIPE, network, seed=0, day=0, weekday=weekday).factor for weekday in (0, 4, 5, 6)]
    np.testing.assert_allclose(np.array(factors) / factors[0], [1, 1, 0.7, 0.6])


@pytest.mark.parametrize(
    ("days", "seed", "vehicles", "text"),
    [
        (0, 0, 1000, "days is 0: give a number from 1 to 3660"),
        (1, -1, 1000, "seed is -1: give 0 or more"),
        (1, 0, 0.0, "vehicles is 0: give 1 to 10 million trips a day"),
        (1, 0, float("nan"), "vehicles is nan: give 1 to 10 million trips a day"),
    ],
)
def test_settings_out_of_range_are_refused(days: int, seed: int, vehicles: float, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        simulate_days(Recipe(vehicles=vehicles), days=days, seed=seed, start=MONDAY)


def test_without_uxsim_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uxsim", None)
    with pytest.raises(MissingExtraError, match=r"needs UXsim .*pip install 'polyhead-traffic\[simulate\]'"):
        simulate_days(QUIET_RECIPE, days=1, seed=0, start=MONDAY)


def test_realism_by_hand() -> None:
    # Two links, 8 days from a Monday: free flow but for the morning of every weekday, when link 0 drives at half speed.
    speed = np.full((8, 96, 2), 60.0)
    weekdays = [0, 1, 2, 3, 4, 7]
    speed[weekdays, 30:34, 0] = 30
    figures = realism(speed.reshape(-1, 2), np.array([60.0, 60.0]), MONDAY)
    assert figures["speed_ratio_morning"] == pytest.approx(0.75)
    assert figures["speed_ratio_evening"] == figures["speed_ratio_off_peak"] == 1
    assert figures["day_to_day_correlation"] == pytest.approx(1)
    # The last two days are tested: a Sunday and a Monday like those before.
    assert figures["slot_mean_mae"] == pytest.approx(0)
    # Two jumps of 30 km/h in 2 days of 95 pairs on one link of two; an hour apart, 2 x 4 of 92.
    assert figures["copy_last_mae_15min"] == pytest.approx(2 * 30 / (2 * 95 * 2))
    assert figures["copy_last_mae_60min"] == pytest.approx(8 * 30 / (2 * 92 * 2))
    series = np.full(96, 60.0)
    series[30:34] = 30
    assert figures["lag1_autocorrelation_of_links"] == pytest.approx(np.corrcoef(series[1:], series[:-1])[0, 1])


def test_a_single_weekend_day_leaves_figures_open() -> None:
    speed = 60 + np.random.default_rng(0).normal(0, 1, (96, 2))
    figures = realism(speed, np.array([70.0, 70.0]), date(2024, 1, 6))
    empty = {name for name, value in figures.items() if value is None}
    assert empty == {
        "speed_ratio_morning",
        "speed_ratio_evening",
        "speed_ratio_off_peak",
        "day_to_day_correlation",
        "slot_mean_mae",
    }


def made_up(days: int = 2) -> Simulation:
    """A simulation without a simulator: random speeds."""
    network = build_network(Recipe(side=3))
    rng = np.random.default_rng(0)
    speed = [np.round(rng.uniform(1, 50, (96, len(network.ids))), 2) for _ in range(days)]
    incident = Incident(network.ids[0], 7.5, 9.0)
    made = tuple(Day(part, 1.0, incident if day == 0 else None, 100, 1) for day, part in enumerate(speed))
    return Simulation(Recipe(side=3), network, 4, MONDAY, made)


@needs_uxsim
def test_the_folder_is_read_as_any_other(tmp_path: Path) -> None:
    simulation = made_up()
    write_folder(simulation, tmp_path)
    data = open_folder(tmp_path, SensorSettings(unit="km/h"))
    assert data.ids == simulation.network.ids
    np.testing.assert_allclose(data.values, simulation.speed_kmh, rtol=1e-6)
    np.testing.assert_array_equal(data.timestamps, simulation.timestamps)
    assert data.step_s == 900
    assert data.coordinates is not None
    np.testing.assert_allclose(data.coordinates, simulation.network.coordinates, atol=1e-6)
    assert data.graph is not None
    # The reader's kernel keeps the links that follow each other, and drops those further on.
    edges = {(int(tail), int(head)) for tail, head in data.graph.edges.T}
    network = simulation.network
    assert edges == {(int(t), int(h)) for t, h in network.edges[:, network.distance_m <= 1000].T}
    record = json.loads((tmp_path / "simulation.json").read_text())
    assert record["incidents"] == [{"day": 0, "link": "A1-B1", "start_h": 7.5, "end_h": 9.0}]
    assert record["figures"]["unfinished_percent"] == 1.0


def run(*arguments: str) -> int:
    return main(app, ["simulate", *arguments])


@needs_uxsim
def test_command_writes_a_folder_and_says_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "roads"
    assert run("--out", str(out), "--days", "1") == 0
    printed = capsys.readouterr()
    assert "speed ratio morning" in printed.out
    assert "day to day correlation" in printed.out
    assert f"traffic-forecast fit --data {out}" in printed.err.splitlines()[-1]
    with (out / "readings.csv").open() as file:
        rows = list(csv.reader(file))
    assert len(rows) == 97
    assert len(rows[0]) == 81
    assert rows[1][0] == "2024-01-01 00:00:00"
    # Day 0 of seed 0 is the first day of the dataset that ships, where UXsim and NumPy are those it was made with.
    record = json.loads((out / "simulation.json").read_text())
    if record["versions"] == load_versions():
        np.testing.assert_array_equal(np.array(rows[1:])[:, 1:].astype(np.float32), load_embedded().values[:96])

    assert run("--out", str(out), "--days", "1") == 1
    assert "exists and is not empty" in capsys.readouterr().err
    assert run("--out", str(out), "--days", "1", "--vehicles", "5000", "--force", "--json", "-q") == 0
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert document["recipe"]["vehicles"] == 5000
    assert document["figures"]["speed_ratio_morning"] > 0.85
    assert "Give more --vehicles" in printed.err


def load_versions() -> dict[str, str]:
    from polyhead_traffic.embedded import embedded_record

    versions: dict[str, str] = embedded_record()["versions"]
    return versions


def test_command_refuses_a_start_that_is_no_day(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--out", str(tmp_path / "x"), "--start", "yesterday") == 1
    assert 'start "yesterday" is not a day: write it as 2024-01-01.' in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_command_leaves_nothing_behind_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uxsim", None)
    assert run("--out", str(tmp_path / "x"), "--days", "1") == 1
    assert list(tmp_path.iterdir()) == []
