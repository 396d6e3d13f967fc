"""A road network simulated with UXsim, and the command `traffic-forecast simulate`.

One-way links of a square grid carry commuters between its edge and its centre, with peaks in the morning and the
evening, and trips across. Every day is a function of (seed, day), so a single day can be made again.
"""

from __future__ import annotations

import csv
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import typer
from numpy.typing import NDArray

from polyhead.artifacts import atomic_folder, json_bytes, write_manifest
from polyhead.errors import ConfigError, MissingExtraError
from polyhead_traffic.grid import Network, Recipe, build_network

if TYPE_CHECKING:
    from polyhead_apps.console import Progress

__all__ = [
    "CONGESTED",
    "GENERATOR_VERSION",
    "STEP_S",
    "Day",
    "Simulation",
    "realism",
    "simulate",
    "simulate_day",
    "simulate_days",
    "versions",
    "write_folder",
]

GENERATOR_VERSION = 1
"""Raised whenever the same (recipe, seed, day) gives other readings than before."""
STEP_S = 900
"""15 minutes: below that, platoons of ``Recipe.platoon`` vehicles drown the traffic in counting noise."""
CONGESTED = (0.7, 0.85)
"""Range of the speed ratio at 8 h: above it nothing is to be forecast, below it the network is jammed."""
_DAY_S = 86_400
_SLOTS = _DAY_S // STEP_S
_LEAST_KMH = 1.0
"""A standing queue is recorded at this speed, because 0 marks a missing reading."""


# Share of the trips across in each hour of the day: quiet nights, an even day.
_HOURS = np.array(
    [0.15, 0.1, 0.08, 0.08, 0.12, 0.3, 0.6, 0.9, 1, 1, 1, 1, 1.05, 1.05, 1, 1, 1, 1, 0.95, 0.8, 0.6, 0.45, 0.35, 0.25]
)


class Incident(NamedTuple):
    """A link with half of its capacity at its downstream end."""

    link: str
    start_h: float
    end_h: float


class Day(NamedTuple):
    """A simulated day."""

    speed_kmh: NDArray[np.float64]
    """(96, L), to 0.01 km/h."""
    factor: float
    """On the number of trips."""
    incident: Incident | None
    trips: int
    unfinished: int
    """Trips that midnight cut off."""


class Simulation(NamedTuple):
    """Days in a row."""

    recipe: Recipe
    network: Network
    seed: int
    start: date
    days: tuple[Day, ...]

    @property
    def speed_kmh(self) -> NDArray[np.float64]:
        """(96 * days, L)."""
        return np.concatenate([day.speed_kmh for day in self.days])

    @property
    def timestamps(self) -> NDArray[np.datetime64]:
        """(96 * days,): the start of each step."""
        first = np.datetime64(self.start, "s")
        return first + np.arange(len(self.days) * _SLOTS) * np.timedelta64(STEP_S, "s")

    def figures(self) -> dict[str, float | None]:
        """Return `realism`, and the share of trips that midnight cut off."""
        trips = sum(day.trips for day in self.days)
        unfinished = sum(day.unfinished for day in self.days)
        return {
            **realism(self.speed_kmh, self.network.free_flow_kmh, self.start),
            "unfinished_percent": 100 * unfinished / max(trips, 1),
        }

    def record(self) -> dict[str, Any]:
        """Return how this was made, as JSON values."""
        return {
            "generator": GENERATOR_VERSION,
            "versions": versions(),
            "seed": self.seed,
            "start": self.start.isoformat(),
            "days": len(self.days),
            "step_s": STEP_S,
            "unit": "km/h",
            "recipe": {
                name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self.recipe).items()
            },
            "figures": {name: None if value is None else round(value, 4) for name, value in self.figures().items()},
            "factors": [round(day.factor, 4) for day in self.days],
            "incidents": [
                {"day": number, **day.incident._asdict()} for number, day in enumerate(self.days) if day.incident
            ],
        }


def versions() -> dict[str, str]:
    """Return what else decides the readings: they are the same where all of these are the same.

    Raises:
        MissingExtraError: UXsim is not installed.
    """
    return {
        "uxsim": _uxsim().__version__,
        "numpy": np.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
    }


