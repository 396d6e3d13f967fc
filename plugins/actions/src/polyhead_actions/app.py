"""The command `action-detect`."""

from __future__ import annotations

from polyhead_apps.app import App, Arm, Demo, run

__all__ = ["app", "main"]

NOTE = "The videos are made up: differences between the arms are what counts, not their level."

WIDTHS = {"csa": 64, "se": 73, "none": 77}
"""Of the N-wide convolution, so that all arms have 86,000 parameters, within 0.4 %."""

app = App(
    name="action-detect",
    plugin="actions",
    summary="Find what happens when in videos and signals with BMN and class-semantics attention.",
    tasks=("detect",),
    demo=Demo(
        settings={
            "model.preset": "small",
            "data.durations": 16,
            "train.epochs": 16,
            "train.step_epochs": 12,
            "train.weight_decay": 0.0,
        },
        quick={"data.train_videos": 32, "data.test_videos": 16, "train.epochs": 1},
        note=NOTE,
        arms=(
            Arm("BMN + CSA", {"model.attention": "csa", "model.hidden_3d": WIDTHS["csa"]}),
            Arm("BMN + SE", {"model.attention": "se", "model.hidden_3d": WIDTHS["se"]}),
            Arm("BMN", {"model.attention": "none", "model.hidden_3d": WIDTHS["none"]}),
        ),
        seeds=3,
    ),
    commands={"features": "polyhead_actions.extract:features"},
    epilog="Own videos: action-detect fit --data FOLDER. What is read: action-detect datasets.",
)


def main() -> None:
    """Run the command."""
    run(app)
