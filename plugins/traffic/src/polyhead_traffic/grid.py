"""The made-up road network that `traffic-forecast simulate` drives on: a square grid of one-way links."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyhead.errors import ConfigError

__all__ = ["Network", "Recipe", "build_network"]

_DEGREE_M = 111_320.0
_REACH = 3
"""Distances are listed for links this many links apart. One link apart alone would have no spread, and the kernel of
the literature takes its width from the spread of the listed distances."""


@dataclass(frozen=True)
class Recipe:
    """What is simulated; the defaults give the network that ships with the plugin."""

    side: int = 5
    """Crossings in a row and in a column; at least 3, so that there is a centre."""
    spacing_m: float = 1000.0
    free_flow_ms: tuple[float, float] = (14.0, 20.0)
    """Range of the links' free-flow speeds, m/s, uniform; both directions of a road share theirs."""
    reaction_s: float = 2.0
    """UXsim's default of 1 s would let 2,880 vehicles an hour through one lane."""
    platoon: int = 5
    """Vehicles that UXsim moves as one."""
    vehicles: float = 110_000.0
    """Mean number of trips on a weekday: enough for queues in the peaks, see `realism`."""
    morning: tuple[float, float, float] = (0.32, 8.0, 1.0)
    """Trips from the edge to the centre: share of all trips; mean and deviation of their departures, h."""
    evening: tuple[float, float, float] = (0.38, 17.5, 1.3)
    """Trips from the centre to the edge; the rest goes between any two crossings."""
    day_deviation: float = 0.08
    """Deviation of the logarithm of a day's factor on the number of trips."""
    saturday: float = 0.7
    sunday: float = 0.6
    incident_share: float = 0.1
    """Share of days on which a random link loses half of its capacity for one to two hours."""


class Network(NamedTuple):
    """The grid; L links, each is a sensor. Independent of the seed of the days."""

    nodes: dict[str, tuple[float, float]]
    """East and north of the crossings, m."""
    links: tuple[tuple[str, str], ...]
    """Tail and head of each link."""
    free_flow_kmh: NDArray[np.float64]
    """(L,)."""
    position_m: NDArray[np.float64]
    """(L, 2): east and north of the sensors, m: at the middle of a link, 120 m to the right of the road's axis, so that
    the two directions can be told apart on a map."""
    edges: NDArray[np.int64]
    """(2, E): from and to, positions in ``links``; a link leads to those whose tail is its head, but not back."""
    distance_m: NDArray[np.float64]
    """(E,): way from the middle of one link to the middle of the other; 0 from a link to itself."""

    @property
    def ids(self) -> tuple[str, ...]:
        """Names of the sensors, tail-head."""
        return tuple(f"{tail}-{head}" for tail, head in self.links)

    @property
    def coordinates(self) -> NDArray[np.float64]:
        """(L, 2): latitude and longitude in degrees, as if A1 stood at 0° N 0° E, where no road is."""
        return self.position_m[:, ::-1] / _DEGREE_M


def build_network(recipe: Recipe) -> Network:
    """Return the grid of a recipe.

    >>> network = build_network(Recipe())
    >>> len(network.nodes), len(network.links), network.ids[:3]
    (25, 80, ('A1-B1', 'B1-A1', 'A1-A2'))

    Raises:
        ConfigError: the grid has no centre.
    """
    side = recipe.side
    if not 3 <= side <= 26:
        raise ConfigError(f"side is {side}: a grid has 3 to 26 crossings in a row.")
    speeds = np.random.default_rng(0)
    name = [[f"{chr(ord('A') + column)}{row + 1}" for column in range(side)] for row in range(side)]
    nodes = {
        name[row][column]: (recipe.spacing_m * column, -recipe.spacing_m * row)
        for row in range(side)
        for column in range(side)
    }
    links: list[tuple[str, str]] = []
    free_flow = []
    for row in range(side):
        for column in range(side):
            for right, down in ((1, 0), (0, 1)):
                if column + right < side and row + down < side:
                    here, there = name[row][column], name[row + down][column + right]
                    links += [(here, there), (there, here)]
                    free_flow += [speeds.uniform(*recipe.free_flow_ms)] * 2
    ends = np.array([[nodes[tail], nodes[head]] for tail, head in links])
    way = (ends[:, 1] - ends[:, 0]) / recipe.spacing_m
    position = ends.mean(axis=1) + 120.0 * np.stack([way[:, 1], -way[:, 0]], axis=1)
    edges, distance = _distances(links, recipe.spacing_m)
    return Network(nodes, tuple(links), np.array(free_flow) * 3.6, position, edges, distance)


def _distances(links: Sequence[tuple[str, str]], spacing_m: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    count = len(links)
    follows = np.array([[head == tail and other != start for tail, other in links] for start, head in links])
    steps = np.full((count, count), np.inf)
    np.fill_diagonal(steps, 0)
    reached = np.eye(count, dtype=bool)
    for step in range(1, _REACH + 1):
        reached = (reached.astype(np.int64) @ follows) > 0
        steps[reached & np.isinf(steps)] = step
    edges = np.stack(np.nonzero(np.isfinite(steps)))
    return edges, steps[edges[0], edges[1]] * spacing_m