def simulate_day(recipe: Recipe, network: Network, *, seed: int, day: int, weekday: int) -> Day:
    """Simulate one day, from an empty network at midnight to the next midnight.

    Args:
        recipe: what is simulated.
        network: ``build_network(recipe)``.
        seed: of the simulation.
        day: number of the day in it.
        weekday: Monday = 0.

    Raises:
        MissingExtraError: UXsim is not installed.
    """
    rng = np.random.default_rng((seed, day))
    step_s = recipe.reaction_s * recipe.platoon
    world = _uxsim().World(
        cpp=True,
        deltan=recipe.platoon,
        reaction_time=recipe.reaction_s,
        tmax=_DAY_S,
        random_seed=int(rng.integers(2**31)),
        print_mode=0,
        save_mode=0,
        show_mode=0,
        show_progress=0,
        vehicle_logging_timestep_interval=-1,
    )
    for node, (east, north) in network.nodes.items():
        world.addNode(node, east, north)
    for name, (tail, head), speed in zip(network.ids, network.links, network.free_flow_kmh, strict=True):
        world.addLink(name, tail, head, recipe.spacing_m, free_flow_speed=speed / 3.6, number_of_lanes=1)

    factor = rng.lognormal(0, recipe.day_deviation) * {5: recipe.saturday, 6: recipe.sunday}.get(weekday, 1.0)
    incident = _draw_incident(rng, recipe, network)
    for departure_s, origin, destination in _draw_trips(rng, recipe, network, factor):
        # One platoon at a time: UXsim drops what is left of a demand block below the size of a platoon.
        world.addVehicle(origin, destination, int(departure_s / step_s), departure_time_is_time_step=1)
    if incident is not None:
        link = world.get_link(incident.link)
        usual = link.capacity_out
        world.exec_simulation(until_t=incident.start_h * 3600)
        link.capacity_out = link.capacity / 2
        world.exec_simulation(until_t=incident.end_h * 3600)
        link.capacity_out = usual
    world.exec_simulation()
    arrivals = np.stack([link.cum_arrival for link in world.LINKS], axis=1)
    departures = np.stack([link.cum_departure for link in world.LINKS], axis=1)
    speed = _speeds(arrivals, departures, network.free_flow_kmh, recipe.spacing_m, step_s)
    unfinished = sum(vehicle.state != "end" for vehicle in world.VEHICLES.values()) * recipe.platoon
    return Day(speed, float(factor), incident, len(world.VEHICLES) * recipe.platoon, unfinished)


def _draw_incident(rng: np.random.Generator, recipe: Recipe, network: Network) -> Incident | None:
    happens, link = rng.random() < recipe.incident_share, rng.integers(len(network.links))
    start, hours = rng.uniform(6, 20), rng.uniform(1, 2)
    return Incident(network.ids[link], round(start, 2), round(start + hours, 2)) if happens else None


def _draw_trips(
    rng: np.random.Generator, recipe: Recipe, network: Network, factor: float
) -> Iterator[tuple[float, str, str]]:
    """Yield departure (s), origin and destination of each platoon, in order of departure."""
    names = np.array(list(network.nodes))
    last = str(recipe.side)
    on_edge = np.array([name[0] in ("A", chr(ord("A") + recipe.side - 1)) or name[1:] in ("1", last) for name in names])
    edge, centre = np.flatnonzero(on_edge), np.flatnonzero(~on_edge)
    count = rng.poisson(recipe.vehicles * factor / recipe.platoon)
    shares = (recipe.morning[0], recipe.evening[0])
    kind = rng.choice(3, size=count, p=(*shares, 1 - sum(shares)))
    departure_h = np.choose(
        kind,
        [
            rng.normal(*recipe.morning[1:], count),
            rng.normal(*recipe.evening[1:], count),
            rng.choice(24, size=count, p=_HOURS / _HOURS.sum()) + rng.random(count),
        ],
    )
    anywhere = rng.integers(len(names), size=count)
    elsewhere = (anywhere + 1 + rng.integers(len(names) - 1, size=count)) % len(names)
    at_edge, at_centre = rng.choice(edge, count), rng.choice(centre, count)
    origin = np.choose(kind, [at_edge, at_centre, anywhere])
    destination = np.choose(kind, [at_centre, at_edge, elsewhere])
    departure_s = departure_h % 24 * 3600
    for index in np.argsort(departure_s, kind="stable"):
        yield float(departure_s[index]), str(names[origin[index]]), str(names[destination[index]])


