"""The command `gaze-scanpath`."""

from __future__ import annotations

from polyhead_apps.app import App, Arm, Demo, run

__all__ = ["app", "main"]

app = App(
    name="gaze-scanpath",
    plugin="gaze",
    summary="Predict which objects of a display a person looks at, in which order, and when the search ends.",
    tasks=("scanpath",),
    demo=Demo(
        settings={
            "model.preset": "small",
            "model.dropout": 0.0,
            "train.lr": 2e-3,
            "train.steps": 1200,
            "train.validate_epochs": 20.0,
        },
        quick={
            "model.preset": "tiny",
            "data.displays": 64,
            "data.test_displays": 12,
            "train.steps": 20,
            "train.warmup_steps": 0,
            "task.samples": 4,
        },
        arms=(Arm("OAT"), Arm("random place codes", {"model.place": "random"})),
        seeds=3,
        note="Simulated viewers are no people.",
    ),
    epilog=(
        "Your own display: gaze-scanpath predict --data display.json --target NAME --samples 100. Durations are not "
        "modelled."
    ),
)


def main() -> None:
    """Run the command."""
    run(app)
