"""What a network has to beat: simple guesses, and the classical algorithms that are exact or nearly so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from polyhead.protocols import Batch, Predictor
from polyhead_combinatorics import solvers
from polyhead_combinatorics.instances import Floats, Kind

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["baselines"]

Answer = Callable[[Floats], Sequence[int]]


def baselines(kind: Kind) -> Mapping[str, Predictor]:
    """Return predictors by name; none of them has anything to fit."""
    found: Mapping[str, Answer] = {
        "tsp": {"stops by angle": _by_angle, "nearest neighbour": _nearest_neighbour, "2-opt": _two_opt},
        "hull": {"all points by angle": _by_angle, "Qhull (exact)": solvers.convex_hull},
        "delaunay": {"three nearest": _three_nearest, "Qhull (exact)": solvers.triangulation},
    }[kind]
    return {name: _predictor(answer) for name, answer in found.items()}


def _predictor(answer: Answer) -> Predictor:
    def predict(batch: Batch) -> Tensor:
        import torch

        tokens = torch.zeros_like(batch["target"])
        points = batch["points"].double().numpy()
        for row, (each, count) in enumerate(zip(points, batch["lengths"].tolist(), strict=True)):
            found = answer(each[:count])
            tokens[row, : len(found)] = torch.tensor(found)
        return tokens

    return predict


def _distances(points: Floats) -> Floats:
    return np.asarray(np.sqrt(((points[:, None] - points[None]) ** 2).sum(-1)))


def _nearest_neighbour(points: Floats) -> Sequence[int]:
    return solvers.nearest_neighbour(_distances(points))


def _two_opt(points: Floats) -> Sequence[int]:
    distances = _distances(points)
    return solvers.two_opt(distances, solvers.nearest_neighbour(distances))


def _by_angle(points: Floats) -> Sequence[int]:
    """Go through all points around their mean: right where every point is a corner."""
    x, y = (points - points.mean(0)).T
    return [int(place) + 1 for place in np.argsort(np.arctan2(y, x))]


def _three_nearest(points: Floats) -> Sequence[int]:
    """Join each point with the two nearest ones."""
    nearest = np.sort(np.argsort(_distances(points), axis=1, kind="stable")[:, :3], axis=1)
    most = max(2 * len(points) - 5, 1)
    return [int(place) + 1 for triangle in np.unique(nearest, axis=0)[:most] for place in triangle]
