"""A tour for a user's stops: the network's, polished or not, beside that of a classical solver."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from polyhead.errors import DataError
from polyhead_combinatorics import solvers
from polyhead_combinatorics.instances import Floats, Instance, distances_of, in_the_plane

if TYPE_CHECKING:
    from torch import nn

    from polyhead_combinatorics.settings import TourPredictSettings
    from polyhead_combinatorics.task import SolveTask

__all__ = ["MOST_STOPS", "Tour", "solve_tour"]

BEYOND = 3
"""Times the points of training up to which the network's tour is written."""
MOST_COMPARED = 1000
"""Stops up to which the network is asked for comparison where the classical solver's tour is written."""
MOST_STOPS = 5000
"""More need more memory for their distances than a tour is worth here."""


@dataclass(frozen=True)
class Tour:
    """A tour through a user's stops."""

    tokens: list[int]
    """1-based rows, in order."""
    closed: bool
    distances: Floats
    unit: str
    network: float | None
    """Length of the network's tour, polished if that was asked for; None if it was not asked."""
    raw: float | None
    """Length of the network's tour before it was polished."""
    classical: float
    """Length of the classical solver's tour."""
    solver: str
    """Whose tour this is: "network", "classical" or "warm"."""
    note: str = ""
    """Why it is not the network's."""

    @property
    def length(self) -> float:
        """Length of this tour, with the way back if it is closed."""
        return solvers.tour_length(self.distances, self.tokens, closed=self.closed)

    def steps(self) -> Iterator[tuple[int, float, float]]:
        """Yield token, leg to it and length so far; of a closed tour the first stop comes once more at the end."""
        total, before = 0.0, self.tokens[0]
        for token in [*self.tokens, *([self.tokens[0]] if self.closed else [])]:
            leg = float(self.distances[before - 1, token - 1])
            total, before = total + leg, token
            yield token, leg, total

    def facts(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {
            "length": self.length,
            "unit": self.unit,
            "solver": self.solver,
            "network": self.network,
            "network before polish": self.raw,
            "classical": self.classical,
            "gap_percent": None if self.network is None else self._gap(),
        }

    def _gap(self) -> float:
        assert self.network is not None  # facts and sentence ask where there is one
        return 100 * (self.network / self.classical - 1) if self.classical else 0.0

    @property
    def sentence(self) -> str:
        """Say in words how long the tour is, and whose is better."""
        unit = f" {self.unit}" if self.unit else ""
        parts = [f"{len(self.tokens)} stops, {self.length:,.6g}{unit} by {_WHOSE[self.solver]}."]
        if self.note:
            parts.append(self.note)
        if self.network is not None:
            polished = "" if self.raw is None or self.raw == self.network else f" ({self.raw:,.6g} before polish)"
            gap = self._gap()
            parts.append(f"Network {self.network:,.6g}{polished}, PyVRP {self.classical:,.6g}: gap {gap:+.2f} %.")
            if gap > 1e-6 and self.solver == "network":
                parts.append("The classical solver is better: --solver classical takes its tour, --solver warm starts")
                parts.append("it from the network's.")
        return " ".join(parts)


_WHOSE = {"network": "the network", "classical": "PyVRP", "warm": "PyVRP from the network's tour"}


def solve_tour(task: SolveTask, model: nn.Module, instance: Instance, settings: TourPredictSettings) -> Tour:
    """Order a user's stops.

    Raises:
        DataError: a stop that is not there, ends that contradict each other, too many stops, or too many for the model.
    """
    from polyhead_combinatorics.predicting import find_stop

    count = len(instance.points)
    if count > MOST_STOPS:
        raise DataError(
            f"{instance.name} has {count:,} stops, at most {MOST_STOPS:,} are solved here. LKH or OR-Tools takes more, "
            "or cut them into districts."
        )
    start = find_stop(instance, settings.start, "--start") if settings.start else 1
    end = find_stop(instance, settings.end, "--end") if settings.end else 0
    if end == start:
        end = 0
        if settings.open:
            raise DataError(f"--start and --end are both {settings.end}: that is a round tour, leave --open out.")
    closed = not settings.open and not end
    distances = distances_of(instance)
    unit = instance.unit if instance.unit != "TSPLIB" else ""

    asked, note = settings.solver, ""
    if asked == "auto":
        asked = "network" if count <= BEYOND * task.most_points else "classical"
        if asked == "classical":
            note = (
                f"The model was trained on at most {task.most_points} points and {count} are more than {BEYOND} times "
                "that: --solver network asks it all the same."
            )
    search: dict[str, Any] = {"start": start, "end": end, "closed": closed, "steps": settings.search_steps}
    classical = solvers.search(distances, **search)
    classical_length = solvers.tour_length(distances, classical, closed=closed)
    network: Any = model
    most = network.max_points
    if asked == "classical" and (count > MOST_COMPARED or (most is not None and count > most)):
        return Tour(classical, closed, distances, unit, None, None, classical_length, "classical", note)

    found = _network(model, instance, distances, settings.beam, start, end, closed)
    raw = solvers.tour_length(distances, found, closed=closed)
    if settings.polish == "2opt":
        found = solvers.two_opt(distances, found, closed=closed, end=bool(end))
    length = solvers.tour_length(distances, found, closed=closed)
    if asked == "classical":
        found = classical
    elif asked == "warm":
        found = solvers.search(distances, warm=found, **search)
    return Tour(found, closed, distances, unit, length, raw, classical_length, asked, note)


def _network(
    model: Any,
    instance: Instance,
    distances: Floats,
    beam: int,
    start: int,
    end: int,
    closed: bool,
) -> list[int]:
    """Return the network's tour: the shortest of its beams, by the user's distances.

    The network learned round tours from input 1 on, so the stop to start from is shown to it first.
    """
    import torch

    from polyhead_combinatorics.decoding import beam_search

    count = len(instance.points)
    most = model.max_points
    if most is not None and count > most:
        raise DataError(
            f"{instance.name} has {count} stops, the model's dictionary {most}. Fit a pointer-network: it has no such "
            "limit."
        )
    order = np.concatenate([[start - 1], np.delete(np.arange(count), start - 1)])
    device = next(model.parameters()).device
    shown = torch.from_numpy(in_the_plane(instance)[order].astype(np.float32))[None]
    points = shown.to(device)
    last = torch.tensor([int(np.flatnonzero(order == end - 1)[0]) + 1 if end else 0], device=device)
    beams = beam_search(model.eval(), points, rule="tour", beam=beam, last=last if end else None)
    tours = []
    for tokens in beams.tokens[0].cpu().numpy():
        tour = [int(order[token - 1]) + 1 for token in tokens if token]
        if len(tour) < count:
            continue
        at = tour.index(start)
        # Not every round begins at the start; a path with an end does not bear turning.
        tours.append(_from(tour, at, closed or not end, start, end))
    return min(tours, key=lambda it: solvers.tour_length(distances, it, closed=closed))


def _from(tour: list[int], at: int, round_tour: bool, start: int, end: int) -> list[int]:
    if round_tour:
        return [*tour[at:], *tour[:at]]
    return [start, *(token for token in tour if token not in (start, end)), end]