def _speeds(
    arrivals: NDArray[np.floating],
    departures: NDArray[np.floating],
    free_flow_kmh: NDArray[np.float64],
    length_m: float,
    step_s: float,
) -> NDArray[np.float64]:
    """Return (96, L) km/h: distance driven over time spent, from the cumulative curves (steps, L) of a day.

    An empty link has its free-flow speed.
    """
    per_slot = int(STEP_S / step_s)
    on_link = (arrivals - departures).reshape(_SLOTS, per_slot, -1).mean(axis=1)
    edges = np.arange(_SLOTS + 1) * per_slot
    passed = [np.diff(np.pad(curve, ((1, 0), (0, 0)))[edges], axis=0) for curve in (arrivals, departures)]
    flow = (passed[0] + passed[1]) / 2 / STEP_S
    speed = np.where(on_link > 0, flow * length_m / np.maximum(on_link, 1e-9) * 3.6, free_flow_kmh)
    return np.round(np.clip(speed, _LEAST_KMH, free_flow_kmh), 2)


def simulate_days(recipe: Recipe, *, days: int, seed: int, start: date, progress: Progress | None = None) -> Simulation:
    """Simulate ``days`` days from ``start``.

    Raises:
        ConfigError: fewer than one day, a negative seed, or not between 1 and 10 million vehicles.
        MissingExtraError: UXsim is not installed.
    """
    if not 1 <= days <= 3660:
        raise ConfigError(f"days is {days}: give a number from 1 to 3660.")
    if seed < 0:
        raise ConfigError(f"seed is {seed}: give 0 or more.")
    if not 1 <= recipe.vehicles <= 1e7:
        raise ConfigError(f"vehicles is {recipe.vehicles:g}: give 1 to 10 million trips a day.")
    network = build_network(recipe)
    made = []
    for day in range(days):
        weekday = (start + timedelta(days=day)).weekday()
        made.append(simulate_day(recipe, network, seed=seed, day=day, weekday=weekday))
        if progress is not None:
            progress.advance()
    return Simulation(recipe, network, seed, start, tuple(made))


