"""The command `geometry-solve`."""

from __future__ import annotations

from polyhead_apps.app import App, Demo, run

__all__ = ["app", "main"]

QUICK = {
    "model.preset": "tiny",
    "data.min_points": 5,
    "data.max_points": 6,
    "data.test_points": [6],
    "data.held_out": 64,
    "data.curriculum": 0,
    "train.steps": 40,
    "train.validate_epochs": 1.0,
}

app = App(
    name="geometry-solve",
    plugin="combinatorics",
    summary="Order your own points with Pointer Networks: tours, convex hulls, Delaunay triangulations.",
    tasks=("tsp", "hull", "delaunay"),
    demo=Demo(
        settings={"model.preset": "small", "data.min_points": 10, "train.steps": 1500},
        quick=QUICK,
        note="Uniform points: stops on a map lie otherwise.",
    ),
    epilog="Own stops: geometry-solve predict --data stops.csv. What is read: geometry-solve datasets.",
)


def main() -> None:
    """Run the command."""
    run(app)
