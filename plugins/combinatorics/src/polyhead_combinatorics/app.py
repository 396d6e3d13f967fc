"""The command `geometry-solve`."""

from __future__ import annotations

from polyhead_apps.app import App, Arm, Demo, run

__all__ = ["HULLS", "TOURS", "app", "main"]

QUICK = {
    "model.preset": "tiny",
    "data.min_points": 5,
    "data.max_points": 6,
    "data.test_points": [6],
    "data.held_out": 64,
    "data.curriculum": 0,
    "train.steps": 40,
    "train.workers": 0,
    "train.validate_epochs": 1.0,
}

COMMON = {"train.workers": 1, "train.validate_epochs": 0.25}
CURRICULUM = 0.35
"""Share of training over which hulls grow to their size."""
STEPS = {"pointer-network": 800, "lstm-attention": 640, "lstm-seq2seq": 1500}
"""Of the hulls' arms: about as much processor time for each baseline as for the Pointer Network, or more."""


def _hull_arm(model: str) -> Arm:
    settings = {"model.name": model, "train.steps": STEPS[model]}
    return Arm(model, {**settings, "data.curriculum": int(CURRICULUM * STEPS[model] * 128)})


TOURS = Demo(
    arms=(Arm("pointer-network"),),
    seeds=3,
    settings={**COMMON, "data.min_points": 10, "data.max_points": 10, "task.beam": 5, "train.steps": 800},
    quick=QUICK,
    note="Uniform points: stops on a map lie otherwise.",
)
HULLS = Demo(
    arms=tuple(map(_hull_arm, STEPS)),
    seeds=3,
    settings={**COMMON, "data.min_points": 8, "data.max_points": 8},
    quick=QUICK,
    note="Uniform points. The LSTMs had as much processor time as the Pointer Network, far less than they need.",
)
app = App(
    name="geometry-solve",
    plugin="combinatorics",
    summary="Order your own points with Pointer Networks: tours, convex hulls, Delaunay triangulations.",
    tasks=("tsp", "hull", "delaunay"),
    demo=Demo(
        settings={**COMMON, "train.steps": 3000},
        quick=QUICK,
        note="Uniform points.",
    ),
    demos={"tsp": TOURS, "hull": HULLS},
    epilog="Own stops: geometry-solve predict --data stops.csv. What is read: geometry-solve datasets.",
)


def main() -> None:
    """Run the command."""
    run(app)