def realism(
    speed_kmh: NDArray[np.floating], free_flow_kmh: NDArray[np.floating], start: date
) -> dict[str, float | None]:
    """Return figures that tell whether simulated speeds behave like measured ones.

    Args:
        speed_kmh: shape (96 * days, L).
        free_flow_kmh: shape (L,).
        start: the first day.

    Returns:
        By name; None where there are too few days. Speed ratios (speed over free flow, weekdays, mean over links) at
        7:30-8:30, 17-18 and 10-15 h; of the network's mean speed: correlation of successive weekdays and
        autocorrelation at one step, of single links the latter too; mean absolute errors, km/h, of the last
        quarter of the days: the last reading held for 15 and 60 min, and the mean of the slot over the days before,
        weekdays and weekends apart.
    """
    days = len(speed_kmh) // _SLOTS
    speed = np.asarray(speed_kmh, dtype=np.float64).reshape(days, _SLOTS, -1)
    weekend = np.array([(start + timedelta(days=day)).weekday() >= 5 for day in range(days)])
    ratio = (speed / free_flow_kmh).mean(axis=2)
    hour = np.arange(_SLOTS) * STEP_S / 3600

    def at(first: float, last: float) -> float | None:
        part = ratio[~weekend][:, (hour >= first) & (hour < last)]
        return float(part.mean()) if part.size else None

    pairs = [(day, day + 1) for day in range(days - 1) if not weekend[day] and not weekend[day + 1]]
    tested = speed[days - max(days // 4, 1) :]
    known = days - len(tested)
    errors = [
        np.abs(speed[day] - speed[:known][weekend[:known] == weekend[day]].mean(axis=0)).mean()
        for day in range(known, days)
        if (weekend[:known] == weekend[day]).any()
    ]
    return {
        "speed_ratio_morning": at(7.5, 8.5),
        "speed_ratio_evening": at(17, 18),
        "speed_ratio_off_peak": at(10, 15),
        "day_to_day_correlation": _mean(_correlation(ratio[a], ratio[b]) for a, b in pairs),
        "lag1_autocorrelation": _mean(_correlation(day[1:], day[:-1]) for day in ratio),
        "lag1_autocorrelation_of_links": _mean(
            _correlation(link[1:], link[:-1]) for day in speed for link in day.T if link.std() > 0
        ),
        "copy_last_mae_15min": float(np.abs(tested[:, 1:] - tested[:, :-1]).mean()),
        "copy_last_mae_60min": float(np.abs(tested[:, 4:] - tested[:, :-4]).mean()),
        "slot_mean_mae": _mean(errors),
    }


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / max(np.sqrt((a**2).sum() * (b**2).sum()), 1e-12))


def _mean(values: Any) -> float | None:
    values = list(values)
    return float(np.mean(values)) if values else None


def write_folder(simulation: Simulation, folder: Path) -> None:
    """Write what every command takes as ``--data`` into ``folder``: readings, graph, coordinates, record."""
    network = simulation.network
    times = [str(time).replace("T", " ") for time in simulation.timestamps]
    readings = [
        [time, *(f"{value:.2f}" for value in row)] for time, row in zip(times, simulation.speed_kmh, strict=True)
    ]
    edges = [
        [network.ids[tail], network.ids[head], f"{distance:g}"]
        for (tail, head), distance in zip(network.edges.T, network.distance_m, strict=True)
    ]
    places = [
        [name, f"{latitude:.6f}", f"{longitude:.6f}"]
        for name, (latitude, longitude) in zip(network.ids, network.coordinates, strict=True)
    ]
    _write_csv(folder / "readings.csv", ["timestamp", *network.ids], readings)
    _write_csv(folder / "edges.csv", ["from", "to", "distance"], edges)
    _write_csv(folder / "locations.csv", ["sensor_id", "latitude", "longitude"], places)
    (folder / "simulation.json").write_bytes(json_bytes(simulation.record()))
    write_manifest(folder)


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def simulate(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.", show_default=False)],
    days: Annotated[int, typer.Option(help="Days to simulate.")] = 28,
    seed: Annotated[int, typer.Option(help="Seed of demand and incidents; the network stays the same.")] = 0,
    start: Annotated[str, typer.Option(help="First day, e.g. 2024-01-01; weekends are quieter.")] = "2024-01-01",
    vehicles: Annotated[float, typer.Option(help="Mean number of trips on a weekday.")] = Recipe.vehicles,
    force: Annotated[bool, typer.Option("--force", help="Replace a folder that this command wrote.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON document.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Simulate speeds of a road network with UXsim, as a folder that --data takes. Not measured traffic."""
    from polyhead_apps.console import Console

    console = Console(quiet=quiet)
    try:
        first = date.fromisoformat(start)
    except ValueError:
        raise ConfigError(f'start "{start}" is not a day: write it as 2024-01-01.') from None
    with atomic_folder(out, replace=force) as folder:
        with console.progress("simulate", days, unit="day") as progress:
            simulation = simulate_days(Recipe(vehicles=vehicles), days=days, seed=seed, start=first, progress=progress)
        write_folder(simulation, folder)
    figures = simulation.figures()
    if as_json:
        console.result(json_bytes(simulation.record()).decode().rstrip())
    else:
        console.table(["figure", "value"], [[name.replace("_", " "), value] for name, value in figures.items()])
    morning = figures["speed_ratio_morning"]
    if morning is not None and not CONGESTED[0] <= morning <= CONGESTED[1]:
        console.warn(
            f"at 8 h vehicles drive at {morning:.2f} of the free speed; a network worth forecasting has "
            f"{CONGESTED[0]:g} to {CONGESTED[1]:g}. Give {'more' if morning > CONGESTED[1] else 'fewer'} --vehicles."
        )
    console.line(f"{out}: simulated speeds of {len(simulation.network.ids)} links, {days} × 24 h, km/h every 15 min.")
    console.line(f"Next: traffic-forecast fit --data {out} --unit km/h")


def _uxsim() -> Any:
    try:
        import uxsim
    except ImportError as error:
        raise MissingExtraError(
            f"The simulation needs UXsim ({error}).  pip install 'polyhead-traffic[simulate]'"
        ) from error
    return uxsim
